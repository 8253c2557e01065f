"""normbook.models: every arm, one net a run or many runs in one net, and the draws that all arms share."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normbook import models, norms
from normbook.errors import InputError
from normbook.models import ARMS, CNN, MLP, Linear, ResidualBlock, ResNet, Scalar, WideResNet, initialize

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
NORMED = {name for name, arm in ARMS.items() if arm.norm or arm.norm_logits or arm.norm_features}
SKIPPING = [name for name, arm in ARMS.items() if arm.skip]
KINDS = ("wrn", "resnet", "cnn", "mlp")
FLAT = ("layer_norm_detached", "rms_norm")  # norms that exist for fully connected nets only
ORDINARY = [name for name in ARMS if not ARMS[name].residual]  # arms that any network can have
MADE = [(kind, arm) for kind in KINDS for arm in (ARMS if kind in ("wrn", "mlp") else ORDINARY)]
MADE = [(kind, arm) for kind, arm in MADE if kind == "mlp" or arm not in FLAT]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise_from(net, seeds):
    """Let each run of a net draw its noise from its own seed."""
    own = generators(*seeds)
    for layer in net.modules():
        if isinstance(layer, models.Random):
            layer.generators = own
    return net


def wrn(arm, seeds=(0,), depth=10, width=0.5, dropout=0.0, channels=1):
    net = WideResNet(depth, width, channels, 10, replace(ARMS[arm], dropout=dropout), norms, len(seeds))
    initialize(net, ARMS[arm], generators(*seeds))
    return net.double()


def mlp(arm, seeds=(0,), depth=3, width=12, dropout=0.0, activation="relu"):
    net = MLP(depth, width, 36, 10, replace(ARMS[arm], dropout=dropout), norms, len(seeds), activation)
    initialize(net, ARMS[arm], generators(*seeds))
    return net.double()


def plain(kind, arm, seeds=(0,), depth=8, width=0.5, dropout=0.0):
    """A ResNet or a plain CNN."""
    net = {"resnet": ResNet, "cnn": CNN}[kind](
        depth, width, 1, 10, replace(ARMS[arm], dropout=dropout), norms, len(seeds)
    )
    initialize(net, ARMS[arm], generators(*seeds))
    return net.double()


def make(kind, arm, seeds=(0,), **options):
    if kind in ("resnet", "cnn"):
        return plain(kind, arm, seeds, **options)
    return (wrn if kind == "wrn" else mlp)(arm, seeds, **options)


def stir(net, seeds):
    """Move every parameter, run by run, so that what starts at zero does not hide a leak or a missing term."""
    with torch.no_grad():
        for parameter in net.parameters():
            parts = [torch.randn(parameter.numel() // len(seeds), generator=g) for g in generators(*seeds)]
            parameter.add_(0.1 * torch.stack(parts).view(parameter.shape).double())
    return net


def images(members, batch=5, channels=1, seed=7):
    """Different images for each run: [batch, M * channels, 6, 6]."""
    return torch.randn(batch, members * channels, 6, 6, generator=generators(seed)[0]).double()


def layers(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | Linear)]


def batch_norms(net):
    return [name for name, m in net.named_modules() if "Norm" in type(m).__name__]


def blocks(net):
    return [m for m in net.modules() if isinstance(m, ResidualBlock)]


@pytest.mark.parametrize("depth, per_stage", [(10, 1), (16, 2), (22, 3), (100, 16)])
def test_wrn_of_depth_6b_plus_4_has_half_of_n_minus_4_blocks_of_two_convolutions(depth, per_stage):
    net = WideResNet(depth, 0.0625, 1, 10, ARMS["none"], norms)
    assert len(blocks(net)) == 3 * per_stage == (depth - 4) // 2
    counted = [m for b in blocks(net) for m in (b.conv1, b.conv2)] + [net.stem, net.linear]
    assert len(counted) == depth - 2  # Zagoruyko & Komodakis count the two strided 1x1 projections too


@pytest.mark.parametrize("depth", [4, 9, 11, 15, 17, 98, 101, -2])
def test_another_wrn_depth_is_bad_input(depth):
    with pytest.raises(InputError, match=f"depth {depth} is not 6"):
        WideResNet(depth, 1, 1, 10, ARMS["none"], norms)


@pytest.mark.parametrize("width", [0, -1, 0.3, math.nan, math.inf])
def test_a_width_without_whole_channels_is_bad_input(width):
    with pytest.raises(InputError, match="width"):
        WideResNet(10, width, 1, 10, ARMS["none"], norms)


def test_stages_have_16k_32k_and_64k_channels_at_full_half_and_quarter_resolution():
    net = wrn("none", depth=16, width=2)
    x, shapes = net.stem(torch.zeros(1, 1, 8, 8).double()), []
    for block in net.blocks:
        x = block(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 8, 8)] * 2 + [(64, 4, 4)] * 2 + [(128, 2, 2)] * 2
    assert net.stem.out_channels == 16


@pytest.mark.parametrize(("kind", "arm"), MADE)
def test_every_arm_runs_and_gives_finite_logits_for_each_run(kind, arm):
    logits = make(kind, arm, (0, 1))(images(2))
    assert logits.shape == (5, 2, 10) and bool(torch.isfinite(logits).all())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("kind", "arm"), MADE)
def test_a_run_in_a_bundle_equals_the_same_run_alone_in_logits_and_gradients(kind, arm, training):
    seeds, x = (3, 4), images(2)
    cotangent = torch.randn(5, 10, generator=generators(1)[0]).double()
    together = noise_from(stir(make(kind, arm, seeds), seeds).train(training), seeds)
    logits = together(x)
    (logits * cotangent[:, None]).sum().backward()
    for m, seed in enumerate(seeds):
        alone = noise_from(stir(make(kind, arm, (seed,)), (seed,)).train(training), (seed,))
        expected = alone(x.unflatten(1, (2, -1))[:, m])
        (expected[:, 0] * cotangent).sum().backward()
        assert torch.allclose(logits[:, m], expected[:, 0], rtol=1e-9, atol=1e-9)
        for (name, p), q in zip(together.named_parameters(), alone.parameters(), strict=True):
            if p.requires_grad:
                assert torch.allclose(p.grad.view(2, -1)[m], q.grad.flatten(), rtol=1e-7, atol=1e-9), name


@pytest.mark.parametrize("arm", ["batch_norm", "fixup", "batch_norm_logits", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_into_one_run_reaches_no_other_run(kind, arm):
    seeds, x = (3, 4), images(2)
    net = stir(make(kind, arm, seeds), seeds)
    before = net(x)
    other = x.clone()
    other[:, 0] *= -2
    after = net(other)
    assert not torch.equal(before[:, 0], after[:, 0]) and torch.equal(before[:, 1], after[:, 1])
    for parameter in net.parameters():
        parameter.data.view(2, -1)[0] += 1
    moved = net(x)
    assert not torch.equal(before[:, 0], moved[:, 0]) and torch.equal(before[:, 1], moved[:, 1])


@pytest.mark.parametrize("arm, per_stage, expected", [
    ("skipinit_0", 1, 0.0), ("skipinit_0_biases", 1, 0.0), ("skipinit_1", 1, 1.0), ("skipinit_rsqrt_d", 1, 3**-0.5),
    ("skipinit_rsqrt_d", 2, 6**-0.5), ("skipinit_rsqrt_d_fixed", 2, 6**-0.5),
])  # fmt: skip
def test_skipinit_starts_at_zero_one_or_one_over_root_d_and_is_learned_unless_fixed(arm, per_stage, expected):
    net = wrn(arm, (0, 1), depth=6 * per_stage + 4)
    for block in blocks(net):
        assert block.scale.weight.tolist() == pytest.approx([expected] * 2)
        assert block.scale.weight.requires_grad == (arm != "skipinit_rsqrt_d_fixed")
        assert block.scale.fixup is False  # it takes the full learning rate


def test_an_arm_has_a_scalar_on_its_branches_only_where_it_declares_one():
    for name, arm in ((name, ARMS[name]) for kind, name in MADE if kind == "wrn"):
        scaled = [block.scale is not None for block in blocks(wrn(name))]
        assert scaled == [arm.alpha is not None or arm.multiplier] * 3, name


def branch_of(block, x):
    """f(x) = Conv-ReLU-Conv-ReLU written out, for arms without norm, biases and scalars."""
    hidden = F.conv2d(F.relu(x), block.conv1.weight, stride=block.conv1.stride, padding=1, groups=block.conv1.groups)
    return F.conv2d(F.relu(hidden), block.conv2.weight, padding=1, groups=block.conv2.groups)


@pytest.mark.parametrize("arm, alpha, divide, skip", [
    ("none", 1, 1, 1), ("divide_sqrt2", 1, math.sqrt(2), 1), ("skipinit_1", 1, 1, 1), ("skipinit_0", 0, 1, 1),
    ("skipinit_rsqrt_d", 3**-0.5, 1, 1), ("no_skip", 1, 1, 0),
])  # fmt: skip
def test_a_block_computes_skip_plus_alpha_times_branch_over_divide(arm, alpha, divide, skip):
    for block in blocks(wrn(arm)):
        x = torch.randn(2, block.conv1.in_channels, 4, 4, generator=generators(3)[0]).double()
        path = x
        if block.conv1.in_channels != block.conv1.out_channels:
            projected = block.project is not None
            assert projected == bool(skip)
            path = F.conv2d(F.relu(x), block.project.weight, stride=2) if projected else 0
        expected = (skip * path + alpha * branch_of(block, x)) / divide
        assert torch.allclose(block(x), expected, rtol=1e-6, atol=1e-7)


def test_dividing_by_root_two_is_exactly_the_plain_block_over_root_two():
    plain, divided = blocks(wrn("none"))[0], blocks(wrn("divide_sqrt2"))[0]
    x = torch.randn(2, 8, 4, 4, generator=generators(3)[0]).double()
    assert torch.equal(divided(x), plain(x) / math.sqrt(2))


@pytest.mark.parametrize("arm", ["skipinit_0", "fixup", "fixup_zero_last"])
def test_a_same_shape_block_is_the_identity_at_initialization(arm):
    block = blocks(wrn(arm, (0, 1), depth=16))[0]
    x = torch.randn(2, 16, 4, 4, generator=generators(3)[0]).double()
    assert torch.equal(block(x), x)


def test_batch_norm_stands_before_each_nonlinearity_of_a_block():
    for block in blocks(wrn("batch_norm")):
        for part in (block.activate1, block.activate2):
            assert [type(m).__name__ for m in part] == ["BatchNorm2d", "ReLU"]


@pytest.mark.parametrize("kind", KINDS)
def test_arms_without_norm_hold_no_norm_module_at_all(kind):
    for name in set(ARMS) - NORMED:
        assert batch_norms(make(kind, name)) == [], name


def test_arms_with_norm_hold_as_many_as_they_declare():
    # three blocks with two norms each, and one behind the last block
    one, all_ = ("batch_norm_logits", "batch_norm_features"), ("batch_norm", "batch_norm_no_skip", "batch_norm_noisy")
    expected = dict.fromkeys(one, 1) | dict.fromkeys((*all_, "batch_norm_no_affine", "batch_norm_borrowed"), 7)
    expected |= {"batch_norm_all": 8}
    batch = {name for name in NORMED if ARMS[name].norm in ("", "batch")}
    assert {name: len(batch_norms(wrn(name))) for name in sorted(batch)} == expected
    assert batch_norms(wrn("batch_norm_logits")) == ["norm_logits"]
    assert batch_norms(wrn("batch_norm_features")) == ["head.0"]


def test_norm_on_the_logits_normalizes_the_logits():
    net = wrn("batch_norm_logits", (0, 1))
    logits = net(images(2, batch=50))
    assert torch.allclose(logits.mean(0), torch.zeros(2, 10).double(), atol=1e-9)
    assert torch.allclose(logits.var(0, correction=0), torch.ones(2, 10).double(), atol=1e-2)


def test_norms_come_from_the_namespace_that_is_handed_in():
    net = WideResNet(10, 0.5, 1, 10, ARMS["batch_norm"], nn)
    assert sum(type(m) is nn.BatchNorm2d for m in net.modules()) == 7


def test_fixup_zeroes_the_last_convolution_of_each_branch_and_the_classifier_and_nothing_else():
    for arm in ("fixup", "fixup_zero_last"):
        net = wrn(arm, (0, 1))
        zeroed = [*(block.conv2 for block in blocks(net)), net.linear]
        for layer in layers(net):
            assert bool((layer.weight == 0).all()) == any(layer is z for z in zeroed)


@pytest.mark.parametrize("arm", ["fixup", "fixup_depth_scale"])
def test_fixup_scales_the_first_convolution_of_each_branch_by_one_over_root_d(arm):
    net, plain = wrn(arm, depth=16), wrn("none", depth=16)
    for ours, theirs in zip(blocks(net), blocks(plain), strict=True):
        assert torch.allclose(ours.conv1.weight, theirs.conv1.weight * 6**-0.5, rtol=1e-6)
    assert torch.equal(net.stem.weight, plain.stem.weight)


def test_fixup_has_a_bias_before_each_convolution_activation_and_the_classifier_and_one_multiplier_a_branch():
    net = wrn("fixup", (0, 1))
    for block in blocks(net):
        for part in (block.activate1, block.activate2):
            assert [type(m).__name__ for m in part] == ["Plus", "ReLU", "Plus"]
        assert isinstance(block.scale, models.Times) and block.scale.weight.tolist() == [1.0, 1.0]
    scalars = [m for m in net.modules() if isinstance(m, Scalar)]
    assert len(scalars) == 3 * 5 + 2 and all(m.fixup and m.weight.requires_grad for m in scalars)
    assert all(m.weight.tolist() == [0.0, 0.0] for m in scalars if isinstance(m, models.Plus))
    assert isinstance(net.head[0], models.Plus) and isinstance(net.before_linear, models.Plus)


def test_only_the_arm_with_biases_has_convolution_biases_and_they_start_at_zero():
    for name in (arm for kind, arm in MADE if kind == "wrn"):
        biases = [m.bias for m in wrn(name).modules() if isinstance(m, nn.Conv2d)]
        if name == "skipinit_0_biases":
            assert all(b is not None and not b.any() for b in biases)
        else:
            assert all(b is None for b in biases), name


@pytest.mark.parametrize("arm", [arm for kind, arm in MADE if kind == "wrn"])
def test_all_arms_of_a_seed_share_the_draws_of_every_layer_they_have(arm):
    ours, theirs = (dict(wrn(name, (8, 9)).named_modules()) for name in (arm, "none"))
    compared = 0
    for name, layer in ours.items():
        if isinstance(layer, nn.Conv2d | Linear) and bool(layer.weight.any()):  # Fixup zeroes some
            factor = 3**-0.5 if ARMS[arm].depth_scale and name.endswith("conv1") else 1.0
            assert torch.allclose(layer.weight, theirs[name].weight * factor, rtol=1e-6), name
            compared += 1
    assert compared >= 6


def test_mlp_layers_share_their_draws_between_the_arms_with_and_without_norm():
    plain, normed = layers(mlp("none")), layers(mlp("batch_norm"))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(plain, normed, strict=True))


def test_seeds_differ_and_are_reproducible():
    first, again, other = (wrn("none", (seed,)) for seed in (1, 1, 2))
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(layers(first), layers(again), strict=True))
    assert not any(torch.equal(a.weight, b.weight) for a, b in zip(layers(first), layers(other), strict=True))


def test_weights_have_he_variance_and_the_classifier_one_over_fan_in():
    net = wrn("none", tuple(range(8)), width=2)
    perceptron = mlp("none", tuple(range(8)), width=50)
    for layer in layers(net) + layers(perceptron):
        classifier = layer is net.linear or layer is perceptron.layers[-1]
        weight = layer.weight.detach()
        unit = weight * math.sqrt(weight[0].numel() / (1 if classifier else 2))
        assert abs(float(unit.square().mean()) - 1) < 5 * math.sqrt(2 / unit.numel())  # 5 standard errors
        assert abs(float(unit.mean())) < 5 / math.sqrt(unit.numel())
        assert layer.bias is None or not layer.bias.any()


def test_he_initialization_keeps_the_second_moment_through_relu_layers():
    width, x = 400, torch.randn(200, 400, generator=generators(0)[0])
    net = MLP(6, width, width, 10, ARMS["none"], norms)
    initialize(net, ARMS["none"], generators(1))
    moments = []
    for layer in net.layers[:-2]:  # up to the dropout before the classifier
        x = layer(x)
        if isinstance(layer, Linear):
            moments.append(float(x.detach().square().mean()))
    assert moments == pytest.approx([2.0] * 5, rel=0.25)  # inputs of variance 1 are not rectified: twice from there on


def test_dropout_of_a_wrn_acts_on_the_features_before_the_classifier_and_in_training_only():
    net, plain = wrn("none", dropout=0.5), wrn("none")
    x, seen = images(1), []
    net.linear.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    net.train()(x)
    features = plain.before_linear(plain.head(plain.blocks(plain.stem(x)))).detach()
    kept = seen[0] != 0
    assert torch.allclose(seen[0][kept], 2 * features[kept]) and 0.2 < float(kept.double().mean()) < 0.8
    assert torch.equal(net.eval()(x), plain.eval()(x))


def test_dropout_of_an_mlp_stands_before_its_last_layer():
    names = [type(m).__name__ for m in mlp("batch_norm", dropout=0.3).layers]
    assert names == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"]
    assert mlp("none", dropout=0.3).layers[-2].probability == 0.3


def test_mlp_norm_stands_between_the_linear_map_and_the_nonlinearity_and_behind_the_last_map_only_when_asked():
    names = [type(m).__name__ for m in mlp("batch_norm_logits", activation="sigmoid").layers]
    assert names == ["Linear", "Sigmoid", "Linear", "Sigmoid", "Linear", "BatchNorm1d"]


def test_mlp_depth_counts_the_linear_layers_and_the_hidden_ones_have_the_width():
    shapes = [tuple(layer.weight.shape) for layer in layers(mlp("none", (0, 1), depth=4, width=12))]
    assert shapes == [(24, 36), (24, 12), (24, 12), (20, 12)]


def test_an_unknown_activation_is_bad_input():
    with pytest.raises(InputError, match="unknown activation 'rely'; did you mean 'relu'"):
        mlp("none", activation="rely")


def test_a_linear_layer_is_one_linear_map_a_run():
    layer = Linear(3, 2, members=2)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(4, 3, generator=generators(0)[0]))
        layer.bias.copy_(torch.arange(4.0))
    x = torch.randn(5, 6, generator=generators(1)[0])
    expected = [F.linear(x[:, 3 * m : 3 * m + 3], layer.weight[2 * m : 2 * m + 2], layer.bias[2 * m : 2 * m + 2])
                for m in range(2)]  # fmt: skip
    assert torch.allclose(layer(x), torch.cat(expected, 1), atol=1e-6)


def test_scalars_act_on_all_channels_of_their_own_run():
    x = torch.ones(1, 4, 2, 2)
    times, plus = models.Times(2, 1.0), models.Plus(2, 0.0)
    with torch.no_grad():
        times.weight.copy_(torch.tensor([2.0, 3.0]))
        plus.weight.copy_(torch.tensor([5.0, 6.0]))
    assert times(x)[0, :, 0, 0].tolist() == [2.0, 2.0, 3.0, 3.0]
    assert plus(x)[0, :, 1, 1].tolist() == [6.0, 6.0, 7.0, 7.0]
    assert times(torch.ones(1, 4))[0].tolist() == [2.0, 2.0, 3.0, 3.0]


def test_every_arm_that_names_a_skip_has_the_same_layers_as_the_plain_arm():
    plain = [tuple(layer.weight.shape) for layer in layers(wrn("none"))]
    for name in (arm for kind, arm in MADE if kind == "wrn" and arm in SKIPPING):
        assert [tuple(layer.weight.shape) for layer in layers(wrn(name))] == plain, name


@pytest.mark.parametrize(("depth", "blocks"), [(8, 3), (20, 9), (110, 54)])
def test_resnet_of_depth_6k_plus_2_has_3k_blocks_and_no_parameters_on_its_skip_paths(depth, blocks):
    net = ResNet(depth, 0.0625, 1, 10, ARMS["none"], norms)
    assert len(net.blocks) == blocks
    assert len(layers(net)) == depth
    assert all(layer.weight.shape[-1] in (3, 1) for layer in layers(net)[:-1])


def test_a_new_resnet_stage_skips_by_every_other_pixel_and_zero_channels():
    block = models.resnet.BasicBlock(2, 4, 2, ARMS["none"], 2, norms).double()
    nn.init.zeros_(block.conv2.weight)
    x = images(2, channels=2).abs()
    y = block(x).unflatten(1, (2, 4))
    assert torch.equal(y[:, :, :2], x[:, :, ::2, ::2].unflatten(1, (2, 2))) and not y[:, :, 2:].any()


@pytest.mark.parametrize(("made", "depth", "width"), [
    (ResNet, 9, 1), (ResNet, 2, 1), (ResNet, 8, 0.03), (CNN, 3, 1), (CNN, 0, 1), (CNN, 4, 0.01),
])  # fmt: skip
def test_another_depth_or_width_is_bad_input(made, depth, width):
    with pytest.raises(InputError, match="depth|width"):
        made(depth, width, 1, 10, ARMS["none"], norms)


@pytest.mark.parametrize(("arm", "made"), [("layer_norm", nn.LayerNorm), ("rms_norm", nn.RMSNorm)])
def test_the_per_example_norms_of_an_mlp_are_torchs_for_each_run(arm, made):
    (norm,) = models.layers.norm_layer(ARMS[arm], 6, 2, norms, 2)
    x = torch.randn(5, 12, generator=generators(0)[0])
    stir(norm.double(), (0, 1))
    for m in range(2):
        reference = made(6, eps=1e-5).double() if made is nn.LayerNorm else made(6).double()
        mine = slice(6 * m, 6 * m + 6)
        reference.weight.data = norm.weight.data[mine]
        if norm.bias is not None:
            reference.bias.data = norm.bias.data[mine]
        assert torch.allclose(norm(x.double())[:, mine], reference(x[:, mine].double()), rtol=1e-9)


def test_detached_layer_norm_has_layer_norms_values_and_another_gradient():
    x = torch.randn(4, 6, generator=generators(0)[0]).double().requires_grad_()
    w = torch.randn(4, 6, generator=generators(1)[0]).double()
    ours, theirs = models.layers.DetachedLayerNorm()(x), F.layer_norm(x, (6,))
    assert torch.allclose(ours, theirs)
    (gradient,) = torch.autograd.grad((ours * w).sum(), x)
    assert torch.allclose(gradient, w / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt())


def test_layer_norm_on_images_is_over_channels_and_pixels_of_one_run():
    (norm,) = models.layers.norm_layer(ARMS["layer_norm"], 3, 2, norms, 4)
    x = images(2, channels=3)
    expected = [F.layer_norm(part, part.shape[1:]) for part in x.split(3, 1)]
    assert torch.allclose(norm.double()(x), torch.cat(expected, 1))


@pytest.mark.parametrize("dims", [2, 4])
def test_ghost_batch_norm_of_another_namespace_equals_ours(dims):
    arm = replace(ARMS["batch_norm"], ghost_batch_size=4)
    ours, theirs = (models.layers.batch_norm(arm, 3, space, dims).double() for space in (norms, nn))
    assert isinstance(theirs, models.layers.Ghosts)
    x = torch.randn(12, 3, *[5] * (dims - 2), generator=generators(0)[0]).double()
    assert torch.allclose(ours(x), theirs(x))
    # three calls of momentum 1 - 0.9^(1/3) leave 0.9 of the old statistics, as one call of 0.1 does
    steady = torch.ones(12, 3, *[5] * (dims - 2)).double()
    ours(steady), theirs(steady)
    assert torch.allclose(ours.running_mean, theirs.norm.running_mean, atol=0.02)
    assert torch.equal(theirs.eval()(x), theirs.norm(x))


def test_moving_noise_shifts_features_by_step_and_examples_a_little():
    noise = noise_from(models.layers.MovingNoise(), (0,))
    x = torch.zeros(2000, 30)
    first, second = noise(x), noise(x)
    spread = first.mean(0)
    assert 0.7 < spread.abs().max() < 0.76 and spread.std() > 0.35  # mu ~ U(-0.75, 0.75): sd 0.43
    assert not torch.allclose(spread, second.mean(0), atol=0.05)
    assert float((first - spread).abs().max()) < 0.11
    scale = (noise(torch.full((2000, 30), 100.0)).mean(0)) / 100
    assert scale.min() > 0.99 and scale.max() < 1.26
    assert noise.eval()(x) is x


def test_uniform_dropout_multiplies_by_one_plus_or_minus_beta():
    layer = models.Dropout(0.3, "uniform")
    y = layer(torch.ones(4000, 5))
    assert 0.7 <= float(y.min()) < 0.72 and 1.28 < float(y.max()) <= 1.3 and abs(float(y.mean()) - 1) < 0.01
    with pytest.raises(InputError, match="kind of dropout"):
        models.Dropout(0.3, "gaussian")


@pytest.mark.parametrize(("place", "names"), [
    ("before_norm", ["Dropout", "BatchNorm2d", "ReLU"]), ("before_conv", ["BatchNorm2d", "ReLU", "Dropout"]),
])  # fmt: skip
def test_dropout_stands_where_it_is_asked_for_in_every_block(place, names):
    arm = replace(ARMS["batch_norm"], dropout=0.5, dropout_at=place)
    net = WideResNet(10, 0.5, 1, 10, arm, norms)
    assert [[type(m).__name__ for m in block.activate2] for block in net.blocks] == [names] * 3
    assert not any(isinstance(m, models.Dropout) for m in [*net.dropout, *net.blocks[0].activate1])


def test_without_affine_there_is_no_gamma_and_no_beta():
    assert all(p.dim() > 1 or p.shape == (10,) for p in wrn("batch_norm_no_affine").parameters())


def test_the_skip_path_of_a_block_with_norm_is_the_input_itself():
    for block in blocks(wrn("batch_norm", depth=16)):
        nn.init.zeros_(block.conv2.weight)
        x = 3 + torch.randn(4, block.conv1.in_channels, 4, 4, generator=generators(3)[0]).double()
        path = x if block.project is None else block.project(block.activate1(x))
        assert torch.equal(block(x), path)


def test_a_post_activation_block_is_that_of_he_et_al():
    block = stir(models.resnet.BasicBlock(3, 3, 1, ARMS["batch_norm"], 1, norms).double(), (0,))
    x = images(1, channels=3)
    hidden = F.relu(block.norm1(F.conv2d(x, block.conv1.weight, padding=1)))
    expected = F.relu(x + block.norm2(F.conv2d(hidden, block.conv2.weight, padding=1)))
    assert torch.allclose(block(x), expected)


def test_torchs_convolution_and_relu_are_the_textbooks():
    """Nets and the formulas above stand on them alike: a broken one would move both."""
    layer = stir(models.layers.conv(2, 3, 3, 2, 2, True).double(), (0, 1))
    x = torch.randn(2, 4, 5, 5, generator=generators(3)[0]).double()
    padded, expected = torch.zeros(2, 4, 7, 7).double(), torch.zeros(2, 6, 3, 3).double()
    padded[:, :, 1:6, 1:6] = x
    for channel in range(6):
        own = padded[:, :2] if channel < 3 else padded[:, 2:]  # of the channel's run
        for i in range(3):
            for j in range(3):
                patch = own[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                expected[:, channel, i, j] = (patch * layer.weight[channel]).sum((1, 2, 3)) + layer.bias[channel]
    assert torch.allclose(layer(x), expected)
    rectified = torch.where(x > 0, x, 0.0)
    assert torch.equal(F.relu(x), rectified) and torch.equal(nn.ReLU()(x), rectified)
