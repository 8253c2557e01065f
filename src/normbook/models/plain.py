"""Networks without skip connections: multilayer perceptron and plain convolutional network."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor, nn

from normbook.errors import InputError, choose
from normbook.models.arms import Arm
from normbook.models.layers import Linear, batch_norm, conv, dropout, norm_layer

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class MLP(nn.Module):
    """Multilayer perceptron: x [batch, M * inputs] or images of as many pixels -> logits [batch, M, classes].

    ``depth`` counts the fully connected layers; the hidden ones have ``width`` units. The norm stands between the
    linear map and the nonlinearity (Ioffe & Szegedy 2015, section 3.2); with ``norm_logits`` a batch norm stands behind
    the last map too.
    """

    def __init__(
        self, depth: int, width: int, inputs: int, classes: int, arm: Arm, norms: ModuleType, members: int = 1,
        activation: str = "relu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.members = members
        nonlinearity = ACTIVATIONS[choose("activation", activation, ACTIVATIONS)]
        layers: list[nn.Module] = []
        for _ in range(depth - 1):
            layers += [Linear(inputs, width, members), *norm_layer(arm, width, members, norms, 2), nonlinearity()]
            inputs = width
        layers += [*dropout(arm, "head"), Linear(inputs, classes, members)]
        if arm.norm_logits:
            layers.append(batch_norm(arm, members * classes, norms, 2))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1)).view(len(x), self.members, -1)


class CNN(nn.Module):
    """Plain convolutional network: x [batch, M * channels, h, w] -> logits [batch, M, classes].

    ``depth`` 3x3 convolutions, the first half of 16 w channels, the second of 32 w at half the resolution, each with
    norm and ReLU; then the mean over pixels and a linear classifier.

    Raises:
        InputError: ``depth`` is not even and at least 2, or 16 w is not whole.
    """

    def __init__(
        self, depth: int, width: float, channels: int, classes: int, arm: Arm, norms: ModuleType, members: int = 1
    ) -> None:
        super().__init__()
        if depth < 2 or depth % 2:
            raise InputError(f"CNN depth {depth} is not even and at least 2")
        if width <= 0 or not float(16 * width).is_integer():
            raise InputError(f"CNN width {width}: 16 w must be a whole number of channels")
        self.members = members
        layers: list[nn.Module] = []
        inputs, base = channels, int(16 * width)
        for i in range(depth):
            outputs, stride = (base, 1) if i < depth // 2 else (2 * base, 2 if i == depth // 2 else 1)
            layers += [
                conv(inputs, outputs, 3, stride, members, True),
                *norm_layer(arm, outputs, members, norms, 4),
                nn.ReLU(),
            ]
            inputs = outputs
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dropout(arm, "head"))
        self.linear = Linear(inputs, classes, members)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.layers(x)).view(len(x), self.members, -1)
