"""The networks of `normbook.models` as a textbook writes them: plain `torch.nn`, one run, no arms.

All baselines train these. ``tests/test_benchmarks.py`` holds that they have our nets' parameters and, with equal
weights, their loss.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class PreActivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-conv plus skip (Zagoruyko & Komodakis 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN depth-width (Zagoruyko & Komodakis 2016)."""

    def __init__(self, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = _conv(channels, 16)
        blocks, inputs = [], 16
        for stage, outputs in enumerate((16 * width, 32 * width, 64 * width)):
            for i in range((depth - 4) // 6):
                blocks.append(PreActivationBlock(inputs, outputs, 2 if stage and not i else 1))
                inputs = outputs
        self.blocks, self.bn, self.linear = nn.Sequential(*blocks), nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.stem(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus skip, then ReLU (He et al. 2016); where the shape changes, the skip has no weights."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, stride=stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(x + y)


class ResNet(nn.Module):
    """ResNet depth for small images (He et al. 2016, section 4.2)."""

    def __init__(self, depth: int, width: int, channels: int, classes: int) -> None:
        super().__init__()
        base = 16 * width
        self.conv, self.bn = _conv(channels, base), nn.BatchNorm2d(base)
        blocks, inputs = [], base
        for stage, outputs in enumerate((base, 2 * base, 4 * base)):
            for i in range((depth - 2) // 6):
                blocks.append(BasicBlock(inputs, outputs, 2 if stage and not i else 1))
                inputs = outputs
        self.blocks, self.linear = nn.Sequential(*blocks), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


class MLP(nn.Sequential):
    """``depth`` fully connected layers, with batch norm and ReLU between them (Ioffe & Szegedy 2015)."""

    def __init__(self, depth: int, width: int, inputs: int, classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(depth - 1):
            layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))


class Nothing(nn.Module):
    """As little as a net can do and still be trained: ten pixels times one number. What is left is the loop."""

    def __init__(self, classes: int, members: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)
        self.classes, self.members = classes, members

    def forward(self, x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, : self.classes] * self.linear.weight
        return logits[:, None] if self.members else logits
