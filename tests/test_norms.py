"""normbook.norms against torch.nn: values, gradients, running statistics, errors; and the identities between norms."""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normbook import norms
from normbook.errors import InputError

MAX_OFFSET = 10.0  # largest |mean| / sd of the inputs
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the tensor's largest absolute value
NAMES = [f"{kind}{d}d" for kind in ("BatchNorm", "InstanceNorm") for d in (1, 2, 3)] + [
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
]
quick = settings(
    deadline=None, max_examples=20, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@dataclass
class Case:
    """One layer and its inputs."""

    name: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    layout: str = "contiguous"
    training: bool = True
    seed: int = 0

    def layer(self, module: Any, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Build the layer with non-trivial parameters and running statistics, the same for every module."""
        layer: nn.Module = getattr(module, self.name)(*self.args, **self.kwargs, dtype=dtype)
        generator = torch.Generator().manual_seed(self.seed)
        for key, value in layer.state_dict().items():
            if value.is_floating_point():
                random = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(random + 0.5 if "var" in key else 3 * random - 1.3)
        return layer.train(self.training)

    def inputs(self, dtype: torch.dtype = torch.float64, number: int = 2) -> list[tuple[Tensor, Tensor]]:
        """Inputs and output gradients; every channel has its own mean (up to 10 sd) and sd."""
        generator = torch.Generator().manual_seed(self.seed + 1)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        pairs = []
        for _ in range(number):
            axis = min(1, len(self.shape) - 1)
            per = [n if d == axis else 1 for d, n in enumerate(self.shape)]
            offset = (draw(*per) * MAX_OFFSET / 2).clamp(-MAX_OFFSET, MAX_OFFSET)
            x = (draw(*self.shape) + offset) * (0.3 + draw(*per).abs())
            pairs.append((lay_out(x.to(dtype), self.layout), draw(*self.shape).to(dtype)))
        return pairs


def lay_out(x: Tensor, layout: str) -> Tensor:
    """Return the same values in another memory layout."""
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return x.repeat_interleave(2, -1)[..., ::2]
    if layout == "channels_last" and x.dim() in (4, 5):
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        return x.contiguous(memory_format=last)
    return x


def run(layer: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Run forward and backward on all inputs; return outputs, gradients and buffers."""
    layer.zero_grad()
    out: dict[str, Tensor] = {}
    for i, (x, grad) in enumerate(pairs):
        x = x.detach().requires_grad_()
        y = layer(x)
        assert y.dtype == x.dtype and y.shape == x.shape
        y.backward(grad)
        assert x.grad is not None
        out[f"output {i}"], out[f"input gradient {i}"] = y.detach(), x.grad
    out |= {f"{key} gradient": p.grad for key, p in layer.named_parameters() if p.grad is not None}
    return out | dict(layer.named_buffers())


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        assert ours[key].shape == expected.shape, key
        if expected.numel():
            error = (ours[key].double() - expected.double()).abs().max().item()
            # The floor is for gradients that are 0 but for rounding: one or two values per statistic.
            assert error <= tolerance * max(expected.abs().max().item(), 1e-3), (key, error)


@st.composite
def cases(draw: st.DrawFn, names: tuple[str, ...] = tuple(NAMES), smallest: int = 1) -> Case:
    """Any layer, with a valid shape; ``smallest`` bounds the batch and the spatial sizes from below."""
    name = draw(st.sampled_from(names))
    size, channels = st.integers(smallest, smallest + 3), draw(st.integers(smallest, smallest + 4))
    kwargs: dict[str, Any] = {"eps": draw(st.sampled_from([1e-5, 1e-3, 0.3]))}
    n = draw(size)
    args: tuple[Any, ...] = (channels,)
    if match := re.match("(Batch|Instance)Norm([123])d", name):
        spatial = [draw(size) for _ in range(int(match[2]))]
        kwargs["affine"], kwargs["bias"] = draw(st.booleans()), draw(st.booleans())
        kwargs["track_running_stats"] = draw(st.booleans())
        kwargs["momentum"] = draw(st.sampled_from([None, 0.0, 0.1, 0.37, 1.0]))
        shape = (n, channels, *spatial)
        if name == "BatchNorm1d" and draw(st.booleans()):
            shape = (n + 1, channels)
        values = shape[2:] if match[1] == "Instance" else (shape[0], *shape[2:])
        if all(v == 1 for v in values):  # one value per channel is an error, tested elsewhere
            shape = (*shape[:-1], 4)
        if match[1] == "Instance" and draw(st.booleans()):
            shape = shape[1:]  # no batch axis
    elif name == "GroupNorm":
        groups = draw(st.integers(1, 3))
        args = (groups, groups * channels)
        kwargs["affine"], kwargs["bias"] = draw(st.booleans()), draw(st.booleans())
        shape = (n + 1, groups * channels, *[draw(size) for _ in range(draw(st.integers(0, 3)))])
    else:
        last = tuple(draw(size) + 1 for _ in range(draw(st.integers(1, 3))))
        args = (last if len(last) > 1 else draw(st.sampled_from([last, last[0]])),)
        shape = (*[draw(size) for _ in range(draw(st.integers(1, 2)))], *last)
        kwargs["elementwise_affine"] = draw(st.booleans())
        if name == "LayerNorm":
            kwargs["bias"] = draw(st.booleans())
        elif draw(st.booleans()):
            kwargs["eps"] = None
    layout = draw(st.sampled_from(["contiguous", "channels_last", "transposed", "strided"]))
    return Case(name, args, shape, kwargs, layout, draw(st.booleans()), draw(st.integers(0, 10**6)))


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_that_of_torch(name: str) -> None:
    ours, theirs = (inspect.signature(getattr(module, name)).parameters.values() for module in (norms, nn))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


@pytest.mark.parametrize("name", NAMES)
def test_float64_equals_torch(name: str) -> None:
    @quick
    @given(cases(names=(name,)))
    def check(case: Case) -> None:
        pairs = case.inputs()
        assert_close(run(case.layer(norms), pairs), run(case.layer(nn), pairs), TOLERANCE[torch.float64])

    check()


@pytest.mark.parametrize("name", NAMES)
def test_float32_is_accurate(name: str) -> None:
    # Against torch.nn in float64, so that torch's own rounding is not in the tolerance. At least 3 values a dimension:
    # with two per statistic the exact gradient is almost 0, and a relative tolerance means nothing.
    @settings(quick, max_examples=8)
    @given(cases(names=(name,), smallest=3))
    def check(case: Case) -> None:
        pairs = case.inputs(torch.float32)
        exact = case.layer(nn, torch.float32).double()
        theirs = run(exact, [(x.double(), grad.double()) for x, grad in pairs])
        assert_close(run(case.layer(norms, torch.float32), pairs), theirs, TOLERANCE[torch.float32])

    check()


WITH_KERNEL = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "LayerNorm")


@pytest.mark.parametrize("name", WITH_KERNEL)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_kernels_equal_the_formulas_and_keep_the_memory_format(name: str, dtype: torch.dtype) -> None:
    # in float32 at least 3 values a dimension, see test_float32_is_accurate
    @quick
    @given(cases(names=(name,), smallest=1 if dtype is torch.float64 else 3))
    def check(case: Case) -> None:
        case.kwargs.pop("momentum", None)
        pairs, fused = case.inputs(), case.layer(norms, dtype)
        norms.fuse(fused)
        found = run(fused, [(x.to(dtype), grad.to(dtype)) for x, grad in pairs])
        if case.training and "num_batches_tracked" in found:
            assert found["num_batches_tracked"] == 0  # no kernel for it in a step
            norms.count_batches(fused, len(pairs))
        assert_close(found, run(case.layer(norms), pairs), TOLERANCE[dtype])
        if case.layout == "channels_last" and len(case.shape) == 4 and min(case.shape) > 1 and name != "LayerNorm":
            assert fused(pairs[0][0].to(dtype)).is_contiguous(memory_format=torch.channels_last)

    check()


def test_the_fused_kernels_are_really_taken_and_by_our_own_classes_only(monkeypatch) -> None:
    class Mine(norms.BatchNorm2d):
        pass

    def refuse(*_: Any) -> None:
        raise AssertionError("the formula")

    layers = [norms.BatchNorm2d(4), norms.GhostBatchNorm2d(4, ghost_batch_size=8), norms.GroupNorm(2, 4),
              norms.LayerNorm(5)]  # fmt: skip
    net = nn.ModuleList([*layers, Mine(4), norms.RMSNorm(5)])
    norms.fuse(net)
    monkeypatch.setattr(norms.standardize._Standardize, "apply", refuse)
    for layer in layers:
        layer(torch.randn(8, 4, 5, 5))
    with pytest.raises(AssertionError, match="the formula"):
        net[4](torch.randn(8, 4, 5, 5))
    with pytest.raises(AssertionError, match="the formula"):  # ghost batches have no kernel
        layers[1](torch.randn(16, 4, 5, 5))
    norms.fuse(net, fused=False)
    for layer in layers:
        with pytest.raises(AssertionError, match="the formula"):
            layer(torch.randn(8, 4, 5, 5))


@quick
@given(cases())
def test_state_dict_loads_both_ways_and_repr_is_the_same(case: Case) -> None:
    ours, theirs = case.layer(norms), case.layer(nn)
    run(ours, case.inputs())
    for source, target in ((ours, copy.deepcopy(theirs)), (theirs, copy.deepcopy(ours))):
        target.load_state_dict(source.state_dict(), strict=True)
        assert list(target.state_dict()) == list(source.state_dict())
        for key, value in source.state_dict().items():
            assert torch.equal(target.state_dict()[key], value) and target.state_dict()[key].dtype == value.dtype
    assert repr(ours) == repr(theirs)
    for layer in (ours, theirs):
        layer.reset_parameters()  # type: ignore[operator]
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parameters", ["float32", "half"])
@pytest.mark.parametrize(
    ("name", "args"),
    [("BatchNorm2d", (4,)), ("InstanceNorm2d", (4, 1e-5, 0.1, True, True)), ("GroupNorm", (2, 4)), ("LayerNorm", (5,)),
     ("RMSNorm", (5,))],
)  # fmt: skip
def test_half_precision(name: str, args: tuple, parameters: str, training: bool, half: torch.dtype) -> None:
    case = Case(name, args, (6, 4, 3, 5), training=training)
    dtype = torch.float32 if parameters == "float32" else half
    pairs = case.inputs(half, number=1)
    ours, layer = run(case.layer(norms, dtype), pairs), case.layer(norms, dtype)
    exact = run(case.layer(nn, dtype).double(), [(x.double(), grad.double()) for x, grad in pairs])
    # Statistics in float32: what is left is the rounding of the results (relative 2**-9 or 2**-12), not of the sums.
    rounding = 2.0**-8 if half is torch.bfloat16 else 2.0**-11
    assert_close(ours, exact, rounding)
    if dtype is torch.float32:
        buffers = {key: value for key, value in ours.items() if key.startswith("running")}
        assert_close(buffers, {key: exact[key] for key in buffers}, 1e-5)
        assert all(p.dtype == torch.float32 for p in layer.parameters())


@settings(quick, max_examples=30)
@given(
    cases(names=("BatchNorm2d", "InstanceNorm2d", "GroupNorm", "LayerNorm")),
    st.sampled_from([1, 2, 4]),
)
def test_channels_last_stays_channels_last(case: Case, ghost: int) -> None:
    case.layout = "channels_last"
    if len(case.shape) != 4:
        return
    layers = [case.layer(norms)]
    if case.name == "BatchNorm2d":
        layers.append(norms.GhostBatchNorm2d(*case.args, **case.kwargs, ghost_batch_size=case.shape[0]))
        if case.shape[2] * case.shape[3] > 1 and case.shape[0] % ghost == 0:
            layers.append(norms.GhostBatchNorm2d(*case.args, **case.kwargs, ghost_batch_size=ghost))
    for layer in layers:
        x = case.inputs()[0][0].requires_grad_()
        y = layer.double()(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        y.sum().backward()
        assert x.grad is not None and x.grad.is_contiguous(memory_format=torch.channels_last)


BN, IN = {"affine": True}, {"affine": True, "track_running_stats": True}
BAD_OR_EMPTY: list[tuple[str, tuple, dict[str, Any], tuple[int, ...]]] = [
    *[("BatchNorm1d", (3,), BN, s) for s in [(3,), (2, 3, 4, 5), (2, 4), (1, 3), (1, 3, 1), (0, 3), (0, 3, 4),
                                             (2, 3, 0), (1, 3, 2), (2, 3)]],
    *[("BatchNorm2d", (3,), BN, s) for s in [(2, 3), (2, 3, 4), (2, 4, 3, 3), (1, 3, 1, 1), (0, 3, 4, 4),
                                             (2, 3, 0, 4)]],
    *[("BatchNorm3d", (3,), BN, s) for s in [(2, 3, 4, 4), (2, 4, 2, 2, 2), (1, 3, 1, 1, 1), (0, 3, 2, 2, 2)]],
    *[("BatchNorm1d", (3,), {"affine": False, "track_running_stats": False}, s) for s in [(2, 4), (1, 3), (0, 3)]],
    # one channel would broadcast
    *[("BatchNorm1d", (c,), k, s) for k in (BN, {"affine": False}) for c, s in ((1, (2, 4)), (3, (2, 1, 4)))],
    *[("InstanceNorm1d", (c,), IN, s) for c, s in ((1, (2, 4, 4)), (3, (2, 1, 4)), (3, (1, 4)))],
    ("InstanceNorm1d", (3,), {"track_running_stats": True}, (2, 1, 4)),
    *[("GroupNorm", (1, c), {}, s) for c, s in ((1, (2, 4)), (3, (2, 1, 4)))],
    *[("BatchNorm2d", (3,), {"eps": eps}, (2, 3, 2, 2)) for eps in (0.0, -1.0)],
    *[("InstanceNorm1d", (3,), k, s) for k in (IN, {}, {"affine": True}, {"track_running_stats": True})
      for s in [(3,), (2, 3, 4, 4), (4, 4), (2, 4, 4), (2, 3, 1), (3, 1), (0, 3, 4), (2, 3, 0), (3, 4), (3, 0)]],
    *[("InstanceNorm2d", (3,), k, s) for k in (IN, {})
      for s in [(3, 4), (2, 4, 3, 3), (2, 3, 1, 1), (0, 3, 2, 2), (2, 3, 0, 4), (3, 2, 2)]],
    *[("InstanceNorm3d", (3,), IN, s) for s in [(3, 4, 4), (3, 2, 2, 2), (1, 3, 1, 1, 1)]],
    *[("GroupNorm", (g, 4), k, s) for g in (1, 2, 4) for k in ({}, {"affine": False})
      for s in [(0, 4), (0, 4, 3), (2, 4, 0), (2, 5, 3), (4,), (), (2, 8), (1, 4), (1, 4, 1)]],
    *[("GroupNorm", (g, 4), {}, (2, 4)) for g in (3, 0, -2)],
    *[(name, (4,), {}, s) for name in ("LayerNorm", "RMSNorm") for s in [(2, 0), (2, 5), (), (4,), (0, 4), (1, 4)]],
    *[(name, (shape,), {}, (2, 0)) for name in ("LayerNorm", "RMSNorm") for shape in ((0,), ())],
]  # fmt: skip


def outcome(case: Case, module: Any, dtype: torch.dtype = torch.float64) -> Any:
    """The type of the error, or the shape of the output, its gradients and its running statistics."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = case.layer(module)
            x = torch.ones(case.shape, dtype=dtype, requires_grad=dtype.is_floating_point)
            y = layer(x)
        y.sum().backward()
        state = {k: v.isnan().any().item() or v.tolist() for k, v in layer.named_buffers() if x.numel() == 0}
        if x.numel() == 0 and x.size(0) == 0 and "Instance" in case.name:
            state = {}  # torch.nn.InstanceNorm makes its running statistics nan here; ours leaves them
        grads = [p.grad.tolist() for p in layer.parameters() if p.grad is not None and x.numel() == 0]
        return y.shape, y.dtype, y.isnan().any().item(), state, grads, [w.category for w in caught]
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "args", "kwargs", "shape"), BAD_OR_EMPTY)
def test_errors_and_empty_batches_as_torch(name: str, args: tuple, kwargs: dict, shape: tuple, training: bool) -> None:
    case = Case(name, args, shape, kwargs, training=training)
    assert outcome(case, norms) == outcome(case, nn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(
    ("name", "args"), [("BatchNorm1d", (3,)), ("InstanceNorm1d", (3, 1e-5, 0.1, True)), ("GroupNorm", (1, 3))]
)
def test_mixed_dtypes_fail_as_in_torch(name: str, args: tuple, dtype: torch.dtype) -> None:
    case = Case(name, args, (2, 3, 4))  # float64 parameters
    ours, theirs = outcome(case, norms, dtype), outcome(case, nn, dtype)
    assert issubclass(ours, RuntimeError) and issubclass(ours, theirs)


@pytest.mark.parametrize(("n", "positions"), [(1, 6), (2, 1)])
def test_the_fewest_values_that_batch_norm_takes(n: int, positions: int) -> None:
    case = Case("BatchNorm1d", (3,), (n, 3, positions))
    assert_close(run(case.layer(norms), case.inputs()), run(case.layer(nn), case.inputs()), 1e-9)


def test_switching_tracking_off_later() -> None:
    for name, shape in (("BatchNorm2d", (4, 3, 2, 2)), ("InstanceNorm2d", (4, 3, 2, 2))):
        case = Case(name, (3,), shape, {"track_running_stats": True})
        for training in (True, False):
            layers = [case.layer(module).train(training) for module in (norms, nn)]
            for layer in layers:
                layer.track_running_stats = False  # type: ignore[assignment]
            assert_close(run(layers[0], case.inputs()), run(layers[1], case.inputs()), 1e-9)


# --- identities between the norms -------------------------------------------------------------------------------------


def same_parameters(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict({k: v.reshape(target.state_dict()[k].shape) for k, v in source.state_dict().items()})


@quick
@given(st.integers(1, 4), st.integers(1, 5), st.integers(2, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_group_norm_contains_instance_and_layer_norm(n: int, c: int, h: int, w: int, seed: int) -> None:
    instance = Case("InstanceNorm2d", (c,), (n, c, h, w), {"affine": True}, seed=seed)
    pairs = instance.inputs()
    group, one = norms.GroupNorm(c, c, dtype=torch.float64), norms.GroupNorm(1, c, dtype=torch.float64)
    reference = instance.layer(norms)
    same_parameters(reference, group)
    assert_close(run(group, pairs), run(reference, pairs), 1e-9)
    layer = norms.LayerNorm((c, h, w), dtype=torch.float64, elementwise_affine=False)
    same_parameters(reference, one)
    assert one.weight is not None and one.bias is not None
    expected = layer(pairs[0][0]) * one.weight.view(-1, 1, 1) + one.bias.view(-1, 1, 1)
    assert_close({"y": one(pairs[0][0])}, {"y": expected}, 1e-9)


@quick
@given(st.integers(1, 5), st.integers(2, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_batch_norm_of_one_example_is_instance_norm(c: int, h: int, w: int, seed: int) -> None:
    kwargs = {"affine": True, "track_running_stats": True}
    batch, instance = (Case(f"{k}Norm2d", (c,), (1, c, h, w), kwargs, seed=seed) for k in ("Batch", "Instance"))
    ours, theirs = run(batch.layer(norms), batch.inputs()), run(instance.layer(norms), batch.inputs())
    del ours["num_batches_tracked"], theirs["num_batches_tracked"]  # instance norm does not count, as in torch.nn
    assert_close(ours, theirs, 1e-9)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "strided"])
@pytest.mark.parametrize(("groups", "size", "spatial"), [(1, 4, (3, 2)), (3, 2, (3, 2)), (4, 1, (2, 2)), (2, 3, ())])
@pytest.mark.parametrize("momentum", [0.3, None])
def test_ghost_batches_are_separate_batch_norms(
    groups: int, size: int, spatial: tuple[int, ...], layout: str, momentum: float | None
) -> None:
    name = "BatchNorm2d" if spatial else "BatchNorm1d"
    shape = (groups * size, 3, *spatial)
    case = Case(name, (3,), shape, {"momentum": momentum}, layout)
    ghost = Case("Ghost" + name, (3,), shape, {"momentum": momentum, "ghost_batch_size": size}, layout).layer(norms)
    reference, pairs = case.layer(nn), case.inputs(number=1)
    parts = [copy.deepcopy(reference) for _ in range(groups)]
    ours = run(ghost, pairs)
    chunks = list(zip(pairs[0][0].split(size), pairs[0][1].split(size), strict=True))
    theirs = [run(part, [chunk]) for part, chunk in zip(parts, chunks, strict=True)]
    expected: dict[str, Tensor] = {}
    for key in theirs[0]:
        values = [t[key] for t in theirs]
        if key.endswith("0"):
            expected[key] = torch.cat(values)
        elif key.endswith("gradient"):
            expected[key] = torch.stack(values).sum(0)
        elif key.startswith("running"):  # linear in the groups' statistics
            expected[key] = torch.stack(values).mean(0)
        else:
            expected[key] = values[0]
    assert_close(ours, expected, 1e-9)
    ghost.eval()
    reference.load_state_dict(ghost.state_dict(), strict=True)
    assert_close(run(ghost, pairs), run(reference.eval(), pairs), 1e-9)


def test_ghost_batch_sizes() -> None:
    ghost = norms.GhostBatchNorm1d(3, ghost_batch_size=4)
    assert "ghost_batch_size=4" in repr(ghost)
    assert_close({"y": ghost(x := torch.randn(3, 3))}, {"y": nn.BatchNorm1d(3)(x)}, 1e-5)  # smaller: one group
    assert ghost(torch.zeros(0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match="^batch size 6 is neither divisible by ghost_batch_size 4 nor smaller"):
        ghost(torch.randn(6, 3))
    assert ghost.eval()(torch.randn(6, 3)).shape == (6, 3)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norms.GhostBatchNorm1d(3, ghost_batch_size=1)(torch.randn(4, 3))
    with pytest.raises(ValueError, match="at least 1"):
        norms.GhostBatchNorm2d(3, ghost_batch_size=0)
    with pytest.raises(ValueError, match="expected 4D input"):
        norms.GhostBatchNorm2d(3, ghost_batch_size=2)(torch.randn(4, 3))


@pytest.mark.parametrize(
    ("layer", "changes"),
    [
        (norms.BatchNorm2d(4), True),
        (norms.BatchNorm2d(4).eval(), False),
        (norms.GhostBatchNorm2d(4, ghost_batch_size=2), False),  # the companions outside of the ghost batch
        (norms.GhostBatchNorm2d(4, ghost_batch_size=4), True),
        (norms.InstanceNorm2d(4), False),
        (norms.GroupNorm(2, 4), False),
        (norms.LayerNorm((4, 3, 3)), False),
        (norms.RMSNorm(3), False),
    ],
)
def test_companions_in_the_batch_change_only_batch_norm(layer: nn.Module, changes: bool) -> None:
    x = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    other = torch.cat([x[:2], 5 * x[2:] + 1])
    assert torch.allclose(layer(x)[:2], layer(other)[:2]) is not changes


# --- transforms -------------------------------------------------------------------------------------------------------


def test_per_example_gradients() -> None:
    layer = norms.BatchNorm2d(3, track_running_stats=False, dtype=torch.float64)
    xs = torch.randn(4, 5, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(x: Tensor) -> Tensor:
        return layer(x).tanh().square().sum()

    per_example = torch.func.vmap(torch.func.grad(loss))(xs)
    for x, grad in zip(xs, per_example, strict=True):
        assert torch.allclose(torch.func.grad(loss)(x), grad)
    x = xs[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert torch.allclose(first, per_example[0])
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


# --- namespace --------------------------------------------------------------------------------------------------------


def test_namespace_imports() -> None:
    assert norms.namespace("torch.nn", ("BatchNorm2d",)) is nn
    assert norms.namespace("normbook.norms", tuple(NAMES)) is norms


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "torch.n",
            "norm namespace 'torch.n' cannot be imported (No module named 'torch.n'); did you mean 'torch.nn'?",
        ),
        ("", "norm namespace '' cannot be imported (ValueError: Empty module name)"),
        (".norms", None),
        ("user_raises", "norm namespace 'user_raises' cannot be imported (ZeroDivisionError: division by zero)"),
        ("user_exits", "norm namespace 'user_exits' cannot be imported (SystemExit: 3)"),
        ("user_syntax", None),
        ("user_lines", "norm namespace 'user_lines' cannot be imported (two lines)"),
        ("user_empty", "norm namespace 'user_empty' has no class 'BatchNorm2d' (needed: BatchNorm1d, BatchNorm2d)"),
    ],
)
def test_namespace_errors_are_one_line(
    name: str, text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stem, code in {
        "user_raises": "1 / 0",
        "user_exits": "raise SystemExit(3)",
        "user_syntax": "def f(:\n",
        "user_lines": "raise ImportError('two\\nlines')",
        "user_empty": "class BatchNorm1d: pass\nBatchNorm2d = 'not a class'\n",
    }.items():
        (tmp_path / f"{stem}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError) as caught:
        norms.namespace(name, ("BatchNorm1d", "BatchNorm2d"))
    message = str(caught.value)
    assert message.startswith(f"norm namespace {name!r} ") and "\n" not in message
    assert text is None or message == text
