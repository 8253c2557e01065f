"""Wide residual networks and multilayer perceptrons whose arms differ by one argument.

Every network here can hold M runs at once (``members``): their channels lie side by side, convolutions are grouped, so
no number of one run touches another's, and M small nets cost about half of M times one net on a CPU. Parameters have
M times the leading dimension of a single net's; ``parameter.view(M, -1)`` separates the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook.errors import InputError, choose


@dataclass(frozen=True)
class Arm:
    """What one arm of an experiment puts into the residual block and behind the last layer.

    The block computes ``(skip(x) + alpha * f(x)) / divide`` with f = ReLU-Conv-ReLU-Conv (BN before each ReLU where
    ``norm``). ``alpha`` is SkipInit's learnable scalar (De & Smith 2020, section 3), a number or ``"1/sqrt(d)"`` with d
    the number of residual blocks; None leaves it out. The last four are the parts of Fixup (Zhang et al. 2019, section
    3): zero the last layer of each branch and the classifier; scale the other layer of the branch by d^(-1/2); a scalar
    multiplier on each branch; a scalar bias before each convolution, activation and the classifier.
    """

    norm: bool = False
    norm_logits: bool = False
    norm_features: bool = False
    skip: bool = True
    alpha: float | str | None = None
    alpha_learned: bool = True
    divide: float = 1.0
    conv_bias: bool = False
    zero_last: bool = False
    depth_scale: bool = False
    multiplier: bool = False
    biases: bool = False


ARMS = {
    "batch_norm": Arm(norm=True, norm_features=True),
    "none": Arm(),
    "skipinit_0": Arm(alpha=0.0),
    "skipinit_rsqrt_d": Arm(alpha="1/sqrt(d)"),
    "skipinit_rsqrt_d_fixed": Arm(alpha="1/sqrt(d)", alpha_learned=False),
    "skipinit_1": Arm(alpha=1.0),
    "skipinit_0_biases": Arm(alpha=0.0, conv_bias=True),
    "divide_sqrt2": Arm(divide=math.sqrt(2)),
    "fixup": Arm(zero_last=True, depth_scale=True, multiplier=True, biases=True),
    "fixup_zero_last": Arm(zero_last=True),
    "fixup_depth_scale": Arm(depth_scale=True),
    "batch_norm_logits": Arm(norm_logits=True),
    "batch_norm_features": Arm(norm_features=True),
    "batch_norm_no_skip": Arm(norm=True, norm_features=True, skip=False),
    "no_skip": Arm(skip=False),
}


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
        weight = self.weight.view(self.members, -1, self.weight.shape[1])
        y = torch.einsum("bmi,moi->bmo", x.view(len(x), self.members, -1), weight)
        return y.flatten(1) + self.bias


class Dropout(nn.Module):
    """Dropout of M runs, x [batch, M * features]; each run draws from its own of ``generators``, set before training.

    So a run's masks do not depend on which runs are trained beside it. Without generators the global stream is used.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.generators: Sequence[torch.Generator] = ()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        if not self.generators:
            return F.dropout(x, self.probability)
        shape = (len(x), x.shape[1] // len(self.generators))
        draws = torch.cat([torch.rand(shape, generator=g, device=x.device) for g in self.generators], dim=1)
        return x * (draws >= self.probability) / (1 - self.probability)


def _conv(inputs: int, outputs: int, kernel: int, stride: int, members: int, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(members * inputs, members * outputs, kernel, stride, kernel // 2, groups=members, bias=bias)


class ResidualBlock(nn.Module):
    """Pre-activation residual block, [batch, M * inputs, h, w] -> [batch, M * outputs, h / stride, w / stride].

    Where the shape changes, the skip path is a 1x1 convolution of the activated input (Zagoruyko & Komodakis 2016).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, arm: Arm, blocks: int, members: int, norms: ModuleType
    ) -> None:
        super().__init__()
        self.skip, self.divide = arm.skip, arm.divide

        def activation(channels: int) -> nn.Sequential:
            parts: list[nn.Module] = [norms.BatchNorm2d(members * channels)] if arm.norm else []
            bias = [Plus(members, 0.0)] if arm.biases else []
            return nn.Sequential(*parts, *bias, nn.ReLU(), *([Plus(members, 0.0)] if arm.biases else []))

        self.activate1, self.activate2 = activation(inputs), activation(outputs)
        self.conv1 = _conv(inputs, outputs, 3, stride, members, arm.conv_bias)
        self.conv2 = _conv(outputs, outputs, 3, 1, members, arm.conv_bias)
        self.project = (
            _conv(inputs, outputs, 1, stride, members, arm.conv_bias)
            if arm.skip and (inputs != outputs or stride != 1)
            else None
        )
        self.scale: nn.Module | None = None
        if arm.alpha is not None:
            alpha = blocks**-0.5 if isinstance(arm.alpha, str) else arm.alpha
            self.scale = Times(members, alpha, arm.alpha_learned, fixup=False)
        elif arm.multiplier:
            self.scale = Times(members, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate1(x)
        branch = self.conv2(self.activate2(self.conv1(activated)))
        if self.scale is not None:
            branch = self.scale(branch)
        if not self.skip:
            return branch
        y = branch + (x if self.project is None else self.project(activated))
        return y / self.divide if self.divide != 1 else y


class WideResNet(nn.Module):
    """WRN n-w for images: x [batch, M * channels, h, w] -> logits [batch, M, classes] (Zagoruyko & Komodakis 2016).

    n counts layers: n = 6 k + 4 with k blocks in each of three stages of 16 w, 32 w and 64 w channels, the second and
    the third at half the resolution of the one before. So d = (n - 4) / 2 residual blocks of two convolutions. w may
    be a fraction, as long as 16 w is a whole number of channels.

    Raises:
        InputError: ``depth`` is not 6 k + 4 for a whole k >= 1, or 16 w is not whole.
    """

    def __init__(
        self, depth: int, width: float, channels: int, classes: int, arm: Arm, norms: ModuleType,
        members: int = 1, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"WRN depth {depth} is not 6 k + 4 (10, 16, 22, 28, 34, 40, ... 100)")
        if width <= 0 or not float(16 * width).is_integer():
            raise InputError(f"WRN width {width}: 16 w must be a whole number of channels")
        base = int(16 * width)
        self.members, per_stage = members, (depth - 4) // 6
        self.stem = _conv(channels, min(16, base), 3, 1, members, arm.conv_bias)
        blocks, inputs = [], min(16, base)
        for stage, outputs in enumerate((base, 2 * base, 4 * base)):
            for i in range(per_stage):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(ResidualBlock(inputs, outputs, stride, arm, 3 * per_stage, members, norms))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        head: list[nn.Module] = [norms.BatchNorm2d(members * inputs)] if arm.norm_features else []
        head += [Plus(members, 0.0)] if arm.biases else []
        self.head = nn.Sequential(*head, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.before_linear = Plus(members, 0.0) if arm.biases else nn.Identity()
        self.dropout = Dropout(dropout)
        self.linear = Linear(inputs, classes, members)
        self.norm_logits = norms.BatchNorm1d(members * classes) if arm.norm_logits else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(self.blocks(self.stem(x)))
        features = self.dropout(self.before_linear(features))
        return self.norm_logits(self.linear(features)).view(len(x), self.members, -1)


class MLP(nn.Module):
    """Multilayer perceptron: x [batch, M * inputs] or images of as many pixels -> logits [batch, M, classes].

    ``depth`` counts the fully connected layers; the hidden ones have ``width`` units. Batch norm stands between the
    linear map and the nonlinearity (Ioffe & Szegedy 2015, section 3.2), for ``norm_logits`` behind the last map too.
    """

    def __init__(
        self, depth: int, width: int, inputs: int, classes: int, arm: Arm, norms: ModuleType,
        members: int = 1, dropout: float = 0.0, activation: str = "relu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.members = members
        nonlinearity = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}[choose("activation", activation, ("relu", "sigmoid"))]
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers.append(Linear(inputs, width, members))
            if arm.norm:
                layers.append(norms.BatchNorm1d(members * width))
            layers.append(nonlinearity())
            inputs = width
        layers += [Dropout(dropout), Linear(inputs, classes, members)]
        if arm.norm_logits:
            layers.append(norms.BatchNorm1d(members * classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1)).view(len(x), self.members, -1)


def initialize(net: WideResNet | MLP, arm: Arm, generators: Sequence[torch.Generator]) -> None:
    """Draw the weights of each run from its own CPU generator, the same ones on every device and in every arm.

    Convolutions and hidden layers: normal with variance 2 / fan-in (He et al. 2015). Classifier: normal with variance 1
    / fan-in, bias 0. Arms of one seed share all draws: what Fixup sets to zero is drawn first.
    """
    members = net.members
    branches = {block.conv1: block for block in net.modules() if isinstance(block, ResidualBlock)}
    lasts = {block.conv2: block for block in branches.values()}
    layers: list[nn.Conv2d | Linear] = [m for m in net.modules() if isinstance(m, nn.Conv2d | Linear)]
    blocks = len(branches)
    for layer in layers:
        classifier = layer is layers[-1]
        fan_in = layer.weight[0].numel()
        std = math.sqrt((1 if classifier else 2) / fan_in)
        if arm.depth_scale and layer in branches:
            std *= blocks**-0.5
        draws = [torch.randn(layer.weight.numel() // members, generator=g) for g in generators]
        zero = arm.zero_last and (classifier or layer in lasts)
        with torch.no_grad():
            layer.weight.copy_(torch.stack(draws).view(layer.weight.shape) * (0.0 if zero else std))
            if layer.bias is not None:
                layer.bias.zero_()
        if layer in lasts and not lasts[layer].skip and lasts[layer].conv1.weight.shape[:2] != layer.weight.shape[:2]:
            # no skip path: what its projection would have drawn is passed over, so later layers draw as in other arms
            for g in generators:
                torch.randn(lasts[layer].conv1.weight[:, :, 0, 0].numel() // members, generator=g)
