"""The chapters as a suite: they can fail, they are fresh, and they keep to the contract."""

import ast
import json
import re
import subprocess
import sys

import nbformat
import pytest

from normbook import book, chapters, claims, data, grid, plan, probes, recorded, records, sweep, train
from normbook.errors import InputError

SLUGS = list(claims.chapters())
PARAMETERS = {"scale": "quick", "seed": 0, "device": "auto", "precision": "auto", "norm": "normbook.norms", "data": ""}


def cells(slug):
    return json.loads(claims.find(slug).read_text(encoding="utf-8"))["cells"]


def tagged(slug, tag):
    return ["".join(c["source"]) for c in cells(slug) if tag in c["metadata"].get("tags", [])]


def test_there_are_chapters():
    assert SLUGS


@pytest.mark.parametrize("slug", SLUGS)
def test_checked_cells_have_a_count_and_an_output_or_nbval_compares_nothing(slug):
    code = [c for c in cells(slug) if c["cell_type"] == "code"]
    assert all(c["execution_count"] for c in code)
    checked = [c for c in code if "nbval-check-output" in c["metadata"]["tags"]]
    assert checked
    for cell in checked:
        text = "".join("".join(o.get("text", "")) for o in cell["outputs"])
        ids = [line.split()[0] for line in text.splitlines()]
        assert ids == [claim.id for claim in claims.load(slug).claims]
        # ids and verdicts only: a number would make nbval compare rounding
        assert not re.search(r"\d\.\d", text)


@pytest.mark.parametrize(("shown", "code"), [("XX-1 reproduced", 0), ("XX-1 inconclusive", 1)])
def test_nbval_compares_a_cell_that_is_marked_as_the_chapters_mark_it(tmp_path, shown, code):
    """With the Makefile's options; the first case says that it is the output that makes the second fail."""
    marked = next(c["metadata"] for c in cells(SLUGS[0]) if "nbval-check-output" in c["metadata"].get("tags", []))
    cell = nbformat.v4.new_code_cell("print('XX-1 reproduced')", metadata=marked, execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text=f"{shown}\n")]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
    makefile = (claims.ROOT / "Makefile").read_text(encoding="utf-8")
    [options] = re.findall(r"-m pytest notebooks -c tests/nbval.ini --rootdir=\. (.*?) -v -n 2", makefile)
    ini = claims.ROOT / "tests" / "nbval.ini"
    command = [sys.executable, "-m", "pytest", tmp_path / "one.ipynb", "-c", ini, f"--rootdir={tmp_path}"]
    done = subprocess.run([*command, *options.split()], capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert ("1 failed" if code else "1 passed") in done.stdout


@pytest.mark.parametrize("slug", SLUGS)
def test_committed_outputs_are_those_of_the_code_shown(slug):
    """Fails after any change to code that the chapter uses: run `make refresh`."""
    path = claims.find(slug)
    committed = chapters.committed("quick", claims.load(slug).number)
    assert chapters.read(path).info["stamp"] == chapters.stamp(path) == committed["stamp"], "stale: run make refresh"
    assert chapters.read(path).verdicts == committed["verdicts"]


@pytest.mark.parametrize("slug", SLUGS)
def test_every_claim_has_a_verdict_and_a_control_that_holds(slug):
    committed = chapters.committed("quick", claims.load(slug).number)["verdicts"]
    assert set(committed) == {claim.id for claim in claims.load(slug).claims}
    for key, verdict in committed.items():
        assert verdict.control_holds, key


@pytest.mark.parametrize("slug", SLUGS)
def test_one_parameters_cell_with_the_contracts_names_and_defaults(slug):
    (source,) = tagged(slug, "parameters")
    space = {}
    exec(source, space)
    assert {k: v for k, v in space.items() if not k.startswith("__")} == PARAMETERS


@pytest.mark.parametrize("slug", SLUGS)
def test_declarations_only_build_data_from_normbook_imports(slug, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("a declaration ran something")

    for owner, name in ((grid, "run"), (train, "run"), (data, "load"), (probes, "profile")):
        monkeypatch.setattr(owner, name, refuse)
    assert claims.load(slug, seed=3).claims
    for source in tagged(slug, "declare"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in {"normbook", "dataclasses"}
            assert not isinstance(node, ast.Import)


@pytest.mark.parametrize("slug", SLUGS)
def test_no_base_seed_shares_a_run(slug):
    first, second = claims.load(slug, seed=0), claims.load(slug, seed=1)
    assert not set(first.runs) & set(second.runs)
    assert not {c.seed for c in first.scan} & {c.seed for c in first.runs}


@pytest.mark.parametrize("slug", SLUGS)
def test_every_figure_says_what_it_shows(slug):
    pictures = [o for c in cells(slug) for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert pictures
    for output in pictures:
        assert len(output["metadata"]["image/png"]["alt"]) > 60
    assert max(len(o["data"]["image/png"]) for o in pictures) < 350_000  # base64 characters
    assert sum(len(o["data"]["image/png"]) for o in pictures) < 1_400_000


@pytest.mark.parametrize("slug", SLUGS)
def test_no_times_no_errors_and_no_stderr_are_committed(slug):
    for cell in cells(slug):
        assert "papermill" not in cell["metadata"] and "execution" not in cell["metadata"]
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error" and output.get("name") != "stderr"


@pytest.mark.parametrize("slug", SLUGS)
def test_a_place_for_the_claim_card(slug):
    assert sum(book.CARD in "".join(c["source"]) for c in cells(slug) if c["cell_type"] == "markdown") == 1


def planned():
    """(slug, scale) of every grid beyond scale quick that is declared."""
    for slug in SLUGS:
        for scale in sweep.KEPT:
            try:
                claims.load(slug, scale=scale)
            except InputError:
                continue
            yield slug, scale


@pytest.mark.parametrize(("slug", "scale"), list(planned()))
def test_a_plan_beyond_quick_has_its_claims_and_its_place_on_the_page(slug, scale):
    chapter = claims.load(slug, scale=scale)
    assert [claim.id for claim in chapter.claims] == [claim.id for claim in claims.load(slug).claims]
    runs = [*chapter.scan, *chapter.runs]
    assert runs or chapter.probes
    assert {c.data.partition("@")[0] for c in runs} <= {"cifar10-jpeg" if scale == "cifar" else "cifar10"}
    if scale == "cifar":
        assert max((c.n_train or 45_000 for c in runs), default=0) <= 10_000
    assert {c.precision for c in runs} <= {"fp32"}  # the same runs on every machine
    text = ["".join(c["source"]) for c in cells(slug) if c["cell_type"] == "markdown"]
    assert sum(recorded.MARK in one for one in text) == 1
    assert sum("key-figure" in c["metadata"].get("tags", []) for c in cells(slug)) == 1
    assert not chapter.scan or not {c.seed for c in chapter.scan} & set(chapter.closer)
    assert plan.outlook(chapter, claims.ROOT / "none").missing or not runs


@pytest.mark.parametrize("path", sorted(claims.ROOT.glob("results/[cp]*/verdicts/*.json")), ids=str)
def test_committed_verdicts_of_recorded_runs_are_whole(path):
    scale, number = path.parts[-3], int(path.stem)
    kept = chapters.committed(scale, number)
    assert set(kept["verdicts"]) <= {claim.id for claim in claims.load(number).claims}
    assert all(verdict.control_holds for verdict in kept["verdicts"].values())
    assert kept["recorded"]["runs"] <= len(list(sweep.place(scale, path.parents[1]).glob("*.json")))
    assert recorded.figure_path(scale, number).stat().st_size < 300_000 and len(kept["figure"]) > 60


def test_the_records_are_under_ten_megabytes_and_whole():
    for scale in sweep.KEPT:
        folder = claims.ROOT / "results" / scale / "records"
        assert sum(path.stat().st_size for path in folder.glob("*.json")) < 10e6
        assert all(records.read_all(folder))


def test_the_table_of_contents_has_every_chapter():
    listed = re.findall(r"notebooks/(\w+)", (claims.ROOT / "_toc.yml").read_text())
    assert listed == SLUGS


def test_ids_are_unique():
    ids = [claim.id for slug in SLUGS for claim in claims.load(slug).claims]
    assert len(ids) == len(set(ids))


OWED = {  # what each chapter settles: as a claim, or by name in its text where it is shown, quoted or departed from
    1: "N1-1 N1-2 IS-1 IS-2 IS-3 IS-6 SA-1 SA-2 SA-3 SA-4 BJ-15",
    2: "IS-5 IS-8 IS-9 IS-10 IS-11 IS-13 FR-1",
    3: "LN-1 LN-2 LN-3 LN-4 LN-4b LN-6 XU-1",
    4: "DS-1 DS-2 DS-3 DS-3b DS-4 DS-20 YA-1 BJ-5 PL-1",
    5: "DS-5 DS-6 DS-7 DS-8 DS-9 DS-10 DS-17 DS-18 DS-19 FX-1 BJ-14",
    6: "DS-11 DS-12 DS-13 DS-14 DS-21 BJ-1 BJ-2 BJ-3 BJ-6 VL-1 IS-4",
    7: "DS-15 DS-16 GB-1 EV-1",
    8: "LI-1 LI-2 LI-3 LI-4 LI-5 LI-6 LI-7 LI-8 LI-9 EV-1 IS-7",
}
IN_THE_TEXT = {"IS-3", "IS-6", "BJ-15", "DS-9", "LN-4b"}  # quoted, a remark, a figure


@pytest.mark.parametrize(("number", "key"), [(n, key) for n, keys in OWED.items() for key in keys.split()])
def test_every_id_that_a_chapter_owes_is_a_claim_or_named_in_its_text(number, key):
    ids = [claim.id for claim in claims.load(number).claims]
    claimed = any(re.fullmatch(re.escape(key) + "[a-z]*", i) for i in ids)
    text = "".join("".join(c["source"]) for c in cells(f"{number}") if c["cell_type"] == "markdown")
    assert claimed or (key in IN_THE_TEXT and re.search(rf"\b{key}\b", text)), key
