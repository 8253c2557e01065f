"""What one test sets for its whole process is not left to the next one."""

import pytest
import torch


@pytest.fixture(autouse=True)
def denormals():
    """Work that belongs in a worker process, done in a test, flushes denormals; hypothesis refuses such a process."""
    yield
    torch.set_flush_denormal(False)
