"""The order and augmentation in which a run sees its images, and its label noise.

Everything that varies from run to run is drawn on the device from two generators of that run: one for the order, one
for the augmentation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from normbook.data.dataset import Split


def batches(
    split: Split,
    batch_size: int,
    order: Sequence[torch.Generator],
    augmentation: Sequence[torch.Generator] | None = None,
    pad: int = 0,
    flip: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of batches for M runs that are trained side by side, each in its own order.

    ``order`` and ``augmentation`` hold one generator a run. Images come as [batch, M, channels, height, width], labels
    as [batch, M]. The images that do not fill a batch are left out of this epoch; the next epoch's order is another.
    """
    n = len(split)
    index = torch.stack([torch.randperm(n, generator=g, device=g.device) for g in order], dim=1)
    shifts = _draw(n, augmentation, pad) if augmentation is not None else None
    for start in range(0, n - batch_size + 1, batch_size):
        part = index[start : start + batch_size]
        images = split.take(part)
        if shifts is not None:
            images = _augment(images, shifts[start : start + batch_size], pad, flip)
        yield images, split.labels[part] if split.labels.dim() == 1 else split.labels.gather(0, part)


def relabel(labels: Tensor, classes: int, share: float, seeds: Sequence[int]) -> Tensor:
    """Draw the labels of a ``share`` of the images anew, uniformly over the classes and for each run its own: [n, M].

    So about ``share * (1 - 1 / classes)`` of them are wrong. Without noise the labels [n] are returned as they are.
    """
    if not share:
        return labels
    columns = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]
        column = labels.clone()
        drawn = torch.randint(classes, (len(chosen),), generator=generator)
        column[chosen.to(labels.device)] = drawn.to(labels.device)
        columns.append(column)
    return torch.stack(columns, dim=1)


def augmented(images: Tensor, generators: Sequence[torch.Generator], pad: int, flip: bool) -> Tensor:
    """The images [batch, M, channels, height, width] shifted, and with ``flip`` mirrored, at random: M generators."""
    return _augment(images, _draw(len(images), generators, pad), pad, flip)


def _draw(n: int, generators: Sequence[torch.Generator], pad: int) -> Tensor:
    """[n, M]: row and column shift of an image's crop, and whether to mirror it, in one number."""
    high = 2 * pad + 1
    draws = [torch.randint(high * high * 2, (n,), generator=g, device=g.device) for g in generators]
    return torch.stack(draws, dim=1)


def _augment(images: Tensor, draw: Tensor, pad: int, flip: bool) -> Tensor:
    """Crop each image of [batch, M, c, h, w] at its own shift from a zero-padded copy, and mirror every other draw.

    Gathers by index: a boolean mask would make the host wait for the device.
    """
    batch, members, channels, height, width = images.shape
    high = 2 * pad + 1
    row, column, mirror = draw.flatten() // (2 * high), draw.flatten() // 2 % high, draw.flatten() % 2 == 1
    padded = torch.nn.functional.pad(images.flatten(0, 1), (pad, pad, pad, pad))
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)  # all of them, as a view: [n, c, high, high, h, w]
    cropped = crops[torch.arange(len(row), device=row.device), :, row, column]
    if flip:
        cropped = torch.where(mirror[:, None, None, None], cropped.flip(3), cropped)
    return cropped.view(batch, members, channels, height, width)
