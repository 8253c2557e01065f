"""How soon a page of the built book shows something on a slow phone, and how much must arrive before.

    python benchmarks/first_content.py [SITE] [PAGE ...]

SITE is the folder of the built book (_build/html), the pages are given relative to it; without any, the index and the
chapter with the largest page. Prints, per page, the gzipped kB of HTML, style sheets and scripts that block, and First
Contentful Paint in seconds, the median of five loads by Chromium with a processor 4 times slower, 1.6 Mbit/s and 150 ms
latency. The server here compresses, as hosts of static sites do.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import http.server
import mimetypes
import statistics
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

from playwright.sync_api import Browser, sync_playwright

from normbook import pdf

LOADS = 5
PACKED = ("text/", "application/javascript", "application/json", "image/svg")
PAINT = """() => new Promise((done) => new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) if (entry.name === "first-contentful-paint") done(entry.startTime);
}).observe({ type: "paint", buffered: true }))"""


class Blocking(HTMLParser):
    """The files that a page waits for before it shows anything: style sheets, and scripts not deferred."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.files: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "link" and found.get("rel") == "stylesheet" and found.get("media") != "print":
            self.files.append(found["href"] or "")
        if tag == "script" and found.get("src") and not {"defer", "async"} & set(found):
            self.files.append(found["src"] or "")


def blocking_size(page: Path) -> int:
    """Gzipped bytes of a page's HTML and of the files that it waits for."""
    text = page.read_text(encoding="utf-8")
    files = {(page.parent / urlparse(name).path).resolve() for name in Blocking(text).files}
    return sum(len(gzip.compress(file.read_bytes())) for file in (page, *files))


class Server(http.server.SimpleHTTPRequestHandler):
    """Static files, compressed."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.send_error(404)
        kind, content = mimetypes.guess_type(path)[0] or "application/octet-stream", path.read_bytes()
        self.send_response(200)
        if kind.startswith(PACKED) or path.suffix == ".js":
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the page is closed at its first paint
            self.wfile.write(content)


def first_paint(browser: Browser, address: str) -> float:
    """Seconds until First Contentful Paint, with an empty cache."""
    context = browser.new_context(viewport={"width": 360, "height": 740})
    try:
        page = context.new_page()
        devtools = context.new_cdp_session(page)
        devtools.send("Network.enable")
        speed = 1.6e6 / 8  # bytes a second
        limits = {"offline": False, "latency": 150, "downloadThroughput": speed, "uploadThroughput": speed}
        devtools.send("Network.emulateNetworkConditions", limits)
        devtools.send("Emulation.setCPUThrottlingRate", {"rate": 4})
        page.goto(address, wait_until="commit", timeout=120_000)
        return float(page.evaluate(PAINT)) / 1000
    finally:
        context.close()


def main(arguments: list[str]) -> None:
    site = Path(arguments[0] if arguments else "_build/html")
    heaviest = max(site.glob("notebooks/*.html"), key=blocking_size).relative_to(site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = pdf.launch(playwright)
        print("page                                      kB   first paint, s (all)")
        for name in arguments[1:] or ["book/index.html", str(heaviest)]:
            address = f"http://127.0.0.1:{server.server_port}/{name}"
            times = [first_paint(browser, address) for _ in range(LOADS)]
            every = " ".join(f"{t:.2f}" for t in sorted(times))
            print(f"{name:38} {blocking_size(site / name) / 1e3:5.0f}   {statistics.median(times):.2f} ({every})")
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
