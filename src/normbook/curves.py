"""A slider over curves as HTML and SVG: everything is drawn when the book is built, for each choice and position.

The script of the page (slider.js) only moves a line along the curves and shows the sentence of the position. Without it
the slider stays hidden, and the reader has the figure above it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from normbook import figures

Curve = dict[float, float]  # y at x


@dataclass(frozen=True)
class Line:
    """A curve of a panel; ``low`` and ``high`` are the ends of its intervals, ``theory`` draws it black and dashed."""

    name: str
    arm: str
    points: Curve
    low: Curve | None = None
    high: Curve | None = None
    theory: bool = False


@dataclass(frozen=True)
class Panel:
    """Curves over one pair of axes; ``span`` are the ends of the y axis where scenes share it."""

    title: str
    lines: Sequence[Line]
    log: bool = False
    span: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scene:
    """What one choice shows: panels and, for each position x of the slider, its name and a sentence."""

    name: str
    panels: Sequence[Panel]
    names: dict[float, str]
    sentences: Sequence[str]


@dataclass(frozen=True)
class Slider:
    """A slider: what it moves, what is chosen beside it (if there are several scenes), and where it starts."""

    label: str
    scenes: Sequence[Scene]
    start: int = 0
    choice: str = ""
    log: bool = False  # the x axis


def raised(exponent: int) -> str:
    """An exponent in small digits."""
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def html(slider: Slider) -> str:
    """The slider as HTML, hidden until its script shows it."""
    first = slider.scenes[0]
    last = len(first.sentences) - 1
    choice = ""
    if len(slider.scenes) > 1:
        options = "".join(f"<option>{escape(scene.name)}</option>" for scene in slider.scenes)
        choice = f'<label>{escape(slider.choice)} <select autocomplete="off">{options}</select></label>'
    lines = [
        f'<figure class="slider" hidden aria-label="Slider: {escape(slider.label)}">',
        f'<div class="controls">{choice}<label>{escape(slider.label)} <input type="range" min="0" max="{last}" '
        f'value="{slider.start}" autocomplete="off"></label><b aria-hidden="true"></b></div>',
        '<output aria-live="polite"></output>',
    ]
    for scene in slider.scenes:
        words = escape(json.dumps([scene.sentences, list(scene.names.values())], ensure_ascii=False))
        rows = max(len(_legend(panel)) for panel in scene.panels)
        panels = "".join(_svg(panel, list(scene.names), slider, rows) for panel in scene.panels)
        lines.append(f'<div class="scene" hidden data-words="{words}">{panels}</div>')
    return "\n".join([*lines, "</figure>", '<script src="../_static/slider.js" defer></script>'])


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 150, 42, 10, 22, 34  # of a panel's SVG; HEIGHT is that of the plot


def _legend(panel: Panel) -> list[Line]:
    return list({line.name: line for line in panel.lines}.values())


def _svg(panel: Panel, xs: Sequence[float], slider: Slider, rows: int) -> str:
    """A panel with room for ``rows`` lines of legend.

    What moves carries its places, one a position of the slider, in ``data-x`` and ``data-y``.
    """
    values = [
        y
        for line in panel.lines
        for each in (line.points, line.low, line.high)
        if each is not None
        for y in each.values()
    ]
    low, high = panel.span or (min(values), max(values))
    if panel.log:  # room for the marks at both ends, and for two ticks
        room = max((high / low) ** 0.06, 1.2)
        low, high = low / room, high * room
    ticks = _ticks(low, high, panel.log)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    legend = _legend(panel)
    top = TOP + 15 * rows
    bottom = top + HEIGHT

    def place(value: float, ends: tuple[float, float], pixels: tuple[float, float], log: bool) -> float:
        value, a, b = (math.log(v) if log else v for v in (value, *ends))
        return round(pixels[0] + (value - a) / (b - a) * (pixels[1] - pixels[0]), 1)

    def at(x: float) -> float:
        return place(x, (min(xs), max(xs)), (LEFT + 6, WIDTH - RIGHT - 6), slider.log)

    def up(y: float) -> float:
        return place(y, (low, high), (bottom, top), panel.log)

    parts = [f'<text class="title" x="{LEFT}" y="14">{escape(panel.title)}</text>']
    for y in ticks:
        parts.append(f'<path class="grid" d="M{LEFT} {up(y)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{up(y) + 4}" text-anchor="end">{_tick(y)}</text>')
    every = max(1, -(-len(xs) // 7))  # labels of the x axis have room for seven
    for x in list(xs)[::every]:
        label = f"2{raised(int(x))}" if slider.label.startswith("learning") else f"{x:g}"
        parts.append(f'<text x="{at(x)}" y="{bottom + 14}" text-anchor="middle">{label}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 29}" text-anchor="middle">{escape(slider.label)}</text>')
    moved = " ".join(str(at(x)) for x in xs)
    parts.append(f'<path class="cursor" d="M0 {top}V{bottom}" data-x="{moved}"/>')
    for row, line in enumerate(legend):
        height = TOP + 15 * row + 4
        parts.append(f'<path {_pen(line)} d="M{LEFT} {height}h22"/>{_mark(line, f"translate({LEFT + 11} {height})")}')
        parts.append(f'<text x="{LEFT + 28}" y="{height + 4}">{escape(line.name)}</text>')
    for line in panel.lines:
        known = [x for x in xs if x in line.points]
        parts.append(f'<path {_pen(line)} d="M{"L".join(f"{at(x)} {up(line.points[x])}" for x in known)}"/>')
        if line.low and line.high:
            bars = "".join(f"M{at(x)} {up(line.low[x])}V{up(line.high[x])}" for x in known)
            parts.append(f'<path {_pen(line)} d="{bars}"/>')
        if not line.theory:
            heights = " ".join(str(up(line.points[x])) if x in line.points else "-" for x in xs)
            parts.append(_mark(line, "", f' data-x="{moved}" data-y="{heights}"'))
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + BOTTOM}" role="img" aria-label="{escape(panel.title)}, over '
        f'{escape(slider.label)}: {escape(", ".join(line.name for line in legend))}">{"".join(parts)}</svg>'
    )


def _pen(line: Line) -> str:
    dashes = ' stroke-dasharray="4 3"' if line.theory else ""
    return f'class="line" stroke="{figures.color(line.arm)}"{dashes}'


SHAPES = {
    "batch_norm": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0",
    "skipinit": "M0 -5.5L5 4H-5Z",
    "none": "M-4 -4H4V4H-4Z",
}
SHAPES |= {"other_1": SHAPES["batch_norm"], "other_2": SHAPES["skipinit"]}  # skip path and branch


def _mark(line: Line, transform: str, data: str = "") -> str:
    """The sign of a method, as in the figures: a circle, a triangle, a square."""
    if line.theory:
        return ""
    moved = f' transform="{transform}"' if transform else ""
    return f'<path class="mark" fill="{figures.color(line.arm)}" d="{SHAPES[line.arm]}"{moved}{data}/>'


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """Some round numbers, seven at most, from about ``low`` to about ``high``; with ``log`` those between the two."""
    if not log:
        step = next(s * 10**p for p in range(-6, 6) for s in (1, 2, 5) if (high - low) / (s * 10**p) <= 5)
        return [i * step for i in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), range(1, 10)):
        marks = [f * 10.0**p for p in powers for f in factors if low <= f * 10.0**p <= high]
        if len(marks) >= 3:
            break
    return marks[:: max(1, -(-len(marks) // 7))] or _ticks(low, high, False)


def _tick(value: float) -> str:
    power = math.log10(value) if value > 0 else 0
    return f"10{raised(round(power))}" if abs(power) > 3 else f"{value:g}"
