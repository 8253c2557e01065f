"""normbook.pdf: every page is printed, in order; links lead within it, nothing is cut, what is missing is named."""

import shutil
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


PAGE = """<!doctype html><title>A page — the book</title><link rel="stylesheet" href="normbook.css">
<body><nav><h2>Not of the book</h2></nav><article class="bd-article"><section id="a-page">
<h1>A page<a class="headerlink" href="#a-page">#</a></h1>
<div class="cell"><details class="hide"><summary>code</summary><pre>plumbing()</pre></details></div>
<details><summary>Solution</summary><p>forty-two</p></details>
<p><a href="other.html#a-page">there</a>, <a href="other.html">its start</a>, <a href="other.html#gone">lost</a>,
<a href="a.py">a download</a>, <a href="https://example.org/">outside</a></p></section></article>"""
OTHER = """<!doctype html><title>Another</title><article class="bd-article"><section id="a-page">
<h1>Another page, with a name so long that it takes two lines of the paper, and then a bit of a third</h1>
<p><a href="index.html#a-page">back</a></p><h2>A section</h2>
<div id="scoreboard-controls"><input value="filter"></div>
<div class="scoreboard"><table><thead><tr><th>claim</th><th><button>verdict</button></th></tr></thead>
<tbody><tr>CELLS</tr></tbody></table></div>
<div class="cell_input"><pre style="overflow: auto">LINES</pre></div></section></article>"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A book of two pages as a PDF."""
    folder = tmp_path_factory.mktemp("site")
    other = OTHER.replace("CELLS", "<td>a number</td>" * 12).replace("LINES", "a line\n" * 100)
    (folder / "index.html").write_text(PAGE)
    (folder / "other.html").write_text(other)
    shutil.copy(ROOT / "book" / "static" / "normbook.css", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdf, "names", lambda toc: ["index", "other"])
        try:
            pages = pdf.write(folder, folder / "book.pdf")
        except InputError as error:
            pytest.skip(str(error))
    found = PdfReader(folder / "book.pdf")
    assert len(found.pages) == pages
    return found


def test_on_paper_solutions_are_open_and_folded_code_is_gone(printed):
    text = printed.pages[0].extract_text()
    assert "forty-two" in text and "plumbing" not in text and "Not of the book" not in text


def test_each_page_of_the_book_starts_a_page_that_has_its_number(printed):
    assert len(printed.pages) > 2
    for number, page in enumerate(printed.pages, 1):
        assert page.extract_text().strip().endswith(f"{number}")
    assert "A page" in printed.pages[0].extract_text() and "Another" not in printed.pages[0].extract_text()


def test_the_outline_is_the_headings_and_the_title_the_books(printed):
    first, second, below = printed.outline
    assert first.title == "A page" and second.title.endswith(
        "that it takes two lines of the paper, and then a bit of a third"
    )
    assert [entry.title for entry in below] == ["A section"]
    assert printed.get_destination_page_number(second) == 1
    assert printed.metadata.title == "Normalization, reproduced"


def test_links_lead_within_the_file_or_outside_and_never_to_a_folder_of_this_machine(printed):
    inside, outside = [], []
    for number, page in enumerate(printed.pages):
        for link in (each.get_object() for each in page.get("/Annots", [])):
            if "/A" in link:
                outside.append(link["/A"]["/URI"])
            else:
                target = printed.named_destinations[link["/Dest"]]
                inside.append((number, printed.get_destination_page_number(target)))
    assert inside == [(0, 1), (0, 1), (0, 1), (1, 0)]
    assert outside == ["https://example.org/"]


def test_nothing_of_a_page_is_cut_and_no_control_is_printed(printed):
    text = "".join(page.extract_text() for page in printed.pages[1:])
    assert text.count("number") == 12 and text.count("a line") == 100 and "verdict" in text
    assert "filter" not in text and "\u2195" not in text


def test_a_language_without_a_font_is_named_where_fontconfig_says_so(monkeypatch, tmp_path):
    program = tmp_path / "fc-list"
    program.write_text("#!/bin/sh\ncase $1 in *ja) echo a font;; esac\n")
    program.chmod(0o755)
    monkeypatch.setattr(pdf.shutil, "which", lambda name: str(program))
    assert pdf.without_font() == ["Korean"]
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    assert pdf.without_font() == []
