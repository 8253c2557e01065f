"""normbook.probes.affine: against closed forms, plain regressions, and networks built by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from normbook.errors import InputError
from normbook.probes import affine
from normbook.train import Config

torch.set_num_threads(1)
SIGMOID = Config(
    "batch_norm", lr=0.5, model="mlp", activation="sigmoid", depth=3, width=6, weight_decay=0.0, batch_size=20, steps=4,
    n_train=100, evaluate=(),
)  # fmt: skip


def test_a_sigmoid_is_linear_for_narrow_inputs_and_a_step_for_wide_ones():
    assert affine.linear_r2(0, 1e-3) == pytest.approx(1)
    assert affine.linear_r2(3, 1e-3) == pytest.approx(1)
    assert affine.linear_r2() == pytest.approx(0.984, abs=5e-4)
    assert affine.linear_r2(0, 1e4) == pytest.approx(2 / np.pi, abs=0.02)  # the correlation of z and sign(z), squared


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.7), (-2.0, 3.0)])
def test_measured_and_computed_r2_agree_and_are_those_of_a_regression(mean, std):
    z = torch.from_numpy(mean + std * stats.norm.ppf((np.arange(20000) + 0.5) / 20000))[:, None]
    found = float(affine.measured_r2(z)[0])
    assert found == pytest.approx(affine.linear_r2(mean, std), abs=2e-3)
    assert found == pytest.approx(stats.linregress(z[:, 0], torch.sigmoid(z[:, 0])).rvalue ** 2, rel=1e-9)


def test_distance_to_a_normal_is_kolmogorovs():
    z = torch.randn(300, 2, 3, generator=torch.Generator().manual_seed(0)).exp()
    found = affine.gaussian_distance(z)
    assert found.shape == (2, 3)
    one = z[:, 1, 2].double().numpy()
    assert float(found[1, 2]) == pytest.approx(stats.kstest((one - one.mean()) / one.std(), "norm").statistic)


def test_positions_have_one_row_a_layer_and_start_at_gamma_one_without_training():
    (found,) = affine.positions([replace(SIGMOID, lr=1e-30)])
    assert found.r2.shape == found.r2_wide.shape == found.gamma.shape == found.beta.shape == (2, 6)
    assert found.counts.shape == (2, len(affine.EDGES) - 1)
    assert (found.counts.sum(1) == 100 * 6).all()
    assert (found.gamma == 1).all() and abs(found.beta).max() < 1e-20
    assert (found.r2_wide < found.r2).all() and (found.r2 > 0.95).all()
    assert found.distance_before.shape == found.distance_after.shape == found.distance_single.shape == (1,)


@pytest.mark.parametrize("space", ["normbook.norms", "torch.nn"])
def test_positions_of_a_run_do_not_depend_on_the_runs_beside_it(space):
    config = replace(SIGMOID, norm=space)
    alone = affine.positions([replace(config, seed=(0, 1))])[0]
    beside = affine.positions([replace(config, seed=(0, i)) for i in range(3)])[1]
    for name in vars(alone):
        assert getattr(alone, name) == pytest.approx(getattr(beside, name), abs=2e-3 if name != "counts" else 3), name
    assert (alone.gamma != 1).all() and (alone.beta != 0).all()


def test_without_gamma_and_beta_they_are_one_and_zero():
    (found,) = affine.positions([replace(SIGMOID, arm="batch_norm_no_affine")])
    assert (found.gamma == 1).all() and (found.beta == 0).all()


def test_only_a_normalization_outside_the_gradient_step_moves_b_and_lengthens_the_weights():
    found = {g: affine.outside(g, [(0, 0), (0, 1)], steps=30) for g in affine.GRADIENTS}
    inside, detached, with_beta = (found[g] for g in affine.GRADIENTS)
    assert inside.bias.shape == inside.loss.shape == inside.weight.shape == (30, 2)
    assert inside.bias.max() < 1e-5 and (detached.bias[-1] > 0.01).all()
    assert (with_beta.bias[-1] < detached.bias[-1]).all()
    assert (inside.weight[-1] / inside.weight[0] < 1.1).all() and (detached.weight[-1] / detached.weight[0] > 1.2).all()
    for each in found.values():  # all start from the same net
        assert each.loss[0] == pytest.approx(inside.loss[0], rel=1e-6)
        assert (each.loss[-1] < each.loss[0]).all()


def test_an_unknown_gradient_is_refused():
    with pytest.raises(InputError, match="gradient"):
        affine.outside("elsewhere", [(0, 0)], steps=1)
