"""A built site, served on this machine, and a browser that is there; without one these tests say so and are skipped."""

from __future__ import annotations

import functools
import http.server
import threading
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from normbook import pdf

# fonts are there, and formulas are drawn where a page has any
SETTLED = "() => Promise.all([document.fonts.ready, window.MathJax?.startup?.promise])"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--site", default="_build/test/_build/html", help="folder of the built book")


@pytest.fixture(scope="session")
def root(request: pytest.FixtureRequest) -> Path:
    folder = Path(request.config.getoption("--site"))
    if not (folder / "index.html").exists():
        pytest.fail(f"{folder} holds no built book; make it with: normbook book --committed --build-dir _build/test")
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a page."""
    if "page_name" in metafunc.fixturenames:
        folder = Path(metafunc.config.getoption("--site"))
        names = sorted(
            str(p.relative_to(folder)) for part in ("book", "notebooks") for p in (folder / part).glob("*.html")
        )
        # the pages that Sphinx adds; index.html only leads to book/index.html
        names += [name for name in ("search.html", "genindex.html", "py-modindex.html") if (folder / name).exists()]
        metafunc.parametrize("page_name", names)


@pytest.fixture(scope="session")
def address(root: Path) -> str:
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="session")
def browser():  # type: ignore[no-untyped-def]
    """Chromium or Chrome of this machine, or Playwright's own."""
    with sync_playwright() as playwright:
        try:
            found: Browser = pdf.launch(playwright)
        except Error as error:
            pytest.skip(f"no browser here: install chromium, or run playwright install chromium ({str(error)[:80]})")
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser, address: str):  # type: ignore[no-untyped-def]
    """Opens a page of the site; afterwards ``problems`` are its script errors and its requests to other hosts."""
    contexts = []

    def open_(name: str, width: int = 1280, theme: str = "light") -> tuple[Page, list[str]]:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)  # type: ignore[arg-type]
        context.set_default_timeout(180_000)  # ms; a busy machine is no fault of the page
        contexts.append(context)
        page, problems = context.new_page(), []
        watch(page, problems, address)
        page.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
        page.goto(name if "://" in name else f"{address}/{name}", wait_until="load")
        page.evaluate(SETTLED)
        return page, problems

    yield open_
    for context in contexts:
        context.close()


def watch(page: Page, problems: list[str], *hosts: str) -> None:
    """Write down script errors, and requests that go anywhere but to ``hosts``."""
    page.on("pageerror", lambda error: problems.append(f"script error: {error}"))

    def request(url: str) -> None:
        if not url.startswith((*hosts, "file:", "data:", "blob:", "about:")):
            problems.append(f"outside request: {url}")

    page.on("request", lambda sent: request(sent.url))
