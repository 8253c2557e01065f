"""What chapter 3 measures: masks, distances and invariances that can fail, and a net that padding cannot reach."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from normbook import data, norms, train
from normbook.errors import InputError
from normbook.probes import axes, recurrent

SHAPE = (3, 4, 2)


@pytest.mark.parametrize("space", [norms, nn])
@pytest.mark.parametrize("kind", axes.NORMS)
def test_masks_are_those_of_the_definition(kind, space):
    assert torch.equal(axes.mask(axes.layer(kind, SHAPE, space), SHAPE), axes.expected(kind, SHAPE))


def test_the_definitions_differ_and_an_entry_can_be_read_by_hand():
    masks = {kind: axes.expected(kind, SHAPE) for kind in axes.NORMS}
    assert len({tuple(m.flatten().tolist()) for m in masks.values()}) == 5
    per_output = {kind: int(m[0].sum()) for kind, m in masks.items()}
    assert per_output == {"batch": 6, "layer": 8, "instance": 2, "group": 4, "rms": 4}
    # output (0, 0, 0) and input (1, 0, 1): another example and position, the same channel
    assert [kind for kind, m in masks.items() if m[0, 1 * 8 + 0 * 2 + 1]] == ["batch"]


@pytest.mark.parametrize("kind", axes.NORMS)
def test_equality_with_torch_sees_swapped_gammas_and_the_unbiased_variance(kind):
    assert axes.against_torch(kind, norms) < 1e-11
    assert axes.against_torch(kind, norms, flip=True) > 0.1
    if kind != "rms":  # it has no variance
        assert axes.against_torch(kind, norms, correction=1) > 0.01


def test_at_gamma_one_and_beta_zero_swapped_parameters_go_unseen():
    x, layer = axes.array(SHAPE), norms.LayerNorm((4, 2)).double()
    assert torch.allclose(layer(x), axes.copy_affine(layer, nn.LayerNorm((4, 2)).double(), flip=True)(x))


def test_ghost_batch_norm_is_batch_norm_on_parts():
    for space in (norms, nn):
        for shape, reference in (((6, 4), nn.BatchNorm1d(4)), ((6, 4, 3, 2), nn.BatchNorm2d(4))):
            ghost, x = axes.ghost(shape, 3, space), axes.array(shape)
            theirs = axes.copy_affine(ghost, reference.double())
            assert axes.distance(ghost, axes.Parts(theirs, 3), x) < 1e-12 < axes.distance(ghost, theirs, x)


def test_weight_norm_is_torchs():
    ours, x, w = axes.WeightNorm(5), axes.array((3, 4)), axes.array((5, 4), 1)
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5).double())
    with torch.no_grad():
        linear.parametrizations.weight.original0.copy_(ours.weight[:, None])
        linear.parametrizations.weight.original1.copy_(w)
        linear.bias.copy_(ours.bias)
    assert torch.allclose(ours(x, w), linear(x))


@pytest.mark.parametrize("seed", [0, 1])
def test_table_1_of_ba_kiros_and_hinton(seed):
    found = axes.invariances(norms, seed)
    invariant = {kind: [value < 1e-9 for value in row[:6]] for kind, row in found.items()}
    assert invariant == {
        "batch": [True, False, True, True, True, False],
        "weight": [True, False, True, False, False, False],
        "layer": [True, True, False, True, False, True],
        "rms": [True, False, False, True, False, True],
    }
    assert all(value < 1e-9 or value > 0.01 for row in found.values() for value in row)
    with_epsilon = axes.invariances(norms, seed, eps=1e-3)
    assert with_epsilon["layer"][0] > 1e-5  # exact for a negligible epsilon only


def test_padding_does_not_leak_unless_the_mask_is_taken_away():
    for space in ("normbook.norms", "torch.nn"):
        assert [recurrent.leak(arm, space) for arm in recurrent.ARMS] == [0, 0, 0]
        assert recurrent.leak("batch_norm", space, masked=False) > 0.1


def test_the_network_is_the_recurrence_written_out():
    net = recurrent.Elman("layer_norm", 5, nn).double()
    net.initialize([torch.Generator().manual_seed(0)])
    rows, lengths = axes.array((2, 1, 8, 8)), torch.tensor([3, 8])
    axes.randomize(net.norms, 0)
    expected = []
    for sequence, length in zip(rows[:, 0], lengths, strict=True):
        h = torch.zeros(5, dtype=torch.float64)
        for row in sequence[:length]:
            a = net.input.weight @ row + net.hidden.weight @ h
            a = (a - a.mean()) / (a.var(correction=0) + 1e-5).sqrt()
            h = torch.tanh(net.gamma * a + net.beta)
        expected.append(net.output.weight @ h + net.output.bias)
    assert torch.allclose(net(rows, lengths)[:, 0], torch.stack(expected))


@pytest.mark.parametrize("arm", recurrent.ARMS)
def test_a_run_does_not_depend_on_the_runs_beside_it_and_norm_spaces_agree(arm):
    config = recurrent.Reader(arm, 2**-7, 12, 1, width=8, n_train=48)
    alone = recurrent.read(config, [(7, 1)])[0]
    for other in (config, replace(config, norm="torch.nn")):
        beside = recurrent.read(other, [(7, 0), (7, 1)])[1]
        assert beside["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-2)  # Adam turns rounding into steps
    assert alone["curve"][0] == pytest.approx(2.3, abs=1)
    assert len(alone["test_loss"]) == len(recurrent.LENGTHS) and len(alone["curve"]) == 4


def test_one_sequence_left_is_its_own_mean_and_moves_nothing():
    net = recurrent.Elman("batch_norm", 4, norms)
    net.initialize([torch.Generator().manual_seed(0)])
    rows = data.load().train.images[:6]
    net(rows, recurrent.lengths_of(6))
    assert [int(norm.num_batches_tracked) for norm in net.norms] == [1] * 7 + [0]


def test_lengths_are_spread_evenly_and_a_batch_has_all_of_them():
    assert recurrent.lengths_of(12).tolist() == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]
    with pytest.raises(InputError, match="not a multiple of 6"):
        recurrent.Reader("none", 0.1, 16, 1)
    with pytest.raises(InputError, match="layer_norm"):
        recurrent.Reader("layernorm", 0.1, 12, 1)


def test_streams_are_those_of_the_trainer():
    torch.manual_seed(0)
    first, second = (recurrent.read(recurrent.Reader("none", 2**-7, 12, 1, 4, 24), [(3, i)])[0] for i in (0, 1))
    assert first["curve"] != second["curve"]
    assert train.config.streams((3, 0)) != train.config.streams((3, 1))
