"""How fast nets train on which device, as it was read; what was not read is said to be extrapolated.

Readings come from the benchmark's committed reports and from the records of runs, never from anywhere else.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from normbook import data, grid
from normbook.errors import InputError
from normbook.records import Record
from normbook.train import Config

# channels, height and width of the images, the number of those to train on, and of all
CIFAR = ((3, 32, 32), 45_000, 60_000)
SIZES = {"digits": ((1, 8, 8), 1000, 1797), "cifar10": CIFAR, "cifar10-jpeg": CIFAR}


@dataclass(frozen=True)
class Reading:
    """Training speed of one net on one device, in images a second: of one core on a CPU, of the whole GPU else."""

    device: str
    net: str
    precision: str
    multiply_adds: float  # an image, forward
    speed: float


@dataclass(frozen=True)
class Speed:
    """What a run's speed was taken from: ``net`` is another one than the run's where it is extrapolated."""

    speed: float
    net: str
    extrapolated: bool


def is_gpu(device: str) -> bool:
    """Whether a device's name, as records have it, is that of a GPU."""
    return re.search("nvidia|instinct|radeon", device, re.I) is not None


def net_of(config: Config) -> str:
    """A net and the size of its images, as in ``WRN-16-1 32x32``."""
    (_, height, width), _, _ = _images(config.data)
    name = {"wrn": "WRN", "resnet": "ResNet", "cnn": "CNN", "mlp": "MLP"}[config.model]
    return f"{name}-{config.depth}-{config.width:g} {height}x{width}"


def images(config: Config) -> int:
    """How many images a run trains on, each counted as often as it is seen."""
    n = config.n_train or _images(config.data)[1]
    steps = config.steps or n // config.batch_size * (config.epochs or 0)
    return steps * config.batch_size


def decoded_bytes(name: str) -> int:
    """Bytes of a data set's decoded images, which every machine keeps once; none of the digits."""
    (channels, height, width), _, n = _images(name)
    return 0 if name == "digits" else n * channels * height * width


def _images(name: str) -> tuple[tuple[int, int, int], int, int]:
    """Shape of the images of a data set, the number of those to train on, and of all."""
    kind, _, size = name.partition("@")
    if kind in SIZES:
        shape, n, total = SIZES[kind]
        return ((shape[0], int(size), int(size)) if size else shape), n, total
    found = data.load(name)
    return found.shape, len(found.train), sum(map(len, (found.train, found.validation, found.test)))


def multiply_adds(config: Config) -> float:
    """Multiplications with addition of one image's way through the convolutions and linear layers, forward."""
    (channels, height, width), _, _ = _images(config.data)
    return _multiply_adds(config.model, config.depth, config.width, channels, height * width)


def _multiply_adds(model: str, depth: int, width: float, channels: int, pixels: float, classes: int = 10) -> float:
    if model == "mlp":
        return width * (channels * pixels + (depth - 2) * width + classes)
    base = 16 * width
    if model == "cnn":
        half, deep = depth // 2, 2 * base
        first = 9 * (channels * base + (half - 1) * base**2) * pixels
        return first + 9 * (base * deep + (half - 1) * deep**2) * pixels / 4 + deep * classes
    before = min(16, base) if model == "wrn" else base
    total, blocks = 9 * channels * before * pixels, depth // 6
    for stage in range(3):
        after = base * 2**stage
        project = before * after if model == "wrn" and (before != after or stage) else 0
        total += (9 * before * after + 9 * (2 * blocks - 1) * after**2 + project) * pixels / 4**stage
        before = after
    return total + before * classes


def of_records(found: Iterable[Record]) -> list[Reading]:
    """The speed of each net in finished runs, the median over runs of a device and precision."""
    each: dict[tuple[str, str, str, float], list[float]] = {}
    for record in found:
        config = grid.config_of(record)
        if "finished" in record["outcome"] and record["seconds"] > 0:
            cores = 1 if is_gpu(record["device"]) else record["threads"]
            key = (record["device"], net_of(config), config.precision, multiply_adds(config))
            each.setdefault(key, []).append(images(config) / record["seconds"] / cores)
    return [Reading(*key, median(speeds)) for key, speeds in each.items()]


NET = re.compile(r"(WRN|ResNet)-(\d+)(?:-(\d+))? (\d+)x\d+ batch \d+")


def of_reports(folder: Path) -> list[Reading]:
    """The speed of our own loop in the reports that ``python -m benchmarks`` wrote into a folder.

    Raises:
        InputError: a report is not what the benchmark writes.
    """
    found: dict[tuple[str, str, str, float], list[float]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            for key, speed in _readings(report):
                found.setdefault(key, []).append(speed)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a report of the benchmark ({error}); restore it with git") from None
    return [Reading(*key, median(speeds)) for key, speeds in found.items()]


def _readings(report: dict[str, Any]) -> Iterable[tuple[tuple[str, str, str, float], float]]:
    cores = report["threads"] if report["device_kind"] == "cpu" else 1
    for one in report["readings"]:
        case = NET.fullmatch(one["case"])
        if one["way"] == "ours" and one["seconds"] and case:
            kind, depth, width, size = case[1].lower(), int(case[2]), int(case[3] or 1), int(case[4])
            channels = 1 if size == 8 else 3  # the benchmark's images: digits, or random colours
            net = f"{case[1]}-{depth}-{width} {size}x{size}"
            speed = one["steps"] * one["batch"] / median(one["seconds"]) / cores
            macs = _multiply_adds(kind, depth, width, channels, size**2)
            yield (report["device"], net, one["precision"], macs), speed


def speed(config: Config, device: str, readings: Sequence[Reading]) -> Speed | None:
    """The speed of a run on a device: as read with its net, else that of the net nearest in size, by multiply-adds.

    None where nothing was read on the device. A reading of the same precision goes first.
    """
    here = [r for r in readings if r.device == device]
    here = [r for r in here if r.precision == config.precision] or here
    if not here:
        return None
    net, macs = net_of(config), multiply_adds(config)
    best = min(here, key=lambda r: (r.net != net, abs(math.log(r.multiply_adds / macs))))
    if best.net == net:
        return Speed(best.speed, net, False)
    return Speed(best.speed * best.multiply_adds / macs, best.net, True)
