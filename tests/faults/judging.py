"""Faults in records, intervals, verdicts and what counts as current."""

from __future__ import annotations

from faults import Fault

J = "judging"
CLAIMS, RECORDS, GRID, CHAPTERS, STABILITY, LOOP = (
    "claims.py", "records.py", "grid.py", "chapters.py", "stability.py", "train/loop.py",
)  # fmt: skip
TESTS, KEPT, ASKED = "tests/test_claims.py::", "tests/test_records.py::", "tests/test_grid.py::"
VERDICT = TESTS + "test_the_verdict_of_an_interval_against_a_region"
TEXTBOOK = TESTS + "test_the_t_interval_is_the_textbooks"
CONTROL = TESTS + "test_a_control_that_does_not_come_out_not_reproduced_fails"
NAMES = KEPT + "test_the_name_changes_with_every_field_of_the_configuration_and_with_the_data"
HASHED = KEPT + "test_the_code_hash_covers_the_modules_that_compute_a_record"
REFRESHED = ASKED + "test_refresh_trains_again_what_older_code_computed_and_nothing_else"
LISTED = "tests/test_chapters.py::test_a_listing_shows_each_scale_its_own_verdicts_and_which_are_of_older_code"

FAULTS = (
    Fault(
        "interval-ignored", J, CLAIMS, "compare(claim.region, found[1], found[2])",
        "compare(claim.region, found[0], found[0])", "the estimate is judged, not its interval", (CONTROL,),
    ),
    Fault(
        "interval-biased", J, CLAIMS, "x.std(ddof=1)", "x.std()", "the t interval takes the biased deviation",
        (TEXTBOOK,),
    ),
    Fault(
        "interval-one-sided", J, CLAIMS, "stats.t.ppf((1 + level) / 2,", "stats.t.ppf(level,",
        "the t interval has the width of a one-sided one", (TEXTBOOK,),
    ),
    Fault(
        "interval-normal", J, CLAIMS, "stats.t.ppf((1 + level) / 2, len(x) - 1)", "stats.norm.ppf((1 + level) / 2)",
        "the t interval is a normal one", (TEXTBOOK,),
    ),
    Fault(
        "share-without-doubt", J, CLAIMS, 'method="exact"', 'method="wilson"', "shares have narrower intervals",
        (TESTS + "test_shares_have_clopper_pearson_intervals",),
    ),
    Fault(
        "level-ignored", J, CLAIMS, "interval(x, claim.estimator, claim.level)", "interval(x, claim.estimator)",
        "every claim is judged at 95 %", (TESTS + "test_the_level_of_the_claim_is_the_one_that_counts",),
    ),
    Fault(
        "not-finite-dropped", J, CLAIMS, "    if not np.isfinite(x).all():\n",
        "    x = x[np.isfinite(x)]\n    if not len(x):\n",
        "values that are not finite are left out", (TESTS + "test_values_that_are_not_finite_raise",),
    ),
    Fault(
        "n-not-counted", J, CLAIMS, "if len(x) != claim.n:", "if not len(x):",
        "fewer values than declared are judged", (TESTS + "test_another_number_of_values_than_declared_raises",),
    ),
    Fault(
        "values-and-controls-swapped", J, CLAIMS, "judge_one(c, values[c.id], controls[c.id],",
        "judge_one(c, controls[c.id], values[c.id],", "the control is judged as the claim",
        (TESTS + "test_the_verdict_lines_hold_ids_and_verdicts_and_no_other_numbers",),
    ),
    Fault(
        "runs-swapped-in-bundle", J, LOOP, "    for m, one in enumerate(configs):\n        bad =",
        "    for m, one in enumerate(reversed(configs)):\n        bad =", "a run takes the values of its neighbour",
        ("tests/test_train.py::test_a_run_in_a_bundle_ends_as_it_does_alone",),
    ),
    Fault(
        "arms-swapped-in-grid", J, GRID, 'f"{name}.json") for name in names]\n',
        'f"{name}.json") for name in sorted(names)]\n',
        "records come back in another order, so that one arm is taken for another",
        (ASKED + "test_records_come_in_the_order_of_the_configurations_and_may_be_asked_for_twice",),
    ),
    Fault(
        "control-not-run", J, CLAIMS, "negative, (control_estimate, *_) = verdict_of(control)",
        "negative, control_estimate = NOT_REPRODUCED, float(np.mean(control))",
        "the control is never judged", (CONTROL,),
    ),
    Fault(
        "planted-not-run", J, CLAIMS, "effect, (planted_estimate, *_) = verdict_of(planted)",
        "effect, planted_estimate = REPRODUCED, float(np.mean(planted))",
        "the planted effect is never judged",
        (TESTS + "test_a_claim_that_is_not_reproduced_needs_a_planted_effect_that_is",),
    ),
    Fault(
        "control-exchanged", J, CLAIMS, "claim.n, counted, control_estimate, planted_estimate)", "claim.n, counted)",
        "passes with an older control are taken for passes with a new one whose verdict is the same",
        (TESTS + "test_a_verdict_tells_a_control_from_another_with_the_same_verdict",),
    ),
    Fault(
        "control-always-holds", J, CLAIMS,
        "self.control_verdict == (REPRODUCED if self.verdict == NOT_REPRODUCED else NOT_REPRODUCED)", "True",
        "every control holds", (CONTROL,),
    ),
    Fault(
        "controls-missing-accepted", J, CLAIMS, '(("values", values), ("controls", controls))', '(("values", values),)',
        "a claim without a control is not refused",
        (TESTS + "test_a_missing_or_an_undeclared_measurement_raises_at_every_scale",),
    ),
    Fault(
        "region-inverted", J, CLAIMS, "above, below = ci_low > t, ci_high < t",
        "below, above = ci_low > t, ci_high < t",
        "above a threshold counts as below it", (VERDICT,),
    ),
    Fault(
        "region-verdict-inverted", J, CLAIMS, "REPRODUCED if inside else NOT_REPRODUCED if outside",
        "REPRODUCED if outside else NOT_REPRODUCED if inside", "outside the region counts as reproduced", (VERDICT,),
    ),
    Fault(
        "region-touched", J, CLAIMS, "low <= ci_low and ci_high <= high", "low <= ci_high and ci_low <= high",
        "an interval that touches a two-sided region is inside", (VERDICT,),
    ),
    Fault(
        "data-not-named", J, RECORDS, '"data": data_hash}', '"data": ""}',
        "records of another data set have the same name", (NAMES,),
    ),
    Fault(
        "scale-not-named", J, RECORDS, '"config": dict(config),',
        '"config": {k: v for k, v in config.items() if k not in ("depth", "width", "n_train")},',
        "records of a smaller network or fewer images have the same name", (NAMES,),
    ),
    Fault(
        "renamed-record-read", J, RECORDS, "if not path.stem == record[\"name\"] == name:",
        "if record[\"name\"] != name:",
        "a record is read under another run's name", (KEPT + "test_a_renamed_record_is_refused",),
    ),
    Fault(
        "rates-of-other-runs", J, GRID, "config = config_of(record)\n",
        "config = replace(config_of(record), depth=16, n_train=None)\n",
        "scans of another scale choose the learning rate",
        (ASKED + "test_a_learning_rate_is_chosen_by_runs_of_the_same_scale_and_data_only",),
    ),
    Fault(
        "scales-share-verdicts", J, CHAPTERS, '"results" / scale / "verdicts"', '"results" / "quick" / "verdicts"',
        "the verdicts of one scale are shown for another", (LISTED,),
    ),
    Fault(
        "executed-for-all-scales", J, CHAPTERS, 'executed is not None and executed.info["scale"] == scale',
        "executed is not None", "a run's verdicts are shown for every scale", (LISTED,),
    ),
    Fault(
        "older-record-current", J, GRID, 'if record["code"] == records.code_hash()}', "if record}",
        "a refresh keeps the records of older code", (REFRESHED,),
    ),
    Fault(
        "code-not-hashed", J, RECORDS, '("data", "norms", "models",', '("data", "models",',
        "a change of the norms leaves records current", (HASHED,),
    ),
    Fault(
        "older-verdicts-current", J, CHAPTERS, '"code_current": source == now', '"code_current": source is not None',
        "verdicts of older code are shown as current", (LISTED,),
    ),
    Fault(
        "stamp-without-package", J, CHAPTERS, "            digest.update(source.read_bytes())\n", "            pass\n",
        "a change of the package leaves a chapter current",
        ("tests/test_chapters.py::test_the_stamp_sees_code_cells_and_every_module_they_reach",),
    ),
    Fault(
        "older-passes-current", J, STABILITY, "for one in read(number) if one.stamp == stamp}",
        "for one in read(number)}",
        "passes of older code are taken for this code's",
        ("tests/test_stability.py::test_passes_of_other_code_are_missing_and_counted_apart",),
    ),
    Fault(
        "agreement-with-itself", J, STABILITY, "kinds.count(verdict.verdict) / len(each)",
        "kinds.count(kinds[0]) / len(each)", "passes are compared with the first, not with the book",
        ("tests/test_stability.py::test_agreement_is_with_the_committed_verdict_and_not_among_the_passes",),
    ),
    Fault(
        "agreement-without-controls", J, STABILITY, "v.verdict if v.control_holds else INCONCLUSIVE for v",
        "v.verdict for v", "a pass whose control failed counts as if it had held",
        ("tests/test_stability.py::test_a_pass_whose_control_failed_leaves_the_claim_open",),
    ),
    Fault(
        "unseen-outcome-accepted", J, "report.py", "one.outcomes[found[\"verdict\"]] if holds", "True if holds",
        "with another base seed any verdict is taken for one that passes have seen",
        ("tests/test_report.py::test_with_another_base_seed_an_outcome_of_recorded_passes_is_named_and_no_difference",),
    ),
)  # fmt: skip
