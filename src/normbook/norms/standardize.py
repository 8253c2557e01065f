"""What the norms share: standardization with its gradient, scale and shift, parameters, running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_HALF = (torch.float16, torch.bfloat16)


# Why a hand-written backward: with plain operations autograd runs twice the kernels. Batch norm, training, forward +
# backward, float32, channels_last [32, 96, 8, 8], 1 CPU thread, torch 2.15: 3.8 to 4.8 ms with plain operations, 2.0 ms
# with this function, 0.7 to 0.9 ms for torch.nn.BatchNorm2d (fused C++). For [60, 100] calls dominate: 0.66 ms for the
# whole layer, 0.17 ms for torch.nn.BatchNorm1d; setup_context, which torch.func needs, is about 0.1 ms of it.
# Why not torch.var_mean: on CPU it is not vectorized and takes 1.6 ms alone on the first tensor. Mean, subtraction,
# square and mean take 0.4 ms together, and to center before squaring avoids the same cancellation.
class _Standardize(torch.autograd.Function):
    """``weight * (x - mean) / sqrt(var + eps) + bias`` with the gradient of Ioffe & Szegedy 2015, section 3.

    ``weight`` and ``bias`` broadcast against ``x`` and are constant along ``dims``; either may be None.
    Returns the result, the mean and the biased variance (shape of ``x`` with ``dims`` set to 1), and two tensors that
    only the backward uses. Works under torch.func.grad, torch.func.vmap and torch.compile; differentiates once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: tuple[int, ...], eps: float) -> Any:
        mean = x.mean(dims, keepdim=True)
        centered = x - mean
        var = centered.square().mean(dims, keepdim=True)
        rstd = (var + eps).rsqrt()
        scale = rstd if weight is None else rstd * weight
        return scale_and_shift(centered, scale, bias), mean, var, centered, rstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, weight, bias, ctx.dims, _ = inputs
        ctx.bias_shape = None if bias is None else bias.shape
        ctx.save_for_backward(weight, *output[3:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # else zeros of the size of x are made for the outputs without gradient

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: None) -> Any:
        weight, centered, rstd = ctx.saved_tensors
        n = max(1, centered.numel() // max(1, rstd.numel()))  # values per statistic
        grad_sum = grad.sum(ctx.dims, keepdim=True)
        xhat_dot = (grad * centered).sum(ctx.dims, keepdim=True) * rstd
        scale = rstd if weight is None else rstd * weight
        back = scale / -n
        # dx = scale * (dy - mean(dy) - xhat * mean(dy * xhat)), as two fused multiply-adds over the large tensors
        grad_x = torch.addcmul(back * grad_sum, grad, scale)
        grad_x = torch.addcmul(grad_x, centered, back * rstd * xhat_dot)
        grad_weight = None if weight is None else xhat_dot.sum_to_size(weight.shape)
        grad_bias = None if ctx.bias_shape is None else grad_sum.sum_to_size(ctx.bias_shape)
        return grad_x, grad_weight, grad_bias, None, None


def widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def scale_and_shift(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """``weight * x + bias``, either of them left out where None."""
    if weight is None or bias is None:
        x = x if weight is None else x * widen(weight)
        return x if bias is None else x + widen(bias)
    return torch.addcmul(widen(bias), x, widen(weight))


def normalize(
    x: Tensor, dims: tuple[int, ...], eps: float, weight: Tensor | None = None, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize ``x`` over ``dims``; return the result, the mean and the biased variance, in at least float32."""
    weight, bias = (None if t is None else widen(t) for t in (weight, bias))
    return _Standardize.apply(widen(x), weight, bias, dims, eps)[:3]


def per_channel(t: Tensor | None, x: Tensor) -> Tensor | None:
    """View a vector of C values so that it broadcasts against ``x`` of shape (N, C, ...)."""
    return t if t is None or x.dim() == 2 else t.view(-1, *[1] * (x.dim() - 2))


def check_dtype(x: Tensor, *others: Tensor | None) -> None:
    if not x.is_floating_point():
        raise NotImplementedError(f"normalization is not implemented for {x.dtype}")
    for other in others:
        if other is not None and other.dtype != x.dtype and not (x.dtype in _HALF and other.dtype == torch.float32):
            raise RuntimeError(f"mixed dtypes: the input is {x.dtype}, a parameter or buffer is {other.dtype}")


class Norm(nn.Module):
    """Parameters ``weight`` (ones) and ``bias`` (zeros), either of which may be None.

    ``fused``: batch, layer and group norm take torch's kernel in place of the formula, see `normbook.norms.fuse`.
    """

    fused = False
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def _register(self, shape: int | tuple[int, ...], weight: bool, bias: bool, **factory: Any) -> None:
        for name, wanted in (("weight", weight), ("bias", weight and bias)):
            self.register_parameter(name, nn.Parameter(torch.empty(shape, **factory)) if wanted else None)

    def reset_parameters(self) -> None:
        """Set the weight to 1 and the bias to 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class RunningNorm(Norm):
    """What batch and instance normalization share: per-channel parameters and running statistics."""

    _version = 2  # of the state dict, as torch.nn's: with num_batches_tracked
    _ndims: tuple[int, ...]  # accepted numbers of input dimensions
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self._register(num_features, affine, bias, device=device, dtype=dtype)
        track = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=dtype) if track else None)
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype) if track else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device) if track else None)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Set the running mean to 0, the running variance to 1 and the count of batches to 0."""
        for buffer, value in ((self.running_mean, 0), (self.running_var, 1), (self.num_batches_tracked, 0)):
            if buffer is not None:
                buffer.fill_(value)

    def reset_parameters(self) -> None:
        """Reset the running statistics, the weight (to 1) and the bias (to 0)."""
        self.reset_running_stats()
        super().reset_parameters()

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )

    def _check(self, x: Tensor) -> None:
        if x.dim() not in self._ndims:
            raise ValueError(f"expected {' or '.join(f'{d}D' for d in self._ndims)} input (got {x.dim()}D input)")
        check_dtype(x, self.weight, self.bias, self.running_mean, self.running_var)

    def _check_channels(self, x: Tensor) -> None:
        for name in ("running_mean", "running_var", "weight", "bias"):
            t = getattr(self, name)
            if t is not None and t.numel() != x.size(1):
                raise RuntimeError(f"{name} should contain {x.size(1)} elements not {t.numel()}")

    def _with_batch_stats(
        self, x: Tensor, dims: tuple[int, ...], factor: float, groups: tuple[int, int] | None = None
    ) -> Tensor:
        """Normalize with the statistics of ``x`` and move the running ones towards them by ``factor``.

        With ``groups`` (number, size) the batch axis is split in two first, and ``dims`` counts both.
        """
        weight, bias = per_channel(self.weight, x), per_channel(self.bias, x)
        if not x.numel():  # no statistics: the parameters get zero gradients, the running statistics stay
            return scale_and_shift(widen(x), weight, bias).to(x.dtype)
        y, mean, var = normalize(x if groups is None else x.unflatten(0, groups), dims, self.eps, weight, bias)
        if self.running_mean is not None and self.running_var is not None:
            n = x.numel() // mean.numel()  # values per statistic; n / (n - 1) makes the variance unbiased
            for running, new in ((self.running_mean, mean), (self.running_var, var * (n / (n - 1)))):
                new = new.reshape(-1, running.numel())
                new = new[0] if len(new) == 1 else new.mean(0)  # over groups or instances
                running.lerp_(new.to(running.dtype), factor)
        return y.reshape(x.shape).to(x.dtype)

    def _with_running_stats(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        mean = widen(self.running_mean).view(-1, *[1] * (x.dim() - 2))
        scale = (widen(self.running_var) + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        # centered first: folding the mean into the bias saves a kernel, but the weight's gradient then cancels
        return scale_and_shift(widen(x) - mean, per_channel(scale, x), per_channel(self.bias, x)).to(x.dtype)
