"""normbook.book: pages are filled in from verdicts, and a broken page turns the strict build red, twice."""

import re
import shlex
import tomllib

import matplotlib.pyplot as plt
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from normbook import book, chapters, claims, figures, recorded
from normbook.errors import InputError

ROW = {
    "id": "XX-1a", "chapter": 5, "statement": "One is above zero", "source": "Somebody 2020", "estimator": "t",
    "unit": "nats", "region": [0, None], "level": 0.95, "paper_value": 0.2, "provenance": "",
    "scales": {
        "quick": {
            "verdict": "not reproduced", "expected": "reproduced", "estimate": -1.0, "ci_low": -1.5, "ci_high": -0.5,
            "n": 6, "control_verdict": "reproduced", "code_current": True,
        },
        "cifar": None, "paper": None,
    },
}  # fmt: skip


def chapter(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


def test_the_card_shows_verdict_estimate_and_interval():
    card = book.card([ROW], {"seconds": 61.4, "cores": 2, "device": "a processor"})
    assert "[not reproduced]{.verdict-not-reproduced} -1 (-1.5 to -0.5) nats" in card
    assert "It took 61 s on 2 cores of: a processor." in card
    assert "No runs are recorded at scale cifar and paper yet." in card


def test_with_several_scales_each_verdict_of_a_card_says_its_scale():
    both = {**ROW, "scales": {**ROW["scales"], "cifar": {**ROW["scales"]["quick"], "estimate": 2.0}}}
    card = book.card([both, ROW], {})
    assert "-1 (-1.5 to -0.5) nats at quick | [not reproduced]{.verdict-not-reproduced} 2 (-1.5" in card
    assert "nats at cifar | Somebody" in card and "| not run at cifar |" in card
    assert "at quick" not in book.card([ROW], {})


def test_a_long_card_counts_the_verdicts_and_folds_away_what_is_reproduced():
    held = {**ROW["scales"]["quick"], "verdict": "reproduced"}
    rows = [{**ROW, "id": f"XX-{i}", "scales": {**ROW["scales"], "quick": held}} for i in range(2, 15)]
    card = book.card([*rows, ROW], {})
    assert "**14 claims at scale quick: 13 reproduced, 1 not reproduced.**" in card
    before, folded = card.split("````{dropdown} The 13 claims reproduced at every scale")
    assert "XX-1a" in before and "XX-2]" not in before
    assert all(f"[XX-{i}]" in folded for i in range(2, 15)) and "XX-1a" not in folded
    assert "dropdown" not in book.card(rows[:12], {})


def test_dress_fills_the_card_and_moves_the_text_alternative_to_where_myst_reads_it():
    picture = nbformat.v4.new_output("display_data", {"image/png": "x"}, metadata={"image/png": {"alt": "a line"}})
    code = nbformat.v4.new_code_cell("1")
    code.outputs = [picture]
    source = chapter(nbformat.v4.new_markdown_cell(book.CARD + "\nold card"), code)
    dressed = book.dress(source, [ROW], {})
    assert "One is above zero" in dressed.cells[0].source and "old card" not in dressed.cells[0].source
    assert dressed.cells[1].metadata["mystnb"]["image"]["alt"] == "a line"
    assert "old card" in source.cells[0].source  # the original is left alone


def test_the_passage_on_recorded_runs_stands_where_its_mark_is():
    source = chapter(nbformat.v4.new_markdown_cell(book.CARD), nbformat.v4.new_markdown_cell(f"a\n\n{recorded.MARK}"))
    assert book.dress(source, [ROW], {}, passage="12 of 34 runs").cells[1].source == "a\n\n12 of 34 runs"
    assert recorded.MARK in source.cells[1].source


def test_departures_fold_behind_their_count_and_what_comes_after_does_not():
    text = "## Departures from the paper\n\n1. The digits.\n2. Two lines,\n   the second.\n\n## Exercises\n\n1. Why?"
    cells = chapter(nbformat.v4.new_markdown_cell(book.CARD), nbformat.v4.new_markdown_cell(text))
    folded = text.replace("1. The", "````{dropdown} The 2 departures\n1. The", 1).replace("second.", "second.\n````")
    assert book.dress(cells, [ROW], {}).cells[1].source == folded


def test_the_ids_of_a_table_of_verdicts_do_not_break():
    code = nbformat.v4.new_code_cell("verdicts")
    table = "| id | quantity |\n|---|---|\n| DS-3bb | log2 of x - y |\n| LN-T1a | z |"
    code.outputs = [nbformat.v4.new_output("execute_result", {"text/markdown": table})]
    dressed = book.dress(chapter(nbformat.v4.new_markdown_cell(book.CARD), code), [ROW], {})
    shown = dressed.cells[1].outputs[0]["data"]["text/markdown"]
    assert shown == table.replace("DS-3bb", "[DS-3bb]{.claim-id}").replace("LN-T1a", "[LN-T1a]{.claim-id}")


def test_a_chapter_without_a_place_for_its_card_is_refused():
    with pytest.raises(InputError, match="exactly one"):
        book.dress(chapter(), [ROW], {})


def test_a_broken_page_turns_the_strict_build_red_and_red_again(tmp_path):
    stage = tmp_path / "stage"
    (stage / "book").mkdir(parents=True)
    (stage / "_config.yml").write_text("title: t\nexecute:\n  execute_notebooks: 'off'\nonly_build_toc_files: true\n")
    (stage / "_toc.yml").write_text("format: jb-book\nroot: book/index\n")
    (stage / "book" / "index.md").write_text("# A page\n\n{doc}`no_such_page`\n")
    for _ in range(2):
        with pytest.raises(InputError, match="was not built"):
            book.build(stage, tmp_path, strict=True)
    (stage / "book" / "index.md").write_text("# A page\n")
    assert book.build(stage, tmp_path, strict=True).exists()


def test_chapters_that_did_not_change_are_not_run_again(tmp_path, monkeypatch):
    ran = []

    def execute(path, folder, parameters):
        ran.append(path.stem)
        folder.mkdir(parents=True)
        done = chapters.read(path)
        nbformat.write(done.notebook, folder / "notebook.ipynb")
        done.notebook.metadata["normbook"]["seconds"] = 1.0
        return done

    monkeypatch.setattr(chapters, "execute", execute)
    book.executed_chapters(tmp_path)
    assert ran == list(claims.chapters())
    book.executed_chapters(tmp_path)
    assert ran == list(claims.chapters())
    monkeypatch.setattr(chapters, "stamp", lambda path: "another")
    with pytest.raises(FileExistsError):
        book.executed_chapters(tmp_path)


def test_downloads_are_a_script_that_compiles_and_one_table():
    code = nbformat.v4.new_code_cell("x = 1")
    code.outputs = [nbformat.v4.new_output("display_data", {"text/csv": "a,b\n1,2\n"}) for _ in range(2)]
    injected = nbformat.v4.new_code_cell("x = 2", metadata={"tags": ["injected-parameters"]})
    script, numbers = book.downloads(chapter(nbformat.v4.new_markdown_cell("# Title\n\ntext"), code, injected))
    assert script == "# %% [markdown]\n# # Title\n#\n# text\n\n# %%\nx = 1\n"
    assert numbers == "figure,a,b\n1,1,2\n2,1,2\n"
    for path in claims.chapters().values():
        compile(book.downloads(chapters.read(path).notebook)[0], path.stem, "exec")


def test_a_site_is_slimmed_and_its_tables_have_no_empty_headers(tmp_path):
    (tmp_path / "_sources").mkdir()
    code = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("stream", text="1")], execution_count=1)
    nbformat.write(chapter(code), tmp_path / "_sources" / "05.ipynb")
    (tmp_path / "a.js.map").write_text("{}")
    (tmp_path / "a.html").write_text('<th class="head"><p></p></th><th class="head"><p>x</p></th><div role="list">')
    book.slim(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["05.ipynb", "a.html"]
    assert (tmp_path / "a.html").read_text() == '<td></td><th class="head"><p>x</p></th><div>'
    (cell,) = nbformat.read(tmp_path / "_sources" / "05.ipynb", 4).cells
    assert (cell.source, cell.outputs, cell.execution_count) == ("1", [], None)


def test_pictures_of_a_site_take_less_and_look_the_same(tmp_path):
    (tmp_path / "_sources").mkdir()
    (tmp_path / "_images").mkdir()
    figures.use_style()
    fig, ax = plt.subplots()
    ax.fill_between(range(9), [i % 4 for i in range(9)], range(9), color=figures.color("batch_norm"), alpha=0.3)
    path = tmp_path / "_images" / "a.png"
    fig.savefig(path, facecolor="white")
    plt.close(fig)
    before, bytes_before = plt.imread(path)[..., :3], path.stat().st_size
    book.slim(tmp_path)
    assert path.stat().st_size < 0.7 * bytes_before
    assert abs(plt.imread(path)[..., :3] - before).max() < 16 / 255


def test_pages_show_themselves_before_their_scripts_and_only_search_loads_the_index(tmp_path):
    scripts = (
        '<script src="_static/documentation_options.js?v=1"></script><script data-a="b" src="c.js"></script>'
        '<script src="d.js" defer></script><script>let e = 1;</script>'
    )
    index = '<script src="searchindex.js"></script>'
    (tmp_path / "_sources").mkdir()
    for name in ("a.html", "search.html"):
        (tmp_path / name).write_text(scripts + index)
    book.slim(tmp_path)
    assert (tmp_path / "search.html").read_text() == scripts + index
    assert (tmp_path / "a.html").read_text() == scripts.replace('"c.js"', '"c.js" defer')


def test_buttons_that_need_an_address_are_there_when_it_is():
    text = (claims.ROOT / "_config.yml").read_text()
    assert book.configuration(text) == (text, "") and "colab_url" not in text
    filled, address = book.configuration(text.replace('url: ""', "url: https://github.com/org/repo/", 1))
    config = yaml.safe_load(filled)
    assert address == "https://github.com/org/repo" and config["launch_buttons"]["colab_url"]
    assert all(config["html"][f"use_{name}_button"] for name in ("repository", "issues", "edit_page"))
    assert config["sphinx"] == yaml.safe_load(text)["sphinx"]
    elsewhere, _ = book.configuration(text.replace('url: ""', "url: https://git.example.org/repo", 1))
    assert "colab_url" not in elsewhere


def test_a_chapter_in_colab_is_told_an_install_command_that_pip_understands():
    said = book.links("05_skipinit", "https://github.com/somebody/normbook")
    assert "{download}`Python <05_skipinit.py>`" in said and "<05_skipinit.csv>`" in said
    command = shlex.split(re.search(r"`!(pip install .*?)`", said)[1])
    wanted = Requirement(command[2])
    project = tomllib.loads((claims.ROOT / "pyproject.toml").read_text())["project"]
    assert (
        len(command) == 3 and wanted.name == project["name"] and wanted.extras <= set(project["optional-dependencies"])
    )
    assert wanted.url == "git+https://github.com/somebody/normbook"


@pytest.mark.parametrize("address", ["", "https://gitlab.com/somebody/normbook"])
def test_without_a_repository_that_colab_opens_it_is_not_named(address):
    assert "Colab" not in book.links("05_skipinit", address)


def test_every_source_on_arxiv_has_a_doi():
    entries = re.split(r"^@", (claims.ROOT / "book" / "references.bib").read_text(), flags=re.M)
    with_number = [entry for entry in entries if "  eprint" in entry]
    assert len(with_number) > 30
    for entry in with_number:
        number, doi = (re.search(rf"^  {field} *= {{(.*)}},$", entry, re.M)[1] for field in ("eprint", "doi"))
        assert doi == f"10.48550/arXiv.{number}" or not doi.startswith("10.48550/")
