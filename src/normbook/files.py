"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block has ended well and all of it is on the disk.

    Until then what was there stays. Raises OSError as `open` does.
    """
    unfinished = path.with_name(f".{path.name}.tmp")  # one a file: what a killed writer left is overwritten by the next
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
