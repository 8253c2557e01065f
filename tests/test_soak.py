"""Grids are killed ten times (make soak: a hundred times), and what looks for damage finds it where there is some."""

import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import soak

from normbook import data, grid, records

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
KILLS = 10


def test_a_grid_that_is_killed_at_random_moments_loses_nothing_and_runs_nothing_again():
    environment = {**os.environ, "PYTHONPATH": str(Path(grid.__file__).parents[1])}
    command = [sys.executable, soak.__file__, "--kills", str(KILLS), "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = dict(re.findall(r"^([a-z ]+): (\d+)", done.stdout, re.M))
    assert int(found["kills tried"]) == KILLS and int(found["grids"]) >= 1
    for name in ("run again", "half written", "lost", "workers left behind", "drivers that hung"):
        assert found[name] == "0", done.stdout


@pytest.fixture
def folder(tmp_path):
    """Three finished runs."""
    for i in range(3):
        config = replace(soak.ONE, seed=(0, i))
        records.write(tmp_path, records.make({
            "config": asdict(config), "data_hash": data.load().content_hash, "outcome": {}, "final": {}, "curves": {},
            "device": "", "threads": 1, "members": 1, "compiled": False, "versions": {}, "seconds": 1.0,
            "peak_memory_mb": 1.0, "start": 1.0, "end": 2.0,
        }))  # fmt: skip
    return tmp_path


@pytest.mark.parametrize(("damage", "counted"), [
    (lambda path: None, {}),
    (lambda path: path.unlink(), {"lost": 1}),
    (lambda path: path.write_text(path.read_text()[:-9]), {"half_written": 1, "again": 1}),
    (lambda path: records.write(path.parent, records.read(path)), {"again": 1}),
])  # fmt: skip
def test_what_looks_for_damage_finds_it(folder, damage, counted):
    counts = soak.Counts()
    done = soak._look(folder, {}, counts)
    damage(folder / f"{next(iter(done))}.json")
    soak._look(folder, done, counts)
    found = {name: getattr(counts, name) for name in ("again", "half_written", "lost", "left_behind", "hung")}
    assert {name: count for name, count in found.items() if count} == counted and counts.bad == sum(counted.values())
