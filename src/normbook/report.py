"""Verdicts in the terminal: a line each, and what differs from the expected ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import click

from normbook import claims, sweep
from normbook.chapters import Executed
from normbook.stability import Agreement


def table(
    rows: Sequence[Mapping[str, Any]], scale: str | None = None, known: Mapping[str, Agreement] | None = None
) -> str:
    """Claims and verdicts as lines of text, one a claim and scale; for claims in ``known`` their passes' outcomes."""
    lines, known = [], known or {}
    for row in rows:
        for name, found in row["scales"].items():
            if found and scale in (None, name):
                span = f"{claims.number(found['ci_low'])} to {claims.number(found['ci_high'])}"
                span = "exact" if row["estimator"] == "exact" else span
                unit = f" {row['unit']}" if row["unit"] else ""
                lines.append(
                    f"{row['id']:8} {name:6} {found['verdict']:15} {claims.number(found['estimate']):>9} "
                    f"({span}){unit}, region {claims.region_text(tuple(row['region']))}, n = {found['n']}, "
                    f"control: {found['control_verdict']}"
                    + (f"; passes: {known[row['id']].said}" if name == "quick" and row["id"] in known else "")
                )
        if not any(row["scales"].values()):
            lines.append(f"{row['id']:8} not run at any scale")
    return "\n".join(lines)


def differs(
    rows: Sequence[Mapping[str, Any]],
    scale: str,
    executed: Executed,
    known: Mapping[str, Agreement],
    failed: Collection[str],
) -> int:
    """Say what differs from the expected verdicts; 1 if anything does that no recorded pass (``known``) has.

    ``failed`` are the claims whose control failed when the verdicts were committed: they have none.
    """
    if not executed.verdicts:
        what = "no claim has all its runs yet" if scale in sweep.KEPT else "judges nothing"
        click.echo(f"scale {scale} {what}", err=True)
        return 0
    worst = seen = 0
    for row in rows:
        found, said = row["scales"][scale], []
        if found is None:
            continue
        one, holds = known.get(row["id"]), executed.verdicts[row["id"]].control_holds
        if found["expected"] not in (None, found["verdict"]):
            said.append(f"{row['id']}: {found['verdict']}, expected {found['expected']}")
        if not holds:
            what = "planted effect" if found["verdict"] == claims.NOT_REPRODUCED else "negative control"
            said.append(f"{row['id']}: its {what} failed ({found['control_verdict']})")
        if row["id"] in failed and not holds:
            said, seen = [f"{line}, as recorded: it has no verdict" for line in said], seen + 1
        elif said and one and (one.outcomes[found["verdict"]] if holds else one.failed_controls):
            said, seen = [f"{line}; recorded passes: {one.said}" for line in said], seen + 1
        elif said:
            worst = 1
        for line in said:
            click.echo(line, err=True)
    if not worst:
        rest = f"all but {seen} verdicts as expected, and {'this' if seen == 1 else 'these'} as recorded"
        click.echo(rest if seen else "all verdicts as expected, all controls hold", err=True)
    return worst
