"""Rewrite what is committed of a chapter: its expected verdicts, its outputs at scale quick, its figure beyond it."""

from __future__ import annotations

from pathlib import Path

import nbformat

from normbook import chapters, claims, probed, recorded, stability, sweep
from normbook.claims import Verdict
from normbook.errors import InputError


def by_running(path: Path) -> dict[str, Verdict]:
    """Run a chapter at scale quick and commit its outputs and verdicts; return those whose control failed.

    Where one failed, nothing is rewritten. Where the numbers are those committed, the chapter's passes stay current.

    Raises:
        InputError: bad input that the chapter itself found, or a file that cannot be written.
        ChapterCrashed: anything else went wrong in it.
    """
    executed = chapters.execute(path, Path("_build/executed").resolve() / path.stem, {})
    failed = _failed(executed)
    if not failed:
        number = claims.load(path.stem).number
        old = chapters.committed("quick", number)
        chapters.commit(executed, number)
        if old and old["verdicts"] == executed.verdicts:
            stability.carry(number, old["stamp"], executed.info["stamp"])
        chapters.write_text(path, nbformat.writes(chapters.strip(executed)) + "\n")
    return failed


def from_records(path: Path, scale: str) -> dict[str, Verdict]:
    """Judge a chapter's recorded runs and commit verdicts and key figure; return those whose control failed.

    A claim whose control failed has no verdict.

    Raises:
        InputError: measurements are missing, or as `recorded.commit`.
    """
    chapter = claims.load(path.stem, scale=scale)
    folder = Path(f"_build/{scale}").resolve()
    place = sweep.place(scale, folder)
    left = probed.lacking(probed.of(chapter, place), probed.place(place))
    if left:
        again = f"normbook run {chapter.number} --scale {scale} makes them"
        raise InputError(f"{len(left)} measurements are missing: {again}")
    executed = chapters.execute(path, folder / path.stem, {"scale": scale})
    recorded.commit(executed, chapter, scale, place)
    return _failed(executed)


def _failed(executed: chapters.Executed) -> dict[str, Verdict]:
    return {key: verdict for key, verdict in executed.verdicts.items() if not verdict.control_holds}
