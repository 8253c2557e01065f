"""What one test sets for its whole process is not left to the next one."""

import pytest
import torch

from normbook import data
from normbook.data import sources


@pytest.fixture(autouse=True)
def denormals():
    """Work that belongs in a worker process, done in a test, flushes denormals; hypothesis refuses such a process."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """A default folder of decoded images that holds none, and a process that was told of no dataset."""
    monkeypatch.setattr(sources, "default_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(sources, "places", {})
    monkeypatch.setattr(data, "places", sources.places)
    sources._prepared.cache_clear()
    sources._load.cache_clear()
    return tmp_path / "cache"
