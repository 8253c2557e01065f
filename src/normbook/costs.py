"""What a chapter costs at each scale, for the pages: of runs that were made, else of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normbook import claims, plan, recorded, records, stability, sweep, throughput
from normbook.chapters import Executed
from normbook.errors import InputError


@dataclass(frozen=True)
class Grid:
    """The runs of a chapter at a scale that keeps records, and what `recorded.summary` says of them."""

    chapter: claims.Chapter
    scale: str
    folder: Path
    found: Mapping[str, Any]


def grids(slug: str) -> list[Grid]:
    """The grids that a chapter declares; none where it is planned at scale quick only.

    Raises:
        InputError: a record is damaged.
    """
    found = []
    for scale in sweep.KEPT:
        try:
            chapter = claims.load(slug, scale=scale)
        except InputError:  # no plan
            continue
        folder = sweep.place(scale, claims.ROOT / "results" / scale)
        found.append(Grid(chapter, scale, folder, recorded.summary(chapter, folder)))
    return found


def counted(found: Sequence[Grid]) -> str:
    """How many runs of a chapter are recorded, in a cell of a table."""
    said = []
    for grid in found:
        age = recorded.older_code(grid.found)
        said.append(f"{recorded.counts(grid.found) or 'nothing'} at {grid.scale}{f' ({age})' if age else ''}")
    return ", ".join(said) or "no grid declared"


def table(executed: Sequence[Executed], planned: Sequence[Sequence[Grid]]) -> str:
    """Every chapter and scale: what was measured, else what the plan says, else that nothing is known.

    Raises:
        InputError: a record or a report is damaged.
    """
    lines = [f"| chapter | {' | '.join(claims.SCALES)} |", "|---" * (1 + len(claims.SCALES)) + "|"]
    for slug, chapter, found in zip(claims.chapters(), executed, planned, strict=True):
        cells = dict.fromkeys(claims.SCALES, "no grid declared") | {grid.scale: _grid(grid) for grid in found}
        cells["quick"] = _quick(int(slug[:2]), chapter.info)
        title = claims.load(slug).title.split(":")[0]
        lines.append(f"| {{doc}}`{title} </notebooks/{slug}>` | {' | '.join(cells[s] for s in claims.SCALES)} |")
    return "\n".join(lines)


def _quick(number: int, info: Mapping[str, Any]) -> str:
    """Minutes of the run that the page shows, else of the fastest pass of the stability runs."""
    if "seconds" in info:
        return f"{info['seconds'] / 60:.1f} min"
    passes = [one.seconds for one in stability.read(number) if one.way == stability.SHIPPED]
    return f"{min(passes) / 60:.1f} min" if passes else "not measured"


def _grid(grid: Grid) -> str:
    found, parts = grid.found, []
    if found["runs"] or found["probes"]:
        kept = [grid.folder / f"{name}.json" for name in plan.outlook(grid.chapter, grid.folder).there.values()]
        peak = max((records.read(path)["peak_memory_mb"] for path in kept), default=0)
        hours = " and ".join(
            f"{hours:,.1f} {'GPU hours' if throughput.is_gpu(name) else 'core hours'} on {name}"
            for name, hours in found["devices"].items()
        )
        parts.append(f"{recorded.counts(found)} took {hours}")
        if kept:
            size = sum(path.stat().st_size for path in kept) / 1e6
            parts.append(f"at most {peak / 1024:.1f} GiB of memory a worker, {size:.1f} MB of records")
    if found["runs"] < found["of"] or found["probes"] < found["of_probes"]:
        said = plan.describe(grid.chapter, grid.scale, grid.folder, "a CPU").splitlines()[1:]
        # a page is the same on every machine: of the hours, those on a GPU; not each net's
        wanted = [line.strip() for line in said if not line.startswith("    ") and "core hours" not in line]
        parts += [f"{found['of'] - found['runs']:,} runs to make"] if found["runs"] < found["of"] else []
        parts += wanted
    return "; ".join(parts)
