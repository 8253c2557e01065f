"""The claims of the chapters with the layers under test in place of ours, at scale quick: minutes a chapter."""

from __future__ import annotations

import pytest

from normbook import claims
from normbook.chapters import Executed
from normbook.checks.plugin import allowed
from normbook.errors import InputError


def test_claim(executed: Executed | InputError, claim_id: str) -> None:
    if isinstance(executed, InputError):
        pytest.skip(str(executed))
    found = executed.verdicts[claim_id]
    number = int(executed.path.parent.name[:2])
    expected = allowed(number, claim_id)
    claim = next(claim for claim in claims.load(number).claims if claim.id == claim_id)
    name = f"{claim_id} ({claim.statement})"
    span = f"{claims.number(found.ci_low)} to {claims.number(found.ci_high)}"
    read = f"{claims.number(found.estimate)} ({span}) {claim.unit}, region {claims.region_text(claim.region)}"
    assert found.verdict in expected, (
        f"{name} is {found.verdict}: {read}; with our layers {' or '.join(sorted(expected))}"
    )
    assert found.control_holds, f"{name}: its control failed ({found.control_verdict}): {claim.control}"
