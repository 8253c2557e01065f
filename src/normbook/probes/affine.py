"""What gamma and beta do: where the inputs of sigmoid units lie, and what a normalization without gradient leads to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor, nn

from normbook import data
from normbook.errors import choose
from normbook.probes import inference
from normbook.train import Config, Training, streams
from normbook.train.loop import net_input

EDGES = np.linspace(-8, 8, 81)  # of the histograms, in units of a sigmoid's input
GRADIENTS = ("inside", "outside", "outside, with beta")


def linear_r2(mean: float = 0.0, std: float = 1.0) -> float:
    """R^2 of the least-squares line through sigmoid(z) for z normal with ``mean`` and ``std``, by quadrature.

    It is the share of the sigmoid's variance that a straight line explains: 1 where the sigmoid is linear.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    weights = weights / weights.sum()
    s = special.expit(mean + std * nodes)
    covariance = weights @ (nodes * s)  # of z / std and s
    return float(covariance**2 / (weights @ s**2 - (weights @ s) ** 2))


def measured_r2(z: Tensor) -> Tensor:
    """R^2 of the least-squares line through sigmoid(z), one a column of z [examples, ...]."""
    z = z.double()
    s = torch.sigmoid(z)
    z, s = z - z.mean(0), s - s.mean(0)
    return (z * s).mean(0).square() / (z.square().mean(0) * s.square().mean(0))


def gaussian_distance(z: Tensor) -> Tensor:
    """Kolmogorov distance of each column of z [examples, ...] to the normal of its own mean and variance, 0 to 1."""
    z = z.double()
    ordered = ((z - z.mean(0)) / z.std(0, correction=0)).sort(0).values
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64).view(-1, *[1] * (z.dim() - 1)) / n
    normal = torch.special.ndtr(ordered)
    return torch.maximum((normal - steps[:-1]).abs().amax(0), (steps[1:] - normal).abs().amax(0))


@dataclass(frozen=True)
class Positions:
    """Where the inputs of the sigmoid units of one run lie on the training images, hidden layer by hidden layer.

    ``r2`` [layers, units]: R^2 of the line through each unit's sigmoid; ``r2_wide``: the same with its inputs five
    times as wide. ``gamma``, ``beta`` [layers, units]: 1 and 0 where they are not learned. ``counts`` [layers, bins]:
    histogram of all units' inputs over `EDGES`, what lies beyond in the outer bins. ``distance_before``,
    ``distance_after`` [layers - 1]: distance to a normal distribution, mean over units, of the input u of each map but
    the first, and of W u + b. ``distance_single`` is that of w u + b where each unit reads one of u only.
    """

    r2: np.ndarray
    r2_wide: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray
    counts: np.ndarray
    distance_before: np.ndarray
    distance_after: np.ndarray
    distance_single: np.ndarray


def positions(configs: Sequence[Config], device: str = "cpu") -> list[Positions]:
    """Train a bundle of sigmoid MLPs with batch norm to the end and look at what reaches their sigmoids.

    The norms use the statistics of all training images. Sources: Ioffe & Szegedy 2015, section 3 (why gamma and beta)
    and section 3.2 (W u + b is more Gaussian than u).
    """
    training = Training(configs, device)
    for _ in training:
        pass
    net, members = training.net, len(configs)
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    norms, sigmoids = inference.stored(net), [m for m in net.modules() if isinstance(m, nn.Sigmoid)]
    handles = [
        m.register_forward_hook(lambda m, inputs, output: seen.update({m: (inputs[0], output)}))
        for m in (*norms, *sigmoids)
    ]
    images = training.train.images
    with torch.no_grad(), inference.batch_statistics(net):
        net(net_input(images[:, None].expand(-1, members, -1, -1, -1)))
    for handle in handles:
        handle.remove()

    def runs(t: Tensor) -> Tensor:  # [examples, M * units] -> [M, examples, units]
        return t.view(len(t), members, -1).transpose(0, 1)

    def parameter(norm: nn.Module, name: str, value: float) -> Tensor:
        found = getattr(norm, name)
        return torch.full((members, 1), value) if found is None else found.detach().cpu().view(members, -1)

    inputs = [runs(seen[m][0]).cpu() for m in sigmoids]  # gamma x_hat + beta
    outputs = [runs(seen[m][1]).cpu() for m in sigmoids]
    before_norm = [runs(seen[m][0]).cpu() for m in norms]  # W u + b
    gamma = torch.stack([parameter(m, "weight", 1.0).expand(members, inputs[0].shape[2]) for m in norms], 1)
    beta = torch.stack([parameter(m, "bias", 0.0).expand(members, inputs[0].shape[2]) for m in norms], 1)

    def distances(layers: Sequence[Tensor], m: int) -> np.ndarray:
        return np.array([float(gaussian_distance(z[m]).mean()) for z in layers])

    found = []
    for m, config in enumerate(configs):
        generator = torch.Generator().manual_seed(streams(config.seed)[0] ^ 2)
        single = [z[:, :, torch.randint(z.shape[2], (z.shape[2],), generator=generator)] for z in outputs[:-1]]
        found.append(
            Positions(
                r2=torch.stack([measured_r2(z[m]) for z in inputs]).numpy(),
                r2_wide=torch.stack([measured_r2(5 * z[m]) for z in inputs]).numpy(),
                gamma=gamma[m].numpy(),
                beta=beta[m].numpy(),
                counts=np.stack([np.histogram(z[m].clamp(-7.99, 7.99).numpy(), EDGES)[0] for z in inputs]),
                distance_before=distances(outputs[:-1], m),
                distance_after=distances(before_norm[1:], m),
                distance_single=distances(single, m),
            )
        )
    return found


@dataclass(frozen=True)
class Outside:
    """``bias`` [steps, runs]: root mean square of the hidden biases b before each step; ``loss`` [steps, runs], nats;
    ``weight`` [steps, runs]: root mean square of the hidden weights."""

    bias: np.ndarray
    loss: np.ndarray
    weight: np.ndarray


def outside(
    gradient: str, seeds: Sequence[tuple[int, int]], steps: int, lr: float = 1.0, units: int = 30, images: int = 200
) -> Outside:
    """Gradient descent on sigmoid((W u + b - mu) / sigma) and a classifier, full batch, all seeds side by side.

    ``gradient`` "inside": through mu and sigma too, as in batch norm; "outside": mu and sigma are taken for constants;
    "outside, with beta": and a learned shift beta follows the normalization. The first ``images`` digits are used.
    Source: Ioffe & Szegedy 2015, section 2.
    """
    choose("gradient", gradient, GRADIENTS)
    split = data.load("digits").train
    u, labels = split.images[:images].flatten(1), split.labels[:images]
    generators = [torch.Generator().manual_seed(streams(seed)[0]) for seed in seeds]

    def draw(rows: int, columns: int) -> Tensor:
        parts = [torch.randn(rows, columns, generator=g) for g in generators]
        return (torch.stack(parts) / math.sqrt(rows)).requires_grad_()

    w, v = draw(u.shape[1], units), draw(units, 10)
    b, beta = (torch.zeros(len(seeds), 1, units, requires_grad=True) for _ in range(2))
    c = torch.zeros(len(seeds), 1, 10, requires_grad=True)
    learned = [w, b, v, c, *([beta] if gradient.endswith("beta") else [])]
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(steps):
        x = u @ w + b
        mu, sigma = x.mean(1, keepdim=True), (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        if gradient != "inside":
            mu, sigma = mu.detach(), sigma.detach()
        logits = torch.sigmoid((x - mu) / sigma + beta) @ v + c
        chosen = labels.view(1, -1, 1).expand(len(seeds), -1, 1)
        loss = -logits.log_softmax(2).gather(2, chosen).mean((1, 2))
        rms = [t.detach().square().mean((1, 2)).sqrt() for t in (b, w)]
        history.append((rms[0], loss.detach(), rms[1]))
        gradients = torch.autograd.grad(loss.sum(), learned)
        with torch.no_grad():
            for parameter, slope in zip(learned, gradients, strict=True):
                parameter -= lr * slope
    bias, losses, weight = (torch.stack(each).double().numpy() for each in zip(*history, strict=True))
    return Outside(bias, losses, weight)
