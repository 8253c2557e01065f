"""kill -9 of a grid's drivers and workers at random moments: no finished run again, nothing half written, nothing lost.

``make soak`` kills 100 times, test_soak.py 10 times. Drivers and workers are forked from this process, which has torch
in it already: importing it takes seconds, in which there is little to break. Every tenth driver starts its workers as
grids do, as new processes. Half the kills come at a random moment, half when a record is being written.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # threads do not fork

import multiprocessing

import torch
from tqdm import tqdm

from normbook import data, grid, records, train
from normbook.errors import InputError
from normbook.train import Config

ONE = Config("none", lr=0.01, model="mlp", depth=6, width=48, steps=20, n_train=64, evaluate=("test",))
CONFIGS = [Config(**{**vars(ONE), "batch_size": 8 + i, "seed": (0, j)}) for i in range(24) for j in range(2)]
MOMENTS = {"fork": 0.8, "spawn": 12.0}  # seconds, within which a kill comes: about so long the grid or its start takes
State = dict[str, tuple[int, int]]
PATIENCE = 60.0  # seconds, after which a driver hangs that should end, and a worker is left behind


@dataclass
class Counts:
    """What was tried and what was found; the last six must be 0."""

    kills: int = 0
    drivers: int = 0
    workers: int = 0
    groups: int = 0
    writing: int = 0
    spawned: int = 0
    pairs: int = 0
    grids: int = 0
    before: int = 0
    after: int = 0
    again: int = 0
    half_written: int = 0
    lost: int = 0
    left_behind: int = 0
    hung: int = 0
    crashed: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        return self.again + self.half_written + self.lost + self.left_behind + self.hung + len(self.crashed)

    def __str__(self) -> str:
        return (
            f"kills tried: {self.kills} ({self.drivers} of a driver, {self.workers} of a worker, {self.groups} of "
            f"both; {self.writing} left a record half way to its file, {self.spawned} with workers started anew, "
            f"{self.pairs} beside a second driver)\ngrids: {self.grids} of {len(CONFIGS)} runs\n"
            f"finished runs before the kills: {self.before}, of them after the kills: {self.after}\n"
            f"run again: {self.again}\nhalf written: {self.half_written}\nlost: {self.lost}\n"
            f"workers left behind: {self.left_behind}\ndrivers that hung: {self.hung}\n"
            f"drivers that crashed: {len(self.crashed)}" + "".join(f"\n  {line}" for line in self.crashed)
        )


class Driver:
    """A process, and a process group, that runs the grid in ``folder``. ``code`` is there when it has ended."""

    def __init__(self, folder: Path, method: str) -> None:
        self.folder, self.method, self.code = folder, method, None
        self.started = time.time()
        self.pid = os.fork()
        if self.pid == 0:
            code = 3
            try:
                os.setsid()
                code = _drive(folder, method)
            finally:
                os._exit(code)

    def ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code is not None

    def writes(self) -> bool:
        """Whether there is half a record that was begun since this driver started."""
        return any(_begun(path) >= self.started for path in self.folder.glob(".*.tmp"))

    def workers(self) -> list[int]:
        """The worker processes, without the helper that looks after semaphores."""
        return [
            pid for pid in _group(self.pid)
            if pid != self.pid and b"resource_tracker" not in _text(Path(f"/proc/{pid}/cmdline"))
        ]  # fmt: skip


def _drive(folder: Path, method: str) -> int:
    """In the driver: run the grid as a user would, and write down where a run is trained that is finished."""
    get_context, trained = multiprocessing.get_context, train.run
    multiprocessing.get_context = lambda _=None: get_context(method)

    def run(configs, device):
        names = [_name(config) for config in configs]
        again = [name for name in names if (folder / f"{name}.json").exists()]
        with (folder / "log").open("a") as log:
            log.writelines(f"again {name}\n" for name in again)
        return trained(configs, device)

    train.run = run
    sys.stderr = (folder / "stderr").open("a")
    try:
        grid.run(CONFIGS, folder, workers=2)
        grid._pool(2).shutdown()
    except InputError as error:
        print(error, file=sys.stderr, flush=True)
        return 2 if "a worker process died" in str(error) else 4
    return 0


def soak(kills: int, seed: int) -> Counts:
    """Start grids, kill their drivers and workers so often, and look at the records after each kill."""
    counts, chance = Counts(), random.Random(seed)
    tqdm.monitor_interval = 0  # no thread beside us: a lock that it held would be held for ever in what we fork
    with tqdm(total=kills, unit="kill", file=sys.stderr) as bar:
        while counts.kills < kills and not counts.bad:
            with tempfile.TemporaryDirectory(prefix="normbook-soak-") as folder:
                _one_grid(Path(folder), kills, counts, chance, bar)
    return counts


def _one_grid(folder: Path, kills: int, counts: Counts, chance: random.Random, bar: tqdm) -> None:
    counts.grids += 1
    done: State = {}
    while len(done) < len(CONFIGS) and not counts.bad:
        method = "spawn" if counts.kills % 10 == 9 else "fork"
        pair = counts.kills % 10 == 4
        drivers = [Driver(folder, method) for _ in range(1 + pair)]
        if counts.kills < kills and (before := _strike(drivers[0], counts, chance)) is not None:
            counts.spawned += method == "spawn"
            counts.pairs += pair
            counts.before += len(before)
            counts.after += len(before.items() & _state(folder).items())
            done |= before
            bar.update()
        for driver in drivers:
            _end(driver, counts)
        counts.writing += drivers[0].writes()
        done = _look(folder, done, counts)
    driver = Driver(folder, "fork")  # all is there: nothing may change
    _end(driver, counts)
    _look(folder, done, counts)
    log = folder / "log"
    counts.again += len(log.read_text().splitlines()) if log.exists() else 0
    left = [path.name for path in folder.glob(".*.tmp")]
    counts.crashed += [f"left in the folder of a whole grid: {left}"] if left else []


def _strike(driver: Driver, counts: Counts, chance: random.Random) -> State | None:
    """Kill the driver, a worker or all of them with SIGKILL. Returns what was finished then, None if the driver was."""
    target, writing = chance.choice(("driver", "worker", "all")), chance.random() < 0.5
    moment = time.monotonic() + chance.uniform(0, MOMENTS[driver.method])
    while not driver.ended():
        now = time.monotonic()
        due = now >= moment
        if writing and now < moment + 1:
            due = due and driver.writes()
        targets = [-driver.pid if target == "all" else driver.pid] if due else []
        if due and target == "worker":
            targets = driver.workers()
        if targets:
            before = _state(driver.folder)
            try:
                os.kill(chance.choice(targets), signal.SIGKILL)
            except ProcessLookupError:  # it ended just now, or has no group yet
                continue
            counts.kills += 1
            counts.workers += target == "worker"
            counts.drivers += target == "driver"
            counts.groups += target == "all"
            return before
        time.sleep(0.0005 if writing else 0.002)
    return None


def _end(driver: Driver, counts: Counts) -> None:
    """Wait until the driver and its workers are gone, as they must be soon."""
    limit = time.monotonic() + PATIENCE
    while not driver.ended() and time.monotonic() < limit:
        time.sleep(0.01)
    counts.hung += not driver.ended()
    if driver.code not in (0, 2, -signal.SIGKILL, None):
        errors = (driver.folder / "stderr").read_text().splitlines()
        counts.crashed.append(f"exit code {driver.code}: {errors[-1] if errors else 'no message'}")
    limit = time.monotonic() + PATIENCE
    while _group(driver.pid) and time.monotonic() < limit:
        time.sleep(0.005)
    left = _group(driver.pid)
    counts.left_behind += len(left)
    for pid in left:
        os.kill(pid, signal.SIGKILL)


def _state(folder: Path) -> State:
    """The records in a folder, with what changes if one is written again."""
    return {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.json")}


def _look(folder: Path, done: State, counts: Counts) -> State:
    """Count what is wrong with the records, where those in ``done`` must be as they were; return all that are there."""
    found = _state(folder)
    for name in found:
        try:
            records.read(folder / f"{name}.json")
        except InputError:
            counts.half_written += 1
    counts.lost += len(done.keys() - found.keys())
    counts.again += sum(found[name] != was for name, was in done.items() if name in found)
    return found


def _name(config: Config) -> str:
    return records.name_of(asdict(config), data.load(config.data).content_hash)


def _begun(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it is a whole record by now
        return 0.0


def _group(group: int) -> list[int]:
    """The processes of a process group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        fields = _text(path).rpartition(b")")[2].split()[:3]
        if fields and fields[0] != b"Z" and int(fields[2]) == group:
            found.append(int(path.parent.name))
    return found


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it ended just now
        return b""


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill grids at random moments and look at what is left.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    if not Path("/proc/self/stat").exists():
        print("soak: looks processes up in /proc, which this system lacks", file=sys.stderr)
        return 2
    tqdm.monitor_interval = 0  # its thread would be lost in a fork
    torch.set_num_threads(1)
    data.load()
    started = time.monotonic()
    counts = soak(options.kills, options.seed)
    print(f"{counts}\nseconds: {time.monotonic() - started:.0f}")
    return 1 if counts.bad else 0


if __name__ == "__main__":
    sys.exit(main())
