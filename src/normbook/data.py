"""Datasets as tensors on the device, and the order and augmentation in which a run sees them.

A dataset is three pairs of tensors (training, validation, test). Everything that varies from run to run is drawn on the
device from two generators of that run: one for the order, one for the augmentation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from normbook.errors import choose

DATASETS = ("digits",)
SPLIT_SEED = 0  # the split is part of the dataset, not of a run: all runs see the same one


@dataclass(frozen=True)
class Split:
    """Images [n, channels, height, width] (float32, standardized), labels [n] or, one column a run, [n, M] (int64)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """One dataset on one device.

    ``content_hash`` is over the raw pixels, labels and split, so it names what was learned from, wherever it came
    from. ``pad`` (pixels) and ``flip`` say which augmentation suits the images: digits are shifted, never mirrored.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    content_hash: str
    train: Split
    validation: Split
    test: Split
    pad: int
    flip: bool


@cache
def load(name: str = "digits", device: str = "cpu") -> Dataset:
    """Return the dataset called ``name`` with its tensors on ``device``.

    ``digits``: scikit-learn's 1,797 8x8 digits (UCI Optical Recognition of Handwritten Digits), split once, by class:
    1,000 training, 200 validation, 597 test images. Pixels are standardized with the training images' mean and
    standard deviation.

    Raises:
        InputError: ``name`` is not a known dataset.
    """
    choose("data set", name, DATASETS)
    from sklearn.datasets import load_digits  # takes a second to import: only when the digits are read
    from sklearn.model_selection import train_test_split

    raw, labels = load_digits(return_X_y=True)
    pixels = raw.astype(np.uint8).reshape(-1, 1, 8, 8)
    index, test = train_test_split(np.arange(len(labels)), test_size=597, stratify=labels, random_state=SPLIT_SEED)
    train, validation = train_test_split(index, test_size=200, stratify=labels[index], random_state=SPLIT_SEED)
    return _assemble(name, pixels, labels, (train, validation, test), 10, device, pad=1, flip=False)


def _assemble(
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[np.ndarray],
    classes: int,
    device: str,
    pad: int,
    flip: bool,
) -> Dataset:
    digest = hashlib.sha256()
    for array in (pixels, labels.astype(np.int64), *(part.astype(np.int64) for part in parts)):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    train_pixels = pixels[parts[0]].astype(np.float64)
    images = torch.from_numpy(((pixels - train_pixels.mean()) / train_pixels.std()).astype(np.float32)).to(device)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)
    train, validation, test = (Split(images[part], targets[part]) for part in parts)
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return Dataset(name, classes, shape, digest.hexdigest()[:16], train, validation, test, pad, flip)


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
    shifts = None
    if augmentation is not None:
        # one draw an epoch and run: row and column shift of the crop, and whether to mirror
        high = 2 * pad + 1
        shifts = torch.stack(
            [torch.randint(high * high * 2, (n,), generator=g, device=g.device) for g in augmentation], dim=1
        )
    for start in range(0, n - batch_size + 1, batch_size):
        part = index[start : start + batch_size]
        images = split.images[part]
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


def _augment(images: Tensor, draw: Tensor, pad: int, flip: bool) -> Tensor:
    """Crop each image of [batch, M, c, h, w] at its own shift from a zero-padded copy, and mirror every other draw.

    Gathers by index: a boolean mask would make the host wait for the device.
    """
    batch, members, channels, height, width = images.shape
    high = 2 * pad + 1
    row, column, mirror = draw.flatten() // (2 * high), draw.flatten() // 2 % high, draw.flatten() % 2 == 1
    padded = torch.nn.functional.pad(images.flatten(0, 1), (pad, pad, pad, pad))
    rows = row[:, None] + torch.arange(height, device=row.device)
    columns = torch.arange(width, device=row.device).expand(len(column), width)
    if flip:
        columns = torch.where(mirror[:, None], columns.flip(1), columns)
    columns = column[:, None] + columns
    run = torch.arange(len(row), device=row.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[run, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2).reshape(batch, members, channels, height, width)
