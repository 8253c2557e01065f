"""Take the readings: all ways to train a case in turn, repeat by repeat, and grids of small runs."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks import machine
from benchmarks.cases import GRIDS, OURS, P1, P2, Case, grid_configs, known_to_normbook
from benchmarks.contenders import WAYS, Contender
from normbook import grid, train

REPEATS = 5
REPEAT_SECONDS = (0.5, 3.0)  # of the fastest at least, of the slowest at most (a single step may last longer)
ALONE_SECONDS = 120.0  # a net that compiles longer is given up, so that all of it ends within 20 minutes


@dataclass
class Reading:
    """One way to train one case: ``seconds`` of each repeat of ``steps`` steps, or the ``error`` that stands for it.

    ``first_step`` (seconds) is the first step of all, with compiling and capturing; it is in no repeat.
    """

    case: str
    batch: int
    way: str
    precision: str = "fp32"
    steps: int = 0
    seconds: list[float] = field(default_factory=list)
    first_step: float | None = None
    memory_mb: float | None = None
    error: str = ""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return f"{error.name} is not installed: pip install -e .[bench]"
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).split("\n")
    return f"{type(error).__name__}: {lines[0][:160]}"


def steps_for(step_seconds: list[float]) -> int:
    """Steps of a repeat, the same for all ways, from the seconds that a step of each takes."""
    least, most = REPEAT_SECONDS
    return max(1, min(math.ceil(least / min(step_seconds)), int(most / max(step_seconds))))


def _step_seconds(contender: Contender) -> float:
    """Seconds of a step after the first: the best of two, or where it is short of three times ten."""
    seconds = contender.train(1)
    if seconds > 0.1:
        return min(seconds, contender.train(1))
    return min(contender.train(10) / 10 for _ in range(3))


def _warm(case: Case, way: str, device: str, precisions: list[str]) -> tuple[Contender, float]:
    """A contender after its untimed warm-up, in the fastest of ``precisions``, and the seconds of its step."""
    tried = []
    for precision in precisions:
        contender = WAYS[way](case, device, precision)
        contender.train(1)
        tried.append((contender, _step_seconds(contender)))
    return min(tried, key=lambda pair: pair[1])


def measure(case: Case, device: str) -> list[Reading]:
    """All ways to train ``case``, interleaved: each repeat runs every way once."""
    readings = {way: Reading(case.name, case.batch, way) for way in WAYS}
    ready: dict[str, Contender] = {}
    step_seconds: dict[str, float] = {}
    for way, reading in readings.items():
        try:
            # bf16 where it pays on this machine: P1 is tried in both, P2 takes P1's
            precisions = ["fp32"] if way != P2 else [readings[P1].precision]
            if way == P1 and train.bf16_trains(device):
                precisions.append("bf16")
            if way == P2:  # compiled in a process that can be ended; the next compilation finds its files
                reading.first_step, reading.memory_mb = machine.alone(case, way, device, precisions[0], ALONE_SECONDS)
            ready[way], step_seconds[way] = _warm(case, way, device, precisions)
            reading.precision = ready[way].precision
            if way != P2:
                with contextlib.suppress(TimeoutError):  # a slow start, where others load the machine
                    found = machine.alone(case, way, device, reading.precision, ALONE_SECONDS)
                    reading.first_step, reading.memory_mb = found
        except Exception as error:  # one way that fails is a row of the table, not the end of it
            reading.error = one_line(error)
            ready.pop(way, None)
            step_seconds.pop(way, None)
        say(f"  {way}: {reading.error or f'{step_seconds[way] * 1e3:.1f} ms a step'}")
    steps = steps_for(list(step_seconds.values())) if ready else 0
    for _ in range(REPEATS):
        for way, contender in ready.items():
            readings[way].steps = steps
            readings[way].seconds.append(contender.train(steps))
    for way, contender in ready.items():
        contender.close()
        say(f"  {way}: {case.batch * steps / median(readings[way].seconds):,.0f} img/s")
    ready.clear()
    gc.collect()
    return list(readings.values())


def measure_grids(device: str) -> list[dict[str, Any]]:
    """Each grid of 8 small runs: the runs in turn with all threads, and `normbook.grid.run` with its workers.

    ``start_seconds``: what the first grid took above the median of the others, to start the worker processes.
    """
    found: list[dict[str, Any]] = []
    for name, arms, seeds in GRIDS:
        in_turn, workers, first = [], [], None
        for repeat in range(REPEATS + 1):
            configs = grid_configs(arms, seeds, repeat)
            start = time.perf_counter()
            for config in configs:
                train.run([config], device)
            middle = time.perf_counter()
            grid.run(configs, device=device)
            end = time.perf_counter()
            if repeat == 0:
                first = end - middle
                continue
            in_turn.append(middle - start)
            workers.append(end - middle)
        found.append({"name": name, "in_turn": in_turn, "workers": workers, "first": first})
    return found


def measure_all(cases: tuple[Case, ...], device: str) -> dict[str, Any]:
    """All readings of this machine, as the report takes them."""
    prepare(device)
    start, load = time.time(), os.getloadavg()
    say("peaks")
    result: dict[str, Any] = {"peaks": machine.peaks(device), "cases": [], "readings": []}
    with known_to_normbook():
        for i, case in enumerate(cases, 1):
            say(f"{case.name} ({i} of {len(cases)})")
            flop, traffic = machine.cost(case)
            result["cases"].append(
                {"name": case.name, "net": case.net.name, "flop_per_image": flop, "bytes_per_image": traffic}
            )
            result["readings"] += [vars(r) for r in measure(case, device)]
    say(f"grids of 8 runs, {OURS}")
    result["grids"] = measure_grids(device)  # last: it sets OMP_NUM_THREADS for what this process starts
    return result | {"start": start, "minutes": (time.time() - start) / 60, "load": [load, os.getloadavg()]}


def prepare(device: str) -> None:
    """The same process settings for all: as many threads as torch takes by itself, no denormals."""
    train.prepare_process(torch.get_num_threads())
