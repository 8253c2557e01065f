"""normbook.report: verdicts as lines of text, and the exit code of a run."""

import pytest

from normbook import chapters, report, stability
from normbook.claims import Claim, Verdict

CLAIM = Claim("XX-1", "one", "here", "a number", "nats", (0, None), "none", 5)


def found(tmp_path, verdict, control, expected, known=None, failed=()):
    """Exit code of `normbook run` for a chapter whose one claim comes out as given."""
    executed = chapters.Executed(tmp_path, None, {"XX-1": Verdict(verdict, 1.0, 0.5, 1.5, 5, control)})
    rows = [chapters.entry(CLAIM, 5, {"quick": {"verdict": verdict, "expected": expected, "control_verdict": control}})]
    return report.differs(rows, "quick", executed, known or {}, failed)


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
def test_exit_code_is_1_when_a_verdict_differs_or_a_control_fails(verdict, control, expected, code, tmp_path):
    assert found(tmp_path, verdict, control, expected) == code


@pytest.mark.parametrize(
    ("verdict", "control", "failed", "code", "said"),
    [
        ("reproduced", "not reproduced", 0, 0, "all verdicts as expected, all controls hold"),
        ("inconclusive", "not reproduced", 0, 0, "XX-1: inconclusive, expected reproduced; recorded passes: 8 repro"),
        ("not reproduced", "reproduced", 0, 1, "XX-1: not reproduced, expected reproduced\n"),  # in no pass
        ("reproduced", "inconclusive", 0, 1, "XX-1: its negative control failed (inconclusive)\n"),
        ("reproduced", "inconclusive", 2, 0, "XX-1: its negative control failed (inconclusive); recorded passes: 8"),
        ("inconclusive", "reproduced", 0, 1, "XX-1: its negative control failed (reproduced)\n"),
    ],
)
def test_with_another_base_seed_an_outcome_of_recorded_passes_is_named_and_no_difference(
    verdict, control, failed, code, said, tmp_path, capsys
):
    outcomes = {"reproduced": 8, "not reproduced": 0, "inconclusive": 2}
    known = {"XX-1": stability.Agreement("XX-1", "reproduced", 0.8, False, failed, outcomes)}
    assert found(tmp_path, verdict, control, "reproduced", known) == code
    assert found(tmp_path, "reproduced", "inconclusive", None, failed=["XX-1"]) == 0  # it failed when it was committed
    assert "its negative control failed (inconclusive), as recorded: it has no verdict" in capsys.readouterr().err
    assert found(tmp_path, verdict, control, "reproduced", known) == code
    shown = capsys.readouterr().err
    assert said in shown and ("all but 1 verdicts as expected, and this as recorded" in shown) == (
        code == 0 and "XX-1" in said
    )


def test_an_exact_claim_and_one_without_a_unit_read_as_text():
    found = {"verdict": "reproduced", "estimate": 2e-16, "ci_low": 2e-16, "ci_high": 2e-16, "n": 1,
             "control_verdict": "not reproduced"}  # fmt: skip
    row = {"id": "XX-1", "estimator": "exact", "unit": "", "region": [None, 1e-8], "scales": {"quick": found}}
    assert "2e-16 (exact), region < 1e-08, n = 1" in report.table([row])
    assert "2e-16 (2e-16 to 2e-16) nats, region" in report.table([row | {"estimator": "t", "unit": "nats"}])
    outcomes = {"reproduced": 8, "not reproduced": 0, "inconclusive": 2}
    unsure = stability.Agreement("XX-1", "reproduced", 0.8, False, 0, outcomes)
    assert report.table([row], known={"XX-1": unsure}).endswith("reproduced; passes: 8 reproduced, 2 inconclusive")
