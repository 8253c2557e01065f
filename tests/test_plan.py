"""normbook.plan: what there is to run is counted once, before it is known which runs, and costs what was read."""

import json
from dataclasses import replace

import fakes
import pytest

from normbook import claims, grid, plan, records, sweep
from normbook.errors import InputError
from normbook.train import Config

ONE = Config("batch_norm", depth=10, width=0.25, batch_size=8, n_train=16, steps=2, evaluate=())
OTHER = replace(ONE, arm="none")
RATES = (0.1, 0.2, 0.4, 0.8)
HERE = "some cpu"


def chapter(scan=(1000,), closer=(), n=3):
    scans = [replace(c, lr=lr, seed=(0, i)) for c in (ONE, OTHER) for lr in RATES for i in scan]
    runs = [run for c in (ONE, OTHER) for run in grid.seeds(c, 0, n)]
    return claims.Chapter(5, "05_x", "x", None, (), tuple(scans), tuple(runs), (), tuple((0, i) for i in closer))


@pytest.fixture(autouse=True)
def checkout(monkeypatch, tmp_path):
    """A checkout without records and reports."""
    monkeypatch.setattr(claims, "ROOT", tmp_path)


def counted(chapter, folder, keep=lambda config: True):
    view = plan.outlook(chapter, folder, keep)
    assert len(set(view.runs)) == len(view.runs) == len(view.there) + len(view.missing)
    return len(view.runs), len(view.there)


@pytest.mark.parametrize(("scan", "closer", "total"), [
    ((1000,), (), 8 + 6), ((1000, 1001), (), 16 + 6), ((1000,), (1001, 1002), 8 + 12 + 6),
    ((0, 1, 2), (), 24), ((0, 1), (), 16 + 2),  # where every rate gets the seeds, the best one's are among them
])  # fmt: skip
def test_runs_are_counted_before_any_is_done_and_that_many_are_done(scan, closer, total, tmp_path):
    declared = chapter(scan, closer)
    assert counted(declared, tmp_path) == (total, 0)
    done = []

    def get(configs):
        fakes.keep(tmp_path / "records", configs, lambda c: abs(c.lr - 0.3) + c.seed[1] / 1e6)
        done.extend(configs)
        return sweep.recorded(configs, tmp_path / "records")

    sweep.stages(declared.scan, declared.runs, declared.closer, get)
    assert len(set(done)) == total and counted(declared, tmp_path / "records") == (total, total)


def test_a_part_done_is_counted_at_every_stage(tmp_path):
    declared = chapter((1000,), (1001,))
    for configs, total, there in (
        (declared.scan[:3], 20, 3), (declared.scan, 20, 8),  # 2 x 3 for a closer look, 6 runs
        ([replace(c, seed=(0, 1001)) for c in declared.scan if c.lr < 0.5], 20, 14),
        ([replace(declared.runs[0], lr=0.2)], 20, 15),
    ):  # fmt: skip
        fakes.keep(tmp_path, configs, lambda c: abs(c.lr - 0.2))
        assert counted(declared, tmp_path) == (total, there)


def test_a_best_rate_at_the_end_of_its_grid_makes_fewer_runs(tmp_path):
    declared = chapter((1000,), (1001,))
    fakes.keep(tmp_path, declared.scan, lambda c: c.lr)
    assert counted(declared, tmp_path) == (8 + 4 + 6, 8)


def test_a_part_is_counted_alone(tmp_path):
    declared = chapter()
    fakes.keep(tmp_path, declared.scan[:2])
    assert counted(declared, tmp_path, sweep.only("arm=bn", declared.scan)) == (4 + 3, 2)
    assert counted(declared, tmp_path, sweep.only("lr=0.2", declared.scan)) == (2, 1)


def test_a_cost_is_said_from_what_was_read(tmp_path):
    declared = chapter()
    here, folder = declared.scan[0], tmp_path / "results" / "cifar" / "records"
    nothing = plan.describe(declared, "cifar", folder, HERE)
    assert nothing.splitlines()[0] == "05_x at scale cifar: 14 runs, 0 recorded, 14 missing"
    assert "no throughput was read on some cpu yet" in nothing and "GPU hours: no throughput was read" in nothing
    assert "not read yet for WRN-10-0.25 8x8" in nothing and "records of a few kB each" in nothing

    fakes.keep(folder, [here], seconds=450.0)  # 16 images in 450 s: 13 runs take 5850 s
    said = plan.describe(declared, "cifar", folder, HERE)
    assert "14 runs, 1 recorded, 13 missing" in said and "at most 1.6 core hours on some cpu" in said
    assert "WRN-10-0.25 8x8: 13 runs, 1.6 core hours (0.0356 images/s, read with this net)" in said
    assert "memory of a worker: WRN-10-0.25 8x8 100 MiB" in said
    size = next(folder.glob("*.json")).stat().st_size
    assert f"{13 * size / 1e6:,.1f} MB of records" in said

    wide = replace(declared, scan=(), runs=(replace(here, width=0.5, data="cifar10-jpeg@16", steps=20),))
    said = plan.describe(wide, "paper", tmp_path / "none", HERE)  # of another scale, on this device
    assert "extrapolated by multiply-adds from WRN-10-0.25 8x8" in said and "46 MB of cifar10-jpeg@16 decoded" in said

    fakes.keep(folder, [declared.scan[1]], device="NVIDIA X", seconds=3.6)
    said = plan.describe(declared, "cifar", folder, HERE)
    assert "at most 0.0 GPU hours on NVIDIA X" in said and "no throughput was read on a GPU" not in said


def test_what_is_all_there_costs_nothing(tmp_path):
    declared = replace(chapter(), runs=())
    fakes.keep(tmp_path, declared.scan)
    assert plan.describe(declared, "cifar", tmp_path, HERE) == "05_x at scale cifar: 8 runs, 8 recorded, 0 missing"


def test_the_benchmarks_reports_count_too(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    reading = {
        "case": "WRN-16-1 32x32 batch 128",
        "way": "ours",
        "precision": "fp32",
        "seconds": [1.0],
        "steps": 5,
        "batch": 128,
    }
    report = {"device": "NVIDIA X", "device_kind": "cuda", "threads": 1, "readings": [reading]}
    (folder / "x.json").write_text(json.dumps(report))
    said = plan.describe(chapter(), "cifar", tmp_path, HERE)
    assert "GPU hours on NVIDIA X" in said and "extrapolated by multiply-adds from WRN-16-1 32x32" in said
    (folder / "x.json").write_text("{")
    with pytest.raises(InputError, match="x.json: not a report"):
        plan.describe(chapter(), "cifar", tmp_path, HERE)


def test_of_ten_thousand_runs_each_is_named_once(tmp_path, monkeypatch):
    fakes.keep(tmp_path, chapter().scan[:2])  # so that the names of all are looked for
    named, honest = [], records.name_of
    monkeypatch.setattr(records, "name_of", lambda *run: named.append(run) or honest(*run))
    assert "10,000 runs, 2 recorded" in plan.describe(chapter(scan=range(1000, 2249), n=4), "paper", tmp_path, HERE)
    assert len(named) <= 10_010  # 2 seconds for all: benchmarks.scheduling
