"""Which dataset is meant, where it is, and reading it.

``--data`` and the chapters' parameter ``data`` say it as ``NAME``, ``NAME:PATH`` or ``PATH``; ``NAME@16`` asks for
16x16 pixels. A run's configuration holds the name only. Where it is, is kept here for this process and goes with every
piece of work to its worker processes: no record depends on a path, only on the content.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from normbook.data import cache as caches
from normbook.data import cifar10, images
from normbook.data.dataset import Dataset, digits
from normbook.errors import InputError, choose

KINDS = ("digits", "cifar10", "cifar10-jpeg", "imagefolder:PATH")
JPEG = "cifar10-jpeg.tar.gz"
NAME = re.compile(r"digits|(?:cifar10|cifar10-jpeg|imagefolder-[0-9a-f]{8})(?:@[1-9][0-9]{0,3})?")
TEXT = re.compile(r"(digits|cifar10|cifar10-jpeg|imagefolder)(?:@([1-9][0-9]{0,3}))?(?::(.*))?", re.DOTALL)

places: dict[str, Path] = {}  # the decoded images of the datasets that this process was told of, by name


@dataclass(frozen=True)
class Source:
    """A dataset as a user means it: its kind, the size asked for (pixels) and where it is. ``str()`` is ``--data``."""

    kind: str
    size: int | None = None
    path: Path | None = None

    def __str__(self) -> str:
        return self.kind + (f"@{self.size}" if self.size else "") + (f":{self.path}" if self.path else "")


def default_folder() -> Path:
    """Where datasets are looked for and decoded images are kept, unless a folder is given."""
    return Path.home() / ".cache" / "normbook"


def is_name(text: object) -> bool:
    """Whether a text is a name as configurations hold it: `digits`, `cifar10@16`, `imagefolder-0a1b2c3d`."""
    return isinstance(text, str) and NAME.fullmatch(text) is not None


def locate(text: str) -> Source:
    """What ``text`` means; paths become absolute. Nothing is decoded.

    A path can be an archive, an image folder (``train/``, ``test/``) or a folder that holds datasets.

    Raises:
        InputError: no such dataset, file or folder, or none that is known in it.
    """
    found = TEXT.fullmatch(text)
    if found is None:
        return _recognized(text)
    kind, size, place = found[1], int(found[2]) if found[2] else None, found[3]
    if kind == "digits" and (size or place is not None):
        raise InputError(f"data set {text!r}: the digits come with scikit-learn, without a path and in one size")
    if place is None and kind != "imagefolder":
        return Source(kind, size)
    if not place:
        raise InputError(f"data set {text!r}: say where it is, as in {kind}:PATH")
    path = _existing(place)
    if path is None:
        raise InputError(f"data set {text!r}: there is no such file or folder")
    if kind == "imagefolder" and not path.is_dir():
        raise InputError(f"data set {text!r}: not a folder; unpack the archive and give its folder")
    return Source(kind, size, path)


def _recognized(text: str) -> Source:
    """The source that a path holds."""
    path = _existing(text)
    if path is None:
        if "/" in text and ":" not in text:
            raise InputError(f"data set {text!r}: there is no such file or folder")
        choose("data set", text.partition(":")[0], KINDS)
        raise InputError(f"data set {text!r}: say where it is, as in imagefolder:PATH")
    if path.is_file():
        if path.name == cifar10.ARCHIVE:
            return Source("cifar10", None, path)
        if images.sha256_of(path) == images.JPEG_ARCHIVE:
            return Source("cifar10-jpeg", None, path)
        raise InputError(
            f"{path} is the archive neither of cifar10 nor of cifar10-jpeg; unpack it and give its folder, as "
            "imagefolder:PATH"
        )
    found = _held(path)
    if found is None:
        raise InputError(
            f"{path} holds no data set: no train/ and test/, no archive; normbook data fetch --data {text} brings "
            "cifar10"
        )
    return found


def _existing(text: str) -> Path | None:
    """The absolute path of a file or folder that is there."""
    try:
        path = Path(text).expanduser().absolute()
        return path if text and path.exists() else None
    except (ValueError, OSError, RuntimeError):  # a null character, too long a name, no home folder
        return None


def _held(folder: Path) -> Source | None:
    """The dataset that a folder is or holds."""
    if (folder / "train").is_dir() or (folder / "test").is_dir():
        return Source("imagefolder", None, folder)
    for kind, names in (("cifar10", (cifar10.ARCHIVE, cifar10.UNPACKED)), ("cifar10-jpeg", (JPEG,))):
        if any((folder / name).exists() for name in (*names, f"{kind}.json")):
            return Source(kind, None, folder)
    return None


def sized(text: str, size: int) -> str:
    """``text`` with images of ``size`` x ``size`` pixels, by area averaging, unless it asks for a size itself."""
    source = locate(text)
    return str(source if source.size or source.kind == "digits" else replace(source, size=size))


def use(text: str) -> str:
    """The name, for a run's configuration, of what ``text`` means. Where it comes with a path, this is kept.

    What is not decoded yet is decoded now.

    Raises:
        InputError: as `locate`, or the images cannot be decoded.
    """
    if is_name(text):
        return text
    name, path = _prepared(locate(text), default_folder())
    if path:
        places[name] = path
    return name


@cache
def _prepared(source: Source, folder: Path) -> tuple[str, Path | None]:
    path = prepare(source)
    return (caches.name_of(path), path) if path else (source.kind, None)


def prepare(source: Source, download: bool = False) -> Path | None:
    """Decode a dataset unless it is decoded already; return the path of the decoded images (None: the digits).

    Those of a folder that holds datasets are kept in it; those of an archive or an image folder in `default_folder`.

    Raises:
        InputError: it is not there, it is damaged or wrong, or the images cannot be written.
    """
    kind, size, at = source.kind, source.size, f"@{source.size}" if source.size else ""
    if kind == "digits":
        return None
    path = source.path or default_folder()
    if kind == "imagefolder" or (kind == "cifar10-jpeg" and (path / "train").is_dir()):
        target = default_folder() / f"imagefolder-{images.fingerprint(path)}{at}.npy"
        caches.made(target, size, lambda: images.read_folder(path, size))
        if kind == "cifar10-jpeg" and not caches.name_of(target).startswith(kind):
            raise InputError(f"{path} holds other images than those of cifar10-jpeg; give it as imagefolder:{path}")
        return target
    read = cifar10.read if kind == "cifar10" else images.read_archive
    if path.is_file():
        digest = images.sha256_of(path)[:16]  # one folder may keep what came from several files
        return caches.made(default_folder() / f"{kind}-{digest}{at}.npy", size, lambda: read(path, size))
    target = path / f"{kind}{at}.npy"
    if caches.there(target):
        return target
    if kind == "cifar10" and (path / cifar10.UNPACKED).is_dir():
        return caches.made(target, size, lambda: read(path, size))
    archive = path / (cifar10.ARCHIVE if kind == "cifar10" else JPEG)
    if not archive.exists():
        if kind == "cifar10-jpeg":
            raise InputError(f"{JPEG} is not in {path}: say where it is, as --data cifar10-jpeg:PATH")
        if not download:
            place = f" --data {source.path}" if source.path else ""
            raise InputError(
                f"cifar10 is not in {path}: normbook data fetch{place} brings it (170 MB), or say with --data where "
                "it is"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {path}: {error.strerror}; name another with --data") from None
        cifar10.download(path)
    return caches.made(target, size, lambda: read(archive, size))


def load(name: str = "digits", device: str = "cpu") -> Dataset:
    """Return the dataset called ``name`` with its tensors on ``device``. A name with a path is taken as by `use`.

    ``digits``: scikit-learn's 1,797 8x8 digits (UCI Optical Recognition of Handwritten Digits), split once, by class:
    1,000 training, 200 validation, 597 test images. Pixels are standardized with the training images' mean and
    standard deviation. ``cifar10`` and ``cifar10-jpeg``: 45,000, 5,000 and 10,000 images of 32x32 pixels, the latter
    as JPEG. ``imagefolder-...``: any folder of images. See `Counts.split` for the split, `of_images` for the pixels.

    Raises:
        InputError: ``name`` is not a known dataset, is not on this machine, or its decoded images are damaged.
    """
    name = use(name)
    if name not in places and name != "digits":
        kind, _, size = name.partition("@")
        if kind.startswith("imagefolder"):
            raise InputError(f"data set {name}: this process was not told where it is; give --data imagefolder:PATH")
        path = prepare(Source(kind, int(size) if size else None))
        assert path is not None
        places[name] = path
    return _load(name, device, places.get(name))


@cache
def _load(name: str, device: str, path: Path | None) -> Dataset:
    return digits(device) if path is None else caches.read(path, device)


def fetch(text: str = "") -> Dataset:
    """Bring what ``text`` means, so that it is there without a network: downloaded if need be, decoded, checked.

    Without a text, or where it is a folder that holds no dataset, that is CIFAR-10.

    Raises:
        InputError: as `locate` and `prepare`.
    """
    folder = None if TEXT.fullmatch(text) else _existing(text)
    if folder and folder.is_dir():
        source = _held(folder) or Source("cifar10", None, folder)
    else:
        source = locate(text) if text else Source("cifar10")
    path = prepare(source, download=True)
    return digits() if path is None else caches.read(path)


def present(text: str = "") -> list[Dataset | InputError]:
    """The digits and what is decoded in a folder, or in the default folder; an error for what is damaged there."""
    folder = _existing(text) if text else default_folder()
    if folder is None or (text and not folder.is_dir()):
        raise InputError(f"{text!r} is not a folder that is there")
    found: list[Dataset | InputError] = [digits()]
    for path in sorted(folder.glob("*.npy")):
        if caches.there(path):
            try:
                found.append(caches.read(path))
            except InputError as error:
                found.append(error)
    return found
