"""Residual networks for images: WRN n-w (pre-activation) and ResNet n (He et al. 2016, post-activation)."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normbook.errors import InputError
from normbook.models.arms import Arm
from normbook.models.layers import Linear, Plus, Times, batch_norm, conv, dropout, norm_layer


class ResidualBlock(nn.Module):
    """Pre-activation residual block, [batch, M * inputs, h, w] -> [batch, M * outputs, h / stride, w / stride].

    Where the shape changes, the skip path is a 1x1 convolution of the activated input (Zagoruyko & Komodakis 2016).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, arm: Arm, blocks: int, members: int, norms: ModuleType
    ) -> None:
        super().__init__()
        self.skip, self.divide = arm.skip, arm.divide

        def activation(channels: int, last: bool) -> nn.Sequential:
            before, after = (dropout(arm, place) if last else [] for place in ("before_norm", "before_conv"))
            bias = [Plus(members, 0.0)] if arm.biases else []
            parts = [*before, *norm_layer(arm, channels, members, norms, 4), *bias, nn.ReLU(), *after]
            return nn.Sequential(*parts, *([Plus(members, 0.0)] if arm.biases else []))

        self.activate1, self.activate2 = activation(inputs, last=False), activation(outputs, last=True)
        self.conv1 = conv(inputs, outputs, 3, stride, members, arm.conv_bias)
        self.conv2 = conv(outputs, outputs, 3, 1, members, arm.conv_bias)
        self.project = (
            conv(inputs, outputs, 1, stride, members, arm.conv_bias)
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
        members: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise InputError(f"WRN depth {depth} is not 6 k + 4 (10, 16, 22, 28, 34, 40, ... 100)")
        if width <= 0 or not float(16 * width).is_integer():
            raise InputError(f"WRN width {width}: 16 w must be a whole number of channels")
        base = int(16 * width)
        self.members, per_stage = members, (depth - 4) // 6
        self.stem = conv(channels, min(16, base), 3, 1, members, arm.conv_bias)
        blocks, inputs = [], min(16, base)
        for stage, outputs in enumerate((base, 2 * base, 4 * base)):
            for i in range(per_stage):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(ResidualBlock(inputs, outputs, stride, arm, 3 * per_stage, members, norms))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        kind = replace(arm, norm="batch") if arm.norm_features else arm
        head: list[nn.Module] = norm_layer(kind, inputs, members, norms, 4)
        head += [Plus(members, 0.0)] if arm.biases else []
        self.head = nn.Sequential(*head, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.before_linear = Plus(members, 0.0) if arm.biases else nn.Identity()
        self.dropout = nn.Sequential(*dropout(arm, "head"))
        self.linear = Linear(inputs, classes, members)
        self.norm_logits = batch_norm(arm, members * classes, norms, 2) if arm.norm_logits else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = self.head(self.blocks(self.stem(x)))
        features = self.dropout(self.before_linear(features))
        return self.norm_logits(self.linear(features)).view(len(x), self.members, -1)


class BasicBlock(nn.Module):
    """Post-activation block, ReLU(skip(x) + Norm(Conv(ReLU(Norm(Conv(x)))))) (He et al. 2016, section 3.3).

    Where the shape changes the skip path has no parameters: it takes every other pixel and fills new channels with 0.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, arm: Arm, members: int, norms: ModuleType) -> None:
        super().__init__()
        self.members, self.stride, self.new = members, stride, outputs - inputs
        self.conv1 = conv(inputs, outputs, 3, stride, members, arm.conv_bias)
        self.conv2 = conv(outputs, outputs, 3, 1, members, arm.conv_bias)
        self.norm1 = nn.Sequential(*norm_layer(arm, outputs, members, norms, 4))
        self.norm2 = nn.Sequential(*norm_layer(arm, outputs, members, norms, 4))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1 or self.new:
            x = x[:, :, :: self.stride, :: self.stride].unflatten(1, (self.members, -1))
            x = F.pad(x, (0, 0, 0, 0, 0, self.new)).flatten(1, 2).contiguous(memory_format=torch.channels_last)
        return F.relu(x + branch)


class ResNet(nn.Module):
    """ResNet n for small images: x [batch, M * channels, h, w] -> logits [batch, M, classes] (He et al. 2016, section
    4.2).

    n = 6 k + 2 layers with k blocks in each of three stages of 16 w, 32 w and 64 w channels; w is 1 in the paper.

    Raises:
        InputError: ``depth`` is not 6 k + 2 for a whole k >= 1, or 16 w is not whole.
    """

    def __init__(
        self, depth: int, width: float, channels: int, classes: int, arm: Arm, norms: ModuleType, members: int = 1
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"ResNet depth {depth} is not 6 k + 2 (8, 14, 20, 32, 56, 110)")
        if width <= 0 or not float(16 * width).is_integer():
            raise InputError(f"ResNet width {width}: 16 w must be a whole number of channels")
        base = int(16 * width)
        self.members = members
        self.stem = nn.Sequential(
            conv(channels, base, 3, 1, members, arm.conv_bias), *norm_layer(arm, base, members, norms, 4), nn.ReLU()
        )
        blocks, inputs = [], base
        for stage, outputs in enumerate((base, 2 * base, 4 * base)):
            for i in range((depth - 2) // 6):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(BasicBlock(inputs, outputs, stride, arm, members, norms))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dropout(arm, "head"))
        self.linear = Linear(inputs, classes, members)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.head(self.blocks(self.stem(x)))).view(len(x), self.members, -1)
