"""Folders of images, ``train/CLASS/*`` and ``test/CLASS/*``, unpacked or in an archive: found, checked and decoded.

An archive is read in memory, after its hash was checked: nothing of it is unpacked on the disk, so nothing can leave
a folder.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import re
import signal
import tarfile
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path

import numpy as np

from normbook.data.cache import Images
from normbook.data.dataset import Counts
from normbook.errors import InputError
from normbook.progress import bar

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
INSIDE = re.compile(rf"(?:\./)?((?:train|test)/[^/]+/[^/]+(?:{'|'.join(map(re.escape, SUFFIXES))}))", re.I)
BLOCK = 500  # images decoded in one piece of work
FEW = 4000  # images that are decoded here: to start processes would take longer
LARGEST = 2**30  # bytes of pixels: a process that trains on them stays under 1.5 GB

# all 60,000 images of CIFAR-10 as JPEG in class folders: by the hash of the archive and by that of its files
JPEG_ARCHIVE = "70260124a4d2364bd32a0a222ddcd4197d2afa56725518368da092f67d4c29fe"
JPEG_FILES = "78086fc20c1b1c15a635979bf92b1d16ebc3ca6a8a061ac1b650bc528adcbf13"

Source = Path | bytes


def read_folder(root: Path, size: int | None) -> Images:
    """Decode an image folder, with every image resized to ``size`` x ``size`` pixels by area averaging if given.

    Raises:
        InputError: no train or test part, fewer than two classes, a class without images or with one training image, a
            part that lacks a class, a broken image, images of several sizes without ``size``, too many pixels.
    """
    return _decoded({name: root / name for name in listed(root)}, size, str(root))


def read_archive(path: Path, size: int | None) -> Images:
    """Decode the archive of `cifar10-jpeg`, as `read_folder`.

    Raises:
        InputError: another archive, by its hash.
    """
    if sha256_of(path) != JPEG_ARCHIVE:
        raise InputError(f"{path} is not the archive of cifar10-jpeg: its sha256 is {sha256_of(path)}; bring it again")
    files: dict[str, Source] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            inside = INSIDE.fullmatch(member.name)
            opened = archive.extractfile(member) if inside and member.isfile() else None
            if inside and opened:
                files[inside[1]] = opened.read()
    return _decoded(files, size, str(path))


def listed(root: Path) -> list[str]:
    """The images of a folder, as ``train/CLASS/FILE`` and ``test/CLASS/FILE``, sorted; other files are left out."""
    try:
        return sorted(_listed(root))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None


def _listed(root: Path) -> Iterator[str]:
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise InputError(f"{root} has no folder {part}/ with a folder of images for each class")
        for folder in (root / part).iterdir():
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            found = [file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES]
            found = [name for name in found if not name.startswith(".")]
            if not found:
                raise InputError(f"{folder} holds no image ({', '.join(SUFFIXES)}); remove it or fill it")
            yield from (f"{part}/{folder.name}/{name}" for name in found)


def fingerprint(root: Path) -> str:
    """Hash of the names, sizes and times of change of a folder's images: whether it was decoded already."""
    digest = hashlib.sha256()
    for name in listed(root):
        found = (root / name).stat()
        digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def sha256_of(path: Path) -> str:
    """sha256 of a file. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """An image [h, w, 3] (uint8) at ``size`` x ``size`` pixels: each the mean over its area, rounded once.

    Pillow's box filter rounds the rows before the columns, upward: a mean of 16x16 pixels comes out a quarter too high.
    """
    height, width, channels = image.shape
    rows = (_areas(height, size) @ image.reshape(height, -1)).reshape(size, width, channels)
    return np.rint(_areas(width, size) @ rows).astype(np.uint8)


@cache
def _areas(n: int, size: int) -> np.ndarray:
    """The share [size, n] that each of n pixels has in each of ``size``."""
    edges = np.arange(size + 1) * n / size
    pixels = np.arange(n)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return np.clip(overlap, 0, None) * size / n


def check_bytes(n: int, shape: tuple[int, ...], where: str) -> None:
    """Raises InputError where n images of ``shape`` would be more pixels than a process can hold."""
    total = n * int(np.prod(shape))
    if total > LARGEST:
        raise InputError(
            f"{where}: {n} images of {shape[1]}x{shape[0]} pixels take {total / 2**30:.1f} GB, more than 1; ask for a "
            "smaller size, as in imagefolder@32:PATH"
        )


def _decoded(files: Mapping[str, Source], size: int | None, where: str) -> Images:
    classes, counts = _classes(files, where)
    by_class = sorted(files, key=lambda name: (name.startswith("test/"), name.split("/")[1], name))
    names = [by_class[i] for i in counts.split()[0]]
    first = names[0]
    shape = (size, size, 3) if size else _decode(_bytes(files[first], first, where), first, None, where).shape
    check_bytes(len(names), shape, where)
    pixels = np.empty((len(names), shape[2], shape[0], shape[1]), np.uint8)
    digests: list[str] = []
    with bar(total=len(names), initial=0, unit="image") as progress:
        blocks = [names[i : i + BLOCK] for i in range(0, len(names), BLOCK)]
        work = [([files[name] for name in block], block, size, shape, where) for block in blocks]
        for found, hashes in _results(work, len(names)):
            pixels[len(digests) : len(digests) + len(found)] = found.transpose(0, 3, 1, 2)
            digests += hashes
            progress.update(len(found))
    lines = sorted(f"{name}\0{digest}\n" for name, digest in zip(names, digests, strict=True))
    known = hashlib.sha256("".join(lines).encode()).hexdigest() == JPEG_FILES
    return Images("cifar10-jpeg" if known else "imagefolder", classes, counts, pixels)


Work = tuple[Sequence[Source], Sequence[str], int | None, tuple[int, ...], str]


def _results(work: Sequence[Work], n: int) -> Iterator[tuple[np.ndarray, list[str]]]:
    """``_decode_block`` of each piece of work, in order: in processes where there is enough to do.

    Threads do not help: read on images of 32x32 pixels, two took longer than one.
    """
    if n <= FEW:
        yield from (_decode_block(*one) for one in work)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"))
    try:
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for us, not for the workers
        try:
            futures = deque(pool.submit(_decode_block, *one) for one in work)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        while futures:
            yield futures.popleft().result()  # and let go of it
    except BrokenProcessPool:
        raise InputError("a process that decodes images died (killed, or out of memory?); run again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_block(
    sources: Sequence[Source], names: Sequence[str], size: int | None, shape: tuple[int, ...], where: str
) -> tuple[np.ndarray, list[str]]:
    """Pixels [n, h, w, 3] (uint8) of some images, and the sha256 of each file."""
    pixels, digests = np.empty((len(names), *shape), np.uint8), []
    for i, (source, name) in enumerate(zip(sources, names, strict=True)):
        content = _bytes(source, name, where)
        found = _decode(content, name, size, where)
        if found.shape != shape:
            raise InputError(
                f"{where}: {name} has {found.shape[1]}x{found.shape[0]} pixels, another image {shape[1]}x{shape[0]}; "
                "ask for one size, as in imagefolder@32:PATH"
            )
        pixels[i] = found
        digests.append(hashlib.sha256(content).hexdigest())
    return pixels, digests


def _bytes(source: Source, name: str, where: str) -> bytes:
    try:
        return source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise InputError(f"{where}: {name} cannot be read: {error.strerror}") from None


def _decode(content: bytes, name: str, size: int | None, where: str) -> np.ndarray:
    """One image as [h, w, 3] (uint8): in colour, and resized where asked for."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("reading images needs Pillow: install it, for example with pip install pillow") from None
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises errors of a dozen kinds for a damaged file
        reason = " ".join(str(error).split()).replace(" <_io.BytesIO object", "").split(" at 0x")[0]
        raise InputError(f"{where}: {name} is no image that can be read ({reason}); mend or remove it") from None
    return resized(found, size) if size else found


def _classes(names: Collection[str], where: str) -> tuple[tuple[str, ...], Counts]:
    """The classes, sorted, and how many images each has."""
    count: dict[str, dict[str, int]] = {"train": {}, "test": {}}
    for name in names:
        part, label, _ = name.split("/")
        count[part][label] = count[part].get(label, 0) + 1
    classes = sorted(count["train"])
    for part, other in (("test", "train"), ("train", "test")):
        for label in sorted(set(count[other]) - set(count[part])):
            raise InputError(f"{where}: {part}/ has no class {label!r}, {other}/ has")
    if len(classes) < 2:
        found = f"only one class, {classes[0]!r}" if classes else "no class"
        raise InputError(f"{where}: {found}: a classifier needs two or more")
    for label in classes:
        if count["train"][label] < 2:
            raise InputError(f"{where}: train/{label} has one image: it needs two, one of them for validation")
    return tuple(classes), Counts(*(tuple(count[part][label] for label in classes) for part in ("train", "test")))
