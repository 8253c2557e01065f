"""normbook.sliders and curves: every position of a slider says and shows what the figures' tables hold."""

import functools
import json
import math
import re
from html import unescape

import pytest

from normbook import chapters, claims, curves, sliders


def committed(slug):
    return chapters.read(claims.find(slug)).notebook


@functools.cache
def texts(slug):
    return [
        o["data"]["text/csv"]
        for c in committed(slug).cells
        for o in c.get("outputs", [])
        if "text/csv" in o.get("data", {})
    ]


def made(slug):
    return sliders.SLIDERS[slug][1](texts(slug))


@pytest.mark.parametrize("slug", sliders.SLIDERS)
def test_a_chapter_gets_its_slider_behind_its_figure(slug):
    notebook = committed(slug)
    before = len(notebook.cells)
    sliders.attach(slug, notebook)
    (place,) = [i for i, cell in enumerate(notebook.cells) if 'class="slider"' in cell.source]
    figure, text = notebook.cells[place - 2], notebook.cells[place - 1]  # the text is that of the figure
    assert len(notebook.cells) == before + 1 and figure.outputs and text.cell_type == "markdown"


def test_other_chapters_have_none_and_changed_tables_are_said(capsys):
    notebook = committed("05_skipinit")
    before = len(notebook.cells)
    sliders.attach("05_skipinit", notebook)
    assert capsys.readouterr().out == ""
    sliders.attach("04_identity_bias", notebook)
    assert "04_identity_bias: no slider, its figures' tables have changed" in capsys.readouterr().out
    assert len(notebook.cells) == before


@pytest.mark.parametrize("slug", sliders.SLIDERS)
def test_every_position_has_a_sentence_and_every_mark_a_place(slug):
    slider = made(slug)
    page = curves.html(slider)
    assert page.startswith('<figure class="slider" hidden')
    positions = {len(scene.sentences) for scene in slider.scenes} | {len(scene.names) for scene in slider.scenes}
    (n,) = positions
    assert f'max="{n - 1}"' in page and 0 <= slider.start < n
    words = [json.loads(unescape(each)) for each in re.findall(r'data-words="(.*?)"', page)]
    assert [w[0] for w in words] == [list(scene.sentences) for scene in slider.scenes]
    places = re.findall(r'data-[xy]="([^"]*)"', page)
    assert {len(each.split()) for each in places} == {n}
    values = [float(v) for each in places for v in each.split() if v != "-"]
    assert all(math.isfinite(v) and 0 <= v <= 300 for v in values)


def test_chapter_4_measures_what_its_theory_says():
    plain = {scene.name: scene for scene in made("04_identity_bias").scenes}["no normalization, linear"]
    with_norm = {scene.name: scene for scene in made("04_identity_bias").scenes}["batch norm, linear"]
    for scene, skip, share in (
        (plain, lambda i: 2 ** (i - 1), lambda i: 50),
        (with_norm, lambda i: i, lambda i: 100 / (i + 1)),
    ):
        assert len(scene.names) == 20
        found = {line.name + " theory" * line.theory: line.points for line in scene.panels[1].lines}
        for block, text in zip(scene.names, scene.sentences, strict=True):
            assert f"Block {block:.0f}, {scene.name}" in text
            assert f"(theory {sliders.said(skip(block))}), the branch" in text
            assert found["theory theory"][block] == pytest.approx(share(block), rel=1e-4)
            assert found["branch"][block] == pytest.approx(share(block), rel=0.1)


def test_chapter_6_names_the_rates_of_its_grid():
    """The first column of the heat maps is the lowest rate that the chapter declares."""
    source = "\n".join(cell.source for cell in committed("06_large_lr_batch_size").cells)
    lowest = re.search(r"LOWEST = \{.*?\}", source, re.S)[0]
    assert min(int(each) for each in re.findall(r"-\d+", lowest)) == sliders.LOWEST_RATE
    assert re.search(r"batches\": \(8, 32, 128\)", source) and sliders.SIZES == (8, 32, 128)
    slider = made("06_large_lr_batch_size")
    drawn = {scene.name: {line.arm: line.points for line in scene.panels[0].lines} for scene in slider.scenes}
    assert {arm: min(points) for arm, points in drawn["8"].items()} == {"batch_norm": -7, "skipinit": -7, "none": -8}
    assert {len(points) for points in drawn["128"].values()} == {7}
    assert "no method was run at this rate" in slider.scenes[0].sentences[-1]
    guessing = [text for scene in slider.scenes for text in scene.sentences if "no better than guessing" in text]
    assert guessing and all(float(v) >= 2.2 for t in guessing for v in re.findall(r"(\S+) \(no better", t))


def test_chapter_7_says_which_ghost_size_is_best():
    (scene,) = made("07_regularization_noise").scenes
    test = scene.panels[2].lines[0]
    assert list(test.points) == [2, 4, 8, 32, 128]
    assert all(test.low[x] < test.points[x] < test.high[x] for x in test.points)
    best = min(test.points, key=lambda size: test.points[size])
    assert [x for x, text in zip(test.points, scene.sentences, strict=True) if "the lowest" in text] == [best]


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0.25, 0.373, False, [0.25, 0.3, 0.35, 0.4]), (0, 100, False, [0, 20, 40, 60, 80, 100]),
        (0.8, 130, True, [1, 10, 100]), (0.9, 20, True, [1, 2, 5, 10, 20]), (49, 51.5, True, [50]),
        (51, 58, True, [50, 52, 54, 56, 58]),
    ],
)  # fmt: skip
def test_ticks_are_round(low, high, log, expected):
    assert curves._ticks(low, high, log) == pytest.approx(expected)


def test_ticks_of_many_decades_are_thinned():
    ticks = curves._ticks(0.5, 1e30, True)
    assert 4 <= len(ticks) <= 7 and all(math.log10(t) == round(math.log10(t)) for t in ticks)


def test_numbers_in_sentences():
    assert [sliders.said(x) for x in (0.0751, 19.93, 1.048576e6, 3.2e29)] == ["0.0751", "19.9", "1·10⁶", "3.2·10²⁹"]
