"""What the machine can do, what a step of a net costs, and the memory that a way of training takes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case, images, known_to_normbook
from benchmarks.contenders import WAYS
from normbook.train import prepare_process
from normbook.train.machine import peak_memory_mb

PEAK_REPEATS = 5


def peaks(device: str) -> dict[str, float]:
    """Best of 5: a square matmul in fp32 and bf16 (GFLOP/s) and a copy (GB/s, read and written)."""
    n, numbers = (8192, 2**28) if device == "cuda" else (2048, 2**26)  # copies of 1 GiB and 256 MiB

    def seconds(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(PEAK_REPEATS + 1):
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times[1:])  # a peak: what else the machine does takes from it

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a = torch.randn(n, n, device=device).to(dtype)
        found[f"matmul_{name}_gflops"] = 2 * n**3 / seconds(lambda a=a: a @ a) / 1e9  # type: ignore[misc]
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    found["copy_gb_per_s"] = 2 * 4 * numbers / seconds(lambda: target.copy_(source)) / 1e9
    return found


def cost(case: Case) -> tuple[float, float]:
    """FLOP and bytes of an image's step in fp32, counted on the textbook net.

    FLOP: 2 a multiplication, forward and backward, of convolutions and matrix products. Bytes: what autograd saves,
    written once and read once; so a lower bound of the traffic.
    """
    few = 4  # images; both are proportional to it
    pixels = images(case.size).pixels[:few].float()
    net = case.net.textbook(pixels.shape[1], case.size)
    known = {p.untyped_storage().data_ptr() for p in (*net.parameters(), *net.buffers())}
    saved: dict[int, Tensor] = {}  # by storage; held, so that no address comes twice

    def pack(t: Tensor) -> Tensor:
        pointer = t.untyped_storage().data_ptr()
        if pointer not in known:
            saved[pointer] = t
        return t

    with FlopCounterMode(display=False) as counter:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = net(pixels).sum()
        size = sum(t.untyped_storage().nbytes() for t in saved.values())
        loss.backward()
    return counter.get_total_flops() / few, 2 * size / few


def _resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _take_steps(pipe: Connection, case: Case, way: str, device: str, precision: str, threads: int) -> None:
    os.setpgid(0, 0)  # a group of its own, so that compilers it starts end with it
    warnings.simplefilter("ignore")
    prepare_process(threads)
    before = 0.0 if device == "cuda" else _resident_mb()
    with known_to_normbook():
        contender = WAYS[way](case, device, precision)
        first = contender.train(1)
        contender.train(1)
        pipe.send((first, peak_memory_mb(device) - before))
        contender.close()


def alone(case: Case, way: str, device: str, precision: str, limit: float) -> tuple[float, float]:
    """Seconds of the first step, and peak MiB of two steps, in a process of their own.

    A process's peak never falls, so each way gets a process. The peak is counted above torch and torchvision imported,
    with the compiler, without the worker processes of a loader. On a GPU it is what torch allocated there.

    Raises:
        TimeoutError: two steps took longer than ``limit`` seconds.
        RuntimeError: the process ended without an answer.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "torch._dynamo", "benchmarks.contenders"])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_take_steps, args=(theirs, case, way, device, precision, torch.get_num_threads()))
    child.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            raise TimeoutError(f"two steps, with compiling, took over {limit:.0f} s")
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"in a process of its own it ended with code {child.exitcode}") from None
    finally:
        child.join(10)
        if child.is_alive() and child.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.join()
