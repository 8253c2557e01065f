"""Run chapters: execute their notebooks, stamp what they ran with, read their verdicts, and keep the committed ones."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nbformat
import torch

from normbook import claims, records, train
from normbook.claims import Claim, Verdict
from normbook.errors import ChapterCrashed, InputError
from normbook.files import whole

PACKAGE = Path(__file__).resolve().parent
CELL_SECONDS = 2000  # a quick chapter takes under 90; a cell that hangs is ended


@dataclass(frozen=True)
class Executed:
    """An executed chapter: its notebook, and the verdicts that its cells show."""

    path: Path
    notebook: nbformat.NotebookNode
    verdicts: dict[str, Verdict]

    @property
    def info(self) -> dict[str, Any]:
        """What it ran with. Stamp, scale, parameters, device, versions; seconds and start where it ran just now."""
        return dict(self.notebook.metadata.get("normbook", {}))


def stamp(path: Path) -> str:
    """Hash of a chapter's code cells and of every module of normbook that it reaches: what its outputs depend on."""
    code = ["".join(cell["source"]) for cell in claims.cells(path) if cell["cell_type"] == "code"]
    digest = hashlib.sha256("\0".join(code).encode())
    seen: set[str] = set()
    todo = _imports("\n".join(line for cell in code for line in cell.splitlines() if not line.startswith("%")))
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for source in _sources(name):
            todo |= _imports(source.read_text(encoding="utf-8"))
    for name in sorted(seen):
        for source in _sources(name):
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _sources(name: str) -> list[Path]:
    """The file of a dotted module of normbook, of a package its ``__init__``; none where there is no such module."""
    module = PACKAGE.joinpath(*name.split("."))
    return [path for path in (module.with_suffix(".py"), module / "__init__.py") if path.exists()]


def _imports(source: str) -> set[str]:
    """Dotted names, without normbook, of the modules that a source text imports, and of the packages around them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "normbook":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}  # a module, or a name in one
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("normbook.")}
    parts = [name.split(".")[1:] for name in names]
    around = {".".join(part[: i + 1]) for part in parts for i in range(len(part))}
    return {name for name in around if _sources(name)}


def execute(path: Path, folder: Path, parameters: Mapping[str, Any]) -> Executed:
    """Execute a chapter into ``folder/notebook.ipynb``; the file is there only if the whole chapter ran.

    The parameters' names were checked: papermill ignores a name that the notebook does not have.

    Raises:
        InputError: an unknown parameter, a folder that cannot be written, or bad input that the chapter itself found.
        ChapterCrashed: anything else went wrong in it.
    """
    try:
        return _execute(path, folder, parameters)
    except OSError as error:
        raise InputError(_unwritten(folder / "notebook.ipynb", error)) from error


def _execute(path: Path, folder: Path, parameters: Mapping[str, Any]) -> Executed:
    import papermill  # a second to import: not for `normbook claims`
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    known = papermill.inspect_notebook(str(path))
    for name in parameters:
        claims.choose("parameter", name, known)
    _prepare_kernel_environment()
    folder.mkdir(parents=True, exist_ok=True)
    unfinished, started = folder / ".unfinished.ipynb", time.time()
    try:
        papermill.execute_notebook(
            str(path), str(unfinished), dict(parameters), cwd=str(folder), kernel_name="python3",
            progress_bar=sys.stderr.isatty(), stderr_file=sys.stderr, execution_timeout=CELL_SECONDS,
            start_timeout=60, extra_arguments=["--log-level=40"],  # errors: a warning about 127.0.0.1 comes each time
        )  # fmt: skip
    except PapermillExecutionError as error:
        if error.ename == "InputError":
            raise InputError(error.evalue) from None
        raise ChapterCrashed(f"{path.stem}, cell {error.exec_count}: {error.ename}: {error.evalue}") from error
    except DeadKernelError as error:
        raise ChapterCrashed(f"{path.stem}: its kernel died (killed, or out of memory?)") from error
    except CellTimeoutError as error:
        raise ChapterCrashed(f"{path.stem}: a cell ran longer than {CELL_SECONDS} s") from error
    notebook = nbformat.read(unfinished, as_version=4)
    device = train.resolve_device(parameters.get("device", "auto"))
    notebook.metadata["normbook"] = {
        "stamp": stamp(path),
        "scale": parameters.get("scale", "quick"),
        "parameters": dict(parameters),
        "device": train.describe_device(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(terse=True),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
    }
    nbformat.write(notebook, unfinished)
    finished = folder / "notebook.ipynb"
    os.replace(unfinished, finished)
    return read(finished)


def _prepare_kernel_environment() -> None:
    """Let the kernel be this interpreter, and import what this process can import, its current folder included."""
    paths = [str(PACKAGE.parent), os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(p for p in paths if p))
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"  # a python3 kernel of the user's own would win otherwise
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # its warning would stand among our messages


def read(path: Path) -> Executed:
    """Read an executed chapter and the verdicts in its outputs.

    Raises:
        InputError: the file is not an executed chapter.
    """
    claims.cells(path)
    verdicts: dict[str, Verdict] = {}
    try:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                found = output.get("data", {}).get(claims.MIME)
                if found:
                    verdicts |= {key: Verdict(**value) for key, value in found["verdicts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not an executed chapter ({reason}); move it away and run it again") from None
    return Executed(path, notebook, verdicts)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        InputError: it cannot be written; what was there stays.
    """
    try:
        with whole(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise InputError(_unwritten(path, error)) from None


def _unwritten(path: Path, error: OSError) -> str:
    return f"cannot write {path}: {error.strerror or error}; nothing that was there is lost: mend this, run again"


def committed_path(scale: str, number: int) -> Path:
    """Where the committed verdicts of a chapter stand."""
    return claims.ROOT / "results" / scale / "verdicts" / f"{number:02}.json"


def committed(scale: str, number: int) -> dict[str, Any] | None:
    """The committed verdicts of a chapter at a scale: {"stamp", "device", "verdicts": {id: ...}}, or None.

    Raises:
        InputError: the file is not what this version writes.
    """
    path = committed_path(scale, number)
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["verdicts"] = {key: Verdict(**value) for key, value in content["verdicts"].items()}
        return {"stamp": str(content["stamp"]), **content}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a verdict file ({error}); restore it with git, or run make refresh") from None


def key_figure(executed: Executed) -> tuple[bytes, str]:
    """The PNG of a chapter's cell tagged ``key-figure``, and its text alternative.

    Raises:
        InputError: no cell is so tagged, or it shows no figure.
    """
    for cell in executed.notebook.cells:
        if "key-figure" in cell.metadata.get("tags", []):
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    return base64.b64decode(output["data"]["image/png"]), output["metadata"]["image/png"]["alt"]
    raise InputError(f"{executed.path}: no figure in a cell tagged 'key-figure'")


def key_table(executed: Executed) -> str:
    """The Markdown that a chapter's cell tagged ``key-table`` shows beside the paper's, or an empty text."""
    tagged = [cell for cell in executed.notebook.cells if "key-table" in cell.metadata.get("tags", [])]
    shown = [output.get("data", {}).get("text/markdown", "") for cell in tagged for output in cell.get("outputs", [])]
    return "\n\n".join(filter(None, shown))


def commit(executed: Executed, number: int, **more: Any) -> Path:
    """Write a chapter's verdicts as the expected ones, with what else is to be kept beside them."""
    info = executed.info
    path = committed_path(info["scale"], number)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "chapter": number, "scale": info["scale"], "stamp": info["stamp"], "device": info["device"],
        "versions": info["versions"], **more, "verdicts": {key: asdict(v) for key, v in executed.verdicts.items()},
    }  # fmt: skip
    write_text(path, json.dumps(content, indent=1) + "\n")
    return path


def entry(claim: Claim, number: int, scales: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """One claim as ``normbook claims --json`` prints it."""
    return {
        "id": claim.id, "chapter": number, "statement": claim.statement, "source": claim.source,
        "estimator": claim.estimator, "unit": claim.unit, "region": list(claim.region), "level": claim.level,
        "paper_value": claim.paper_value, "provenance": claim.provenance, "scales": dict(scales),
    }  # fmt: skip


def listing(path: Path, executed: Executed | None = None) -> list[dict[str, Any]]:
    """All claims of a chapter with their verdicts at each scale; those of ``executed`` in place of the committed."""
    chapter, now = claims.load(path.stem), stamp(path)
    kept = {scale: committed(scale, chapter.number) for scale in claims.SCALES}
    rows = []
    for claim in chapter.claims:
        scales: dict[str, dict[str, Any] | None] = {}
        for scale in claims.SCALES:
            old = (kept[scale] or {"verdicts": {}})["verdicts"].get(claim.id)
            fresh = executed is not None and executed.info["scale"] == scale
            new = executed.verdicts.get(claim.id) if executed is not None and fresh else old
            source = executed.info["stamp"] if executed is not None and fresh else (kept[scale] or {}).get("stamp")
            code = None if fresh else (kept[scale] or {}).get("recorded", {}).get("code")  # of records: their own
            scales[scale] = new if new is None else {
                "verdict": new.verdict, "expected": old.verdict if old else None, "estimate": new.estimate,
                "ci_low": new.ci_low, "ci_high": new.ci_high, "n": new.n, "control_verdict": new.control_verdict,
                "code_current": source == now if code is None else code == [records.code_hash()],
            }  # fmt: skip
        rows.append(entry(claim, chapter.number, scales))
    return rows


def strip(executed: Executed) -> nbformat.NotebookNode:
    """The notebook as it is committed: outputs and counts stay; times, parameters cells and stderr go."""
    notebook = nbformat.from_dict(json.loads(json.dumps(executed.notebook)))
    notebook.metadata.pop("papermill", None)
    info = notebook.metadata.get("normbook", {})
    notebook.metadata["normbook"] = {k: info[k] for k in ("stamp", "scale", "device", "versions") if k in info}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    count = 0
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            count += 1
            cell["execution_count"] = count
            cell["outputs"] = [o for o in cell["outputs"] if not (o.output_type == "stream" and o.name == "stderr")]
            for output in cell["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = count
    return notebook
