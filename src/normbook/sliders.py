"""The sliders of the book: curves from the tables of a chapter's figures, and a sentence for every position."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence

import nbformat

from normbook.claims import number
from normbook.curves import Curve, Line, Panel, Scene, Slider, html, raised

Table = Callable[[int, str], Curve]  # (panel, series) -> curve


def table(text: str) -> Table:
    """The lines of a figure's table (CSV, as `figures.table` writes it); a line that is not there raises KeyError."""
    found: dict[tuple[int, str], Curve] = {}
    for row in csv.DictReader(io.StringIO(text)):
        if row["kind"] == "line":
            found.setdefault((int(row["panel"]), row["series"]), {})[float(row["x"])] = float(row["y"])
    return lambda panel, series: found[panel, series]


def said(value: float) -> str:
    """A number in a sentence: three digits, and powers of ten for the very large."""
    if abs(value) < 1e5:
        return number(value)
    power = math.floor(math.log10(abs(value)))
    return f"{value / 10**power:.2g}·10{raised(power)}"


# the panels of chapter 4's first figure
NETS = ("no normalization, linear", "batch norm, linear", "batch norm, ReLU and convolution")


def depth(texts: Sequence[str]) -> Slider:
    """Chapter 4: variance of skip path and branch, and the branch's share of the block's output, by block."""
    found = table(texts[0])
    scenes = []
    for panel, name in enumerate(NETS, 1):
        skip, branch, skip_theory, branch_theory = (found(panel, f"series {i}") for i in range(1, 5))
        share = {block: 100 * branch[block] / (branch[block] + skip[block]) for block in branch}
        theory = {i: 100 * branch_theory[i] / (branch_theory[i] + skip_theory[i]) for i in branch}
        sentences = [
            f"Block {i:.0f}, {name}: the skip path has variance {said(skip[i])} (theory {said(skip_theory[i])}), the "
            f"branch {said(branch[i])} (theory {said(branch_theory[i])}). The branch is {said(share[i])} % of the "
            f"variance of the block's output (theory {said(theory[i])} %): "
            + ("the block is close to the identity." if share[i] < 10 else "the block changes what it gets.")
            for i in branch
        ]
        variances = [
            Line("skip path", "other_1", skip),
            Line("branch", "other_2", branch),
            Line("theory", "theory", skip_theory, theory=True),
            Line("theory", "theory", branch_theory, theory=True),
        ]
        shares = [Line("branch", "other_2", share), Line("theory", "theory", theory, theory=True)]
        panels = [
            Panel("batch variance", variances, log=True),
            Panel("share of the branch in the output, %", shares, log=True),
        ]
        scenes.append(Scene(name, panels, {i: f"block {i:.0f}" for i in branch}, sentences))
    return Slider("block l", [scenes[1], scenes[0], scenes[2]], start=3, choice="net")


LOWEST_RATE = -8  # log2 of the rate in the first column of chapter 6's heat maps
GUESSING = 2.2  # nats; the training loss from which on chapter 6 calls a run no better than guessing
SIZES = (8, 32, 128)  # the first rows of those heat maps
METHODS = (("batch norm", "batch_norm"), ("SkipInit", "skipinit"), ("no normalization", "none"))


def rate(texts: Sequence[str]) -> Slider:
    """Chapter 6: training loss of three methods over the learning rate, for each batch size."""
    lines, pictures = table(texts[0]), _pictures(texts[0])
    losses: dict[tuple[str, int], Curve] = {
        (arm, row): {x + LOWEST_RATE: math.exp(value) for (x, y), value in pictures[panel].items() if y == row}
        for panel, (_, arm) in enumerate(METHODS, 1)
        for row in range(len(SIZES))
    }
    rates = sorted({x for curve in losses.values() for x in curve})
    every = [value for curve in losses.values() for value in curve.values()]
    scenes = []
    for row, size in enumerate(SIZES):
        best = [next(iter(lines(panel, f"B = {size}"))) for panel in range(1, len(METHODS) + 1)]
        bests = ", ".join(f"{name} {x:.1f}" for (name, _), x in zip(METHODS, best, strict=True)).replace("-", "−")
        sentences = []
        for x in rates:
            ran = {name: losses[arm, row][x] for name, arm in METHODS if x in losses[arm, row]}
            each = ", ".join(f"{name} {_loss(ran[name]) if name in ran else 'not run'}" for name, _ in METHODS)
            if not ran:
                each = "no method was run at this rate"
            lowest = f"The lowest is that of {min(ran, key=lambda name: ran[name])}. " if len(ran) > 1 else ""
            sentences.append(
                f"Learning rate 2{raised(int(x))} = {2**x:.3g} at batch size {size}. Training loss in nats: {each}. "
                f"{lowest}Log₂ of the best rates at this batch size: {bests}."
            )
        curves = [Line(name, arm, losses[arm, row]) for name, arm in METHODS]
        panel = Panel("training loss, nats (geometric mean)", curves, log=True, span=(min(every), max(every)))
        scenes.append(Scene(f"{size}", [panel], {x: f"2{raised(int(x))}" for x in rates}, sentences))
    return Slider("learning rate η", scenes, start=3, choice="batch size B")


def _loss(loss: float) -> str:
    return number(loss) + (" (no better than guessing)" if loss >= GUESSING else "")


def _pictures(text: str) -> dict[int, dict[tuple[int, int], float]]:
    """The pixels of a figure's pictures, by panel: value at (column, row)."""
    found: dict[int, dict[tuple[int, int], float]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        if row["kind"] == "picture":
            found.setdefault(int(row["panel"]), {})[int(row["x"]), int(row["y"])] = float(row["series"])
    return found


def ghosts(texts: Sequence[str]) -> Slider:
    """Chapter 7: noise of the statistics, training loss and test loss over the ghost batch size."""
    noise, losses = table(texts[1]), table(texts[2])
    train, train_low, train_high = (losses(2, f"series {i}") for i in (1, 2, 3))
    test, low, high = (losses(1, f"series {i}") for i in (1, 2, 3))
    spread, theory = ({size: noise(1, f"series {i}")[size] for size in test} for i in (1, 2))
    best = min(test, key=lambda size: test[size])
    sentences = [
        f"Ghosts of {size:.0f}: the mean of {size:.0f} images misses that of all by {said(spread[size])} σ (theory "
        f"{said(theory[size])} σ). The training loss is {said(train[size])} nats, the test loss {said(test[size])} "
        f"nats (95 % interval {said(low[size])} to {said(high[size])}): "
        + (
            "the lowest of the five sizes."
            if size == best
            else f"{said(test[size] - test[best])} above that of ghosts of {best:.0f}, with "
            + ("more" if size < best else "less")
            + " noise."
        )
        for size in test
    ]
    panels = [
        Panel(
            "sd(μ) at the second norm, in σ",
            [Line("measured", "batch_norm", spread), Line("theory", "theory", theory, theory=True)],
            log=True,
        ),
        Panel("training loss, nats", [Line("mean", "batch_norm", train, train_low, train_high)], log=True),
        Panel("test loss, nats", [Line("mean, 95 % interval", "batch_norm", test, low, high)]),
    ]
    names = {size: f"{size:.0f} examples" for size in test}
    return Slider("ghost batch size", [Scene("", panels, names, sentences)], log=True)


# chapter -> the figure, counted from 1, that the slider stands under, and what makes it from the tables of all figures
SLIDERS: dict[str, tuple[int, Callable[[Sequence[str]], Slider]]] = {
    "04_identity_bias": (1, depth),
    "06_large_lr_batch_size": (1, rate),
    "07_regularization_noise": (3, ghosts),
}


def attach(slug: str, notebook: nbformat.NotebookNode) -> None:
    """Put a chapter's slider, if it has one, into a cell behind its figure.

    A chapter whose figures have other tables, as one that a reader is changing, goes without; a line says so.
    """
    if slug not in SLIDERS:
        return
    place, make = SLIDERS[slug]
    tables = [
        (i, output["data"]["text/csv"])
        for i, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if "text/csv" in output.get("data", {})
    ]
    try:
        shown = html(make([text for _, text in tables]))
    except (KeyError, IndexError, StopIteration, ValueError) as error:
        print(f"{slug}: no slider, its figures' tables have changed ({error!r})", flush=True)
        return
    after = tables[place - 1][0] + 1
    if after < len(notebook.cells) and notebook.cells[after].cell_type == "markdown":
        after += 1  # behind what the text says of the figure
    notebook.cells.insert(after, nbformat.v4.new_markdown_cell(f"```{{raw}} html\n{shown}\n```"))
