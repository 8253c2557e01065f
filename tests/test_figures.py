"""normbook.figures: a figure's table holds what it draws, and a method keeps its colour."""

import csv
import io

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb

from normbook import claims, figures, models


@pytest.fixture
def drawn():
    fig, (left, right) = plt.subplots(1, 2)
    left.plot([1, 2], [3, 4], label="a line")
    figures.band(left, np.arange(3), np.arange(6.0).reshape(2, 3))
    left.set(xlabel="step", ylabel="loss, nats")
    figures.dots(right, ["one", "two"], [[1, 2, 3], [4]], ["red", "blue"])
    yield fig
    plt.close(fig)


def rows(fig):
    return list(csv.DictReader(io.StringIO(figures.table(fig))))


def test_the_table_holds_lines_bands_and_named_rows(drawn):
    found = rows(drawn)
    line = [row for row in found if row["series"] == "a line"]
    assert [(row["x"], row["y"], row["x axis"], row["y axis"]) for row in line] == [
        ("1", "3", "step", "loss, nats"),
        ("2", "4", "step", "loss, nats"),
    ]
    band = [row for row in found if row["kind"] == "band"]
    assert {float(row["y"]) for row in band} == {0, 1, 2, 3, 4, 5}
    assert [row["x"] for row in found if row["series"] == "one"][:3] == ["1", "2", "3"]
    assert {row["series"] for row in found if row["panel"] == "2"} == {"one", "two"}


def test_a_picture_is_one_row_a_pixel_that_has_a_value():
    fig, ax = plt.subplots()
    ax.imshow([[1.0, np.nan], [3.0, 4.0]])
    assert [(row["x"], row["y"], row["series"]) for row in rows(fig)] == [
        ("0", "0", "1"),
        ("0", "1", "3"),
        ("1", "1", "4"),
    ]
    plt.close(fig)


def test_a_long_line_is_thinned():
    fig, ax = plt.subplots()
    ax.plot(np.arange(9001.0))
    found = rows(fig)
    assert len(found) <= figures.ROWS and [row["x"] for row in found[:2]] == ["0", "16"]
    plt.close(fig)


def test_show_sends_picture_text_and_table(drawn, monkeypatch):
    sent = []
    monkeypatch.setattr(figures, "display", lambda data, metadata, raw: sent.append((data, metadata)))
    figures.show(drawn, "what it shows")
    ((data, metadata),) = sent
    assert set(data) == {"image/png", "text/plain", "text/csv"} and "a line" in data["text/csv"]
    assert metadata["image/png"]["alt"] == "what it shows"
    assert not plt.fignum_exists(drawn.number)


def test_a_note_is_written_below_and_takes_nothing_from_the_axes(drawn, monkeypatch):
    monkeypatch.setattr(figures, "display", lambda data, metadata, raw: None)
    high = drawn.get_figheight()
    figures.show(drawn, "what it shows", "n = 9 seeds; " + "word " * 60)
    lines = drawn.get_supxlabel().split("\n")
    assert lines[0].startswith("n = 9 seeds;") and len(lines) > 1
    assert drawn.get_figheight() - high == pytest.approx(0.17 * len(lines) + 0.05)


@pytest.mark.parametrize("shade", [*figures.COLORS.values(), "#FFFF00", "#FFFFFF"])
def test_letters_are_dark_enough_to_read_and_keep_their_hue(drawn, shade):
    text = drawn.axes[0].text(0, 0, "a name", color=shade)
    figures.darken_letters(drawn)
    before, after = (np.array(to_rgb(c)) for c in (shade, text.get_color()))
    pale = 1.05 / (luminance(before) + 0.05) < 4.5
    if shade == "#FFFFFF" or not pale:
        assert (after == before).all()
    else:
        assert 1.05 / (luminance(after) + 0.05) == pytest.approx(4.5, abs=0.05)
        assert (np.argsort(after) == np.argsort(before)).all() and (after < before + 1e-9).all()


def luminance(rgb):
    """Relative luminance as WCAG 2.2 defines it."""
    return sum(w * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
               for w, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))  # fmt: skip


def test_half_width_is_that_of_the_claims_interval_and_missing_where_it_has_no_meaning():
    estimate, low, high = claims.interval([1, 2, 4], "t")
    assert figures.half_width([1, 2, 4]) == pytest.approx(estimate - low) == pytest.approx(high - estimate)
    assert figures.half_width(np.ones(3)) == 0
    assert all(np.isnan(figures.half_width(values)) for values in ([], [1], [1, np.nan, 2]))


def test_a_band_is_the_range_or_the_interval():
    fig, (left, right) = plt.subplots(1, 2)
    draws = np.array([[1.0, 2], [3, 2], [8, 2]])
    figures.band(left, np.arange(2), draws)
    figures.band(right, np.arange(2), draws, ci=True)
    edges = [{float(row["y"]) for row in rows(fig) if row["kind"] == "band" and row["panel"] == p} for p in "12"]
    assert edges[0] == {1, 2, 8}
    wide = figures.half_width(draws[:, 0])
    assert sorted(edges[1]) == pytest.approx([4 - wide, 2, 4 + wide], rel=1e-5)
    figures.band(right, np.arange(2), draws[:1], ci=True)  # one draw has no interval
    plt.close(fig)


def test_bars_reach_over_range_or_interval_and_leave_gaps():
    fig, (left, right) = plt.subplots(1, 2)
    draws = [[1, 3, 8], [2], [], [1, np.nan]]
    for ax, ci in ((left, False), (right, True)):
        means = figures.bars(ax, range(4), draws, ci=ci, color="red")
        assert means[:2].tolist() == [4, 2] and np.isnan(means[2:]).all()
    line, low, high = ([float(y) for y in each.get_ydata()] for each in left.lines)
    assert (line[:2], low[:2], high[:2]) == ([4, 2], [1, 2], [8, 2])
    _, low, high = ([float(y) for y in each.get_ydata()] for each in right.lines)
    wide = figures.half_width(draws[0])
    assert (low[0], high[0]) == pytest.approx((4 - wide, 4 + wide)) and np.isnan(low[1:]).all()
    fig.canvas.draw()
    plt.close(fig)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_at_the_ends_of_lines_stand_apart_and_inside(scale):
    fig, ax = plt.subplots()
    ax.set(ylim=(1, 101), yscale=scale)
    ends = [(50, "b", "red"), (50, "a\nof two lines", "blue"), (float("nan"), "missing", "black"), (1, "c", "green")]
    figures.label_ends(ax, 1, [*ends, (100, "d", "grey")], gap=0.1)
    places = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert set(places) == {"a\nof two lines", "b", "c", "d"} and places["c"] == pytest.approx(0.05)
    assert abs(places["a\nof two lines"] - places["b"]) >= 0.15 - 1e-3
    assert all(0.05 <= place <= 0.95 for place in places.values())
    if scale == "linear":
        assert (places["a\nof two lines"] + places["b"]) / 2 == pytest.approx(0.49)
    figures.label_ends(ax, 1, [])
    plt.close(fig)


def test_every_arm_has_a_colour_and_the_variants_of_a_method_share_it():
    assert {figures.color(arm) for arm in models.ARMS} <= set(figures.COLORS.values())
    assert figures.color("skipinit_0") == figures.color("skipinit_1") != figures.color("batch_norm")


def test_the_colours_of_what_is_no_method_are_no_methods():
    others = {figures.COLORS[name] for name in figures.COLORS if name.startswith("other")}
    assert len(others) == 2 and not others & {
        color for name, color in figures.COLORS.items() if not name.startswith("other")
    }
