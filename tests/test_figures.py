"""normbook.figures: a figure's table holds what it draws, and a method keeps its colour."""

import csv
import io

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from normbook import figures, models


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


def test_every_arm_has_a_colour_and_the_variants_of_a_method_share_it():
    assert {figures.color(arm) for arm in models.ARMS} <= set(figures.COLORS.values())
    assert figures.color("skipinit_0") == figures.color("skipinit_1") != figures.color("batch_norm")
