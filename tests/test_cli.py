"""normbook.cli: verdicts decide between the exit codes 0 and 1. Bad input: test_bad_input.py."""

import json
import sys
from dataclasses import replace

import nbformat
import pytest

from normbook import chapters, claims, cli, stability
from normbook.claims import Claim, Verdict


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
        assert row["scales"]["cifar"] is None


CLAIM = Claim("XX-1", "one", "here", "a number", "nats", (0, None), "none", 5)


def found(monkeypatch, tmp_path, verdict, control, expected):
    """Exit code of `normbook run` for a chapter whose one claim comes out as given."""
    executed = chapters.Executed(tmp_path, None, {"XX-1": Verdict(verdict, 1.0, 0.5, 1.5, 5, control)})
    rows = [chapters.entry(CLAIM, 5, {"quick": {"verdict": verdict, "expected": expected, "control_verdict": control}})]
    return cli._compare(rows, "quick", executed)


@pytest.mark.parametrize(
    ("verdict", "control", "expected", "code"),
    [
        ("reproduced", "not reproduced", "reproduced", 0),
        ("not reproduced", "reproduced", "not reproduced", 0),
        ("inconclusive", "not reproduced", "inconclusive", 0),
        ("reproduced", "not reproduced", None, 0),
        ("inconclusive", "not reproduced", "reproduced", 1),
        ("not reproduced", "reproduced", "reproduced", 1),
        ("reproduced", "reproduced", "reproduced", 1),
        ("reproduced", "inconclusive", "reproduced", 1),
        ("not reproduced", "not reproduced", "not reproduced", 1),
        ("not reproduced", "none planted", "not reproduced", 1),
    ],
)
def test_exit_code_is_1_when_a_verdict_differs_or_a_control_fails(
    verdict, control, expected, code, monkeypatch, tmp_path
):
    assert found(monkeypatch, tmp_path, verdict, control, expected) == code


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
    assert all(name in out for name in ("run", "claims", "book", "refresh"))


@pytest.fixture
def pets(monkeypatch, tmp_path):
    """An image folder `pets` in the current folder, and a default folder of our own."""
    import numpy as np
    from PIL import Image

    from normbook.data import sources

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "default_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources, "places", {})
    sources._prepared.cache_clear()
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


@pytest.mark.parametrize("same", [True, False])
def test_a_refresh_that_finds_the_same_numbers_keeps_the_passes_of_the_chapter_current(monkeypatch, capsys, same):
    path = claims.find("4")
    notebook, old = nbformat.read(path, as_version=4), chapters.committed("quick", 4)
    notebook.metadata["normbook"]["stamp"] = "new"
    verdicts = dict(old["verdicts"])
    if not same:
        first = next(iter(verdicts))
        verdicts[first] = replace(verdicts[first], estimate=verdicts[first].estimate * (1 + 1e-15) + 1e-300)
    monkeypatch.setattr(chapters, "execute", lambda *_: chapters.Executed(path, notebook, verdicts))
    monkeypatch.setattr(chapters, "write_text", lambda *_: None)
    carried = []
    monkeypatch.setattr(stability, "carry", lambda *given: carried.append(given))
    assert call(monkeypatch, capsys, "refresh", "4")[0] == 0
    assert carried == ([(4, old["stamp"], "new")] if same else [])
