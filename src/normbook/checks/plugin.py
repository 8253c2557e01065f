"""The pytest plugin of the checks: the option ``--norm`` and what the checks need of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from normbook import chapters, claims, norms, stability
from normbook.chapters import Executed
from normbook.errors import InputError


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("normbook")
    group.addoption("--norm", default="", help="importable namespace with torch.nn's normalization classes")


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--norm")
    if not name:
        raise pytest.UsageError("which layers are to be checked? give --norm package.module, as --norm torch.nn")
    sys.path.insert(0, os.getcwd())  # where a namespace of the user's own may stand
    try:
        norms.namespace(name, ())
    except InputError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.fixture(scope="session")
def norm(request: pytest.FixtureRequest) -> ModuleType:
    """The namespace under test."""
    return norms.namespace(request.config.getoption("--norm"), ())


@pytest.fixture(scope="session")
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Executed | InputError:
    """A chapter, run once at scale quick with the namespace's layers; why not, if it lacks a class that is needed."""
    path: Path = request.param
    name = request.config.getoption("--norm")
    try:
        norms.namespace(name, claims.load(path.stem, norm=name).needs)
    except InputError as error:
        return error
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():  # type: ignore[union-attr]
        print(f"\n{path.stem}: running at scale quick with the layers of {name}", file=sys.stderr, flush=True)
    return chapters.execute(path, tmp_path_factory.mktemp(path.stem), {"norm": name})


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a claim, those of a chapter next to each other: the chapter runs once."""
    if "claim_id" in metafunc.fixturenames:
        found = [(path, claim) for path in claims.chapters().values() for claim in claims.load(path.stem).claims]
        names = [f"{path.stem}-{claim.id}" for path, claim in found]
        metafunc.parametrize(
            ("executed", "claim_id"), [(path, claim.id) for path, claim in found], indirect=["executed"], ids=names,
            scope="session",
        )  # fmt: skip


def allowed(number: int, key: str) -> set[str]:
    """The verdicts that our own layers give a claim: the committed one, and those of the recorded passes.

    A claim on the edge is inconclusive for some base seeds; a layer that differs by rounding may end there too.
    """
    committed = (chapters.committed("quick", number) or {"verdicts": {}})["verdicts"]
    kinds = {one.verdicts[key].verdict for one in stability.read(number) if key in one.verdicts}
    return kinds | ({committed[key].verdict} if key in committed else set())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which hold, in a line; which do not, in a line each."""
    stats = terminalreporter.stats
    held, failed = (len(stats.get(kind, [])) for kind in ("passed", "failed"))
    skipped = len(stats.get("skipped", []))
    terminalreporter.section(f"layers of {terminalreporter.config.getoption('--norm')}")
    for report in stats.get("failed", []):
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = crash.message.splitlines()[0].removeprefix("AssertionError: ") if crash else "failed"
        terminalreporter.line(f"does not hold: {report.nodeid.split('::')[-1]}: {reason}")
    terminalreporter.line(f"{held} hold, {failed} do not, {skipped} were not checked (a class is missing)")
