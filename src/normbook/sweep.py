"""A chapter's grid from its learning rates to its seeds: train what is missing, or read what is recorded of it.

Scales cifar and paper keep one record a run. There a chapter is trained by the command, stage by stage, and its
notebook only reads: so a grid of weeks can be stopped, resumed, split over machines and looked at on the way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from normbook import claims, data, grid, records
from normbook.claims import Chapter
from normbook.errors import InputError, choose
from normbook.records import Record
from normbook.train import Config

KEPT = ("cifar", "paper")  # the scales whose records are kept

Seed = tuple[int, int]
Kind = tuple[Any, ...]
Keep = Callable[[Config], bool]
Get = Callable[[list[Config]], list[Record]]


def dataset(planned: str, given: str) -> str:
    """The data set of a plan, or the ``given`` one, at the plan's size of images.

    Raises:
        InputError: as `data.locate`.
    """
    size = planned.partition("@")[2]
    return data.sized(given, int(size)) if given and size else given or planned


def results(
    scan: Sequence[Config], runs: Sequence[Config], closer: Sequence[Seed], scale: str, device: str
) -> tuple[list[Record], list[Record]]:
    """What a chapter's notebook works with: the records of its scan and of its runs at the best learning rates.

    At scales quick and tiny all is trained, anew each time. At the others nothing is: what is recorded is read, and
    what is not is left out.
    """
    if scale in KEPT:
        folder = place(scale, Path(".."))  # `normbook run` executes a notebook in OUT/NN_slug
        return stages(scan, runs, closer, lambda configs: recorded(configs, folder))
    return stages(scan, runs, closer, lambda configs: grid.run(configs, device=device))


def train(chapter: Chapter, folder: Path, keep: Keep, **how: Any) -> tuple[list[Record], list[Record]]:
    """Train what ``folder`` does not hold of a chapter's grid, as far as ``keep`` names it; ``how`` as in `grid.run`.

    Raises:
        InputError: as `grid.run`.
    """

    def get(configs: list[Config]) -> list[Record]:
        return grid.run(list(filter(keep, configs)), folder, **how)

    return stages(chapter.scan, chapter.runs, chapter.closer, get)


def only(text: str, configs: Sequence[Config]) -> Keep:
    """Whether a run belongs to the part that ``text`` names, as in ``depth=16,arm=bn,arm=skipinit_0``.

    Fields are those of `Config`, values those that occur in ``configs``; of two values of one field either will do. An
    arm may be given by its initials, a rate as ``2^-3``, a seed by its index.

    Raises:
        InputError: no such field, or no run has such a value.
    """
    wanted: dict[str, set[str]] = {}
    for part in text.split(",") if text else ():
        name, _, value = part.partition("=")
        choose("field of --only", name.strip(), [field.name for field in fields(Config)])
        known = sorted({_text(c, name.strip()) for c in configs} - {"None"})
        wanted.setdefault(name.strip(), set()).add(_value(name.strip(), value.strip(), known))
    return lambda config: all(_text(config, name) in values for name, values in wanted.items())


def _text(config: Config, name: str) -> str:
    value = getattr(config, name)
    return str(value[1]) if name == "seed" else f"{value:g}" if isinstance(value, float) else str(value)


def _value(name: str, given: str, known: Sequence[str]) -> str:
    power = re.fullmatch(r"2\^(-?\d+)", given)
    if power or re.fullmatch(r"-?[\d.]+(e-?\d+)?", given):
        try:
            given = f"{2.0 ** int(power[1]) if power else float(given):g}"
        except (ValueError, OverflowError):
            pass  # said below
    meant = [text for text in known if "".join(word[0] for word in text.split("_") if word) == given]
    return meant[0] if given not in known and len(meant) == 1 else choose(f"{name} of --only", given, known)


def place(scale: str, out: Path) -> Path:
    """The folder of a scale's records: ``out/records`` where that is there, else results/SCALE/records."""
    beside = out / "records"
    return beside if beside.is_dir() else claims.ROOT / "results" / scale / "records"


def stages(
    scan: Sequence[Config], runs: Sequence[Config], closer: Sequence[Seed], get: Get
) -> tuple[list[Record], list[Record]]:
    """The records that ``get`` gives: of the scan with its closer look, and of the runs at the best learning rates.

    A kind of run has no best rate until ``get`` gave its whole scan; until then its runs are left out.
    """
    found = get(list(scan))
    found += get(around_best(found, closer, undecided(scan, found)))
    left = undecided(scan, found, closer)
    return found, get(grid.best_lrs(found, [c for c in runs if kind(c) not in left]))


def kind(config: Config) -> Kind:
    """What runs share that differ in seed and learning rate only: `Config.kind` as a key, forty times as fast."""
    return tuple(value for name, value in vars(config).items() if name not in ("lr", "seed"))


def undecided(scan: Sequence[Config], found: Sequence[Record], closer: Sequence[Seed] = ()) -> set[Kind]:
    """The kinds of run of which a part of the scan, or of the closer look with these seeds, is not recorded."""
    there = {grid.config_of(record) for record in found}
    left = {kind(c) for c in scan if c not in there}
    return left | {kind(c) for c in around_best(found, closer, left) if c not in there}


def around_best(found: Sequence[Record], seeds: Sequence[Seed], without: Collection[Kind] = ()) -> list[Config]:
    """The best scanned learning rate of each kind of run and its two neighbours on the grid, with ``seeds``.

    Only the scan's first seed of a kind decides: so what is a closer look already changes nothing. Kinds in ``without``
    are left out.
    """
    if not seeds:
        return []
    first: dict[Kind, dict[float, tuple[Config, Record]]] = {}
    for record in found:
        config = grid.config_of(record)
        first.setdefault(kind(config), {}).setdefault(config.lr or 0.0, (config, record))
    near = []
    for key, rates in first.items():
        if key not in without:
            one = next(iter(rates.values()))[0]
            best = grid.best_lrs([record for _, record in rates.values()], [one])[0].lr
            order = sorted(rates)
            at = order.index(best or 0.0)
            near += [replace(one, lr=lr, seed=s) for lr in order[max(0, at - 1) : at + 2] for s in seeds]
    return near


def recorded(configs: Sequence[Config], folder: Path) -> list[Record]:
    """The records of ``configs`` that are in ``folder``, in their order; what is not there is left out.

    The images need not be here: the hash of a data set is read in any record that learned from it.

    Raises:
        InputError: a record is damaged.
    """
    return [records.read(folder / f"{name}.json") for _, name in names(configs, folder)]


def names(configs: Sequence[Config], folder: Path) -> list[tuple[Config, str]]:
    """Those of ``configs`` that are recorded in ``folder``, each with the name of its record."""
    there = {path.stem for path in folder.glob("*.json")} if configs else set()
    hashes = _hashes({c.data for c in configs}, folder, there)
    named = [(c, records.name_of(vars(c), hashes[c.data])) for c in configs if c.data in hashes]
    return [(c, name) for c, name in named if name in there]


def _hashes(wanted: set[str], folder: Path, there: set[str]) -> dict[str, str]:
    """The content hash of each wanted data set that a record in ``folder`` learned from."""
    found: dict[str, str] = {}
    for name in sorted(there):
        if wanted <= set(found):
            break
        path = folder / f"{name}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found[str(record["config"]["data"])] = str(record["data_hash"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: not a record ({error}); move it away and run again") from None
    return found
