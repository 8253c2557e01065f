"""normbook.pdf: every page of the table of contents is printed, in order; what is missing is named."""

from pathlib import Path

import pytest
from pypdf import PdfReader

from normbook import pdf
from normbook.errors import InputError

ROOT = Path(__file__).parents[1]


def test_the_pages_are_those_of_the_table_of_contents():
    found = pdf.names((ROOT / "_toc.yml").read_text())
    assert found[0] == "book/index" and len(found) == len(set(found))
    chapters = [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]
    assert found[1 : 1 + len(chapters)] == chapters
    written = {"book/environment", "book/changelog"}  # by `normbook book`
    assert set(found) - written - set(chapters) == {f"book/{path.stem}" for path in (ROOT / "book").glob("*.md")}


def test_without_a_built_book_it_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="index.html is not there: build the book first, with make book"):
        pdf.write(tmp_path, tmp_path / "book.pdf")


PAGE = """<!doctype html><title>A page — the book</title><h1>A page</h1>
<div class="cell"><details class="hide"><summary>code</summary><pre>plumbing()</pre></details></div>
<details><summary>Solution</summary><p>forty-two</p></details>"""


def test_on_paper_solutions_are_open_and_folded_code_is_gone(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text(PAGE)
    monkeypatch.setattr(pdf, "names", lambda toc: ["index"])
    try:
        pages = pdf.write(tmp_path, tmp_path / "book.pdf")
    except InputError as error:
        pytest.skip(str(error))
    printed = PdfReader(tmp_path / "book.pdf")
    text = printed.pages[0].extract_text()
    assert pages == 1 and "forty-two" in text and "plumbing" not in text
    assert [entry.title for entry in printed.outline] == ["A page"]
