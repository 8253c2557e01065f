"""normbook.costs: minutes and hours come from runs that were made, else the plan is asked, or it says so."""

import pytest

from normbook import chapters, claims, costs


@pytest.fixture(scope="module")
def planned():
    return [costs.grids(slug) for slug in claims.chapters()]


def test_every_chapter_has_a_line_and_every_scale_a_cell(planned):
    executed = [chapters.read(path) for path in claims.chapters().values()]
    executed[1].notebook.metadata["normbook"]["seconds"] = 90.0
    head, rule, *lines = costs.table(executed, planned).splitlines()
    assert head == "| chapter | quick | cifar | paper |" and len(lines) == len(claims.chapters())
    for line, grids in zip(lines, planned, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 4 and all(cells)
        assert (cells[2:].count("no grid declared") == 0) == (len(grids) == 2)
    assert "| 1.5 min |" in lines[1]


def test_recorded_runs_say_hours_memory_and_size_and_missing_ones_what_the_plan_says(planned):
    found = {grid.scale: costs._grid(grid) for grid in planned[4]}
    done, of = (planned[4][0].found[key] for key in ("runs", "of"))
    assert found["cifar"].startswith(f"{done} of {of} runs took ") and "core hours on" in found["cifar"]
    assert "GiB of memory a worker" in found["cifar"] and found["cifar"].endswith("MB of records")
    assert "runs to make" in found["paper"] and "GPU hours" in found["paper"] and "a CPU" not in found["paper"]
    age = costs.recorded.older_code(planned[4][0].found)
    assert costs.counted(planned[4]).startswith(f"{done} of {of} runs at cifar{f' ({age})' if age else ''}, ")
    assert costs.counted([]) == "no grid declared"


def test_without_a_run_and_without_passes_nothing_is_claimed(monkeypatch):
    monkeypatch.setattr(costs.stability, "read", lambda number: [])
    assert costs._quick(1, {}) == "not measured"
