"""Layers that hold M runs at once: their channels lie side by side, so no number of one run touches another's."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook.errors import InputError, choose
from normbook.models.arms import Arm

NORMS = ("", "batch", "layer", "rms", "layer_detached")


class Scalar(nn.Module):
    """One number a run, added to or multiplied with all of that run's channels. ``fixup``: it belongs to Fixup."""

    def __init__(self, members: int, value: float, learned: bool = True, fixup: bool = True) -> None:
        super().__init__()
        self.fixup = fixup
        self.weight = nn.Parameter(torch.full((members,), value), requires_grad=learned)

    def per_channel(self, x: Tensor) -> Tensor:
        """The numbers as [1, members * channels, 1, ...], to broadcast against x."""
        per_run = self.weight[:, None].expand(-1, x.shape[1] // len(self.weight))
        return per_run.reshape(1, -1, *[1] * (x.dim() - 2))


class Times(Scalar):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.per_channel(x)


class Plus(Scalar):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.per_channel(x)


class Linear(nn.Module):
    """Fully connected layer of M runs: x [batch, M * in] -> [batch, M * out], ``weight`` [M * out, in]."""

    def __init__(self, inputs: int, outputs: int, members: int = 1) -> None:
        super().__init__()
        self.members = members
        self.weight = nn.Parameter(torch.empty(members * outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(members * outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.members == 1:  # einsum's own work takes twice as long as a small product
            return F.linear(x, self.weight, self.bias)
        weight = self.weight.view(self.members, -1, self.weight.shape[1])
        y = torch.einsum("bmi,moi->bmo", x.view(len(x), self.members, -1), weight)
        return y.flatten(1) + self.bias


class Random(nn.Module):
    """What draws noise in training: each run from its own of ``generators``, which the trainer sets.

    So a run's noise does not depend on which runs are trained beside it. Without generators the global stream is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generators: Sequence[torch.Generator] = ()

    def uniform(self, x: Tensor, per_example: bool = True) -> Tensor:
        """Numbers from [0, 1) in the shape of x [batch, M * features, ...], or of one example."""
        if not self.generators:
            return torch.rand_like(x) if per_example else torch.rand_like(x[:1])
        shape = (len(x) if per_example else 1, x.shape[1] // len(self.generators), *x.shape[2:])
        return torch.cat([torch.rand(shape, generator=g, device=x.device) for g in self.generators], dim=1)


class Dropout(Random):
    """Dropout, or for ``kind`` "uniform" Uout: x (1 + r), r uniform in [-beta, beta] (Li et al. 2018, section 5)."""

    def __init__(self, probability: float, kind: str = "bernoulli") -> None:
        super().__init__()
        self.probability = probability
        self.kind = choose("kind of dropout", kind, ("bernoulli", "uniform"))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        if self.kind == "uniform":
            return x * (1 + self.probability * (2 * self.uniform(x) - 1))
        return x * (self.uniform(x) >= self.probability) / (1 - self.probability)


class MovingNoise(Random):
    """Noise whose mean and scale are drawn anew at each step, per feature (Santurkar et al. 2018, section 2.1).

    At each step and for each feature mu ~ U(-0.75, 0.75) and sigma ~ U(1, 1.25); for each example m ~ U(mu - 0.1, mu +
    0.1) and s ~ U(sigma - 0.1, sigma + 0.1); the output is s x + m. In training only. The paper has mu ~ U(-0.5, 0.5).
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mu, sigma = 1.5 * self.uniform(x, per_example=False) - 0.75, 1 + 0.25 * self.uniform(x, per_example=False)
        m, s = mu + 0.2 * self.uniform(x) - 0.1, sigma + 0.2 * self.uniform(x) - 0.1
        return x * s + m  # x first: the result has its memory format


class PerExample(nn.Module):
    """Layer or RMS norm of M runs' features, [batch, M * features]: each example and run by itself.

    ``norm`` normalizes the last axis and has no parameters; gamma and beta stand here, a pair a feature and run.
    """

    def __init__(self, norm: nn.Module, features: int, members: int, weight: bool, bias: bool) -> None:
        super().__init__()
        self.norm, self.members = norm, members
        self.weight = nn.Parameter(torch.ones(members * features)) if weight else None
        self.bias = nn.Parameter(torch.zeros(members * features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.view(len(x), self.members, -1)).flatten(1)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


class DetachedLayerNorm(nn.Module):
    """Layer norm over the last axis whose mean and variance pass no gradient (Xu et al. 2019, section 3)."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x.detach(), -1, correction=0, keepdim=True)
        return (x - mean) * (var + 1e-5).rsqrt()


class Ghosts(nn.Module):
    """Ghost batch norm made of a namespace's batch norm: it is called for one ghost batch after the other.

    Its momentum is such that all ghost batches of a step move the running statistics as far as one call would.
    """

    def __init__(self, norm: nn.Module, size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.norm(x)
        parts = x.split(self.size)
        self.norm.momentum = 1 - 0.9 ** (1 / len(parts))
        return torch.cat([self.norm(part) for part in parts])


class BorrowedNoise(Random):
    """Batch norm over the whole batch, with the noise that statistics of ghost batches of ``size`` examples have.

    ``norm`` has no gamma and beta. In training each ghost batch is shifted and scaled by how far mean and standard
    deviation of *another* ghost batch of the same step lie from those of the batch. So the noise has the spread and the
    correlations of ghost batch norm's, but no example is normalized with its own ghost batch, and no gradient passes
    through the noise. The running statistics are those of whole batches.
    """

    def __init__(self, norm: nn.Module, features: int, members: int, size: int) -> None:
        super().__init__()
        self.norm, self.members, self.size = norm, members, size
        self.weight, self.bias = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.training and len(y) > self.size:
            y = self._disturb(y)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return y * self.weight.view(shape) + self.bias.view(shape)

    def _disturb(self, y: Tensor) -> Tensor:
        ghosts = y.unflatten(0, (-1, self.size))
        dims, count = (1, *range(3, ghosts.dim())), len(ghosts)
        known = ghosts.detach()
        mean = known.mean(dims, keepdim=True)
        var = (known - mean).square().mean(dims, keepdim=True)
        # one shift a run, never 0: ghost i takes the statistics of ghost i + shift
        shift = 1 + (self.uniform(y.new_empty(1, self.members)) * (count - 1)).long()
        other = (torch.arange(count, device=y.device)[:, None] + shift) % count

        def of_other(t: Tensor) -> Tensor:
            per_run = t.reshape(count, self.members, -1)
            return per_run.gather(0, other[:, :, None].expand_as(per_run)).reshape(t.shape)

        return ((ghosts - of_other(mean)) * (of_other(var) + 1e-5).rsqrt()).flatten(0, 1)


def norm_layer(arm: Arm, channels: int, members: int, norms: ModuleType, dims: int) -> list[nn.Module]:
    """The norm (and noise) that ``arm`` puts before a nonlinearity on [batch, M * channels] or, dims = 4, on images.

    On images layer norm is over channels and pixels of one example, with gamma and beta a channel: group norm with one
    group.
    """
    noise: list[nn.Module] = [MovingNoise()] if arm.noisy else []
    features = members * channels
    match choose("norm", arm.norm, NORMS):
        case "":
            return noise
        case "batch":
            return [batch_norm(arm, features, norms, dims, members), *noise]
        case "layer" if dims == 4:
            return [norms.GroupNorm(members, features, affine=arm.affine), *noise]
        case kind if dims == 4:
            raise InputError(f"norm {kind!r} is for fully connected nets here, not for images")
        case "rms":
            norm = norms.RMSNorm(channels, elementwise_affine=False)
        case "layer_detached":
            norm = DetachedLayerNorm()
        case _:
            norm = norms.LayerNorm(channels, elementwise_affine=False)
    return [PerExample(norm, channels, members, arm.affine, arm.affine and arm.norm != "rms"), *noise]


def batch_norm(arm: Arm, features: int, norms: ModuleType, dims: int, members: int = 1) -> nn.Module:
    """Batch norm of the namespace, over ghost batches (or with their noise) where the arm asks for them."""
    name = "BatchNorm1d" if dims == 2 else "BatchNorm2d"
    if arm.ghost_batch_size is None:
        return getattr(norms, name)(features, affine=arm.affine)
    if arm.borrowed_noise:
        return BorrowedNoise(getattr(norms, name)(features, affine=False), features, members, arm.ghost_batch_size)
    ghost = getattr(norms, f"Ghost{name}", None)
    if ghost is not None:
        return ghost(features, ghost_batch_size=arm.ghost_batch_size, affine=arm.affine)
    return Ghosts(getattr(norms, name)(features, affine=arm.affine), arm.ghost_batch_size)


def conv(inputs: int, outputs: int, kernel: int, stride: int, members: int, bias: bool) -> nn.Conv2d:
    """A padded convolution of M runs."""
    return nn.Conv2d(members * inputs, members * outputs, kernel, stride, kernel // 2, groups=members, bias=bias)


def dropout(arm: Arm, place: str) -> list[nn.Module]:
    """The dropout layer if the arm has it at ``place``, else nothing."""
    return [Dropout(arm.dropout, arm.dropout_kind)] if arm.dropout and arm.dropout_at == place else []
