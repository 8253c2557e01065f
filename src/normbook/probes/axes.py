"""Which axes a normalization averages over, measured: Jacobian masks, equality of two layers, invariances.

Arrays are [n, c, *positions]: examples, channels, positions. All of this is algebra and done in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from normbook.errors import choose
from normbook.models import Arm
from normbook.models.layers import batch_norm

NORMS = ("batch", "layer", "instance", "group", "rms")
GROUPS = 2
NEGLIGIBLE = 1e-30  # epsilon, where an invariance holds for epsilon = 0 only: torch.nn's batch norm takes no 0
SHAPES = ((6, 4), (6, 4, 5), (6, 4, 5, 3), (6, 4, 3, 2, 2))  # 2-D to 5-D


class ChannelsLast(nn.Module):
    """A norm over the last axis, applied to the channels of [n, c, *positions]: each position by itself."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


def layer(kind: str, shape: Sequence[int], space: ModuleType, eps: float = 1e-5, seed: int = 0) -> nn.Module:
    """The norm ``kind`` for arrays of ``shape``, in training mode and float64, with random gamma and beta.

    "layer" is over channels and positions of an example, "rms" over the channels at each position, "group" over two
    groups of channels. Instance norm needs positions.
    """
    channels, dims = shape[1], len(shape) - 2
    made: nn.Module
    match choose("norm", kind, NORMS):
        case "batch":
            made = getattr(space, f"BatchNorm{max(1, dims)}d")(channels, eps=eps)
        case "instance":
            made = getattr(space, f"InstanceNorm{dims}d")(channels, eps=eps, affine=True)
        case "group":
            made = space.GroupNorm(GROUPS, channels, eps=eps)
        case "layer":
            made = space.LayerNorm(tuple(shape[1:]), eps=eps)
        case _:
            made = ChannelsLast(space.RMSNorm(channels, eps=eps))
    return randomize(made.double(), seed)


def ghost(shape: Sequence[int], size: int, space: ModuleType, seed: int = 0) -> nn.Module:
    """Ghost batch norm over groups of ``size`` examples for arrays [n, c] or [n, c, h, w]."""
    return randomize(batch_norm(Arm(ghost_batch_size=size), shape[1], space, len(shape)).double(), seed)


def randomize(made: nn.Module, seed: int) -> nn.Module:
    """Give a layer a random gamma and beta: at 1 and 0 a test sees no mistake in them."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) + 0.5)
    return made.train()


def array(shape: Sequence[int], seed: int = 0) -> Tensor:
    """A random array whose channels have means and scales of their own, float64."""
    generator = torch.Generator().manual_seed(seed)
    per = (1, shape[1], *[1] * (len(shape) - 2))
    offset, spread = (torch.randn(per, generator=generator, dtype=torch.float64) for _ in range(2))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64) * (0.5 + spread.abs()) + 2 * offset


def mask(norm: nn.Module, shape: Sequence[int], seed: int = 0) -> Tensor:
    """Which input moves which output: bool [outputs, inputs], both in the array's order, found by differentiation."""
    x = array(shape, seed).requires_grad_()
    outputs = norm(x).flatten()
    rows = [torch.autograd.grad(y, x, retain_graph=True)[0].flatten() for y in outputs]
    return torch.stack(rows).abs() > 1e-12


def expected(kind: str, shape: Sequence[int]) -> Tensor:
    """The same mask from the definition: input and output agree in each index that ``kind`` does not average over."""
    n, c, *positions = torch.meshgrid(*[torch.arange(size) for size in shape], indexing="ij")
    group = c // (shape[1] // GROUPS)
    kept = {
        "batch": [c], "layer": [n], "instance": [n, c], "group": [n, group], "rms": [n, *positions],
    }[choose("norm", kind, NORMS)]  # fmt: skip
    agree = [index.flatten()[:, None] == index.flatten()[None, :] for index in kept]
    return torch.stack(agree).all(0)


def results(norm: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, and gradients with respect to input, gamma and beta, for one random gradient at the output."""
    x = x.detach().clone().requires_grad_()
    y = norm(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=y.dtype)
    names, parameters = zip(*norm.named_parameters(), strict=True)
    gradients = torch.autograd.grad(y, (x, *parameters), cotangent)
    return {"value": y.detach()} | dict(zip(("input", *(n.split(".")[-1] for n in names)), gradients, strict=True))


def distance(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    """Largest difference of two layers in value and in any gradient, relative to the largest entry of each.

    ``b`` may have gamma and beta at each position where ``a`` has them a channel: their gradients are then summed.
    """
    ours, theirs = results(a, x), results(b, x)
    errors = []
    for name, value in ours.items():
        other = theirs[name]
        if other.dim() > value.dim():
            other = other.flatten(1).sum(1)
        errors.append(float((value - other).abs().max() / other.abs().max().clamp_min(1e-3)))
    return max(errors)


def copy_affine(source: nn.Module, target: nn.Module, flip: bool = False) -> nn.Module:
    """Give ``target`` the gamma and beta of ``source``; ``flip`` reverses them, a mistake that 1 and 0 would hide."""
    with torch.no_grad():
        for to, given in zip(target.parameters(), list(source.parameters()), strict=True):
            value = given.flip(0) if flip else given.clone()
            to.copy_(value.view(*value.shape, *[1] * (to.dim() - value.dim())).expand(to.shape))
    return target


class Formula(nn.Module):
    """``gamma * (x - mu) / sqrt(var + eps) + beta`` written out for each kind; takes gamma and beta of a layer."""

    def __init__(self, kind: str, shape: Sequence[int], eps: float = 1e-5, correction: int = 0) -> None:
        super().__init__()
        self.kind, self.eps, self.correction = choose("norm", kind, NORMS), eps, correction
        own = tuple(shape[1:]) if kind == "layer" else (shape[1],)
        self.weight = nn.Parameter(torch.ones(own, dtype=torch.float64))
        if kind != "rms":
            self.bias = nn.Parameter(torch.zeros(own, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        ones = [1] * (x.dim() - 2)
        positions = tuple(range(2, x.dim()))
        gamma = self.weight if self.kind == "layer" else self.weight.view(-1, *ones)
        if self.kind == "rms":
            return gamma * x / (x.square().mean(1, keepdim=True) + self.eps).sqrt()
        beta = self.bias if self.kind == "layer" else self.bias.view(-1, *ones)
        axes = {"batch": (0, *positions), "layer": (1, *positions), "instance": positions}
        a = x.unflatten(1, (GROUPS, -1)) if self.kind == "group" else x
        over = axes.get(self.kind, tuple(range(2, a.dim())))
        n = math.prod(a.shape[d] for d in over)
        centered = a - a.mean(over, keepdim=True)
        var = centered.square().sum(over, keepdim=True) / (n - self.correction)
        return gamma * (centered / (var + self.eps).sqrt()).reshape(x.shape) + beta


class Parts(nn.Module):
    """One norm called for each part of ``size`` examples: what ghost batch norm is by definition."""

    def __init__(self, norm: nn.Module, size: int) -> None:
        super().__init__()
        self.norm, self.size = norm, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.norm(part) for part in x.split(self.size)])


def against_torch(kind: str, space: ModuleType, seed: int = 0, flip: bool = False, correction: int = 0) -> float:
    """Largest distance of a namespace's norm from torch.nn's and from the formula, over 2-D to 5-D inputs.

    Instance norm starts at 3-D. ``flip`` reverses the others' gamma and beta; ``correction`` 1 takes the unbiased
    variance in the formula.
    """
    errors = []
    for shape in SHAPES[1:] if kind == "instance" else SHAPES:
        x, ours = array(shape, seed), layer(kind, shape, space, seed=seed)
        for other in (layer(kind, shape, nn), Formula(kind, shape, correction=correction)):
            errors.append(distance(ours, copy_affine(ours, other, flip), x))
    return max(errors)


class WeightNorm(nn.Module):
    """Weight normalization of a linear map: x @ (w / |w|) with one gain and bias a unit (Salimans & Kingma 2016)."""

    def __init__(self, units: int, seed: int = 0) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.ones(units, dtype=torch.float64)) for _ in range(2))
        randomize(self, seed)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return self.weight * (x @ (w / w.norm(dim=1, keepdim=True)).T) + self.bias


COLUMNS = (
    "weight matrix\nre-scaled", "weight matrix\nre-centred", "weight vector\nre-scaled", "data set\nre-scaled",
    "data set\nre-centred", "single case\nre-scaled", "single case\nshifted", "summed inputs of\na case shifted",
)  # fmt: skip
ROWS = ("batch", "weight", "layer", "rms")


def invariances(space: ModuleType, seed: int = 0, eps: float = NEGLIGIBLE) -> dict[str, list[float]]:
    """Relative change of the normalized summed inputs of a linear layer under what each of ``COLUMNS`` says.

    Ten cases, eight inputs, twelve units, no bias before the norm, random gamma and beta. Re-centring the weight matrix
    adds one vector to the incoming weights of every unit (Ba, Kiros & Hinton 2016, section 5.1 and table 1).
    """
    generator = torch.Generator().manual_seed(seed)
    x, w = (torch.randn(n, 8, generator=generator, dtype=torch.float64) + 0.5 for n in (10, 12))
    v = torch.randn(8, generator=generator, dtype=torch.float64)
    first_case, first_unit = (torch.eye(n, dtype=torch.float64)[0][:, None] for n in (10, 12))
    changed = (
        (x, 3 * w), (x, w + v), (x, w + 2 * first_unit * w), (3 * x, w), (x + v, w), (x + 2 * first_case * x, w),
        (x + first_case * v, w),
    )  # fmt: skip
    found = {}
    for kind in ROWS:
        if kind == "weight":
            weight_norm = WeightNorm(12, seed)
            y, *others = (weight_norm(*pair) for pair in ((x, w), *changed))
            others.append(y + first_case * weight_norm.weight * 2 / w.norm(dim=1))
        else:
            norm = layer(kind, (10, 12), space, eps, seed)
            y, *others = (norm(inputs @ weights.T) for inputs, weights in ((x, w), *changed))
            others.append(norm(x @ w.T + 2 * first_case))
        found[kind] = [float((other - y).detach().abs().max() / y.detach().abs().max()) for other in others]
    return found
