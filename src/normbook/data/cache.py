"""Decoded images on the disk: an array of uint8 and its description, written whole or not at all, checked when read.

``NAME.npy`` holds the pixels [n, 3, h, w], in the order of `Counts.split`; ``NAME.json`` the name, classes, counts and
content hash. The description is written last: where it is, the pixels are whole. A cache can always be removed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normbook.data.dataset import Counts, Dataset, content_hash, of_images
from normbook.errors import InputError
from normbook.files import whole

FORMAT = 1


@dataclass(frozen=True)
class Images:
    """Decoded images: ``pixels`` [n, 3, h, w] (uint8), in the order of ``counts.split()``."""

    kind: str
    classes: tuple[str, ...]
    counts: Counts
    pixels: np.ndarray


def there(path: Path) -> bool:
    """Whether the cache ``path``, which ends with .npy, was written to its end."""
    return path.with_suffix(".json").exists()


def made(path: Path, size: int | None, decode: Callable[[], Images]) -> Path:
    """Return ``path``, after writing what ``decode`` gives where it is not there yet. Two processes decode once.

    Raises:
        InputError: the folder cannot be written to, or as ``decode``.
    """
    if there(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path.parent):
            if not there(path):
                _write(path, size, decode())
    except OSError as error:
        raise InputError(
            f"cannot write the decoded images {path}: {error.strerror or error}; mend this, run again"
        ) from None
    return path


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which is free again when we die."""
    import fcntl  # Linux and macOS

    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, size: int | None, images: Images) -> None:
    _, labels, parts = images.counts.split()
    found = content_hash(images.pixels, labels, parts)
    # an image folder is known by what is in it, never by where it is
    name = f"{images.kind}-{found[:8]}" if images.kind == "imagefolder" else images.kind
    description = {
        "format": FORMAT, "name": name + (f"@{size}" if size else ""), "classes": images.classes,
        "train": images.counts.train, "test": images.counts.test, "content_hash": found,
    }  # fmt: skip

    with whole(path) as file:
        np.save(file, images.pixels, allow_pickle=False)
    with whole(path.with_suffix(".json")) as file:
        file.write((json.dumps(description, indent=1) + "\n").encode())


def name_of(path: Path) -> str:
    """The name of the dataset in a cache. Raises InputError where its description is damaged."""
    return _description(path)[0]


def read(path: Path, device: str = "cpu") -> Dataset:
    """Read and check a cache. The pixels are mapped: processes on one machine share the memory.

    Raises:
        InputError: as `stored`.
    """
    name, counts, expected = _description(path)
    return of_images(name, stored(path), counts, expected, device)


def counts_of(path: Path) -> Counts:
    """How many images a cache has of each class. Raises InputError where its description is damaged."""
    return _description(path)[1]


def stored(path: Path) -> np.ndarray:
    """The pixels [n, 3, h, w] (uint8) of a cache, mapped and checked, in the order of `Counts.split`.

    Raises:
        InputError: the cache is damaged: its content is not what was written.
    """
    _, counts, expected = _description(path)
    try:
        pixels = np.load(path, mmap_mode="c", allow_pickle=False)  # c: a change in memory never reaches the file
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise _damaged(path, str(error)) from None
    _, labels, parts = counts.split()
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
        raise _damaged(path, f"it holds {pixels.dtype} {pixels.shape}")
    if content_hash(pixels, labels, parts) != expected:
        raise _damaged(path, "its content and its hash differ")
    return np.asarray(pixels)


def _description(path: Path) -> tuple[str, Counts, str]:
    """Name, counts and content hash."""
    described = path.with_suffix(".json")
    try:
        given = json.loads(described.read_text(encoding="utf-8"))
        counts = Counts(tuple(given["train"]), tuple(given["test"]))
        name, found = given["name"], given["content_hash"]
        if given["format"] != FORMAT or type(name) is not str or len(counts.train) != len(counts.test):
            raise ValueError("other fields than this version writes")
        if any(type(n) is not int or not 0 < n < 10**8 for n in counts.train + counts.test) or len(counts.train) < 2:
            raise ValueError("its counts are no counts")
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(described, str(error)) from None
    return name, counts, found


def _damaged(path: Path, reason: str) -> InputError:
    both = f"{path.with_suffix('.npy').name} and {path.with_suffix('.json').name}"
    return InputError(
        f"{path}: damaged decoded images ({' '.join(reason.split())[:200]}); remove {both} there and run the same "
        "command again: they are made anew"
    )
