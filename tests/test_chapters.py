"""normbook.chapters: execution loses nothing, stamps see what they must, committed files are checked."""

import json

import nbformat
import pytest

from normbook import chapters, claims
from normbook.errors import InputError


def notebook(path, *sources, parameters="scale = 'quick'"):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), path)
    return path


def test_execute_writes_the_notebook_with_what_it_ran_with(tmp_path):
    path = notebook(tmp_path / "05_x.ipynb", "import normbook; print(scale, normbook.__file__)")
    done = chapters.execute(path, tmp_path / "out", {"scale": "tiny"})
    assert done.path == tmp_path / "out" / "notebook.ipynb"
    assert "tiny" in done.notebook.cells[-1].outputs[0].text
    assert str(chapters.PACKAGE) in done.notebook.cells[-1].outputs[0].text
    assert done.info["stamp"] == chapters.stamp(path)
    assert done.info["parameters"] == {"scale": "tiny"} and done.info["seconds"] > 0


def test_a_crash_leaves_the_last_good_notebook_in_place(tmp_path):
    path = notebook(tmp_path / "05_x.ipynb", "print(1)")
    chapters.execute(path, tmp_path / "out", {})
    before = (tmp_path / "out" / "notebook.ipynb").read_bytes()
    notebook(path, "1 / 0")
    with pytest.raises(chapters.ChapterCrashed, match="05_x.*ZeroDivisionError"):
        chapters.execute(path, tmp_path / "out", {})
    assert (tmp_path / "out" / "notebook.ipynb").read_bytes() == before


def test_bad_input_inside_a_chapter_is_bad_input_outside(tmp_path):
    path = notebook(tmp_path / "05_x.ipynb", "from normbook import data\ndata.load('digit')")
    with pytest.raises(InputError, match="unknown data set 'digit'; did you mean 'digits'"):
        chapters.execute(path, tmp_path / "out", {})


def test_a_dead_kernel_is_a_crash_with_a_reason(tmp_path):
    path = notebook(tmp_path / "05_x.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notebook.ipynb").write_text("the last good one")
    with pytest.raises(chapters.ChapterCrashed, match="kernel died"):
        chapters.execute(path, tmp_path / "out", {})
    assert (tmp_path / "out" / "notebook.ipynb").read_text() == "the last good one"


def test_a_hung_cell_is_a_crash_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters, "CELL_SECONDS", 1)
    path = notebook(tmp_path / "05_x.ipynb", "import time\ntime.sleep(60)")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notebook.ipynb").write_text("the last good one")
    with pytest.raises(chapters.ChapterCrashed, match="longer than 1 s"):
        chapters.execute(path, tmp_path / "out", {})
    assert (tmp_path / "out" / "notebook.ipynb").read_text() == "the last good one"


@pytest.mark.parametrize("text", [
    "", "{", "[]", '{"cells": [{}]}', '{"cells": [], "nbformat": 9}',
    json.dumps({"metadata": {}, "nbformat": 4, "nbformat_minor": 5, "cells": [{
        "cell_type": "code", "id": "a", "source": "", "metadata": {}, "execution_count": 1, "outputs": [{
            "output_type": "display_data", "metadata": {}, "data": {claims.MIME: {"verdicts": {"A": {}}}},
        }],
    }]}),
])  # fmt: skip
def test_a_damaged_executed_chapter_is_one_line(tmp_path, text):
    (tmp_path / "notebook.ipynb").write_text(text)
    with pytest.raises(InputError, match="notebook.ipynb: not a") as error:
        chapters.read(tmp_path / "notebook.ipynb")
    assert "\n" not in str(error.value)


def test_an_unknown_parameter_is_refused_which_papermill_would_pass_over(tmp_path):
    path = notebook(tmp_path / "05_x.ipynb")
    with pytest.raises(InputError, match="did you mean 'scale'"):
        chapters.execute(path, tmp_path / "out", {"scael": "quick"})


def test_the_stamp_sees_code_cells_and_every_module_they_reach(tmp_path, monkeypatch):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("from normbook import b\n")
    (package / "b.py").write_text("x = 1\n")
    (package / "c.py").write_text("unused = 1\n")
    (package / "d").mkdir()
    (package / "d" / "__init__.py").write_text("import normbook.c\n")
    monkeypatch.setattr(chapters, "PACKAGE", package)
    path = notebook(tmp_path / "05_x.ipynb", "from normbook import a")
    first = chapters.stamp(path)
    (package / "c.py").write_text("unused = 2\n")
    assert chapters.stamp(path) == first
    (package / "b.py").write_text("x = 2\n")
    second = chapters.stamp(path)
    assert second != first
    with_package = chapters.stamp(notebook(path, "from normbook import a, d"))
    (package / "c.py").write_text("unused = 3\n")
    assert chapters.stamp(path) != with_package != second


def test_the_stamp_sees_only_the_modules_of_a_package_that_are_reached(tmp_path, monkeypatch):
    package = tmp_path / "package" / "d"
    package.mkdir(parents=True)
    for name, text in (("__init__", "from normbook.d.e import x\n"), ("e", "x = 1\n"), ("f", "x = 1\n"), ("g", "")):
        (package / f"{name}.py").write_text(text)
    monkeypatch.setattr(chapters, "PACKAGE", package.parent)
    path = notebook(tmp_path / "05_x.ipynb", "from normbook.d import f")

    def changes(name):
        before = chapters.stamp(path)
        (package / f"{name}.py").write_text(f"x = '{name}'\n")
        return chapters.stamp(path) != before

    assert changes("e") and changes("f") and not changes("g")


def test_the_stamp_sees_no_outputs_and_no_prose(tmp_path):
    path = notebook(tmp_path / "05_x.ipynb", "print(1)")
    first = chapters.stamp(path)
    done = chapters.execute(path, tmp_path / "out", {})
    stripped = chapters.strip(done)
    stripped.cells.append(nbformat.v4.new_markdown_cell("prose"))
    nbformat.write(stripped, path)
    assert chapters.stamp(path) == first


def test_what_is_committed_has_counts_and_outputs_and_no_times(tmp_path):
    path = notebook(tmp_path / "05_x.ipynb", "import sys\nprint(1)\nprint(2, file=sys.stderr)", "3")
    stripped = chapters.strip(chapters.execute(path, tmp_path / "out", {"scale": "quick"}))
    assert [c.execution_count for c in stripped.cells] == [1, 2, 3]
    assert [o.get("name") for o in stripped.cells[1].outputs] == ["stdout"]
    assert not any("papermill" in c.metadata for c in stripped.cells)
    assert "papermill" not in stripped.metadata and "seconds" not in stripped.metadata["normbook"]
    assert "injected" not in json.dumps(stripped)
    nbformat.validate(stripped)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"stamp": "x", "verdicts": {"A": {}}}', '{"verdicts": 3}'])
def test_a_damaged_verdict_file_is_one_line(tmp_path, monkeypatch, text):
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    path = chapters.committed_path("quick", 5)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(InputError, match="05.json: not a verdict file") as error:
        chapters.committed("quick", 5)
    assert "\n" not in str(error.value)


def test_a_listing_says_when_the_recorded_verdicts_are_of_older_code(monkeypatch):
    slug = next(iter(claims.chapters()))
    assert all(row["scales"]["quick"]["code_current"] for row in chapters.listing(claims.find(slug)))
    monkeypatch.setattr(chapters, "stamp", lambda path: "another")
    assert not any(row["scales"]["quick"]["code_current"] for row in chapters.listing(claims.find(slug)))


def test_a_listing_shows_each_scale_its_own_verdicts_and_which_are_of_older_code(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()
    path = notebook(tmp_path / "notebooks" / "05_x.ipynb")
    written = nbformat.read(path, as_version=4)
    claim = "Claim('X-1', 's', 'p', 'q', 'u', (0, None), 'c', 5)"
    written.cells += [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell(
            f"from normbook.claims import Claim\nCLAIMS = [{claim}]", metadata={"tags": ["declare"]}
        ),
    ]
    nbformat.write(written, path)

    def executed(scale, stamp, estimate):
        ran = nbformat.v4.new_notebook()
        ran.metadata["normbook"] = {"scale": scale, "stamp": stamp, "device": "d", "versions": {}}
        verdict = claims.Verdict("reproduced", estimate, 0.5, 9.0, 5, "not reproduced")
        return chapters.Executed(path, ran, {"X-1": verdict})

    def shown(*fresh):
        (row,) = chapters.listing(path, *fresh)
        return {scale: v and (v["estimate"], v["code_current"]) for scale, v in row["scales"].items()}

    now = chapters.stamp(path)
    chapters.commit(executed("quick", now, 1.0), 5)
    assert shown() == {"quick": (1.0, True), "cifar": None, "paper": None}
    chapters.commit(executed("cifar", "older", 2.0), 5)
    assert shown() == {"quick": (1.0, True), "cifar": (2.0, False), "paper": None}
    assert shown(executed("cifar", now, 3.0)) == {"quick": (1.0, True), "cifar": (3.0, True), "paper": None}
