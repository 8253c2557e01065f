"""normbook.probed: a measurement is made once, kept whole, read as it was, and refused where it was edited."""

import json
from dataclasses import dataclass, replace

import fakes
import numpy as np
import pytest

from normbook import claims, plan, probed, probes, recorded, records
from normbook.errors import InputError
from normbook.probes import shift
from normbook.train import Config

STACK = probes.Stack("linear", "batch_norm", blocks=3, width=8, batch=16)
TASKS = [(probes.profile, (STACK, (0, i))) for i in range(2)]


@dataclass(frozen=True)
class Found:
    loss: float
    lost: float
    right: np.ndarray
    config: Config
    inner: list[probes.TransformerProfile]
    floor: dict[str, float]
    pair: tuple[int, float]


def measured(text: str) -> Found:
    inner = [probes.TransformerProfile(np.array([0.25, np.nan]), 2.0)]
    return Found(
        1 / 3, float("inf"), np.array([True, False]), Config("none", lr=0.1, steps=2), inner, {text: 0.5}, (1, 2.0)
    )


@pytest.fixture
def here(monkeypatch):
    fakes.work_here(monkeypatch)


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


def test_at_scale_quick_all_is_measured_anew(here):
    assert all(same(a, probes.profile(*task[1])) for a, task in zip(probed.results(TASKS, "quick"), TASKS, strict=True))


def test_a_measurement_is_made_once_and_read_to_five_digits(here, tmp_path, monkeypatch):
    folder = tmp_path / "probes"
    assert probed.lacking(TASKS, folder) == TASKS
    probed.measure(TASKS[:1], folder)
    assert probed.lacking(TASKS, folder) == TASKS[1:]
    read, fresh = probed.read(folder, TASKS[0]), probes.profile(*TASKS[0][1])
    for a, b in zip(vars(read).values(), vars(fresh).values(), strict=True):
        assert a.dtype == b.dtype and np.allclose(a, b, rtol=1e-4)
    before = probed.path_of(folder, TASKS[0]).stat().st_mtime_ns
    probed.measure(TASKS, folder)
    assert not probed.lacking(TASKS, folder) and probed.path_of(folder, TASKS[0]).stat().st_mtime_ns == before
    assert sorted(folder.iterdir()) == sorted(probed.path_of(folder, task) for task in TASKS)
    (tmp_path / "there").mkdir()
    (tmp_path / "records").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert len(probed.results(TASKS, "cifar")) == 2
    with pytest.raises(InputError, match="not a measurement"):
        probed.results([(probes.profile, (STACK, (9, 9)))], "cifar")


def test_another_draw_arm_or_probe_is_another_measurement(tmp_path):
    others = [
        (probes.profile, (replace(STACK, arm="none"), (0, 0))), (probes.profile, (STACK, (1, 0))),
        (probes.inputs, (STACK, (0, 0))), *TASKS,
    ]  # fmt: skip
    assert len({probed.path_of(tmp_path, task) for task in others}) == len(others)


def test_what_a_probe_returns_is_what_is_read():
    before = measured("x")
    after = probed.decode(Found, json.loads(records.canonical(probed.encode(before))))
    assert after.loss == pytest.approx(before.loss, rel=1e-4) and np.isnan(after.lost)  # JSON has no infinity
    assert after.right.dtype == bool and list(after.right) == [True, False]
    assert (after.config, after.floor, after.pair) == (before.config, before.floor, before.pair)
    assert np.array_equal(after.inner[0].share, [0.25, np.nan], equal_nan=True)
    assert probed.decode(float | None, None) is None and probed.decode(float | None, 1.5) == 1.5


def test_followed_runs_can_be_kept(here, tmp_path):
    one = Config("batch_norm", lr=0.1, model="mlp", depth=3, width=8, batch_size=20, steps=3, n_train=40)
    task = (shift.follow, ([one], 2, True))
    probed.measure([task], tmp_path)
    (read,), (fresh,) = probed.read(tmp_path, task), shift.follow(*task[1])
    assert read.config == one and read.travel == pytest.approx(fresh.travel, rel=1e-4)
    assert (read.right == fresh.right).all() and read.right.dtype == bool and read.diverged is False


@pytest.mark.parametrize("damage", [lambda t: t[:-20], lambda t: t.replace("seconds", "second"), lambda t: "[]"])
def test_an_edited_or_damaged_measurement_is_refused_by_name(here, tmp_path, damage):
    probed.measure(TASKS[:1], tmp_path)
    path = probed.path_of(tmp_path, TASKS[0])
    path.write_text(damage(path.read_text()))
    with pytest.raises(InputError, match=f"{path.name}: not a measurement.*move it away"):
        probed.read(tmp_path, TASKS[0])


def test_a_folder_that_cannot_be_written_is_one_line(here, tmp_path, monkeypatch):
    monkeypatch.setattr(probed, "whole", lambda path: open("/dev/full/x", "wb"))
    with pytest.raises(InputError, match="cannot write .*; mend this"):
        probed.measure(TASKS[:1], tmp_path)


def test_measurements_are_counted_and_older_code_shows(here, tmp_path, monkeypatch):
    folder = tmp_path / "results" / "cifar" / "records"
    fakes.keep(folder, [])
    path = fakes.chapter(monkeypatch, tmp_path)
    chapter = replace(claims.load(path.stem, scale="cifar"), scan=(), runs=(), closer=(), probes=lambda scan: TASKS)
    assert "2 measurements by probes, 2 missing" in plan.describe(chapter, "cifar", folder, "some cpu")
    probed.measure(TASKS[:1], probed.place(folder))
    found = recorded.summary(chapter, folder)
    assert (found["probes"], found["of_probes"], found["of"]) == (1, 2, 0) and found["code"] == [records.code_hash()]
    monkeypatch.setattr(probed, "code_hash", lambda probe: "other")
    assert recorded.summary(chapter, folder)["code"] != [records.code_hash()]
