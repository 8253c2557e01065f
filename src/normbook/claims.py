"""Claims that are declared before their data, and verdicts by region and interval.

A claim names a statistic, its unit, a region, a confidence level and n. It is ``reproduced`` where its whole interval
lies in the region, ``not reproduced`` where it lies wholly outside, else ``inconclusive``. Each claim is judged beside
a control: the same statistic with the same n where the claim is false by construction.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from normbook.errors import ChapterCrashed, InputError, choose

SCALES = ("quick", "cifar", "paper")
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = "reproduced", "not reproduced", "inconclusive"
SMALLEST_N = {"exact": 1, "t": 5, "share": 6, "bootstrap": 20}
MIME = "application/vnd.normbook.verdicts+json"

_HERE = Path(__file__).resolve().parent
# in a checkout the notebooks and results stand at the root, in a wheel inside the package
ROOT = _HERE if (_HERE / "notebooks").is_dir() else _HERE.parent.parent


@dataclass(frozen=True)
class Claim:
    """One claim, as data.

    ``quantity`` says what one value of the n is, ``unit`` in which units. ``region`` is (low, high): ``(T, None)``
    means > T, ``(None, T)`` means < T, ``(a, b)`` means from a to b. ``estimator``: "t" (mean of n paired values, t
    interval, n >= 5), "share" (successes among n runs, Clopper-Pearson, n >= 6), "bootstrap" (mean, BCa, n >= 20) or
    "exact" (one value, no interval: algebra that holds to rounding). ``control`` says where the claim is false by
    construction; ``planted`` which effect was planted to show that a claim that is not reproduced could have been.
    ``paper_value`` is the paper's own number of this quantity, if it has one; ``provenance`` says where it was read.
    """

    id: str
    statement: str
    source: str
    quantity: str
    unit: str
    region: tuple[float | None, float | None]
    control: str
    n: int
    estimator: str = "t"
    level: float = 0.95
    paper_value: float | None = None
    provenance: str = ""
    planted: str = ""

    def __post_init__(self) -> None:
        choose("estimator", self.estimator, SMALLEST_N)
        low, high = self.region
        bounds = [bound for bound in self.region if bound is not None]
        if not bounds or not np.isfinite(bounds).all() or (low is not None and high is not None and low >= high):
            raise InputError(f"claim {self.id}: region {self.region} is empty or everything")
        if self.estimator == "exact" and self.n != 1:
            raise InputError(f"claim {self.id}: an exact claim has n = 1, not {self.n}")
        if self.n < SMALLEST_N[self.estimator]:
            raise InputError(f"claim {self.id}: {self.estimator} needs n >= {SMALLEST_N[self.estimator]}, not {self.n}")
        if not 0.5 <= self.level < 1:
            raise InputError(f"claim {self.id}: level {self.level} is not in [0.5, 1)")


@dataclass(frozen=True)
class Verdict:
    """How one claim came out. ``control_verdict`` is that of the planted effect where the claim is not reproduced.

    The estimates of both say which they were: a control that was exchanged may have the same verdict. None: not kept.
    """

    verdict: str
    estimate: float
    ci_low: float
    ci_high: float
    n: int
    control_verdict: str
    control_estimate: float | None = None
    planted_estimate: float | None = None

    @property
    def control_holds(self) -> bool:
        """Whether the control came out as it must. The check can fail, and where it failed it could have passed."""
        return self.control_verdict == (REPRODUCED if self.verdict == NOT_REPRODUCED else NOT_REPRODUCED)


def interval(values: Sequence[float], estimator: str, level: float = 0.95) -> tuple[float, float, float]:
    """Estimate and confidence interval of ``values`` (for "share": 0 or 1 each).

    Raises:
        ValueError: a value is not finite, or a share's value is neither 0 nor 1.
    """
    x = np.asarray(values, dtype=float)
    if not np.isfinite(x).all():
        raise ValueError(f"values that are not finite cannot be judged: {x}")
    mean = float(x.mean())
    if estimator == "share":
        if not np.isin(x, (0, 1)).all():
            raise ValueError(f"a share counts successes, 0 or 1 each: {x}")
        bounds = stats.binomtest(int(x.sum()), len(x)).proportion_ci(level, method="exact")
        return mean, float(bounds.low), float(bounds.high)
    if estimator == "exact" or np.ptp(x) == 0:  # no spread: the interval is the value
        return mean, mean, mean
    if estimator == "t":  # written out: scipy's test warns where values differ in their last digits only
        half = float(stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5)
        return mean, mean - half, mean + half
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        bounds = stats.bootstrap((x,), np.mean, confidence_level=level, rng=0).confidence_interval
    return mean, float(bounds.low), float(bounds.high)


def compare(region: tuple[float | None, float | None], ci_low: float, ci_high: float) -> str:
    """The verdict of an interval against a region. One-sided regions are open, two-sided ones closed."""
    low, high = region
    if low is None or high is None:
        t = low if high is None else high
        assert t is not None
        above, below = ci_low > t, ci_high < t
        inside, outside = (above, ci_high <= t) if high is None else (below, ci_low >= t)
    else:
        inside, outside = low <= ci_low and ci_high <= high, ci_high < low or ci_low > high
    return REPRODUCED if inside else NOT_REPRODUCED if outside else INCONCLUSIVE


def judge_one(
    claim: Claim, values: Sequence[float], control: Sequence[float], planted: Sequence[float] | None = None
) -> Verdict:
    """Judge one claim on its n values and its control on as many.

    Raises:
        ValueError: the number of values is not the declared n.
    """

    def verdict_of(x: Sequence[float]) -> tuple[str, tuple[float, float, float]]:
        if len(x) != claim.n:
            raise ValueError(f"claim {claim.id} declares n = {claim.n}, but {len(x)} values were measured")
        found = interval(x, claim.estimator, claim.level)
        return compare(claim.region, found[1], found[2]), found

    verdict, (estimate, low, high) = verdict_of(values)
    negative, (control_estimate, *_) = verdict_of(control)
    effect, planted_estimate = "none planted", None
    if planted is not None:
        effect, (planted_estimate, *_) = verdict_of(planted)
    counted = effect if verdict == NOT_REPRODUCED else negative
    return Verdict(verdict, estimate, low, high, claim.n, counted, control_estimate, planted_estimate)


@dataclass(frozen=True)
class Judgement:
    """The verdicts of a chapter. ``str()`` gives the lines that nbval compares: ids and verdicts, no numbers."""

    scale: str
    claims: tuple[Claim, ...]
    verdicts: Mapping[str, Verdict]

    def __str__(self) -> str:
        if not self.verdicts:
            return f"scale {self.scale} judges nothing"
        return "\n".join(f"{key:8} {v.verdict:15} control: {v.control_verdict}" for key, v in self.verdicts.items())

    @property
    def table(self) -> str:
        """Estimates and intervals as a Markdown table; the quantity last, so that a phone shows the numbers."""
        rows = ["| id | verdict | estimate | interval | region | quantity |", "|---|---|---|---|---|---|"]
        for claim in self.claims:
            v = self.verdicts[claim.id]
            span = "exact" if claim.estimator == "exact" else f"{number(v.ci_low)} to {number(v.ci_high)}, n = {v.n}"
            quantity = claim.quantity.replace("|", "\\|")  # else the cell ends there
            rows.append(
                f"| {claim.id} | {v.verdict} | {number(v.estimate)} {claim.unit} | {span} "
                f"| {region_text(claim.region)} | {quantity} |"
            )
        return "\n".join(rows)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        if not self.verdicts:
            return {"text/plain": str(self)}
        data = {"scale": self.scale, "verdicts": {key: asdict(v) for key, v in self.verdicts.items()}}
        return {MIME: data, "text/markdown": self.table, "text/plain": self.table}


def judge(
    claims: Sequence[Claim],
    values: Mapping[str, Sequence[float]],
    controls: Mapping[str, Sequence[float]],
    planted: Mapping[str, Sequence[float]] | None = None,
    scale: str = "quick",
) -> Judgement:
    """Judge every claim of a chapter on what was measured. The tiny scale of the tests judges nothing.

    Beyond scale quick a value that is nan belongs to a run that is not recorded yet: its claim is left out.

    Raises:
        ValueError: a claim was not measured or has no control, or something was measured that no claim declares.
    """
    ids = [claim.id for claim in claims]
    for what, mapping in (("values", values), ("controls", controls)):
        if set(mapping) != set(ids):
            raise ValueError(f"{what} and claims differ: {sorted(set(mapping) ^ set(ids))}")
    if scale == "tiny":
        return Judgement(scale, tuple(claims), {})
    planted = planted or {}
    complete = [
        c for c in claims
        if scale == "quick" or not np.isnan([*values[c.id], *controls[c.id], *planted.get(c.id, ())]).any()
    ]  # fmt: skip
    verdicts = {c.id: judge_one(c, values[c.id], controls[c.id], planted.get(c.id)) for c in complete}
    return Judgement(scale, tuple(complete), verdicts)


def number(x: float) -> str:
    """Three significant digits, as tables print them."""
    return f"{x:.3g}" if abs(x) < 1000 or abs(x) >= 1e6 else f"{x:.0f}"


def region_text(region: tuple[float | None, float | None]) -> str:
    low, high = region
    if low is None:
        return f"< {high:g}"
    return f"> {low:g}" if high is None else f"{low:g} to {high:g}"


@dataclass(frozen=True)
class Chapter:
    """What a chapter declares: its number, slug (``05_skipinit``), title, claims, and the grids that it trains.

    ``closer`` are seeds with which the best scanned learning rates and their neighbours are scanned again. ``probes``
    gives, from the records of the scan, what its probes measure (`normbook.probed`).
    """

    number: int
    slug: str
    title: str
    path: Path
    claims: tuple[Claim, ...]
    scan: tuple[Any, ...]
    runs: tuple[Any, ...]
    needs: tuple[str, ...]
    closer: tuple[tuple[int, int], ...] = ()
    probes: Callable[[list[dict[str, Any]]], list[Any]] | None = None


def chapters() -> dict[str, Path]:
    """The chapters' notebooks by slug, in order."""
    return {path.stem: path for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))}


def find(chapter: str | int) -> Path:
    """The notebook of a chapter, named ``5``, ``05``, ``skipinit`` or ``05_skipinit``.

    Raises:
        InputError: no such chapter; the nearest name is given.
    """
    paths = chapters()
    names: dict[str, Path] = {}
    for slug, path in paths.items():
        names |= {str(int(slug[:2])): path, slug[:2]: path, slug[3:]: path, slug: path}
    if str(chapter) not in names:
        short = [name for slug in paths for name in (str(int(slug[:2])), slug[3:])]
        choose("chapter", str(chapter), short)
    return names[str(chapter)]


def cells(path: Path) -> list[dict[str, Any]]:
    """The cells of a notebook, as its file has them.

    Raises:
        InputError: the file cannot be read or is not a notebook.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
        if not isinstance(found, list):
            raise TypeError("its cells are no list")
        for cell in found:
            "".join(cell["source"]), cell["cell_type"], cell["metadata"].get("tags")  # what is read of it
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a notebook ({what}); restore it, for example with git") from None
    return found


def load(chapter: str | int, **parameters: Any) -> Chapter:
    """Execute a chapter's cells tagged ``parameters`` and ``declare``, and only those, and return what they declare.

    ``parameters`` override the chapter's own, by name.

    Raises:
        InputError: no such chapter, a parameter it does not have, or a scale that it declares no grid for.
        ChapterCrashed: a cell raised anything else, or it declares no claims.
    """
    path = find(chapter)
    found = cells(path)
    space: dict[str, Any] = {"__name__": path.stem}

    def execute(tag: str) -> None:
        for cell in found:
            if cell["cell_type"] == "code" and tag in cell["metadata"].get("tags", []):
                try:
                    exec(compile("".join(cell["source"]), f"{path.name} ({tag})", "exec"), space)
                except InputError:
                    raise
                except (Exception, SystemExit) as error:
                    what = f"{type(error).__name__}: {error}"
                    raise ChapterCrashed(f"{path.stem}, the cell tagged {tag!r}: {what}") from error

    execute("parameters")
    known = [name for name in space if not name.startswith("__")]
    for name, value in parameters.items():
        choose("parameter", name, known)
        space[name] = value
    execute("declare")
    if "CLAIMS" not in space:
        raise ChapterCrashed(f"{path.stem}, the cell tagged 'declare': it sets no CLAIMS")
    title = next(line for cell in found for line in "".join(cell["source"]).splitlines() if line.startswith("# "))
    return Chapter(
        int(path.stem[:2]), path.stem, title.removeprefix("# ").strip(), path, tuple(space["CLAIMS"]),
        tuple(space.get("SCAN", ())), tuple(space.get("RUNS", ())), tuple(space.get("NORMS", ())),
        tuple(space.get("CLOSER", ())), space.get("PROBES"),
    )  # fmt: skip
