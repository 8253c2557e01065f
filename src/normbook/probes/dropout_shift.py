"""How dropout makes a variance differ between training and inference: in closed form, by Monte Carlo, in a net.

All formulas are Delta = variance at inference / variance in training, of what a batch norm behind the dropout sees.
``keep`` is p, the retain ratio of Li et al. 2018; the drop probability of `models.Arm` is 1 - p. A value x has mean
``c`` and variance ``v``; at inference dropout does nothing, in training x becomes x a / p with P(a = 1) = p.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import models, train
from normbook.errors import InputError
from normbook.probes import inference
from normbook.train.loop import net_input


def directly_before(keep: float, c: float, v: float) -> float:
    """Delta of a batch norm directly behind dropout (Li et al. 2018, section 3, case a)."""
    return v / ((c**2 + v) / keep - c**2)


def before_linear(keep: float, c: float, v: float, rho: float, effective: float) -> float:
    """Delta behind dropout and a linear map of inputs with correlation ``rho`` (Li et al. 2018, section 3, case b).

    ``effective`` is m cos^2 theta = (sum of the weights)^2 / (sum of their squares), see `effective_inputs`.
    """
    inference_variance = v * rho + v * (1 - rho) / effective
    return inference_variance / (v * rho + ((1 / keep - 1) * c**2 + v * (1 / keep - rho)) / effective)


def uniform(half_width: float, c: float, v: float) -> float:
    """Delta directly behind Uout, x (1 + r) with r uniform in [-b, b]; for c = 0 it is 3 / (3 + b^2) (Li et al.)."""
    return v / ((c**2 + v) * (1 + half_width**2 / 3) - c**2)


def effective_inputs(weight: Tensor) -> Tensor:
    """(sum)^2 / (sum of squares) of the weights [units, ...] of each unit, [units]: between 0 and their number.

    Of independent weights with mean 0 the expectation is 1, however many there are.
    """
    flat = weight.detach().double().flatten(1)
    return flat.sum(1).square() / flat.square().sum(1)


@dataclass(frozen=True)
class Point:
    """One point of the grid. ``kind``: "direct", "linear" or "uniform". ``drop`` is 1 - p, for "uniform" b.

    ``inputs`` is m, ``rho`` their correlation; both are for "linear", whose weights are drawn from N(1/2, 1).
    """

    kind: str
    drop: float
    c: float
    v: float
    rho: float = 0.0
    inputs: int = 1


def simulate(points: Sequence[Point], seed: tuple[int, int], examples: int = 100_000) -> list[tuple[float, float]]:
    """(measured, predicted) Delta of each point, through `models.Dropout` in its two modes, on Gaussian inputs."""
    state = np.random.SeedSequence(seed).generate_state(2, np.uint64)
    generator, noise = (torch.Generator().manual_seed(int(s) >> 1) for s in state)
    found = []
    for point in points:
        m = point.inputs
        z = torch.randn(examples, m, generator=generator)
        if point.rho:
            common = torch.randn(examples, 1, generator=generator)
            z = point.rho**0.5 * common + (1 - point.rho) ** 0.5 * z
        x = point.c + point.v**0.5 * z
        weight = 0.5 + torch.randn(1, m, generator=generator) if point.kind == "linear" else torch.ones(1, 1)
        layer = models.Dropout(point.drop, "uniform" if point.kind == "uniform" else "bernoulli")
        layer.generators = [noise]
        trained, tested = ((layer.train(mode)(x) @ weight.T).double().var().item() for mode in (True, False))
        found.append((tested / trained, predict(point, float(effective_inputs(weight)))))
    return found


def predict(point: Point, effective: float = 1.0) -> float:
    """The formula of a point."""
    if point.kind == "direct":
        return directly_before(1 - point.drop, point.c, point.v)
    if point.kind == "uniform":
        return uniform(point.drop, point.c, point.v)
    return before_linear(1 - point.drop, point.c, point.v, point.rho, effective)


@dataclass(frozen=True)
class Modes:
    """One trained run, its weights fixed, on its training images in the modes train, eval, planted and reestimated.

    ``loss`` (nats) and ``accuracy`` (share) by mode. For each dropout layer in the order of the network, with p, c and
    v of its input in training mode: ``measured`` Delta, the mean variance of its input over that of its output;
    ``predicted`` the same from c and v; ``without_mean`` with c = 0. Means are over channels. ``effective``:
    m cos^2 theta of the convolutions that end a branch, mean over units.
    """

    loss: dict[str, float]
    accuracy: dict[str, float]
    measured: tuple[float, ...]
    predicted: tuple[float, ...]
    without_mean: tuple[float, ...]
    effective: tuple[float, ...]


PASSES = 4  # over the training images in training mode, each with other dropout
PLANTED = 10.0  # by how much "planted" multiplies the running variances


def modes(configs: Sequence[train.Config]) -> list[Modes]:
    """Train a bundle of runs on the CPU and look at each in three modes (Li et al. 2018, figure 5).

    Training mode draws dropout and takes batch statistics, at fixed weights; its numbers are means of `PASSES` passes.
    "eval" takes the running statistics, "planted" the same with every running variance times `PLANTED`.

    Raises:
        InputError: runs without dropout, or with Uout: the prediction is that of dropout.
    """
    if not configs[0].dropout or configs[0].dropout_kind != "bernoulli":
        raise InputError("modes are looked at in runs with dropout, dropout_kind='bernoulli'")
    training = train.Training(configs)
    for _ in training:
        pass
    net, members = training.net, len(configs)
    size, images = training.config.batch_size, training.train.images
    labels = training.train.labels
    labels = labels if labels.dim() == 2 else labels[:, None].expand(-1, members)
    whole = len(images) // size * size
    batches = [
        (net_input(part[:, None].expand(-1, members, -1, -1, -1)), targets)
        for part, targets in zip(images[:whole].split(size), labels[:whole].split(size), strict=True)
    ]
    loss: dict[str, Tensor] = {}
    accuracy: dict[str, Tensor] = {}

    def note(mode: str, passes: int = 1) -> None:
        loss[mode], accuracy[mode] = _measure(net, batches * passes, members)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    seen = _watch_dropout(net, members, lambda: note("train", PASSES))
    net.load_state_dict(before)  # training mode has moved the running statistics
    net.eval()
    note("eval")
    for norm in inference.stored(net):
        norm.running_var.mul_(PLANTED)  # type: ignore[operator, union-attr]
    note("planted")
    inference.reestimate(net, [batch for batch, _ in batches])
    note("reestimated")
    blocks = [block for block in net.modules() if isinstance(block, models.ResidualBlock)]
    effective = torch.stack([effective_inputs(block.conv2.weight).view(members, -1).mean(1) for block in blocks])
    keep = 1 - training.config.dropout
    found = {  # [layers, M] each
        "measured": torch.stack([(v.mean(1) / out.mean(1)) for _, v, out in seen]),
        "predicted": torch.stack([v.mean(1) / ((c2 + v) / keep - c2).mean(1) for c2, v, _ in seen]),
        "without_mean": torch.full((len(seen), members), keep),
        "effective": effective,
    }
    return [
        Modes(
            {mode: float(x[m]) for mode, x in loss.items()},
            {mode: float(x[m]) for mode, x in accuracy.items()},
            **{name: tuple(x[:, m].tolist()) for name, x in found.items()},
        )
        for m in range(members)
    ]


@torch.no_grad()
def _measure(net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], members: int) -> tuple[Tensor, Tensor]:
    """Mean loss (nats) and accuracy (share) of each run, [M] each, in the mode that ``net`` is in."""
    loss = right = torch.zeros(members)
    for images, labels in batches:
        logits = net(images)
        loss = loss + F.cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(0)
        right = right + (logits.argmax(2) == labels).double().mean(0)
    return loss / len(batches), right / len(batches)


def _watch_dropout(net: nn.Module, members: int, forward: Callable[[], None]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(squared mean of the input, its variance, variance of the output) of each dropout layer while ``forward`` runs.

    Each is [M, channels]: over examples and pixels, and averaged over batches.
    """
    layers = [m for m in net.modules() if isinstance(m, models.Dropout)]
    seen: dict[nn.Module, list[Tensor]] = {m: [] for m in layers}

    def watch(m: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dims = (0, *range(2, output.dim()))
        var, mean = torch.var_mean(inputs[0].double(), dims, correction=0)
        seen[m].append(torch.stack([mean.square(), var, output.double().var(dims, correction=0)]))

    handles = [m.register_forward_hook(watch) for m in layers]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return [tuple(part.view(members, -1) for part in torch.stack(seen[m]).mean(0)) for m in layers]  # type: ignore[misc]
