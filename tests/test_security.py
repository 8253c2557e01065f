"""No code from data: no pickle, no eval, no shell, archives kept in their folder, and outputs that run nothing."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
UNSAFE_YAML = {"load", "load_all", "full_load", "unsafe_load", "Loader", "FullLoader", "UnsafeLoader"}
# exec runs the project's own cells, after a look at where they stand: the chapters are code, not data
KNOWN = {
    ("src/normbook/claims.py", "exec"), ("tests/test_notebooks.py", "exec"), ("tests/fakes.py", "exec"),
    ("tests/test_errors.py", "pickle"),  # its own bytes, written a moment before
    ("tests/test_cifar10.py", "pickle"),  # writes files in the format of CIFAR-10, and one that must never be read
}  # fmt: skip


def dotted(node):
    """The name a call goes to: ``a.b.c``, or ``?.c`` where it starts with another expression."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def constant(call, name):
    """The value of a keyword that is written out; None where it is not there."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def imported(node):
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    return [name.split(".")[0] for name in names]


def unsafe(source):
    """What in a source text could run data as code or leave its folder: the forbidden names, in order."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [name for name in imported(node) if name in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        first, last = name.split(".")[0], name.split(".")[-1]
        if name in FORBIDDEN_CALLS:
            found.append(name)
        if first == "yaml" and last in UNSAFE_YAML:
            found.append(name)
        if name in ("torch.load", "torch.hub.load") and constant(node, "weights_only") is not True:
            found.append(name)
        if last == "load" and constant(node, "allow_pickle") or last == "read_pickle":
            found.append(name)
        if last in ("extractall", "extract", "unpack_archive") and constant(node, "filter") != "data":
            found.append(last)
        if any(k.arg == "shell" and constant(node, "shell") is not False for k in node.keywords):
            found.append("shell")
        if first == "subprocess" and node.args and isinstance(node.args[0], ast.JoinedStr | ast.BinOp):
            texts = [n for n in ast.walk(node.args[0]) if isinstance(n, ast.JoinedStr)]
            if isinstance(node.args[0], ast.JoinedStr) or (texts and not isinstance(node.args[0].left, ast.List)):
                found.append("command as text")
    return found


def sources():
    """Path and text of all Python here: modules, tests but the planted faults, code cells of the chapters."""
    for folder in ("src", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "faults" not in path.relative_to(ROOT).parts:
                yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    for path in notebooks():
        cells = ["".join(c["source"]) for c in content(path)["cells"] if c["cell_type"] == "code"]
        lines = [line for cell in cells for line in cell.splitlines() if not line.startswith("%")]
        yield path.relative_to(ROOT).as_posix(), "\n".join(lines)


def notebooks():
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def content(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_no_source_runs_data_as_code_or_leaves_its_folder():
    texts = dict(sources())
    assert len(texts) > 40 and sum(name.endswith(".ipynb") for name in texts) == len(notebooks()) > 0
    found = {(name, what) for name, text in texts.items() for what in unsafe(text)}
    assert found - KNOWN == set()
    assert KNOWN <= found, "an exception that is no longer needed"


@pytest.mark.parametrize(("planted", "what"), [
    ("import pickle", "pickle"), ("from joblib import load", "joblib"), ("eval(text)", "eval"),
    ("exec(text)", "exec"), ("import os; os.system('rm ' + name)", "os.system"), ("os.popen(name)", "os.popen"),
    ("subprocess.run(command, shell=True)", "shell"), ("subprocess.run(command, shell=flag)", "shell"),
    ("subprocess.run(f'rm {name}')", "command as text"), ("subprocess.run('rm ' + f'{x}')", "command as text"),
    ("yaml.load(text)", "yaml.load"), ("yaml.unsafe_load(text)", "yaml.unsafe_load"),
    ("torch.load(path)", "torch.load"), ("torch.load(path, weights_only=False)", "torch.load"),
    ("torch.load(path, weights_only=flag)", "torch.load"), ("np.load(path, allow_pickle=True)", "np.load"),
    ("tarfile.open(path).extractall(folder)", "extractall"), ("zipfile.ZipFile(path).extract('a')", "extract"),
    ("archive.extractall(folder, filter='fully_trusted')", "extractall"),
    ("shutil.unpack_archive(p)", "unpack_archive"),
])  # fmt: skip
def test_the_scan_finds_what_is_planted(planted, what):
    assert unsafe(planted) == [what]


@pytest.mark.parametrize("safe", [
    "torch.load(path, weights_only=True)", "yaml.safe_load(text)", "np.load(path)", "json.load(file)",
    "archive.extractall(folder, filter='data')", "subprocess.run(['rm', name])", "subprocess.run([*a, f'{b}'])",
    "subprocess.run(command, shell=False)", "model.eval()", "Model(3).eval()",
    "text.extract_words()", "subprocess.run([a] + [f'{b}'])",
])  # fmt: skip
def test_the_scan_passes_what_is_safe(safe):
    assert unsafe(safe) == []


# an image that is a picture, text, and verdicts that pages leave out
SHOWN = {"text/plain", "text/markdown", "image/png", "text/csv", "application/vnd.normbook.verdicts+json"}
ACTIVE = re.compile(r"<\s*(script|iframe|object|embed|link|svg)|\bon\w+\s*=\s*[\"']|javascript:|https?://|url\(", re.I)


def active(outputs):
    """What in a cell's outputs could run in a reader's browser or fetch something, by MIME type."""
    found = []
    for output in outputs:
        shown = {"stream": {"text/plain": output.get("text", "")}}.get(output["output_type"], output.get("data", {}))
        for kind, value in shown.items():
            text = "".join(value) if isinstance(value, list) else json.dumps(value)
            if kind not in SHOWN or (kind != "image/png" and ACTIVE.search(text)):
                found.append(kind)
            if kind == "image/png" and not re.fullmatch(r"[A-Za-z0-9+/=\s]+", "".join(value)):
                found.append(kind)
    return found


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_a_chapters_outputs_run_nothing_and_fetch_nothing(path):
    outputs = [output for cell in content(path)["cells"] for output in cell.get("outputs", [])]
    assert outputs and active(outputs) == []
    assert "widgets" not in content(path)["metadata"]


@pytest.mark.parametrize(("kind", "text"), [
    ("text/html", "<b>bold</b>"), ("application/javascript", "alert(1)"), ("image/svg+xml", "<svg/>"),
    ("text/markdown", "a <script>alert(1)</script>"), ("text/plain", "< SCRIPT src=x>"),
    ("text/markdown", "![](https://example.org/a.png)"), ("text/markdown", "[a](javascript:alert(1))"),
    ("text/markdown", "<img src=x onerror='alert(1)'>"), ("image/png", "<script>"),
    ("application/vnd.jupyter.widget-view+json", "{}"),
])  # fmt: skip
def test_the_look_at_outputs_finds_what_is_planted(kind, text):
    assert active([{"output_type": "display_data", "data": {kind: [text]}}]) == [kind]
    if kind == "text/plain":
        assert active([{"output_type": "stream", "name": "stdout", "text": [text]}]) == [kind]


def test_the_workflow_audits_the_lock_and_may_only_read():
    text = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert re.search(r"^permissions:\n  contents: read\n", text, re.M) and "write" not in text
    assert "pip-audit" in text and "requirements.lock" in text
    assert all(re.fullmatch(r"\S+@[0-9a-f]{40} +# v[\d.]+", used) for used in re.findall(r"uses: (.*)", text))


def test_markup_in_a_users_path_is_never_run(tmp_path):
    """A folder with a name that a shell would run is a folder."""
    from normbook import chapters

    folder = tmp_path / "a; touch hacked $(touch hacked) `touch hacked`"
    folder.mkdir()
    chapters.write_text(folder / "x.json", "{}")
    assert [path.name for path in tmp_path.rglob("*")] == [folder.name, "x.json"]
