"""normbook.probes.dropout_shift: closed forms against sums over masks and limits, and a net's modes against a loop."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from normbook import train
from normbook.probes import dropout_shift
from normbook.probes.dropout_shift import (
    PASSES,
    Point,
    before_linear,
    directly_before,
    effective_inputs,
    modes,
    predict,
    simulate,
    uniform,
)
from normbook.train import Config

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
quick = settings(deadline=None, max_examples=25, derandomize=True, database=None)
keeps, means, variances = st.floats(0.05, 1), st.floats(-3, 3), st.floats(0.1, 4)
TINY = Config(
    "batch_norm", lr=0.3, depth=10, width=0.25, batch_size=20, steps=20, n_train=60, dropout=0.5,
    dropout_at="before_norm", evaluate=("train",), statistics=("running", "reestimated"),
)  # fmt: skip


def masked_variance(keep, covariance, mean, weight):
    """Variance of sum w x a / p, a in {0, 1}: every mask with its probability, and x with this mean and covariance."""
    first = second = 0.0
    for mask in itertools.product((0, 1), repeat=len(weight)):
        share = math.prod(keep if a else 1 - keep for a in mask)
        w = weight * np.array(mask) / keep
        first += share * (w @ mean)
        second += share * (w @ covariance @ w + (w @ mean) ** 2)
    return second - first**2


@quick
@given(keeps, means, variances)
def test_directly_before_is_the_sum_over_both_masks(keep, c, v):
    expected = v / masked_variance(keep, np.array([[v]]), np.array([c]), np.ones(1))
    assert directly_before(keep, c, v) == pytest.approx(expected, rel=1e-9)


@quick
@given(keeps, means, variances, st.floats(0, 0.95), st.lists(st.floats(0.1, 2), min_size=1, max_size=5), st.booleans())
def test_before_a_linear_map_is_the_sum_over_all_masks(keep, c, v, rho, weights, signed):
    weight = np.array(weights) * (np.where(np.arange(len(weights)) % 2, -0.4, 1) if signed else 1)
    if abs(weight.sum()) < 0.05:
        return
    m = len(weight)
    covariance = v * (rho * np.ones((m, m)) + (1 - rho) * np.eye(m))
    mean, effective = np.full(m, c), float(weight.sum() ** 2 / (weight**2).sum())
    expected = (weight @ covariance @ weight) / masked_variance(keep, covariance, mean, weight)
    assert before_linear(keep, c, v, rho, effective) == pytest.approx(expected, rel=1e-6)


@quick
@given(st.floats(0, 1), means, variances)
def test_uout_is_the_integral_over_its_noise(b, c, v):
    points, weights = np.polynomial.legendre.leggauss(5)  # exact for polynomials of this degree
    r, share = b * points, weights / 2
    second = (share * (1 + r) ** 2).sum() * (c**2 + v)
    first = (share * (1 + r)).sum() * c
    assert uniform(b, c, v) == pytest.approx(v / (second - first**2), rel=1e-9)


@quick
@given(keeps, means, variances, st.floats(0, 1), st.floats(0.1, 100))
def test_the_limits_known_by_hand(keep, c, v, rho, effective):
    assert directly_before(1, c, v) == pytest.approx(1)
    assert before_linear(1, c, v, rho, effective) == pytest.approx(1)
    assert uniform(0, c, v) == pytest.approx(1)
    # a mean of zero: the retain ratio, whatever the variance; Li et al. write 3 / (3 + b^2) for Uout
    assert directly_before(keep, 0, v) == pytest.approx(keep)
    assert before_linear(keep, 0, v, 0, effective) == pytest.approx(keep)
    assert uniform(keep, 0, v) == pytest.approx(3 / (3 + keep**2))
    # one input with one weight: the map is a factor, which cancels
    assert before_linear(keep, c, v, rho, 1) == pytest.approx(directly_before(keep, c, v))
    # many inputs in the same direction: the noise averages out where they are correlated, else not
    assert before_linear(keep, c, v, 0.5, 1e9) == pytest.approx(1, abs=1e-5)
    assert before_linear(keep, c, v, 0, 1e9) == pytest.approx(directly_before(keep, c, v))


@quick
@given(keeps.filter(lambda p: p < 0.95), st.floats(0.1, 3), variances, st.floats(0.1, 0.9))
def test_delta_rises_with_keep_and_correlated_inputs_and_falls_with_the_mean(keep, c, v, rho):
    assert directly_before(keep, c, v) < directly_before(keep, 0, v) < directly_before(keep + 0.04, 0, v) <= 1
    assert directly_before(keep, c, v) == directly_before(keep, -c, v) < directly_before(keep + 0.04, c, v)
    found = [before_linear(keep, c, v, rho, effective) for effective in (1, 4, 16, 64)]
    assert found == sorted(found) and 0 < found[0] < found[-1] < 1
    assert before_linear(keep, c, v, 0, 16) < found[2]
    assert uniform(0.5, c, v) < uniform(0.5, 0, v) < uniform(0.1, 0, v)


def test_uout_has_the_variance_of_torchs_uniform_noise():
    generator = torch.Generator().manual_seed(0)
    x = 0.7 + 1.2 * torch.randn(400_000, generator=generator, dtype=torch.float64)
    r = 0.8 * (2 * torch.rand(400_000, generator=generator, dtype=torch.float64) - 1)
    assert float(x.var() / (x * (1 + r)).var()) == pytest.approx(uniform(0.8, 0.7, 1.44), rel=0.01)


def test_effective_inputs_by_hand():
    weight = torch.tensor([[1.0, 1, 1, 1], [2, 0, 0, 0], [1, -1, 2, -2], [1, 2, 3, 4]])
    assert effective_inputs(weight).tolist() == pytest.approx([4, 1, 0, 100 / 30])
    found = effective_inputs(torch.nn.Conv2d(3, 5, 2).weight)
    assert found.shape == (5,) and found.dtype == torch.float64 and not found.requires_grad


@quick
@given(st.lists(st.floats(-2, 2), min_size=1, max_size=8).filter(lambda w: max(map(abs, w)) > 0.01))
def test_effective_inputs_are_m_cos_squared_theta_and_between_zero_and_m(weights):
    w, ones = torch.tensor([weights], dtype=torch.float64), torch.ones(1, len(weights), dtype=torch.float64)
    found = float(effective_inputs(w))
    assert found == pytest.approx(len(weights) * float(F.cosine_similarity(w, ones)) ** 2, rel=1e-6, abs=1e-9)
    assert 0 <= found <= len(weights) * (1 + 1e-12)
    assert float(effective_inputs(-3 * w)) == pytest.approx(found)


def test_independent_weights_have_one_effective_input_however_many_they_are():
    for m in (9, 144):
        weight = torch.randn(20_000, m, generator=torch.Generator().manual_seed(m))
        assert float(effective_inputs(weight).mean()) == pytest.approx(1, abs=0.05)


GRID = [
    Point("direct", 0.5, 0.0, 1.0), Point("direct", 0.3, 1.0, 0.5), Point("direct", 0.8, 0.4, 2.0),
    Point("linear", 0.5, 0.5, 1.0, 0.0, 8), Point("linear", 0.5, 0.5, 1.0, 0.5, 8),
    Point("linear", 0.2, 1.0, 2.0, 0.9, 16),
    Point("uniform", 0.5, 0.0, 1.0), Point("uniform", 1.0, 1.0, 0.5),
]  # fmt: skip


def test_the_closed_forms_agree_with_monte_carlo_through_the_layer():
    found = simulate(GRID, (0, 0))
    assert len(found) == len(GRID)
    for measured, predicted in found:
        assert measured == pytest.approx(predicted, rel=0.03)
        assert predicted < 0.98  # no point is won by doing nothing
    for point, (_, predicted) in zip(GRID, found, strict=True):
        if point.kind != "linear":
            assert predicted == predict(point)


def test_a_wrong_parameter_shows_in_the_monte_carlo():
    found = simulate(GRID, (0, 1), examples=50_000)
    for point, (measured, predicted) in zip(GRID, found, strict=True):
        if point.rho:  # predicted with the weights that were drawn; others miss
            wrong = (predict(point, 1.0),)
        else:
            wrong = predict(replace(point, drop=0.7 * point.drop)), predict(replace(point, c=point.c + 1))
        assert measured == pytest.approx(predicted, rel=0.03)
        assert all(abs(measured / other - 1) > 0.03 for other in wrong)


def test_without_dropout_the_variance_is_the_same_number():
    for point in (
        Point("direct", 0.0, 1.0, 2.0),
        Point("linear", 0.0, 1.0, 2.0, 0.3, 4),
        Point("uniform", 0.0, 1.0, 2.0),
    ):
        ((measured, predicted),) = simulate([point], (0, 0), examples=1000)
        assert measured == 1 and predicted == pytest.approx(1)


def test_simulation_is_reproducible_and_its_weights_are_drawn_per_seed():
    point = Point("linear", 0.5, 0.5, 1.0, 0.2, 8)
    first = simulate([point], (0, 0), examples=2000)
    torch.manual_seed(3)  # nothing comes from the global stream
    assert simulate([point], (0, 0), examples=2000) == first
    other = simulate([point], (0, 1), examples=2000)
    assert other[0][0] != first[0][0] and other[0][1] != first[0][1]


def test_predict_takes_the_formula_of_the_kind():
    assert predict(Point("direct", 0.3, 0.5, 2.0)) == directly_before(0.7, 0.5, 2.0)
    assert predict(Point("uniform", 0.3, 0.5, 2.0)) == uniform(0.3, 0.5, 2.0)
    assert predict(Point("linear", 0.3, 0.5, 2.0, 0.1, 9), 5.0) == before_linear(0.7, 0.5, 2.0, 0.1, 5.0)
    assert len({predict(Point(kind, 0.3, 0.5, 2.0), 5.0) for kind in ("direct", "uniform", "linear")}) == 3


@pytest.fixture(scope="module")
def two():
    return modes([replace(TINY, seed=(0, i)) for i in (0, 1)])


def trained(config):
    training = train.Training([config])
    for _ in training:
        pass
    batches = list(zip(training.train.images.split(20), training.train.labels.split(20), strict=True))
    return training.net, batches


@torch.no_grad()
def score(net, batches):
    """Loss and accuracy of a net of one run, images one batch after the other, in the mode that it is in."""
    outputs = [(net(images)[:, 0], labels) for images, labels in batches]
    loss = np.mean([F.cross_entropy(logits, labels).item() for logits, labels in outputs])
    return loss, np.mean([(logits.argmax(1) == labels).double().mean().item() for logits, labels in outputs])


@pytest.mark.parametrize("member", [0, 1])
def test_eval_and_reestimated_are_what_the_trainer_reports_so_the_running_statistics_were_restored(two, member):
    final = train.run([replace(TINY, seed=(0, member))])[0]["final"]
    found = two[member]
    assert set(found.loss) == set(found.accuracy) == {"train", "eval", "planted", "reestimated"}
    for mode, suffix in (("eval", ""), ("reestimated", "_reestimated")):
        assert found.loss[mode] == pytest.approx(final["train_loss" + suffix], rel=1e-3)
        assert found.accuracy[mode] == pytest.approx(final["train_accuracy" + suffix], abs=0.02)
    assert len({f"{loss:.3f}" for loss in found.loss.values()}) == 4


@pytest.mark.parametrize("member", [0, 1])
def test_every_mode_is_that_of_a_plain_loop(two, member):
    net, batches = trained(replace(TINY, seed=(0, member)))
    found = two[member]
    norms = [m for m in net.modules() if hasattr(m, "running_var")]
    kept = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    expected = {"train": score(net.train(), batches * PASSES)}  # as the run goes on, so with the same dropout
    for factor, mode in ((1.0, "eval"), (dropout_shift.PLANTED, "planted")):
        for m, (mean, var) in zip(norms, kept, strict=True):
            m.running_mean.copy_(mean)
            m.running_var.copy_(factor * var)
        expected[mode] = score(net.eval(), batches)
    for mode, (loss, accuracy) in expected.items():
        assert found.loss[mode] == pytest.approx(loss, rel=2e-3), mode
        assert found.accuracy[mode] == pytest.approx(accuracy, abs=0.02), mode


def test_planted_variances_ruin_a_net_and_reestimated_ones_are_best(two):
    for found in two:
        loss, accuracy = found.loss, found.accuracy
        assert loss["reestimated"] + 0.05 < loss["eval"] < loss["train"] < loss["planted"] - 0.2
        assert loss["planted"] == pytest.approx(math.log(10), abs=0.1)  # logits next to nothing: a guess
        assert accuracy["planted"] < 0.2 < accuracy["train"] < accuracy["eval"] <= accuracy["reestimated"]


def test_dropout_layers_are_measured_where_they_stand(two):
    net, batches = trained(replace(TINY, seed=(0, 1)))
    assert [len(part) for part in (two[1].measured, two[1].predicted, two[1].without_mean)] == [3, 3, 3]
    net.train()
    seen = []
    for images, _ in batches * PASSES:
        x, each = net.stem(images), []
        for block in net.blocks:
            activated = block.activate1(x)
            before = block.conv1(activated).detach().double()
            after = block.activate2[0](before.float()).double()
            c2, v = before.mean((0, 2, 3)) ** 2, before.var((0, 2, 3), correction=0)
            each.append(torch.stack([c2, v, after.var((0, 2, 3), correction=0)]))
            branch = block.conv2(block.activate2[1:](after.float()))
            x = (branch + (x if block.project is None else block.project(activated))).detach()
        seen.append(each)
    for layer in range(3):
        c2, v, out = torch.stack([each[layer] for each in seen]).mean(0)
        assert two[1].measured[layer] == pytest.approx(float(v.mean() / out.mean()), rel=1e-3)
        expected = float(v.mean() / (v / 0.5 + c2 * (1 / 0.5 - 1)).mean())
        assert two[1].predicted[layer] == pytest.approx(expected, rel=1e-3)


def test_the_measured_shift_follows_from_the_mean_and_the_variance(two):
    for found in two:
        assert found.measured == pytest.approx(found.predicted, rel=0.05)
        assert found.without_mean == (0.5, 0.5, 0.5)
        assert max(found.predicted) < 0.499  # a mean only makes it worse


def test_effective_inputs_are_those_of_the_convolutions_that_end_a_branch(two):
    net, _ = trained(replace(TINY, seed=(0, 1)))
    expected = []
    for block in net.blocks:
        units = [float(w.double().sum() ** 2 / (w.double() ** 2).sum()) for w in block.conv2.weight.detach()]
        expected.append(np.mean(units))
    assert two[1].effective == pytest.approx(expected, rel=1e-3)


def test_a_run_is_measured_as_alone(two):
    (alone,) = modes([replace(TINY, seed=(0, 1))])
    for name in ("measured", "predicted", "effective"):
        assert getattr(two[1], name) == pytest.approx(getattr(alone, name), rel=1e-3)
        assert getattr(two[0], name) != pytest.approx(getattr(alone, name), rel=1e-3)
    assert two[1].loss == pytest.approx(alone.loss, rel=2e-3)


def test_measuring_leaves_weights_and_modes_in_order(monkeypatch):
    """The net behind `modes`: its weights are those of training, and its statistics the re-estimated ones."""
    kept = []
    honest = train.Training

    def watched(configs):
        kept.append(honest(configs))
        return kept[-1]

    monkeypatch.setattr(dropout_shift.train, "Training", watched)
    modes([replace(TINY, steps=3)])
    monkeypatch.undo()
    (training,), (net, _) = kept, trained(replace(TINY, steps=3))
    assert not training.net.training
    for p, q in zip(training.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(p, q)
    assert not any(m._forward_hooks for m in training.net.modules())


def test_labels_drawn_anew_for_each_run_are_the_ones_that_count():
    config = replace(TINY, label_noise=1.0, steps=3)
    found = modes([replace(config, seed=(0, i)) for i in (0, 1)])
    for i, each in enumerate(found):
        final = train.run([replace(config, seed=(0, i))])[0]["final"]
        assert each.loss["eval"] == pytest.approx(final["train_loss"], rel=1e-3)
        assert each.accuracy["eval"] == pytest.approx(final["train_accuracy"], abs=0.02)


@pytest.mark.parametrize(("place", "layers"), [("head", 1), ("before_conv", 3)])
def test_dropout_behind_the_norms_is_measured_too_and_its_input_has_a_mean(place, layers):
    (found,) = modes([replace(TINY, dropout_at=place, steps=3, n_train=100, dropout=0.4)])
    assert len(found.measured) == layers and found.without_mean == pytest.approx((0.6,) * layers)
    assert found.measured == pytest.approx(found.predicted, rel=0.1)
    assert max(found.predicted) < 0.55  # behind a ReLU
