"""normbook.probes.learning_rate: noise by brute force, known optima, divergence kept, and equal nets to rounding."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.sgd import sgd  # not the class: it imports the compiler

from normbook import data, train
from normbook.errors import InputError
from normbook.probes import learning_rate
from normbook.probes.learning_rate import (
    Pair,
    exact_noise,
    example_gradients,
    gram,
    largest_stable,
    minibatch_losses,
    optimum,
    predicted_noise,
    rescaled,
    sampled_noise,
)
from normbook.train import Config

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
quick = settings(deadline=None, max_examples=60, derandomize=True, database=None)
PLAIN = Config("none", model="resnet", depth=8, width=0.25, steps=1)
TINY = replace(
    PLAIN, batch_size=16, n_train=32, steps=12, weight_decay=0.0, momentum=0.0, schedule="constant", evaluate=()
)
ROUNDING = 1e-13


def cloud(n=6, parameters=4, seed=0):
    return np.random.default_rng(seed).normal(1, 2, (n, parameters)) ** 3


def squared_errors(gradients, batch, replace_):
    """Squared error of the gradient of every minibatch, from the gradients themselves."""
    n = range(len(gradients))
    draws = itertools.product(n, repeat=batch) if replace_ else itertools.combinations(n, batch)
    return [float(((gradients[list(draw)].mean(0) - gradients.mean(0)) ** 2).sum()) for draw in draws]


@pytest.mark.parametrize("batch_size", [1, 7])
def test_example_gradients_are_those_of_one_net_and_one_image_at_a_time(batch_size):
    found = example_gradients(replace(PLAIN, batch_size=batch_size, seed=(3, 1)), 3)
    dataset = data.load()
    net = train.build([replace(PLAIN, seed=(3, 1))], dataset, "cpu").double()
    for image, label, row in zip(dataset.train.images, dataset.train.labels, found, strict=False):
        loss = F.cross_entropy(net(image[None].double())[:, 0], label[None])
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])
        assert row.dtype == np.float64 and row == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-12)
    assert np.abs(found[0] - found[1]).max() > 0.01


def test_example_gradients_average_to_the_gradient_of_the_batch():
    dataset = data.load()
    net = train.build([PLAIN], dataset, "cpu").double()
    F.cross_entropy(net(dataset.train.images[:5].double())[:, 0], dataset.train.labels[:5]).backward()
    whole = torch.cat([p.grad.flatten() for p in net.parameters()]).numpy()
    assert example_gradients(PLAIN, 5).mean(0) == pytest.approx(whole, rel=1e-9, abs=1e-12)
    assert np.array_equal(learning_rate.products(PLAIN, 5), gram(example_gradients(PLAIN, 5)))


def test_the_gram_matrix_holds_inner_products_of_deviations_and_forgets_the_mean():
    gradients = cloud()
    mean = gradients.sum(0) / 6
    for i, j in itertools.product(range(6), repeat=2):
        expected = sum((a - m) * (b - m) for a, b, m in zip(gradients[i], gradients[j], mean, strict=True))
        assert gram(gradients)[i, j] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert gram(gradients) == pytest.approx(gram(gradients + 5), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("replace_", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_enumerated_noise_is_the_mean_squared_error_of_the_minibatch_gradients(batch, replace_):
    gradients = cloud(5)
    expected = np.mean(squared_errors(gradients, batch, replace_))
    assert exact_noise(gram(gradients), batch, replace_) == pytest.approx(expected, rel=1e-9)


@quick
@given(st.integers(2, 6), st.integers(1, 4), st.booleans(), st.integers(0, 999))
def test_the_formulas_are_exact_with_and_without_replacement(n, batch, replace_, seed):
    gradients = cloud(n, 3, seed)
    if not replace_:
        batch = min(batch, n)
    variance = gradients.var(0).sum()  # biased: of the empirical distribution
    expected = variance / batch * (1 if replace_ else (n - batch) / (n - 1))
    inner = gram(gradients)
    assert predicted_noise(inner, batch, replace_) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert exact_noise(inner, batch, replace_) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("replace_", [True, False])
@pytest.mark.parametrize("batch", [2, 5, 12])
def test_sampled_noise_approaches_the_formula(batch, replace_):
    inner = gram(cloud(24, 8))
    found = sampled_noise(inner, batch, replace_, 20_000, (0, 0))
    assert found == pytest.approx(predicted_noise(inner, batch, replace_), rel=0.03)
    assert abs(found / predicted_noise(inner, batch, not replace_) - 1) > 0.03  # the other is told apart


def test_shuffled_epochs_take_each_example_once_and_draws_with_replacement_do_not():
    gradients = cloud(6)
    inner, variance = gram(gradients), gradients.var(0).sum()
    for seed in range(5):  # after each whole epoch of single examples, the mean over them is exact
        assert sampled_noise(inner, 1, False, 18, (0, seed)) == pytest.approx(variance)
        assert sampled_noise(inner, 6, False, 4, (0, seed)) == pytest.approx(0, abs=1e-9 * variance)
    assert sampled_noise(inner, 1, True, 18, (0, 0)) != pytest.approx(variance, rel=1e-3)
    assert sampled_noise(inner, 6, True, 4, (0, 0)) > 0.01 * variance


@pytest.mark.parametrize(("replace_", "batch"), [(True, 2), (True, 9), (False, 2), (False, 5)])
def test_one_sampled_minibatch_is_one_of_the_possible_ones_and_seeds_choose_it(replace_, batch):
    inner = gram(cloud(5) if batch < 9 else cloud(2))
    possible = squared_errors(cloud(5) if batch < 9 else cloud(2), batch, replace_)
    found = {sampled_noise(inner, batch, replace_, 1, (0, seed)) for seed in range(20)}
    assert all(np.isclose(possible, value, rtol=1e-9, atol=1e-9).any() for value in found)
    assert len({f"{value:.6g}" for value in found}) > 1 or batch == 5
    assert sampled_noise(inner, batch, replace_, 7, (4, 2)) == sampled_noise(inner, batch, replace_, 7, (4, 2))


@pytest.mark.parametrize("draws", [1, 2, 3, 5])
def test_the_number_of_draws_is_kept_where_epochs_do_not_divide_it(draws):
    inner = gram(np.eye(5))  # all subsets of one size have one squared error, so the mean must be it
    assert sampled_noise(inner, 2, False, draws, (0, 0)) == pytest.approx(predicted_noise(inner, 2, False))
    assert exact_noise(inner, 2, False) == pytest.approx(predicted_noise(inner, 2, False))


@quick
@given(st.floats(-8, 2), st.floats(0.3, 3), st.floats(0.01, 100))
def test_the_optimum_of_a_symmetric_bowl_is_its_middle_whatever_the_unit_of_the_loss(middle, curvature, unit):
    rates = middle + np.arange(-3, 4)
    best, edge = optimum(rates.tolist(), unit * np.exp(curvature * (rates - middle) ** 2)[:, None])
    assert best == pytest.approx([middle], abs=1e-9) and edge.tolist() == [False]


def test_each_run_has_its_own_optimum_and_the_ends_of_the_grid_are_marked():
    falling, rising, inside = [8.0, 4.0, 2.0, 1.0], [1.0, 2.0, 4.0, 8.0], [4.0, 1.0, 2.0, 9.0]
    best, edge = optimum([-3, -2, -1, 0], np.array([falling, rising, inside]).T)
    weight = [sum(16.0**-k for k in range(4)), 1 + 2**-4 + 4**-4 + 9**-4.0]
    low = -(16.0**-1 + 2 * 16.0**-2 + 3 * 16.0**-3) / weight[0]
    assert best == pytest.approx([low, -3 - low, (-3 * 4**-4 - 2 - 2**-4) / weight[1]])
    assert edge.tolist() == [True, True, False]


def test_rates_that_diverge_do_not_move_an_optimum_and_a_loss_that_is_no_number_is_refused():
    near = [4.0, 2.0, 1.0, 1.5]
    best, _ = optimum(range(6), np.array([[*near, np.inf, np.inf]]).T)
    assert best == pytest.approx(optimum(range(4), np.array([near]).T)[0])
    for bad in (np.nan, 0.0, -1.0):
        with pytest.raises(ValueError, match="above 0"):
            optimum(range(3), np.array([[1.0, bad, 2.0]]).T)


def test_the_largest_stable_rate_ends_below_the_limit_or_with_the_grid():
    columns = {
        "ends": [2.0, 1.0, 1.5, 9.0],
        "censored": [2.0, 1.0, 1.5, 2.1],
        "hole in the middle": [2.0, 1.0, 9.0, 1.1],
        "hole before the best": [2.0, 9.0, 1.0, 9.0],
        "best at the end": [9.0, 9.0, 2.0, 1.0],
        "at the limit": [2.0, 1.0, 2.2, 2.0],
        "infinite": [2.0, 1.0, math.inf, math.inf],
    }
    largest, censored = largest_stable([-5, -4, -3, -2], np.array(list(columns.values())).T, 2.2)
    assert dict(zip(columns, largest.tolist(), strict=True)) == {
        "ends": -3, "censored": -2, "hole in the middle": -4, "hole before the best": -3, "best at the end": -2,
        "at the limit": -4, "infinite": -4,
    }  # fmt: skip
    assert [name for name, c in zip(columns, censored, strict=True) if c] == ["censored", "best at the end"]


@quick
@given(st.lists(st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0]), min_size=5, max_size=5), min_size=1, max_size=4))
def test_the_largest_stable_rate_by_brute_force(columns):
    rates = [-2.5, -1.0, 0.5, 2.0, 3.5]
    largest, censored = largest_stable(rates, np.array(columns).T, 3.0)
    for column, rate, ended in zip(columns, largest, censored, strict=True):
        best = column.index(min(column))
        reached = [j for j in range(best, 5) if all(value < 3.0 for value in column[best + 1 : j + 1])]
        assert rate == rates[max(reached)] and ended == (max(reached) == 4)


def plainly(config):
    """Losses of plain gradient descent, as many as there are steps, whatever becomes of the net."""
    dataset = data.load()
    net = train.build([config], dataset, "cpu")
    order = torch.Generator().manual_seed(train.streams(config.seed)[1])
    losses = []
    while len(losses) < config.steps:
        for part in torch.randperm(config.n_train, generator=order).split(config.batch_size):
            loss = F.cross_entropy(net(dataset.train.images[part])[:, 0], dataset.train.labels[part])
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, g in zip(net.parameters(), gradients, strict=True):
                    p -= config.lr * g
    return losses


def test_minibatch_losses_are_those_of_plain_gradient_descent():
    config = replace(TINY, lr=0.05, seed=(0, 1))
    found = minibatch_losses([config])
    assert found.shape == (12, 1) and found.dtype == np.float64
    assert found[:, 0] == pytest.approx(plainly(config), rel=1e-3)


def test_steps_after_divergence_are_kept_and_those_that_are_not_taken_are_infinite():
    configs = [replace(TINY, lr=lr, seed=(0, i)) for i, lr in enumerate((0.01, 1e3))]
    fine, diverged = minibatch_losses(configs).T
    alone = minibatch_losses(configs[1:])[:, 0]
    expected = plainly(configs[1])
    assert math.isnan(expected[-1]) and expected[1] > 1e3 > expected[2] > 5  # above 1000 nats, and back
    assert diverged[:3] == pytest.approx(expected[:3], rel=1e-3) and np.isposinf(diverged[3:]).all()
    assert alone[:2] == pytest.approx(expected[:2], rel=1e-3)
    assert np.isposinf(alone[2:]).all()  # alone it stops after its first epoch of two steps
    assert fine == pytest.approx(plainly(configs[0]), rel=1e-3)


def test_a_diverged_run_that_recovers_beside_another_keeps_its_finite_losses(monkeypatch):
    wanted = [[1.0, 2.0], [2000.0, 2.0], [math.nan, 2.0], [5.0, 3.0], [math.inf, 1.0], [4.0, 1.0]]
    honest, step = train.loop.batch_losses, itertools.count()

    def scripted(*args):
        loss = honest(*args)
        return loss + (torch.tensor(wanted[next(step)]) - loss).detach()

    monkeypatch.setattr(train.loop, "batch_losses", scripted)
    found = minibatch_losses([replace(TINY, lr=0.01, steps=6, seed=(0, i)) for i in (0, 1)])
    assert found[:, 0].tolist() == [1, 2000, math.inf, 5, math.inf, 4]
    assert found[:, 1].tolist() == [2, 2, 2, 3, 1, 1]


@pytest.mark.parametrize("norm", ["normbook.norms", "torch.nn"])
@pytest.mark.parametrize("factor", [0.01, 10.0, 1000.0])
def test_rescaled_weights_give_the_same_net_to_rounding(factor, norm):
    differences, losses = rescaled(Pair("batch_norm", factor, steps=6, norm=norm, seed=(0, 1)))
    assert differences.shape == losses.shape == (6,)
    assert differences.max() < ROUNDING
    assert len(set(losses)) == 6


def test_a_factor_of_one_changes_nothing_at_all():
    assert not rescaled(Pair("none", 1.0, steps=3))[0].any()


def test_each_condition_of_the_invariance_is_needed():
    decay, _ = rescaled(Pair("batch_norm", 10.0, steps=5, rescale_decay=False))
    assert decay[0] < ROUNDING and decay[1:].min() > 0.01  # equal until the first step
    epsilon, _ = rescaled(Pair("batch_norm", 0.01, steps=5, epsilon=1e-5))
    assert epsilon.min() > 0.01
    assert rescaled(Pair("none", 10.0, steps=5))[0].min() > 0.5


def test_without_weight_decay_it_need_not_be_rescaled_and_a_large_epsilon_does_not_show_in_large_weights():
    free, _ = rescaled(Pair("batch_norm", 10.0, steps=5, rescale_decay=False, weight_decay=0.0))
    assert free.max() < ROUNDING
    up, _ = rescaled(Pair("batch_norm", 10.0, steps=5, epsilon=1e-5))
    down, _ = rescaled(Pair("batch_norm", 0.1, steps=5, epsilon=1e-5))
    assert ROUNDING < up[0] < 0.1 * down[0]


@pytest.mark.parametrize("arm", ["batch_norm", "none"])
def test_a_pair_is_trained_as_torch_optim_would(arm):
    pair = Pair(arm, 2.0, epsilon=1e-5, steps=4, batch=8, lr=0.05, momentum=0.8, weight_decay=0.1, seed=(2, 0))
    differences, losses = rescaled(pair)
    dataset, seed = data.load(), train.streams(pair.seed)[1]
    config = Config(arm, model="resnet", depth=8, width=0.25, steps=1, seed=pair.seed)
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:32].split(8)
    logits = []
    for factor in (1.0, pair.factor):
        net = train.build([config], dataset, "cpu").double()
        weights = [p for name, p in net.named_parameters() if p.dim() == 4]
        rest = [p for p in net.parameters() if p.dim() < 4]
        with torch.no_grad():
            for w in weights:
                w *= factor
        square, buffers = factor**2, {p: torch.zeros_like(p) for p in (*weights, *rest)}
        groups = ((weights, pair.lr * square, pair.weight_decay / square), (rest, pair.lr, 0.0))
        seen = []
        for step, part in enumerate(order):
            y = net(dataset.train.images[part].double())[:, 0]
            seen.append(y.detach())
            loss = F.cross_entropy(y, dataset.train.labels[part])
            assert factor != 1 or loss.item() == pytest.approx(losses[step], rel=1e-9)
            for p, g in zip(buffers, torch.autograd.grad(loss, list(buffers)), strict=True):
                p.grad = g
            with torch.no_grad():
                for ps, lr, decay in groups:
                    sgd(
                        ps, [p.grad for p in ps], [buffers[p] for p in ps], foreach=False, weight_decay=decay,
                        momentum=pair.momentum, lr=lr, dampening=0.0, nesterov=False, maximize=False,
                    )  # fmt: skip
        logits.append(seen)
    expected = [float((a - b).norm() / (a.norm() + b.norm())) for a, b in zip(*logits, strict=True)]
    assert differences == pytest.approx(expected, rel=1e-6) and min(expected) > 1e-9


def test_a_partner_that_is_no_longer_finite_is_as_far_away_as_can_be():
    differences, losses = rescaled(Pair("none", 1000.0, steps=6))
    assert np.isfinite(differences).all() and differences.max() == 1 and len(losses) == 6


def test_rescaled_wants_a_known_arm():
    with pytest.raises(InputError, match="batch_norm"):
        rescaled(Pair("batchnorm", 10.0))
