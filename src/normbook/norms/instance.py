"""Instance normalization: statistics per example and channel, over positions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from normbook.norms.standardize import RunningNorm


class _InstanceNorm(RunningNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``; in training also update the running statistics, if they are tracked."""
        self._check(x)
        axis = self._ndims.index(x.dim())  # of the channels: 0 without a batch axis
        if x.size(axis) != self.num_features:
            text = f"expected {self.num_features} channels at dim={axis}, but got {x.size(axis)}"
            if self.affine:
                raise ValueError(text)
            warnings.warn(f"{text}; num_features is not used because affine=False", stacklevel=2)
        return self._forward(x) if axis else self._forward(x.unsqueeze(0)).squeeze(0)

    def _forward(self, x: Tensor) -> Tensor:
        self._check_channels(x)
        if self.affine and not x.size(0):
            raise IndexError("instance norm with affine=True needs at least one example")  # as torch.nn does
        if not self.training and self.track_running_stats:
            return self._with_running_stats(x)
        if math.prod(x.shape[2:]) == 1:
            raise ValueError(f"Expected more than 1 spatial element when training, got input size {x.shape}")
        return self._with_batch_stats(x, tuple(range(2, x.dim())), self.momentum or 0.0)


class InstanceNorm1d(_InstanceNorm):
    """Instance normalization of (N, C, L) or (C, L) inputs: statistics over L. See `InstanceNorm2d`."""

    _ndims = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """Instance normalization of (N, C, H, W) or (C, H, W) inputs: statistics per example and channel, over H and W.

    ``y = gamma * (x - mu) / sqrt(var + eps) + beta`` with the biased variance, output of the input's shape; gamma,
    beta: (C,), only with ``affine=True``. Training and inference use the input's statistics, unless
    ``track_running_stats``: then training moves the running statistics by ``momentum`` towards the mean over the
    examples (unbiased variance), and inference uses them. As in torch.nn, ``momentum=None`` keeps them unchanged and
    ``num_batches_tracked`` is not counted. Empty input gives empty output, unless N = 0 and ``affine=True``.

    Source: Ulyanov, Vedaldi & Lempitsky 2016, section 2; Wu & He 2018, equation 5.

    Raises:
        ValueError: wrong number of dimensions, one value per channel in training, or (affine) not ``num_features``
            channels. Without affine another number of channels warns, and raises RuntimeError if it is tracked.
        IndexError: affine and N = 0.
        RuntimeError: dtypes do not match.
    """

    _ndims = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """Instance normalization of (N, C, D, H, W) or (C, D, H, W) inputs: over D, H and W. See `InstanceNorm2d`."""

    _ndims = (4, 5)
