"""The built book in a real browser: every page, on a phone and on a desk, light and dark, by keyboard."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
from axe_playwright_python.sync_playwright import Axe

from benchmarks import first_content

OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth <= width) return [];
  const scrolls = (e) => {
    for (let box = e.parentElement; box; box = box.parentElement)
      if (getComputedStyle(box).overflowX !== "visible" && box.getBoundingClientRect().right <= width + 1) return true;
    return false;
  };
  const wide = (e) => e.getBoundingClientRect().right > width && !scrolls(e);
  return [...document.querySelectorAll("article *")].filter(wide).slice(0, 5)
    .map((e) => `${e.tagName}.${e.className}: ${e.textContent.slice(0, 40)}`).concat(["overflow"]);
}"""
MATHEMATICS = (
    "() => [document.querySelectorAll('mjx-container').length, document.querySelectorAll('mjx-merror').length]"
)


def test_a_page(opened, page_name, root):
    """On a phone, a tablet and a desk: no overflow, no error, no outside request; formulas drawn; axe finds nothing."""
    page, problems = opened(page_name, 1280)
    for width in (1280, 768, 360):
        page.set_viewport_size({"width": width, "height": 900})
        assert (width, page.evaluate(OVERFLOW)) == (width, [])
    page.wait_for_timeout(400)  # ms: the theme makes focusable what scrolls now, 300 after a change of size
    assert violations(page) == []  # at 360; at 1280 in the dark
    assert page.locator("main h1:visible").count() == 1  # the theme hides another for print
    assert page.locator("html").get_attribute("lang") == "en"
    if re.search(r'class="math', (root / page_name).read_text()):
        drawn, broken = page.evaluate(MATHEMATICS)
        assert drawn > 0 and broken == 0
    assert problems == []


def test_a_page_in_the_dark(opened, page_name):
    """All of axe once more at the width of a desk; pictures and figures follow the theme from the start."""
    page, problems = opened(page_name, theme="dark")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert violations(page) == []
    assert problems == []


def violations(page, *rules: str) -> list[str]:
    """What axe has to say: rule, first element, number of elements; of some rules only, if any are named."""
    options = {"runOnly": list(rules)} if rules else {}
    found = Axe().run(page, options=options).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:120]} ({len(v['nodes'])})" for v in found]


def test_the_check_for_outside_requests_can_fail(opened, root):
    bad = root / "cdn.html"
    bad.write_text("<!doctype html><script src='https://cdn.example/x.js'></script><script>no.such.thing()</script>")
    try:
        _, problems = opened("cdn.html")
    finally:
        bad.unlink()
    assert any("outside request: https://cdn.example/x.js" in p for p in problems)
    assert any("script error" in p for p in problems)


def test_the_check_for_overflow_can_fail(opened):
    page, _ = opened("book/index.html", 360)
    page.evaluate("document.querySelector('article.bd-article h1').style.width = '900px'")
    assert "overflow" in page.evaluate(OVERFLOW)


@pytest.mark.parametrize("term", ["SkipInit", "Wasserstein", "dropout", "ghost", "running_var"])
def test_search_finds(opened, term):
    page, problems = opened(f"search.html?q={term}")
    page.wait_for_selector("#search-results li")
    assert page.locator("#search-results li").count() > 0 and problems == []


class Links(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        self.links += [value for key in ("href", "src") if (value := found.get(key))]


def broken_links(root: Path) -> list[str]:
    """Internal links of all pages that lead nowhere."""
    pages = {p: Links(p.read_text(encoding="utf-8")) for p in root.rglob("*.html") if "_static" not in p.parts}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if urlparse(link).scheme or link.startswith("//"):
                continue
            target, anchor = urldefrag(link.split("?")[0])
            file = (path.parent / unquote(target)).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.exists():
                broken.append(f"{path.name}: {link}")
            elif anchor and file in pages and unquote(anchor) not in pages[file].anchors:
                broken.append(f"{path.name}: {link} (no such anchor)")
    return broken


def test_every_internal_link_leads_somewhere(root, tmp_path):
    assert broken_links(root.resolve()) == []
    (tmp_path / "a.html").write_text("<a href='b.html'>b</a><a href='#c'>c</a><a href='https://x.example'>x</a>")
    assert broken_links(tmp_path) == ["a.html: b.html", "a.html: #c (no such anchor)"]


def test_axe_can_find_something(opened):
    page, _ = opened("book/how_to_cite.html")
    page.evaluate("document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=x>')")
    assert [found.split(":")[0] for found in violations(page, "image-alt")] == ["image-alt"]


def test_the_scoreboard_filters_and_sorts_by_keyboard(opened):
    page, problems = opened("book/scoreboard.html")
    cells = ".scoreboard tbody tr:not([hidden]) td:first-child"
    shown = f"() => [...document.querySelectorAll('{cells}')].map((e) => e.textContent)"
    everything = page.evaluate(shown)
    page.get_by_label("words").focus()
    page.keyboard.type("DS-14")
    found = [text.split()[0] for text in page.evaluate(shown)]  # a claim has a row for each scale that is judged
    assert [*dict.fromkeys(found)] == ["DS-14a", "DS-14b", "DS-14c", "DS-14d"]
    page.get_by_label("words").fill("")
    page.get_by_label("verdict").select_option("inconclusive")
    assert 0 < len(page.evaluate(shown)) < len(everything)
    page.get_by_label("verdict").select_option("all")
    page.get_by_role("button", name="claim").focus()
    page.keyboard.press("Enter")
    up = page.evaluate(shown)
    page.keyboard.press("Enter")
    assert up != everything and page.evaluate(shown) == up[::-1] and problems == []


def test_the_scoreboard_sorts_numbers_as_numbers(opened):
    page, problems = opened("book/scoreboard.html")
    for name in ("estimate", "region", "paper"):
        column = [*page.locator(".scoreboard th").all_inner_texts()].index(name) + 1
        cells = f".scoreboard tbody td:nth-child({column})"
        for reverse in (False, True):
            page.get_by_role("button", name=name).click()
            texts = page.evaluate(f"() => [...document.querySelectorAll('{cells}')].map((e) => e.textContent)")
            shown = [float(m[0]) for t in texts if (m := re.search(r"-?[\d.]+(e[-+]?\d+)?", t))]
            assert shown == sorted(shown, reverse=reverse) and len(set(shown)) > 5, name
    assert problems == []


def test_on_a_phone_pictures_can_be_read_and_scroll_in_their_own_box(opened):
    page, _ = opened("notebooks/06_large_lr_batch_size.html", 360)
    boxes = page.evaluate(
        "() => [...document.querySelectorAll('.cell_output a.image-reference')]"
        ".map((e) => [e.clientWidth, e.scrollWidth, e.querySelector('img').clientWidth])"
    )
    assert boxes and all(box <= 360 and scrolls >= picture == 640 for box, scrolls, picture in boxes)


SLIDERS = {"04_identity_bias": "block l", "06_large_lr_batch_size": "learning rate", "07_regularization_noise": "ghost"}


@pytest.mark.parametrize("slug", SLIDERS)
def test_a_slider_moves_by_keyboard_and_says_what_it_means(opened, slug):
    page, problems = opened(f"notebooks/{slug}.html", 360)
    slider = page.locator("figure.slider")
    handle, said = slider.get_by_role("slider", name=SLIDERS[slug]), slider.locator("output")
    assert slider.is_visible() and said.get_attribute("aria-live") == "polite"
    before, place = said.inner_text(), slider.locator(".scene:visible .cursor").first.get_attribute("transform")
    handle.focus()
    page.keyboard.press("ArrowRight")
    assert said.inner_text() != before
    assert slider.locator(".scene:visible .cursor").first.get_attribute("transform") != place
    name = handle.get_attribute("aria-valuetext")
    page.keyboard.press("ArrowLeft")
    assert said.inner_text() == before and handle.get_attribute("aria-valuetext") != name
    for key in ("Home", "End"):  # positions where some curves have no point
        page.keyboard.press(key)
        assert "undefined" not in said.inner_text() and "NaN" not in slider.inner_html()
    if slider.locator("select").count():
        slider.locator("select").focus()
        page.keyboard.press("ArrowDown")
        assert slider.locator(".scene:visible").count() == 1
        assert slider.locator("option:checked").inner_text() in said.inner_text()
    assert problems == []


@pytest.mark.parametrize("slug", SLIDERS)
def test_without_scripts_there_is_the_picture_and_no_dead_slider(browser, address, slug):
    context = browser.new_context(java_script_enabled=False)
    try:
        page = context.new_page()
        page.set_default_timeout(180_000)  # ms; a busy machine is no fault of the page
        page.goto(f"{address}/notebooks/{slug}.html")
        assert page.locator("figure.slider").count() == 1
        assert page.locator("figure.slider").is_hidden() and page.locator("input[type=range]").is_hidden()
        above = page.locator("xpath=//figure[contains(@class, 'slider')]/preceding::img[1]")
        assert above.is_visible() and above.evaluate("e => e.naturalWidth") > 0
    finally:
        context.close()


def test_the_book_opens_from_a_folder_without_a_server(opened, root):
    page, problems = opened((root / "notebooks" / "04_identity_bias.html").resolve().as_uri())
    assert page.locator("figure.slider output").inner_text() and problems == []
    page, problems = opened((root / "book" / "index.html").resolve().as_uri())
    assert problems == []
    page.get_by_role("link", name=re.compile("SkipInit")).first.click()
    assert "05_skipinit" in page.url
    page.wait_for_selector("mjx-container", state="attached")


def test_the_site_is_small(root):
    size = sum(p.stat().st_size for p in root.rglob("*") if p.is_file())
    assert size < 15e6, f"{size / 1e6:.1f} MB"
    for path in (root / "notebooks").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        pictures = {(path.parent / src).resolve() for src in re.findall(r'<img[^>]* src="([^"]+)"', text)}
        whole = len(text.encode()) + sum(p.stat().st_size for p in pictures if p.exists())
        assert whole < 1.5e6, f"{path.name}: {whole / 1e6:.2f} MB"


def test_little_must_arrive_before_a_page_shows_itself(root, tmp_path):
    """HTML, style sheets and scripts that block; figures, fonts and the theme's deferred scripts come later."""
    names = sorted((root / "notebooks").glob("*.html"))
    sizes = {path.name: first_content.blocking_size(path) / 1e3 for path in (*names, root / "book" / "index.html")}
    assert len(sizes) == 9 and {name: size for name, size in sizes.items() if size >= 150} == {}
    (tmp_path / "a.js").write_bytes(os.urandom(200_000))
    (tmp_path / "a.html").write_text("<script src='a.js'></script><script src='b.js' defer></script>")
    assert first_content.blocking_size(tmp_path / "a.html") > 200_000
