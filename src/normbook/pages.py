"""Pages that are written from verdicts: scoreboard, overview of the index, status; and numbers filled into prose."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from html import escape
from typing import Any

from normbook import chapters, claims, stability
from normbook.chapters import Executed
from normbook.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, number, region_text
from normbook.errors import InputError

Row = dict[str, Any]
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)
SIGNS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗", INCONCLUSIVE: "?"}
WIDTH, HEIGHT = 120, 18  # pixels of an interval's picture


def judged(rows: Sequence[Row], scales: Sequence[str] = claims.SCALES) -> list[tuple[Row, str, dict[str, Any]]]:
    """Every recorded verdict at these scales: (claim, scale, what was found)."""
    return [(row, scale, row["scales"][scale]) for row in rows for scale in scales if row["scales"][scale]]


def counts(rows: Sequence[Row], scale: str = "quick") -> dict[str, int]:
    """How many verdicts of each kind at a scale."""
    return {name: sum(found["verdict"] == name for _, _, found in judged(rows, (scale,))) for name in VERDICTS}


def paper(row: Row) -> str:
    """The first source of a claim without its figure or section: up to its year, if it has one."""
    dated = re.match(r"[A-Z][^;]*?\b(?:19|20)\d\d", row["source"])
    return dated[0] if dated else re.split("[,;]", row["source"])[0].strip()


def estimate_text(row: Row, found: dict[str, Any]) -> str:
    """Estimate, interval and unit of a verdict, as tables print them."""
    span = "exact" if row["estimator"] == "exact" else f"{number(found['ci_low'])} to {number(found['ci_high'])}"
    return f"{number(found['estimate'])} ({span}) {row['unit']}".strip()


def mark(found: dict[str, Any]) -> str:
    """A verdict as Markdown with its class."""
    return f"[{found['verdict']}]{{.verdict-{found['verdict'].replace(' ', '-')}}}"


def badge(row: Row, found: dict[str, Any]) -> str:
    """Verdict, estimate, interval and unit as Markdown with the verdict's class."""
    rate = f"{found['rate']}; here " if "rate" in found else ""
    return f"{mark(found)} {rate}{estimate_text(row, found)}"


def fill(text: str, rows: Sequence[Row]) -> str:
    """Put verdicts into a page: ``[[DS-8a]]`` becomes the id, verdict, interval and n at scale quick, and the verdicts
    at the other scales.

    Raises:
        InputError: the page names a claim that no chapter has.
    """
    known = {row["id"]: row for row in rows}

    def one(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise InputError(f"a page names the claim {match[1]}, which no chapter declares")
        row = known[match[1]]
        found = row["scales"]["quick"]
        said = f"{badge(row, found)}, n = {found['n']}" if found else "not run"
        others = [f"; {mark(one)} at scale `{scale}`" for _, scale, one in judged([row], claims.SCALES[1:])]
        return f"({row['id']}: {said}{''.join(others)})"

    text = text.replace("<!-- overview -->", overview(rows)).replace(
        "<!-- stability -->", f"{totals(rows)}\n\n{how_sure()}"
    )
    return re.sub(r"\[\[([\w-]+)\]\]", one, text)


def totals(rows: Sequence[Row]) -> str:
    """How many verdicts of each kind there are at scale quick; what the larger scales say of the same claims."""

    def listed(found: dict[str, int]) -> str:
        return ", ".join(f"{count} {name}" for name, count in found.items())

    text = f"Of {len(judged(rows, ('quick',)))} claims at scale `quick`: {listed(counts(rows))}."
    slugs = {int(slug[:2]): slug for slug in claims.chapters()}
    for scale in claims.SCALES[1:]:
        both = [(row, found) for row, _, found in judged(rows, (scale,)) if row["scales"]["quick"]]
        if not both:
            continue
        differ = [(row, found) for row, found in both if found["verdict"] != row["scales"]["quick"]["verdict"]]
        text += f" At scale `{scale}` {len(both)} of them are judged again: {len(both) - len(differ)} verdicts are as"
        text += f" at `quick`, {len(differ)} differ"
        turned = [
            f"{{doc}}`{row['id']} </notebooks/{slugs[row['chapter']]}>`"
            for row, found in differ
            if INCONCLUSIVE not in (found["verdict"], row["scales"]["quick"]["verdict"])
        ]
        if turned and len(differ) > FEW_IDS:
            text += f"; {len(turned)} turn from reproduced to not reproduced or back: {', '.join(turned)}"
        if 0 < len(differ) <= FEW_IDS:
            named = (
                f"{{doc}}`{row['id']} </notebooks/{slugs[row['chapter']]}>` "
                f"{row['scales']['quick']['verdict']} at `quick`, {found['verdict']} at `{scale}`"
                for row, found in differ
            )
            text += f": {'; '.join(named)}"
        text += "."
    return text


FEW_IDS = 6  # so many claims are named in a sentence


def how_sure() -> str:
    """How many verdicts stand in passes, over all chapters, and how many turn round."""
    found = [one for slug in claims.chapters() for one in stability.agreement(int(slug[:2]))]
    if not found:
        return ""
    flips = sum(one.flips for one in found)
    shaky, passes = sum(not one.stable for one in found), sorted({one.passes for one in found})
    times = f"{passes[0]} to {passes[-1]}" if passes[1:] else f"{passes[0]}"
    last = max(one.seed for slug in claims.chapters() for one in stability.read(int(slug[:2])))
    return (
        f"Every chapter was run at scale `quick` {times} times: with base seeds 0 to {last}, and with the first of "
        f"them in bf16, on one core and without AVX-512. Of {len(found)} verdicts {len(found) - shaky} came out the "
        f"same, with their controls, in at least {stability.AGREE:.0%} of these passes. {flips or 'None'} turned from "
        f"reproduced to not reproduced or back in any pass. {{doc}}`status` lists the other {shaky} and says how often "
        f"each agreed."
    )


def picture(found: dict[str, Any], region: Sequence[float | None]) -> str:
    """An interval as a dot and a bar, over its region as a shaded box, in a small SVG."""
    low, high = region
    marks = [found["ci_low"], found["ci_high"], *(edge for edge in region if edge is not None)]
    span = (max(marks) - min(marks)) or abs(marks[0]) or 1.0
    left, right = min(marks) - 0.15 * span, max(marks) + 0.15 * span

    def x(value: float) -> float:
        return round((value - left) / (right - left) * WIDTH, 1)

    start, end = 0 if low is None else x(low), WIDTH if high is None else x(high)
    a, b, dot, middle = x(found["ci_low"]), x(found["ci_high"]), x(found["estimate"]), HEIGHT / 2
    label = f"interval {number(found['ci_low'])} to {number(found['ci_high'])}, region {region_text((low, high))}"
    return (
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(label)}"><rect x="{start}" y="1" width="{round(end - start, 1)}" height="{HEIGHT - 2}"/>'
        f'<line x1="{a}" y1="{middle}" x2="{b}" y2="{middle}"/><circle cx="{dot}" cy="{middle}" r="3.5"/></svg>'
    )


def overview(rows: Sequence[Row]) -> str:
    """Every claim as a sign, its verdict at scale quick, a line a chapter: the figure of the first page."""
    slugs = {int(slug[:2]): slug for slug in claims.chapters()}
    lines = ['<ul class="overview">']
    for chapter in sorted({row["chapter"] for row in rows}):
        own = [row for row in rows if row["chapter"] == chapter]
        found = counts(own)
        said = ", ".join(f"{n} {name}" for name, n in found.items() if n)
        order = sorted(judged(own, ("quick",)), key=lambda each: VERDICTS.index(each[2]["verdict"]))
        signs = "".join(
            f'<span class="sign-{v["verdict"].replace(" ", "-")}" title="{escape(row["id"])}: '
            f'{escape(row["statement"])}">{SIGNS[v["verdict"]]}</span>'
            for row, _, v in order
        )
        name = claims.load(chapter).title.split(". ", 1)[-1].split(":")[0]
        lines.append(
            f'<li><a href="../notebooks/{slugs[chapter]}.html">{chapter}. {escape(name)}</a>'
            f'<span class="signs" role="img" aria-label="{said}">{signs}</span></li>'
        )
    return "\n".join([*lines, "</ul>"])


def scoreboard(rows: Sequence[Row]) -> str:
    """The page of all claims: verdict, interval, region and control, sortable and by paper."""
    found = judged(rows)
    scales = [scale for scale in claims.SCALES if any(s == scale for _, s, _ in found)]
    statistical = [row for row, _, _ in found if row["estimator"] != "exact"]
    chance = sum(1 - row["level"] for row in statistical)
    lines = [
        "---",
        "html_theme.sidebar_secondary.remove: true",  # two links, at the cost of a table that does not fit
        "---",
        "",
        "# Scoreboard",
        "",
        f"{len(rows)} claims. "
        + " ".join(
            f"At scale {scale}: " + ", ".join(f"{count} {name}" for name, count in counts(rows, scale).items()) + "."
            for scale in scales
        )
        + f" If every claim stood exactly on the edge of its region, chance alone would get at most "
        f"{number(chance)} of the {len(statistical)} intervals wrong at the levels used.",
        "",
        "The picture shows the interval as a bar, the estimate as a dot and the region as a shaded box: a bar inside "
        "the box is *reproduced*, one wholly outside *not reproduced*. A control is the same statistic where the claim "
        "is false by construction: it must come out *not reproduced*. Where a claim is not reproduced, a planted "
        "effect must come out *reproduced*. A verdict that comes out otherwise in more than 5 % of at least "
        "three passes over other base seeds carries its rate ({doc}`status`); from ten passes on it is shown as "
        "inconclusive. See {doc}`notation`.",
        "",
        "## All claims",
        "",
        "```{raw} html",
        '<div id="scoreboard-controls"></div>',
        '<div class="scoreboard" tabindex="0" role="region" aria-label="All claims">',
        "<table><thead><tr>",
        *(f"<th>{name}</th>" for name in COLUMNS),
        "</tr></thead><tbody>",
        *(_line(*each) for each in found),
        "</tbody></table></div>",
        '<script src="../_static/scoreboard.js" defer></script>',
        "```",
        "",
        *_side_by_side(rows),
        "## Paper by paper",
        "",
        *_papers(rows),
    ]
    return "\n".join(lines) + "\n"


COLUMNS = ("claim", "verdict", "interval", "estimate", "region", "paper", "control", "source")


def _line(row: Row, scale: str, found: dict[str, Any]) -> str:
    slugs = {int(slug[:2]): slug for slug in claims.chapters()}
    css = found["verdict"].replace(" ", "-")
    page = f"../notebooks/{slugs[row['chapter']]}.html"
    cells = [
        f'<a class="claim-id" href="{page}">{escape(row["id"])}</a> {escape(row["statement"])}',
        f'<span class="verdict-{css}">{found["verdict"]}</span> {scale} {found.get("rate", "")}'.rstrip(),
        picture(found, row["region"]),
        escape(estimate_text(row, found)) + ("" if row["estimator"] == "exact" else f", n\u00a0=\u00a0{found['n']}"),
        escape(region_text(tuple(row["region"]))),
        "" if row["paper_value"] is None else number(row["paper_value"]),
        found["control_verdict"],
        escape(row["source"]),
    ]
    data = f'data-verdict="{found["verdict"]}" data-chapter="{row["chapter"]}" data-paper="{escape(paper(row))}"'
    return f"<tr {data}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _side_by_side(rows: Sequence[Row]) -> list[str]:
    """A table of the claims that are judged at more than one scale, those with different verdicts first."""
    several = [row for row in rows if len(judged([row])) > 1]
    if not several:
        return []
    scales = [scale for scale in claims.SCALES if any(row["scales"][scale] for row in several)]

    def differs(row: Row) -> bool:
        return len({found["verdict"] for _, _, found in judged([row])}) > 1

    n = sum(map(differs, several))
    lines = [
        "## At more than one scale", "",
        f"{len(several)} claims are judged at more than one scale; {n} of them come out differently, and stand first.",
        "", f"| claim | {' | '.join(scales)} |", "|---" * (1 + len(scales)) + "|",
    ]  # fmt: skip
    for row in sorted(several, key=lambda row: not differs(row)):
        found = [badge(row, row["scales"][scale]) if row["scales"][scale] else "not run" for scale in scales]
        lines.append(f"| [{row['id']}]{{.claim-id}} {row['statement']} | {' | '.join(found)} |")
    return [*lines, ""]


def _papers(rows: Sequence[Row]) -> list[str]:
    """A table: claims and verdicts at scale quick by their first source, most claims first."""
    names = sorted({paper(row) for row in rows}, key=lambda name: (-sum(paper(r) == name for r in rows), name))
    lines = ["| first source | claims | reproduced | not reproduced | inconclusive |", "|---|---|---|---|---|"]
    for name in names:
        own = [row for row in rows if paper(row) == name]
        ids = {
            kind: [row["id"] for row, _, found in judged(own, ("quick",)) if found["verdict"] == kind]
            for kind in VERDICTS
        }
        named = [f"{len(ids[kind])}{': ' + ', '.join(ids[kind]) if ids[kind] else ''}" for kind in VERDICTS[1:]]
        lines.append(f"| {name} | {len(own)} | {len(ids[REPRODUCED])} | {' | '.join(named)} |")
    return lines


def environment(lock: str, cluster: str, project: str) -> str:
    """The page of versions: the packages that we name ourselves, with the versions of the locks, and their sizes.

    ``lock`` is the text of requirements.lock, ``cluster`` of requirements-cluster.lock, ``project`` of pyproject.toml.
    """
    pinned, also = (dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.M)) for text in (lock, cluster))
    tables = tomllib.loads(project)["project"]
    wanted = {"package": tables["dependencies"], **tables["optional-dependencies"]}
    lines = [
        "# Environment",
        "",
        f"`make book` and `make test` make `.venv` from `requirements.lock`: {len(pinned)} packages, each with its "
        "hash. Grids on more than one machine ({doc}`cluster`) have a lock of their own, `requirements-cluster.lock`, "
        f"with {len(also)} packages, in the same versions where both have one. These are the packages that the project "
        "itself asks for, with the locked version.",
        "",
        "| for | package | asked for | locked |",
        "|---|---|---|---|",
    ]
    for extra, requirements in wanted.items():
        for requirement in requirements:
            # the name, its extras, what is asked for
            name, more, wish = re.fullmatch(r"([\w.-]+)(\[.*?\])?(.*)", requirement).groups("")  # type: ignore[union-attr]
            found = (also if extra == "cluster" else pinned).get(name, "not locked")
            lines.append(f"| {extra} | {name}{more} | `{wish}` | {found} |")
    return "\n".join([*lines, "", "{doc}`how_to_run` says how to use an environment of your own."]) + "\n"


def status(executed: Sequence[Executed], recorded: Sequence[str]) -> str:
    """The page of runs: per chapter when, where, how long, with which versions, whether current, and how stable.

    ``recorded`` says for each chapter how many runs of its grids are recorded.
    """
    lines = [
        "# Status",
        "",
        "What this copy of the book was built from. *Fresh* means that the outputs come from the code shown. "
        "*Records* are the runs at scales `cifar` and `paper`. *Of older code*: a module that training uses has "
        "changed since, in what it computes or only in its text; the runs were not made again.",
        "",
    ]
    rows = [["chapter", "state", "records", "started", "seconds", "slowest cell, seconds", "torch"], ["---"] * 7]
    devices, agreements = set(), []
    for slug, chapter, kept_runs in zip(claims.chapters(), executed, recorded, strict=True):
        info = chapter.info
        cells = [cell.metadata.get("papermill", {}).get("duration") or 0 for cell in chapter.notebook.cells]
        stamp = chapters.stamp(claims.find(slug))
        fresh = "fresh" if info.get("stamp") == stamp else "**stale**"
        seconds = f"{info['seconds']:.0f}" if "seconds" in info else "not kept"
        slowest = f"{max(cells):.0f}" if any(cells) else "not kept"
        link = f"{{doc}}`{claims.load(slug).title.split(':')[0]} </notebooks/{slug}>`"
        started, torch = info.get("started", "committed outputs"), info.get("versions", {}).get("torch", "")
        rows.append([link, fresh, kept_runs, started, seconds, slowest, torch])
        devices.add(info.get("device", ""))
        agreements.append(f"* {link}: {stability.summary(int(slug[:2]), stamp) or 'no passes are recorded.'}")
    kept = [column for column in zip(*rows, strict=True) if set(column[2:]) != {"not kept"}]
    lines += [f"| {' | '.join(row)} |" for row in zip(*kept, strict=True)]
    lines += ["", f"Run on: {', '.join(sorted(devices - {''})) or 'not kept'}."]
    agreement = ["", "## Stability", "", "How far verdicts agree when a chapter is run again in other ways.", ""]
    return "\n".join([*lines, *agreement, *agreements]) + "\n"
