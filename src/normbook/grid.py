"""Run what is missing of a list of configurations, in worker processes, and return all their records.

A grid can be killed at any moment and run again: a run whose record is on the disk is not run again, and a record is
there whole or not at all. Two drivers may share a folder: each run is locked while it is computed.

``python -m normbook.grid 5 --scale cifar --out results/cifar/records`` runs a chapter's grid on a bare machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import torch

from normbook import data, norms, records, train
from normbook.errors import ChapterCrashed, InputError, choose
from normbook.progress import bar as _bar
from normbook.records import Record
from normbook.train import Config

MEMBERS = 9  # runs side by side in one network: together they take about half the time of each alone on a CPU

# where to run what is missing: {name: run}, the names whose record is replaced, the folder, how many runs are there
Engine = Callable[[dict[str, Config], frozenset[str], Path, int], None]


def seeds(config: Config, base: int, n: int) -> list[Config]:
    """The same run with ``n`` seeds of base seed ``base``."""
    return [replace(config, seed=(base, i)) for i in range(n)]


def tiny(configs: Sequence[Config]) -> list[Config]:
    """The same experiment at its smallest: one seed and two steps of each kind of run. It judges nothing."""
    small = {replace(c, seed=(c.seed[0], 0), steps=2, epochs=None, batch_size=8, n_train=16) for c in configs}
    return sorted(small, key=lambda c: records.canonical(asdict(c)))


def at_scale(scale: str, **plans: dict[str, Any]) -> dict[str, Any]:
    """What a chapter declares for ``scale``; the tests' tiny scale shrinks the plan of scale quick.

    Raises:
        InputError: the chapter declares nothing for this scale.
    """
    choose("scale", scale, ("quick", "cifar", "paper", "tiny"))
    name = "quick" if scale == "tiny" and "tiny" not in plans else scale
    if name not in plans:
        raise InputError(f"this chapter declares no grid at scale {scale!r} yet (it has: {', '.join(plans)})")
    return plans[name]


def best_lrs(scan: Sequence[Record], runs: Sequence[Config]) -> list[Config]:
    """``runs`` with the learning rate at which the scanned runs of the same kind ended best.

    Best is the lowest mean over the scan's seeds of the validation loss, or of the step loss where the runs are too
    short to be validated. A rate at which a run diverged counts as infinitely bad; where all are, the lowest is taken.
    Rates that were scanned with fewer seeds than others are out. Runs of a kind that was not scanned keep their own.
    """
    found: dict[Config, dict[float, list[float]]] = {}
    for record in scan:
        config = config_of(record)
        value = "validation_loss" if "validation" in config.evaluate else "step_loss"
        loss = float("inf") if "diverged_at" in record["outcome"] else record["final"][value]
        found.setdefault(config.kind(), {}).setdefault(config.lr or 0.0, []).append(loss)
    best = {kind: _best(rates) for kind, rates in found.items()}
    return [replace(c, lr=best.get(c.kind(), c.lr)) for c in runs]


def _best(rates: dict[float, list[float]]) -> float:
    most = max(map(len, rates.values()))
    return min((lr for lr in rates if len(rates[lr]) == most), key=lambda lr: (sum(rates[lr]) / most, lr))


def config_of(record: Record) -> Config:
    """The configuration of a record.

    Raises:
        InputError: it is not one of this version of normbook.
    """
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["config"].items()}
    try:
        if not data.is_name(given.get("data", Config.data)):
            raise InputError(f"unknown data set {given['data']!r}")  # a record never says where to read
        return Config(**given)
    except (TypeError, ValueError) as error:
        name = record.get("name", "without a name")
        raise InputError(f"record {name}: no configuration of this version ({error}); move it away") from None


def run(
    configs: Sequence[Config],
    folder: Path | None = None,
    device: str = "cpu",
    workers: int | None = None,
    refresh: bool = False,
    engine: Engine | None = None,
) -> list[Record]:
    """Return the records of ``configs``, in their order, training those that ``folder`` does not hold yet.

    Without a folder everything is trained anew and nothing is kept. ``refresh`` trains again what is there, where the
    code that computed it has changed. Workers have one thread each; there is one a core, on a GPU one. An ``engine``
    takes their place, as `cluster.connect` gives one; it knows its own device.

    Raises:
        InputError: the folder is missing or read-only, a record in it is damaged, or a worker died.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="normbook-") as temporary:
            return run(configs, Path(temporary), device, workers, engine=engine)
    if not folder.is_dir():
        raise InputError(f"the folder for records {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK):
        raise InputError(f"the folder for records {folder} is read-only")
    names = [records.name_of(asdict(c), data.load(c.data).content_hash) for c in configs]
    there = {name: records.read(folder / f"{name}.json") for name in names if (folder / f"{name}.json").exists()}
    if refresh:
        there = {name: record for name, record in there.items() if record["code"] == records.code_hash()}
    missing = {name: c for name, c in zip(names, configs, strict=True) if name not in there}
    stale = frozenset(missing) if refresh else frozenset()
    if missing and engine:
        engine(missing, stale, folder, len(there))
    elif missing:
        _run_missing(missing, stale, folder, device, workers or (1 if device == "cuda" else _cores()), len(there))
    return [there.get(name) or records.read(folder / f"{name}.json") for name in names]


def compute(function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]]) -> list[Any]:
    """``[function(*task) for task in tasks]`` in the worker processes, for what is measured without training.

    Raises:
        InputError: a worker died.
    """
    with _workers(_cores()) as pool, _bar(total=len(tasks), initial=0) as bar:
        futures = [_submit(pool, function, *task) for task in tasks]
        for _ in as_completed(futures):
            bar.update()
        return [future.result() for future in futures]


@contextlib.contextmanager
def _workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """The pool; where the work does not end well, its workers end with it, and the next grid gets new ones."""
    try:
        yield _pool(number)
    except BaseException as error:
        _pool.cache_clear()
        for child in multiprocessing.active_children():
            child.terminate()
        if isinstance(error, BrokenProcessPool):
            raise InputError(
                "a worker process died (killed, or out of memory?); finished runs are kept, run the same command again"
            ) from None
        said = to_mend(error)
        if said:
            raise said from error
        raise


def to_mend(error: BaseException) -> InputError | None:
    """What a user can do about an error of a worker, in one line; None where it is none of memory or of a file."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        reason = " ".join(str(error).split())[:200]
        return InputError(
            f"a worker ran out of memory ({reason}); finished runs are kept: free some, run the same command again"
        )
    if isinstance(error, OSError) and error.filename:
        return InputError(
            f"{error.filename}: {error.strerror}; finished runs are kept: mend this, run the same command again"
        )
    return None


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Any], *work: Any) -> Future:
    """Hand work to a pool. A worker that this starts never hears Ctrl-C, not even while it imports torch."""
    heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(_placed, dict(data.places), function, *work)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, heard)


def _placed(places: dict[str, Path], function: Callable[..., Any], *work: Any) -> Any:
    """In a worker: work with the datasets where the driver has them."""
    data.places.update(places)
    return function(*work)


def _run_missing(
    missing: dict[str, Config], stale: frozenset[str], folder: Path, device: str, workers: int, done: int
) -> None:
    with _workers(workers) as pool, _bar(total=len(missing) + done, initial=done) as bar:
        futures = [_submit(pool, _work, bundle, stale, folder, device, False) for bundle in bundles(missing)]
        busy: dict[str, Config] = {}
        for future in as_completed(futures):
            left = future.result()
            busy |= {name: missing[name] for name in left[1]}
            bar.update(left[0])
        for bundle in bundles(busy):  # another driver had these: wait for it, or do them if it died
            bar.update(_submit(pool, _work, bundle, stale, folder, device, True).result()[0])


def bundles(configs: dict[str, Config]) -> list[dict[str, Config]]:
    """Group runs that can be trained side by side, at most MEMBERS each, the most expensive first.

    What would be one bundle becomes two halves, so a second core has work. The number of cores plays no part: the
    rounding of a run depends on those beside it.
    """
    groups: dict[Config, list[str]] = {}
    for name, config in configs.items():
        groups.setdefault(config.kind(), []).append(name)
    size = MEMBERS if len(groups) > 1 or len(configs) > MEMBERS else max(1, -(-len(configs) // 2))
    found = [
        {name: configs[name] for name in names[i : i + size]}
        for names in groups.values()
        for i in range(0, len(names), size)
    ]

    def cost(bundle: dict[str, Config]) -> float:
        """Seconds, very roughly: half a millisecond a layer and step, and 5e9 multiplications a second."""
        one = next(iter(bundle.values()))
        steps = one.steps or (one.epochs or 0) * (one.n_train or 1000) // one.batch_size
        # a 3x3 convolution on 8x8 pixels has 16 * width channels; each later stage has a quarter of the pixels
        per_image = one.width**2 * (1 if one.model == "mlp" else 16**2 * 9 * 64)
        return steps * one.depth * (5e-4 + per_image * one.batch_size * len(bundle) / 5e9)

    return sorted(found, key=cost, reverse=True)


def _work(
    bundle: dict[str, Config], stale: frozenset[str], folder: Path, device: str, wait: bool
) -> tuple[int, list[str]]:
    """In a worker: run what of the bundle is missing and not locked; return (number done, names that were locked)."""
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context((folder / ".lock").open("ab"))
        free: list[str] = []
        busy: list[str] = []
        for name in sorted(bundle):  # one order for all drivers, so none waits for the other in a ring
            (free if take(lock.fileno(), name, wait) else busy).append(name)
        todo = [name for name in free if not (folder / f"{name}.json").exists() or name in stale]
        if todo:
            for result in train.run([bundle[name] for name in todo], device):
                records.write(folder, records.make(result))
        return len(free), busy


def take(handle: int, name: str, wait: bool) -> bool:
    """Lock the byte of the lock file that stands for this run; it is free again when the file closes or we die."""
    import fcntl  # Linux and macOS

    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, int(name[:15], 16))
    except BlockingIOError:
        return False
    return True


def leave(handle: int, name: str) -> None:
    """Unlock what `take` has locked."""
    import fcntl

    fcntl.lockf(handle, fcntl.LOCK_UN, 1, int(name[:15], 16))


@cache
def _pool(workers: int) -> ProcessPoolExecutor:
    """Worker processes, kept for the next grid of this process: importing torch takes seconds."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")  # inherited by the workers, before their first operation
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    train.prepare_process(threads=1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(arguments: Iterable[str] | None = None) -> int:
    """Run the grids of a chapter on a machine that has no more than torch, numpy, scipy, scikit-learn and tqdm."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _command(given)
    except (InputError, ChapterCrashed, KeyboardInterrupt) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C finds us ending already
        if "--debug" in given:
            traceback.print_exc()
        print(f"normbook.grid: {'stopped' if stopped else ' '.join(str(error).split())}", file=sys.stderr)
        return 130 if stopped else 3 if isinstance(error, ChapterCrashed) else 2


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m normbook.grid --help")


def _command(arguments: Sequence[str]) -> int:
    from normbook import claims, sweep

    parser = _Parser(prog="python -m normbook.grid", description=main.__doc__)
    parser.add_argument("chapter", help="number or name of the chapter, as 5 or skipinit")
    parser.add_argument("--scale", default="quick")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--norm", default="normbook.norms")
    parser.add_argument("--data", default="", help="data set, as in normbook run")
    parser.add_argument("--out", type=Path, required=True, help="folder for the records; it must exist")
    parser.add_argument("--only", default="", help="a part of the runs, as in depth=16,arm=bn")
    parser.add_argument("--on", default="", help="ray://HOST:PORT or ray: run on a cluster, see book/cluster.md")
    parser.add_argument("--refresh", action="store_true", help="train again what older code computed")
    parser.add_argument("--debug", action="store_true", help="show the traceback of what goes wrong")
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise InputError(f"the base seed {options.seed} is negative: give 0 or more")
    # what a cluster has is no matter of this machine, where the chapter is read
    device = train.resolve_device("auto" if options.on else options.device)
    chapter = claims.load(
        options.chapter, scale=options.scale, seed=options.seed, device=device, precision=options.precision,
        norm=options.norm, data=options.data,
    )  # fmt: skip
    norms.namespace(options.norm, chapter.needs)
    keep = sweep.only(options.only, [*chapter.scan, *chapter.runs])
    with _engine(options.on, options.device) as engine:
        scan, done = sweep.train(chapter, options.out, keep, device=device, refresh=options.refresh, engine=engine)
    print(f"{len(scan) + len(done)} records in {options.out}")
    return 0


def _engine(on: str, device: str) -> contextlib.AbstractContextManager[Engine | None]:
    if not on:
        return contextlib.nullcontext()
    # no import statement: `chapters.stamp` follows those, and no output of a chapter depends on where a grid runs
    return importlib.import_module("normbook.cluster").connect(on, device)


if __name__ == "__main__":
    sys.exit(main())
