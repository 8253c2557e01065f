"""normbook.grid: what is missing is run once, whoever runs it, and whatever is killed; and what a grid is made of."""

import json
import operator
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import fakes
import pytest
import torch

from normbook import data, grid, progress, records, train
from normbook.errors import InputError
from normbook.train import Config

torch.set_num_threads(1)  # tiny nets: two threads on a busy machine are ten times slower
SOURCE = Path(grid.__file__).parents[1]
TINY = Config("none", lr=0.1, depth=10, width=0.25, batch_size=8, steps=2, n_train=16, evaluate=("test",))
MIXED = [*grid.seeds(TINY, 0, 2), replace(TINY, arm="batch_norm"), replace(TINY, lr=0.05)]


def name_of(config):
    return records.name_of(asdict(config), data.load(config.data).content_hash)


def state(folder):
    """What would change if a record were written again: inode and time of each."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.json")}


class Here:
    """A pool that does its work in this process at once, so that a test can look at it."""

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        future = Future()
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def trained(monkeypatch):
    """Work in this process; the list of configurations that were trained."""
    calls, honest = [], train.run

    def pool(workers):
        return Here()

    pool.cache_clear = lambda: None
    grid._pool.cache_clear()  # work that fails ends every worker, those of a pool kept from another test too
    monkeypatch.setattr(grid, "_pool", pool)
    monkeypatch.setattr(train, "run", lambda configs, device: calls.append(list(configs)) or honest(configs, device))
    return calls


# ---- what a grid is made of


def test_seeds_are_the_same_run_with_n_indices_of_a_base_seed():
    found = grid.seeds(TINY, 3, 4)
    assert [c.seed for c in found] == [(3, 0), (3, 1), (3, 2), (3, 3)]
    assert {c.kind() for c in found} == {TINY.kind()}


def test_tiny_is_one_seed_and_two_steps_of_each_kind_of_run():
    long = Config("none", lr=0.1, epochs=200, batch_size=128)
    kinds = (long, replace(long, arm="fixup"), replace(long, lr=0.2))
    found = grid.tiny([config for kind in kinds for config in grid.seeds(kind, 3, 5)])
    assert len(found) == 3 and {(c.steps, c.epochs, c.batch_size, c.n_train) for c in found} == {(2, None, 8, 16)}
    assert {c.seed for c in found} == {(3, 0)} and {(c.arm, c.lr) for c in found} == {
        ("none", 0.1), ("none", 0.2), ("fixup", 0.1)
    }  # fmt: skip
    assert found == grid.tiny(list(reversed(found))) == grid.tiny(found)


def test_a_scale_without_a_plan_and_an_unknown_scale_are_bad_input():
    assert grid.at_scale("quick", quick={"n": 5}, cifar={"n": 9}) == {"n": 5}
    assert grid.at_scale("cifar", quick={"n": 5}, cifar={"n": 9}) == {"n": 9}
    assert grid.at_scale("tiny", quick={"n": 5}) == {"n": 5}
    with pytest.raises(InputError, match=r"no grid at scale 'paper' yet \(it has: quick\)"):
        grid.at_scale("paper", quick={})
    with pytest.raises(InputError, match="did you mean 'quick'"):
        grid.at_scale("quik", quick={})


def test_a_configuration_comes_back_from_its_record():
    config = replace(TINY, seed=(2, 3))
    record = json.loads(json.dumps({"config": asdict(config)}))
    assert grid.config_of(record) == config and hash(grid.config_of(record)) == hash(config)


def scanned(config, lr, loss, value="validation_loss"):
    outcome = {"finished": True} if loss is not None else {"diverged_at": 3}
    final = {} if loss is None else {"validation_loss": 9.0, "test_loss": -lr, "step_loss": 9.0, value: loss}
    return {"config": asdict(replace(config, lr=lr)), "outcome": outcome, "final": final}


def test_the_best_learning_rate_is_that_of_the_lowest_validation_loss_of_the_same_kind_of_run():
    one, other = Config("none", steps=2), Config("fixup", steps=2)
    scan = [scanned(one, 0.1, 2.0), scanned(one, 0.2, 1.0), scanned(one, 0.4, None), scanned(other, 0.1, 0.5),
            scanned(other, 0.2, 0.7)]  # fmt: skip
    found = grid.best_lrs(scan, [*grid.seeds(one, 0, 2), other])
    assert [(c.arm, c.lr, c.seed) for c in found] == [
        ("none", 0.2, (0, 0)), ("none", 0.2, (0, 1)), ("fixup", 0.1, (0, 0))
    ]  # fmt: skip


def test_runs_that_are_not_validated_are_chosen_by_their_step_loss_and_never_by_the_test_images():
    config = Config("none", steps=2, evaluate=("test",))
    scan = [scanned(config, 0.1, 1.0, "step_loss"), scanned(config, 0.4, 2.0, "step_loss")]
    assert grid.best_lrs(scan, [config])[0].lr == 0.1


def test_where_every_learning_rate_diverged_the_lowest_is_taken():
    config = Config("none", steps=2)
    assert grid.best_lrs([scanned(config, lr, None) for lr in (0.4, 0.1, 0.2)], [config])[0].lr == 0.1


def test_a_learning_rate_is_as_good_as_the_mean_over_the_scans_seeds_and_no_good_if_one_diverged():
    config = Config("none", steps=2)
    losses = {0.1: (2.0, 2.0), 0.2: (0.5, 3.0), 0.4: (0.1, None)}
    scan = [scanned(replace(config, seed=(0, i)), lr, pair[i]) for i in range(2) for lr, pair in losses.items()]
    assert grid.best_lrs(scan, [config])[0].lr == 0.2


def test_a_learning_rate_that_was_scanned_with_fewer_seeds_than_others_is_out():
    config = Config("none", steps=2)
    losses = {0.1: (2.0, 2.0), 0.2: (1.0, 1.5), 0.4: (0.5,)}
    scan = [
        scanned(replace(config, seed=(0, i)), lr, loss) for lr, each in losses.items() for i, loss in enumerate(each)
    ]
    assert grid.best_lrs(scan, [config])[0].lr == 0.2


def test_runs_of_a_kind_that_was_not_scanned_keep_their_own_learning_rate():
    other = Config("fixup", steps=2)
    assert grid.best_lrs([], [TINY]) == [TINY] == grid.best_lrs([scanned(other, 0.5, 1.0)], [TINY])


def test_bundles_hold_at_most_so_many_runs_of_one_kind_and_each_run_once():
    kinds = [TINY, replace(TINY, arm="batch_norm"), replace(TINY, steps=50)]
    n = 2 * grid.MEMBERS + 1
    configs = {f"{k}-{i}": replace(kinds[k], seed=(0, i), lr=0.1 * (i + 1)) for k in range(3) for i in range(n)}
    found = grid.bundles(configs)
    assert max(map(len, found)) == grid.MEMBERS and len(found) == 9
    assert sorted(name for bundle in found for name in bundle) == sorted(configs)
    assert all(len({c.kind() for c in bundle.values()}) == 1 for bundle in found)
    assert all(bundle[name] is configs[name] for bundle in found for name in bundle)
    assert {c.steps for bundle in found[:2] for c in bundle.values()} == {50}  # the most expensive first
    assert grid.bundles({}) == []
    for n, sizes in ((1, [1]), (2, [1, 1]), (9, [5, 4]), (10, [9, 1])):  # one bundle would leave a core idle
        alone = {str(i): replace(TINY, seed=(0, i)) for i in range(n)}
        assert sorted(map(len, grid.bundles(alone)), reverse=True) == sizes


# ---- running what is missing


def test_records_come_in_the_order_of_the_configurations_and_may_be_asked_for_twice(tmp_path, trained):
    found = grid.run([*MIXED, MIXED[0]], tmp_path)
    assert [grid.config_of(record) for record in found] == [*MIXED, MIXED[0]]
    assert len(state(tmp_path)) == 4
    assert sorted(len(bundle) for bundle in trained) == [1, 3]


def test_a_second_run_of_the_same_grid_trains_nothing(tmp_path, trained):
    first = grid.run(MIXED, tmp_path)
    before, trained[:] = state(tmp_path), []
    assert grid.run(MIXED, tmp_path) == first
    assert trained == [] and state(tmp_path) == before


def test_only_what_is_missing_is_trained_and_finished_runs_are_untouched(tmp_path, trained):
    grid.run(MIXED[:2], tmp_path)
    before, trained[:] = state(tmp_path), []
    grid.run(MIXED, tmp_path)
    assert sorted((c.arm, c.lr) for bundle in trained for c in bundle) == [("batch_norm", 0.1), ("none", 0.05)]
    assert before.items() <= state(tmp_path).items()


def test_the_same_run_gives_the_same_values_whether_or_not_it_was_recorded(tmp_path, trained):
    kept, again = grid.run(MIXED, tmp_path), grid.run(MIXED)
    assert [r["final"] for r in kept] == [r["final"] for r in again]


def test_without_a_folder_everything_is_trained_anew_and_nothing_is_kept(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(grid.tempfile, "tempdir", str(tmp_path))
    for _ in range(2):
        assert len(grid.run(MIXED[:2])) == 2
    assert sum(map(len, trained)) == 4 and os.listdir(tmp_path) == []


def test_an_empty_grid_starts_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "_pool", lambda workers: pytest.fail("a pool was made"))
    assert grid.run([], tmp_path) == []


def test_refresh_trains_again_what_older_code_computed_and_nothing_else(tmp_path, trained, monkeypatch):
    grid.run(MIXED[:2], tmp_path)
    older = records.read(tmp_path / f"{name_of(MIXED[0])}.json")
    records.write(tmp_path, {**older, "code": "older"})
    before, trained[:] = state(tmp_path), []
    assert grid.run(MIXED[:2], tmp_path)[0]["code"] == "older" and trained == []  # still valid without --refresh
    assert grid.run(MIXED[:2], tmp_path, refresh=True)[0]["code"] == records.code_hash()
    assert [c for bundle in trained for c in bundle] == [MIXED[0]]
    changed = {name for name, value in state(tmp_path).items() if before[name] != value}
    assert changed == {f"{name_of(MIXED[0])}.json"}


def test_a_file_that_a_worker_cannot_open_is_named_in_one_line():
    said = r"^/folder/\.lock: Read-only file system; finished runs are kept"
    with pytest.raises(InputError, match=said), grid._workers(1):
        raise OSError(30, "Read-only file system", "/folder/.lock")
    with pytest.raises(OSError, match="no file"), grid._workers(1):
        raise OSError("no file")  # which file is not known: nothing to mend, so a crash


def test_a_missing_or_read_only_folder_is_bad_input(tmp_path, trained, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(InputError, match="does not exist; make it first"):
            grid.run(MIXED, folder)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="read-only"):
        grid.run(MIXED, tmp_path)
    assert trained == []


def test_a_damaged_record_is_bad_input_and_nothing_is_trained_over_it(tmp_path, trained):
    grid.run(MIXED[:1], tmp_path)
    path = tmp_path / f"{name_of(MIXED[0])}.json"
    path.write_text("{")
    trained.clear()
    with pytest.raises(InputError, match=path.name):
        grid.run(MIXED, tmp_path)
    assert trained == [] and path.read_text() == "{"


def test_bad_input_found_by_a_worker_is_bad_input_here_and_finished_runs_are_kept(tmp_path, trained):
    cheap = replace(TINY, steps=1, n_train=8)  # the most expensive comes first
    with pytest.raises(InputError, match="cannot be imported"):
        grid.run([replace(cheap, arm="batch_norm", norm="no.such"), TINY], tmp_path)
    assert list(state(tmp_path)) == [f"{name_of(TINY)}.json"]


def test_a_worker_that_was_killed_is_bad_input_and_finished_runs_are_kept(tmp_path, trained, monkeypatch):
    grid.run(MIXED[:2], tmp_path)
    before, killed, honest = state(tmp_path), [], grid.as_completed
    monkeypatch.undo()  # real processes from here

    def kill_one_and_wait(futures):  # once all work is handed out
        killed.append(next(iter(grid._pool(grid._cores())._processes)))
        os.kill(killed[-1], signal.SIGKILL)
        return honest(futures)

    monkeypatch.setattr(grid, "as_completed", kill_one_and_wait)
    for work in (lambda: grid.run(MIXED, tmp_path, workers=grid._cores()), lambda: grid.compute(divmod, [(1, 1)])):
        grid._pool.cache_clear()
        with pytest.raises(InputError, match="a worker process died") as caught:
            work()
        assert "\n" not in str(caught.value) and caught.value.__suppress_context__
        assert grid._pool.cache_info().currsize == 0  # the next grid gets a new pool
    assert state(tmp_path) == before and len(set(killed)) == 2


def test_workers_flush_denormals_which_make_a_convolution_forty_times_slower():
    assert grid.compute(operator.mul, [(1e-200, 1e-120)]) == [0] and operator.mul(1e-200, 1e-120) > 0


def test_measurements_come_in_the_order_of_their_tasks(trained, capsys):
    assert grid.compute(divmod, [(7, 2), (9, 4), (1, 3)]) == [(3, 1), (2, 1), (0, 1)]
    assert grid.compute(divmod, []) == [] and capsys.readouterr().out == ""


def test_an_error_in_a_measurement_is_the_callers(trained):
    with pytest.raises(ZeroDivisionError):
        grid.compute(divmod, [(7, 2), (1, 0)])


HOLDER = """
import fcntl, os, sys, time
folder, offset, finished, wanted = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
with open(folder + "/.lock", "ab") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX, 1, offset)
    print("locked", flush=True)
    while len([name for name in os.listdir(folder) if name.endswith(".json")]) < wanted:
        time.sleep(0.01)
    time.sleep(0.2)
    if finished:
        os.replace(finished, folder + "/" + os.path.basename(finished))
"""


@pytest.mark.parametrize("finishes", [True, False])
def test_a_run_that_another_driver_is_computing_is_waited_for_and_done_only_if_that_driver_dies(
    tmp_path, trained, finishes
):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir(), theirs.mkdir()
    record = grid.run([MIXED[0]], theirs)[0]
    trained.clear()
    offset = int(record["name"][:15], 16)
    finished = str(theirs / f"{record['name']}.json") if finishes else ""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(ours), str(offset), finished, "3"], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "locked\n"
        found = grid.run(MIXED, ours)
    assert [r["name"] for r in found] == [name_of(config) for config in MIXED]
    done = [name_of(c) for bundle in trained for c in bundle]
    assert sorted(done) == sorted(name_of(c) for c in (MIXED[1:] if finishes else MIXED))
    assert done[-1] == record["name"] or finishes
    assert (found[0]["start"] == record["start"]) == finishes


# ---- progress


def test_progress_goes_to_stderr_in_lines_where_there_is_no_terminal(tmp_path, trained, monkeypatch, capsys):
    honest = progress.tqdm
    monkeypatch.setattr(progress, "tqdm", lambda **options: honest(**{**options, "delay": 0, "mininterval": 0}))
    grid.run(MIXED[:1], tmp_path)
    capsys.readouterr()
    grid.run(MIXED, tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and "\r" not in err and err.endswith("\n")
    assert "1/4" in err.splitlines()[0] and "4/4" in err.splitlines()[-1] and len(err.splitlines()) <= 5


def test_a_short_grid_is_silent_where_there_is_no_terminal(tmp_path, trained, capsys):
    grid.run(MIXED[:1], tmp_path)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_the_bar_is_tqdms_own(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with grid._bar(3, 1) as bar:
        assert (bar.total, bar.n, bar.delay, bar.mininterval) == (3, 1, 0, 0.2) and bar.fp is not None


# ---- the command


@pytest.fixture
def chapter(tmp_path, monkeypatch):
    return fakes.grids(monkeypatch, tmp_path) / "out"


def test_the_command_runs_a_chapters_grids_and_says_how_many_records_there_are(chapter, trained, capsys):
    assert grid.main(["5", "--out", str(chapter), "--device", "cpu", "--seed", "7"]) == 0
    assert capsys.readouterr().out == f"4 records in {chapter}\n"
    found = [grid.config_of(record) for record in records.read_all(chapter)]
    assert sorted(c.seed for c in found) == [(7, 0), (7, 1), (7, 1000), (7, 1000)]
    chosen = {c.lr for c in found if c.seed[1] < 1000}
    assert len(chosen) == 1 and chosen <= {0.1, 0.2}
    before = state(chapter)
    assert grid.main(["5", "--out", str(chapter), "--device", "cpu", "--seed", "7"]) == 0 and state(chapter) == before


@pytest.mark.parametrize("wrong, said", [
    (["skipnit"], "did you mean 'skipinit'"), (["5", "--scale", "quik"], "did you mean 'quick'"),
    (["5", "--scale", "paper"], "no grid at scale 'paper'"), (["5", "--device", "gpu"], "unknown device"),
    (["5", "--out", "/no/such"], "make it first"),
])  # fmt: skip
def test_bad_input_to_the_command_is_one_line_and_exit_code_2(chapter, trained, capsys, wrong, said):
    assert grid.main(["--out", str(chapter), "--device", "cpu", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("normbook.grid: ") and said in err and err.count("\n") == 1
    assert os.listdir(chapter) == [] and trained == []


BARE = """
import runpy, sys
ABSENT = {"matplotlib", "seaborn", "papermill", "nbformat", "nbclient", "jupyter_book", "IPython", "ipykernel", "click",
          "torchvision", "pandas", "pytest", "hypothesis", "ray"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["normbook.grid", "no such chapter", "--out", "."]
try:
    runpy.run_module("normbook.grid", run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("exit", end.code)
import normbook.claims, normbook.data, normbook.grid, normbook.models, normbook.norms, normbook.probes
import normbook.records, normbook.train
normbook.data.load("digits")
print("read the digits")
"""


def test_the_modules_of_a_bare_machine_import_nothing_more_and_its_command_refuses_bad_input_in_one_line():
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", BARE], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "exit 2\nread the digits\n"
    assert ended.stderr.startswith("normbook.grid: unknown chapter") and ended.stderr.count("\n") == 1


# ---- real processes, killed


DRIVER = """
import os, sys
from pathlib import Path
from normbook import grid, records
from normbook.train import Config

folder, log = Path(sys.argv[1]), sys.argv[2]
honest = records.write

def write(folder, record):  # in the workers too: they import this file
    path = honest(folder, record)
    with open(log, "a") as file:
        file.write(record["name"] + "\\n")
    return path

records.write = write
ONE = Config("none", lr=0.01, depth=10, width=0.25, steps=40, n_train=40, evaluate=())
CONFIGS = [Config(**{**vars(ONE), "batch_size": 8 + i, "seed": (0, i)}) for i in range(9)]  # each its own bundle
if __name__ == "__main__":
    print(*[record["name"] for record in grid.run(CONFIGS, folder, workers=1)])
"""


def environment():
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


def parents():
    """{pid: its parent} of what runs on this machine."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state_, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state_ != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_a_killed_driver_leaves_no_worker_and_two_drivers_at_once_record_each_missing_run_once(
    tmp_path, monkeypatch, trained
):
    script, folder, log = tmp_path / "driver.py", tmp_path / "records", tmp_path / "log"
    script.write_text(DRIVER)
    folder.mkdir()
    command = [sys.executable, str(script), str(folder), str(log)]
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.setattr(records, "write", records.write)  # so that what the script changes is changed back
    configs = runpy.run_path(str(script))["CONFIGS"]

    def start_and_wait_for_records(number):
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            driver = subprocess.Popen(command, stdout=out, stderr=err, env=environment())
        limit = time.monotonic() + 200
        while len(state(folder)) < number and time.monotonic() < limit and driver.poll() is None:
            time.sleep(0.01)
        return driver

    killed = start_and_wait_for_records(1)
    time.sleep(random.random() / 2)
    workers = [pid for pid, parent in parents().items() if parent == killed.pid]
    killed.kill()
    killed.wait()
    assert workers, "the driver had no worker when it was killed"
    limit = time.monotonic() + 10
    while set(workers) & set(parents()) and time.monotonic() < limit:
        time.sleep(0.05)
    left = set(workers) & set(parents())
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "a worker outlived its driver"
    before = state(folder)
    assert before and len(list(records.read_all(folder))) == len(before)
    assert len(before) < len(configs), "the driver was killed too late to test anything"

    other = start_and_wait_for_records(len(before) + 1)
    found = grid.run(configs, folder)
    assert other.wait(timeout=300) == 0, (tmp_path / "err").read_text()
    out = (tmp_path / "out").read_text()
    assert out.split() == [record["name"] for record in found] == [name_of(config) for config in configs]
    after = state(folder)
    assert before.items() <= after.items(), "a finished run was written again"
    assert [record["name"] for record in records.read_all(folder)] == sorted(out.split())
    written = log.read_text().split()
    assert len(written) == len(set(written)), "a run was recorded twice"
    assert {f"{name}.json" for name in written} >= set(after) - set(before)
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_a_learning_rate_is_chosen_by_runs_of_the_same_scale_and_data_only():
    one = Config("none", steps=2)
    sizes = ({"depth": 22}, {"width": 2}, {"n_train": 100}, {"steps": 3}, {"batch_size": 32})
    for changes in (*sizes, {"data": "cifar10"}):
        other = replace(one, **changes)
        scan = [scanned(one, 0.1, 1.0), scanned(one, 0.2, 2.0), scanned(other, 0.1, 9.0), scanned(other, 0.2, 0.1)]
        assert [c.lr for c in grid.best_lrs(scan, [one, other])] == [0.1, 0.2], changes
