"""normbook.sweep: rates are scanned, the best looked at closer, seeds run at the best; records are only read."""

from dataclasses import replace

import fakes
import pytest

from normbook import claims, data, grid, sweep
from normbook.errors import InputError
from normbook.train import Config

ONE = Config("batch_norm", depth=10, width=0.25, steps=2, evaluate=())
OTHER = replace(ONE, arm="none")
RATES = (0.1, 0.2, 0.4, 0.8)
SCAN = [replace(c, lr=lr, seed=(0, 1000)) for c in (ONE, OTHER) for lr in RATES]
RUNS = [run for c in (ONE, OTHER) for run in grid.seeds(c, 0, 3)]
CLOSER = [(0, 1001), (0, 1002)]


def trained(losses, asked):
    """A `get` that gives a record of every run: ``losses`` is a loss by (learning rate, seed)."""

    def get(configs):
        asked.append(list(configs))
        return [fakes.record(c, losses(c.lr, c.seed[1])) for c in configs]

    return get


# ---- the stages


def test_seeds_are_run_at_the_best_scanned_rate():
    asked = []
    scan, runs = sweep.stages(SCAN, RUNS, (), trained(lambda lr, seed: abs(lr - 0.2), asked))
    assert len(scan) == 8 and [len(configs) for configs in asked] == [8, 0, 6]
    assert {(c.lr, c.seed) for c in asked[2]} == {(0.2, (0, i)) for i in range(3)}
    assert [grid.config_of(record) for record in runs] == [replace(c, lr=0.2) for c in RUNS]


def test_the_best_rate_and_its_neighbours_are_looked_at_closer_and_their_mean_decides():
    asked = []
    # with the first seed 0.2 is best, with the others 0.4
    get = trained(lambda lr, seed: abs(lr - (0.2 if seed == 1000 else 0.4)), asked)
    scan, runs = sweep.stages(SCAN, RUNS, CLOSER, get)
    assert len(scan) == 8 + 2 * 3 * 2
    assert {(c.arm, c.lr, c.seed) for c in asked[1]} == {
        (arm, lr, s) for arm in ("batch_norm", "none") for lr in (0.1, 0.2, 0.4) for s in CLOSER
    }
    assert {c.lr for c in asked[2]} == {0.4}


def test_a_best_rate_at_the_end_of_its_grid_has_one_neighbour_and_one_that_diverged_everywhere_is_the_lowest():
    def near(losses):
        found = [fakes.record(c, losses(c.lr)) for c in SCAN[:4]]
        return sorted({c.lr for c in sweep.around_best(found, CLOSER)})

    assert near(lambda lr: lr) == [0.1, 0.2] and near(lambda lr: -lr) == [0.4, 0.8]
    assert near(lambda lr: None) == [0.1, 0.2]
    assert near(lambda lr: None if lr > 0.3 else -lr) == [0.1, 0.2, 0.4]


def test_a_closer_look_that_is_there_already_changes_nothing_about_where_to_look():
    found = [fakes.record(c, abs(c.lr - 0.2)) for c in SCAN[:4]]
    near = sweep.around_best(found, CLOSER)
    found += [fakes.record(c, 9.0 if c.lr == 0.2 else 0.0) for c in near]
    assert sweep.around_best(found, CLOSER) == near
    assert sweep.around_best(found, ()) == []


@pytest.mark.parametrize("lost", [SCAN[2], replace(SCAN[1], seed=CLOSER[1])])
def test_a_kind_of_run_whose_scan_is_not_all_there_has_no_best_rate_and_no_runs(lost):
    def get(configs):
        return [fakes.record(c, abs(c.lr - 0.2)) for c in configs if c != lost]

    scan, runs = sweep.stages(SCAN, RUNS, CLOSER, get)
    assert {record["config"]["arm"] for record in runs} == {"none"} and len(runs) == 3


def test_the_key_of_a_kind_is_that_of_a_configurations_kind():
    changed = [ONE, OTHER, replace(ONE, steps=3), replace(ONE, lr=0.5), replace(ONE, seed=(3, 4))]
    for a in changed:
        for b in changed:
            assert (sweep.kind(a) == sweep.kind(b)) is (a.kind() == b.kind())


def test_runs_that_were_never_scanned_keep_their_own_rate():
    asked = []
    own = [replace(c, lr=0.3) for c in RUNS]
    sweep.stages([], own, CLOSER, trained(lambda *_: 1.0, asked))
    assert asked == [[], [], own]


# ---- what a notebook gets


def test_at_scale_quick_a_notebook_trains_as_it_always_did(monkeypatch):
    asked = []
    get = trained(lambda lr, seed: lr, asked)
    monkeypatch.setattr(grid, "run", lambda configs, device: get(configs) if device == "cpu" else 1 / 0)
    for scale in ("quick", "tiny"):
        asked.clear()
        scan, runs = sweep.results(SCAN, RUNS, [], scale, "cpu")
        assert asked == [SCAN, [], [replace(c, lr=0.1) for c in RUNS]] and len(scan) == 8 and len(runs) == 6


@pytest.mark.parametrize("scale", sweep.KEPT)
def test_at_the_other_scales_it_reads_what_is_recorded_without_images_and_trains_nothing(scale, monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    folder = tmp_path / "results" / scale / "records"
    best = [replace(c, lr=0.1) for c in RUNS]
    fakes.keep(folder, [*SCAN, *best[:2]], lambda c: c.lr)
    monkeypatch.setattr(grid, "run", lambda *_, **__: pytest.fail("something was trained"))
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("images were read"))
    monkeypatch.chdir(tmp_path)
    scan, runs = sweep.results(SCAN, RUNS, [], scale, "cpu")
    assert [grid.config_of(record) for record in scan] == SCAN
    assert [grid.config_of(record) for record in runs] == best[:2]


def test_records_stand_beside_a_chapters_folder_if_they_are_there_else_in_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    assert sweep.place("cifar", tmp_path / "out") == tmp_path / "results" / "cifar" / "records"
    (tmp_path / "out" / "records").mkdir(parents=True)
    assert sweep.place("cifar", tmp_path / "out") == tmp_path / "out" / "records"


def test_a_damaged_record_is_one_line(tmp_path):
    fakes.keep(tmp_path, SCAN[:1])
    assert sweep.recorded(SCAN, tmp_path) and not sweep.recorded(SCAN[1:], tmp_path)
    (path,) = tmp_path.glob("*.json")
    for text in ("{", "[]", "{}", path.read_text().replace("some cpu", "other cpu")):
        path.write_text(text)
        with pytest.raises(InputError, match=f"{path.name}: ") as error:
            sweep.recorded(SCAN, tmp_path)
        assert "\n" not in str(error.value)
    assert sweep.recorded(SCAN, tmp_path / "none") == []


def test_a_given_data_set_takes_the_plans_size(tmp_path):
    (tmp_path / "train").mkdir()
    assert sweep.dataset("cifar10-jpeg@16", "") == "cifar10-jpeg@16"
    assert sweep.dataset("cifar10-jpeg@16", "cifar10") == "cifar10@16"
    assert sweep.dataset("cifar10-jpeg@16", "cifar10@8") == "cifar10@8"
    assert sweep.dataset("cifar10-jpeg@16", str(tmp_path)) == f"imagefolder@16:{tmp_path}"
    assert sweep.dataset("digits", "cifar10") == "cifar10" and sweep.dataset("digits", "") == "digits"


# ---- a part of the runs


def kept(text, configs=(*SCAN, *RUNS)):
    return [c for c in configs if sweep.only(text, configs)(c)]


def test_a_part_is_named_by_fields_of_a_configuration():
    assert kept("") == [*SCAN, *RUNS]
    assert kept("arm=batch_norm,lr=0.2") == [SCAN[1]]
    assert kept("lr=0.1, lr=0.2, arm=none") == SCAN[4:6]
    assert kept("depth=10") == [*SCAN, *RUNS] and kept("seed=2") == [RUNS[2], RUNS[5]]


def test_an_arm_may_be_given_by_its_initials_and_a_rate_as_a_power_of_two():
    arms = ("batch_norm", "batch_norm_logits", "skipinit_0", "skipinit_0_biases", "none")
    configs = [Config(arm, lr=2.0**k, steps=2) for arm in arms for k in (-3, -1)]
    assert kept("arm=bn,lr=2^-3", configs) == configs[:1] and kept("arm=bnl,lr=0.5", configs) == configs[3:4]
    assert kept("arm=s0,lr=1.25e-1", configs) == configs[4:5]


@pytest.mark.parametrize(("text", "says"), [
    ("dept=10", "unknown field of --only 'dept'; did you mean 'depth'?"),
    ("arm", "unknown arm of --only ''"), ("=", "unknown field"), ("arm=bnorm", "did you mean 'batch_norm'"),
    ("depth=16", "unknown depth of --only '16'"), ("lr=0.3", "one of: 0.1, 0.2, 0.4, 0.8"),
    ("lr=2^9999", "unknown lr"), ("lr=1.2.3", "unknown lr"), ("seed=9", "one of: 0, 1, 1000, 2"),
    ("arm=none,", "field"),
])  # fmt: skip
def test_a_part_that_names_nothing_is_one_line(text, says):
    with pytest.raises(InputError, match=says) as error:
        kept(text)
    assert "\n" not in str(error.value)


def test_training_a_part_asks_for_its_runs_only(monkeypatch, tmp_path):
    asked = []
    get = trained(lambda lr, seed: lr, asked)
    monkeypatch.setattr(grid, "run", lambda configs, folder, device: get(configs))
    chapter = claims.Chapter(5, "05_x", "x", tmp_path, (), tuple(SCAN), tuple(RUNS), (), tuple(CLOSER))
    sweep.train(chapter, tmp_path, sweep.only("arm=bn", SCAN), device="cpu")
    assert list(map(len, asked)) == [4, 4, 3] and {c.arm for configs in asked for c in configs} == {"batch_norm"}
    asked.clear()
    sweep.train(chapter, tmp_path, sweep.only("lr=0.2", SCAN), device="cpu")
    assert list(map(len, asked)) == [2, 0, 0]  # no rate is the best of one
