"""Planted faults: what the suite must see, as data, and the command that plants them one at a time."""

from __future__ import annotations

from dataclasses import dataclass

FAMILIES = ("normalization", "models", "training", "judging")
TORCH = "torch"  # the file of a fault in a function of torch


@dataclass(frozen=True)
class Fault:
    """One fault: in ``file`` (relative to src/normbook) the text ``old``, there exactly once, becomes ``new``.

    With ``file`` "torch", ``old`` is the dotted name of a function of torch, and ``new`` the expression that takes its
    place, in which ``honest`` is the function itself and ``torch`` the module. ``suite`` lists the pytest node ids that
    should see the fault, the cheapest first. ``blind``: chosen by somebody who had not read the tests. ``survivor``:
    the reason why no test can see it; empty where one must.
    """

    id: str
    family: str
    file: str
    old: str
    new: str
    what: str
    suite: tuple[str, ...]
    blind: bool = False
    survivor: str = ""
