"""One PDF of the whole book: every page printed by a browser, in the order of the table of contents."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from normbook import claims
from normbook.errors import InputError

# Folded solutions and claims would be lost on paper, so they are opened; folded code is plumbing, and goes.
UNFOLD = """() => {
  document.querySelectorAll(".cell details.hide").forEach((each) => each.remove());
  document.querySelectorAll("details").forEach((each) => (each.open = true));
}"""
PAPER = """@media print {
  #jb-print-toc, .prev-next-footer { display: none !important; }
  pre { white-space: pre-wrap !important; }
  .cell, .cell_input, .highlight, .admonition, details, .sd-card, table, pre { break-inside: auto !important; }
  tr, img, mjx-container[display="true"] { break-inside: avoid !important; }
  h1, h2, h3, h4, summary { break-after: avoid !important; }
}"""


def names(toc: str) -> list[str]:
    """The pages of a table of contents (the text of _toc.yml), in order, without their ending."""
    content = yaml.safe_load(toc)
    return [content["root"], *(page["file"] for part in content["parts"] for page in part["chapters"])]


def launch(playwright: Any) -> Any:
    """Start Chromium or Chrome of this machine, or Playwright's own; raises Playwright's Error where there is none."""
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    # without a sandbox: a container's root user cannot have one, and the pages are our own
    return playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


def write(site: Path, target: Path) -> int:
    """Print the built ``site`` into ``target``; return the number of pages.

    Raises:
        InputError: the book is not built, or there is no browser, or a package of the extra `test` is missing.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
        from pypdf import PdfReader, PdfWriter
    except ImportError as error:
        raise InputError(f"a PDF needs the package {error.name}; install the extra test of pyproject.toml") from None
    files = [
        (site / f"{name}.html").resolve() for name in names((claims.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    ]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise InputError(f"{missing[0]} is not there: build the book first, with make book")
    writer = PdfWriter()
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except Error as error:
            raise InputError(f"no browser to print with: install chromium ({str(error).splitlines()[0]})") from None
        page = browser.new_page()
        for file in tqdm(files, unit="page"):
            page.goto(file.as_uri(), wait_until="networkidle")
            page.evaluate(UNFOLD)
            page.add_style_tag(content=PAPER)
            printed = page.pdf(
                format="A4", margin={"top": "18mm", "bottom": "18mm", "left": "14mm", "right": "14mm"}, scale=0.8
            )
            writer.append(io.BytesIO(printed), outline_item=page.title().split(" — ")[0])
        browser.close()
    with target.open("wb") as file_:
        writer.write(file_)
    return len(PdfReader(target).pages)
