"""What probes measured at scales cifar and paper: one JSON file a measurement, as the records are of runs.

A probe is a function of `normbook.probes` that draws, or trains, by itself. A chapter names what it measures as tasks,
``(probe, arguments)``. At scales quick and tiny they are measured anew each time; at the others the command measures
what is missing, and the notebook only reads.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from normbook import grid, records, sweep, train
from normbook.claims import Chapter
from normbook.errors import InputError
from normbook.files import whole

DIGITS = 5  # of a float in a file: what a page shows has three

Task = tuple[Callable[..., Any], tuple[Any, ...]]


def results(tasks: Sequence[Task], scale: str) -> list[Any]:
    """What each task measures, for a chapter's notebook.

    Raises:
        InputError: at scales cifar and paper, one is not measured yet or its file is damaged; or as `grid.compute`.
    """
    if scale not in sweep.KEPT:
        return grid.compute(_call, tasks)
    folder = place(sweep.place(scale, Path("..")))  # `normbook run` executes a notebook in OUT/NN_slug
    return [read(folder, task) for task in tasks]


def of(chapter: Chapter, records_: Path) -> list[Task]:
    """What a chapter measures, as far as the recorded scan tells; ``records_`` is the folder of the records.

    Raises:
        InputError: a record is damaged.
    """
    if chapter.probes is None:
        return []
    scan, _ = sweep.stages(chapter.scan, (), chapter.closer, lambda configs: sweep.recorded(configs, records_))
    return chapter.probes(scan)


def measure(tasks: Sequence[Task], folder: Path) -> None:
    """Measure in the worker processes what ``folder`` lacks of the tasks; each is written as it comes.

    Raises:
        InputError: the folder cannot be written to, or as `grid.compute`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = lacking(tasks, folder)
    if missing:
        grid.compute(_keep, [(task, folder) for task in missing])


def lacking(tasks: Sequence[Task], folder: Path) -> list[Task]:
    """The tasks that are not measured yet."""
    return [task for task in tasks if not path_of(folder, task).exists()]


def place(recorded: Path) -> Path:
    """The folder of the measurements, beside that of the records."""
    return recorded.parent / "probes"


def path_of(folder: Path, task: Task) -> Path:
    """Where a task is kept: its name is a hash of the probe and its arguments.

    A data set among the arguments is meant by its name, which for what is not downloaded from its makers says what it
    holds (`normbook.data`).
    """
    text = records.canonical([task[0].__module__, task[0].__name__, encode(task[1])])
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def code_hash(probe: Callable[..., Any]) -> str:
    """Hash of the code that a measurement is of: the probe's module and what records are computed with."""
    source = Path(inspect.getfile(probe)).read_bytes()
    return hashlib.sha256(records.code_hash().encode() + source).hexdigest()[:16]


def load(folder: Path, task: Task) -> dict[str, Any]:
    """A task's file: ``probe``, ``arguments``, ``found``, ``code``, ``device``, ``versions``, ``seconds`` and ``end``.

    ``code`` is that of records (`records.code_hash`) where neither it nor the probe's module has changed since.

    Raises:
        InputError: it cannot be read, or it was edited or damaged.
    """
    path = path_of(folder, task)
    try:
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if kept.pop("checksum") != records.checksum(kept):
            raise ValueError("its content and its checksum differ")
        return kept | {"code": records.code_hash()} if kept["code"] == code_hash(task[0]) else kept
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a measurement ({error}); move it away and run again") from None


def read(folder: Path, task: Task) -> Any:
    """What was measured, as the probe returned it. Raises InputError as `load`."""
    kind = typing.get_type_hints(task[0])["return"]
    return decode(kind, load(folder, task)["found"])


def _call(probe: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return probe(*arguments)


def _keep(task: Task, folder: Path) -> None:
    """In a worker: measure, and write the file, whole or not at all."""
    clock = time.perf_counter()
    found = encode(_call(*task))
    kept = {
        "probe": f"{task[0].__module__}.{task[0].__name__}", "arguments": encode(task[1]), "found": found,
        "code": code_hash(task[0]), "device": train.describe_device("cpu"), "versions": {"torch": torch.__version__},
        "seconds": time.perf_counter() - clock, "end": time.time(),
    }  # fmt: skip
    path = path_of(folder, task)
    try:
        with whole(path) as file:
            file.write((records.canonical({**kept, "checksum": records.checksum(kept)}) + "\n").encode())
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; mend this and run again") from None


def encode(value: Any) -> Any:
    """What JSON can hold of a measurement or of arguments: data classes as objects, arrays as lists, nan as null.

    A list of truth values is text, a digit each: there may be thousands.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype == bool:
        return "".join("01"[each] for each in value.astype(int))
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: encode(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [encode(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
    return value


def decode(kind: Any, value: Any) -> Any:
    """The measurement of a type, such as a data class or a list of them, from what `encode` made of it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else decode(parts[0], value)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(**{name: decode(hints[name], each) for name, each in value.items()})
    if kind is np.ndarray and isinstance(value, str):
        return np.array([each == "1" for each in value])
    if kind is np.ndarray:
        return np.array(value, dtype=None if _whole(value) else float)
    if origin is list:
        return [decode(parts[0], each) for each in value]
    if origin is dict:
        return {key: decode(parts[1], each) for key, each in value.items()}
    if origin is tuple:
        kinds = [parts[0]] * len(value) if parts[-1] is ... else parts
        return tuple(decode(one, each) for one, each in zip(kinds, value, strict=True))
    return float("nan") if kind is float and value is None else value


def _whole(value: Any) -> bool:
    """Whether nested lists hold truth values or whole numbers only, which stay what they are."""
    return all(map(_whole, value)) if isinstance(value, list) else isinstance(value, int)
