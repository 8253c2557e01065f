"""CIFAR-10 (Krizhevsky 2009), by torchvision: downloaded, checked and read.

The archive holds pickles, which can run code. torchvision unpickles a file only after its md5 was that of its list; we
check the md5 of the archive before too. md5 holds here: to plant a file one would need a second file of a given md5,
which nobody can make, not two files of one md5, which is easy. No pickle is ever read from another file.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from normbook.data.cache import Images
from normbook.data.dataset import Counts
from normbook.data.images import resized
from normbook.errors import InputError

ARCHIVE = "cifar-10-python.tar.gz"
UNPACKED = "cifar-10-batches-py"


def _torchvision() -> Any:
    try:
        from torchvision.datasets import CIFAR10, utils
    except ImportError:
        raise InputError("cifar10 is read by torchvision: install the one that belongs to your torch") from None
    return CIFAR10, utils


def download(folder: Path) -> Path:
    """Download the archive (170 MB) into ``folder``, whole or not at all, and return its path.

    Raises:
        InputError: no network, or what came is not the archive.
    """
    cifar, utils = _torchvision()
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            utils.download_url(cifar.url, temporary, ARCHIVE, cifar.tgz_md5)
            os.replace(Path(temporary) / ARCHIVE, folder / ARCHIVE)
    except (OSError, RuntimeError, RecursionError) as error:  # no route, no space, another hash, too many redirects
        raise InputError(
            f"cifar10 cannot be downloaded into {folder} ({' '.join(str(error).split())[:200]}); run again with a "
            f"network, or bring {ARCHIVE} there from another machine"
        ) from None
    return folder / ARCHIVE


def read(path: Path, size: int | None) -> Images:
    """Read the archive, or a folder that holds it unpacked, with images resized by area averaging if ``size`` is given.

    Raises:
        InputError: a wrong or damaged archive or folder, or torchvision is missing.
    """
    if path.is_dir():
        return _read_unpacked(path, size)
    cifar, utils = _torchvision()
    if not utils.check_integrity(path, cifar.tgz_md5):
        raise InputError(
            f"{path} is not the archive of cifar10, or not all of it: its md5 is not {cifar.tgz_md5}; remove it, "
            "normbook data fetch brings it again"
        )
    with tempfile.TemporaryDirectory(prefix="normbook-") as temporary, tarfile.open(path, "r:gz") as archive:
        folder = Path(temporary) / UNPACKED
        folder.mkdir()
        # the names are torchvision's, not the archive's: nothing is written anywhere else
        for name in [name for name, _ in cifar.train_list + cifar.test_list] + [cifar.meta["filename"]]:
            try:
                opened = archive.extractfile(f"{UNPACKED}/{name}")
            except KeyError:
                opened = None
            if opened is None:
                raise InputError(f"{path}: the file {UNPACKED}/{name} is not in it; bring the archive again")
            (folder / name).write_bytes(opened.read())
        return _read_unpacked(Path(temporary), size)


def _read_unpacked(root: Path, size: int | None) -> Images:
    cifar, _ = _torchvision()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the pickles are of 2009: new versions of numpy warn of them
            train, test = cifar(root, train=True), cifar(root, train=False)
    except RuntimeError as error:
        raise InputError(
            f"{root / UNPACKED}: damaged or incomplete ({error}); remove it, normbook data fetch brings it again"
        ) from None
    labels = [np.asarray(part.targets) for part in (train, test)]
    counts = Counts(*(tuple(np.bincount(x, minlength=len(train.classes)).tolist()) for x in labels))
    pixels = np.concatenate([x.data[y.argsort(kind="stable")] for x, y in zip((train, test), labels, strict=True)])
    pixels = pixels[counts.split()[0]]
    if size:
        pixels = np.stack([resized(image, size) for image in pixels])
    return Images("cifar10", tuple(train.classes), counts, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
