"""The benchmark trains the same nets on the same batches in all its ways, and its table says what was read."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import __main__ as command
from benchmarks import cases, contenders, machine, measure, profile_chapters, report
from benchmarks.cases import CPU, GPU, LIGHTNING, NOTHING, OURS, P0, P1, P2, SKORCH, Case, Net
from normbook import data, models, train
from normbook.train.loop import batch_losses

RESULTS = sorted((Path(__file__).parent.parent / "benchmarks" / "results").glob("*.json"))
TRAINED = [n for n in dict.fromkeys(c.net for c in CPU) if n != NOTHING]


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    """Fewer random images: they are made in no time, and augmented in the same way."""
    raw = cases.images(32) if cases.images.cache_info().currsize else None
    few = raw or cases.Images(
        torch.randint(256, (256, 3, 32, 32), dtype=torch.uint8), torch.arange(256) % 10, 128, 74, 4, True
    )
    whole = cases.images.__wrapped__
    monkeypatch.setattr(cases, "images", lambda size: few if size == 32 else whole(size))
    monkeypatch.setattr(contenders, "images", cases.images)
    monkeypatch.setattr(machine, "images", cases.images)
    cases._dataset.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads wait for each other wherever something else runs beside the tests
    with cases.known_to_normbook():
        yield
    torch.set_num_threads(threads)
    cases._dataset.cache_clear()


def parts(net):
    """Convolutions, batch norms and linear layers of a net of ours or of torch.nn, each in the order of its layers."""
    modules = list(net.modules())
    return (
        [m for m in modules if isinstance(m, nn.Conv2d)],
        [m for m in modules if hasattr(m, "running_mean")],
        [m for m in modules if isinstance(m, nn.Linear | models.Linear)],
    )


@pytest.mark.parametrize("net", TRAINED, ids=lambda net: net.name)
def test_baselines_train_our_nets(net):
    case = Case(net, 8, 4)
    training = train.Training([case.config(1, "fp32")])
    textbook = net.textbook(1, 8)
    count = [sum(p.numel() for p in n.parameters()) for n in (training.net, textbook)]
    assert count[0] == count[1]
    for mine, theirs in zip(parts(training.net), parts(textbook), strict=True):
        for a, b in zip(mine, theirs, strict=True):
            for name, parameter in b.named_parameters():
                parameter.data.copy_(getattr(a, name).detach())
    images, labels = next(data.batches(training.train, 4, [torch.Generator()]))
    loss = batch_losses(training.net, images, labels)
    theirs = F.cross_entropy(textbook(images[:, 0]), labels[:, 0])
    torch.testing.assert_close(loss[0], theirs, rtol=1e-4, atol=1e-5)
    loss.sum().backward(), theirs.backward()
    for mine, other in zip(parts(training.net), parts(textbook), strict=True):
        if mine:
            torch.testing.assert_close(mine[-1].weight.grad, other[-1].weight.grad, rtol=1e-3, atol=1e-4)


def test_the_settings_of_sgd_are_ours():
    case = Case(cases.WRN_16_1, 8, 4)
    ours, theirs = train.Training([case.config(1, "fp32")]).optimizer, contenders.sgd(case.net.textbook(1, 8))
    for (parameters, weight_decay, _), group in zip(ours.groups, theirs.param_groups, strict=False):
        assert sum(p.numel() for p in parameters) == sum(p.numel() for p in group["params"])
        assert (weight_decay, ours.momentum, ours.lr) == (group["weight_decay"], group["momentum"], group["lr"])


@pytest.mark.parametrize(("device", "full"), [("cpu", False), ("cpu", True), ("cuda", False), ("cuda", True)])
def test_cases_are_valid_and_each_is_there_once(device, full):
    found = cases.cases(device, full)
    assert len(set(found)) == len({c.name for c in found}) == len(found)
    assert set(CPU) <= set(found) and (device == "cpu" or set(GPU) <= set(found))
    assert {c.config(3, "bf16").steps for c in found} == {3}
    assert {t.case for t in cases.CPU_TARGETS} <= set(CPU)


def test_a_grid_has_eight_runs_and_each_repeat_others():
    for _, arms, seeds in cases.GRIDS:
        first, second = (cases.grid_configs(arms, seeds, repeat) for repeat in (0, 1))
        assert len({*first, *second}) == 16


def test_our_dataset_is_known_only_within():
    assert data.load(cases.NAMES[8]).shape == (1, 8, 8)
    assert data.load("digits").name == "digits"


@pytest.mark.parametrize("case", [cases.STEP_OVERHEAD, Case(cases.WRN_16_1, 32, 8)], ids=lambda case: case.name)
def test_ways_without_a_loader_take_their_steps(case):
    for way in (P1, OURS):
        contender = contenders.WAYS[way](case, "cpu")
        before = [p.detach().clone() for p in contender.net.parameters()] if way == P1 else []
        assert contender.train(2) > 0
        assert way == OURS or not all(
            torch.equal(a, b) for a, b in zip(before, contender.net.parameters(), strict=True)
        )


def test_eager_batches_are_the_images_shifted_mirrored_and_standardized():
    eager = contenders.Eager(Case(Net("WRN-10-1", "wrn", 10, 1), 32, 8), "cpu")
    raw = cases.images(32)
    index = torch.arange(64)
    images, labels = eager._batch(index)
    assert images.shape == (64, 3, 32, 32) and torch.equal(labels, raw.labels[:64])
    back = (images * raw.std + raw.mean).round()
    padded = F.pad(raw.pixels[:64].float(), [4] * 4)
    for image, source in zip(back, padded, strict=True):
        crops = source.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert any(torch.equal(crop, image) or torch.equal(crop.flip(2), image) for crop in crops)


def test_the_textbook_loads_the_same_images():
    pictures, raw = contenders._Pictures(8), cases.images(8)
    pictures.transform.transforms.pop(0)  # the crop
    image, label = pictures[3]
    torch.testing.assert_close(image, (raw.pixels[3].float() - raw.mean) / raw.std, rtol=1e-4, atol=1e-4)
    assert label == raw.labels[3] and len(pictures) == len(raw.labels)


def test_a_pass_of_the_loader_is_the_steps_of_a_repeat():
    batches = contenders._Batches(10, 4)
    batches.steps = 5
    found = list(batches)
    assert [len(b) for b in found] == [4] * 5 == [4] * len(batches)
    assert len({*found[0], *found[1]}) == 8  # an epoch draws no image twice


@pytest.mark.parametrize(
    ("seconds", "steps"), [([0.001, 0.004], 500), ([0.001, 0.01], 300), ([0.3, 0.5], 2), ([3.0, 9.0], 1)]
)
def test_a_repeat_is_long_enough_for_the_fastest_and_short_enough_for_the_slowest(seconds, steps):
    assert measure.steps_for(seconds) == steps


def fake_ways(log, broken=()):
    """Contenders that write down what they were asked for; those in ``broken`` cannot be built."""

    def way(name):
        class Fake(contenders.Contender):
            def __init__(self, case, device, precision="fp32"):
                super().__init__(case, device)
                self.precision = precision
                if name in broken:
                    raise ModuleNotFoundError("No module", name="peer")

            def train(self, steps):
                log.append((name, self.precision, steps))
                return steps * (0.5 if self.precision == "fp32" else 0.25)

        return Fake

    return {name: way(name) for name in contenders.WAYS}


def test_repeats_are_interleaved_and_a_way_that_fails_is_a_row(monkeypatch):
    log = []
    monkeypatch.setattr(measure, "WAYS", fake_ways(log, broken=[SKORCH]))
    monkeypatch.setattr(measure.machine, "alone", lambda *_: (1.5, 100.0))
    monkeypatch.setattr(measure.train, "bf16_trains", lambda _: True)
    readings = {r.way: r for r in measure.measure(CPU[1], "cpu")}
    assert readings[SKORCH].error == "peer is not installed: pip install -e .[bench]" and not readings[SKORCH].seconds
    assert readings[P1].precision == readings[P2].precision == "bf16" and readings[P0].precision == "fp32"
    others = [P0, P1, P2, LIGHTNING, OURS]
    assert [name for name, _, _ in log[-25:]] == others * measure.REPEATS
    assert {steps for _, _, steps in log[-25:]} == {2} and len(readings[OURS].seconds) == 5
    assert readings[P2].first_step == 1.5


def made(**ours):
    """A report with img/s of 100 for P0, 200 for P1 and 400 for ours, median of three repeats; skorch is missing."""
    case = Case(cases.WRN_16_1, 8, 64).name
    common = {"case": case, "batch": 64, "precision": "fp32", "steps": 10, "first_step": 0.5, "memory_mb": 12.0,
              "error": ""}  # fmt: skip
    seconds = {P0: 6.4, P1: 3.2, OURS: 1.6}
    readings = [common | {"way": way, "seconds": [s, s / 2, s * 2]} for way, s in seconds.items()]
    readings += [common | {"way": SKORCH, "seconds": [], "error": "skorch is not installed: pip install -e .[bench]"}]
    return {
        "device": "a cpu", "device_kind": "cpu", "threads": 2, "versions": {"torch": "2"}, "minutes": 1.0,
        "load": [(0.1, 0, 0), (2.0, 0, 0)], "notes": [], "readings": readings,
        "peaks": {"matmul_fp32_gflops": 100.0, "matmul_bf16_gflops": 50.0, "copy_gb_per_s": 10.0},
        "cases": [{"name": case, "net": "WRN-16-1", "flop_per_image": 1e7, "bytes_per_image": 1e6}],
        "grids": [{"name": "g", "in_turn": [3.0, 3.0, 9.0], "workers": [2.0, 2.0, 1.0], "first": 6.0}],
    } | ours  # fmt: skip


def test_the_arithmetic_of_the_table():
    text = report.lines(made())
    row = next(line.split() for line in text if line.startswith(OURS))
    assert row[:4] == ["ours", "fp32", "400", "1.00x"]
    assert row[4:8] == ["160,000", "80,000..320,000", "4.0", "4.0"]  # 4 of 100 GFLOP/s, 0.4 of 10 GB/s
    assert next(line.split() for line in text if line.startswith(P0))[3:5] == ["100", "4.00x"]
    assert any("skorch is not installed" in line for line in text)
    assert any("3.00 s, in workers 2.00 s (1.50x); the first grid 6.00 s (0.50x)" in line for line in text)


def test_targets_and_whether_they_are_met():
    found = {(t["what"], t["against"]): t for t in report.targets(made())}
    case = made()["cases"][0]["name"]
    assert found[case, P0]["ratio"] == pytest.approx(4.0) and found[case, P0]["met"] == "goal"
    assert found[case, P1]["ratio"] == pytest.approx(2.0) and found[case, P1]["met"] == "floor"  # never slower
    assert found[case, SKORCH]["met"] == found[case, LIGHTNING]["met"] == "not read"
    assert found["grid: g", "in turn, all threads"]["met"] == "goal"
    assert not report.targets(made(device_kind="cuda"))


def test_a_floor_for_bf16_is_not_called_missed_where_bf16_does_not_pay():
    def at(precision):
        made_of = made()
        case = Case(cases.WRN_16_1, 32, 128).name
        for way, seconds in ((P0, 2.0), (P1, 1.5), (OURS, 1.0)):
            reading = measure.Reading(case, 128, way, precision if way == P1 else "fp32", 10, [seconds] * 5)
            made_of["readings"].append(vars(reading))
        return {(t["what"], t["against"]): t["met"] for t in report.targets(made_of)}[case, P0]

    assert at("fp32") == "no fast bf16" and at("bf16") == "missed"


@pytest.mark.parametrize(
    ("ratio", "says"), [(None, "not read"), (0.99, "missed"), (1.0, "floor"), (1.99, "floor"), (2.0, "goal")]
)
def test_met(ratio, says):
    assert report.met(ratio, 1.0, 2.0) == says


def test_flop_of_the_mlp_are_two_a_multiplication():
    weights = [64 * 100, 100 * 100, 100 * 10]
    flop, traffic = machine.cost(Case(cases.MLP_3, 8, 64))
    assert flop == 2 * (3 * sum(weights) - weights[0])  # the images need no gradient
    assert traffic > 0 and math.isfinite(traffic)


def test_a_compiled_net_never_falls_back_to_eager_unnoticed():
    net = contenders.compiled(nn.Linear(2, 2), backend="eager")
    limit = torch._dynamo.config.recompile_limit
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for n in range(1, limit + 2):  # each shape is compiled anew
            net(torch.zeros(n, 2))
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--fast"], "--fast"), (["--device", "tpu"], "unknown device 'tpu'"), (["stray"], "stray")],
)
def test_a_bad_option_is_one_line_and_exit_code_2(arguments, says, capsys):
    assert command.main(arguments) == 2
    out, error = capsys.readouterr()
    assert not out and len(error.splitlines()) == 1 and says in error


def test_the_name_of_a_reading():
    assert command.file_name("Some(R) CPU @ 2.50GHz", "2.15.0+cu132") == "some-r-cpu-2.50ghz-torch-2.15.0.json"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_reading_is_complete(path):
    found = json.loads(path.read_text())
    assert path.name == command.file_name(found["device"], found["versions"]["torch"])
    wanted = {(c.name, way) for c in cases.cases(found["device_kind"]) for way in contenders.WAYS}
    assert wanted <= {(r["case"], r["way"]) for r in found["readings"]}
    assert all(len(r["seconds"]) >= 5 or r["error"] for r in found["readings"])
    assert found["targets"] == report.targets(found) and report.lines(found)


def test_a_sample_counts_for_the_innermost_part_and_imports_count_whole():
    run = "MainThread;run (normbook/train/loop.py:148);"
    parts = {
        run + "step (normbook/train/optimizers.py:50);at::native::add (libtorch_cpu.so)": "kernels",
        run + "batches (normbook/data/sampling.py:40);at::index (libtorch_cpu.so)": "kernels",
        run + "batches (normbook/data/sampling.py:40)": "data",
        run + "lr_scale (normbook/train/config.py:140)": "training, in Python",
        "_find_and_load (<frozen importlib._bootstrap>:1360);<module> (torch/__init__.py:3);x (libtorch.so)": "imports",
        "cell (<string>:3);savefig (matplotlib/figure.py:1);mean (numpy/core.py:2)": "figures",
        "main (nowhere.py:1)": "other",
        run + "backward (torch/autograd/__init__.py:395);0x7fe7811e193a (?)": "kernels",  # compiled by oneDNN
        "run (selectors.py:468);select_epoll_poll_impl (selectmodule.c:1598);epoll_wait (libc.so.6)": "waits",
        "result (threading.py:3);PyThread_acquire_lock_timed (libpython3.11.so);0x7f2312aa3f16 (libc.so.6)": "waits",
    }  # fmt: skip
    for stack, name in parts.items():
        assert profile_chapters.part(stack) == name
    found = profile_chapters.shares(f"{stack} {n}\n" for n, stack in enumerate(parts, 1))
    assert sum(found.values()) == pytest.approx(1) and found["kernels"] == pytest.approx((1 + 2 + 8) / 36)
    assert list(found.values()) == sorted(found.values(), reverse=True)
