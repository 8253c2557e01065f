"""The list of planted faults fits today's code and tests; and planting sees what it must, in a copy only."""

from collections import Counter
from dataclasses import replace

import pytest
from faults import FAMILIES, TORCH, Fault
from faults.__main__ import main, run
from faults.faults import FAULTS
from faults.plant import LISTED, PACKAGE, BadList, Copy, complaints

NODE = "tests/test_errors.py::test_nearest_suggests_the_closest_name_and_nothing_where_none_is_close"
CHEAP = Fault("cheap", "judging", "errors.py", "cutoff=0.5", "cutoff=0.99", "no name is close", (NODE,))
FIRST = '"""What a user did wrong, said in one line."""\n'
HARMLESS = replace(CHEAP, id="harmless", old=FIRST, new=FIRST + "# a comment\n", what="a comment")


def test_every_fault_is_once_in_the_code_and_its_tests_are_there():
    assert complaints(FAULTS) == []


def test_there_are_enough_faults_of_each_family_and_under_torch_and_few_may_survive():
    families = Counter(fault.family for fault in FAULTS)
    assert len(FAULTS) >= 40 and set(families) == set(FAMILIES) and min(families.values()) >= 10
    assert sum(fault.file == TORCH for fault in FAULTS) >= 3 and sum(fault.blind for fault in FAULTS) == 10
    assert sum(bool(fault.survivor) for fault in FAULTS) <= LISTED * len(FAULTS)
    assert all(len(fault.id) < 40 and 0 < len(fault.what) for fault in FAULTS)


@pytest.mark.parametrize("changes, said", [
    ({"old": "no such text"}, "0 times"), ({"old": "\n"}, "times in"), ({"file": "no.py"}, "0 times"),
    ({"suite": ("tests/test_errors.py::test_no",)}, "no test"), ({"suite": ("tests/no.py",)}, "no test"),
    ({"suite": ()}, "no test"), ({"family": "judgement"}, "no family"), ({"new": CHEAP.old}, "changes nothing"),
    ({"survivor": "a reason"}, "1 of 1 faults are listed as survivors"),
])  # fmt: skip
def test_a_bad_list_is_exit_code_2(capsys, changes, said):
    assert run([replace(CHEAP, **changes)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err


def test_two_faults_of_one_name_and_unknown_names_are_exit_code_2(capsys):
    assert run([CHEAP, CHEAP]) == 2 and "cheap: there twice" in capsys.readouterr().err
    assert main(["no-such-fault"]) == 2 and "no fault 'no-such-fault'" in capsys.readouterr().err


def test_a_fault_is_caught_and_a_harmless_edit_survives_and_is_exit_code_1(capsys):
    before = (PACKAGE / "errors.py").read_bytes()
    assert run([CHEAP, HARMLESS]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["fault", "cheap", "harmless", "2"]
    assert lines[1].endswith(NODE) and lines[2].endswith("SURVIVES")
    assert lines[3] == "2 faults (2 judging): 1 caught, 0 survive for a reason, 1 without one"
    assert (PACKAGE / "errors.py").read_bytes() == before


def test_the_copy_is_what_is_tested_and_a_failing_or_foreign_suite_is_refused(tmp_path):
    copy = Copy(tmp_path / "copy")
    file = tmp_path / "test_it.py"
    file.write_text(
        f"import normbook\n\n\ndef test_it():\n    assert normbook.__file__.startswith({str(copy.source)!r})\n"
    )
    assert copy.run([str(file)], 60) == ""
    copy.folder = tmp_path / "another"
    copy.folder.mkdir()
    with pytest.raises(BadList, match="tested would be"):
        copy.run([str(file)], 60)
    with pytest.raises(BadList, match="1 times in|not once"), copy.planted(replace(CHEAP, old="no such text")):
        pass
