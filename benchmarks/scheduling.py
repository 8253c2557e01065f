"""``python -m benchmarks.scheduling --on ray``: what a grid of 10,000 runs costs that compute nothing.

Without ``--on`` it measures what every engine shares: planning, and the records, each written whole and read back. Runs
of one kind are handed out nine at a time; ``--kinds`` makes each a bundle of its own, the most there is to hand out.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from normbook import cluster, data, grid, records, train
from normbook.train import Config

ONE = Config("none", lr=0.1, model="mlp", depth=4, width=8, steps=1, n_train=64, evaluate=())


def configurations(number: int, kinds: bool) -> list[Config]:
    """So many tiny runs, of one kind, or each of a kind of its own."""
    return [replace(ONE, width=1 + i) if kinds else replace(ONE, seed=(0, i)) for i in range(number)]


def nothing(bundle: dict[str, Config], device: str, code: str, template: dict[str, Any]) -> list[records.Record]:
    """In a worker: records as if the bundle had been run."""
    return [template | {"config": asdict(config), "name": name} for name, config in bundle.items()]


@contextlib.contextmanager
def engine(on: str, template: dict[str, Any]) -> Iterator[grid.Engine]:
    """The cluster with `nothing` to do for `cluster.work`; without ``on`` a loop in this process."""

    def here(missing: dict[str, Config], stale: frozenset[str], folder: Path, done: int) -> None:
        for bundle in grid.bundles(missing):
            for record in nothing(bundle, "cpu", "", template):
                records.write(folder, record)

    if not on:
        yield here
        return

    def work(bundle: dict[str, Config], device: str, code: str, place: Any) -> list[records.Record]:
        return nothing(bundle, device, code, template)

    cluster.work = work
    with cluster.connect(on, "cpu") as found:
        yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", default="", help="ray://HOST:PORT, or ray for this machine")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--kinds", action="store_true", help="each run a bundle of its own")
    options = parser.parse_args()
    [result] = train.run([ONE])
    template = records.make(result)
    started = time.perf_counter()
    configs = configurations(options.runs, options.kinds)
    declared = time.perf_counter()
    names = [records.name_of(asdict(c), data.load(c.data).content_hash) for c in configs]
    bundles = grid.bundles(dict(zip(names, configs, strict=True)))
    planned = time.perf_counter()
    print(f"declared in {declared - started:.2f} s, planned in {planned - declared:.2f} s: {len(bundles)} bundles")
    with tempfile.TemporaryDirectory() as folder, engine(options.on, template) as found:
        started = time.perf_counter()
        grid.run(configs, Path(folder), engine=found)
        seconds = time.perf_counter() - started
    each = 1000 * seconds / options.runs
    print(f"{options.runs} runs on {options.on or 'nothing'}: {seconds:.1f} s, {each:.2f} ms a run")


if __name__ == "__main__":
    main()
