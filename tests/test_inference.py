"""normbook.probes.inference: re-estimated and batch statistics and the variance shift, against plain loops."""

from dataclasses import replace

import pytest
import torch

from normbook import norms, train
from normbook.probes import inference
from normbook.train import Config

torch.set_num_threads(1)
TINY = Config("batch_norm", lr=0.1, depth=10, width=0.25, batch_size=20, steps=3, n_train=60)
SPACES = pytest.mark.parametrize("space", ["normbook.norms", "torch.nn"])


def trained(config=TINY, seeds=(0, 1)):
    training = train.Training([replace(config, seed=(0, i)) for i in seeds])
    for _ in training:
        pass
    return training.net, list(train.loop._chunks(training, 20))


@SPACES
def test_reestimated_statistics_are_the_mean_over_the_batches_with_the_final_weights(space):
    net, batches = trained(replace(TINY, norm=space))
    first = net.blocks[0].activate1[0]
    inputs = [net.stem(batch).detach() for batch in batches]
    net.train()
    inference.reestimate(net, batches)
    assert net.training and first.momentum == 0.1
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    var = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)  # unbiased, as running statistics are
    assert torch.allclose(first.running_mean, mean, atol=1e-5)
    assert torch.allclose(first.running_var, var, rtol=1e-4)


def test_reestimation_is_done_without_dropout():
    dropped, batches = trained(replace(TINY, dropout=0.9, dropout_at="before_norm"))
    plain, _ = trained(TINY)
    plain.load_state_dict(dropped.state_dict(), strict=False)
    renamed = dict(zip(plain.state_dict(), dropped.state_dict().values(), strict=True))
    plain.load_state_dict(renamed)
    for net in (dropped, plain):
        inference.reestimate(net, batches)
    for a, b in zip(dropped.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@SPACES
@pytest.mark.parametrize("ghost", [None, 5])
def test_batch_statistics_are_those_of_training_mode_and_leave_no_trace(space, ghost):
    net, batches = trained(replace(TINY, norm=space, ghost_batch_size=ghost))
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with inference.batch_statistics(net):
        within = net(batches[0])
    assert not net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    after = net(batches[0])
    expected = net.train()(batches[0])
    assert torch.equal(within, expected) and not torch.equal(within, after)


def test_the_variance_shift_is_one_where_moving_and_real_variance_agree():
    net, batches = trained()
    moving, real = inference.variance_shift(net, batches, 2)
    assert moving.shape == real.shape == (7, 2)
    first = net.stem(torch.cat(batches)).double().unflatten(1, (2, -1))
    per_channel = first.transpose(0, 1).transpose(1, 2).flatten(2).var(-1, correction=0)
    assert torch.allclose(real[0], per_channel.mean(1), rtol=1e-5)
    inference.reestimate(net, batches)
    moving, real = inference.variance_shift(net, batches, 2)
    assert torch.allclose(moving[0], real[0], rtol=0.1)


def test_augmentation_alone_is_no_variance_shift():
    still = replace(TINY, n_train=500, steps=80, lr=1e-6, augment=True, evaluate=(), measure=("variance_shift",))
    moving, real = torch.tensor(train.run([still])[0]["curves"]["variance_shift"])[:, 1:].T
    assert 0.96 < float((moving / real).mean()) < 1.04
    plain = trained(still, seeds=(0,))
    moving, real = inference.variance_shift(*plain, 1)
    assert not 0.96 < float((moving / real).mean()) < 1.04  # measured on images that are not moved it looks like one


def test_dropout_before_a_norm_makes_its_moving_variance_too_large():
    net, batches = trained(replace(TINY, dropout=0.7, dropout_at="before_norm", steps=40, lr=1e-6))
    moving, real = inference.variance_shift(net, batches, 2)
    ratio = moving / real
    behind_dropout = [i for i, m in enumerate(inference.stored(net)) if m in {b.activate2[1] for b in net.blocks}]
    others = [i for i in range(7) if i not in behind_dropout and i < 3]
    assert len(behind_dropout) == 3
    assert float(ratio[behind_dropout].min()) > 1.8
    assert float(ratio[others[0]].max()) < 1.2


def test_a_net_without_stored_statistics_has_no_shift():
    net, batches = trained(replace(TINY, arm="layer_norm"))
    assert inference.stored(net) == [] and inference.variance_shift(net, batches, 2)[0].numel() == 0
    assert isinstance(net.blocks[0].activate1[0], norms.GroupNorm)
