"""normbook.probes.batch_noise: the spread of batch statistics against theory; borrowed noise."""

import numpy as np
import pytest
import torch

from normbook import models, norms
from normbook.probes import batch_noise
from normbook.probes.batch_noise import of_runs, partitions, repeated, shuffled, spread
from normbook.train import Config

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
SIZES = (2, 8, 32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def independent(h=4, n=1024, channels=8):
    return torch.randn(n, channels, h, h, generator=generator(1))


def test_independent_gaussian_pixels_follow_the_textbook():
    found = spread(independent(), SIZES, 2000, generator())
    assert found.mean == pytest.approx(found.mean_if_independent, rel=0.05)
    assert found.variance == pytest.approx(found.variance_if_independent(), rel=0.05)
    assert found.effective_pixels == pytest.approx(16, rel=0.1)
    assert found.kurtosis == pytest.approx(3, abs=0.1)


def test_kurtosis_enters_the_spread_of_the_variance():
    coins = independent().sign()  # kurtosis 1: squares do not vary at all, only the mean does
    found = spread(coins, (8,), 2000, generator())
    assert found.kurtosis == pytest.approx(1, abs=0.01)
    assert found.variance == pytest.approx(found.variance_if_independent(found.kurtosis), rel=0.15)
    assert found.variance < 0.2 * found.variance_if_independent()


def test_pixels_that_repeat_one_number_count_once():
    same = independent(h=1).expand(-1, -1, 4, 4)
    found = spread(same, SIZES, 2000, generator())
    assert found.effective_pixels == pytest.approx(1, rel=0.02)
    assert found.mean == pytest.approx(found.mean_theory, rel=0.05)
    assert np.all(found.mean > 3 * found.mean_if_independent)
    # a ghost batch's variance leaves out the variance of its own mean
    assert found.expected == pytest.approx(1 - found.mean_theory**2, rel=0.02)


def test_shuffling_keeps_the_values_and_unties_the_pixels():
    x = independent(h=1).expand(-1, -1, 4, 4)
    y = shuffled(x, generator())
    assert y.shape == x.shape
    assert torch.equal(y[:, 3].flatten().sort().values, x[:, 3].flatten().sort().values)
    assert spread(y, SIZES, 200, generator()).effective_pixels == pytest.approx(16, rel=0.1)


def test_one_pixel_repeated_counts_once():
    y = repeated(independent())
    assert torch.equal(y[3, 2, 0, 0], independent()[3, 2, 2, 2])
    assert spread(y, SIZES, 200, generator()).effective_pixels == pytest.approx(1, rel=0.02)


def test_what_all_images_share_is_no_noise():
    found = spread(independent() + 3 * torch.randn(4, 4, generator=generator(2)), SIZES, 200, generator())
    assert found.effective_pixels > 50  # of 16: the pattern over positions adds to sigma, not to the spread


def test_a_batch_of_all_images_has_no_spread():
    found = spread(independent(n=64), (64,), 5, generator())
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert found.mean_theory == pytest.approx(0)


def test_partitions_take_each_image_once_a_round():
    index = partitions(10, 3, 5, generator())
    assert index.shape == (6, 3)
    for part in index.view(2, -1):
        assert len(part.unique()) == 9


def test_runs_are_measured_at_every_norm_and_apart():
    configs = [
        Config("batch_norm", 0.1, depth=10, width=0.5, batch_size=8, steps=2, n_train=32, seed=(0, i)) for i in (0, 1)
    ]
    first, second = of_runs(configs, (2, 8), 20)
    assert [s.pixels for s, *_ in first] == [64, 64, 64, 16, 16, 4, 4]
    alone = of_runs(configs[1:], (2, 8), 20)[0]
    assert np.allclose([s.mean for s, *_ in second], [s.mean for s, *_ in alone], rtol=1e-3)
    assert not np.allclose([s.mean for s, *_ in first], [s.mean for s, *_ in second], rtol=1e-3)


def borrowed(size=4, members=2, channels=3):
    return models.layers.BorrowedNoise(
        norms.BatchNorm2d(members * channels, affine=False), members * channels, members, size
    )


def test_borrowed_noise_is_that_of_another_ghost_batch():
    x = torch.randn(8, 6, 2, 2, generator=generator())
    y = borrowed()(x)  # two ghost batches: each takes the other's
    z = norms.BatchNorm2d(6)(x)
    for mine, other in ((slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4))):
        mean, var = z[other].mean((0, 2, 3), keepdim=True), z[other].var((0, 2, 3), correction=0, keepdim=True)
        assert torch.allclose(y[mine], (z[mine] - mean) / (var + 1e-5).sqrt(), atol=1e-5)


def test_borrowed_noise_is_off_in_inference_and_where_there_is_one_ghost_batch():
    x = torch.randn(8, 6, 2, 2, generator=generator())
    whole = norms.BatchNorm2d(6)
    assert torch.allclose(borrowed(8)(x), whole(x), atol=1e-5)
    layer = borrowed().eval()
    assert torch.allclose(layer(x), norms.BatchNorm2d(6).eval()(x), atol=1e-5)


def test_borrowed_noise_never_takes_its_own_ghost_batch():
    x = torch.randn(12, 6, 2, 2, generator=generator())
    x[:4] *= 100  # its own statistics would make it small
    layer = borrowed()
    for _ in range(20):
        assert float(layer(x)[:4].detach().abs().max()) > 20


def test_module_is_documented():
    assert all(
        getattr(batch_noise, name).__doc__
        for name in ("Spread", "partitions", "spread", "shuffled", "repeated", "of_runs")
    )


def test_no_gradient_passes_through_borrowed_noise():
    layer = models.layers.BorrowedNoise(torch.nn.Identity(), 6, 2, 4)
    x = torch.randn(8, 6, 2, 2, generator=generator()).requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x)[:4].square().sum(), x)
    assert gradient[:4].abs().min() > 0 and not gradient[4:].any()  # the ghost batch that lends the noise
