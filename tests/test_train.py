"""normbook.train: the optimizer, the schedule, divergence as an outcome, and one run the same alone and in a bundle."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normbook import data, models, norms, records, train
from normbook.errors import InputError
from normbook.train import SGD, Config, lr_scale, run, streams

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
TINY = Config("batch_norm", lr=0.1, depth=10, width=0.25, batch_size=8, steps=3, n_train=40)
HUGE = 1e6  # a learning rate at which a net without norm diverges within a few steps


def seeded(config, *indices):
    return [replace(config, seed=(0, i)) for i in indices]


def what_was_learned(result):
    return {key: result[key] for key in ("outcome", "final", "curves", "config", "data_hash")}


def scripted(monkeypatch, values):
    """Let the loss of step t be values[t] (one number a run), with the true gradients; return the list of calls."""
    calls, honest = [], train.loop.batch_losses

    def losses(net, images, labels, precision):
        loss = honest(net, images, labels, precision)
        step = len(calls)
        calls.append(step)
        wanted = torch.tensor(values[step] if step < len(values) else values[-1])
        return loss + (wanted - loss).detach()

    monkeypatch.setattr(train.loop, "batch_losses", losses)
    return calls


def eager(config):
    """The same run as a plain loop that looks at every loss: (first bad step or -1, losses, net)."""
    digits = data.load(config.data)
    split = data.Split(digits.train.images[: config.n_train], digits.train.labels[: config.n_train])
    torch.manual_seed(streams(config.seed)[2])
    net = train.build([config], digits, "cpu").train()
    decayed = [m.weight for m in net.modules() if isinstance(m, torch.nn.Conv2d | models.Linear)]
    scalars = [m.weight for m in net.modules() if isinstance(m, models.Scalar) and m.fixup]
    rest = [p for p in net.parameters() if p.requires_grad and not any(p is q for q in decayed + scalars)]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest}]
    groups += [{"params": scalars, "lr": config.lr / 10}] if scalars else []
    optimizer = torch.optim.SGD([g for g in groups if g["params"]], lr=config.lr, momentum=config.momentum)
    start = [group["lr"] for group in optimizer.param_groups]
    order = torch.Generator().manual_seed(streams(config.seed)[1])
    losses = []
    while True:
        for images, labels in data.batches(split, config.batch_size, [order]):
            logits = net(images[:, 0])[:, 0]
            loss = F.cross_entropy(logits, labels[:, 0])
            losses.append(float(loss.detach()))
            if not losses[-1] <= 1000:
                return len(losses) - 1, losses, net
            for group, lr in zip(optimizer.param_groups, start, strict=True):
                group["lr"] = lr * lr_scale(config, len(losses) - 1, config.steps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if len(losses) == config.steps:
                return -1, losses, net


# ---- configurations


@pytest.mark.parametrize("wrong, said", [
    ({"arm": "batchnorm"}, "did you mean 'batch_norm'"), ({"model": "wrm"}, "did you mean 'wrn'"),
    ({"schedule": "halved"}, "did you mean 'halve'"), ({"precision": "fp16"}, "unknown precision"),
    ({"precision": "auto"}, "unknown precision"), ({"evaluate": ("tests",)}, "did you mean 'test'"),
    ({"epochs": 1}, "exactly one"), ({"steps": None}, "exactly one"), ({"steps": 0}, "at least 1"),
    ({"batch_size": 0}, "at least 1"), ({"lr": 0.0}, "learning rate"), ({"lr": -0.1}, "learning rate"),
    ({"lr": math.nan}, "lr is nan"), ({"lr": math.inf}, "lr is inf"),
])  # fmt: skip
def test_a_configuration_that_makes_no_sense_is_bad_input(wrong, said):
    with pytest.raises(InputError, match=said):
        replace(TINY, **wrong)


def test_runs_share_a_bundle_when_they_differ_in_seed_and_learning_rate_only():
    assert replace(TINY, seed=(3, 4), lr=0.5).kind() == TINY.kind()
    others = {"arm": "none", "depth": 16, "width": 0.5, "n_train": 41, "augment": True, "batch_size": 9, "steps": 4,
              "momentum": 0.8, "weight_decay": 0.0, "dropout": 0.1, "precision": "bf16", "evaluate": ("test",),
              "schedule": "constant", "norm": "torch.nn", "model": "mlp", "activation": "sigmoid"}  # fmt: skip
    for field, value in others.items():
        assert replace(TINY, **{field: value}).kind() != TINY.kind(), field


def test_runs_of_different_kinds_in_one_bundle_are_bad_input():
    with pytest.raises(InputError, match="seed and learning rate only"):
        run([TINY, replace(TINY, arm="none")])


def test_a_run_without_a_learning_rate_is_bad_input():
    with pytest.raises(InputError, match="no learning rate"):
        run([replace(TINY, lr=None)])


@pytest.mark.parametrize("wrong", [
    {"n_train": 7}, {"n_train": 1001}, {"n_train": None, "batch_size": 1001},
    {"n_train": None, "batch_size": 1001, "steps": None, "epochs": 1},
])  # fmt: skip
def test_a_batch_that_the_training_images_cannot_fill_is_bad_input(monkeypatch, wrong):
    monkeypatch.setattr(train.loop, "batch_losses", lambda *args: pytest.fail("training began, and would never end"))
    with pytest.raises(InputError, match="batch_size"):
        run([replace(TINY, **wrong)])


def test_an_unknown_data_set_or_norm_namespace_is_bad_input():
    with pytest.raises(InputError, match="digits"):
        run([replace(TINY, data="digitz")])
    with pytest.raises(InputError, match="cannot be imported"):
        run([replace(TINY, norm="normbook.norm")])


def test_a_wrong_depth_is_bad_input():
    with pytest.raises(InputError, match="depth 11 is not 6"):
        run([replace(TINY, depth=11)])


# ---- devices and precision


def test_cuda_without_a_gpu_is_bad_input_and_auto_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train.resolve_device("auto") == train.resolve_device("cpu") == "cpu"
    with pytest.raises(InputError, match="torch sees no GPU"):
        train.resolve_device("cuda")
    with pytest.raises(InputError, match="did you mean 'cuda'"):
        train.resolve_device("cud")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert train.resolve_device("auto") == train.resolve_device("cuda") == "cuda"
    assert train.resolve_device("cpu") == "cpu"


@pytest.mark.parametrize("works", [True, False])
@pytest.mark.parametrize("features", [{"avx512_bf16": True}, {"avx512_f": True, "avx512_bf16": False}, {"bf16": True}])
def test_auto_precision_is_fp32_at_the_small_scales_and_beyond_them_bf16_where_it_pays(monkeypatch, works, features):
    monkeypatch.setattr(train.machine, "bf16_trains", lambda device: works)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    pays = works and any(features[name] for name in features if "bf16" in name)
    assert train.resolve_precision("auto", "quick", "cpu") == train.resolve_precision("auto", "tiny", "cpu") == "fp32"
    for scale in ("cifar", "paper"):
        assert train.resolve_precision("auto", scale, "cpu") == ("bf16" if pays else "fp32")
        assert train.resolve_precision("auto", scale, "cuda") == ("bf16" if works else "fp32")
        assert train.resolve_precision("fp32", scale, "cpu") == "fp32"
    if works:  # asked for, it is computed, however slowly
        assert train.resolve_precision("bf16", "cifar", "cpu") == "bf16"


def test_bf16_asked_for_where_it_does_not_train_is_bad_input(monkeypatch):
    monkeypatch.setattr(train.machine, "bf16_trains", lambda device: False)
    with pytest.raises(InputError, match="bf16"):
        train.resolve_precision("bf16", "quick", "cpu")
    monkeypatch.setattr(train.machine, "bf16_trains", lambda device: True)
    assert train.resolve_precision("bf16", "quick", "cpu") == "bf16"
    with pytest.raises(InputError, match="unknown precision"):
        train.resolve_precision("fp64", "quick", "cpu")


def test_the_bf16_probe_answers_no_where_a_convolution_raises(monkeypatch):
    def lacking(*args, **kwargs):
        raise RuntimeError("could not create a primitive")

    train.bf16_trains.cache_clear()
    monkeypatch.setattr(torch.nn, "Conv2d", lacking)
    assert train.bf16_trains("cpu") is False
    train.bf16_trains.cache_clear()


def test_bf16_runs_in_bf16_and_its_losses_are_fp32(monkeypatch):
    if not train.bf16_trains("cpu"):
        pytest.skip("no bf16 backward on this processor")
    seen = []
    config = replace(TINY, precision="bf16")
    first = what_was_learned(run([config])[0])
    full = what_was_learned(run([TINY])[0])
    assert first["final"]["step_loss"] != full["final"]["step_loss"]
    assert first["final"]["step_loss"] == pytest.approx(full["final"]["step_loss"], rel=0.1)
    net = train.build([config], data.load(), "cpu")
    net.blocks[0].conv1.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    digits = data.load().train
    loss = train.loop.batch_losses(net, digits.images[:8, None], digits.labels[:8, None], "bf16")
    assert loss.dtype == torch.float32 and seen == [torch.bfloat16]


# ---- optimizer and schedule


def grown(arm, seeds, kind="wrn"):
    """A net in float64 for runs with these seeds."""
    if kind == "wrn":
        net = models.WideResNet(10, 0.25, 1, 10, models.ARMS[arm], norms, len(seeds))
    else:
        net = models.MLP(3, 7, 36, 10, models.ARMS[arm], norms, len(seeds))
    models.initialize(net, models.ARMS[arm], [torch.Generator().manual_seed(s) for s in seeds])
    return net.double()


def losses_of(net, members, step):
    """Losses of one fixed batch a step and run, [M]."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(6, 3, 6, 6, generator=generator).double()[:, list(members)]
    labels = torch.randint(10, (6, 3), generator=generator)[:, list(members)]
    logits = net(images)
    each = F.cross_entropy(logits.reshape(-1, 10), labels.reshape(-1), reduction="none")
    return each.view(6, len(members)).mean(0)


@pytest.mark.parametrize("arm", ["batch_norm", "skipinit_rsqrt_d", "skipinit_0_biases"])
@pytest.mark.parametrize("kind", ["wrn", "mlp"])
def test_sgd_is_torchs_sgd_with_weight_decay_on_convolutions_and_linear_layers_only(arm, kind):
    ours, theirs = grown(arm, (0,), kind), grown(arm, (0,), kind)
    decayed = [p for name, p in theirs.named_parameters() if name.endswith("weight") and p.dim() > 1]
    rest = [p for p in theirs.parameters() if p.requires_grad and not any(p is q for q in decayed)]
    reference = torch.optim.SGD([{"params": decayed, "weight_decay": 0.3}, {"params": rest}], lr=0.05, momentum=0.9)
    sgd = SGD(ours, [0.05], 0.9, 0.3)
    for step in range(4):
        scale = (1.0, 1.0, 0.5, 0.25)[step]
        for group in reference.param_groups:
            group["lr"] = 0.05 * scale
        reference.zero_grad()
        losses_of(theirs, [0], step).sum().backward()
        reference.step()
        sgd.step(losses_of(ours, [0], step), scale)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("arm", ["batch_norm", "fixup", "skipinit_0_biases", "skipinit_rsqrt_d_fixed"])
@pytest.mark.parametrize("lrs", [(0.05, 0.05, 0.05), (0.02, 0.1, 0.0004)])
def test_runs_in_a_bundle_step_as_each_would_alone_at_its_own_learning_rate(arm, lrs):
    together = grown(arm, (0, 1, 2))
    sgd = SGD(together, lrs, 0.9, 0.3)
    for step in range(4):
        sgd.step(losses_of(together, [0, 1, 2], step), 0.5**step)
    for m, lr in enumerate(lrs):
        alone = grown(arm, (m,))
        start = [p.detach().clone() for p in alone.parameters()]
        one = SGD(alone, [lr], 0.9, 0.3)
        for step in range(4):
            one.step(losses_of(alone, [m], step), 0.5**step)
        moved = 0
        for (name, p), q, before in zip(together.named_parameters(), alone.parameters(), start, strict=True):
            mine = p.detach().view(3, -1)[m]
            assert torch.allclose(mine, q.detach().flatten(), rtol=1e-5, atol=1e-8), name  # loss_scale is float32
            moved += int(not torch.equal(q, before))
        assert moved > 5


def test_fixup_scalars_take_a_tenth_of_the_learning_rate_and_skipinits_alpha_all_of_it():
    for arm, factor in (("fixup", 0.1), ("skipinit_1", 1.0)):
        net = grown(arm, (0,))
        start = net.blocks[0].scale.weight.detach().clone()
        loss = (net.blocks[0].scale.weight * 2).sum().view(1) + 0 * losses_of(net, [0], 0)
        SGD(net, [0.05], 0.9, 0.3).step(loss, 1.0)
        assert float((start - net.blocks[0].scale.weight.detach()).sum()) == pytest.approx(0.05 * factor * 2)


def test_a_fixed_alpha_is_not_learned_and_the_others_are():
    for arm, learned in (("skipinit_rsqrt_d_fixed", False), ("skipinit_rsqrt_d", True), ("skipinit_1", True)):
        net = grown(arm, (0,))
        start = net.blocks[0].scale.weight.detach().clone()
        sgd = SGD(net, [0.05], 0.9, 0.3)
        for step in range(2):
            sgd.step(losses_of(net, [0], step), 1.0)
        assert torch.equal(start, net.blocks[0].scale.weight) != learned, arm


def test_skipinit_at_zero_learns_its_alpha_from_the_first_step():
    net = grown("skipinit_0", (0,))
    SGD(net, [0.05], 0.9, 0.0).step(losses_of(net, [0], 0), 1.0)
    assert all(float(block.scale.weight.detach()) != 0 for block in net.blocks)


@pytest.mark.parametrize("epoch, halvings", [
    (0, 0), (50, 0), (99, 0), (100, 1), (109, 1), (110, 2), (119, 2), (120, 3), (150, 6), (189, 9), (190, 10),
    (199, 10),
])  # fmt: skip
def test_the_learning_rate_is_constant_for_half_the_steps_then_halved_every_twentieth(epoch, halvings):
    for per_epoch in (1, 390):
        for step in (epoch * per_epoch, epoch * per_epoch + per_epoch - 1):
            assert lr_scale(TINY, step, 200 * per_epoch) == 0.5**halvings


def test_the_constant_schedule_is_constant():
    assert {lr_scale(replace(TINY, schedule="constant"), step, 20) for step in range(20)} == {1.0}


def test_training_follows_the_schedule_step_by_step(monkeypatch):
    seen, honest = [], train.optimizers.sgd
    monkeypatch.setattr(
        train.optimizers, "sgd", lambda *args, **kwargs: seen.append(kwargs["lr"]) or honest(*args, **kwargs)
    )
    run([replace(TINY, arm="none", steps=20)])
    scales = [1.0] * 10 + [0.5**k for k in range(1, 11)]
    per_step = len(seen) // 20
    assert seen == pytest.approx([0.1 * scale for scale in scales for _ in range(per_step)])


# ---- seeds


def test_the_three_streams_of_a_run_differ_from_each_other_and_from_those_of_every_other_run():
    seeds = [(base, i) for base in range(20) for i in range(20)]
    drawn = [value for seed in seeds for value in streams(seed)]
    assert len(set(drawn)) == 3 * len(seeds)
    assert all(0 <= value < 2**63 for value in drawn)
    assert streams((3, 4)) == streams((3, 4)) != streams((4, 3))


def test_each_stream_drives_one_thing(monkeypatch):
    """Another model stream changes the weights but not the order; another order stream does the opposite."""
    honest = train.streams

    def observed(which):
        nets, orders = [], []

        def losses(net, images, labels, precision):
            if not nets:
                nets.append(net.stem.weight.detach().clone())
            orders.append(labels.clone())
            return honest_losses(net, images, labels, precision)

        honest_losses = train.loop.batch_losses
        with monkeypatch.context() as patch:
            patch.setattr(train.loop, "batch_losses", losses)
            moved = lambda seed: tuple(v + (k == which) for k, v in enumerate(honest(seed)))  # noqa: E731
            patch.setattr(train.loop, "streams", moved)
            run([replace(TINY, augment=True)])
        return nets[0], torch.cat(orders)

    (weights, order), (other_weights, same_order) = observed(None), observed(0)
    assert not torch.equal(weights, other_weights) and torch.equal(order, same_order)
    same_weights, other_order = observed(1)
    assert torch.equal(weights, same_weights) and not torch.equal(order, other_order)
    same_weights, same_order = observed(2)
    assert torch.equal(weights, same_weights) and torch.equal(order, same_order)


@pytest.mark.parametrize("other", [(0, 1), (1, 0)])
def test_another_index_or_base_seed_is_another_run(other):
    first, second = run([TINY])[0], run([replace(TINY, seed=other)])[0]
    assert first["final"]["step_loss"] != second["final"]["step_loss"]


# ---- one run


@pytest.mark.parametrize("changes", [{}, {"arm": "fixup", "augment": True}, {"model": "mlp", "width": 9, "depth": 3},
                                     {"dropout": 0.5}])  # fmt: skip
def test_a_run_is_reproduced_to_the_bit(changes):
    config = replace(TINY, **changes)
    torch.manual_seed(1)
    first = run([config])
    torch.manual_seed(2)
    torch.rand(3)
    assert what_was_learned(first[0]) == what_was_learned(run([config])[0])


@pytest.mark.parametrize("changes", [{}, {"arm": "fixup"}, {"model": "mlp", "width": 9, "depth": 3, "momentum": 0.5}])
def test_a_run_equals_a_plain_loop_with_torchs_own_sgd(changes):
    config = replace(TINY, steps=12, **changes)
    bad, losses, net = eager(config)
    found = run([config])[0]
    assert bad == -1 and found["outcome"] == {"finished": True}
    assert [loss for _, loss in found["curves"]["train_loss"]] == pytest.approx(losses, rel=1e-4)
    digits = data.load()
    with torch.no_grad():
        logits = net.eval()(digits.test.images)[:, 0]
    assert found["final"]["test_loss"] == pytest.approx(float(F.cross_entropy(logits, digits.test.labels)), rel=1e-3)
    right = (logits.argmax(1) == digits.test.labels).double().mean()
    assert found["final"]["test_accuracy"] == pytest.approx(float(right), abs=0.005)


@pytest.mark.parametrize("arm", ["batch_norm", "fixup", "skipinit_0"])
def test_a_run_in_a_bundle_ends_as_it_does_alone(arm):
    config = replace(TINY, arm=arm)
    bundle = [replace(c, lr=lr) for c, lr in zip(seeded(config, 0, 1, 2), (0.1, 0.02, 0.05), strict=True)]
    for together, config in zip(run(bundle), bundle, strict=True):
        alone = run([config])[0]
        assert together["final"] == pytest.approx(alone["final"], rel=1e-3, abs=0.005)
        for (step, loss), (other, expected) in zip(
            together["curves"]["train_loss"], alone["curves"]["train_loss"], strict=True
        ):
            assert step == other and loss == pytest.approx(expected, rel=1e-4)
        assert together["config"] == alone["config"] and together["members"] == 3


def test_an_epoch_has_as_many_steps_as_full_batches():
    by_epochs = run([replace(TINY, steps=None, epochs=2, n_train=42)])[0]  # 5 batches of 8 an epoch
    by_steps = run([replace(TINY, steps=10, n_train=42)])[0]
    assert by_epochs["final"] == by_steps["final"] and by_epochs["curves"] == by_steps["curves"]
    assert by_epochs["curves"]["train_loss"][-1][0] == 10


def test_a_result_can_become_a_record():
    found = run(seeded(TINY, 0, 1))
    for m, result in enumerate(found):
        record = records.make(result)
        assert record["config"]["seed"] == [0, m] and record["data_hash"] == data.load().content_hash
        assert json.loads(json.dumps(record)) == record
        assert result["seconds"] > 0 and result["end"] >= result["start"] > 1e9 and result["peak_memory_mb"] > 1
        assert result["threads"] == 1 and result["device"] and result["compiled"] is False
        assert result["versions"]["torch"] == torch.__version__


def test_evaluate_names_the_splits_that_are_measured():
    assert set(run([replace(TINY, evaluate=("test",))])[0]["final"]) == {"test_loss", "test_accuracy", "step_loss"}
    assert set(run([replace(TINY, evaluate=())])[0]["final"]) == {"step_loss"}
    every = {f"{split}_{what}" for split in ("train", "validation", "test") for what in ("loss", "accuracy")}
    assert set(run([TINY])[0]["final"]) == {"step_loss", *every}


def test_the_train_split_is_measured_on_the_images_that_were_trained_on(monkeypatch):
    nets, honest = [], train.loop._evaluate
    monkeypatch.setattr(train.loop, "_evaluate", lambda training: nets.append(training.net) or honest(training))
    found = run([TINY])[0]["final"]
    digits = data.load()
    for split, n in (("train", 40), ("validation", 200), ("test", 597)):
        images, labels = getattr(digits, split).images[:n], getattr(digits, split).labels[:n]
        with torch.no_grad():
            logits = nets[0](images)[:, 0]
        assert found[f"{split}_accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
        assert found[f"{split}_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


@pytest.mark.parametrize("n_train", [16, None])
def test_training_sees_the_first_training_images_only(monkeypatch, n_train):
    seen, honest = [], data.batches

    def batches(split, *args, **kwargs):
        seen.append(split)
        return honest(split, *args, **kwargs)

    monkeypatch.setattr(data, "batches", batches)
    run([replace(TINY, n_train=n_train)])
    digits = data.load()
    assert torch.equal(seen[0].images, digits.train.images[:n_train])
    assert torch.equal(seen[0].labels, digits.train.labels[:n_train])
    held_out = torch.cat([digits.validation.images, digits.test.images]).flatten(1).tolist()
    assert not {tuple(image) for image in held_out} & {tuple(i) for i in seen[0].images.flatten(1).tolist()}


def test_augmentation_shifts_the_training_images_and_only_when_asked(monkeypatch):
    def first_batch(config):
        kept, honest = [], train.loop.batch_losses
        with monkeypatch.context() as patch:
            patch.setattr(train.loop, "batch_losses", lambda net, *args: kept.append(args[:2]) or honest(net, *args))
            run([config])
        return kept[0]

    (plain, labels), (shifted, same_labels) = first_batch(TINY), first_batch(replace(TINY, augment=True))
    assert torch.equal(labels, same_labels) and not torch.equal(plain, shifted)
    known = {tuple(image) for image in data.load().train.images.flatten(1).tolist()}
    assert {tuple(image) for image in plain.flatten(1).tolist()} <= known
    assert not {tuple(image) for image in shifted.flatten(1).tolist()} <= known


def test_evaluation_is_in_inference_mode_without_dropout_and_leaves_the_running_statistics(monkeypatch):
    kept, honest = [], train.loop._evaluate

    def evaluate(training):
        net = training.net
        before = {key: value.clone() for key, value in net.state_dict().items()}
        values = honest(training)
        kept.extend((net.training, all(torch.equal(v, before[k]) for k, v in net.state_dict().items())))
        again = honest(training)
        kept.append(all(torch.equal(values[name], again[name]) for name in values))
        return values

    monkeypatch.setattr(train.loop, "_evaluate", evaluate)
    run([replace(TINY, dropout=0.5)])
    assert kept == [False, True, True]


def test_dropout_changes_training():
    assert run([TINY])[0]["final"]["step_loss"] != run([replace(TINY, dropout=0.5)])[0]["final"]["step_loss"]


def test_the_norm_namespace_is_the_one_asked_for():
    ours, theirs = (run([replace(TINY, norm=norm)])[0] for norm in ("normbook.norms", "torch.nn"))
    assert ours["final"] == pytest.approx(theirs["final"], rel=1e-3, abs=0.005)
    assert type(train.build([replace(TINY, norm="torch.nn")], data.load(), "cpu").head[0]) is torch.nn.BatchNorm2d
    assert type(train.build([TINY], data.load(), "cpu").head[0]) is norms.BatchNorm2d


def test_training_lowers_the_loss():
    final = run([replace(TINY, steps=60)])[0]["final"]
    assert final["train_loss"] < 0.5 * math.log(10) and final["train_accuracy"] > 0.8


# ---- curves


@pytest.mark.parametrize("n, points", [(0, 0), (1, 1), (49, 49), (50, 50), (51, 50), (1000, 50)])
def test_a_curve_has_at_most_fifty_points_that_are_means_of_consecutive_steps(n, points):
    curve = np.arange(n, dtype=np.float32)
    thin = train.loop._thin(curve)
    assert len(thin) == points <= 50
    edges = [0, *(step for step, _ in thin)]
    assert edges[-1] == n and edges == sorted(set(edges))
    for a, b, (_, mean) in zip(edges, edges[1:], thin, strict=False):
        assert mean == pytest.approx(curve[a:b].mean())


def test_what_is_not_finite_is_left_out_of_a_curve():
    assert train.loop._thin(np.array([1.0, np.nan, np.inf, 2.0], dtype=np.float32)) == [[1, 1.0], [4, 2.0]]


def test_step_loss_is_the_mean_of_the_last_tenth_of_the_steps(monkeypatch):
    scripted(monkeypatch, [[float(step)] for step in range(40)])
    assert run([replace(TINY, steps=40, lr=1e-6)])[0]["final"]["step_loss"] == pytest.approx((36 + 37 + 38 + 39) / 4)


# ---- divergence


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.nan, 1000.5])
@pytest.mark.parametrize("at", [0, 1, 7, 11])
def test_the_first_bad_step_is_kept_exactly_and_a_diverged_run_has_no_final_values(monkeypatch, bad, at):
    losses = [[1.0]] * at + [[bad]] + [[2.0], [math.nan], [1.0]] * 4
    scripted(monkeypatch, losses)
    found = run([replace(TINY, steps=12)])[0]
    assert found["outcome"] == {"diverged_at": at} and found["final"] == {}
    assert found["curves"]["train_loss"] == [[step + 1, 1.0] for step in range(at)]
    records.make(found)


def test_a_loss_of_exactly_a_thousand_is_not_divergence(monkeypatch):
    scripted(monkeypatch, [[1000.0]])
    assert run([TINY])[0]["outcome"] == {"finished": True}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("lr", [30.0, HUGE])
def test_a_huge_learning_rate_diverges_at_the_step_that_a_plain_loop_finds(lr, seed):
    config = replace(TINY, arm="none", lr=lr, steps=40, seed=(0, seed))
    expected, losses, _ = eager(config)
    found = run([config])[0]
    assert expected > 0 and found["outcome"] == {"diverged_at": expected}
    assert [loss for _, loss in found["curves"]["train_loss"]] == pytest.approx(losses[:expected], rel=1e-3)


@pytest.mark.parametrize("arm", ["none", "fixup", "skipinit_rsqrt_d"])
def test_runs_beside_a_diverged_one_are_as_without_it(arm):
    fine = [
        replace(c, lr=lr) for c, lr in zip(seeded(replace(TINY, arm=arm, steps=12), 0, 1), (0.02, 0.01), strict=True)
    ]
    bad = replace(fine[0], seed=(0, 2), lr=1e4)
    with_it = run([bad, *fine])
    assert "diverged_at" in with_it[0]["outcome"]
    for together, alone in zip(with_it[1:], run(fine), strict=True):
        assert together["outcome"] == alone["outcome"] == {"finished": True}
        assert together["final"] == pytest.approx(alone["final"], rel=5e-3, abs=0.01)
        curves = [[loss for _, loss in r["curves"]["train_loss"]] for r in (together, alone)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-3)


def test_training_stops_at_the_next_read_of_the_flag_once_all_runs_have_diverged(monkeypatch):
    calls = scripted(monkeypatch, [[1.0], [math.nan]])
    run([replace(TINY, steps=500, n_train=1000)])
    assert len(calls) == 50
    monkeypatch.undo()
    calls = scripted(monkeypatch, [[1.0], [math.nan]])
    run([replace(TINY, steps=500, n_train=40)])  # 5 steps an epoch: it is read there too
    assert len(calls) == 5


def test_training_goes_on_through_the_epoch_while_one_run_of_the_bundle_has_not_diverged(monkeypatch):
    calls, epochs, honest = scripted(monkeypatch, [[1.0, math.nan]]), [], data.batches
    monkeypatch.setattr(data, "batches", lambda *args: epochs.append(1) or honest(*args))
    outcomes = [r["outcome"] for r in run(seeded(replace(TINY, steps=60, n_train=1000), 0, 1))]
    assert outcomes == [{"finished": True}, {"diverged_at": 0}]
    assert len(calls) == 60 and len(epochs) == 1


def test_a_net_that_the_last_step_destroyed_has_diverged_and_its_record_can_be_kept():
    found = run([replace(TINY, arm="none", lr=1e38, steps=1)])[0]
    assert found["outcome"] == {"diverged_at": 1} and found["final"] == {}
    records.make(found)


def test_a_runs_dropout_does_not_depend_on_the_runs_beside_it():
    configs = seeded(replace(TINY, arm="skipinit_0_biases", dropout=0.5), 0, 1, 2)
    together, alone = run(configs)[1], run(configs[1:2])[0]
    losses = [[loss for _, loss in result["curves"]["train_loss"]] for result in (alone, together)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("kind", ["resnet", "cnn", "mlp"])
def test_an_arm_with_residual_parts_or_dropout_in_a_block_is_bad_input_for_other_models(kind):
    with pytest.raises(InputError, match="residual block"):
        Config("skipinit_0", model=kind, steps=1)
    with pytest.raises(InputError, match="head"):
        Config("batch_norm", model=kind, steps=1, dropout=0.1, dropout_at="before_norm")


def test_adam_is_torchs_adam_for_each_run_at_its_own_learning_rate():
    rates = (0.01, 0.002)
    ours = grown("batch_norm", (0, 1), "mlp")
    adam = train.Adam(ours, rates)
    alone = [grown("batch_norm", (m,), "mlp") for m in (0, 1)]
    references = [torch.optim.Adam(net.parameters(), lr=lr) for net, lr in zip(alone, rates, strict=True)]
    for step in range(4):
        adam.step(losses_of(ours, [0, 1], step), 0.5**step)
        for m, (net, reference) in enumerate(zip(alone, references, strict=True)):
            reference.param_groups[0]["lr"] = rates[m] * 0.5**step
            reference.zero_grad()
            losses_of(net, [m], step).sum().backward()
            reference.step()
    for m, net in enumerate(alone):
        # a bias before a batch norm has a gradient of rounding alone, which Adam enlarges
        for p, q in zip(ours.parameters(), net.parameters(), strict=True):
            assert torch.allclose(p.view(2, *q.shape)[m], q, rtol=1e-10, atol=1e-9)


FROZEN = replace(TINY, weight_decay=0.0)


@pytest.mark.parametrize("trainable", ["norm", "random"])
def test_only_gamma_and_beta_or_as_many_random_weights_learn(trainable):
    configs = seeded(replace(FROZEN, trainable=trainable), 0, 1)
    training = train.Training(configs)
    before = {name: p.detach().clone() for name, p in training.net.named_parameters()}
    for _ in training:
        pass
    moved = {name: (p != before[name]).reshape(2, -1).sum(1) for name, p in training.net.named_parameters()}
    affine = {name for name in moved if "activate" in name or name.startswith("head")}
    count = sum(before[name].numel() for name in affine) // 2
    total = sum(moved.values())
    if trainable == "norm":
        assert {name for name, n in moved.items() if n.any()} <= affine and total.min() > 0.8 * count
    else:
        assert not any(moved[name].any() for name in affine)
        assert 0.5 * count < total.min() <= total.max() <= count


def test_weight_decay_with_frozen_weights_is_bad_input():
    with pytest.raises(InputError, match="weight_decay=0"):
        replace(TINY, trainable="norm")


def test_label_noise_is_each_runs_own_and_training_measures_on_the_noisy_labels():
    training = train.Training(seeded(replace(TINY, label_noise=0.5), 0, 1))
    clean = data.load().train.labels[:40]
    wrong = training.train.labels != clean[:, None]
    assert training.train.labels.shape == (40, 2) and 8 <= int(wrong[:, 0].sum()) <= 20
    assert not torch.equal(wrong[:, 0], wrong[:, 1])
    alone = train.Training(seeded(replace(TINY, label_noise=0.5), 1))
    assert torch.equal(alone.train.labels[:, 0], training.train.labels[:, 1])


def test_a_run_with_label_noise_is_the_same_alone_and_in_a_bundle():
    configs = seeded(replace(TINY, label_noise=0.3, statistics=("running", "batch", "reestimated")), 0, 1)
    alone, together = run([configs[1]])[0]["final"], run(configs)[1]["final"]
    assert set(alone) == set(together) and len(alone) == 19
    assert all(alone[key] == pytest.approx(together[key], rel=1e-3, abs=1e-3) for key in alone)


def test_the_three_kinds_of_statistics_differ_and_running_ones_do_not_depend_on_the_others():
    every = run([replace(TINY, statistics=("reestimated", "batch", "running"))])[0]["final"]
    plain = run([TINY])[0]["final"]
    assert all(every[key] == plain[key] for key in plain)
    assert len({every["test_loss"], every["test_loss_batch"], every["test_loss_reestimated"]}) == 3


def test_without_norms_all_statistics_are_the_same_and_there_is_no_shift():
    config = replace(
        TINY, arm="none", batch_size=10, statistics=("running", "reestimated"), measure=("variance_shift",)
    )
    found = run([config])[0]
    assert found["final"]["test_loss"] == found["final"]["test_loss_reestimated"]
    assert found["curves"]["variance_shift"] == []


def test_every_arm_steps_in_proportion_to_its_learning_rate():
    for name, arm in models.ARMS.items():
        flat = {"model": "mlp", "width": 9, "depth": 3} if arm.norm in ("rms", "layer_detached") else {}
        config = replace(TINY, arm=name, steps=1, schedule="constant", **flat)
        training = train.Training([replace(config, lr=lr) for lr in (0.01, 0.03)])  # one seed at two rates
        before = {key: p.detach().clone() for key, p in training.net.named_parameters()}
        for _ in training:
            pass
        longest = 0.0
        for key, p in training.net.named_parameters():
            one, three = (p.detach() - before[key]).reshape(2, -1)
            assert torch.allclose(3 * one, three, rtol=1e-3, atol=1e-6), (name, key)
            longest = max(longest, float(three.abs().max()))
        assert longest > 1e-4, name


def test_no_split_is_augmented_when_it_is_measured(monkeypatch):
    nets, honest = [], train.loop._evaluate
    monkeypatch.setattr(train.loop, "_evaluate", lambda training: nets.append(training.net) or honest(training))
    found = run([replace(TINY, augment=True)])[0]["final"]
    digits = data.load()
    for split, n in (("train", 40), ("validation", 200), ("test", 597)):
        images, labels = getattr(digits, split).images[:n], getattr(digits, split).labels[:n]
        with torch.no_grad():
            logits = nets[0](images)[:, 0]
        assert found[f"{split}_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-4)


@pytest.mark.parametrize("arm", ["batch_norm", "layer_norm"])
@pytest.mark.parametrize("kind", [{}, {"model": "mlp", "depth": 3, "width": 20}])
def test_training_takes_the_fused_kernels_and_goes_as_with_the_formulas(monkeypatch, arm, kind):
    configs = [replace(TINY, arm=arm, steps=4, epochs=None, seed=(0, i), **kind) for i in range(2)]
    fused = train.Training(configs)
    monkeypatch.setattr(norms, "fuse", lambda net: None)
    formula = train.Training(configs)
    steps = [len(list(fused)), len(list(formula))]
    assert steps == [4, 4] and not torch.equal(fused.losses, formula.losses)  # two ways to compute
    assert (fused.losses - formula.losses).abs().max() < 1e-4
    for a, b in zip(fused.net.buffers(), formula.net.buffers(), strict=True):
        assert a.dtype == b.dtype and (a - b).abs().max() < 1e-3  # num_batches_tracked among them
    counts = [b for name, b in fused.net.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(count == 4 for count in counts) and bool(counts) == (arm == "batch_norm")


ARMS_ON_IMAGES = [
    ("wrn", 10, arm, ghost)
    for arm, ghost in [("batch_norm", None), ("batch_norm", 4), ("none", None), ("skipinit_0", None), ("fixup", None),
                       ("layer_norm", None), ("batch_norm_noisy", None), ("batch_norm_borrowed", 4)]
] + [(model, 14, arm, None) for model in ("resnet", "cnn") for arm in ("batch_norm", "none", "layer_norm")]  # fmt: skip


@pytest.mark.parametrize(("model", "depth", "arm", "ghost"), ARMS_ON_IMAGES)
@pytest.mark.parametrize("members", [1, 3])
def test_images_and_gradients_stay_channels_last_through_all_layers(model, depth, arm, ghost, members):
    # one layer that loses the memory format costs every later one a copy, silently
    one = replace(TINY, arm=arm, model=model, depth=depth if model != "cnn" else 4, ghost_batch_size=ghost)
    training = train.Training([replace(one, steps=1, epochs=None, seed=(0, i)) for i in range(members)])
    lost, seen = [], []

    def look(name, tensors):
        for t in tensors:
            if t is not None and t.dim() == 4:
                seen.append(name)
                if not t.is_contiguous(memory_format=torch.channels_last):
                    lost.append(name)

    for name, layer in training.net.named_modules():
        if isinstance(layer, torch.nn.Conv2d) or "Norm" in type(layer).__name__:
            layer.register_forward_hook(lambda _, given, out, n=name: look(f"{n} forward", (*given, out)))
            layer.register_full_backward_pre_hook(lambda _, gradients, n=name: look(f"{n} backward", gradients))
    assert list(training) == [1]
    assert not lost and len(seen) > 10


def test_torchs_loss_and_optimizers_are_the_textbooks():
    """The trainer and the plain loops above stand on torch's alike: a broken one would move both."""
    draw = np.random.default_rng(0).normal
    logits, labels = draw(size=(6, 2, 4)), np.arange(12).reshape(6, 2) % 4
    found = train.loop.batch_losses(lambda _: torch.tensor(logits), torch.zeros(6, 2, 1, 1, 1), torch.tensor(labels))
    right = np.take_along_axis(logits, labels[:, :, None], 2)[:, :, 0]
    assert found.numpy() == pytest.approx((np.log(np.exp(logits).sum(2)) - right).mean(0), rel=1e-5)

    layers = {name: models.Linear(3, 2).double() for name in ("sgd", "adam")}
    for layer in layers.values():
        torch.nn.init.constant_(layer.weight, 0.5)
    sgd, adam = SGD(layers["sgd"], [0.1], 0.9, 0.3), train.Adam(layers["adam"], [0.1])
    p, speed, q, first, second = np.full((2, 3), 0.5), 0.0, np.full((2, 3), 0.5), 0.0, 0.0
    for step in range(1, 4):
        g = 0.01 * draw(size=(2, 3))  # small: Adam's epsilon shows where it is too large
        for optimizer, layer in ((sgd, layers["sgd"]), (adam, layers["adam"])):
            optimizer.step(((layer.weight * torch.tensor(g)).sum() + 0 * layer.bias.sum()).view(1), 1.0)
        speed = 0.9 * speed + g + 0.3 * p
        p = p - 0.1 * speed
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        q = q - 0.1 * first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    assert layers["sgd"].weight.detach().numpy() == pytest.approx(p, rel=1e-12)
    assert layers["adam"].weight.detach().numpy() == pytest.approx(q, rel=1e-6)  # its step counts are float32


def test_what_is_reported_is_the_last_step_whichever_had_the_lowest_loss(monkeypatch):
    finals = []
    for losses in ([[float(step)] for step in range(1, 7)], [[float(step)] for step in range(6, 0, -1)]):
        with monkeypatch.context() as patch:
            scripted(patch, losses)  # the gradients are the true ones in both
            finals.append(run([replace(TINY, steps=6)])[0]["final"])
        assert finals[-1].pop("step_loss") == losses[-1][0]
    assert finals[0] == pytest.approx(finals[1], rel=1e-4)
