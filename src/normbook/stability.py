"""How stable the verdicts are: chapters run again with other base seeds and in other ways, and how far they agree."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from normbook import chapters, claims
from normbook.chapters import Executed
from normbook.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Verdict
from normbook.errors import InputError

AGREE = 0.95  # a claim whose verdict agrees less often is named
FEW, ENOUGH = 3, 10  # passes, from which on its rate is shown, and it is shown as inconclusive
SHIPPED, BF16, ONE_CORE, AVX2 = "as shipped", "bf16", "one core", "avx2"
# How many base seeds, from 0, each way to compute is passed through with.
SEEDS = {SHIPPED: 20, BF16: 3, ONE_CORE: 3, AVX2: 3}


@dataclass(frozen=True)
class Pass:
    """One pass through a chapter: how and with which base seed it was computed, by which code, and its verdicts."""

    way: str
    seed: int
    stamp: str
    device: str
    torch: str
    seconds: float
    verdicts: dict[str, Verdict]


@dataclass(frozen=True)
class Agreement:
    """One claim over all passes: how often its verdict was the committed one, whether it flips, controls that failed.

    To flip is to be reproduced in one pass and not reproduced in another. ``outcomes`` counts the passes' verdicts; a
    pass whose control failed leaves the claim open.
    """

    id: str
    expected: str
    share: float
    flips: bool
    failed_controls: int
    outcomes: dict[str, int]

    @property
    def passes(self) -> int:
        return sum(self.outcomes.values())

    @property
    def said(self) -> str:
        """The outcomes in words, as ``3 not reproduced, 3 inconclusive``."""
        return ", ".join(f"{count} {verdict}" for verdict, count in self.outcomes.items() if count)

    @property
    def stable(self) -> bool:
        return self.share >= AGREE and not self.flips

    def __str__(self) -> str:
        return f"{self.id} (here {self.expected}; passes: {self.said})"


def path_of(number: int) -> Path:
    """Where the passes of a chapter are kept."""
    return claims.ROOT / "results" / "stability" / f"{number:02}.json"


def read(number: int) -> list[Pass]:
    """The passes kept of a chapter; none where there is no file.

    Raises:
        InputError: the file is not what this version writes.
    """
    path = path_of(number)
    if not path.exists():
        return []
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["passes"]
        found = [one | {"verdicts": {key: Verdict(*v) for key, v in one["verdicts"].items()}} for one in kept]
        return [Pass(**one) for one in found]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a file of passes ({error}); restore it with git, or delete it") from None


def write(number: int, passes: Sequence[Pass]) -> None:
    """Write the passes of a chapter, a line each; the old file stays whole until the new one is."""
    path = path_of(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {way: i for i, way in enumerate(SEEDS)}
    lines = []
    for one in sorted(passes, key=lambda p: (order.get(p.way, len(order)), p.seed)):
        # six digits: enough to see how far an estimate stands from its region's edge
        found = {
            key: [v.verdict, *(float(f"{x:.6g}") for x in (v.estimate, v.ci_low, v.ci_high)), v.n, v.control_verdict]
            for key, v in one.verdicts.items()
        }
        lines.append(json.dumps({**vars(one), "verdicts": found}))
    text = f'{{"chapter": {number}, "passes": [\n' + ",\n".join(lines) + "\n]}\n"
    chapters.write_text(path, text)


def keep(number: int, way: str, seed: int, executed: Executed) -> None:
    """Add a pass to the kept ones, in place of an older one of the same way and seed."""
    info = executed.info
    new = Pass(way, seed, info["stamp"], info["device"], info["versions"]["torch"], info["seconds"], executed.verdicts)
    write(number, [one for one in read(number) if (one.way, one.seed) != (way, seed)] + [new])


def carry(number: int, old: str, new: str) -> None:
    """Take the passes of the code with stamp ``old`` for passes of ``new``: a refresh found the same numbers with both.

    So a pass of hours is not computed again for a change that moves no digit of base seed 0 on one machine.
    """
    passes = read(number)
    if any(one.stamp == old for one in passes):
        write(number, [replace(one, stamp=new) if one.stamp == old else one for one in passes])


def missing(number: int, stamp: str) -> list[tuple[str, int]]:
    """The passes (way, base seed) that are not there or that other code computed."""
    there = {(one.way, one.seed) for one in read(number) if one.stamp == stamp}
    return [(way, seed) for way, n in SEEDS.items() for seed in range(n) if (way, seed) not in there]


def run(slug: str, way: str, seed: int) -> None:
    """Run a chapter at scale quick in this way and keep the pass.

    Raises:
        InputError: this machine cannot compute in this way.
        chapters.ChapterCrashed: the chapter raised an error.
    """
    parameters: dict[str, Any] = {"seed": seed, **({"precision": "bf16"} if way == BF16 else {})}
    with tempfile.TemporaryDirectory(prefix="normbook-") as folder, computing(way):
        executed = chapters.execute(claims.find(slug), Path(folder), parameters)
    keep(int(slug[:2]), way, seed, executed)


@contextlib.contextmanager
def computing(way: str) -> Iterator[None]:
    """Within, a kernel that is started computes in this way: on one core, so one thread, or without AVX-512."""
    variables = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"} if way == AVX2 else {}
    old = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    cores = os.sched_getaffinity(0) if way == ONE_CORE and hasattr(os, "sched_setaffinity") else None
    if way == ONE_CORE and cores is None:
        raise InputError("one core: this system cannot bind a process to a core")
    try:
        if cores is not None:
            os.sched_setaffinity(0, {min(cores)})
        yield
    finally:
        if cores is not None:
            os.sched_setaffinity(0, cores)
        for name, value in old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def agreement(number: int) -> list[Agreement]:
    """How far the passes of a chapter agree with its committed verdicts, a claim each; none without passes.

    A verdict over another number of seeds is of an older design of its claim and does not count.
    """
    passes = read(number)
    expected = (chapters.committed("quick", number) or {"verdicts": {}})["verdicts"]
    found = []
    for key, verdict in expected.items():
        each = [one.verdicts[key] for one in passes if key in one.verdicts and one.verdicts[key].n == verdict.n]
        if each:
            kinds = [v.verdict if v.control_holds else INCONCLUSIVE for v in each]
            outcomes = {kind: kinds.count(kind) for kind in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)}
            flips = {REPRODUCED, NOT_REPRODUCED} <= {v.verdict for v in each}  # also where a control failed
            share = kinds.count(verdict.verdict) / len(each)
            failed = sum(not v.control_holds for v in each)
            found.append(Agreement(key, verdict.verdict, share, flips, failed, outcomes))
    return found


def temper(rows: Sequence[dict[str, Any]], number: int) -> None:
    """Add the ``rate`` of a chapter's unstable verdicts at scale quick; with enough passes they become inconclusive."""
    unstable = {one.id: one for one in agreement(number) if one.share < AGREE and one.passes >= FEW}
    for row in rows:
        found, one = row["scales"]["quick"], unstable.get(row["id"])
        if found and one:
            found["rate"] = f"passes: {one.said}"
            found["verdict"] = INCONCLUSIVE if one.passes >= ENOUGH else found["verdict"]


def summary(number: int, stamp: str) -> str:
    """One or two sentences for a chapter's page: passes, what is stable, what is not."""
    passes, found = read(number), agreement(number)
    if not found:
        return ""
    current = sum(one.stamp == stamp for one in passes)
    ways = [f"{sum(one.way == way for one in passes)} {way}" for way in SEEDS if any(o.way == way for o in passes)]
    unstable = [one for one in found if one.share < AGREE]
    flips = [one.id for one in found if one.flips]
    failed = [f"{one.id} in {one.failed_controls}" for one in found if one.failed_controls]
    code = "all with this code" if current == len(passes) else f"{current} with this very code, others with older"
    text = f"Run again in {len(passes)} pass{'es' if len(passes) > 1 else ''} ({', '.join(ways)}; {code}): "
    text += f"{len(found) - len(unstable)} of {len(found)} verdicts agree in {AGREE:.0%} or more of them."
    if unstable:
        text += f" Less often: {'; '.join(map(str, unstable))}."
    if flips:
        text += f" Reproduced in one pass and not reproduced in another: {', '.join(flips)}."
    if failed:
        text += f" Controls that failed: {', '.join(failed)} of the passes."
    return text
