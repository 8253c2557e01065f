"""The command ``normbook``: a thin face over the rest.

Exit codes: 0 as expected; 1 a verdict differs or a control failed; 2 bad input; 3 a chapter or normbook crashed;
130 stopped; 141 whoever read its output has gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
import webbrowser
from pathlib import Path

import click

from normbook import (
    __version__,
    chapters,
    claims,
    cluster,
    manual,
    norms,
    plan,
    probed,
    report,
    stability,
    sweep,
    train,
)
from normbook import data as datasets
from normbook.errors import InputError, choose

RESULTS = "normbook-results"

# read in `main`: it is there also where the command line cannot be parsed
debug = click.option("--debug", is_flag=True, expose_value=False, help="show the traceback of what goes wrong")


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    help=manual.SAYS,
    epilog=manual.MORE,
)
@click.version_option(__version__)
@debug
def commands() -> None:
    """The commands; each is a function below."""


@commands.command(short_help="Run CHAPTER (5, 05, skipinit or all) and judge its claims.")
@click.argument("chapter")
@click.option(
    "--scale", default="quick", show_default=True, help="quick, cifar or paper; tiny tries the code and judges nothing"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="base seed: none shares a run")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32 or bf16")
@click.option("--norm", default="normbook.norms", show_default=True, help="namespace with torch.nn's norm classes")
@click.option("--data", default="", help="data set: NAME, NAME:PATH or PATH  [default: the digits]")
@click.option("--out", type=Path, default=None, help="existing folder for the results  [default: normbook-results]")
@click.option("--plan", "cost", is_flag=True, help="run nothing, say what the runs at scale cifar or paper cost")
@click.option("--only", default="", help="a part of those runs, as in depth=16,arm=bn")
@click.option("--on", default="", help="run them on a cluster: ray://HOST:PORT, or ray for this machine")
@click.option("--json", "as_json", is_flag=True, help="print the verdicts as JSON")
@debug
def run(
    chapter: str, scale: str, seed: int, device: str, precision: str, norm: str, data: str, out: Path | None,
    cost: bool, only: str, on: str, as_json: bool,
) -> int:  # fmt: skip
    """Run CHAPTER (5, 05, skipinit or all) and judge its claims.

    Writes OUT/NN_slug/notebook.ipynb and OUT/NN_slug/verdicts.json. The expected verdicts are the committed ones. At
    scale cifar and paper it runs what is not recorded yet, in results/SCALE/records or, with --out, OUT/records.
    """
    paths = list(claims.chapters().values()) if chapter == "all" else [claims.find(chapter)]
    parameters = {
        "scale": scale, "seed": seed, "device": device, "precision": precision, "norm": norm, "data": data,
    }  # fmt: skip
    choose("scale", scale, (*claims.SCALES, "tiny"))
    there = device  # on the cluster; the chapter is read, and its figures are drawn, with what this machine has
    if on:
        parameters["device"] = device = "auto"
    here = train.resolve_device(device)
    train.resolve_precision(precision, scale, here)
    if (cost or only or on) and scale not in sweep.KEPT:
        kept = " or ".join(sweep.KEPT)
        raise InputError(f"--plan, --only and --on are for scale {kept}: scale {scale} keeps no runs")
    if data:
        parameters["data"] = str(datasets.locate(data))  # the chapter runs in another folder
        datasets.load(data)  # not every chapter reads it: say at once what is wrong with it
    sys.path.insert(0, os.getcwd())  # a norm namespace of the user's own may stand beside us
    declared = {path: claims.load(path.stem, **parameters) for path in paths}
    for one in declared.values():
        norms.namespace(norm, one.needs)
    if cost:
        for one in declared.values():
            place = sweep.place(scale, out or Path(RESULTS))
            click.echo(plan.describe(one, scale, place, train.describe_device(here), only))
        return 0
    if scale in sweep.KEPT:  # what is wrong with the runs or with their data is said before a folder is made
        keep = {path: sweep.only(only, [*one.scan, *one.runs]) for path, one in declared.items()}
        place = _place(scale, out or Path(RESULTS), out)
        lacking = {path: one for path, one in declared.items() if not _complete(one, place)}
        for name in {config.data for one in lacking.values() for config in (*one.scan, *one.runs)}:
            datasets.load(name)
    folder = _folder(out)
    if device == "auto" and here == "cpu" and not on:
        click.echo("device auto: no GPU here, running on the CPU", err=True)
    worst = 0
    for path in paths:
        click.echo(f"{path.stem}: running at scale {scale}, base seed {seed}", err=True)
        if scale in sweep.KEPT:
            place = _place(scale, folder, out)
            place.mkdir(parents=True, exist_ok=True)
            if path in lacking:
                with cluster.connect(on, there) if on else contextlib.nullcontext() as engine:
                    sweep.train(declared[path], place, keep[path], device=here, engine=engine)
            if only:
                view = plan.outlook(declared[path], place)
                click.echo(f"{path.stem}: {len(view.there):,} of {len(view.runs):,} runs are recorded in {place}")
                continue
            if path in lacking:
                probed.measure(probed.of(declared[path], place), probed.place(place))
        executed = chapters.execute(path, folder / path.stem, parameters)
        rows = chapters.listing(path, executed)
        if not executed.verdicts:  # the recorded verdicts are not of this run
            rows = [row | {"scales": dict.fromkeys(row["scales"])} for row in rows]
        chapters.write_text(folder / path.stem / "verdicts.json", json.dumps(rows, indent=1) + "\n")
        if as_json or executed.verdicts:
            click.echo(json.dumps(rows, indent=1) if as_json else report.table(rows, scale))
        others = stability.agreement(declared[path].number) if seed and scale == "quick" else []
        failed = (chapters.committed(scale, declared[path].number) or {}).get("controls_failed", [])
        worst = max(worst, report.differs(rows, scale, executed, {one.id: one for one in others}, failed))
    return worst


def _complete(chapter: claims.Chapter, place: Path) -> bool:
    """Whether all its runs and measurements are recorded, so that no data set is needed."""
    view = plan.outlook(chapter, place)
    return len(view.there) == len(view.runs) and not probed.lacking(probed.of(chapter, place), probed.place(place))


def _place(scale: str, folder: Path, out: Path | None) -> Path:
    """The folder for a scale's records: in a given folder, else in the checkout."""
    # an installed package is no place for them
    beside = out is not None or not (claims.ROOT / "pyproject.toml").exists()
    return folder / "records" if beside else sweep.place(scale, folder)


def _folder(out: Path | None) -> Path:
    folder = out or Path(RESULTS)
    if out is None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}; name another with --out") from None
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist; make it first"
        raise InputError(f"the output folder {folder} {what}")
    if not os.access(folder, os.W_OK):
        raise InputError(f"the output folder {folder} is read-only")
    return folder.resolve()


@commands.command("claims", short_help="List every claim with its recorded verdicts.")
@click.option("--json", "as_json", is_flag=True, help="print every claim as JSON")
@debug
def list_claims(as_json: bool) -> int:
    """List every claim with its recorded verdicts. Nothing is trained.

    These are verdicts of base seed 0, as they are recorded. Where fewer than 95 % of the recorded passes agree, the
    line has their outcomes, and the book shows the claim as inconclusive.
    """
    rows = [row for path in claims.chapters().values() for row in chapters.listing(path)]
    found = [one for path in claims.chapters().values() for one in stability.agreement(int(path.stem[:2]))]
    unsure = {one.id: one for one in found if one.share < stability.AGREE}
    click.echo(json.dumps(rows, indent=1) if as_json else report.table(rows, known=unsure))
    return 0


@commands.group(
    "data", invoke_without_command=True, short_help="List the data sets that are decoded; `data fetch` brings one."
)
@click.option("--data", "place", default="", help="folder with decoded images  [default: ~/.cache/normbook]")
@click.pass_context
@debug
def list_data(context: click.Context, place: str) -> None:
    """List the data sets that are decoded and ready, after checking them."""
    if context.invoked_subcommand is None:
        for found in datasets.present(place):
            click.echo(found if isinstance(found, InputError) else _line(found))


@list_data.command()
@click.option("--data", default="", help="folder to bring CIFAR-10 into, or any data set  [default: ~/.cache/normbook]")
@debug
def fetch(data: str) -> None:
    """Bring a data set for use without a network: download CIFAR-10 if it is not there, decode, check."""
    click.echo(_line(datasets.fetch(data)))


def _line(found: datasets.Dataset) -> str:
    n = len(found.train) + len(found.validation) + len(found.test)
    shape = "x".join(map(str, found.shape))
    return f"{found.name:24} {n:7,} images  {found.classes:4} classes  {shape:10} {found.content_hash}"


@commands.command(short_help="Run what changed at scale quick and build the book.")
@click.option("--committed", is_flag=True, help="build from the committed outputs, run nothing")
@click.option("--strict", is_flag=True, help="make warnings errors")
@click.option("--build-dir", type=Path, default=Path("_build"), show_default=True)
@debug
def book(committed: bool, strict: bool, build_dir: Path) -> int:
    """Run the chapters that changed at scale quick and build the book."""
    from normbook import book as pages

    if not (claims.ROOT / "_config.yml").exists():
        raise InputError("the book's pages are not in this installation; build it from a clone of the repository")
    if build_dir.exists() and not build_dir.is_dir():
        raise InputError(f"the build folder {build_dir} is not a folder")
    if committed:
        executed = [chapters.read(path) for path in claims.chapters().values()]
    else:
        executed = pages.executed_chapters(build_dir / "executed")
    pages.stage(executed, build_dir / "stage")
    # Jupyter Book writes into a folder _build of its own
    page = pages.build(build_dir / "stage", build_dir.parent if build_dir.name == "_build" else build_dir, strict)
    click.echo(f"The book: {page.resolve()}")
    return 0


@commands.command("open", short_help="Open the built book in the browser.")
@debug
def open_book() -> int:
    """Open the built book in the browser."""
    page = Path("_build/html/index.html").resolve()
    if not page.exists():
        raise InputError(f"{page} is not there: build the book first, with make book")
    if not webbrowser.open(page.as_uri()):
        raise InputError(f"no browser was opened; the book is {page}")
    return 0


@commands.command("pdf", short_help="Print the built book into one PDF, with chromium.")
@debug
def print_book() -> int:
    """Print the built book into _build/normbook.pdf, one file, with chromium."""
    from normbook import pdf

    if lacking := pdf.without_font():
        click.echo(
            f"no font here has {' and '.join(lacking)} letters, they print as boxes: install fonts-noto-cjk", err=True
        )
    click.echo("printing, which takes a minute or two", err=True)
    target = Path("_build/normbook.pdf")
    pages = pdf.write(Path("_build/html"), target)
    click.echo(f"{pages} pages: {target.resolve()}")
    return 0


@commands.command(short_help="Rewrite committed outputs and expected verdicts.")
@click.argument("chapter", default="all")
@click.option("--scale", default="quick", show_default=True, help="quick; cifar or paper judge what is recorded")
@debug
def refresh(chapter: str, scale: str) -> int:
    """Run chapters at scale quick and rewrite their committed outputs and expected verdicts.

    At scale cifar and paper nothing is trained: verdicts and the key figure are made from the recorded runs.
    """
    from normbook import refreshed

    choose("scale", scale, claims.SCALES)
    kept, worst = scale in sweep.KEPT, 0
    for path in list(claims.chapters().values()) if chapter == "all" else [claims.find(chapter)]:
        if not kept:
            click.echo(f"{path.stem}: running at scale quick", err=True)
        failed = refreshed.from_records(path, scale) if kept else refreshed.by_running(path)
        if kept or not failed:
            click.echo(report.table(chapters.listing(path), scale))
        what = "it has no verdict" if kept else "nothing is rewritten"
        for key, verdict in failed.items():
            click.echo(f"{key}: its control failed ({verdict.control_verdict}); {what}", err=True)
        worst = max(worst, int(bool(failed)))
        if failed and not kept:
            break
    return worst


@commands.command(short_help="Check layers of your own: formulas, then the claims.")
@click.option("--norm", required=True, help="your namespace with torch.nn's norm classes")
@click.argument("parts", nargs=-1)
@debug
def check(norm: str, parts: tuple[str, ...]) -> int:
    """Check layers of your own: their formulas, then the claims of the chapters with them in place of ours.

    PARTS: `layers` (seconds) or chapters (a minute or two each); without any, everything.
    """
    import pytest  # of the extra `test`

    sys.path.insert(0, os.getcwd())  # the namespace may stand here
    norms.namespace(norm, ())
    chosen = [claims.find(part).stem for part in parts if part != "layers"]
    here = Path(__file__).parent / "checks"
    files = [str(here / "test_layers.py")] if not parts or "layers" in parts else []
    files += [str(here / "test_chapters.py")] if not parts or chosen else []
    options = ["-k", " or ".join(["test_layers", *chosen])] if chosen else []
    quiet = ["-q", "--no-header", "--tb=no", "-rN", "--import-mode=importlib", "-p", "no:cacheprovider"]
    code = pytest.main([*quiet, "-p", "normbook.checks.plugin", "--norm", norm, *options, *files])
    return {0: 0, 1: 1}.get(int(code), 3)


@commands.command("stability", short_help="Run chapters again in other ways: do verdicts agree?")
@click.argument("chapter", default="all")
@click.option("--show", is_flag=True, help="run nothing, print what is recorded")
@debug
def run_stability(chapter: str, show: bool) -> int:
    """Run chapters again with other base seeds, in bf16, on one core and without AVX-512, and print how far the
    verdicts agree. What is recorded by this very code is not run again: stop it at any moment."""
    paths = list(claims.chapters().values()) if chapter == "all" else [claims.find(chapter)]
    flips = 0
    for path in paths:
        number, stamp = int(path.stem[:2]), chapters.stamp(path)
        todo = [] if show else stability.missing(number, stamp)
        for i, (way, seed) in enumerate(todo):
            click.echo(f"{path.stem}: {way}, base seed {seed} ({i + 1} of {len(todo)})", err=True)
            try:
                stability.run(path.stem, way, seed)
            except InputError as error:  # this machine has no bf16, or cannot bind a process to a core
                click.echo(f"{path.stem}: not run {way}: {error}", err=True)
        click.echo(f"{path.stem}: {stability.summary(number, stamp) or 'no passes recorded'}")
        flips += sum(one.flips for one in stability.agreement(number))
    return 1 if flips else 0


def main() -> None:
    """Run the command line; every error a user can make is one line on stderr and exit code 2."""
    try:
        code = commands(standalone_mode=False) or 0
    except SystemExit:  # click's own, with code 1: whoever read our output has gone, as `head` does
        sys.exit(141)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(2)
    except (Exception, KeyboardInterrupt) as error:
        code, text = _said(error)
        if code == 130:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C finds us ending already
            logging.getLogger("asyncio").disabled = True  # it would report the notebook's task that ended with us
        if "--debug" in sys.argv[1:]:
            traceback.print_exc()
        click.echo(f"normbook: {' '.join(text.split())}", err=True)
    sys.exit(code)


def _said(error: BaseException) -> tuple[int, str]:
    """The exit code of an error and what is said about it."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130, "stopped"
    if isinstance(error, click.ClickException):
        return 2, error.format_message()
    if isinstance(error, InputError):
        return 2, str(error)
    if isinstance(error, chapters.ChapterCrashed):
        return 3, f"chapter crashed: {error}; --debug shows where"
    if isinstance(error, OSError):  # a folder that cannot be written, a full disk
        return 2, ": ".join(str(part) for part in (error.filename, error.strerror or error) if part)
    # never exit code 1, which says that a verdict differs
    place = traceback.extract_tb(error.__traceback__)[-1]
    return 3, f"crashed at {place.filename}:{place.lineno}: {type(error).__name__}: {error}; --debug shows more"


if __name__ == "__main__":
    main()
