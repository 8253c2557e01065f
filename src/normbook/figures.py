"""One look for the whole book: a method has the same colour on every page, and every figure says what it shows."""

from __future__ import annotations

import base64
import csv
import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter
from PIL import Image

from normbook.claims import interval

# Okabe & Ito's palette: apart in every common colour-vision deficiency; markers say the same without colour
COLORS = {
    "batch_norm": "#0072B2",
    "none": "#4D4D4D",
    "skipinit": "#D55E00",
    "divide_sqrt2": "#009E73",
    "fixup": "#CC79A7",
    "batch_norm_last": "#56B4E9",
    "layer_norm": "#E69F00",
    "instance_norm": "#882255",
    "group_norm": "#999933",
    "rms_norm": "#8C510A",
    "weight_norm": "#332288",
    "batch_norm_all": "#56B4E9",
    "batch_norm_noisy": "#7B3294",
    "batch_norm_borrowed": "#A67C00",
    "noisy": "#999999",
    "dropout_before_norm": "#117733",
    "dropout_before_conv": "#AA4499",
    "dropout_after": "#44AA99",
    "uout": "#661100",
    "theory": "#000000",
    # what is no method: parts of a net, ways to compute, two cases of one thing
    "other_1": "#9933FF",
    "other_2": "#EE3377",
}
MARKERS = {
    "batch_norm": "o", "none": "s", "skipinit": "^", "divide_sqrt2": "D", "fixup": "v", "batch_norm_last": "P",
    "batch_norm_noisy": "X", "batch_norm_borrowed": "D", "noisy": "d",
    "layer_norm": "h", "rms_norm": "<", "batch_norm_all": "P",
}  # fmt: skip
LABELS = {
    "batch_norm": "batch norm",
    "none": "no normalization",
    "skipinit": "SkipInit",
    "skipinit_0": "SkipInit, α = 0",
    "skipinit_rsqrt_d": "SkipInit, α = 1/√d",
    "skipinit_rsqrt_d_fixed": "α = 1/√d, not learned",
    "skipinit_1": "SkipInit, α = 1",
    "skipinit_0_no_l2": "SkipInit, α = 0, no L2",
    "skipinit_0_biases": "Regularized SkipInit",
    "divide_sqrt2": "divide by √2",
    "fixup": "Fixup",
    "fixup_zero_last": "Fixup: zero last layer only",
    "fixup_depth_scale": "Fixup: depth scaling only",
    "batch_norm_logits": "batch norm on the logits only",
    "batch_norm_noisy": "noisy batch norm",
    "noisy": "noise, no normalization",
    "batch_norm_all": "batch norm, logits too",
    "layer_norm": "layer norm",
    "layer_norm_simple": "layer norm, γ = 1, β = 0",
    "layer_norm_detached": "layer norm, μ and σ detached",
    "rms_norm": "RMS norm",
    "instance_norm": "instance norm",
    "group_norm": "group norm",
    "weight_norm": "weight norm",
}
DPI = 160  # sharp on a retina screen at the size it is shown


def color(arm: str) -> str:
    """The colour of a method; the variants of one method share it."""
    if arm in ("batch_norm_logits", "batch_norm_features", "batch_norm_no_affine"):
        arm = "batch_norm_last"
    return COLORS.get(arm) or next((COLORS[k] for k in ("skipinit", "fixup") if arm.startswith(k)), COLORS["none"])


def use_style() -> None:
    """Set the book's style for the figures that follow."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "figure.dpi": 100,
            "font.size": 11,
            "axes.titlesize": 11,
            "axes.labelsize": 11,
            "axes.spines.right": False,
            "axes.spines.top": False,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "figure.constrained_layout.use": True,
        },
    )
    matplotlib.rcParams["axes.formatter.use_mathtext"] = True


def show(fig: Figure, alt: str, note: str = "") -> None:
    """Show a figure as a PNG with a text alternative that says what it shows, with its numbers, and close it.

    ``note`` is written below it in grey: n, and what dots, bars and bands are. The figure grows by the note's lines.
    """
    numbers = table(fig)
    if note:
        wide, high = fig.get_size_inches()
        lines = textwrap.wrap(note, int(14.5 * wide))
        fig.set_size_inches(wide, high + 0.17 * len(lines) + 0.05)
        fig.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9.5, color="#666666")
    darken_letters(fig)
    drawn, buffer = io.BytesIO(), io.BytesIO()
    fig.savefig(drawn, format="png", dpi=DPI)
    plt.close(fig)
    Image.open(drawn).convert("RGB").save(buffer, "PNG", optimize=True)  # without transparency a tenth smaller
    width = int(fig.get_size_inches()[0] * 100)
    data = {"image/png": base64.b64encode(buffer.getvalue()).decode(), "text/plain": alt, "text/csv": numbers}
    display(data, metadata={"image/png": {"alt": alt, "width": width}}, raw=True)  # type: ignore[no-untyped-call]


def darken_letters(fig: Figure) -> None:
    """Darken letters that are too pale on white: WCAG 2.2, 1.4.3, asks for a contrast of 4.5, lines may have less.

    The hue stays, so a name is still its line's. White letters stay: they stand on something dark.
    """
    brightest = 1.05 / 4.5 - 0.05  # relative luminance
    for text in fig.findobj(Text):
        assert isinstance(text, Text)
        rgb = np.array(to_rgb(text.get_color()))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        luminance = float(linear @ (0.2126, 0.7152, 0.0722))
        if brightest < luminance < 0.99:
            linear *= brightest / luminance
            red, green, blue = np.where(
                linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
            ).tolist()
            text.set_color((red, green, blue))


ROWS = 600  # of a figure's table; of longer lines every second, third ... point is kept


def table(fig: Figure) -> str:
    """What a figure draws, as CSV: panel, axes' names, kind (line, band or picture), name of the series, x, y."""
    rows: list[list[Any]] = []
    for panel, ax in enumerate(fig.axes, 1):
        place = [panel, ax.get_xlabel() or ax.get_title(), ax.get_ylabel()]
        # the rows of `dots` have names in place of numbers
        named = [t.get_text() for t in ax.get_yticklabels()] if _has_names(ax) else []
        for i, line in enumerate(ax.lines):
            label = str(line.get_label())
            name = f"series {i + 1}" if label.startswith("_") else label
            heights = np.asarray(line.get_ydata(orig=True), dtype=float)
            if named and len(heights):
                name = named[int(np.abs(np.asarray(ax.get_yticks()) - heights.mean()).argmin())]
            rows += [[*place, "line", name, *point] for point in np.column_stack(line.get_data(orig=True)).tolist()]
        for i, area in enumerate(ax.collections):
            if isinstance(area, PolyCollection):  # the edge of a band
                edge = area.get_paths()[0].vertices if area.get_paths() else np.zeros((0, 2))
                rows += [[*place, "band", f"band {i + 1}", *point] for point in np.asarray(edge).tolist()]
        for image in ax.images:
            values: np.ndarray = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
            if values.ndim == 2:
                found = ((x, y, values[y, x]) for y, x in np.ndindex(*values.shape) if np.isfinite(values[y, x]))
                rows += [[*place, "picture", f"{value:.6g}", x, y] for x, y, value in found]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["panel", "x axis", "y axis", "kind", "series", "x", "y"])
    step = -(-len(rows) // ROWS) or 1
    writer.writerows([*row[:5], *(f"{v:.6g}" if isinstance(v, float) else v for v in row[5:])] for row in rows[::step])
    return text.getvalue()


def _has_names(ax: Axes) -> bool:
    return isinstance(ax.yaxis.get_major_locator(), FixedLocator) and isinstance(
        ax.yaxis.get_major_formatter(), FuncFormatter
    )


def half_width(values: Sequence[float] | np.ndarray) -> float:
    """Half the width of the 95 % interval of a mean; nan where there are fewer than two values or one is missing."""
    if len(values) < 2 or not np.isfinite(values).all():
        return float("nan")
    estimate, low, _ = interval(list(values), "t")
    return estimate - low


def band(ax: Axes, x: np.ndarray, draws: np.ndarray, ci: bool = False, **line: Any) -> None:
    """Plot the mean of ``draws`` [n, len(x)] over x with their range or, with ``ci``, the mean's 95 % interval."""
    mean = draws.mean(0)
    (drawn,) = ax.plot(x, mean, **line)
    wide = np.array([half_width(values) for values in draws.T]) if ci else np.nan
    low, high = (mean - wide, mean + wide) if ci else (draws.min(0), draws.max(0))
    ax.fill_between(x, low, high, color=drawn.get_color(), alpha=0.2, linewidth=0)


def bars(
    ax: Axes,
    x: Sequence[float] | np.ndarray,
    draws: Sequence[Sequence[float] | np.ndarray],
    ci: bool = False,
    **line: Any,
) -> np.ndarray:
    """Plot the mean of each of ``draws`` over x, with a bar over their range or, with ``ci``, the mean's 95 % interval.

    Draws may be of unequal number. Where there are none, or one is missing (nan), there is a gap. Returns the means.
    """
    each = [np.asarray(values if len(values) else [np.nan], dtype=float) for values in draws]
    means = np.array([values.mean() for values in each])
    if ci:
        reach = np.array([[half_width(values) for values in each]] * 2)
    else:
        reach = np.array([[m - v.min(), v.max() - m] for m, v in zip(means, each, strict=True)]).reshape(-1, 2).T
    ax.errorbar(x, means, np.maximum(reach, 0), **{"capsize": 2, "elinewidth": 1.2, **line})
    return means


def dots(ax: Axes, labels: Sequence[str], values: Sequence[Sequence[float]], colors: Sequence[str]) -> None:
    """One row a label: every value as a dot, the mean as a bar, the first label on top."""
    for row, (each, shade) in enumerate(zip(values, colors, strict=True)):
        spread = np.linspace(-0.18, 0.18, len(each)) if len(each) > 1 else np.zeros(len(each))
        ax.plot(each, row + spread, "o", color=shade, markersize=5, alpha=0.8, markeredgewidth=0)
        if len(each):
            ax.plot([np.mean(each)] * 2, [row - 0.32, row + 0.32], color=shade, linewidth=2.5)
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)


def label_line(ax: Axes, x: float, y: float, text: str, shade: str, **options: Any) -> None:
    """Write a line's name beside it, in its colour: read faster than a legend. ``options`` go to ``annotate``."""
    ax.annotate(text, (x, y), **{"color": shade, "fontsize": 10, "annotation_clip": False, **options})


def label_ends(ax: Axes, x: float, ends: Sequence[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Write lines' names at x, beside their ends: height, name and colour of each; a height that is nan is left out.

    Where names would overlap they move apart, to ``gap`` of the axis' height for a line of text; none moves out of it.
    The axis' limits and scale must be set before.
    """
    known = sorted((end for end in ends if np.isfinite(end[0])), key=lambda end: end[0])
    ax.set_ylim(ax.get_ylim())  # from here on the limits stay, or names and lines would part
    to_axes = ax.transScale + ax.transLimits
    places = [float(to_axes.transform((x, height))[1]) for height, *_ in known]
    half = [gap * (1 + name.count("\n")) / 2 for _, name, _ in known]
    for _ in range(200):
        for i in range(len(known) - 1):
            short = half[i] + half[i + 1] - (places[i + 1] - places[i])
            if short > 0:
                places[i : i + 2] = [places[i] - short / 2, places[i + 1] + short / 2]
        places = [min(max(place, tall), 1 - tall) for place, tall in zip(places, half, strict=True)]
    for place, (_, name, shade) in zip(places, known, strict=True):
        ax.text(x, place, name, transform=ax.get_xaxis_transform(), color=shade, fontsize=10, va="center")
