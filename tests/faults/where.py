"""A pytest plugin: ends a run at once in which the package is not the copy that a fault was planted in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    """All test modules are imported now, and with them what they test."""
    package = sys.modules.get("normbook")
    wanted = Path(os.environ["NORMBOOK_COPY"])
    if package is not None and wanted not in Path(str(package.__file__)).resolve().parents:
        pytest.exit(f"tested would be {package.__file__}, not the copy in {wanted}", returncode=3)
