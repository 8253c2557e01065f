"""What a chapter's page says of the scales whose runs are recorded: how many, where and when, and what they show."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normbook import chapters, claims, pages, plan, probed, records, sweep, throughput
from normbook.errors import InputError
from normbook.files import whole

COUNTED = (("runs", "of", "runs"), ("probes", "of_probes", "measurements by probes"))
MARK = "<!-- recorded runs -->"  # where a chapter's page gets the passage; a chapter without it has none


def summary(chapter: claims.Chapter, folder: Path) -> dict[str, Any]:
    """What is recorded of a chapter in a folder.

    ``runs`` of how many (``of``), ``probes`` of how many (``of_probes``), ``devices`` with the core hours spent on each
    (of a GPU: hours), first and last day (``start``, ``end``, UTC), names of the ``data`` and hashes of the ``code``.

    Raises:
        InputError: a record is damaged.
    """
    view = plan.outlook(chapter, folder)
    found = [records.read(folder / f"{name}.json") for name in view.there.values()]
    hours: dict[str, float] = {}
    for record in found:
        cores = 1 if throughput.is_gpu(record["device"]) else record["threads"]
        hours[record["device"]] = hours.get(record["device"], 0) + record["seconds"] * cores / 3600
    tasks, place = probed.of(chapter, folder), probed.place(folder)
    left = probed.lacking(tasks, place)
    measured = [probed.load(place, task) for task in tasks if task not in left]
    for one in measured:  # on one core
        hours[one["device"]] = hours.get(one["device"], 0) + one["seconds"] / 3600
    return {
        "runs": len(found), "of": len(view.runs), "probes": len(measured), "of_probes": len(tasks),
        "devices": {name: round(hours[name], 2) for name in sorted(hours)},
        "start": _day(min([r["start"] for r in found] + [m["end"] - m["seconds"] for m in measured], default=0)),
        "end": _day(max((one["end"] for one in [*found, *measured]), default=0)),
        "data": sorted({r["config"]["data"] for r in found}),
        "code": sorted({one["code"] for one in [*found, *measured]}),
    }  # fmt: skip


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def commit(executed: chapters.Executed, chapter: claims.Chapter, scale: str, folder: Path) -> list[str]:
    """Keep a chapter's verdicts from records, what they were judged on, and its key figure.

    A claim whose control failed has no verdict; their ids are returned.

    Raises:
        InputError: nothing is recorded, a record is damaged, or a file cannot be written.
    """
    found = summary(chapter, folder)
    if not found["runs"] and not found["probes"]:
        raise InputError(f"{folder}: none of the {_expected(found)} of chapter {chapter.number} is recorded there")
    failed = [key for key, verdict in executed.verdicts.items() if not verdict.control_holds]
    held = {key: verdict for key, verdict in executed.verdicts.items() if key not in failed}
    figure, alt = chapters.key_figure(executed)
    chapters.commit(
        chapters.Executed(executed.path, executed.notebook, held), chapter.number, recorded=found,
        controls_failed=failed, figure=alt, table=chapters.key_table(executed),
    )  # fmt: skip
    picture = figure_path(scale, chapter.number)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with whole(picture) as file:
        file.write(figure)
    return failed


def figure_path(scale: str, number: int) -> Path:
    """Where a chapter's key figure at a scale stands."""
    return claims.ROOT / "results" / scale / "figures" / f"{number:02}.png"


def passage(slug: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The recorded runs of a chapter at each scale, as Markdown. Its figures are expected as ``NN_SCALE.png``.

    Raises:
        InputError: a record or a file of verdicts is damaged.
    """
    number, parts = int(slug[:2]), []
    for scale in sweep.KEPT:
        try:
            chapter = claims.load(slug, scale=scale)
        except InputError:  # no plan
            parts.append(f"**Scale `{scale}`.** This chapter declares no grid at this scale yet.")
            continue
        found = summary(chapter, sweep.place(scale, claims.ROOT / "results" / scale))
        kept = chapters.committed(scale, number)
        parts += [_counted(number, scale, found), *(_shown(number, scale, kept, rows) if kept else [])]
    return "\n\n".join(parts)


def _counted(number: int, scale: str, found: Mapping[str, Any]) -> str:
    how = f"`normbook run {number} --scale {scale}` runs what is missing, with `--plan` it says first what that costs."
    if not found["runs"] and not found["probes"]:
        return f"**Scale `{scale}`.** None of its {_expected(found)} is recorded yet. {how}"
    spent = ", ".join(
        f"{name} ({hours:,.1f} {'hours' if throughput.is_gpu(name) else 'core hours'})"
        for name, hours in found["devices"].items()
    )
    days = " to ".join(dict.fromkeys((found["start"], found["end"])))
    older = f" {age[0].upper()}{age[1:]}." if (age := older_code(found)) else ""
    text = f"**Scale `{scale}`.** {counts(found)} are recorded: {spent}, {days}"
    text += f", data {', '.join(f'`{name}`' for name in found['data'])}.{older}" if found["data"] else f".{older}"
    return text if all(found[n] == found[m] for n, m, _ in COUNTED) else f"{text} {how}"


def older_code(found: Mapping[str, Any]) -> str:
    """Whether what is recorded was made by older code of training, in words."""
    if found["code"] in ([], [records.code_hash()]):
        return ""
    return f"{'some of them are' if records.code_hash() in found['code'] else 'all of them are'} of older code"


def counts(found: Mapping[str, Any]) -> str:
    """How many runs, and measurements by probes, are recorded of how many."""
    return " and ".join(f"{found[n]:,} of {found[m]:,} {what}" for n, m, what in COUNTED if found[m])


def _expected(found: Mapping[str, Any]) -> str:
    return " and ".join(f"{found[m]:,} {what}" for _, m, what in COUNTED if found[m]) or "runs"


def _shown(number: int, scale: str, kept: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Figure, table and what is not as at scale quick."""
    judged = [(row, row["scales"][scale]) for row in rows if row["scales"][scale]]
    parts = (
        [f"```{{image}} {number:02}_{scale}.png\n:alt: {kept['figure']}\n:width: 100%\n```"] if "figure" in kept else []
    )
    lines = ["| claim | verdict | ours | paper | interval | n |", "|---|---|---|---|---|---|"]
    for row, found in judged:
        paper = "" if row["paper_value"] is None else claims.number(row["paper_value"])
        span = f"{claims.number(found['ci_low'])} to {claims.number(found['ci_high'])}"
        lines.append(
            f"| [{row['id']}]{{.claim-id}} {row['statement']} | {pages.mark(found)} "
            f"| {claims.number(found['estimate'])} {row['unit']} | {paper} | {span} | {found['n']} |"
        )
    parts += [kept["table"]] if kept.get("table") else []
    parts += ["\n".join(lines)] if judged else ["No claim has all its runs yet."]
    differ = [
        f"{row['id']} ({row['scales']['quick']['verdict']}, here {found['verdict']})"
        for row, found in judged
        if row["scales"]["quick"] and row["scales"]["quick"]["verdict"] != found["verdict"]
    ]
    parts += [f"Judged otherwise at scale `quick`: {', '.join(differ)}."] if differ else []
    failed = kept.get("controls_failed", [])
    parts += [f"Not judged, because the control failed: {', '.join(failed)}."] if failed else []
    return parts
