"""Build the book: stage its sources, fill in what the runs found, call Jupyter Book."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import yaml
from PIL import Image

from normbook import chapters, claims, costs, pages, recorded, sliders, stability
from normbook.chapters import Executed
from normbook.errors import InputError

CARD = "<!-- claim card -->"  # marks the Markdown cell that the claim card is written into
COSTS = "<!-- costs -->"  # where the page on running the book gets its table


def executed_chapters(folder: Path) -> list[Executed]:
    """All chapters at scale quick, as executed in ``folder``; what is not there or is no longer current is run."""
    found = []
    for slug, path in claims.chapters().items():
        copy = folder / slug / "notebook.ipynb"
        current = copy.exists() and chapters.read(copy).info.get("stamp") == chapters.stamp(path)
        if current:
            print(f"{slug}: nothing changed, not run again", flush=True)
        else:
            print(f"{slug}: running at scale quick", flush=True)
        found.append(chapters.read(copy) if current else chapters.execute(path, folder / slug, {}))
        if not current:
            print(f"{slug}: {found[-1].info['seconds']:.0f} s", flush=True)
    return found


def stage(executed: Sequence[Executed], folder: Path) -> None:
    """Lay out in ``folder`` what Jupyter Book builds from: configuration, pages, and the executed chapters, dressed."""
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "notebooks").mkdir(parents=True)
    shutil.copy(claims.ROOT / "_toc.yml", folder)
    config, address = configuration((claims.ROOT / "_config.yml").read_text(encoding="utf-8"))
    (folder / "_config.yml").write_text(config, encoding="utf-8")
    shutil.copytree(claims.ROOT / "book", folder / "book")
    rows = []
    for slug, chapter in zip(claims.chapters(), executed, strict=True):
        found = chapters.listing(claims.find(slug), chapter)
        stability.temper(found, int(slug[:2]))
        rows += found
        agreement = stability.summary(int(slug[:2]), chapters.stamp(claims.find(slug)))
        notebook = nbformat.from_dict(json.loads(json.dumps(chapter.notebook)))
        sliders.attach(slug, notebook)
        passage = recorded.passage(slug, found)
        dressed = dress(notebook, found, chapter.info, f"{agreement}\n\n{links(slug, address)}".strip(), passage)
        for figure in sorted(claims.ROOT.glob(f"results/*/figures/{slug[:2]}.png")):
            shutil.copy(figure, folder / "notebooks" / f"{slug[:2]}_{figure.parts[-3]}.png")
        nbformat.write(dressed, folder / "notebooks" / f"{slug}.ipynb")
        script, numbers = downloads(chapter.notebook)
        (folder / "notebooks" / f"{slug}.py").write_text(script, encoding="utf-8")
        (folder / "notebooks" / f"{slug}.csv").write_text(numbers, encoding="utf-8")
    index = folder / "book" / "index.md"
    index.write_text(pages.fill(index.read_text(encoding="utf-8"), rows), encoding="utf-8")
    (folder / "book" / "scoreboard.md").write_text(pages.scoreboard(rows), encoding="utf-8")
    lock, cluster = (
        (claims.ROOT / f"requirements{name}.lock").read_text(encoding="utf-8") for name in ("", "-cluster")
    )
    project = (claims.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (folder / "book" / "environment.md").write_text(pages.environment(lock, cluster, project), encoding="utf-8")
    shutil.copy(claims.ROOT / "CHANGELOG.md", folder / "book" / "changelog.md")
    planned = [costs.grids(slug) for slug in claims.chapters()]
    how = folder / "book" / "how_to_run.md"
    text = how.read_text(encoding="utf-8").replace(COSTS, costs.table(executed, planned))
    how.write_text(text, encoding="utf-8")
    status = pages.status(executed, [costs.counted(found) for found in planned])
    (folder / "book" / "status.md").write_text(status, encoding="utf-8")


def configuration(text: str) -> tuple[str, str]:
    """The configuration to build with, and the repository's address; ``text`` is that of _config.yml.

    With an address, pages get buttons for the repository, for issues and for edits, and chapters one that opens them in
    Colab. Without one they have none: the theme stops the build at a button that needs an address.
    """
    config = yaml.safe_load(text)
    address = config["repository"]["url"].rstrip("/")
    if not address:
        return text, ""
    config["html"] |= {f"use_{name}_button": True for name in ("repository", "issues", "edit_page")}
    if "github.com/" in address:  # Colab opens no other
        config["launch_buttons"]["colab_url"] = "https://colab.research.google.com"
    return yaml.safe_dump(config, allow_unicode=True), address


def links(slug: str, address: str) -> str:
    """The line of downloads on a chapter's card, and what Colab needs first where the repository is one it can open."""
    line = f"Downloads: {{download}}`Python <{slug}.py>`, {{download}}`the figures' numbers (CSV) <{slug}.csv>`."
    if "github.com/" in address:
        line += f' In Colab (the rocket above), run first: `!pip install "normbook[book] @ git+{address}"`.'
    return line


def downloads(notebook: nbformat.NotebookNode) -> tuple[str, str]:
    """A chapter as a Python script in percent format, and the numbers of its figures as CSV."""
    cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    script, numbers = [], []
    for cell in cells:
        if cell.cell_type == "code":
            script.append(f"# %%\n{cell.source}")
        else:
            script.append("# %% [markdown]\n" + "\n".join(f"# {line}".rstrip() for line in cell.source.splitlines()))
        numbers += [o["data"]["text/csv"] for o in cell.get("outputs", []) if "text/csv" in o.get("data", {})]
    lines = ["figure," + numbers[0].splitlines()[0]] if numbers else []
    lines += [f"{i},{line}" for i, text in enumerate(numbers, 1) for line in text.splitlines()[1:]]
    return "\n\n".join(script) + "\n", "\n".join(lines) + "\n"


def dress(
    notebook: nbformat.NotebookNode, rows: list[dict[str, Any]], info: dict[str, Any], agreement: str = "",
    passage: str = "",
) -> nbformat.NotebookNode:  # fmt: skip
    """A copy of an executed chapter for its page: claim card, freshness line, text alternatives of the figures.

    ``agreement`` says on the card how far other passes agree with these verdicts, ``passage`` in the text what is
    recorded at other scales.

    Raises:
        InputError: the notebook has no cell for the claim card.
    """
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    cards = [cell for cell in notebook.cells if cell.cell_type == "markdown" and CARD in cell.source]
    if len(cards) != 1:
        raise InputError(f"a chapter needs exactly one Markdown cell with {CARD}, not {len(cards)}")
    cards[0].source = cards[0].source.split(CARD)[0] + CARD + "\n\n" + card(rows, info, agreement)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = DEPARTURES.sub(_folded, cell.source.replace(recorded.MARK, passage))
        for output in cell.get("outputs", []):
            for mime in (claims.MIME, "text/csv"):
                output.get("data", {}).pop(mime, None)  # for programs, not for the page
            if "text/markdown" in output.get("data", {}):  # the ids of a table of verdicts, which must not break
                said = output["data"]["text/markdown"]
                output["data"]["text/markdown"] = re.sub(
                    r"^\| ([A-Z]+\d*-\w+) \|", r"| [\1]{.claim-id} |", said, flags=re.M
                )
            # MyST-NB reads the text alternative from the cell, not from the output that carries it
            alt = output.get("metadata", {}).get("image/png", {}).get("alt")
            if alt:
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
    return notebook


DEPARTURES = re.compile(r"(## Departures[^\n]*\n\n)(.*?)\s*(?=\n## |\Z)", re.S)


def _folded(section: re.Match[str]) -> str:
    """The list of departures, folded: it is long, and read by who doubts a verdict."""
    count = len(re.findall(r"^\d+\. ", section[2], re.M))
    return f"{section[1]}````{{dropdown}} The {count} departures\n{section[2]}\n````\n" if count else section[0]


CARD_ROWS = 12  # a longer card folds away the claims that are reproduced


def card(rows: list[dict[str, Any]], info: dict[str, Any], agreement: str = "") -> str:
    """The claim card: statement, source, and the verdict at each scale with its interval.

    Where there are many claims, it counts the verdicts and shows first the claims that are not reproduced or open.
    """
    recorded = [scale for scale in claims.SCALES if any(row["scales"][scale] for row in rows)]
    body = _card_table(rows, recorded)
    if len(rows) > CARD_ROWS and recorded:
        found = [[row["scales"][scale]["verdict"] for scale in recorded if row["scales"][scale]] for row in rows]
        counts = ", ".join(
            f"{count} {name}" for name in pages.VERDICTS if (count := sum(each[:1] == [name] for each in found))
        )
        holds = [set(each) == {claims.REPRODUCED} for each in found]
        first = [row for row, held in zip(rows, holds, strict=True) if not held]
        rest = [row for row, held in zip(rows, holds, strict=True) if held]
        body = f"**{len(rows)} claims at scale {recorded[0]}: {counts}.**"
        if first:
            body += f"\n\n{_card_table(first, recorded)}"
        if rest:
            folded = f"The {len(rest)} claims reproduced at every scale\n{_card_table(rest, recorded)}"
            body += f"\n\n````{{dropdown}} {folded}\n````"
    seconds = f" It took {info['seconds']:.0f} s" if "seconds" in info else " It ran"
    ran = f"{seconds} on {info.get('cores', '?')} cores of: {info['device']}." if "device" in info else ""
    if "seconds" not in info and "device" in info:
        ran = f" Recorded on: {info['device']}, torch {info['versions']['torch']}."
    none = [scale for scale in claims.SCALES if scale not in recorded]
    missing = f" No runs are recorded at scale {' and '.join(none)} yet." if none else ""
    lines = [line for line in (f"{ran.strip()}{missing}", agreement) if line]
    return "\n\n".join([f'<div class="claim-card">\n\n{body}\n\n</div>', *lines])


def _card_table(rows: list[dict[str, Any]], scales: list[str]) -> str:
    head = ["claim", *scales, "source"]  # the verdict second: a phone shows two columns
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        judged = [(row, row["scales"][scale]) for scale in scales]
        found = [pages.badge(row, one) if one else "not run" for row, one in judged]
        if len(scales) > 1:  # a phone shows no head
            found = [f"{cell} at {scale}" for scale, cell in zip(scales, found, strict=True)]
        name = f"[{row['id']}]{{.claim-id}}"
        lines.append(f"| **{name}** {row['statement']} | {' | '.join([*found, row['source']])} |")
    return "\n".join(lines)


def build(staged: Path, output: Path, strict: bool = False) -> Path:
    """Call Jupyter Book on staged sources; return the first page. ``strict`` makes warnings errors.

    Raises:
        InputError: the build failed; what Sphinx printed says where.
    """
    doctrees = output / "_build" / ".doctrees"
    if doctrees.exists():
        shutil.rmtree(doctrees)  # a second strict build of a page that failed would be green
    # this interpreter's Jupyter Book, whatever the PATH holds
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    options = ["--path-output", str(output), "--all", "--quiet", *(["-W", "--keep-going", "-n"] if strict else [])]
    done = subprocess.run([*program, "build", str(staged), *options])
    page = output / "_build" / "html" / "index.html"
    if done.returncode or not page.exists():
        raise InputError(f"the book was not built from {staged}; the lines above say where")
    slim(page.parent)
    return page


def slim(site: Path) -> None:
    """Take from a built site what no reader needs, and what a screen reader stumbles over.

    The theme's script maps, translations and fonts for old browsers, outputs in downloads, colours of pictures that no
    eye tells apart; empty header cells, and roles that are not allowed on the entries of the bibliography. A page shows
    itself before its scripts are there, and only the search page loads the index.
    """
    shutil.rmtree(site / "_static" / "locales", ignore_errors=True)
    for path in (site / "_images").glob("*.png"):
        with Image.open(path) as picture:
            small = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        small.save(path, optimize=True)  # a third of the size, the same to the eye
    for path in [*site.rglob("*.map"), *site.rglob("*.ttf")]:
        path.unlink()
    for path in (site / "_sources").rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        better = re.sub(r'<th class="head[^"]*"><p></p></th>', "<td></td>", text)
        better = re.sub(r' role="(doc-biblioentry|doc-backlink|list)"', "", better)
        if path.name != "search.html":
            better = re.sub(
                r'<script src="[^"]*(searchtools|language_data|searchindex)\.js[^"]*"></script>', "", better
            )
            # lines of script in the page need documentation_options.js at once
            now = r'<script( data-[\w-]+="[^"]*")? src="((?!\S*documentation_options)[^"]*)"></script>'
            better = re.sub(now, r'<script\1 src="\2" defer></script>', better)
        if better != text:
            path.write_text(better, encoding="utf-8")
