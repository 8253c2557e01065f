"""normbook.claims: intervals against known values, verdicts by region, controls, and reading a chapter."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normbook import claims
from normbook.claims import Claim, compare, interval, judge, judge_one
from normbook.errors import InputError

YES, NO, OPEN = "reproduced", "not reproduced", "inconclusive"
quick = settings(deadline=None, max_examples=100, derandomize=True, database=None)
numbers = st.floats(-1e6, 1e6)


def claim(region=(0.0, None), n=5, **changes):
    given_ = {"id": "X-1", "statement": "It is so", "source": "A 2020", "quantity": "difference", "unit": "points",
              "control": "mechanism off"}  # fmt: skip
    return Claim(**{**given_, "region": region, "n": n, **changes})


ABOVE, BELOW, AROUND = [1.0, 1.1, 1.2, 1.3, 1.4], [-1.0, -1.1, -1.2, -1.3, -1.4], [-2.0, -1.0, 0.5, 1.0, 2.0]


# ---- declarations


@pytest.mark.parametrize("wrong, said", [
    ({"estimator": "tt"}, "unknown estimator"), ({"region": (None, None)}, "empty or everything"),
    ({"region": (1.0, 1.0)}, "empty or everything"), ({"region": (2.0, 1.0)}, "empty or everything"),
    ({"region": (math.nan, None)}, "empty or everything"), ({"region": (-math.inf, math.inf)}, "empty or everything"),
    ({"n": 4}, "t needs n >= 5"), ({"n": 5, "estimator": "share"}, "share needs n >= 6"),
    ({"n": 19, "estimator": "bootstrap"}, "bootstrap needs n >= 20"), ({"n": 0, "estimator": "exact"}, "n = 1"),
    ({"level": 1.0}, "level"), ({"level": 0.4}, "level"), ({"level": 95}, "level"), ({"level": math.nan}, "level"),
])  # fmt: skip
def test_a_claim_that_cannot_be_judged_is_bad_input_and_is_named(wrong, said):
    with pytest.raises(InputError, match=said) as caught:
        claim(**wrong)
    assert "\n" not in str(caught.value) and ("X-1" in str(caught.value) or "estimator" in wrong)


@pytest.mark.parametrize("estimator, n", [("t", 5), ("share", 6), ("bootstrap", 20), ("exact", 1)])
def test_the_smallest_n_of_each_estimator_is_accepted(estimator, n):
    assert claim(estimator=estimator, n=n).level == 0.95


# ---- intervals


def test_the_t_interval_is_the_textbooks():
    # mean 3, standard error sqrt(2.5 / 5), t(0.975, 4) = 2.776445
    assert interval([1, 2, 3, 4, 5], "t") == pytest.approx((3.0, 3 - 2.776445 * 0.5**0.5, 3 + 2.776445 * 0.5**0.5))
    # t(0.95, 4) = 2.131847
    assert interval([1, 2, 3, 4, 5], "t", 0.9) == pytest.approx((3.0, 3 - 2.131847 * 0.5**0.5, 3 + 2.131847 * 0.5**0.5))


@pytest.mark.parametrize("successes, n, low, high", [
    (6, 6, 0.5407, 1.0), (0, 6, 0.0, 0.4593), (5, 6, 0.3588, 0.9958), (3, 6, 0.1181, 0.8819), (20, 20, 0.8316, 1.0),
])  # fmt: skip
def test_shares_have_clopper_pearson_intervals(successes, n, low, high):
    found = interval([1] * successes + [0] * (n - successes), "share")
    assert found == pytest.approx((successes / n, low, high), abs=5e-5)


def test_the_bootstrap_interval_is_reproducible_and_close_to_the_normal_one():
    x = np.random.default_rng(0).normal(3, 1, 200)
    mean, low, high = interval(x, "bootstrap")
    assert interval(x, "bootstrap") == (mean, low, high) and mean == pytest.approx(x.mean())
    half = 1.96 * x.std(ddof=1) / 200**0.5
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.03)


def test_an_exact_value_and_values_without_spread_are_their_own_interval():
    assert interval([1e-7], "exact") == (1e-7, 1e-7, 1e-7)
    assert interval([2.0] * 5, "t") == (2.0, 2.0, 2.0) == interval([2.0] * 20, "bootstrap")
    assert interval([1] * 6, "share")[1] < 1  # six of six are no proof


def test_values_that_differ_in_the_last_digits_only_have_a_finite_interval_and_no_warning():
    mean, low, high = interval([0.5, 0.5, 0.5, 0.5, 0.5 + 1e-16, math.nextafter(0.5, 1)], "t")
    assert low <= mean <= high and high - low < 1e-14


@pytest.mark.parametrize("estimator", ["t", "share", "bootstrap", "exact"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_raise(estimator, bad):
    with pytest.raises(ValueError, match="not finite"):
        interval([1.0] * 20 + [bad], estimator)


@pytest.mark.parametrize("bad", [0.5, 2, -1])
def test_a_share_of_anything_but_successes_raises(bad):
    with pytest.raises(ValueError, match="0 or 1 each"):
        interval([1, 0, 1, 0, 1, bad], "share")


@quick
@given(st.lists(numbers, min_size=5, max_size=9), st.sampled_from([0.8, 0.95, 0.99]))
def test_a_t_interval_holds_its_estimate_and_grows_with_the_level(values, level):
    mean, low, high = interval(values, "t", level)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert low - slack <= mean <= high + slack
    wider = interval(values, "t", 0.999)
    assert wider[1] <= low + slack and high <= wider[2] + slack


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_t_intervals_cover_the_truth_as_often_as_their_level_says(level):
    generator = np.random.default_rng(0)
    covered = [low <= 1.0 <= high for _, low, high in
               (interval(generator.normal(1, 2, 5), "t", level) for _ in range(400))]  # fmt: skip
    assert np.mean(covered) == pytest.approx(level, abs=5 * (level * (1 - level) / 400) ** 0.5)


# ---- regions


@pytest.mark.parametrize("region, low, high, expected", [
    ((1, None), 1.1, 2, YES), ((1, None), 1, 2, OPEN), ((1, None), 0, 2, OPEN), ((1, None), 0, 1, NO),
    ((1, None), 0, 0.9, NO), ((1, None), 1, 1, NO),
    ((None, 1), 0, 0.9, YES), ((None, 1), 0, 1, OPEN), ((None, 1), 0, 2, OPEN), ((None, 1), 1, 2, NO),
    ((None, 1), 1.1, 2, NO), ((None, 1), 1, 1, NO),
    ((0, 1), 0, 1, YES), ((0, 1), 0.2, 0.8, YES), ((0, 1), 0, 0, YES), ((0, 1), -0.1, 1, OPEN), ((0, 1), 0, 1.1, OPEN),
    ((0, 1), -1, 0, OPEN), ((0, 1), 1, 2, OPEN), ((0, 1), -2, 2, OPEN), ((0, 1), 1.1, 2, NO), ((0, 1), -2, -0.1, NO),
])  # fmt: skip
def test_the_verdict_of_an_interval_against_a_region(region, low, high, expected):
    assert compare(region, low, high) == expected


regions = st.one_of(
    st.tuples(numbers, st.none()), st.tuples(st.none(), numbers), st.tuples(numbers, st.floats(1e-3, 1e6)).map(
        lambda pair: (pair[0], pair[0] + pair[1])
    ),
)  # fmt: skip


@quick
@given(regions, numbers, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1e6))
def test_widening_an_interval_only_ever_makes_a_verdict_inconclusive(region, low, width, left, right):
    narrow, wide = compare(region, low, low + width), compare(region, low - left, low + width + right)
    assert narrow in (YES, NO, OPEN) and wide in (narrow, OPEN)


@quick
@given(numbers, numbers, st.floats(0, 1e6))
def test_one_sided_regions_mirror_each_other_and_complements_disagree(threshold, low, width):
    above, below = compare((threshold, None), low, low + width), compare((None, threshold), low, low + width)
    assert compare((None, -threshold), -low - width, -low) == above
    assert {above, below} in ({YES, NO}, {OPEN}, {OPEN, NO}, {NO})
    assert not (above == YES and below == YES)


# ---- one claim and its control


def test_a_claim_whose_values_lie_in_the_region_is_reproduced_and_its_control_must_not_be():
    verdict = judge_one(claim(), ABOVE, BELOW)
    assert (verdict.verdict, verdict.control_verdict, verdict.control_holds) == (YES, NO, True)
    assert verdict.n == 5 and verdict.estimate == pytest.approx(1.2)
    assert (verdict.ci_low, verdict.ci_high) == pytest.approx(interval(ABOVE, "t")[1:])


def test_a_verdict_tells_a_control_from_another_with_the_same_verdict():
    lower, higher = [x - 1e-9 for x in BELOW], [x + 1e-9 for x in ABOVE]
    for values in (ABOVE, AROUND, BELOW):
        one = vars(judge_one(claim(), values, BELOW, ABOVE))
        for changed, controls in (("control_estimate", (lower, ABOVE)), ("planted_estimate", (BELOW, higher))):
            other = vars(judge_one(claim(), values, *controls))
            assert {key for key in one if one[key] != other[key]} == {changed}


@pytest.mark.parametrize("control, counted", [(ABOVE, YES), (AROUND, OPEN)])
def test_a_control_that_does_not_come_out_not_reproduced_fails(control, counted):
    for values in (ABOVE, AROUND):
        verdict = judge_one(claim(), values, control)
        assert (verdict.control_verdict, verdict.control_holds) == (counted, False)


def test_an_inconclusive_claim_needs_its_negative_control():
    verdict = judge_one(claim(), AROUND, BELOW)
    assert (verdict.verdict, verdict.control_verdict, verdict.control_holds) == (OPEN, NO, True)


@pytest.mark.parametrize("planted, counted, holds", [
    (ABOVE, YES, True), (AROUND, OPEN, False), (BELOW, NO, False), (None, "none planted", False),
])  # fmt: skip
def test_a_claim_that_is_not_reproduced_needs_a_planted_effect_that_is(planted, counted, holds):
    verdict = judge_one(claim(), BELOW, BELOW, planted)
    assert (verdict.verdict, verdict.control_verdict, verdict.control_holds) == (NO, counted, holds)


def test_the_level_of_the_claim_is_the_one_that_counts():
    values = [-0.1, 0.4, 0.6, 0.8, 1.0]
    assert judge_one(claim(level=0.9), values, BELOW).verdict == YES
    assert judge_one(claim(level=0.999), values, BELOW).verdict == OPEN


@pytest.mark.parametrize("which", ["values", "control", "planted"])
@pytest.mark.parametrize("count", [4, 6])
def test_another_number_of_values_than_declared_raises(which, count):
    given_ = {"values": BELOW, "control": BELOW, "planted": ABOVE} | {which: [-float(i) for i in range(count)]}
    with pytest.raises(ValueError, match=f"X-1 declares n = 5, but {count}"):
        judge_one(claim(), **given_)


@pytest.mark.parametrize("which", ["values", "controls", "planted"])
def test_beyond_scale_quick_a_claim_with_a_run_that_is_not_recorded_yet_is_left_out(which):
    both = [claim(id="X-1"), claim(id="X-2")]
    given_ = {name: {"X-1": BELOW, "X-2": BELOW} for name in ("values", "controls")} | {"planted": {}}
    given_[which] = given_[which] | {"X-1": [*ABOVE[:4], math.nan]}
    for scale in ("cifar", "paper"):
        found = judge(both, **given_, scale=scale)
        assert list(found.verdicts) == ["X-2"] and "X-1" not in str(found) and "X-1" not in found.table
    if which != "planted":
        with pytest.raises(ValueError, match="not finite"):
            judge(both, **given_)


@pytest.mark.parametrize("which", ["values", "control", "planted"])
def test_a_value_that_is_not_finite_is_never_judged(which):
    given_ = {"values": BELOW, "control": BELOW, "planted": ABOVE} | {which: [1.0, 2.0, 3.0, 4.0, math.nan]}
    with pytest.raises(ValueError, match="not finite"):
        judge_one(claim(), **given_)


# ---- a chapter's claims


def chapter():
    return [claim(id="X-1"), claim(id="X-2b", region=(0.0, 3.0))]


def judged(**changes):
    values = {"X-1": ABOVE, "X-2b": AROUND}
    controls = {"X-1": BELOW, "X-2b": BELOW}
    return judge(chapter(), **{"values": values, "controls": controls, **changes})


def test_the_verdict_lines_hold_ids_and_verdicts_and_no_other_numbers():
    assert str(judged()).splitlines() == [
        "X-1      reproduced      control: not reproduced", "X-2b     inconclusive    control: not reproduced",
    ]  # fmt: skip
    bare = str(judged()).replace("X-1", "").replace("X-2b", "")
    assert not any(character.isdigit() for character in bare)


def test_the_verdict_lines_do_not_change_with_the_estimates():
    moved = judged(values={"X-1": [x + 0.01 for x in ABOVE], "X-2b": [x - 0.01 for x in AROUND]})
    assert str(moved) == str(judged()) and moved.table != judged().table


@pytest.mark.parametrize("which", ["values", "controls"])
@pytest.mark.parametrize("keys", [["X-1"], ["X-1", "X-2b", "X-3"], ["X-1", "X-2"], []])
def test_a_missing_or_an_undeclared_measurement_raises_at_every_scale(which, keys):
    for scale in ("quick", "tiny"):
        with pytest.raises(ValueError, match=f"{which} and claims differ"):
            judged(**{which: dict.fromkeys(keys, ABOVE)}, scale=scale)


def test_the_tiny_scale_judges_nothing():
    judgement = judged(scale="tiny")
    assert judgement.verdicts == {} and str(judgement) == "scale tiny judges nothing"
    assert claims.MIME not in judgement._repr_mimebundle_()


def test_a_planted_effect_reaches_the_claim_of_its_id():
    values = {"X-1": BELOW, "X-2b": BELOW}
    found = judged(values=values, planted={"X-1": ABOVE}).verdicts
    assert found["X-1"].control_holds and not found["X-2b"].control_holds


def test_the_bundle_of_a_judgement_holds_what_verdicts_json_needs():
    bundle = judged()._repr_mimebundle_()
    one = bundle[claims.MIME]["verdicts"]["X-1"]
    assert bundle[claims.MIME]["scale"] == "quick" and bundle["text/markdown"] == judged().table
    kept = "verdict estimate ci_low ci_high n control_verdict control_estimate planted_estimate"
    assert set(one) == set(kept.split())
    assert json.loads(json.dumps(bundle)) == bundle


def test_the_table_shows_estimate_unit_interval_region_and_verdict():
    rows = judged().table.splitlines()
    assert len(rows) == 4 and all(row.startswith("| ") or row.startswith("|-") for row in rows)
    assert rows[2] == "| X-1 | reproduced | 1.2 points | 1 to 1.4, n = 5 | > 0 | difference |"
    exact = judge([claim(n=1, estimator="exact", region=(None, 1e-6))], {"X-1": [1e-8]}, {"X-1": [1.0]})
    assert "| exact |" in exact.table and "| < 1e-06 |" in exact.table
    bars = judge([claim(quantity="|noise - 1|")], {"X-1": ABOVE}, {"X-1": BELOW}).table.splitlines()[2]
    assert "| \\|noise - 1\\| |" in bars and len(re.findall(r"(?<!\\)\|", bars)) == 7, "six cells"


@pytest.mark.parametrize("x, text", [
    (0.123456, "0.123"), (-12.345, "-12.3"), (1234.5, "1234"), (123456.0, "123456"), (2.5e7, "2.5e+07"), (0.0, "0"),
])  # fmt: skip
def test_numbers_are_printed_with_three_significant_digits(x, text):
    assert claims.number(x) == text


@pytest.mark.parametrize("region, text", [((0.5, None), "> 0.5"), ((None, 2), "< 2"), ((-1, 1), "-1 to 1")])
def test_regions_are_printed_as_they_are_declared(region, text):
    assert claims.region_text(region) == text


# ---- chapters


def cell(source, *tags, kind="code"):
    return {"cell_type": kind, "metadata": {"tags": list(tags)} if tags else {}, "source": source.splitlines(True)}


PARAMETERS = 'scale = "quick"\nseed = 0\ndevice = "auto"\nnorm = "normbook.norms"\n'
DECLARE = """from normbook.claims import Claim
N = {"quick": 5, "cifar": 8}[scale]
CLAIMS = [Claim("X-1", "s", "p", "q", "u", region=(0, None), control="c", n=N + seed)]
RUNS = [scale, norm]
"""
CELLS = [
    cell("some text\n# The title\nmore", kind="markdown"), cell('raise RuntimeError("an untagged cell ran")'),
    cell(PARAMETERS, "parameters"), cell('raise RuntimeError("a hidden cell ran")', "hide-input"),
    cell("text tagged declare", "declare", kind="markdown"), cell(DECLARE, "declare"),
    cell('SCAN = ["first", "second"]', "hide-input", "declare"), cell("CLAIMS = SCAN = None"),
]  # fmt: skip


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """Write notebooks: {slug: cells}, two of them at once."""
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    (tmp_path / "notebooks").mkdir()

    def write(**books):
        for slug, cells in books.items():
            path = tmp_path / "notebooks" / f"{slug[1:]}.ipynb"
            path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))

    write(n05_skipinit=CELLS, n08_dropout_conflict=[cell("# Other", kind="markdown"), *CELLS[1:]])
    return write


def test_only_the_cells_tagged_parameters_and_declare_are_executed(notebooks):
    found = claims.load("skipinit")
    assert (found.number, found.slug, found.title) == (5, "05_skipinit", "The title")
    assert [c.id for c in found.claims] == ["X-1"] and found.claims[0].n == 5
    assert found.runs == ("quick", "normbook.norms") and found.scan == ("first", "second") and found.needs == ()


def test_parameters_override_the_chapters_own_by_name(notebooks):
    found = claims.load(5, scale="cifar", seed=3, norm="torch.nn")
    assert found.claims[0].n == 11 and found.runs == ("cifar", "torch.nn")
    assert claims.load(5).claims[0].n == 5  # and leave no trace


@pytest.mark.parametrize("wrong", ["sed", "N", "CLAIMS", "__name__"])
def test_a_parameter_that_the_chapter_does_not_have_is_bad_input(notebooks, wrong):
    with pytest.raises(InputError, match=f"unknown parameter {wrong!r}"):
        claims.load("skipinit", **{wrong: 1})


@pytest.mark.parametrize("name", [5, "5", "05", "skipinit", "05_skipinit"])
def test_a_chapter_is_found_by_number_and_by_name(notebooks, name):
    assert claims.find(name).name == "05_skipinit.ipynb"


@pytest.mark.parametrize("name, hint", [
    ("skipnit", "did you mean 'skipinit'"), ("dropout", "did you mean 'dropout_conflict'"),
    ("7", "one of: 5, skipinit"), ("", "one of"), ("../05_skipinit", "did you mean 'skipinit'"),
    (55, "did you mean '5'"),
])  # fmt: skip
def test_an_unknown_chapter_is_bad_input_and_the_nearest_is_named(notebooks, name, hint):
    with pytest.raises(InputError, match=hint) as caught:
        claims.find(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        claims.load(name)


def test_chapters_are_listed_in_order_and_other_notebooks_are_not_chapters(notebooks, tmp_path):
    notebooks(n01_first=CELLS, nscratch=CELLS)
    (tmp_path / "notebooks" / "02_notes.txt").write_text("")
    assert list(claims.chapters()) == ["01_first", "05_skipinit", "08_dropout_conflict"]


def test_a_chapter_may_name_the_norms_it_needs(notebooks):
    notebooks(n05_skipinit=[*CELLS, cell('NORMS = ("BatchNorm2d",)', "declare")])
    assert claims.load(5).needs == ("BatchNorm2d",)
