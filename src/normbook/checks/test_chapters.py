"""The claims of the chapters with the layers under test in place of ours, at scale quick: minutes a chapter."""

from __future__ import annotations

import pytest

from normbook.chapters import Executed
from normbook.checks.plugin import allowed
from normbook.errors import InputError


def test_claim(executed: Executed | InputError, claim_id: str) -> None:
    if isinstance(executed, InputError):
        pytest.skip(str(executed))
    found = executed.verdicts[claim_id]
    number = int(executed.path.parent.name[:2])
    expected = allowed(number, claim_id)
    assert found.verdict in expected, f"{claim_id} is {found.verdict}, with our layers {' or '.join(sorted(expected))}"
    assert found.control_holds, f"the control of {claim_id} failed ({found.control_verdict})"
