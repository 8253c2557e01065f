"""Copy the package, plant one fault in the copy, run tests on it, and restore it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults import FAMILIES, TORCH, Fault

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "normbook"
LIMIT = 180  # seconds a fault; the slowest suite takes about ten on an idle machine
# what tests import, brought once into the server that the processes of the tests are forked from: not the package
PRELOAD = (
    "torch", "torch.optim.adam", "torch.optim.sgd", "sklearn.datasets", "sklearn.model_selection", "scipy.stats",
    "hypothesis.strategies", "nbformat", "pytest", "tqdm",
)  # fmt: skip
LISTED = 0.05  # largest share of the faults that may survive with a reason


class BadList(ValueError):
    """The list of faults, or the suite without any fault, is not what a run can be made of."""


@dataclass(frozen=True)
class Outcome:
    """How one fault came out: the first test that failed (empty: it survived), and how long that took."""

    fault: Fault
    caught_by: str
    seconds: float

    @property
    def unlisted(self) -> bool:
        """Whether it survived without a reason."""
        return not self.caught_by and not self.fault.survivor


def complaints(faults: Sequence[Fault]) -> list[str]:
    """What is wrong with a list of faults, a line each."""
    found = []
    ids = [fault.id for fault in faults]
    found += [f"{i}: there twice" for i in sorted({i for i in ids if ids.count(i) > 1})]
    for fault in faults:
        if fault.family not in FAMILIES:
            found.append(f"{fault.id}: no family {fault.family!r}")
        if fault.file != TORCH:
            path = PACKAGE / fault.file
            count = path.read_text(encoding="utf-8").count(fault.old) if path.is_file() else 0
            if count != 1:
                found.append(f"{fault.id}: its text is {count} times in src/normbook/{fault.file}, not once")
        if fault.old == fault.new:
            found.append(f"{fault.id}: changes nothing")
        found += [f"{fault.id}: no test {node}" for node in fault.suite if not _exists(node)]
        if not fault.suite:
            found.append(f"{fault.id}: no test is named")
    survivors = sum(bool(fault.survivor) for fault in faults)
    if survivors > LISTED * len(faults):
        found.append(f"{survivors} of {len(faults)} faults are listed as survivors: more than {LISTED:.0%}")
    return found


def _exists(node: str) -> bool:
    file, _, name = node.partition("::")
    path = ROOT / file
    return path.is_file() and (not name or f"def {name.partition('[')[0]}(" in path.read_text(encoding="utf-8"))


class Copy:
    """A copy of the package in ``folder``, as ``folder/src/normbook``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.source = self.folder / "src"
        # without bytecode: two versions of a file of one size and second would be one to Python
        shutil.copytree(PACKAGE, self.source / "normbook", ignore=shutil.ignore_patterns("__pycache__"))

    @contextlib.contextmanager
    def planted(self, fault: Fault) -> Iterator[None]:
        """Within, the copy has the fault, unless it is one under torch."""
        if fault.file == TORCH:
            yield
            return
        path = self.source / "normbook" / fault.file
        before = path.read_text(encoding="utf-8")
        if before.count(fault.old) != 1:
            raise BadList(f"{fault.id}: its text is not once in {fault.file}")
        path.write_text(before.replace(fault.old, fault.new), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(before, encoding="utf-8")

    def run(self, suite: Sequence[str], limit: float | None, torch: Fault | None = None) -> str:
        """Run tests on the copy, with a fault under torch; return the first one that failed, "" if none did.

        What takes longer than ``limit`` seconds is ended and counts as failed: a hang is seen by whoever waits.

        Raises:
            BadList: the tests could not be run at all.
        """
        log = self.folder / "output"
        log.write_text("", encoding="utf-8")  # not the output of the last run
        process = multiprocessing.get_context("forkserver").Process(
            target=_test, args=(self.folder, self.source, list(suite), log, torch)
        )
        process.start()
        try:
            process.join(limit)
            late = process.is_alive()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)  # with the workers that its tests started
            process.join()
        if late:
            return f"time limit: no end after {limit:g} s"
        if process.exitcode == 0:
            return ""
        output = log.read_text(encoding="utf-8", errors="replace")
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", output, re.M)
        if process.exitcode != 1 or not failed:  # not a failed test: nothing was collected, or it does not import
            raise BadList(f"pytest ended with {process.exitcode}:\n{output.strip()[-3000:]}")
        return failed[0]


def _test(folder: Path, source: Path, suite: list[str], log: Path, torch: Fault | None) -> None:
    """In a new process: plant a fault under torch, run tests, and exit as pytest does."""
    os.setsid()
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(ROOT)
    os.environ["NORMBOOK_COPY"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join((str(source), str(ROOT / "tests")))  # of processes that tests start
    os.environ["PYTHONDONTWRITEBYTECODE"] = os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.dont_write_bytecode = True
    if torch is not None:
        _plant_in_torch(torch)
    import pytest

    sys.exit(
        pytest.main(
            ["-x", "-p", "faults.where", "--tb=line", "-c", str(ROOT / "pyproject.toml"), "-o", f"pythonpath={source}"]
            + suite
        )
    )


def _plant_in_torch(fault: Fault) -> None:
    """Put the fault in the place of a function of torch, before the package is imported."""
    import torch

    path, _, name = fault.old.rpartition(".")
    owner = pkgutil.resolve_name(path)
    setattr(owner, name, eval(fault.new, {"torch": torch, "honest": getattr(owner, name)}))


def plant(copy: Copy, fault: Fault) -> Outcome:
    """Plant one fault, run its suite, and take the fault out again."""
    started = time.monotonic()
    with copy.planted(fault):
        try:
            caught_by = copy.run(fault.suite, LIMIT, fault if fault.file == TORCH else None)
        except BadList as error:
            raise BadList(f"{fault.id}: {error}") from None
    return Outcome(fault, caught_by, time.monotonic() - started)
