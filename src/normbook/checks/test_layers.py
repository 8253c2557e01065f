"""Each layer against its formula, written here with plain operations: values, gradients, running statistics."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# class, its arguments, shape of the input
CASES: list[tuple[str, tuple[Any, ...], tuple[int, ...]]] = [
    ("BatchNorm1d", (5,), (8, 5)),
    ("BatchNorm1d", (5,), (4, 5, 3)),
    ("BatchNorm2d", (3,), (4, 3, 5, 2)),
    ("BatchNorm2d", (4,), (2, 4, 1, 1)),
    ("BatchNorm3d", (3,), (4, 3, 2, 3, 2)),
    ("InstanceNorm1d", (5,), (3, 5, 7)),
    ("InstanceNorm2d", (3,), (4, 3, 5, 2)),
    ("InstanceNorm3d", (3,), (2, 3, 2, 3, 2)),
    ("GroupNorm", (2, 6), (3, 6, 4, 2)),
    ("GroupNorm", (1, 4), (3, 4)),
    ("LayerNorm", (6,), (4, 6)),
    ("LayerNorm", ((3, 4),), (2, 5, 3, 4)),
    ("RMSNorm", (6,), (4, 6)),
]
RUNNING = [case for case in CASES if case[0].startswith("Batch")]
IMAGES = [case for case in CASES if len(case[2]) == 4 and case[0] != "LayerNorm"]  # which has no channels
NAMES, RUNNING_NAMES, IMAGES_NAMES = (
    [f"{name}-{'x'.join(map(str, shape))}" for name, _, shape in each] for each in (CASES, RUNNING, IMAGES)
)
EPS = 0.3  # large, so that it matters where epsilon stands


def make(norm: ModuleType, name: str, args: tuple[Any, ...], **changes: Any) -> Any:
    """The layer in float64 with its parameters drawn at random; skips where the namespace lacks the class."""
    if not isinstance(getattr(norm, name, None), type):
        pytest.skip(f"{norm.__name__} has no class {name}")
    changes = {"eps": EPS, **changes}
    if name.startswith("Instance"):
        changes = {"affine": True, **changes}
    layer: nn.Module = getattr(norm, name)(*args, **changes).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer.train()


def inputs(shape: tuple[int, ...], seed: int = 1) -> Tensor:
    """Values with a mean and a spread of their own in each channel and example."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[:2] + (1,) * (len(shape) - 2), generator=generator, dtype=torch.float64) + 0.5
    return (torch.randn(shape, generator=generator, dtype=torch.float64) + 2 * scale) * scale


def axes(name: str, args: tuple[Any, ...], x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """``x``, with its channels split into groups for group norm, and the axes that statistics are taken over."""
    if name.startswith("Batch"):
        return x, (0, *range(2, x.dim()))
    if name.startswith("Instance"):
        return x, tuple(range(2, x.dim()))
    if name == "GroupNorm":
        grouped = x.reshape(len(x), args[0], -1)
        return grouped, (2,)
    last = len(args[0]) if isinstance(args[0], tuple) else 1
    return x, tuple(range(x.dim() - last, x.dim()))


def formula(name: str, args: tuple[Any, ...], x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """gamma * (x - mu) / sqrt(var + eps) + beta with the biased variance; RMS norm has mu = 0 and no beta."""
    z, dims = axes(name, args, x)
    mean = 0 if name == "RMSNorm" else z.mean(dims, keepdim=True)
    y = ((z - mean) / ((z - mean).square().mean(dims, keepdim=True) + EPS).sqrt()).reshape(x.shape)
    per_channel = (-1, *[1] * (x.dim() - 2)) if re.match("Batch|Instance|Group", name) else None
    for parameter, combine in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            y = combine(y, parameter if per_channel is None else parameter.view(per_channel))
    return y


def assert_equal(what: str, found: Tensor | None, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert found is not None and found.shape == expected.shape, f"{what} has not the shape {tuple(expected.shape)}"
    error = (found.double() - expected).abs().max().item()
    bound = tolerance * max(1.0, expected.abs().max().item())
    assert error <= bound, f"{what} differs by {error:.2g} from the formula (allowed: {bound:.2g})"


@pytest.mark.parametrize(("name", "args", "shape"), CASES, ids=NAMES)
def test_values_and_gradients_are_those_of_the_formula(
    norm: ModuleType, name: str, args: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    layer = make(norm, name, args)
    x, back = inputs(shape).requires_grad_(), inputs(shape, seed=2)
    own = [x.detach().clone().requires_grad_()]
    own += [p.detach().clone().requires_grad_() for p in (layer.weight, getattr(layer, "bias", None)) if p is not None]
    expected = formula(name, args, own[0], own[1], own[2] if len(own) > 2 else None)
    found = layer(x)
    assert_equal("the output", found.detach(), expected.detach())
    found.backward(back)
    gradients = torch.autograd.grad(expected, own, back)
    assert_equal("the input's gradient", x.grad, gradients[0])
    for key, gradient in zip(("weight", "bias"), gradients[1:], strict=False):
        assert_equal(f"the gradient of {key}", getattr(layer, key).grad, gradient)


@pytest.mark.parametrize(("name", "args", "shape"), CASES, ids=NAMES)
def test_float32_agrees_to_rounding(norm: ModuleType, name: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    layer = make(norm, name, args)
    x = inputs(shape)
    expected = formula(name, args, x, layer.weight, getattr(layer, "bias", None)).detach()
    found = layer.float()(x.float())
    assert found.dtype == torch.float32, f"float32 comes out as {found.dtype}"
    assert_equal("the output", found.detach(), expected, 1e-5)


@pytest.mark.parametrize(("name", "args", "shape"), CASES, ids=NAMES)
def test_a_mean_far_above_the_spread_cancels_no_digits(
    norm: ModuleType, name: str, args: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    layer = make(norm, name, args)
    x = (inputs(shape) + 1000).float()  # here E[x²] - E[x]² in float32 is off by about a tenth
    expected = formula(name, args, x.double(), layer.weight, getattr(layer, "bias", None)).detach()
    assert_equal("the output for inputs around 1000", layer.float()(x).detach(), expected, 1e-3)


@pytest.mark.parametrize(("name", "args", "shape"), RUNNING, ids=RUNNING_NAMES)
@pytest.mark.parametrize("momentum", [0.1, 0.25, None])
def test_running_statistics(
    norm: ModuleType, name: str, args: tuple[Any, ...], shape: tuple[int, ...], momentum: float | None
) -> None:
    layer = make(norm, name, args, momentum=momentum)
    mean, var = torch.zeros(shape[1], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)
    for step in range(3):
        x = inputs(shape, seed=step)
        layer(x)
        dims = (0, *range(2, x.dim()))
        factor = 1 / (step + 1) if momentum is None else momentum
        mean = (1 - factor) * mean + factor * x.mean(dims)
        var = (1 - factor) * var + factor * x.var(dims, correction=1)
    assert_equal("running_mean", layer.running_mean, mean)
    assert_equal("running_var (of the unbiased variances)", layer.running_var, var)
    assert int(layer.num_batches_tracked) == 3, "num_batches_tracked does not count the batches"


@pytest.mark.parametrize(("name", "args", "shape"), RUNNING, ids=RUNNING_NAMES)
def test_inference_uses_the_running_statistics_and_leaves_them(
    norm: ModuleType, name: str, args: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    layer = make(norm, name, args)
    layer(inputs(shape))
    layer.eval()
    before = {key: value.clone() for key, value in layer.named_buffers()}
    x = inputs(shape, seed=5)
    view = (-1, *[1] * (x.dim() - 2))
    scale = layer.weight / (layer.running_var + EPS).sqrt()
    expected = (x - layer.running_mean.view(view)) * scale.view(view) + layer.bias.view(view)
    assert_equal("the output at inference", layer(x).detach(), expected.detach())
    for key, value in layer.named_buffers():
        assert torch.equal(value, before[key]), f"{key} moved at inference"
    # an example's output does not depend on its companions
    assert_equal("an example alone", layer(x[:1]).detach(), expected[:1].detach())


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d"])
def test_one_value_a_statistic_is_refused_in_training(norm: ModuleType, name: str) -> None:
    layer = make(norm, name, (3,))
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(inputs((1, 3) + ((1, 1) if name == "BatchNorm2d" else ())))


@pytest.mark.parametrize(("name", "args", "shape"), CASES, ids=NAMES)
def test_the_state_dict_is_that_of_torch(
    norm: ModuleType, name: str, args: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    layer = make(norm, name, args)
    changes = {"affine": True} if name.startswith("Instance") else {}
    torchs = getattr(nn, name)(*args, eps=EPS, **changes).double()
    layer.load_state_dict(torchs.state_dict())
    assert list(layer.state_dict()) == list(torchs.state_dict())
    x = inputs(shape)
    assert_equal("the output with torch's state", layer(x).detach(), torchs(x).detach())


@pytest.mark.parametrize(("name", "args", "shape"), IMAGES, ids=IMAGES_NAMES)
def test_channels_last_stays(norm: ModuleType, name: str, args: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    layer = make(norm, name, args)
    x = inputs(shape)
    last = x.contiguous(memory_format=torch.channels_last)
    assert_equal("the output in channels_last", layer(last).detach(), layer(x).detach())
