"""normbook.probes: measurements against closed forms, and the same draws in all arms."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from normbook import probes
from normbook.errors import InputError
from normbook.probes import Stack, inputs, mean_cosine, profile, slope, transformer, weights

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
SEED = (0, 0)
D = 24


def measured(kind="linear", arm="none", seed=SEED, **options):
    return profile(Stack(kind, arm, **{"blocks": D, "width": 256, "batch": 64, **options}), seed)


def conv(arm, seed=SEED, **options):
    return measured("conv", arm, seed, **{"blocks": 8, "width": 16, "batch": 8, **options})


def test_without_norm_the_skip_variance_doubles_each_block():
    found = measured()
    assert slope(np.arange(D), np.log2(found.skip)) == pytest.approx(1, abs=0.1)
    assert found.share == pytest.approx(np.full(D, 0.5), abs=0.03)
    assert found.path_length[-1] == pytest.approx(D / 2, rel=0.03)


def test_with_relu_the_second_moment_doubles_and_the_variance_grows_more_slowly_as_inputs_grow_alike():
    found = measured("relu")
    assert slope(np.arange(D), np.log2(found.second_moment)) == pytest.approx(1, abs=0.1)
    assert 0.7 < slope(np.arange(D), np.log2(found.skip)) < 0.97


def test_batch_norm_makes_the_skip_variance_equal_the_blocks_number():
    found = measured(arm="batch_norm", blocks=64)
    number = np.arange(1, 65)
    assert found.skip == pytest.approx(number, rel=0.1)
    assert found.branch == pytest.approx(np.ones(64), rel=0.1)
    assert found.share == pytest.approx(1 / (number + 1), rel=0.15)
    assert found.shrink == pytest.approx(np.sqrt(number), rel=0.05)
    # the deeper the shorter: about the logarithm of depth, not half of it
    assert found.path_length[-1] == pytest.approx(sum(1 / (number + 1)), rel=0.1)


def test_skipinit_at_one_over_root_d_grows_to_e_and_its_gradient_by_the_same_law():
    found = measured(arm="skipinit")
    expected = (1 + 1 / D) ** np.arange(D)
    assert found.skip == pytest.approx(expected, rel=0.05)
    assert found.gradient2 == pytest.approx((1 + 1 / D) ** np.arange(D, -1, -1), rel=0.1)
    assert found.share == pytest.approx(np.full(D, 1 / (D + 1)), rel=0.1)


def test_dividing_by_root_two_keeps_the_variance():
    found = measured(arm="divide_sqrt2")
    assert found.skip == pytest.approx(np.ones(D), rel=0.2)
    assert found.gradient2 == pytest.approx(np.ones(D + 1), rel=0.2)


def test_without_norm_the_gradient_doubles_each_block_towards_the_input():
    found = measured()
    assert slope(np.arange(D + 1), np.log2(found.gradient2)) == pytest.approx(-1, abs=0.1)
    assert found.gradient2[-1] == pytest.approx(1, rel=0.05)  # that of the cotangent itself


def test_without_skip_the_variance_stays_and_every_path_takes_every_branch():
    found = measured(skip=False)
    assert found.skip == pytest.approx(np.ones(D), rel=0.25)
    assert found.share.tolist() == [1.0] * D and found.path_length.tolist() == list(range(1, D + 1))


def test_the_path_length_is_the_cumulated_share():
    found = measured("relu")
    assert found.path_length == pytest.approx([found.share[: i + 1].sum() for i in range(D)])


def test_every_number_of_a_profile_is_there_for_each_block_and_finite():
    for arm in probes.ARMS:
        for kind in ("linear", "relu", "conv"):
            found = measured(kind, arm, blocks=3, width=8, batch=4, size=4)
            for name, values in vars(found).items():
                assert values.shape == (4 if name == "gradient2" else 3,) and values.dtype == np.float64, name
                assert np.isfinite(values).all(), name


def test_first_block_of_a_profile_equals_plain_formulas():
    stack = Stack("relu", "none", blocks=2, width=16, batch=8)
    found = profile(stack, SEED)
    x, first = inputs(stack, SEED).double(), next(weights(stack, SEED)).double()
    branch = torch.relu(x) @ first.T
    assert found.skip[0] == pytest.approx(float(x.var(0, correction=0).mean()), rel=1e-5)
    assert found.branch[0] == pytest.approx(float(branch.var(0, correction=0).mean()), rel=1e-5)
    assert found.second_moment[0] == pytest.approx(float(branch.square().mean()), rel=1e-5)
    assert found.mean[0] == pytest.approx(float(branch.mean(0).abs().mean()), rel=1e-5)
    assert found.skip[1] == pytest.approx(float((x + branch).var(0, correction=0).mean()), rel=1e-5)
    assert found.cosine[0] == pytest.approx(mean_cosine(x + branch), rel=1e-5)
    assert found.shrink[0] == 1


def test_gradients_equal_finite_differences_of_a_tiny_stack():
    stack = Stack("linear", "skipinit", blocks=2, width=3, batch=2)
    found = profile(stack, SEED)
    # the stack is linear: the gradient is the cotangent through the transposed Jacobian
    jacobian = torch.eye(3).double()
    for weight in weights(stack, SEED):
        jacobian = (torch.eye(3).double() + 2**-0.5 * weight.double()) @ jacobian
    cotangent = torch.randn(2, 3, generator=probes.depth._generator(SEED, 2)).double()
    assert found.gradient2[0] == pytest.approx(float((cotangent @ jacobian).square().mean()), rel=1e-5)


def test_a_profile_is_reproducible_and_differs_between_seeds():
    first, again, other, base = measured(), measured(), measured(seed=(0, 1)), measured(seed=(1, 0))
    for name, values in vars(first).items():
        assert np.array_equal(values, vars(again)[name]), name
    assert not np.array_equal(first.branch, other.branch) and not np.array_equal(first.branch, base.branch)
    assert not np.array_equal(other.branch, base.branch)


@pytest.mark.parametrize("kind", ["linear", "relu", "conv"])
def test_all_arms_share_weights_and_inputs(kind):
    stacks = [Stack(kind, arm, blocks=2, width=4, batch=3) for arm in probes.ARMS]
    drawn = [(inputs(stack, SEED), *weights(stack, SEED)) for stack in stacks]
    assert all(torch.equal(a, b) for one in drawn for a, b in zip(one, drawn[0], strict=True))
    assert measured(kind, "none", blocks=2, width=4).branch[0] * 0.5 == pytest.approx(
        measured(kind, "skipinit", blocks=2, width=4).branch[0], rel=1e-5
    )


def test_weights_have_the_declared_variance():
    for kind, gain, fan_in in (("linear", 1, 64), ("relu", 2, 64), ("conv", 2, 64 * 9)):
        drawn = torch.stack(list(weights(Stack(kind, "none", blocks=4, width=64), SEED)))
        assert float(drawn.var()) * fan_in == pytest.approx(gain, rel=0.05)


def test_zero_padding_lowers_the_branch_variance_below_circular_padding():
    circular, zeros = conv("none"), conv("none", padding="zeros")
    # on an 8x8 image a 3x3 kernel loses (22 / 24) ** 2 of its inputs, 16 % of the second moment
    assert zeros.second_moment[0] / circular.second_moment[0] == pytest.approx((22 / 24) ** 2, abs=0.06)
    assert (zeros.branch < circular.branch).all()
    assert zeros.skip[0] == circular.skip[0]


def test_the_second_moment_of_a_circular_conv_branch_equals_the_variance_of_its_input():
    found = conv("none", width=48)
    assert found.second_moment[0] == pytest.approx(1, rel=0.1)


@pytest.fixture
def no_norms(monkeypatch):
    """The name of a namespace whose norms do nothing."""
    module = ModuleType("no_norms")
    module.BatchNorm1d = module.BatchNorm2d = module.LayerNorm = type("Nothing", (torch.nn.Identity,), {})
    monkeypatch.setitem(sys.modules, "no_norms", module)
    return "no_norms"


def test_norms_come_from_the_namespace_that_is_named(no_norms):
    stack = Stack("linear", "batch_norm", 3, 16, 8)
    plain = profile(Stack("linear", "none", 3, 16, 8), SEED)
    ours, theirs, nothing = (profile(stack, SEED, space) for space in ("normbook.norms", "torch.nn", no_norms))
    assert ours.skip == pytest.approx(theirs.skip, rel=1e-5) and ours.gradient2 == pytest.approx(
        theirs.gradient2, rel=1e-4
    )
    assert np.array_equal(plain.skip, nothing.skip) and not np.array_equal(plain.skip, ours.skip)


def test_an_unknown_namespace_is_bad_input():
    with pytest.raises(InputError, match="cannot be imported"):
        profile(Stack("linear", "batch_norm", 3, 16, 8), SEED, "no.such.norms")


def test_cosine_of_equal_inputs_is_one_and_of_orthogonal_ones_zero():
    assert mean_cosine(torch.ones(5, 3, 2, 2)) == pytest.approx(1)
    assert mean_cosine(torch.eye(4)) == pytest.approx(0, abs=1e-12)
    assert mean_cosine(torch.tensor([[1.0, 0.0], [-3.0, 0.0]])) == pytest.approx(-1)


def test_cosine_is_the_mean_over_all_pairs_of_different_examples():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    pairs = [float(torch.cosine_similarity(x[i], x[j], 0)) for i in range(6) for j in range(6) if i != j]
    assert mean_cosine(x) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_batch_variance_is_biased_by_unit_over_examples_and_pixels():
    x = torch.tensor([[[1.0, 3.0], [5.0, 5.0]], [[1.0, 3.0], [7.0, 7.0]]])  # [examples, units, pixels]
    assert probes.batch_variance(x) == pytest.approx(1)
    assert probes.batch_variance(torch.tensor([[0.0, 1.0], [2.0, 1.0]])) == 0.5


def test_relu_without_skip_brings_the_inputs_together_and_batch_norm_pushes_them_apart():
    plain, normed = measured("relu", skip=False).cosine, measured("relu", "batch_norm", skip=False).cosine
    assert plain[-1] > 0.85 and (np.diff(plain) > -0.02).all()
    assert normed[-1] < 0.5


def test_slope_is_that_of_the_line():
    assert slope(np.arange(5.0), 3 - 2 * np.arange(5.0)) == pytest.approx(-2)


@pytest.mark.parametrize("wrong", [{"kind": "relv"}, {"arm": "batchnorm"}, {"padding": "zero"}])
def test_an_unknown_name_in_a_stack_is_bad_input(wrong):
    with pytest.raises(InputError, match="did you mean"):
        Stack(**{"kind": "relu", "arm": "none", **wrong})


def small_transformer(placement, blocks, seed=SEED, space="normbook.norms"):
    return transformer(placement, blocks, seed, space, width=32, tokens=8, batch=4)


def test_in_a_pre_norm_transformer_shares_fall_with_depth_and_in_a_post_norm_one_they_do_not():
    pre, post = (small_transformer(placement, 6).share for placement in ("pre", "post"))
    assert pre.shape == post.shape == (6,)
    assert pre[4:].mean() < 0.5 * pre[0]
    assert post[4:].mean() == pytest.approx(post[0], rel=0.4)
    assert ((pre > 0) & (pre < 1) & (post > 0) & (post < 1)).all()


def test_the_last_gradient_falls_with_depth_in_a_pre_norm_transformer_and_not_in_a_post_norm_one():
    def ratio(placement):
        deep, shallow = (
            np.mean([small_transformer(placement, blocks, (0, i)).last_gradient2 for i in range(4)])
            for blocks in (8, 1)
        )
        return deep / shallow

    assert ratio("pre") < 0.6 and ratio("post") > 0.7


def test_transformer_measurements_are_reproducible_and_differ_between_seeds():
    first, again, other = (small_transformer("pre", 2, seed) for seed in (SEED, SEED, (0, 1)))
    assert np.array_equal(first.share, again.share) and first.last_gradient2 == again.last_gradient2
    assert not np.array_equal(first.share, other.share) and first.last_gradient2 != other.last_gradient2


def test_both_placements_share_their_draws(no_norms):
    pre, post = (small_transformer(placement, 2, space=no_norms) for placement in ("pre", "post"))
    assert np.array_equal(pre.share, post.share) and pre.last_gradient2 == post.last_gradient2


def test_an_unknown_placement_is_bad_input():
    with pytest.raises(InputError, match="did you mean 'post'"):
        small_transformer("pots", 1)
