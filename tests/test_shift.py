"""normbook.probes.shift: three definitions of a shift, each against a case whose answer is known."""

import numpy as np
import pytest
import torch

from normbook.probes import shift
from normbook.train import Config, Training

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower


def configs(arm="none", members=2, lr=0.5, **options):
    given = {"depth": 3, "width": 8, "activation": "sigmoid", "batch_size": 20, "steps": 5, **options}
    return [
        Config(
            arm=arm, lr=lr, model="mlp", momentum=0.0, weight_decay=0.0, schedule="constant", evaluate=(), seed=(0, i),
            **given,
        )
        for i in range(members)
    ]  # fmt: skip


def trained(each):
    training = Training(each)
    for _ in training:
        pass
    return training


def test_percentiles_that_move_by_one_width_have_traveled_one():
    width_two = np.array([[-1.0], [0.0], [1.0]])
    moving = np.stack([width_two, width_two + 2])
    assert shift.travel(moving) == pytest.approx([1])
    assert shift.travel(np.stack([moving[0], moving[1], moving[0]])) == pytest.approx([2])  # there and back
    assert shift.travel(np.stack([width_two, width_two])) == pytest.approx([0])


def test_the_distance_of_a_shifted_sample_is_the_shift_in_standard_deviations_in_any_order():
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    y = x[torch.randperm(200)] + 2 * x.std(0, correction=0)
    assert shift.wasserstein(x, y).numpy() == pytest.approx([2, 2, 2], rel=1e-5)
    assert not shift.wasserstein(x, x.flip(0)).any()


@pytest.mark.parametrize("arm", ["batch_norm_noisy", "noisy"])
def test_measuring_does_not_change_the_training(arm):
    alone = trained(configs(arm))
    watched = shift.follow(configs(arm), times=4)
    assert np.array_equal(np.stack([r.losses for r in watched], 1), alone.losses.numpy())
    test = alone.dataset.test
    loss, right = shift.evaluate(alone.net, test.images, test.labels)
    assert [r.test_loss for r in watched] == pytest.approx(loss.tolist(), rel=1e-6)
    assert np.array_equal(watched[1].right, right[:, 1].numpy())


def test_runs_side_by_side_are_measured_as_alone():
    together = shift.follow(configs("batch_norm_noisy", members=3), times=3)
    alone = shift.follow(configs("batch_norm_noisy", members=3)[2:], times=3)[0]
    assert together[2].difference == pytest.approx(alone.difference, rel=1e-3)
    assert together[2].distance == pytest.approx(alone.distance, rel=1e-3)
    assert together[2].travel == pytest.approx(alone.travel, rel=1e-3)


def test_without_learning_nothing_shifts_and_gradients_stay_aligned():
    for arm in ("none", "batch_norm"):
        (found,) = shift.follow(configs(arm, members=1, lr=1e-7), times=3)
        assert found.travel < 1e-4 and found.distance.max() < 1e-4 and found.difference.max() < 1e-4
        assert found.cosine == pytest.approx(np.ones_like(found.cosine), abs=1e-5)


def test_noise_shifts_inputs_but_leaves_the_gradient_comparison_on_equal_noise():
    (found,) = shift.follow(configs("batch_norm_noisy", members=1, lr=1e-7), times=3)
    assert found.distance.min() > 0.1
    assert found.difference.max() < 1e-4


def test_the_gradient_form_updates_the_layers_before_and_restores_all_parameters():
    training = Training(configs("batch_norm", members=1))
    layers = shift.parameters_by_layer(training.net)
    assert [len(layer) for layer in layers] == [4, 4, 2]  # weight, bias, gamma, beta; the classifier has no norm
    old = [[p.detach().clone() for p in layer] for layer in layers]
    next(iter(training))
    new = [[p.detach().clone() for p in layer] for layer in layers]
    difference, cosine = shift.gradient_shift(training, layers, old)
    assert difference.shape == cosine.shape == (1, 2)
    assert all(
        torch.equal(p, v) for layer, kept in zip(layers, new, strict=True) for p, v in zip(layer, kept, strict=True)
    )
    # nothing moved: the same gradient
    same, aligned = shift.gradient_shift(training, layers, new)
    assert same.max() == 0 and aligned.numpy() == pytest.approx(np.ones((1, 2)))


def test_the_floor_is_zero_for_equal_batches_and_higher_for_sorted_ones():
    floor = shift.batch_floor(trained(configs(steps=60, lr=1.0)))
    assert not floor["same"].any()
    assert (floor["shuffled"] > 0.1).all() and (floor["sorted"] > 1.5 * floor["shuffled"]).all()


def test_a_run_that_diverges_is_an_outcome():
    found = shift.follow(configs(activation="relu", lr=1e6, steps=12), times=4)
    assert all(r.diverged and r.final_loss == float("inf") and len(r.losses) < 12 for r in found)


def test_images_move_right_by_one_pixel_over_the_background():
    images = torch.arange(8.0).view(1, 1, 2, 4)
    assert torch.equal(shift.moved_right(images)[0, 0], torch.tensor([[0.0, 0, 1, 2], [0, 4, 5, 6]]))
