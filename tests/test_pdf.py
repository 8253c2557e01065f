"""normbook.pdf: every page of the table of contents is printed, in order; what is missing is named."""

from pathlib import Path

import pytest

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
