"""Progress of a grid, or of decoding, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm import tqdm


class _Lines:
    """A text stream for tqdm where there is no terminal: a line a report, not a line rewritten in place."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(text.strip("\r\n ") + "\n")

    def flush(self) -> None:
        self.stream.flush()


def bar(total: int, initial: int, unit: str = "run") -> tqdm:
    """Runs (or another unit) done, left and time to go on stderr; every 10 seconds where there is no terminal."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total, initial=initial, unit=unit, file=sys.stderr if terminal else _Lines(sys.stderr),
        mininterval=0.2 if terminal else 10, maxinterval=10, delay=0 if terminal else 10, smoothing=0,
    )  # fmt: skip
