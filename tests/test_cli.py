"""normbook.cli: verdicts decide between the exit codes 0 and 1. Bad input: test_bad_input.py."""

import json
import sys
from dataclasses import replace

import fakes
import nbformat
import pytest

from normbook import chapters, claims, cli, stability, train


def call(monkeypatch, capsys, *arguments):
    """(exit code, stdout, stderr) of `normbook ...`."""
    monkeypatch.setattr(sys, "argv", ["normbook", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


def test_a_read_only_folder_is_bad_input(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("os.access", lambda *_: False)  # tests may run as root, who may write anywhere
    code, _, err = call(monkeypatch, capsys, "run", "5", "--out", str(tmp_path))
    assert code == 2 and "is read-only" in err


def test_claims_as_json_has_the_contracts_fields_for_every_claim(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "claims", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["id"] for row in rows] == [c.id for slug in claims.chapters() for c in claims.load(slug).claims]
    fields = "id chapter statement source estimator unit region level paper_value provenance scales".split()
    for row in rows:
        assert list(row) == fields
        assert list(row["scales"]) == ["quick", "cifar", "paper"]
        assert list(row["scales"]["quick"]) == (
            "verdict expected estimate ci_low ci_high n control_verdict code_current".split()
        )
        assert row["scales"]["quick"]["code_current"] is True
        assert all(row["scales"][scale] is None or row["scales"][scale]["n"] for scale in ("cifar", "paper"))


def test_a_crashed_chapter_is_exit_code_3(monkeypatch, capsys, tmp_path):
    def crash(*_):
        raise chapters.ChapterCrashed("05_skipinit, cell 9: ZeroDivisionError: division by zero")

    monkeypatch.setattr(chapters, "execute", crash)
    code, _, err = call(monkeypatch, capsys, "run", "5", "--out", str(tmp_path))
    assert code == 3 and "ZeroDivisionError" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (PermissionError(13, "Permission denied", "/out/05_skipinit"), 2, "/out/05_skipinit: Permission denied"),
        (ZeroDivisionError("division by zero"), 3, "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_what_goes_wrong_is_one_line_and_never_exit_code_1(error, code, says, monkeypatch, capsys):
    def fails(_):
        raise error

    monkeypatch.setattr(claims, "find", fails)
    found, out, err = call(monkeypatch, capsys, "run", "5")
    assert found == code and says in err and len(err.strip().splitlines()) == 1 and out == ""


def test_the_tiny_scale_gives_no_verdicts_not_even_the_recorded_ones(monkeypatch, capsys, tmp_path):
    path = claims.find("5")
    ran = chapters.Executed(path, chapters.read(path).notebook, {})
    ran.notebook.metadata["normbook"]["scale"] = "tiny"
    monkeypatch.setattr(chapters, "execute", lambda *_: (tmp_path / path.stem).mkdir() or ran)
    code, out, err = call(monkeypatch, capsys, "run", "5", "--scale", "tiny", "--json", "--out", str(tmp_path))
    assert code == 0 and "judges nothing" in err
    rows = json.loads(out)
    assert rows and not any(any(row["scales"].values()) for row in rows)
    assert json.loads((tmp_path / path.stem / "verdicts.json").read_text()) == rows


def test_help_names_the_commands(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, "--help")
    assert code == 0
    assert all(f"\n  {name} " in out for name in cli.commands.commands)
    assert "..." not in out.split("Commands:")[1].split("Exit status:")[0]  # nothing is cut
    listed = out.split("Commands:\n")[1].split("\n\n")[0].splitlines()
    assert len(listed) == len(cli.commands.commands)  # one line each
    assert all(f"\n    {code} " in out for code in (0, 1, 2, 3, 130, 141))
    assert all(f"\n    {scale} " in out for scale in (*claims.SCALES, "tiny"))


def test_open_says_where_the_book_is_if_no_browser_opened(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "_build" / "html" / "index.html"
    page.parent.mkdir(parents=True)
    page.touch()
    monkeypatch.setattr(cli.webbrowser, "open", lambda address: False)
    code, _, err = call(monkeypatch, capsys, "open")
    assert code == 2 and str(page) in err
    opened = []
    monkeypatch.setattr(cli.webbrowser, "open", lambda address: opened.append(address) or True)
    assert call(monkeypatch, capsys, "open")[0] == 0 and opened == [page.as_uri()]


@pytest.fixture
def pets(monkeypatch, tmp_path, decoded):
    """An image folder `pets` in the current folder, and a default folder of our own."""
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(f"{part}/{label}/{n}.png" for part in ("train", "test") for label in "ab" for n in "123"):
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / "pets" / name)
    return tmp_path / "pets"


def test_fetch_decodes_and_data_lists_what_is_there_and_says_what_is_damaged(monkeypatch, capsys, pets, tmp_path):
    code, fetched, err = call(monkeypatch, capsys, "data", "fetch", "--data", "pets")
    assert code == 0 and "12 images" in fetched and "2 classes" in fetched and "3x8x8" in fetched
    digits = "digits                     1,797 images    10 classes  1x8x8      c5c77c19b8130a67\n"
    assert call(monkeypatch, capsys, "data") == (0, digits + fetched, "")
    assert call(monkeypatch, capsys, "data", "--data", str(tmp_path / "cache")) == (0, digits + fetched, "")
    (path,) = (tmp_path / "cache").glob("*.npy")
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    code, out, _ = call(monkeypatch, capsys, "data")
    assert code == 0 and out.startswith(digits) and "damaged decoded images" in out and len(out.splitlines()) == 2


def test_a_chapter_gets_the_place_of_the_data_as_an_absolute_path(monkeypatch, capsys, pets, tmp_path):
    """It runs in another folder, and in another process."""
    seen = []
    monkeypatch.setattr(chapters, "execute", lambda path, folder, parameters: seen.append(parameters) or 1 / 0)
    (tmp_path / "out").mkdir()
    for text, meant in (("pets", f"imagefolder:{pets}"), ("imagefolder@4:./pets", f"imagefolder@4:{pets}")):
        code, _, err = call(monkeypatch, capsys, "run", "4", "--device", "cpu", "--data", text, "--out", "out")
        assert code == 3 and "ZeroDivisionError" in err and seen[-1]["data"] == meant


@pytest.mark.parametrize("other", ["", "estimate", "control_estimate", "planted_estimate"])
def test_a_refresh_that_finds_the_same_numbers_keeps_the_passes_of_the_chapter_current(monkeypatch, capsys, other):
    path = claims.find("4")
    notebook, old = nbformat.read(path, as_version=4), chapters.committed("quick", 4)
    notebook.metadata["normbook"]["stamp"] = "new"
    verdicts = dict(old["verdicts"])
    if other:
        first = next(iter(verdicts))
        verdicts[first] = replace(verdicts[first], **{other: verdicts[first].estimate * (1 + 1e-15) + 1e-300})
    monkeypatch.setattr(chapters, "execute", lambda *_: chapters.Executed(path, notebook, verdicts))
    monkeypatch.setattr(chapters, "write_text", lambda *_: None)
    carried = []
    monkeypatch.setattr(stability, "carry", lambda *given: carried.append(given))
    assert call(monkeypatch, capsys, "refresh", "4")[0] == 0
    assert carried == ([] if other else [(4, old["stamp"], "new")])


# ---- the scales whose records are kept


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A checkout with one small chapter; the names of the runs that are trained. The current folder is another one."""
    trained, honest = [], train.run
    monkeypatch.setattr(train, "run", lambda configs, device: trained.extend(configs) or honest(configs, device))
    (tmp_path / "checkout").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    fakes.chapter(monkeypatch, tmp_path / "checkout")
    return trained


RUN = ("run", "5", "--device", "cpu", "--scale")


def test_scale_cifar_runs_what_is_missing_and_judges(monkeypatch, capsys, small, tmp_path):
    records = tmp_path / "checkout" / "results" / "cifar" / "records"
    code, out, err = call(monkeypatch, capsys, *RUN, "cifar")
    assert code == 0 and "XX-1     cifar  reproduced" in out and "all controls hold" in err
    names = {path.name for path in records.glob("*.json")}
    assert len(small) == len(names) and 6 + 4 + 10 <= len(names) <= 6 + 6 + 10
    small.clear()
    with monkeypatch.context() as patch:  # what is complete needs no data set, which may be elsewhere
        patch.setattr(cli.datasets, "load", lambda *_: pytest.fail("the data set is not needed"))
        assert call(monkeypatch, capsys, *RUN, "cifar")[1] == out and small == []
    for name in sorted(names)[::2]:  # as if it had been interrupted
        (records / name).unlink()
    assert call(monkeypatch, capsys, *RUN, "cifar")[:2] == (0, out)
    assert len(small) == len(names) - len(names) // 2 and {path.name for path in records.glob("*.json")} == names


def test_a_part_of_a_scale_is_run_and_not_judged(monkeypatch, capsys, small, tmp_path):
    code, out, _ = call(monkeypatch, capsys, *RUN, "paper", "--only", "arm=bn,lr=0.2")
    place = tmp_path / "checkout" / "results" / "paper" / "records"
    assert code == 0 and out == f"05_small: 5 of 30 runs are recorded in {place}\n"
    assert {(c.arm, c.lr) for c in small} == {("batch_norm", 0.2)}
    assert not (tmp_path / "work" / "normbook-results" / "05_small").exists()


def test_records_go_into_a_given_folder(monkeypatch, capsys, small, tmp_path):
    (tmp_path / "out").mkdir()
    code, out, _ = call(monkeypatch, capsys, *RUN, "cifar", "--out", str(tmp_path / "out"))
    assert code == 0 and "reproduced" in out and len(list((tmp_path / "out" / "records").glob("*.json"))) >= 20
    assert not (tmp_path / "checkout" / "results").exists()


def test_a_plan_runs_and_makes_nothing(monkeypatch, capsys, small, tmp_path):
    code, out, _ = call(monkeypatch, capsys, *RUN, "paper", "--plan")
    assert code == 0 and out.startswith("05_small at scale paper: 30 runs, 0 recorded, 30 missing\n") and small == []
    code, out, _ = call(monkeypatch, capsys, *RUN, "paper", "--plan", "--only", "arm=none")
    assert code == 0 and out.startswith("05_small at scale paper, only arm=none: 15 runs, 0 recorded")
    assert list((tmp_path / "work").iterdir()) == [] and not (tmp_path / "checkout" / "results").exists()


def test_a_refresh_commits_verdicts_and_figure_from_the_records_and_trains_nothing(
    monkeypatch, capsys, small, tmp_path
):
    assert call(monkeypatch, capsys, "refresh", "5", "--scale", "cifar")[0] == 2  # nothing is recorded
    call(monkeypatch, capsys, *RUN, "cifar")
    small.clear()
    code, out, _ = call(monkeypatch, capsys, "refresh", "5", "--scale", "cifar")
    assert code == 0 and "XX-2     cifar  reproduced" in out and small == []
    results = tmp_path / "checkout" / "results" / "cifar"
    kept = json.loads((results / "verdicts" / "05.json").read_text())
    assert kept["recorded"]["runs"] == kept["recorded"]["of"] == len(list((results / "records").glob("*.json")))
    assert kept["figure"] == "a dot at scale cifar" and kept["controls_failed"] == []
    assert (results / "figures" / "05.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(call(monkeypatch, capsys, "claims", "--json")[1])
    assert [row["scales"]["cifar"]["verdict"] for row in rows] == ["reproduced"] * 2
    assert all(row["scales"]["cifar"]["code_current"] for row in rows)
    # the images' code moved on: what is recorded is of older code then
    monkeypatch.setattr("normbook.records.code_hash", lambda: "another")
    rows = json.loads(call(monkeypatch, capsys, "claims", "--json")[1])
    assert not any(row["scales"]["cifar"]["code_current"] for row in rows)


def test_a_claim_with_runs_missing_is_not_judged_and_one_whose_control_fails_has_no_verdict(
    monkeypatch, capsys, small, tmp_path
):
    call(monkeypatch, capsys, *RUN, "cifar", "--only", "arm=none")
    code, out, _ = call(monkeypatch, capsys, "refresh", "5", "--scale", "cifar")
    assert code == 0 and "XX-2     cifar" in out and "XX-1     not run at any scale" in out
    path = tmp_path / "checkout" / "notebooks" / "05_small.ipynb"
    path.write_text(path.read_text().replace("[-x for", "[x for"))
    code, out, err = call(monkeypatch, capsys, "refresh", "5", "--scale", "cifar")
    assert code == 1 and err == "XX-2: its control failed (reproduced); it has no verdict\n"
    kept = chapters.committed("cifar", 5)
    assert kept["controls_failed"] == ["XX-2"] and kept["verdicts"] == {}
