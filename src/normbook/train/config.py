"""One run as data: its configuration, its random streams and its learning rate at each step."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from normbook import data, models
from normbook.errors import InputError, choose

FLOATS = ("width", "lr", "momentum", "weight_decay", "dropout", "label_noise", "init_std")
CHOICES = {
    "model": ("wrn", "resnet", "cnn", "mlp"),
    "schedule": ("halve", "constant"),
    "optimizer": ("sgd", "adam"),
    "trainable": ("all", "norm", "random"),
    "dropout_at": ("head", "before_norm", "before_conv"),
    "dropout_kind": ("bernoulli", "uniform"),
    "precision": ("fp32", "bf16"),
    "evaluate": ("train", "validation", "test"),
    "statistics": ("running", "batch", "reestimated"),
    "measure": ("variance_shift",),
}


@dataclass(frozen=True)
class Config:
    """One run, as data. Its length is given in epochs or in steps, exactly one of them.

    ``schedule``: "halve" keeps the learning rate for the first half of the steps, then halves it after every twentieth
    of them (De & Smith 2020: 200 epochs, halved every 10 from epoch 100); "constant" keeps it. ``weight_decay`` (L2)
    acts on the weights of convolutions and linear layers only. ``init_std`` is the standard deviation of the hidden
    weights (None: He). ``trainable``: "all" parameters, only gamma and beta of the norms ("norm"), or as many "random"
    weights of other layers. ``ghost_batch_size`` and the three ``dropout`` settings go to the arm, see `models.Arm`.

    ``data`` is the name of a dataset. It may be given with its place, as ``cifar10-jpeg:PATH``, which this process
    keeps (`data.use`): the place is no part of the run.

    ``n_train`` takes the first training images; ``label_noise`` is the share of them whose label is drawn anew, per
    seed. ``seed`` is (base seed, index of the run): base seeds share no run.

    ``evaluate`` names the splits measured at the end, ``statistics`` what the norms then use: their "running"
    statistics, those of each evaluation "batch" (of ``batch_size``), or statistics "reestimated" on the training images
    with the final weights. ``measure`` names what else is measured then: "variance_shift".
    """

    arm: str
    lr: float | None = None
    model: str = "wrn"
    depth: int = 16
    width: float = 1
    activation: str = "relu"
    init_std: float | None = None
    trainable: str = "all"
    ghost_batch_size: int | None = None
    norm: str = "normbook.norms"
    data: str = "digits"
    n_train: int | None = None
    label_noise: float = 0.0
    augment: bool = False
    batch_size: int = 64
    epochs: int | None = None
    steps: int | None = None
    schedule: str = "halve"
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    dropout: float = 0.0
    dropout_at: str = "head"
    dropout_kind: str = "bernoulli"
    precision: str = "fp32"
    evaluate: tuple[str, ...] = ("train", "validation", "test")
    statistics: tuple[str, ...] = ("running",)
    measure: tuple[str, ...] = ()
    seed: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name, hint in _hints().items():
            if not _fits(getattr(self, name), hint):
                raise InputError(f"configuration: {name} is {getattr(self, name)!r}, which is no {_text(hint)}")
        for name in FLOATS:  # 1 and 1.0 are one run: one name
            value = getattr(self, name)
            if value is not None and not abs(value) <= sys.float_info.max:
                raise InputError(f"configuration: {name} is {value!r:.40}, which is not a finite number")
            object.__setattr__(self, name, None if value is None else float(value))
        choose("arm", self.arm, models.ARMS)
        object.__setattr__(self, "data", data.use(self.data))
        for name, known in CHOICES.items():
            given = getattr(self, name)
            for one in given if isinstance(given, tuple) else (given,):
                choose(name, one, known)
        if (self.epochs is None) == (self.steps is None):
            raise InputError(f"give epochs or steps, exactly one (epochs={self.epochs}, steps={self.steps})")
        if min(self.seed) < 0:
            raise InputError(f"seed {self.seed} is negative: give 0 or more")
        if self.batch_size < 1 or (self.epochs or self.steps or 0) < 1:
            raise InputError("batch_size, epochs and steps are at least 1")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"learning rate {self.lr} is not a positive number")
        if self.model != "wrn" and models.ARMS[self.arm].residual:
            raise InputError(f"arm {self.arm!r} changes the residual block of a wrn: model {self.model!r} has none")
        if self.dropout_at != "head" and self.model != "wrn":
            raise InputError(f"dropout_at {self.dropout_at!r} is inside the block of a wrn: use dropout_at='head'")
        if self.trainable != "all" and self.weight_decay:
            raise InputError("weight decay would also move the weights that are not trained: set weight_decay=0")

    def kind(self) -> Config:
        """The run without seed and learning rate: what a rate is chosen for, and what runs side by side must share."""
        return replace(self, seed=(0, 0), lr=None)

    def arm_parts(self) -> models.Arm:
        """The arm with what the configuration adds to it."""
        names = ("ghost_batch_size", "dropout", "dropout_at", "dropout_kind")
        return replace(models.ARMS[self.arm], **{name: getattr(self, name) for name in names})


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Config)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type of its field; an int may stand for a float, a bool for neither."""
    if isinstance(hint, UnionType):
        return any(_fits(value, one) for one in get_args(hint))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        if type(value) is not tuple or (kinds[-1] is not ... and len(value) != len(kinds)):
            return False
        return all(_fits(one, kinds[0]) for one in value)
    number = hint is float and isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint or number


def _text(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint)


def lr_scale(config: Config, step: int, steps: int) -> float:
    """The learning rate at ``step`` of ``steps`` as a multiple of ``config.lr``."""
    if config.schedule == "constant":
        return 1.0
    twentieths = (20 * step) // steps
    return 0.5 ** max(0, twentieths - 9)


def streams(seed: tuple[int, int]) -> tuple[int, int, int]:
    """Three independent seeds of one run, for the model, the order and the augmentation.

    Run i of base seed s draws from ``numpy.random.SeedSequence([s, i])``.
    """
    model, order, augmentation = np.random.SeedSequence(seed).generate_state(3, np.uint64)
    return int(model) >> 1, int(order) >> 1, int(augmentation) >> 1  # torch takes 63 bits
