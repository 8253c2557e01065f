"""One PDF of the whole book: its pages joined into one document, in the order of the table of contents, and printed."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from normbook import claims
from normbook.errors import InputError

# The articles of all pages become the body of one page, so links, page numbers and the outline are the browser's own
# work. Ids get their page's number, links follow; one that leads to no page of the book, as to a download, is text.
# Folded solutions and claims would be lost on paper, so they are opened; folded code is plumbing, and goes.
JOIN = """async ({title, pages}) => {
  const articles = pages.map(([address, html], number) => {
    const article = new DOMParser().parseFromString(html, "text/html").querySelector("article");
    article.querySelectorAll("script, .headerlink, .cell details.hide").forEach((each) => each.remove());
    article.querySelectorAll("details").forEach((each) => (each.open = true));
    article.querySelectorAll("[id]").forEach((each) => (each.id = `${number}-${each.id}`));
    article.id = `${number}-`;
    article.querySelectorAll("img").forEach((each) => {
      each.src = new URL(each.getAttribute("src"), address);
      each.loading = "eager";
    });
    return document.importNode(article, true);
  });
  document.title = title;
  document.body.replaceChildren(...articles);
  const numbers = new Map(pages.map(([address], number) => [address, number]));
  articles.forEach((article, number) => article.querySelectorAll("a[href]").forEach((link) => {
    const [page, anchor] = new URL(link.getAttribute("href"), pages[number][0]).href.split("#");
    const target = `${numbers.get(page)}-${decodeURIComponent(anchor ?? "")}`;
    if (numbers.has(page)) link.href = "#" + (document.getElementById(target) ? target : `${numbers.get(page)}-`);
    else if (page.startsWith("file:")) link.removeAttribute("href");
  }));
  await window.MathJax?.typesetPromise?.();
  await Promise.all([...document.images].map((each) => each.decode()));
  return [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((each) => each.innerText);
}"""
NUMBER = '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span></div>'
LANGUAGES = {"ko": "Korean", "ja": "Japanese"}  # of the glossary


def names(toc: str) -> list[str]:
    """The pages of a table of contents (the text of _toc.yml), in order, without their ending."""
    content = yaml.safe_load(toc)
    return [content["root"], *(page["file"] for part in content["parts"] for page in part["chapters"])]


def launch(playwright: Any) -> Any:
    """Start Chromium or Chrome of this machine, or Playwright's own; raises Playwright's Error where there is none."""
    program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
    # without a sandbox: a container's root user cannot have one, and the pages are our own
    return playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


def without_font() -> list[str]:
    """Languages of the glossary that no font of this machine has letters for; none where fontconfig does not say."""
    program = shutil.which("fc-list")
    if program is None:
        return []
    has = {code: subprocess.run([program, f":lang={code}"], capture_output=True).stdout for code in LANGUAGES}
    return [name for code, name in LANGUAGES.items() if not has[code]]


def write(site: Path, target: Path) -> int:
    """Print the built ``site`` into ``target``; return the number of pages.

    Raises:
        InputError: the book is not built, or there is no browser, or a package of the extra `test` is missing.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
        from pypdf import PdfWriter
    except ImportError as error:
        raise InputError(f"a PDF needs the package {error.name}; install the extra test of pyproject.toml") from None
    files = [
        (site / f"{name}.html").resolve() for name in names((claims.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    ]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise InputError(f"{missing[0]} is not there: build the book first, with make book")
    pages = [(file.as_uri(), file.read_text(encoding="utf-8")) for file in files]
    # Sphinx loads MathJax only where a page has mathematics: such a page takes in the others
    host = next((address for address, html in pages if "MathJax" in html), pages[0][0])
    title = yaml.safe_load((claims.ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    with sync_playwright() as playwright:
        try:
            browser = launch(playwright)
        except Error as error:
            raise InputError(f"no browser to print with: install chromium ({str(error).splitlines()[0]})") from None
        page = browser.new_page()
        page.set_default_timeout(600_000)  # milliseconds, for the whole book
        page.goto(host, wait_until="networkidle")
        titles = page.evaluate(JOIN, {"title": title, "pages": pages})
        printed = page.pdf(
            scale=0.8, prefer_css_page_size=True, tagged=True, outline=True,
            display_header_footer=True, header_template="<span></span>", footer_template=NUMBER,
        )  # fmt: skip
        browser.close()
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it says of Chromium's count of objects that it is a bit low
    writer = PdfWriter(clone_from=io.BytesIO(printed))
    _retitle(writer.root_object["/Outlines"], iter(titles))
    writer.write(target)
    return len(writer.pages)


def _retitle(parent: Any, titles: Iterator[str]) -> None:
    """Write headings into an outline: Chromium's own entries lose the space where a heading breaks into lines."""
    from pypdf.generic import NameObject, TextStringObject

    entry = parent.get("/First")
    while entry is not None:
        entry = entry.get_object()
        entry[NameObject("/Title")] = TextStringObject(" ".join(next(titles).split()))
        _retitle(entry, titles)
        entry = entry.get("/Next")
