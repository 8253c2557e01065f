"""normbook.train.capture: a recorded step equals a plain one bit for bit, follows the schedule, and has a fallback."""

from dataclasses import replace

import fakes
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from normbook import train
from normbook.train import Config, capture
from normbook.train.capture import WARM_UP, Graphed

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
RUN = Config("batch_norm", lr=0.1, depth=10, width=0.25, batch_size=8, steps=24, n_train=64, augment=True)
KINDS = {
    "batch norm": {},
    "ghost batches": {"ghost_batch_size": 4},
    "SkipInit and dropout": {"arm": "skipinit_0_biases", "dropout": 0.5},
    "dropout in the block": {"dropout": 0.3, "dropout_at": "before_conv"},
    "noisy batch norm": {"arm": "batch_norm_noisy", "model": "mlp", "depth": 3, "width": 9},
    "layer norm": {"arm": "layer_norm"},
    "Fixup": {"arm": "fixup"},
    "bf16": {"precision": "bf16"},
    "Adam": {"optimizer": "adam", "lr": 0.01, "weight_decay": 0.0},
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: it records a real CUDA graph")


def with_tensors(step, generators, device):
    """The plain step, given its scale as a recorded one is: as a number that has been in a tensor."""
    return lambda images, labels, scale: step(images, labels, torch.tensor(scale, device=device))


def on_tape(step, generators, device):
    return Graphed(step, generators, fakes.recorded)


def trained(monkeypatch, way, configs, device="cpu"):
    monkeypatch.setattr(train.loop, "graphed", way)
    training = train.Training(configs, device)
    assert len(list(training)) == configs[0].steps
    return training


def state(training):
    return [training.losses, *training.net.parameters(), *training.net.buffers()]


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recorded_step_equals_a_plain_one_bit_for_bit_through_the_schedule(monkeypatch, kind, members):
    one = replace(RUN, **KINDS[kind])
    configs = [replace(one, lr=one.lr / (1 + i), seed=(0, i)) for i in range(members)]
    plain, graph = (trained(monkeypatch, way, configs) for way in (with_tensors, on_tape))
    assert all(map(torch.equal, state(plain), state(graph)))
    assert len(set(plain.losses[:, 0].tolist())) == RUN.steps  # every step has learned


@pytest.mark.parametrize("kind", ["batch norm", "Adam"])
def test_a_scale_that_is_no_tensor_would_be_frozen_silently(monkeypatch, kind):
    def frozen(step, generators, device):
        return on_tape(lambda images, labels, scale: step(images, labels, float(seen[-1])), generators, device)

    seen = []
    honest = train.loop.lr_scale
    monkeypatch.setattr(train.loop, "lr_scale", lambda *args: seen.append(honest(*args)) or seen[-1])
    configs = [replace(RUN, **KINDS[kind])]
    plain, graph = (trained(monkeypatch, way, configs) for way in (with_tensors, frozen))
    change = RUN.steps // 2  # from here on the schedule halves
    assert torch.equal(plain.losses[:change], graph.losses[:change])
    assert not torch.equal(plain.losses[change + 1 :], graph.losses[change + 1 :])


def test_the_plain_step_of_a_cpu_is_as_with_a_scale_in_a_tensor(monkeypatch):
    plain = trained(monkeypatch, capture.graphed, [RUN])
    tensors = trained(monkeypatch, with_tensors, [RUN])
    assert (plain.losses - tensors.losses).abs().max() < 1e-5


def test_the_first_steps_are_plain_then_one_is_recorded_and_replayed():
    calls, replays = [], []

    def step(images, labels, scale):
        calls.append((images, labels, scale))
        return images.sum() * scale

    def records(function, generators):
        assert generators == ["a generator"]
        return function(), lambda: replays.append(1)

    graph = Graphed(step, ["a generator"], records)
    for i in range(WARM_UP + 4):
        graph(torch.full((2,), float(i)), torch.tensor(i), 0.5**i)
        assert graph.images.tolist() == [i, i] and graph.labels == i and graph.scale == 0.5**i
    assert len(calls) == WARM_UP + 1 and len(replays) == 4
    assert all(a is b for call in calls for a, b in zip(call, calls[0], strict=True))  # the same tensors


def test_a_step_that_cannot_be_recorded_is_taken_plainly_and_says_so(monkeypatch):
    def waits(step, generators, device):
        return on_tape(
            lambda images, labels, scale: step(images, labels, torch.tensor(scale.item())), generators, device
        )

    plain = trained(monkeypatch, with_tensors, [RUN])
    with pytest.warns(
        UserWarning, match="without a CUDA graph: operation not permitted .* _local_scalar_dense"
    ) as said:
        waiting = trained(monkeypatch, waits, [RUN])
    assert len(said) == 1 and all(map(torch.equal, state(plain), state(waiting)))


class Reads(TorchDispatchMode):
    """Counts how often the host reads a number from a tensor: on a GPU it would wait for it."""

    count = 0

    def __torch_dispatch__(self, operation, kinds, args=(), kwargs=None):
        self.count += operation.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "is_nonzero")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["batch norm", "SkipInit and dropout", "Adam"])
def test_the_host_reads_nothing_between_two_reads_of_the_divergence_flag(kind):
    steps = train.loop.FLAG_EVERY
    config = replace(RUN, **KINDS[kind], n_train=None, steps=steps + 1)
    with Reads() as reads:
        counts = [reads.count for _ in train.Training([config])]
    built = counts[0]
    assert counts == [built] * steps + [built + 1]


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_recorded_step_equals_the_plain_one(monkeypatch, kind):
    configs = [replace(RUN, **KINDS[kind])]
    plain, graph = (trained(monkeypatch, way, configs, "cuda") for way in (with_tensors, capture.graphed))
    assert torch.allclose(plain.losses, graph.losses, rtol=1e-3, atol=1e-3)


@needs_gpu
def test_on_a_gpu_a_replayed_step_waits_for_nothing(monkeypatch):
    training = train.Training([replace(RUN, n_train=None, steps=40)], "cuda")
    steps = iter(training)
    for _ in range(WARM_UP + 1):
        next(steps)
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(30):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
