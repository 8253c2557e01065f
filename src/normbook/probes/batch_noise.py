"""The noise of batch norm: how far the mean and variance of a random batch lie from those of all training images.

A batch of B images has m = B h w values of a channel. Were they independent, with variance sigma^2 and kurtosis k, the
mean of a batch would have standard deviation sigma / sqrt(m), its variance sigma^2 sqrt((k - (m - 3) / (m - 1)) / m);
for a Gaussian, k = 3, that is sigma^2 sqrt(2 / (m - 1)). The pixels of one image are not independent, but images are:
only an image's own mean and mean square deviation enter the batch's statistics, so the spread is that of averages of B
numbers, drawn without replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from normbook.probes.inference import stored
from normbook.train import Config, Training
from normbook.train.loop import net_input


@dataclass(frozen=True)
class Spread:
    """The spread of the statistics of random batches of S ``sizes`` at one place of a network, and what predicts it.

    Everything is in units of the standard deviation sigma (or variance sigma^2) of a channel over all n images and
    pixels, and a root mean square over the channels. ``mean`` [S] and ``variance`` [S]: standard deviation over the
    batches of their mean and of their biased variance. ``expected`` [S]: average of the batches' biased variance.
    ``image_mean``: standard deviation over images of the mean over an image's pixels; ``image_square``: of the mean
    square deviation from the mean over all images. ``kurtosis`` is that of single values (Gaussian: 3), ``pixels`` h w.
    """

    sizes: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    expected: np.ndarray
    image_mean: float
    image_square: float
    kurtosis: float
    pixels: int
    images: int

    @property
    def without_replacement(self) -> np.ndarray:
        """sqrt((n - B) / (n - 1)) [S]: by this factor less spread, since a batch takes no image twice."""
        return np.sqrt((self.images - self.sizes) / (self.images - 1))

    @property
    def mean_theory(self) -> np.ndarray:
        """Spread of the mean [S] where images are independent: exact."""
        return self.image_mean / np.sqrt(self.sizes) * self.without_replacement

    @property
    def variance_theory(self) -> np.ndarray:
        """Spread of the variance [S] where images are independent: to leading order in 1 / B."""
        return self.image_square / np.sqrt(self.sizes) * self.without_replacement

    @property
    def mean_if_independent(self) -> np.ndarray:
        """Spread of the mean [S] were the pixels of an image independent too."""
        return self.without_replacement / np.sqrt(self.sizes * self.pixels)

    def variance_if_independent(self, kurtosis: float = 3) -> np.ndarray:
        """Spread of the variance [S] were the pixels independent too, for this kurtosis (3: Gaussian)."""
        m = self.sizes * self.pixels
        return np.sqrt((kurtosis - (m - 3) / (m - 1)) / m) * self.without_replacement

    @property
    def effective_pixels(self) -> float:
        """The number of independent pixels an image would need to have for a mean as noisy as it is."""
        return 1 / self.image_mean**2


def partitions(n: int, size: int, draws: int, generator: torch.Generator) -> Tensor:
    """At least ``draws`` batches of ``size`` of n images, [batches, size]: random partitions, one after the other."""
    rounds = -(-draws // (n // size))
    used = n // size * size
    return torch.cat([torch.randperm(n, generator=generator)[:used].view(-1, size) for _ in range(rounds)])


def spread(x: Tensor, sizes: Sequence[int], draws: int, generator: torch.Generator) -> Spread:
    """Measure the spread of the statistics of at least ``draws`` batches of each size from x [n, channels, h, w]."""
    x = x.double().flatten(2)
    centered = x - x.mean((0, 2), keepdim=True)
    sigma2 = centered.square().mean((0, 2), keepdim=True).clamp_min(1e-30)
    centered = centered / sigma2.sqrt()
    image_mean, image_square = centered.mean(2), centered.square().mean(2)
    mean, variance, expected = [], [], []
    for size in sizes:
        index = partitions(len(x), size, draws, generator)
        means = image_mean[index].mean(1)
        variances = image_square[index].mean(1) - means.square()
        mean.append(_rms(means.std(0, correction=0)))
        variance.append(_rms(variances.std(0, correction=0)))
        expected.append(float(variances.mean()))
    return Spread(
        np.array(sizes), np.array(mean), np.array(variance), np.array(expected), _rms(image_mean.std(0, correction=0)),
        _rms(image_square.std(0, correction=0)), float(centered.pow(4).mean()), x.shape[2], len(x),
    )  # fmt: skip


def shuffled(x: Tensor, generator: torch.Generator) -> Tensor:
    """x [n, channels, h, w] with the values of each channel dealt anew over images and pixels: all ties are cut."""
    values = x.transpose(0, 1).flatten(1)
    order = torch.stack([torch.randperm(values.shape[1], generator=generator) for _ in values])
    return values.gather(1, order).view(x.transpose(0, 1).shape).transpose(0, 1)


def repeated(x: Tensor) -> Tensor:
    """x [n, channels, h, w] with the middle pixel of each image in place of all: an image counts for one pixel."""
    h, w = x.shape[2:]
    return x[:, :, h // 2, w // 2, None, None].expand_as(x)


def of_runs(configs: Sequence[Config], sizes: Sequence[int], draws: int) -> list[list[tuple[Spread, Spread, Spread]]]:
    """Train a bundle of runs, then measure at the input of each norm.

    One list a run, one triple a norm: the spread, and that with pixels shuffled and with one pixel repeated.
    The population are all training images of the run, in one batch in training mode, so it has no noise of its own.
    """
    training = Training(configs)
    for _ in training:
        pass
    members = len(configs)
    inputs: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs.append(given[0].detach())

    handles = [m.register_forward_pre_hook(keep) for m in stored(training.net)]
    with torch.no_grad():
        training.net(net_input(training.train.images[:, None].expand(-1, members, -1, -1, -1)))
    for handle in handles:
        handle.remove()
    found = []
    for run, config in enumerate(configs):
        generator = torch.Generator().manual_seed(int(np.random.SeedSequence(config.seed).generate_state(4)[3]))
        layers = [x.unflatten(1, (members, -1))[:, run] for x in inputs]
        found.append(
            [
                (
                    spread(x, sizes, draws, generator),
                    spread(shuffled(x, generator), sizes, draws, generator),
                    spread(repeated(x), sizes, draws, generator),
                )
                for x in layers
            ]
        )
    return found


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())
