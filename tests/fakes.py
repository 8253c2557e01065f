"""A small chapter with plans for all scales, records never trained, image folders, a CUDA graph that needs no GPU."""

import contextlib
import json
from concurrent.futures import Future
from dataclasses import asdict

import nbformat
import numpy as np
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from normbook import chapters, claims, data, grid, records

PARAMETERS = "scale = 'quick'\nseed = 0\ndevice = 'auto'\nprecision = 'auto'\nnorm = 'normbook.norms'\ndata = ''"
DECLARE = """
from dataclasses import replace
from normbook import grid, sweep, train
from normbook.claims import Claim
from normbook.train import Config

SMALL = dict(depth=10, width=0.25, batch_size=8, n_train=16, steps=2, evaluate=())
PLAN = grid.at_scale(
    scale,
    quick={"scan": (1000,), "closer": ()},
    cifar={"scan": (1000,), "closer": (1001,)},
    paper={"scan": range(5), "closer": ()},
)
KINDS = {arm: Config(arm, **SMALL, norm=norm, data=sweep.dataset("digits", data)) for arm in ("batch_norm", "none")}
SCAN = [replace(c, lr=lr, seed=(seed, i)) for c in KINDS.values() for lr in (0.1, 0.2, 0.4) for i in PLAN["scan"]]
CLOSER = [(seed, i) for i in PLAN["closer"]]
RUNS = [run for c in KINDS.values() for run in grid.seeds(c, seed, 5)]
CLAIMS = [
    Claim("XX-1", "There is a loss", "Somebody 2020", "loss", "nats", (0, None), "a negative loss", 5, paper_value=2.0),
    Claim("XX-2", "There is one without a norm", "Somebody 2020", "loss", "nats", (0, None), "a negative loss", 5),
]
"""
RUN = """
import math
scan, records = sweep.results(SCAN, RUNS, CLOSER, scale, "cpu")
def losses(arm):
    own = {r["config"]["seed"][1]: r["final"]["step_loss"] for r in records if r["config"]["arm"] == arm}
    return [own.get(i, math.nan) for i in range(5)]
"""
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
JUDGE = """
values = {"XX-1": losses("batch_norm"), "XX-2": losses("none")}
from normbook import claims
verdicts = claims.judge(CLAIMS, values, {key: [-x for x in each] for key, each in values.items()}, scale=scale)
verdicts
"""


def notebook():
    """The text of the chapter's file."""
    cells = [
        ("markdown", "# 5. A small chapter", []), ("code", PARAMETERS, ["parameters"]), ("code", DECLARE, ["declare"]),
        ("code", RUN, []), ("code", "", ["key-figure"]), ("code", JUDGE, []),
        ("markdown", "<!-- claim card -->", []), ("markdown", "<!-- recorded runs -->", []),
    ]  # fmt: skip
    content = [
        {"cell_type": kind, "id": f"c{i}", "metadata": {"tags": tags}, "source": text.strip().splitlines(True)}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for i, (kind, text, tags) in enumerate(cells)
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def chapter(monkeypatch, folder, text=None):
    """Make this chapter, as 05_small, the only one; ``folder`` is then the checkout. It runs in this process."""
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "05_small.ipynb").write_text(text or notebook())
    (folder / "pyproject.toml").touch()
    monkeypatch.setattr(claims, "ROOT", folder)
    monkeypatch.setattr(chapters, "execute", execute)
    work_here(monkeypatch)
    return claims.find(5)


def execute(path, folder, parameters):
    """What `chapters.execute` does, without a kernel."""
    folder.mkdir(parents=True, exist_ok=True)
    ran, space = nbformat.reads(path.read_text(), as_version=4), {}
    with contextlib.chdir(folder):
        for cell in ran.cells:
            tags = cell.metadata.get("tags", [])
            if "key-figure" in tags:
                told = {"image/png": {"alt": f"a dot at scale {space['scale']}"}}
                cell.outputs = [nbformat.v4.new_output("display_data", {"image/png": PNG}, metadata=told)]
            elif cell.cell_type == "code":
                exec(cell.source, space)
                space |= parameters if "parameters" in tags else {}
    ran.cells[-3].outputs = [nbformat.v4.new_output("execute_result", space["verdicts"]._repr_mimebundle_())]
    ran.metadata["normbook"] = {
        "stamp": chapters.stamp(path), "scale": space["scale"], "device": "this cpu", "versions": {"torch": "2"},
    }  # fmt: skip
    nbformat.write(ran, folder / "notebook.ipynb")
    return chapters.read(folder / "notebook.ipynb")


class Here:
    """A pool that does its work in this process at once."""

    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future


def pool(workers):
    return Here()


pool.cache_clear = lambda: None


def work_here(monkeypatch):
    """Let grids work in this process. Work that fails ends every worker: no pool is kept that has lost its own."""
    grid._pool.cache_clear()
    monkeypatch.setattr(grid, "_pool", pool)


def record(config, loss=2.0, **changes):
    """A finished run's record, or with ``loss`` None that of a diverged one."""
    ended = {"outcome": {"finished": True}, "final": {"step_loss": loss, "validation_loss": loss}}
    lost = {"outcome": {"diverged_at": 3}, "final": {}}
    return records.make({
        "config": asdict(config), "data_hash": data.load("digits").content_hash, "curves": {"train_loss": [[1, 2.5]]},
        "device": "some cpu", "threads": 1, "members": 1, "compiled": False, "versions": {"torch": "2"},
        "seconds": 2.0, "peak_memory_mb": 100.0, "start": 1e9, "end": 1e9 + 2, **(lost if loss is None else ended),
        **changes,
    })  # fmt: skip


def keep(folder, configs, loss=lambda config: 2.0, **changes):
    """Write records of ``configs`` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for config in configs:
        records.write(folder, record(config, loss(config), **changes))


GRIDS = """from dataclasses import replace
from normbook import grid, train
from normbook.claims import Claim
from normbook.train import Config
PLAN = grid.at_scale(scale, quick={"steps": 2}, cifar={"steps": 3})
ONE = Config("none", depth=10, width=0.25, batch_size=8, n_train=16, norm=norm, **PLAN)
SCAN = [replace(ONE, lr=lr, seed=(seed, 1000)) for lr in (0.1, 0.2)]
RUNS = grid.seeds(ONE, seed, 2)
DEVICE = train.resolve_device(device)
CLAIMS = []
"""


def grids(monkeypatch, folder):
    """A chapter of two scanned runs and two more at scales quick and cifar, in a folder that is returned."""

    def cell(kind, text, *tags):
        return {"cell_type": kind, "metadata": {"tags": list(tags)}, "source": text.splitlines(True)}

    cells = [cell("markdown", "# X"), cell("code", PARAMETERS, "parameters"), cell("code", GRIDS, "declare")]
    for name in ("notebooks", "out", "results"):
        (folder / name).mkdir()
    (folder / "notebooks" / "05_skipinit.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(claims, "ROOT", folder)
    return folder


COUNTS = {"train": {"cat": 10, "dog": 25}, "test": {"cat": 3, "dog": 4}}


def picture(number, height=6, width=6):
    """An image that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[0, 0] = number // 256, number % 256, 7
    return pixels


def laid_out(root, counts=COUNTS, height=6, width=6):
    """An image folder of PNG files; its pixels by file name."""
    found = {}
    for part, classes in counts.items():
        for label, n in classes.items():
            (root / part / label).mkdir(parents=True)
            for i in range(n):
                name = f"{part}/{label}/{i:03}.png"
                found[name] = picture(len(found), height, width)
                Image.fromarray(found[name]).save(root / name)
    return found


class Tape(TorchDispatchMode):
    """What a CUDA graph does, on a CPU: it notes the operations under it, with their tensors, for `replay`.

    As in a graph, tensors stay where they are, what Python decided is frozen, and the host can read no number.
    """

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, operation, kinds, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal"):
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for t in tree_leaves((args, kwargs)):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.made:
                self.before.setdefault(t.untyped_storage().data_ptr(), (t, t.clone()))
        found = operation(*args, **(kwargs or {}))
        fresh = [t for t in tree_leaves(found) if isinstance(t, torch.Tensor)]
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        self.made |= {t.untyped_storage().data_ptr() for t in fresh} - set(self.before)
        self.calls.append(
            (operation, args, kwargs or {}, [t for t in fresh if t.untyped_storage().data_ptr() not in known])
        )
        return found

    def replay(self):
        with torch.no_grad():
            for operation, args, kwargs, own in self.calls:
                again = [t for t in tree_leaves(operation(*args, **kwargs)) if isinstance(t, torch.Tensor)]
                for old, new in zip(own, again if own else (), strict=True):
                    old.copy_(new)


def recorded(function, generators):
    """As `normbook.train.capture.record`: what the function did is undone, so that recording does nothing."""
    states = [g.get_state() for g in generators]
    with (tape := Tape()):
        result = function()
    with torch.no_grad():
        for tensor, old in tape.before.values():
            tensor.copy_(old)
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return result, tape.replay
