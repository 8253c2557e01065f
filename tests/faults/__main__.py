"""``make faults``: plant every fault, one at a time, and print which test catches it.

Exit code 0: every fault is caught, or survives with its reason listed; 1: one survives without; 2: a bad list of
faults, or a suite that fails without any fault.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from faults import FAMILIES, Fault
from faults.faults import FAULTS
from faults.plant import PRELOAD, BadList, Copy, Outcome, complaints, plant


def table(outcomes: Sequence[Outcome]) -> str:
    """One line a fault: id, family, the test that caught it, seconds; then what became of them all."""
    rows = [("fault", "family", "seconds", "caught by")]
    for one in outcomes:
        caught = one.caught_by or ("SURVIVES" if one.unlisted else f"survives: {one.fault.survivor}")
        name = f"{one.fault.id} (chosen blind)" if one.fault.blind and "blind" not in one.fault.id else one.fault.id
        rows.append((name, one.fault.family, f"{one.seconds:.1f}", caught))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in rows]
    count = Counter(one.fault.family for one in outcomes)
    families = ", ".join(f"{count[family]} {family}" for family in FAMILIES if count[family])
    unlisted = sum(one.unlisted for one in outcomes)
    survived = sum(not one.caught_by for one in outcomes)
    lines.append(
        f"{len(outcomes)} faults ({families}): {len(outcomes) - survived} caught, {survived - unlisted} survive for a "
        f"reason, {unlisted} without one"
    )
    lines += [
        f"{one.fault.id} is caught: it need not be listed as a survivor"
        for one in outcomes
        if one.caught_by and one.fault.survivor
    ]
    return "\n".join(lines)


def run(faults: Sequence[Fault]) -> int:
    """Plant each of ``faults``, print the table, and return the exit code."""
    try:
        if wrong := complaints(faults):
            raise BadList("\n".join(wrong))
        with tempfile.TemporaryDirectory(prefix="normbook-faults-") as folder:
            copy = Copy(Path(folder))
            suites = list(dict.fromkeys(node for fault in faults for node in fault.suite))
            # a test that always fails would "catch" everything
            if failed := copy.run(suites, None):
                raise BadList(f"without any fault this test fails: {failed}")
            bar = tqdm(faults, unit="fault", leave=False, disable=not sys.stderr.isatty())
            outcomes = [plant(copy, fault) for fault in bar]
    except BadList as error:
        print(f"faults: {error}", file=sys.stderr)
        return 2
    print(table(outcomes))
    return int(any(one.unlisted for one in outcomes))


def main(arguments: Sequence[str]) -> int:
    """Plant the faults with these ids, all of them without any."""
    known = {fault.id: fault for fault in FAULTS}
    if unknown := [name for name in arguments if name not in known]:
        print(f"faults: no fault {unknown[0]!r} (one of: {', '.join(known)})", file=sys.stderr)
        return 2
    if wrong := complaints(FAULTS):  # the share of survivors is that of the whole list
        print("faults: " + "\n".join(wrong), file=sys.stderr)
        return 2
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOAD))
    return run([known[name] for name in arguments] or FAULTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
