"""Run what is missing of a grid on a cluster, with Ray: ``--on ray://HOST:PORT``, or ``--on ray`` for this machine.

Only the driver, the process that `connect` was called in, locks runs and writes records: each bundle as it comes back,
whole or not at all. So nodes need no file system in common, and what is finished stays when a worker, a node or the
driver dies. Ray gives a bundle whose worker or node died to another one. Nodes have the same normbook installed.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normbook import data, grid, records, train
from normbook.data import cache as caches
from normbook.data.sources import default_folder
from normbook.errors import InputError, choose
from normbook.progress import bar
from normbook.records import Record
from normbook.train import Config
from normbook.train.machine import DEVICES

RETRIES = 3  # times that a bundle is begun again after its worker or its node died
AHEAD = 2  # bundles handed out, over those that the cluster computes at once: these are locked for other drivers
PATIENCE = 1.0  # seconds between two looks at the cluster's size, and at what other drivers have locked
BUSY = 2e8  # multiplications of one layer in one step, forward, from which on a bundle has a GPU to itself

Place = tuple[Path, str, list[Any]]  # of a dataset: where the driver has it, its content hash, [its object in Ray]


@contextlib.contextmanager
def connect(on: str, device: str = "auto") -> Iterator[grid.Engine]:
    """Join a cluster and give what `grid.run` takes as its ``engine``. ``auto`` is the GPU where a node has one.

    Raises:
        InputError: ``on`` is no address, Ray is not installed, no cluster answers, or it has no GPU for ``cuda``.
    """
    if on != "ray" and not re.fullmatch(r"ray://\S+:\d+", on):
        raise InputError(f"--on {on!r}: give ray://HOST:PORT of a cluster, or ray for this machine alone")
    choose("device", device, DEVICES)
    ray = _ray()
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        try:
            if on == "ray":  # "local": a new one, whatever else runs here and whatever RAY_ADDRESS says
                ray.init("local", include_dashboard=False, **quiet)
            else:
                ray.init(on, **quiet)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"no cluster that can be used answers at {on} ({reason})") from None
        gpu = ray.cluster_resources().get("GPU", 0) > 0
        if device == "cuda" and not gpu:
            raise InputError(f"device 'cuda' asked for, but no node of {on} has a GPU; use --device auto or cpu")
        yield Cluster(ray, on, "cuda" if gpu and device != "cpu" else "cpu").run
    finally:
        ray.shutdown()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise a Ray started here reports to its makers
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise InputError("--on needs Ray: pip install --require-hashes -r requirements-cluster.lock") from None


@dataclass
class Cluster:
    """A cluster that we have joined: ``on`` is its address, ``device`` what its nodes compute on."""

    ray: Any
    on: str
    device: str
    places: dict[str, Place] = field(default_factory=dict)
    tasks: dict[float, Any] = field(default_factory=dict)  # `work` as Ray has it, by the part of a GPU that it takes

    def run(self, missing: dict[str, Config], stale: frozenset[str], folder: Path, done: int) -> None:
        """Run what is missing and write each record as it comes; `grid.Engine` says what is given.

        Raises:
            InputError: bad input found by a node, a bundle whose workers died again and again, a lost connection, or
                a folder that cannot be written.
        """
        coming, later = deque(grid.bundles(missing)), deque[dict[str, Config]]()
        flying: dict[Any, dict[str, Config]] = {}
        looked, room, capacity = float("-inf"), 0.0, 0.0
        with (
            self._plainly(),
            (folder / ".lock").open("ab") as lock,
            bar(total=len(missing) + done, initial=done) as progress,
        ):
            while coming or later or flying:
                if time.monotonic() >= looked + PATIENCE:
                    looked, before, capacity = time.monotonic(), capacity, AHEAD * self._size()
                    room += capacity - before
                    if not coming:  # what other drivers had: their records may be there, or they may have died
                        coming, later = later, coming
                while coming and room > 0:
                    free, held = _taken(lock.fileno(), coming.popleft())
                    if held:
                        later.append(held)
                    todo = {name: c for name, c in free.items() if name in stale or not _path(folder, name).exists()}
                    for name in free.keys() - todo.keys():
                        grid.leave(lock.fileno(), name)
                        progress.update()
                    if todo:
                        flying[self._submit(todo)] = todo
                        room -= self._need(todo)
                if later and not flying:
                    time.sleep(PATIENCE)
                for ref in self.ray.wait(list(flying), timeout=PATIENCE)[0] if flying else ():
                    bundle = flying.pop(ref)
                    room += self._need(bundle)
                    for record in self.ray.get(ref):
                        if record["name"] not in bundle:
                            raise InputError(f"a node of {self.on} has other images than this machine; remove them")
                        records.write(folder, record)
                        grid.leave(lock.fileno(), record["name"])
                    progress.update(len(bundle))

    def _need(self, bundle: dict[str, Config]) -> float:
        """How many GPUs, or cores, a bundle takes."""
        return gpus(bundle) if self.device == "cuda" else 1.0

    def _size(self) -> float:
        """How many GPUs, or cores, the cluster has now; 1 where it is still to get them."""
        return max(1.0, self.ray.cluster_resources().get("GPU" if self.device == "cuda" else "CPU", 0))

    def _submit(self, bundle: dict[str, Config]) -> Any:
        name = next(iter(bundle.values())).data
        if name != "digits" and name not in self.places:
            self.places[name] = self._place(name)
        part = self._need(bundle) if self.device == "cuda" else 0
        if part not in self.tasks:
            # not by .options(): Ray would use a process for the next bundle too, on another GPU, which torch cannot
            self.tasks[part] = self.ray.remote(num_cpus=1, num_gpus=part, max_retries=RETRIES)(work)
        return self.tasks[part].remote(bundle, self.device, records.code_hash(), self.places.get(name))

    def _place(self, name: str) -> Place:
        """Put a dataset's decoded images [n, 3, h, w] (uint8) into Ray's store, from where a node takes them once."""
        dataset, path = data.load(name), data.places[name]
        images = caches.Images(
            "imagefolder" if name.startswith("imagefolder") else name.partition("@")[0],
            (),  # the classes' names: no run knows them
            caches.counts_of(path),
            caches.stored(path),
        )
        return path, dataset.content_hash, [self.ray.put(images)]

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Say in one line what goes wrong in a cluster and can be mended."""
        try:
            yield
        except Exception as error:
            said = self._said(error)
            if said is error:
                raise
            raise said from error

    def _said(self, error: Exception) -> Exception:
        kept, reason = "finished runs are kept, run the same command again", " ".join(str(error).split())[:200]
        # what was raised on a node is the cause of a RayTaskError, which is of the cause's class too
        on_node = isinstance(error, self.ray.exceptions.RayTaskError)
        cause: Exception = error.cause if on_node else error  # type: ignore[attr-defined]
        absent = re.search(r"No module named '[\w.]+'", str(error))
        if isinstance(cause, InputError):
            return cause
        if absent:
            return InputError(f"a node of {self.on} lacks a module ({absent[0]}); install normbook on all of them")
        if on_node:
            return grid.to_mend(cause) or cause
        if isinstance(error, self.ray.exceptions.RayError):
            return InputError(f"{self.on} has lost a bundle of runs, more than {RETRIES} times ({reason}); {kept}")
        if isinstance(error, ConnectionError):
            return InputError(f"the connection to {self.on} is lost ({reason}); {kept}")
        return grid.to_mend(error) or error


def gpus(bundle: dict[str, Config]) -> float:
    """The part of a GPU that a bundle of runs takes: 1/8, 1/4, 1/2 or 1.

    It is what one layer multiplies in one step, forward, over BUSY, rounded up: a layer that multiplies less is done
    before the next one has been launched. Depth plays no part, since layers come one after the other.
    """
    one = next(iter(bundle.values()))
    _, height, width = data.load(one.data).shape
    # the first stage's 3x3 convolutions; a later stage has twice the channels and a quarter of the pixels
    per_image = one.width**2 if one.model == "mlp" else 9 * (16 * one.width) ** 2 * height * width
    busy = len(bundle) * one.batch_size * per_image / BUSY
    return next((part for part in (1 / 8, 1 / 4, 1 / 2) if busy <= part), 1.0)


def work(bundle: dict[str, Config], device: str, code: str, place: Place | None) -> list[Record]:
    """In a worker of the cluster: the records of a bundle of runs. Nothing of them is written here.

    Raises:
        InputError: this node has another version of normbook than the driver, or as `train.run`.
    """
    if records.code_hash() != code:
        raise InputError(f"node {platform.node()} has other code of normbook than this machine: install the same there")
    train.prepare_process(threads=1)
    if place:
        _keep(next(iter(bundle.values())).data, *place)
    return [records.make(result) for result in train.run([bundle[name] for name in sorted(bundle)], device)]


def _keep(name: str, path: Path, content_hash: str, images: list[Any]) -> None:
    """In a worker: let this process know where the node has a dataset, after writing it there where nobody has yet."""
    if not os.access(path.with_suffix(".json"), os.R_OK):  # else this is the driver's machine, or shares its disk
        size = name.partition("@")[2]
        path = caches.made(
            default_folder() / f"cluster-{content_hash}.npy",
            int(size) if size else None,
            lambda: _ray().get(images[0]),  # in a list: Ray would bring it to each worker unasked otherwise
        )
    data.places[name] = path


def _taken(lock: int, bundle: dict[str, Config]) -> tuple[dict[str, Config], dict[str, Config]]:
    """The runs of a bundle that we have locked now, and those that another driver has locked."""
    free = [name for name in sorted(bundle) if grid.take(lock, name, wait=False)]
    return {name: bundle[name] for name in free}, {name: c for name, c in bundle.items() if name not in free}


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"
