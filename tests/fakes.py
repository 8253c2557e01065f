"""A small chapter with plans for all scales, and records that were never trained."""

import json
from dataclasses import asdict

from normbook import data, records

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
FIGURE = """
from IPython.display import display
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
display({"image/png": PNG, "text/plain": "a dot"}, metadata={"image/png": {"alt": "one red dot"}}, raw=True)
"""
JUDGE = """
from normbook import claims
values = {"XX-1": losses("batch_norm"), "XX-2": losses("none")}
claims.judge(CLAIMS, values, {key: [-x for x in each] for key, each in values.items()}, scale=scale)
"""


def notebook():
    """The text of the chapter's file."""
    cells = [
        ("markdown", "# 5. A small chapter", []), ("code", PARAMETERS, ["parameters"]), ("code", DECLARE, ["declare"]),
        ("code", RUN, []), ("code", FIGURE, ["key-figure"]), ("code", JUDGE, []),
        ("markdown", "<!-- claim card -->", []), ("markdown", "<!-- recorded runs -->", []),
    ]  # fmt: skip
    content = [
        {"cell_type": kind, "id": f"c{i}", "metadata": {"tags": tags}, "source": text.strip().splitlines(True)}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for i, (kind, text, tags) in enumerate(cells)
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def chapter(monkeypatch, folder):
    """Make this chapter, as 05_small, the only one; ``folder`` is then the checkout."""
    from normbook import claims

    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "05_small.ipynb").write_text(notebook())
    (folder / "pyproject.toml").touch()
    monkeypatch.setattr(claims, "ROOT", folder)
    return claims.find(5)


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
