"""Layer, group and RMS normalization: statistics within one example, the same in training and inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normbook.norms.standardize import Norm, check_dtype, normalize, per_channel, scale_and_shift, widen


class GroupNorm(Norm):
    """Group normalization of (N, C, ...) inputs: statistics per example and group of C / num_groups channels.

    ``y = gamma * (x - mu) / sqrt(var + eps) + beta`` with the biased variance over the group's channels and all
    positions, output of the input's shape; gamma, beta: (C,). The same in training and inference. One group is layer
    norm over (C, ...), C groups are instance norm. An empty batch gives an empty output.

    Source: Wu & He 2018, equations 1, 2, 6 and 7.

    Raises:
        ValueError: ``num_channels`` not divisible by ``num_groups``; one value per group in a batch of one with all
            groups of one channel.
        RuntimeError: fewer than 2 dimensions, wrong number of channels, no positions, or dtypes do not match.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})")
        self.num_groups, self.num_channels, self.eps, self.affine = num_groups, num_channels, eps, affine
        self._register(num_channels, affine, bias, device=device, dtype=dtype)
        self.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``."""
        if x.dim() < 2:
            raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.dim()}")
        channels, positions = x.size(1), math.prod(x.shape[2:])
        if self.num_groups < 1 or channels % self.num_groups or not positions:
            raise RuntimeError(f"cannot split input of shape {list(x.shape)} into {self.num_groups} channel groups")
        if self.weight is not None and channels != self.num_channels:
            raise RuntimeError(f"expected {self.num_channels} channels, but got input of shape {list(x.shape)}")
        if x.size(0) * channels // self.num_groups * positions == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        check_dtype(x, self.weight, self.bias)
        if self.fused:
            y = F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
            last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
            return y.contiguous(memory_format=torch.channels_last) if last else y  # on a GPU torch 2.15 loses it
        y = normalize(x.unflatten(1, (self.num_groups, -1)), tuple(range(2, x.dim() + 1)), self.eps)[0]
        return scale_and_shift(y.flatten(1, 2), per_channel(self.weight, x), per_channel(self.bias, x)).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


class _TrailingNorm(Norm):
    """What layer and RMS normalization share: parameters of the shape of the input's last dimensions."""

    def __init__(self, shape: int | Sequence[int], eps: float | None, weight: bool, bias: bool, **factory: Any) -> None:
        super().__init__()
        self.normalized_shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.eps, self.elementwise_affine = eps, weight
        self._register(self.normalized_shape, weight, bias, **factory)
        self.reset_parameters()

    def _dims(self, x: Tensor) -> tuple[int, ...]:
        shape = self.normalized_shape
        if not shape or x.shape[-len(shape) :] != shape:
            raise RuntimeError(f"expected input with shape [*, {str(list(shape))[1:-1]}], but got {list(x.shape)}")
        return tuple(range(x.dim() - len(shape), x.dim()))


class LayerNorm(_TrailingNorm):
    """Layer normalization over the last dimensions; the input is ``(*, normalized_shape)``.

    ``y = gamma * (x - mu) / sqrt(var + eps) + beta`` with the biased variance, output of the input's shape; gamma,
    beta: normalized_shape. The same in training and inference. Empty input gives empty output.

    Source: Ba, Kiros & Hinton 2016, equation 3 (mu and sigma), with gain and bias as in equation 4.

    Raises:
        RuntimeError: the input's last dimensions are not ``normalized_shape``, or dtypes do not match.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``."""
        check_dtype(x, self.weight, self.bias)
        assert self.eps is not None
        if self.fused:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return scale_and_shift(normalize(x, self._dims(x), self.eps)[0], self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        affine, bias = self.elementwise_affine, self.bias is not None
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={affine}, bias={bias}"


class RMSNorm(_TrailingNorm):
    """Root mean square normalization over the last dimensions; the input is ``(*, normalized_shape)``.

    ``y = gamma * x / sqrt(mean(x ** 2) + eps)``, output of the input's shape; gamma: normalized_shape. No mean is
    subtracted. ``eps=None`` is the machine epsilon of the dtype computed in. The same in training and inference.

    Source: Zhang & Sennrich 2019, equation 4 (there without eps).

    Raises:
        ValueError: the input has fewer dimensions than ``normalized_shape``.
        RuntimeError: the input's last dimensions are not ``normalized_shape``.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``."""
        check_dtype(x)
        if x.dim() < len(self.normalized_shape):
            raise ValueError(f"expected at least {len(self.normalized_shape)} dimensions, but got {x.dim()}")
        wide = widen(x)
        eps = torch.finfo(wide.dtype).eps if self.eps is None else self.eps
        rms = (wide.square().mean(self._dims(x), keepdim=True) + eps).sqrt()
        return scale_and_shift(wide / rms, self.weight, None).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
