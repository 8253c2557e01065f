"""Networks whose arms differ by one argument: WRN n-w, ResNet n, plain convolutional net, multilayer perceptron.

Every network here can hold M runs at once (``members``): their channels lie side by side, convolutions are grouped, so
no number of one run touches another's, and M small nets cost about half of M times one net on a CPU. Parameters have
M times the leading dimension of a single net's; ``parameter.view(M, -1)`` separates the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from normbook.models.arms import ARMS, Arm
from normbook.models.layers import Dropout, Linear, Plus, Random, Scalar, Times
from normbook.models.plain import CNN, MLP
from normbook.models.resnet import ResidualBlock, ResNet, WideResNet

__all__ = [
    "ARMS", "CNN", "MLP", "Arm", "Dropout", "Linear", "Net", "Plus", "Random", "ResNet", "ResidualBlock", "Scalar",
    "Times", "WideResNet", "initialize",
]  # fmt: skip

Net = WideResNet | ResNet | CNN | MLP


def initialize(net: Net, arm: Arm, generators: Sequence[torch.Generator], std: float | None = None) -> None:
    """Draw the weights of each run from its own CPU generator, the same ones on every device and in every arm.

    Convolutions and hidden layers: normal with variance 2 / fan-in (He et al. 2015), or with standard deviation
    ``std``. Classifier: normal with variance 1 / fan-in, bias 0. Arms of one seed share all draws: what Fixup sets to
    zero is drawn first.
    """
    members = net.members
    branches = {block.conv1: block for block in net.modules() if isinstance(block, ResidualBlock)}
    lasts = {block.conv2: block for block in branches.values()}
    layers: list[nn.Conv2d | Linear] = [m for m in net.modules() if isinstance(m, nn.Conv2d | Linear)]
    blocks = len(branches)
    for layer in layers:
        classifier = layer is layers[-1]
        fan_in = layer.weight[0].numel()
        scale = std if std is not None and not classifier else math.sqrt((1 if classifier else 2) / fan_in)
        if arm.depth_scale and layer in branches:
            scale *= blocks**-0.5
        draws = [torch.randn(layer.weight.numel() // members, generator=g) for g in generators]
        zero = arm.zero_last and (classifier or layer in lasts)
        with torch.no_grad():
            layer.weight.copy_(torch.stack(draws).view(layer.weight.shape) * (0.0 if zero else scale))
            if layer.bias is not None:
                layer.bias.zero_()
        if layer in lasts and not lasts[layer].skip and lasts[layer].conv1.weight.shape[:2] != layer.weight.shape[:2]:
            # no skip path: what its projection would have drawn is passed over, so later layers draw as in other arms
            for g in generators:
                torch.randn(lasts[layer].conv1.weight[:, :, 0, 0].numel() // members, generator=g)
