"""What is measured, as data: nets, sizes and batches, the images, and the floor and goal of each ratio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks import nets
from normbook import data
from normbook.train import Config

CLASSES = 10
LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


@dataclass(frozen=True)
class Net:
    """One net: its kind in `normbook.train.Config`, depth and width."""

    name: str
    kind: str
    depth: int
    width: int

    def textbook(self, channels: int, size: int) -> nn.Module:
        """The net in plain torch.nn."""
        if self.kind == "nothing":
            return nets.Nothing(CLASSES)
        if self.kind == "mlp":
            return nets.MLP(self.depth, self.width, channels * size**2, CLASSES)
        return {"wrn": nets.WideResNet, "resnet": nets.ResNet}[self.kind](self.depth, self.width, channels, CLASSES)


WRN_16_1, WRN_16_4 = Net("WRN-16-1", "wrn", 16, 1), Net("WRN-16-4", "wrn", 16, 4)
WRN_100_2, WRN_1000_2 = Net("WRN-100-2", "wrn", 100, 2), Net("WRN-1000-2", "wrn", 1000, 2)
RESNET_110, MLP_3 = Net("ResNet-110", "resnet", 110, 1), Net("MLP-3", "mlp", 3, 100)
NOTHING = Net("nothing", "nothing", 1, 1)


@dataclass(frozen=True)
class Case:
    """One net on images of ``size`` x ``size`` pixels, in batches of ``batch`` images."""

    net: Net
    size: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.net.name} {self.size}x{self.size} batch {self.batch}"

    def config(self, steps: int, precision: str) -> Config:
        """Ours: the same run for `normbook.train`."""
        kind = "mlp" if self.net.kind == "nothing" else self.net.kind  # that net is put in place of an MLP
        return Config(
            "batch_norm", lr=LR, model=kind, depth=max(2, self.net.depth), width=self.net.width, data=NAMES[self.size],
            augment=True, batch_size=self.batch, steps=steps, schedule="constant", momentum=MOMENTUM,
            weight_decay=WEIGHT_DECAY, precision=precision, evaluate=(),
        )  # fmt: skip


STEP_OVERHEAD = Case(NOTHING, 8, 64)
CPU = (
    STEP_OVERHEAD, Case(MLP_3, 8, 64), Case(WRN_16_1, 8, 64), Case(WRN_16_1, 32, 128), Case(WRN_16_4, 32, 128),
    Case(RESNET_110, 32, 16),
)  # fmt: skip
GPU = CPU + tuple(Case(net, 32, batch) for net in (WRN_100_2, WRN_1000_2) for batch in (16, 128, 512))


def cases(device: str, full: bool = False) -> tuple[Case, ...]:
    """The cases of a device; ``full``: each of its nets at each of its sizes and batches."""
    chosen = GPU if device == "cuda" else CPU
    if not full:
        return chosen
    own = [tuple(dict.fromkeys(values)) for values in zip(*((c.net, c.size, c.batch) for c in chosen), strict=True)]
    return tuple(Case(net, size, batch) for net in own[0] for size in own[1] for batch in sorted(own[2]))


@dataclass(frozen=True)
class Target:
    """The ratio of ours to ``peer`` in img/s, on a CPU: at least ``floor``, better ``goal``."""

    case: Case
    peer: str
    floor: float
    goal: float


P0, P1, P2, LIGHTNING, SKORCH, OURS = "P0 textbook", "P1 eager", "P2 compiled", "Lightning", "skorch", "ours"
CPU_TARGETS = (
    Target(Case(WRN_16_1, 32, 128), P0, 3.0, 4.0),
    Target(Case(WRN_16_4, 32, 128), P0, 3.0, 3.8),
    *(
        Target(Case(net, 8, 64), peer, *bounds)
        for net in (WRN_16_1, MLP_3)
        for peer, bounds in ((P0, (1.2, 2.0)), (LIGHTNING, (2.0, 5.0)), (SKORCH, (2.0, 5.0)))
    ),
)
# where bf16 does not pay, P1 is fp32 channels_last, and ours is never slower
NEVER_SLOWER = 1.0
GRID_FLOOR, GRID_GOAL = 1.1, 1.5  # workers over the same runs in turn with all threads

# the grids of 8 small runs: a step's net is that of chapter 5; (name, arms, seeds of each)
GRIDS = (("2 arms x 4 seeds", ("batch_norm", "skipinit_0"), 4), ("1 arm x 8 seeds", ("batch_norm",), 8))
GRID_STEPS = 40  # a run; so the eight in turn last some seconds


def grid_configs(arms: tuple[str, ...], seeds: int, repeat: int) -> list[Config]:
    """The runs of a grid: WRN-16-1 on the digits, batch 64."""
    run = Config("batch_norm", lr=LR, depth=16, width=1, batch_size=64, steps=GRID_STEPS, evaluate=("test",))
    return [replace(run, arm=arm, seed=(repeat, i)) for arm in arms for i in range(seeds)]


@dataclass(frozen=True)
class Images:
    """uint8 images [n, channels, size, size], labels [n] drawn at random, and how they are standardized."""

    pixels: Tensor
    labels: Tensor
    mean: float
    std: float
    pad: int
    flip: bool


# names that a configuration takes; there is no such folder
NAMES = {8: "imagefolder-00000008", 32: "imagefolder-00000032"}


@cache
def images(size: int) -> Images:
    """32: random pixels, as many as CIFAR-10 has (50,000 of 3x32x32); 8: 1,000 of scikit-learn's digits.

    The labels are random numbers in both: nothing is learned, only time is read.
    """
    generator = torch.Generator().manual_seed(0)
    if size == 32:
        pixels = torch.randint(256, (50_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    else:
        from sklearn.datasets import load_digits

        pixels = torch.from_numpy(load_digits().images[:1000]).to(torch.uint8)[:, None]
    labels = torch.randint(CLASSES, (len(pixels),), generator=generator)
    values = pixels[:1000].float()
    return Images(pixels, labels, float(values.mean()), float(values.std()), 4 if size == 32 else 1, size == 32)


@cache
def _dataset(size: int, device: str) -> data.Dataset:
    raw = images(size)
    pixels, labels = raw.pixels.to(device), raw.labels.to(device)
    if size == 8:  # kept as normbook keeps the digits, and colour images below
        split = data.Split(pixels.float().sub_(raw.mean).div_(raw.std), labels)
    else:
        mean, std = (torch.full((pixels.shape[1], 1, 1), x, device=device) for x in (raw.mean, raw.std))
        split = data.Split(pixels, labels, mean, std)
    shape = (pixels.shape[1], pixels.shape[2], pixels.shape[3])
    return data.Dataset(NAMES[size], CLASSES, shape, "0" * 16, split, split, split, raw.pad, raw.flip)


@contextmanager
def known_to_normbook() -> Iterator[None]:
    """Within, `normbook.data` knows the benchmark's images by name, beside its own datasets."""
    load = data.load

    def with_ours(name: str = "digits", device: str = "cpu") -> data.Dataset:
        sizes = {known: size for size, known in NAMES.items()}
        return _dataset(sizes[name], device) if name in sizes else load(name, device)

    with mock.patch.object(data, "load", with_ours):
        yield
