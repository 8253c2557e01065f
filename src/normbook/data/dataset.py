"""A dataset as tensors on the device: three pairs of images and labels, with a hash of what was learned from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPLIT_SEED = 0  # the split is part of the dataset, not of a run: all runs see the same one
VALIDATION = 0.1  # share of each class's training images
BLOCK = 1000  # images whose mean is computed at once


@dataclass(frozen=True)
class Split:
    """Images and labels of one part: labels [n] or, one column a run, [n, M] (int64).

    ``pixels`` [n, channels, height, width] are kept as float32, standardized, or as uint8, a quarter of the memory.
    Then ``mean`` and ``std`` [channels, 1, 1] of the training images standardize what is taken.
    """

    pixels: Tensor
    labels: Tensor
    mean: Tensor | None = None
    std: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images [n, channels, height, width], float32, standardized. Of many images, `take` what is needed."""
        return self.take(slice(None))

    def take(self, index: Tensor | slice) -> Tensor:
        """The images at ``index``, float32, standardized: [..., channels, height, width]."""
        taken = self.pixels[index]
        return taken if self.mean is None or self.std is None else (taken - self.mean) / self.std


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


def digits(device: str = "cpu") -> Dataset:
    """scikit-learn's digits: float32, with one mean and one standard deviation of all training pixels."""
    from sklearn.datasets import load_digits  # takes a second to import: only when the digits are read
    from sklearn.model_selection import train_test_split

    raw, labels = load_digits(return_X_y=True)
    pixels = raw.astype(np.uint8).reshape(-1, 1, 8, 8)
    index, test = train_test_split(np.arange(len(labels)), test_size=597, stratify=labels, random_state=SPLIT_SEED)
    train, validation = train_test_split(index, test_size=200, stratify=labels[index], random_state=SPLIT_SEED)
    return _assemble("digits", pixels, labels, (train, validation, test), 10, device, pad=1, flip=False)


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
    train_pixels = pixels[parts[0]].astype(np.float64)
    images = torch.from_numpy(((pixels - train_pixels.mean()) / train_pixels.std()).astype(np.float32)).to(device)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)
    train, validation, test = (Split(images[part], targets[part]) for part in parts)
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return Dataset(name, classes, shape, content_hash(pixels, labels, parts), train, validation, test, pad, flip)


def content_hash(pixels: np.ndarray, labels: np.ndarray, parts: Sequence[np.ndarray]) -> str:
    """16 hexadecimal digits of sha256 over pixels [n, c, h, w] (uint8), labels [n] and the indices of the parts."""
    digest = hashlib.sha256()
    for array in (pixels, labels.astype(np.int64), *(part.astype(np.int64) for part in parts)):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Counts:
    """How many images each class has, in the order of the classes' names: in the training part and in the test part.

    Sorted images are those of the training part, class by class, then those of the test part.
    """

    train: tuple[int, ...]
    test: tuple[int, ...]

    def split(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """(order, labels, parts): sorted images[order] are the training, then the validation, then the test images.

        ``labels`` are those of the ordered images, ``parts`` the indices of the three parts in them. A tenth of the
        training images of each class, at least one, are for validation, drawn with SPLIT_SEED. So CIFAR-10 has 45,000
        training, 5,000 validation and 10,000 test images. The training images are shuffled: any first n are a sample.
        """
        random = np.random.RandomState(SPLIT_SEED)  # its stream is frozen for good, unlike that of default_rng
        train, validation, start = [], [], 0
        for count in self.train:
            index = start + random.permutation(count)
            held_out = max(1, round(VALIDATION * count))
            validation.append(index[:held_out])
            train.append(index[held_out:])
            start += count
        tests = np.arange(start, start + sum(self.test))
        pieces = [random.permutation(np.concatenate(train)), np.concatenate(validation), tests]
        order = np.concatenate(pieces)
        classes = np.arange(len(self.train))
        labels = np.concatenate([np.repeat(classes, self.train), np.repeat(classes, self.test)])[order]
        edges = np.cumsum([len(piece) for piece in pieces])
        return order, labels, np.split(np.arange(len(order)), edges[:-1])


def of_images(name: str, pixels: np.ndarray, counts: Counts, found_hash: str, device: str) -> Dataset:
    """The dataset of colour images [n, 3, h, w] (uint8) that stand in the order of ``counts.split()``.

    They stay uint8 on the device; each channel is standardized by its mean and standard deviation over the training
    images. They are mirrored and shifted by up to an eighth of their height: 4 pixels of 32. Of validation and test
    images, too, any first n are a sample: stored class by class, they are dealt out here, always in the same way.
    """
    _, labels, parts = counts.split()
    on_device = torch.from_numpy(pixels).to(device)
    targets = torch.from_numpy(labels.astype(np.int64)).to(device)
    mean, std = (torch.from_numpy(x.astype(np.float32)).view(-1, 1, 1).to(device) for x in moments(pixels[parts[0]]))
    random = np.random.RandomState(SPLIT_SEED)
    taken: list[Any] = [slice(parts[0][0], parts[0][-1] + 1)]  # a slice shares the memory of the mapped file
    taken += [torch.from_numpy(random.permutation(part)).to(device) for part in parts[1:]]
    train, validation, test = (Split(on_device[index], targets[index], mean, std) for index in taken)
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return Dataset(name, len(counts.train), shape, found_hash, train, validation, test, pad=shape[1] // 8, flip=True)


def moments(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel of [n, c, h, w] (uint8), [c] each; 1 where a channel is constant."""
    total, square = np.zeros(pixels.shape[1]), np.zeros(pixels.shape[1])
    for start in range(0, len(pixels), BLOCK):
        block = pixels[start : start + BLOCK].astype(np.float64)  # whole numbers: the sums are exact
        total += block.sum((0, 2, 3))
        square += np.square(block).sum((0, 2, 3))
    n = pixels.size // pixels.shape[1]
    std = np.sqrt(np.maximum(square / n - np.square(total / n), 0))
    return total / n, np.where(std == 0, 1, std)
