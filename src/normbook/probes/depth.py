"""What is measured inside a network at initialization: variances, gradients, path lengths and cosines by block.

The stacks here have one width throughout and one linear map or convolution a block, so that theory has a closed form:
``x_{l+1} = (skip * x_l + alpha * f_l(x_l)) / divide`` for l = 1 ... d, with x_1 the input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook import data, norms
from normbook.errors import choose

ARMS = ("none", "batch_norm", "skipinit", "divide_sqrt2")


@dataclass(frozen=True)
class Stack:
    """A stack of ``blocks`` residual blocks, as data.

    ``kind``: "linear" (fully connected, weights of variance 1 / fan-in), "relu" (ReLU before each linear map, weights
    of variance 2 / fan-in) or "conv" (ReLU before each 3x3 convolution, variance 2 / fan-in, with ``padding``
    "circular" or "zeros" on ``size`` x ``size`` images). ``arm``: what tames the branch f: nothing, batch norm before
    it, SkipInit's alpha = 1/sqrt(d), or division of the block's output by sqrt 2. ``width`` counts units or channels.
    ``data``: the data set whose images are the input; without one it is random.
    """

    kind: str
    arm: str
    blocks: int = 100
    width: int = 512
    batch: int = 128
    skip: bool = True
    size: int = 8
    padding: str = "circular"
    data: str = ""

    def __post_init__(self) -> None:
        choose("kind of stack", self.kind, ("linear", "relu", "conv"))
        choose("arm", self.arm, ARMS)
        choose("padding", self.padding, ("circular", "zeros"))


@dataclass(frozen=True)
class Profile:
    """What was measured at each block of one draw; float64 arrays over l = 1 ... d (``gradient2``: also d + 1).

    Variances are batch variances: over the examples (and pixels) for one unit (channel), averaged over units; this is
    the variance that a batch norm sees. ``second_moment`` is the mean square of the branch. ``shrink`` is the standard
    deviation of the branch's input before the norm divided by that after it (1 where there is no norm). ``share`` is
    Var(branch) / (Var(skip) + Var(branch)), ``gradient2`` the mean square of the gradient with respect to x_l for a
    random cotangent at the output, ``cosine`` the mean cosine between the hidden vectors of two different inputs,
    ``mean`` the mean over channels of the absolute channel mean of the branch.
    """

    skip: np.ndarray
    branch: np.ndarray
    second_moment: np.ndarray
    mean: np.ndarray
    shrink: np.ndarray
    share: np.ndarray
    gradient2: np.ndarray
    cosine: np.ndarray

    @property
    def path_length(self) -> np.ndarray:
        """Mean number of branches on a path, weighted by the variance it carries, up to each block: cumulated share."""
        return np.cumsum(self.share)


def weights(stack: Stack, seed: tuple[int, int]) -> Iterator[Tensor]:
    """The d weights of one draw, one after the other: the same for every arm of a seed."""
    generator = _generator(seed, 0)
    shape = (stack.width, stack.width, 3, 3) if stack.kind == "conv" else (stack.width, stack.width)
    std = math.sqrt((1 if stack.kind == "linear" else 2) / math.prod(shape[1:]))
    for _ in range(stack.blocks):
        yield torch.randn(shape, generator=generator) * std


def inputs(stack: Stack, seed: tuple[int, int]) -> Tensor:
    """Standard normal inputs of one draw, or those of `images`: [batch, width] or [batch, width, size, size]."""
    if stack.data:
        return images(stack, seed)
    shape = (stack.batch, stack.width, *((stack.size, stack.size) if stack.kind == "conv" else ()))
    return torch.randn(shape, generator=_generator(seed, 1))


def images(stack: Stack, seed: tuple[int, int]) -> Tensor:
    """Training images of one draw, as the stack takes them: [batch, width] or [batch, width, size, size].

    A random linear map, or 3x3 convolution, brings them to the stack's width. Each unit, or channel, is standardized
    over the batch: what theory says of the stack takes an input of variance 1.
    """
    generator = _generator(seed, 1)
    train = data.load(stack.data).train
    x = train.take(torch.randperm(len(train), generator=generator)[: stack.batch])
    if stack.kind == "conv":
        x = F.conv2d(
            F.pad(x, (1, 1, 1, 1), mode="circular"), torch.randn(stack.width, x.shape[1], 3, 3, generator=generator)
        )
    else:
        x = x.flatten(1) @ torch.randn(x[0].numel(), stack.width, generator=generator)
    dims = (0, *range(2, x.dim()))
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, correction=0, keepdim=True)


def profile(stack: Stack, seed: tuple[int, int], norm_space: str = "normbook.norms") -> Profile:
    """Run one draw of a stack forward and backward and measure it; the namespace offers BatchNorm1d and BatchNorm2d."""
    space = norms.namespace(norm_space, ("BatchNorm1d", "BatchNorm2d"))
    x = inputs(stack, seed).requires_grad_()
    norm: nn.Module = nn.Identity()
    if stack.arm == "batch_norm":
        norm = (space.BatchNorm2d if stack.kind == "conv" else space.BatchNorm1d)(stack.width).train()
    alpha = stack.blocks**-0.5 if stack.arm == "skipinit" else 1.0
    divide = math.sqrt(2) if stack.arm == "divide_sqrt2" else 1.0
    hidden, branches, shrink = [x], [], []
    for weight in weights(stack, seed):
        normed = norm(x)
        active = normed if stack.kind == "linear" else F.relu(normed)
        if stack.kind == "conv":
            mode = "circular" if stack.padding == "circular" else "constant"
            branch = F.conv2d(F.pad(active, (1, 1, 1, 1), mode=mode), weight)
        else:
            branch = active @ weight.T
        shrink.append(math.sqrt(batch_variance(x.detach()) / batch_variance(normed.detach())))
        branches.append((alpha * branch).detach())
        x = ((x if stack.skip else 0) + alpha * branch) / divide
        hidden.append(x)
    cotangent = torch.randn(x.shape, generator=_generator(seed, 2))
    gradients = torch.autograd.grad(x, hidden, cotangent)
    states = [h.detach() for h in hidden[:-1]]
    skip = np.array([batch_variance(h) for h in states])
    branch_variance = np.array([batch_variance(b) for b in branches])
    return Profile(
        skip=skip,
        branch=branch_variance,
        second_moment=np.array([float(b.square().mean()) for b in branches]),
        mean=np.array([float(b.transpose(0, 1).flatten(1).mean(1).abs().mean()) for b in branches]),
        shrink=np.array(shrink),
        share=branch_variance / (branch_variance + skip) if stack.skip else np.ones(stack.blocks),
        gradient2=np.array([float(g.square().mean()) for g in gradients]),
        cosine=np.array([mean_cosine(h.detach()) for h in hidden[1:]]),
    )


def batch_variance(x: Tensor) -> float:
    """Biased variance over examples (and pixels) of each unit of [batch, units, ...], averaged over the units."""
    # single precision is enough: at 100 doublings a square is 1e30, and the largest number 3e38
    dims = (0, *range(2, x.dim()))
    return float((x - x.mean(dims, keepdim=True)).square().mean(dims).double().mean())


def mean_cosine(x: Tensor) -> float:
    """Mean cosine over all pairs of different examples of [batch, ...]."""
    unit = F.normalize(x.flatten(1), dim=1)
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


@dataclass(frozen=True)
class TransformerProfile:
    """``share`` [blocks]: the share of a block's two branches in the variance of its output, mean of the two.
    ``last_gradient2``: mean square gradient of the last weight for a random cotangent at the normalized output."""

    share: np.ndarray
    last_gradient2: float


def transformer(
    placement: str, blocks: int, seed: tuple[int, int], norm_space: str = "normbook.norms", width: int = 64,
    tokens: int = 16, batch: int = 8, images: str = "",
) -> TransformerProfile:  # fmt: skip
    """Measure one draw of a transformer at initialization, ``placement`` "pre" or "post" (Xiong et al. 2020, figure 1).

    ``images``: the data set whose images, cut into 4x4 patches, are the tokens; without one the tokens are random.

    A block is self-attention (one head) and a ReLU layer of 4 x width, each with a skip connection. Layer norm stands
    before each branch and once at the end (pre), or after each addition (post). All weights are normal with variance
    2 / (fan-in + fan-out) (Xavier).
    """
    choose("placement", placement, ("pre", "post"))
    generator = _generator(seed, 0)
    norm = norms.namespace(norm_space, ("LayerNorm",)).LayerNorm(width)

    def draw(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator) * math.sqrt(2 / (rows + columns))

    def attention(h: Tensor) -> Tensor:
        q, k, v = (h @ draw(width, width) for _ in range(3))
        return torch.softmax(q @ k.transpose(1, 2) / math.sqrt(width), -1) @ v @ draw(width, width)

    def feed_forward(h: Tensor) -> Tensor:
        inner, outer = draw(width, 4 * width), draw(4 * width, width)
        last_weight.append(outer.requires_grad_())
        return F.relu(h @ inner) @ outer

    last_weight: list[Tensor] = []
    share: list[float] = []
    x = (
        patches(images, batch, width, seed)
        if images
        else torch.randn(batch, tokens, width, generator=_generator(seed, 1))
    )
    for _ in range(blocks):
        for sublayer in (attention, feed_forward):
            branch = sublayer(norm(x) if placement == "pre" else x)
            f, s = (float(t.detach().double().var(correction=0)) for t in (branch, x))
            share.append(f / (f + s))
            x = x + branch if placement == "pre" else norm(x + branch)
    y = norm(x) if placement == "pre" else x
    cotangent = torch.randn(y.shape, generator=_generator(seed, 2))
    (gradient,) = torch.autograd.grad(y, last_weight[-1], cotangent)
    return TransformerProfile(np.array(share).reshape(blocks, 2).mean(1), float(gradient.double().square().mean()))


def patches(name: str, batch: int, width: int, seed: tuple[int, int]) -> Tensor:
    """4x4 patches of training images of one draw as tokens [batch, patches, width], by a random linear map.

    Each of the ``width`` numbers is standardized over all tokens.
    """
    generator = _generator(seed, 1)
    train = data.load(name).train
    x = train.take(torch.randperm(len(train), generator=generator)[:batch])
    tokens = F.unfold(x, 4, stride=4).transpose(1, 2)
    tokens = tokens @ torch.randn(tokens.shape[2], width, generator=generator)
    return (tokens - tokens.mean((0, 1))) / tokens.std((0, 1), correction=0)


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Least-squares slope of y on x."""
    return float(np.polyfit(x, y, 1)[0])


def _generator(seed: tuple[int, int], stream: int) -> torch.Generator:
    state = np.random.SeedSequence(seed).generate_state(3, np.uint64)[stream]
    return torch.Generator().manual_seed(int(state) >> 1)
