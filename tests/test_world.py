"""Faults of the world: a full disk, a folder that turns read-only, no memory, Ctrl-C twice. Nothing finished is lost.

Kills are in test_soak.py and test_grid.py, damaged records in test_records.py and test_bad_input.py, a kernel that dies
and a cell that hangs in test_chapters.py.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normbook import grid

SOURCE = Path(grid.__file__).parents[1]
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


def environment():
    return {**os.environ, "PYTHONPATH": str(SOURCE)}


def python(script, *arguments, before=(), check=True, timeout=300):
    """What a script prints in a process of its own, as lines of JSON."""
    command = [*before, sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=timeout)
    assert not check or done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def namespace():
    """A command that runs what follows it where it may mount file systems, unseen by others; or skip."""
    command = ["unshare", "--map-root-user", "--mount"]
    try:
        subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets us mount no small disk")
    return command


GRID = """
import json, os, subprocess, sys
from concurrent.futures import Future
from pathlib import Path
from normbook import grid, records, train
from normbook.errors import InputError
from normbook.train import Config

class Here:
    failed, stops = None, False  # whether nothing is run after the first failure, as with workers that end at it

    def submit(self, function, *arguments):
        future = Future()
        try:
            if self.stops and self.failed is not None:
                raise self.failed
            future.set_result(function(*arguments))
        except BaseException as error:
            self.failed = error
            future.set_exception(error)
        return future

def pool(workers):
    return Here()

pool.cache_clear = lambda: None
grid._pool = pool
folder, trained, honest = Path(sys.argv[1]), [], train.run
one = Config("none", lr=0.01, model="mlp", depth=4, width=8, steps=2, n_train=64, evaluate=())
CONFIGS = [Config(**{**vars(one), "batch_size": 8 + i}) for i in range(9)]

def disk(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)

def state():
    return {p.name: [p.stat().st_ino, p.stat().st_mtime_ns] for p in folder.glob("*.json")}

def attempt():
    trained.clear()
    try:
        said = len(grid.run(CONFIGS, folder))
    except InputError as error:
        said = str(error)
    whole = [record["name"] for record in records.read_all(folder)]
    print(json.dumps([said, len(trained), state(), len(whole), sorted(p.name for p in folder.glob(".*.tmp"))]))
"""

FULL = """
train.run = lambda configs, device: trained.extend(configs) or honest(configs, device)
disk("size=16k")
attempt()
disk("remount,size=16k")
attempt()
disk("remount,size=1m")
attempt()
"""

READ_ONLY = """
Here.stops = True

def run(configs, device):
    trained.extend(configs)
    if len(trained) == 4:
        print(json.dumps(state()))
        disk("ro,size=1m")  # over the folder: a disk in use cannot be turned
    return honest(configs, device)

train.run = run
disk("size=1m")
attempt()
attempt()
subprocess.run(["umount", str(folder)], check=True)
train.run = lambda configs, device: trained.extend(configs) or honest(configs, device)
attempt()
"""


def test_on_a_full_disk_finished_runs_stay_and_the_rest_is_run_when_there_is_room(tmp_path):
    first, second, third = python(GRID + FULL, tmp_path, before=namespace())
    for said, _, state, whole, left in (first, second):
        assert said.startswith(f"cannot write the record {tmp_path}/") and "No space left on device" in said
        assert said.endswith("nothing is lost: mend this and run again") and "\n" not in said
        assert 0 < whole == len(state) < 9 and left == []
    assert second[1] == 9 - first[3] and second[2] == first[2]
    assert third[0] == 9 == third[3] and third[1] == 9 - second[3] and third[4] == []
    assert second[2].items() <= third[2].items(), "a finished run was run again"


def test_in_a_folder_that_turns_read_only_finished_runs_stay(tmp_path):
    finished, first, second, third = python(GRID + READ_ONLY, tmp_path, before=namespace())
    assert "Read-only file system" in first[0] and len(finished) == 3
    assert second[0] == f"the folder for records {tmp_path} is read-only" and second[1] == 0
    assert third[0] == 9 and third[1] == 6 and third[4] == [] and finished.items() <= third[2].items()


TOO_LARGE = """
import json, resource, sys
from pathlib import Path
from normbook import chapters, records
from normbook.errors import InputError

folder = Path(sys.argv[1])
(folder / "old.json").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
record = {"schema": 2, "name": "0123", "curves": {"train_loss": [[i, 0.5] for i in range(1000)]}}
for write in (lambda: records.write(folder, record), lambda: chapters.write_text(folder / "old.json", "x" * 2000)):
    try:
        write()
    except InputError as error:
        print(json.dumps(str(error)))
"""


def test_a_file_that_outgrows_what_the_system_allows_leaves_nothing_behind(tmp_path):
    one, other = python(TOO_LARGE, tmp_path)
    assert (
        one == f"cannot write the record {tmp_path}/0123.json: File too large; nothing is lost: mend this and run again"
    )
    assert other.startswith(f"cannot write {tmp_path}/old.json: File too large; nothing")
    assert os.listdir(tmp_path) == ["old.json"] and (tmp_path / "old.json").read_text() == "old"


def test_a_full_disk_under_a_chapter_leaves_its_last_notebook(tmp_path, monkeypatch):
    """Papermill writes after every cell; the disk has no more room at the second."""
    import nbformat
    import papermill.iorw

    from normbook import chapters
    from normbook.errors import InputError

    cells = [nbformat.v4.new_code_cell("a = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("a")]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "05_x.ipynb")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notebook.ipynb").write_text("the last good one")
    writes, honest = [], papermill.iorw.LocalHandler.write

    def write(self, text, path):
        writes.append(path)
        if len(writes) > 2:
            raise OSError(28, "No space left on device")
        return honest(self, text, path)

    monkeypatch.setattr(papermill.iorw.LocalHandler, "write", write)
    with pytest.raises(InputError, match="cannot write .*notebook.ipynb: No space left on device; nothing that was th"):
        chapters.execute(tmp_path / "05_x.ipynb", folder, {"a": 2})
    assert (folder / "notebook.ipynb").read_text() == "the last good one"


MEMORY = """
import json, resource, sys

def greedy(amount):
    import torch
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
    return bytearray(amount) if amount < 2**40 else torch.ones(amount // 4)

if __name__ == "__main__":
    from normbook import grid
    from normbook.errors import InputError
    for amount in (2**32, 2**42):
        try:
            grid.compute(greedy, [(amount,)])
        except InputError as error:
            print(json.dumps(str(error)))
    print(json.dumps(grid.compute(divmod, [(7, 2)])))
"""


@needs_proc
def test_a_worker_without_memory_is_one_line_that_says_what_to_do(tmp_path):
    script = tmp_path / "script.py"  # workers import what they are given by name
    script.write_text(MEMORY)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    python_, torch_, after = [json.loads(line) for line in done.stdout.splitlines()]
    assert python_.startswith("a worker ran out of memory (") and "can't allocate memory" in torch_
    for line in (python_, torch_):
        assert line.endswith("finished runs are kept: free some, run the same command again") and "\n" not in line
    assert after == [[3, 1]]  # the next grid gets new workers


def descendants(pid):
    """The processes below one that have not ended."""
    below, found = {}, []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            below.setdefault(int(parent), []).append(int(path.parent.name))
    todo = [pid]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += children
    return found


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@needs_proc
@pytest.mark.parametrize("command", [
    ["normbook", "run", "2", "--device", "cpu", "--out"], ["normbook.grid", "2", "--device", "cpu", "--out"],
])  # fmt: skip
def test_ctrl_c_twice_is_one_line_and_leaves_no_process(tmp_path, command):
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=err, env=environment(),
            start_new_session=True, cwd=tmp_path,
            # a shell starts what runs in its background with Ctrl-C switched off, and children inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    limit = time.monotonic() + 120
    while len(descendants(process.pid)) < 2 and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.1)  # until there is a kernel or a worker
    time.sleep(1)
    family = descendants(process.pid)
    assert len(family) >= 2, (tmp_path / "err").read_text()
    for _ in range(2):  # the terminal sends it to the whole group
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(random.random() / 2)
    code = process.wait(timeout=120)
    limit = time.monotonic() + 30
    while any(map(alive, family)) and time.monotonic() < limit:
        time.sleep(0.1)
    left = [pid for pid in family if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    said = (tmp_path / "err").read_text()
    ours = [line for line in said.splitlines() if line.startswith("normbook")]  # a kernel may say that it ends
    assert code == 130 and ours == [f"{command[0]}: stopped"] and "Traceback" not in said, said
    assert not left, "a process was left behind"
    assert not list(tmp_path.glob("*/notebook.ipynb")) and not list(tmp_path.glob(".*.tmp"))
