"""Batch normalization and ghost batch normalization: statistics per channel, over examples and positions."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from normbook.norms.standardize import RunningNorm


class _BatchNorm(RunningNorm):
    def _groups(self, batch: int) -> tuple[int, int] | None:
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``; in training also update the running statistics."""
        self._check(x)
        self._check_channels(x)
        use_batch = self.training or (self.running_mean is None and self.running_var is None)
        if self.eps < 0 or (use_batch and self.eps == 0):
            raise ValueError(f"eps must be {'positive' if use_batch else 'non-negative'}, but got {self.eps}")
        if not use_batch:
            return self._with_running_stats(x)
        groups = self._groups(x.size(0)) if self.training else None
        if (x.size(0) if groups is None else groups[1]) * math.prod(x.shape[2:]) == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        factor = self.momentum or 0.0
        if not self.track_running_stats:
            factor = 0.0  # also where it was switched off after construction
        elif self.num_batches_tracked is not None and not (self.fused and self.momentum is not None):
            self.num_batches_tracked.add_(1)  # fused, `count_batches` does it: a kernel an epoch, not one a step
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        if self.fused and groups is None and x.numel():
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, factor, self.eps)
        dims = (0, *range(2, x.dim())) if groups is None else (1, *range(3, x.dim() + 1))
        return self._with_batch_stats(x, dims, factor, groups)


class BatchNorm1d(_BatchNorm):
    """Batch normalization of (N, C) or (N, C, L) inputs: statistics over N, or over N and L. See `BatchNorm2d`."""

    _ndims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Batch normalization of (N, C, H, W) inputs: statistics per channel, over N, H and W.

    ``y = gamma * (x - mu) / sqrt(var + eps) + beta``, output of the input's shape; gamma, beta: (C,).
    Training: ``mu`` and the biased ``var`` are this batch's, and gradients flow through both. The running statistics
    become ``(1 - momentum) * running + momentum * batch``, with the unbiased variance; ``momentum=None`` takes the
    mean over all batches seen. Inference: ``mu`` and ``var`` are the running ones, or, without
    ``track_running_stats``, the batch's. An empty batch gives an empty output and changes no running statistic.

    Source: Ioffe & Szegedy 2015, Algorithm 1 (training) and Algorithm 2 (inference, unbiased variance), section 3.2
    (one statistic per feature map); gradient: the equations after Algorithm 1 in section 3.

    Raises:
        ValueError: wrong number of dimensions, one value per channel in training, or eps not positive.
        RuntimeError: the input has not ``num_features`` channels, or dtypes do not match.
    """

    _ndims = (4,)


class BatchNorm3d(_BatchNorm):
    """Batch normalization of (N, C, D, H, W) inputs: statistics over N, D, H and W. See `BatchNorm2d`."""

    _ndims = (5,)


class _GhostBatchNorm(_BatchNorm):
    def __init__(self, *args: Any, ghost_batch_size: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if ghost_batch_size < 1:
            raise ValueError(f"ghost_batch_size must be at least 1, but got {ghost_batch_size}")
        self.ghost_batch_size = ghost_batch_size

    def _groups(self, batch: int) -> tuple[int, int] | None:
        size = self.ghost_batch_size
        if batch <= size:
            return None
        if batch % size:
            raise ValueError(f"batch size {batch} is neither divisible by ghost_batch_size {size} nor smaller than it")
        return batch // size, size

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}"


class GhostBatchNorm1d(_GhostBatchNorm):
    """Ghost batch normalization of (N, C) or (N, C, L) inputs. See `GhostBatchNorm2d`."""

    _ndims = (2, 3)


class GhostBatchNorm2d(_GhostBatchNorm):
    """Ghost batch normalization of (N, C, H, W) inputs: in training, batch norm within groups of examples.

    Takes the arguments of `BatchNorm2d` and the keyword ``ghost_batch_size``. Training: each group of that many
    consecutive examples is normalized with its own statistics, ``y = gamma * (x - mu_g) / sqrt(var_g + eps) + beta``; a
    batch smaller than ``ghost_batch_size`` is one group. Inference: the running statistics, as `BatchNorm2d`.

    Source: Hoffer, Hubara & Soudry 2017, Algorithm 1. There the running statistics are decayed once per group; here
    once per step, towards the mean of the groups' means and unbiased variances.

    Raises:
        ValueError: in training the batch size is neither divisible by ``ghost_batch_size`` nor smaller than it, or a
            group has one value per channel; and as `BatchNorm2d`.
        RuntimeError: as `BatchNorm2d`.
    """

    _ndims = (4,)
