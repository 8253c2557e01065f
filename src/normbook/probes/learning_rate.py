"""What a learning rate meets: gradient noise, the best and the largest stable rate, divergence, rescaled weights."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data, train
from normbook.train import Config

TINY = 1e-300  # as epsilon of a batch norm in float64: a variance plus this is the variance, so it is epsilon = 0


def example_gradients(config: Config, images: int) -> np.ndarray:
    """Gradient of the loss of each of the first training images at initialization, [images, parameters], float64.

    The network has no batch norm: with one, an image has no gradient of its own. One network holds as many copies as
    there are images, each sees one of them.
    """
    dataset = data.load(config.data)
    net = train.build([config] * images, dataset, "cpu").double()
    x = dataset.train.take(slice(images)).double().flatten(0, 1)[None]  # [1, images * channels, h, w]
    logits = net(x)[0]
    F.cross_entropy(logits, dataset.train.labels[:images], reduction="sum").backward()
    parts = [p.grad.reshape(images, -1) for p in net.parameters() if p.grad is not None]
    return torch.cat(parts, dim=1).numpy()


def gram(gradients: np.ndarray) -> np.ndarray:
    """Inner products of the deviations of the examples' gradients [N, P] from their mean, [N, N]."""
    deviations = gradients - gradients.mean(0)
    return deviations @ deviations.T


def products(config: Config, images: int) -> np.ndarray:
    """`gram` of `example_gradients`, for worker processes: it is much smaller than the gradients."""
    return gram(example_gradients(config, images))


def exact_noise(inner: np.ndarray, batch: int, replace: bool) -> float:
    """Mean over every minibatch of ``batch`` examples of the squared error of its gradient, by enumeration.

    ``inner`` is `gram`'s [N, N]. With replacement all N^batch ordered draws are taken, without all subsets.
    """
    n = range(len(inner))
    draws = itertools.product(n, repeat=batch) if replace else itertools.combinations(n, batch)
    return float(np.mean([inner[np.ix_(draw, draw)].sum() for draw in draws])) / batch**2


def sampled_noise(inner: np.ndarray, batch: int, replace: bool, draws: int, seed: tuple[int, int]) -> float:
    """The same mean over ``draws`` random minibatches; without replacement they are cut from shuffled epochs."""
    n = len(inner)
    rng = np.random.default_rng(seed)
    if replace:
        index = rng.integers(n, size=(draws, batch))
    else:
        epochs = -(-draws // (n // batch))
        order = rng.permuted(np.tile(np.arange(n), (epochs, 1)), axis=1)[:, : n // batch * batch]
        index = order.reshape(-1, batch)[:draws]
    counts = np.zeros((len(index), n))
    np.add.at(counts, (np.arange(len(index))[:, None], index), 1)
    return float(((counts @ inner) * counts).sum(1).mean()) / batch**2


def predicted_noise(inner: np.ndarray, batch: int, replace: bool) -> float:
    """C / B with replacement, C / B (N - B) / (N - 1) without; C is the mean squared deviation of one example."""
    n = len(inner)
    c = float(np.trace(inner)) / n
    return c / batch * (1.0 if replace else (n - batch) / (n - 1))


def optimum(log2_lrs: Sequence[float], losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the best learning rate of each run, and whether the lowest loss is at an end of the grid.

    ``losses`` [rates, runs]. The mean of the log2 rates, each weighted by its loss to the power -4: a rate with twice
    the lowest loss counts a sixteenth. Minima are flat and single losses noisy, so the lowest one alone, or a parabola
    through it and its neighbours, spreads several times as widely over seeds.

    Raises:
        ValueError: a loss is not a number above 0 (infinite ones count for nothing).
    """
    x, y = np.asarray(log2_lrs, dtype=float), np.asarray(losses, dtype=float)
    if not (y > 0).all():
        raise ValueError("the best learning rate needs losses above 0")
    weights = (y.min(0) / y) ** 4
    return weights.T @ x / weights.sum(0), np.isin(y.argmin(0), (0, len(x) - 1))


def largest_stable(log2_lrs: Sequence[float], losses: np.ndarray, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the largest rate up to which a run's loss stays below ``limit``, and whether the grid ends there.

    Counted upwards from the rate of the lowest loss, which counts as stable; ``losses`` [rates, runs].
    """
    largest, censored = [], []
    for column in losses.T:
        i = int(column.argmin())
        while i + 1 < len(column) and column[i + 1] < limit:
            i += 1
        largest.append(float(log2_lrs[i]))
        censored.append(i + 1 == len(column))
    return np.array(largest), np.array(censored)


def minibatch_losses(configs: Sequence[Config]) -> np.ndarray:
    """Loss of every step of runs trained side by side, [steps, runs], also after they have diverged (nats).

    What is not a number counts as infinite, and so do the steps that are not taken because all runs have diverged.
    """
    training = train.Training(configs)
    taken = sum(1 for _ in training)
    losses = training.losses.numpy().astype(float)
    losses[taken:] = np.inf
    return np.where(np.isnan(losses), np.inf, losses)


@dataclass(frozen=True)
class Pair:
    """A net and its rescaled partner: convolution weights times ``factor``, their learning rate times its square.

    ``rescale_decay``: their weight decay is divided by the square too. ``epsilon``: that of the batch norms.
    """

    arm: str
    factor: float
    epsilon: float = TINY
    rescale_decay: bool = True
    norm: str = "normbook.norms"
    steps: int = 20
    batch: int = 16
    lr: float = 0.125
    momentum: float = 0.9
    weight_decay: float = 0.02
    seed: tuple[int, int] = (0, 0)


def rescaled(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Train both of a pair on the same batches in float64, with momentum and weight decay on the convolutions.

    The net is ResNet 8, where every convolution feeds a batch norm. Returns the largest difference of their logits
    before each step, |a - b| / (|a| + |b|) with the norm over the batch, [steps], and the loss of the first net.
    Source: van Laarhoven 2017, section 2; Arora et al. 2019.
    """
    config = Config(arm=pair.arm, model="resnet", depth=8, width=0.25, norm=pair.norm, steps=1, seed=pair.seed)
    dataset = data.load(config.data)
    one = train.build([config], dataset, "cpu").double().train()
    for m in one.modules():
        if hasattr(m, "running_var"):
            m.eps = pair.epsilon  # type: ignore[assignment]
    two = copy.deepcopy(one)
    with torch.no_grad():
        for weight in _convolutions(two):
            weight.mul_(pair.factor)
    square = pair.factor**2
    nets = ((one, 1.0, 1.0), (two, square, 1 / square if pair.rescale_decay else 1.0))
    speeds: list[dict[Tensor, Tensor]] = [{}, {}]
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(train.streams(pair.seed)[1]))
    differences, losses = [], []
    for batch in order[: pair.steps * pair.batch].split(pair.batch):
        x, labels = dataset.train.take(batch).double(), dataset.train.labels[batch]
        found = []
        for (net, rate, decay), speed in zip(nets, speeds, strict=True):
            logits = net(x)[:, 0]
            found.append(logits.detach())
            loss = F.cross_entropy(logits, labels)
            if net is one:
                losses.append(float(loss.detach()))
            _step(net, loss, speed, pair, rate, decay)
        a, b = found
        ratio = float((a - b).norm() / (a.norm() + b.norm()))
        differences.append(ratio if np.isfinite(ratio) else 1.0)
    return np.array(differences), np.array(losses)


def _convolutions(net: nn.Module) -> list[Tensor]:
    return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]


def _step(net: nn.Module, loss: Tensor, speed: dict[Tensor, Any], pair: Pair, rate: float, decay: float) -> None:
    """One step of SGD with momentum; ``rate`` and ``decay`` multiply those of the convolutions."""
    weights = {id(w) for w in _convolutions(net)}
    parameters = list(net.parameters())
    for p, g in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        inside = id(p) in weights
        with torch.no_grad():
            g = g + pair.weight_decay * decay * p if inside else g
            speed[p] = pair.momentum * speed[p] + g if p in speed else g
            p.sub_(pair.lr * (rate if inside else 1.0) * speed[p])
