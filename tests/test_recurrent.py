"""normbook.probes.recurrent: the recurrence against plain loops; padding that nothing sees; runs side by side."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from normbook import data, norms, train
from normbook.errors import InputError
from normbook.probes import recurrent
from normbook.probes.recurrent import ARMS, LENGTHS, Elman, Reader, leak, lengths_of, read

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
# A pixel that is the same in all images of a batch: behind batch norm its weight's gradient is rounding alone, which
# Adam makes a whole step. No training loss sees that weight, inference does while the running mean lags.
CLOSE = {"none": 1e-4, "layer_norm": 1e-4, "batch_norm": 0.01}
quick = settings(deadline=None, max_examples=25, derandomize=True, database=None)
SPACES = pytest.mark.parametrize("space", [norms, nn])
FULL = torch.full((7,), 8)
RAGGED = torch.tensor([3, 8, 1, 5, 8, 2, 4])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def elman(arm, width=5, space=norms, members=1, first=0, **options):
    """A net in float64 whose gamma, beta and biases are not those of the start."""
    net = Elman(arm, width, space, members, **options).double()
    net.initialize([generator(first + m) for m in range(members)])
    for m in range(members):
        draws = numbers(2 * width + 10, seed=100 + first + m)
        with torch.no_grad():
            for p, part in zip((net.gamma, net.beta, net.output.bias), draws.split([width, width, 10]), strict=True):
                p.view(members, -1)[m] += 0.3 * part * (p is not net.gamma or arm != "none")
    return net


def standardized(a, dim):
    return (a - a.mean(dim, keepdim=True)) / (a.var(dim, correction=0, keepdim=True) + 1e-5).sqrt()


def plainly(net, rows, lengths, statistics=None):
    """Logits of a net of one member by a loop over time in which only the running sequences are touched."""
    h = torch.zeros(len(rows), net.width, dtype=rows.dtype)
    for t in range(int(lengths.max())):
        running = [i for i in range(len(rows)) if lengths[i] > t]
        a = rows[running, 0, t] @ net.input.weight.T + h[running] @ net.hidden.weight.T
        if net.arm == "layer_norm":
            a = standardized(a, 1)
        elif net.arm == "batch_norm" and statistics is None:
            a = standardized(a, 0)
        elif net.arm == "batch_norm":
            mean, var = statistics[t]
            a = (a - mean) / (var + 1e-5).sqrt()
        h = h.clone()
        h[running] = torch.tanh(net.gamma * a + net.beta)
    return h @ net.output.weight.T + net.output.bias


@SPACES
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("lengths", [FULL, RAGGED], ids=["full", "ragged"])
def test_the_network_and_its_gradients_are_those_of_a_plain_loop(arm, space, lengths):
    net, rows = elman(arm, space=space), numbers(7, 1, 8, 8, seed=1)
    found, expected = net(rows, lengths)[:, 0], plainly(net, rows, lengths)
    assert torch.allclose(found, expected, atol=1e-10)
    learned = [p for p in net.parameters() if p.requires_grad]
    assert len(learned) == (5 if arm == "none" else 6)  # three weights, beta, the classifier's bias and gamma
    labels = torch.arange(7)
    ours, theirs = (torch.autograd.grad(F.cross_entropy(y, labels), learned) for y in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-9) and b.abs().max() > 1e-6


@SPACES
def test_each_time_step_has_running_statistics_of_its_own_from_the_sequences_still_running(space):
    net, rows = elman("batch_norm", space=space), numbers(7, 1, 8, 8, seed=1)
    states = list(net.states(rows, RAGGED))
    for t, norm in enumerate(net.norms):
        running = RAGGED > t
        before = states[t - 1] if t else torch.zeros(7, 5, dtype=torch.float64)
        a = (rows[:, 0, t] @ net.input.weight.T + before @ net.hidden.weight.T)[running]
        assert torch.allclose(norm.running_mean, 0.1 * a.mean(0))
        assert torch.allclose(norm.running_var, 0.9 + 0.1 * a.var(0))  # unbiased
    assert len({tuple(norm.running_mean.tolist()) for norm in net.norms}) == 8


@SPACES
def test_inference_takes_the_running_statistics_of_each_step_and_no_other_sequence(space):
    net, rows = elman("batch_norm", space=space), numbers(7, 1, 8, 8, seed=1)
    for norm in net.norms:
        norm.momentum = 1.0
    net(rows, FULL)
    statistics = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in net.norms]
    net.eval()
    found = net(rows, RAGGED)
    assert torch.allclose(found[:, 0], plainly(net, rows, RAGGED, statistics), atol=1e-10)
    assert torch.allclose(found[2:3], net(rows[2:3], RAGGED[2:3]), atol=1e-12)
    assert all(torch.equal(norm.running_mean, mean) for norm, (mean, _) in zip(net.norms, statistics, strict=True))


@pytest.mark.parametrize("arm", ARMS)
def test_a_state_stays_after_the_end_of_its_sequence_and_moves_before(arm):
    net = elman(arm)
    states = torch.stack(list(net.states(numbers(7, 1, 8, 8), RAGGED)))
    assert states.shape == (8, 7, 5)
    for i, length in enumerate(RAGGED.tolist()):
        assert all(torch.equal(states[t, i], states[length - 1, i]) for t in range(length, 8))
        assert all(not torch.equal(states[t, i], states[t - 1, i]) for t in range(1, length))
    net.eval()
    last = states[-1] @ net.output.weight.T + net.output.bias
    assert torch.allclose(elman(arm)(numbers(7, 1, 8, 8), RAGGED)[:, 0], last)


@SPACES
def test_the_only_sequence_left_is_its_own_mean_so_its_state_is_that_of_beta(space):
    net, lengths = elman("batch_norm", space=space), torch.tensor([3, 8, 5])
    states = list(net.states(numbers(3, 1, 8, 8), lengths))
    assert torch.equal(states[7][1], torch.tanh(net.beta)) and not torch.allclose(states[4][1], states[7][1])


@quick
@given(st.sampled_from(ARMS), st.lists(st.integers(1, 8), min_size=2, max_size=6), st.floats(-1e3, 1e3), st.booleans())
def test_no_logit_and_no_statistic_sees_padding(arm, lengths, value, training):
    lengths = torch.tensor(lengths)
    rows = numbers(len(lengths), 2, 8, 8)
    behind = (torch.arange(8) >= lengths[:, None])[:, None, :, None]
    found = []
    for each in (rows, rows.masked_fill(behind, value)):
        net = elman(arm, members=2).train(training)
        logits = net(each, lengths)
        found.append([logits, *(b.clone() for b in net.buffers())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@SPACES
def test_without_the_mask_padding_enters_the_batch_statistics(space):
    name = space.__name__
    assert [leak(arm, name) for arm in ARMS] == [0, 0, 0]
    assert leak("batch_norm", name, masked=False) > 0.1
    assert [leak(arm, name, masked=False) for arm in ("none", "layer_norm")] == [0, 0]  # no statistic to enter
    net, rows = elman("batch_norm", space=space, masked=False), numbers(7, 1, 8, 8, seed=1)
    next(net.states(rows, torch.tensor([0, 0, 0, 0, 0, 0, 1])))  # one sequence runs, all seven are counted
    assert torch.allclose(net.norms[0].running_mean, 0.1 * (rows[:, 0, 0] @ net.input.weight.T).mean(0))
    assert torch.allclose(net(rows, FULL), elman("batch_norm", space=space)(rows, FULL))  # no padding, no difference


@SPACES
@pytest.mark.parametrize("arm", ARMS)
def test_members_side_by_side_equal_each_alone(arm, space):
    rows = numbers(7, 3, 8, 8, seed=1)
    together = elman(arm, space=space, members=3)
    alone = [elman(arm, space=space, first=m) for m in range(3)]
    for mode in (True, False):  # training moves the statistics that inference takes
        found = together.train(mode)(rows, RAGGED)
        assert found.shape == (7, 3, 10)
        for m, net in enumerate(alone):
            assert torch.allclose(found[:, m], net.train(mode)(rows[:, m : m + 1], RAGGED)[:, 0], atol=1e-10)
    found.square().sum().backward()
    for m, net in enumerate(alone):
        net(rows[:, m : m + 1], RAGGED).square().sum().backward()
        for p, q in zip(together.parameters(), net.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None)
            assert p.grad is None or torch.allclose(p.grad.view(3, *q.shape)[m], q.grad, rtol=1e-6, atol=1e-9)


def test_weights_are_drawn_with_variance_one_over_fan_in_and_are_equal_in_all_arms():
    nets = [Elman(arm, 64, norms, 2) for arm in ARMS]
    for net in nets:
        net.initialize([generator(0), generator(1)])
    for name in ("input", "hidden", "output"):
        weights = [getattr(net, name).weight for net in nets]
        assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
        draws = weights[0].detach() * math.sqrt(weights[0].shape[1])
        assert float(draws.std()) == pytest.approx(1, abs=0.1) and abs(float(draws.mean())) < 0.1
        assert not torch.equal(*draws.chunk(2))
    first = torch.randn(64 * 8, generator=generator(1)).view(64, 8) / math.sqrt(8)
    assert torch.equal(nets[0].input.weight[64:], first)


def test_without_normalization_there_is_no_gamma_to_learn_and_beta_is_the_only_bias():
    for arm in ARMS:
        net = Elman(arm, 4, norms)
        learned = {name for name, p in net.named_parameters() if p.requires_grad}
        rest = {"beta", "input.weight", "hidden.weight", "output.weight", "output.bias"}
        assert learned == (rest if arm == "none" else {*rest, "gamma"})


@pytest.mark.parametrize("arm", ["", "batchnorm", "None"])
def test_a_reader_wants_a_known_arm(arm):
    with pytest.raises(InputError, match="one of: none, batch_norm, layer_norm"):
        Reader(arm, 0.1, 12, 1)


@pytest.mark.parametrize("batch_size", [1, 7, 13, 64])
def test_a_reader_wants_as_many_sequences_of_each_length(batch_size):
    with pytest.raises(InputError, match=f"batch_size {batch_size} is not a multiple of 6"):
        Reader("none", 0.1, batch_size, 1)


@pytest.mark.parametrize("batch_size", [6, 12, 48])
def test_a_batch_has_as_many_sequences_of_each_length(batch_size):
    assert Reader("none", 0.1, batch_size, 1).batch_size == batch_size
    lengths = lengths_of(batch_size).tolist()
    assert {length: lengths.count(length) for length in LENGTHS} == dict.fromkeys(LENGTHS, batch_size // 6)
    assert len(lengths) == batch_size


def test_an_unknown_norm_space_is_bad_input():
    with pytest.raises(InputError, match="BatchNorm1d"):
        read(Reader("none", 0.1, 12, 1, norm="math"), [(0, 0)])


@pytest.mark.parametrize("arm", ARMS)
def test_a_tiny_run_is_finite_of_the_documented_shapes_and_the_same_again(arm):
    config = Reader(arm, 0.02, 12, 4, width=6, n_train=62)
    found = read(config, [(0, 0), (0, 1)])
    torch.manual_seed(7)  # nothing comes from the global stream
    assert read(config, [(0, 0), (0, 1)]) == found
    assert len(found) == 2 and found[0] != found[1]
    for each in found:
        assert set(each) == {"train_loss", "curve", "validation_loss", "test_loss"}
        assert len(each["curve"]) == 20 and len(each["test_loss"]) == len(LENGTHS)  # 5 batches an epoch, 2 left out
        assert np.isfinite([each["train_loss"], each["validation_loss"], *each["curve"], *each["test_loss"]]).all()
        assert each["train_loss"] == pytest.approx(np.mean(each["curve"][-2:]), rel=1e-6)
        assert each["train_loss"] < each["curve"][0]


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_is_that_of_a_plain_loop_with_adam(arm):
    config, seed = Reader(arm, 0.02, 24, 2, width=6, n_train=76), (5, 1)
    (found,) = read(config, [seed])
    dataset, (weights, order, _) = data.load(), train.streams(seed)
    net = Elman(arm, 6, nn)
    net.initialize([generator(weights)])
    learned = [p for p in net.parameters() if p.requires_grad]
    averages, squares = ([torch.zeros_like(p) for p in learned] for _ in range(2))
    lengths, shuffle, curve = torch.tensor([length for length in LENGTHS for _ in range(4)]), generator(order), []
    for _ in range(2):
        for part in torch.randperm(76, generator=shuffle)[:72].split(24):
            loss = F.cross_entropy(plainly(net, dataset.train.images[part], lengths), dataset.train.labels[part])
            net(dataset.train.images[part], lengths)  # moves the running statistics, which the loop has not
            curve.append(loss.item())
            for p, g, m, v in zip(learned, torch.autograd.grad(loss, learned), averages, squares, strict=True):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                with torch.no_grad():
                    unbiased = (m / (1 - 0.9 ** len(curve)), v / (1 - 0.999 ** len(curve)))
                    p -= 0.02 * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    assert found["curve"] == pytest.approx(curve, rel=1e-4)
    net.eval()
    losses = {}
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        cut_off = (net(split.images, torch.full((len(split),), length)) for length in LENGTHS)
        losses[name] = [F.cross_entropy(logits[:, 0], split.labels).item() for logits in cut_off]
    assert found["test_loss"] == pytest.approx(losses["test"], rel=CLOSE[arm])
    assert found["validation_loss"] == pytest.approx(np.mean(losses["validation"]), rel=CLOSE[arm])
    assert len(set(found["test_loss"])) == 6


@pytest.mark.parametrize("arm", ARMS)
def test_a_run_does_not_depend_on_the_runs_beside_it(arm):
    config = Reader(arm, 0.01, 24, 1, width=6, n_train=120)
    together, (alone,) = read(config, [(1, 0), (1, 1), (1, 2)]), read(config, [(1, 1)])
    assert together[1]["curve"] == pytest.approx(alone["curve"], rel=1e-4)
    assert together[1]["test_loss"] == pytest.approx(alone["test_loss"], rel=CLOSE[arm])
    assert together[0]["curve"] != pytest.approx(alone["curve"], rel=0.01)


def test_padding_of_real_digits_does_not_reach_the_training_loss(monkeypatch):
    curves = []
    honest = data.batches
    for value in (0.0, 50.0):

        def padded(*args, value=value):
            behind = (torch.arange(8) >= lengths_of(12)[:, None])[:, None, None, :, None]
            for images, labels in honest(*args):
                yield images.masked_fill(behind, value), labels

        monkeypatch.setattr(recurrent.data, "batches", padded)
        curves.append([each["curve"] for each in read(Reader("batch_norm", 0.01, 12, 1, 6, 48), [(0, 0), (0, 1)])])
    assert curves[0] == curves[1]
