"""What a user did wrong, said in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: its text is one line that says what is wrong and what to do. The command line exits with 2."""


class ChapterCrashed(RuntimeError):
    """A chapter's code raised an error that is not bad input, or its kernel died. The command line exits with 3."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the valid name closest to ``name``, or ``""`` where none is close."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def choose(kind: str, name: str, valid: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``valid``.

    Raises:
        InputError: naming the nearest valid name, and all of them.
    """
    names = list(valid)
    if name not in names:
        raise InputError(f"unknown {kind} {name!r}{nearest(name, names)} (one of: {', '.join(names)})")
    return name
