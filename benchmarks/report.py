"""From readings to ratios, targets and the printed table."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.cases import CPU_TARGETS, GRID_FLOOR, GRID_GOAL, MLP_3, NEVER_SLOWER, NOTHING, OURS, P0, P1

Report = dict[str, Any]


def rate(reading: dict[str, Any]) -> float | None:
    """Images a second of the median repeat."""
    return reading["steps"] * reading["batch"] / median(reading["seconds"]) if reading["seconds"] else None


def met(ratio: float | None, floor: float, goal: float | None) -> str:
    """What a ratio reaches: "goal", "floor", "missed", or "not read"."""
    if ratio is None:
        return "not read"
    if goal is not None and ratio >= goal:
        return "goal"
    return "floor" if ratio >= floor else "missed"


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or below is None else above / below


def rates(report: Report) -> dict[str, dict[str, float | None]]:
    """{case: {way: img/s}}."""
    found: dict[str, dict[str, float | None]] = {}
    for reading in report["readings"]:
        found.setdefault(reading["case"], {})[reading["way"]] = rate(reading)
    return found


def targets(report: Report) -> list[dict[str, Any]]:
    """Each target with the ratio read: ours over a peer in img/s, a grid's workers over the runs in turn.

    Targets are set for CPUs only, those at 32x32 for CPUs that multiply bf16. Where P1 is fastest in fp32, there is no
    fast bf16, and ours is never slower.
    """
    if report["device_kind"] != "cpu":
        return []
    by_case = rates(report)
    fp32 = {r["case"] for r in report["readings"] if r["way"] == P1 and r["precision"] == "fp32"}
    bounds: list[tuple[str, str, float, float | None]]
    bounds = [(t.case.name, t.peer, t.floor, t.goal) for t in CPU_TARGETS if t.case.name in by_case]
    flat = (NOTHING.name, MLP_3.name)  # channels_last is a memory format of images
    bounds += [
        (r["case"], P1, NEVER_SLOWER, None)
        for r in report["readings"]
        if r["way"] == P1 and r["precision"] == "fp32" and r["seconds"] and not r["case"].startswith(flat)
    ]
    rows: list[dict[str, Any]] = [
        {"what": case, "against": peer, "ratio": _ratio(by_case[case].get(OURS), by_case[case].get(peer)),
         "floor": floor, "goal": goal}
        for case, peer, floor, goal in bounds
    ]  # fmt: skip
    rows += [
        {"what": f"grid: {g['name']}", "against": "in turn, all threads",
         "ratio": median(g["in_turn"]) / median(g["workers"]), "floor": GRID_FLOOR, "goal": GRID_GOAL}
        for g in report["grids"]
    ]  # fmt: skip
    for row in rows:
        row["met"] = met(row["ratio"], row["floor"], row["goal"])
        if row["met"] == "missed" and row["against"] == P0 and "32x32" in row["what"] and row["what"] in fp32:
            row["met"] = "no fast bf16"
    return rows


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _table(rows: list[list[str]]) -> list[str]:
    """Columns as wide as their widest cell; the first two to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.ljust, str.ljust] + [str.rjust] * len(widths)
    return ["  ".join(f(cell, w) for f, cell, w in zip(pad, row, widths, strict=False)).rstrip() for row in rows]


def case_lines(case: dict[str, Any], report: Report) -> list[str]:
    """The table of one case."""
    best = max(v for k, v in report["peaks"].items() if k.startswith("matmul"))
    copy = report["peaks"]["copy_gb_per_s"]
    mine = rates(report)[case["name"]].get(OURS)
    rows = [["way", "", "img/s", "ours is", "us/step", "min..max", "FLOP %", "copy %", "first step s", "peak MiB"]]
    errors = []
    for reading in (r for r in report["readings"] if r["case"] == case["name"]):
        images = rate(reading)
        if reading["error"] or images is None:
            errors.append(f"{reading['way']}: {reading['error']}")
            continue
        each = [s / reading["steps"] * 1e6 for s in reading["seconds"]]
        traffic = case["bytes_per_image"] / (1 if reading["precision"] == "fp32" else 2)
        rows.append([
            reading["way"], reading["precision"], _number(images),
            f"{mine / images:.2f}x" if mine else "-", _number(median(each)), f"{min(each):,.0f}..{max(each):,.0f}",
            _number(100 * images * case["flop_per_image"] / best / 1e9, 1),
            _number(100 * images * traffic / copy / 1e9, 1),
            _number(reading["first_step"], 1), _number(reading["memory_mb"]),
        ])  # fmt: skip
    steps = max((r["steps"] for r in report["readings"] if r["case"] == case["name"]), default=0)
    title = f"{case['flop_per_image'] / 1e6:,.1f} MFLOP and {case['bytes_per_image'] / 1e6:,.2f} MB an image"
    if case["net"] == NOTHING.name:
        title = "step overhead, a net that does nothing"
    return [f"{case['name']}: {title}, {steps} steps a repeat", *_table(rows), *errors, ""]


def lines(report: Report) -> list[str]:
    """The whole report as text."""
    peaks = ", ".join(f"{name.replace('_', ' ')} {value:,.0f}" for name, value in report["peaks"].items())
    before, after = (f"{load[0]:.1f}" for load in report["load"])
    out = [
        f"{report['device']}, {report['threads']} threads, torch {report['versions']['torch']}, "
        f"{report['minutes']:.1f} min, load {before} before and {after} after",
        f"peaks: {peaks}",
        *report["notes"],
        "",
    ]
    for case in report["cases"]:
        out += case_lines(case, report)
    for g in report["grids"]:
        in_turn, workers = median(g["in_turn"]), median(g["workers"])
        out.append(
            f"grid of 8 runs, {g['name']}: in turn with all threads {in_turn:.2f} s, in workers {workers:.2f} s "
            f"({in_turn / workers:.2f}x); the first grid {g['first']:.2f} s ({in_turn / g['first']:.2f}x)"
        )
    rows = [["target", "ours against", "ratio", "floor", "goal", "met"]]
    rows += [
        [t["what"], t["against"], _number(t["ratio"], 2), _number(t["floor"], 1), _number(t["goal"], 1), t["met"]]
        for t in targets(report)
    ]
    return [*out, "", *(_table(rows) if len(rows) > 1 else ["no targets are set for this device"])]
