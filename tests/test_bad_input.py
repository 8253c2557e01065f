"""Bad input, whatever it is: one line that names it and says what to do, exit code 2; a traceback only by --debug."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from normbook import claims, cli, data, grid, records
from normbook.errors import InputError
from normbook.train import Config

DECLARE = """
from normbook import grid
from normbook.claims import Claim
from normbook.train import Config
PLAN = grid.at_scale(scale, quick={"steps": 2})
RUNS = [Config("none", lr=0.1, depth=10, width=0.25, batch_size=8, n_train=16, norm=norm, **PLAN)]
CLAIMS = []
"""
READS_DATA = "RUNS = [Config('none', lr=0.1, steps=2, data=data or 'digits')]\n"
RUN = Config("none", lr=0.1, depth=10, width=0.25, batch_size=8, n_train=16, steps=2)
PARAMETERS = "scale = 'quick'\nseed = 0\ndevice = 'auto'\nprecision = 'auto'\nnorm = 'normbook.norms'\ndata = ''"
GRID = "grid 5 --device cpu --out out"


def notebook(declare=DECLARE, parameters=PARAMETERS):
    """A chapter's file with these two cells."""
    cells = [("markdown", "# X", ""), ("code", parameters, "parameters"), ("code", declare, "declare")]
    content = [
        {"cell_type": kind, "id": f"c{i}", "metadata": {"tags": [tag] if tag else []}, "source": text.splitlines(True)}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for i, (kind, text, tag) in enumerate(cells)
    ]  # fmt: skip
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return json.dumps({"cells": content, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})


def record(config=RUN):
    """A whole record of this run, as its file holds it."""
    made = records.make({
        "config": asdict(config), "data_hash": data.load().content_hash, "outcome": {"finished": True},
        "final": {"test_loss": 2.5}, "curves": {"train_loss": [[1, 2.5]]}, "device": "some cpu", "threads": 1,
        "members": 1, "compiled": False, "versions": {"torch": "2"}, "seconds": 1.5, "peak_memory_mb": 100.0,
        "start": 1e9, "end": 1e9 + 2,
    })  # fmt: skip
    return made | {"checksum": records.checksum(made)}


def edited(change):
    """The text of the record's file after someone changed it."""
    content = record()
    change(content)
    return json.dumps(content)


@dataclass
class Case:
    """What a user types, a part of the line that must come, and what lies in the current folder: path: text or bytes.

    A path in ``files`` that ends with a slash is a folder; ``RECORD`` in a path stands for the name of the run's
    record. Where files stand in ``notebooks/`` the book is that of the current folder.
    """

    command: str
    says: str
    files: dict = field(default_factory=dict)


def chapter(command, says, **cells):
    return Case(command, says, {"notebooks/05_skipinit.ipynb": notebook(**cells), "out/": ""})


def config(arguments, says):
    """A chapter whose run was edited."""
    return chapter(GRID, says, declare=DECLARE + f"RUNS = [Config({arguments})]")


def claim(arguments, says):
    """A chapter whose claim was edited."""
    text = f"CLAIMS = [Claim('XX-1', 'one', 'here', 'a number', 'nats', {arguments})]"
    return chapter("run 5 --device cpu", says, declare=DECLARE + text)


def damaged(content, says):
    """A grid whose one run is on the disk already, but not as it was written."""
    return Case(GRID, says, {"notebooks/05_skipinit.ipynb": notebook(), "out/RECORD.json": content})


def results(path, content, command, says):
    return Case(command, says, {"notebooks/05_skipinit.ipynb": notebook(), f"results/{path}": content})


COMMAND_LINE = [
    Case("run skipint", "did you mean 'skipinit'?"),
    Case("run 9", "unknown chapter '9'"),
    Case("run ''", "unknown chapter ''"),
    Case("run", "Missing argument 'CHAPTER'"),
    Case("run 5 6", "unexpected extra argument (6)"),
    Case("rum 5", "No such command 'rum'"),
    Case("--versio", "No such option '--versio'"),
    Case("claims --jsn", "No such option '--jsn'"),
    Case("refresh 12", "unknown chapter '12'"),
    Case("stability skipint", "did you mean 'skipinit'?"),
    Case("book --strict=yes", "does not take a value"),
    Case("book --build-dir Makefile", "build folder Makefile is not a folder", {"Makefile": ""}),
    Case("grid", "required: chapter, --out; see python -m normbook.grid --help"),
    Case("grid 5", "required: --out"),
    Case("grid 5 --out . --seed 1.5", "invalid int value: '1.5'"),
    Case("grid 5 --out . 6", "unrecognized arguments: 6"),
    Case("grid nope --out .", "unknown chapter 'nope'"),
]  # fmt: skip
PARAMETER = [
    Case("run 5 --scale quik", "did you mean 'quick'?"),
    Case("run 5 --scale", "'--scale' requires an argument"),
    Case("run all --scale tinny", "did you mean 'tiny'?"),
    Case("run 5 --scale cifar --seed 1 --device cpu", "cifar10-jpeg.tar.gz is not in"),
    Case("run 5 --plan", "--plan, --only and --on are for scale cifar or paper: scale quick keeps no runs"),
    Case("run 5 --on ray", "--on are for scale cifar or paper: scale quick keeps no runs"),
    Case("run 5 --scale tiny --only depth=16", "--plan, --only and --on are for scale cifar or paper"),
    Case("run 5 --scale paper --plan --only dept=16", "unknown field of --only 'dept'; did you mean 'depth'?"),
    Case("run 5 --scale paper --plan --only depth=17", "unknown depth of --only '17'"),
    Case("run 5 --scale cifar --only arm=batchnorm", "did you mean 'batch_norm'?"),
    Case("refresh 5 --scale quik", "did you mean 'quick'?"),
    Case("run 5 --device cuad", "did you mean 'cuda'?"),
    Case("run 5 --device cuda", "torch sees no GPU here; use --device auto or cpu"),
    Case("run 5 --precision fp23", "did you mean 'fp32'?"),
    Case("run 5 --seed -1", "-1 is not in the range x>=0"),
    Case("run 5 --seed one", "'one' is not a valid integer"),
    Case("run 5 --seed 1.5", "'1.5' is not a valid integer"),
    Case("run 5 --sed 1", "'--sed'"),
    Case("run 5 --norm torch.n", "'torch.n' cannot be imported (No module named 'torch.n'); did you mean 'torch.nn'?"),
    Case("run 5 --norm json", "has no class 'BatchNorm1d'"),
    Case("run 5 --norm ''", "'' cannot be imported (ValueError: Empty module name)"),
    Case("run 5 --norm .mine", "'.mine' cannot be imported"),
    Case("run 5 --norm exits", "'exits' cannot be imported (SystemExit: 3)", {"exits.py": "import sys; sys.exit(3)"}),
    Case("run 5 --norm broken", "(SyntaxError: ", {"broken.py": "def"}),
    Case("run 5 --norm three", "has no class", {"three.py": "BatchNorm1d = BatchNorm2d = LayerNorm = 3"}),
    chapter("grid 5 --out out --seed -1", "base seed -1 is negative: give 0 or more"),
    chapter("grid 5 --out out --scale quik", "did you mean 'quick'?"),
    chapter("grid 5 --out out --device gpu", "unknown device 'gpu'"),
]
FOLDERS = [
    Case("run 5 --data digit", "did you mean 'digits'?"),
    Case("run 4 --data digit", "did you mean 'digits'?"),
    Case("run 5 --data ./nowhere", "data set './nowhere': there is no such file or folder"),
    Case("run 5 --data ./pictures", "pictures holds no data set: no train/ and test/", {"pictures/a.png": b"\x89PNG"}),
    Case("run 5 --data empty", "normbook data fetch --data empty brings cifar10", {"empty/": ""}),
    Case("run 5 --data imagefolder:pets", "pets has no folder test/", {"pets/train/cat/a.png": b"\x89PNG"}),
    Case("run 5 --data pets", "only one class, 'cat': a classifier needs two",
         {"pets/train/cat/a.png": b"\x89PNG", "pets/test/cat/a.png": b"\x89PNG"}),
    Case("run 5 --data pets", "train/dog holds no image", {"pets/train/dog/": "", "pets/test/": ""}),
    Case("run 5 --data imagefolder:", "say where it is, as in imagefolder:PATH"),
    Case("run 5 --data digits@16", "the digits come with scikit-learn, without a path and in one size"),
    Case("run 5 --data cifar10@big", "unknown data set 'cifar10@big'; did you mean 'cifar10'?"),
    Case("run 5 --data x.tar.gz", "the archive neither of cifar10 nor of cifar10-jpeg", {"x.tar.gz": b"\x1f\x8b"}),
    Case("run 5 --data cifar10-jpeg:x.tgz", "not the archive of cifar10-jpeg: its sha256", {"x.tgz": b"\x1f\x8b"}),
    Case("run 5 --data cifar10:empty", "normbook data fetch --data ", {"empty/": ""}),
    Case("data fetch --data nowhere/x", "data set 'nowhere/x': there is no such file or folder"),
    Case("data --data nowhere", "'nowhere' is not a folder that is there"),
    Case("data fetsh", "No such command 'fetsh'"),
    chapter("grid 5 --device cpu --out out --data digit", "did you mean 'digits'?", declare=DECLARE + READS_DATA),
    Case("run 5 --out missing/folder", "missing/folder does not exist; make it first"),
    Case("run 5 --out Makefile", "the output folder Makefile is not a folder", {"Makefile": ""}),
    Case("run 5", "normbook-results: File exists; name another with --out", {"normbook-results": ""}),
    Case("run 5 --device cpu --out out", "out/05_skipinit/notebook.ipynb: File exists; nothing that was there is lost",
         {"notebooks/05_skipinit.ipynb": notebook(), "out/05_skipinit": ""}),
    Case("grid 5 --device cpu --out Makefile", "Makefile does not exist; make it first", {"Makefile": ""}),
    chapter("grid 5 --device cpu --out missing", "missing does not exist; make it first"),
]  # fmt: skip
WHOLE = json.dumps(record())
RECORDS = [
    damaged("", "not a record (Expecting value"),
    damaged("{", "not a record"),
    damaged(WHOLE[:100], "not a record"),
    damaged(WHOLE[:-1], "not a record"),
    damaged(WHOLE + "}", "not a record (Extra data"),
    damaged("null", "no JSON object"),
    damaged("[]", "no JSON object"),
    damaged("{}", "field 'schema' is missing"),
    damaged(b"\xff\xfe{}", "'utf-8' codec"),
    damaged(WHOLE.replace("2.5", "NaN"), "NaN is no JSON number"),
    damaged(WHOLE.replace("2.5", "1e999"), "the number 1e999 is too large"),
    damaged(edited(lambda r: r.update(schema=1)), "written by schema 1, this version reads schema 2; move it away"),
    damaged(edited(lambda r: r.update(schema=99)), "written by schema 99"),
    damaged(edited(lambda r: r.pop("seconds")), "field 'seconds' is missing"),
    damaged(edited(lambda r: r.update(threads=True)), "field 'threads' is missing or of the wrong kind"),
    damaged(edited(lambda r: r["final"].update(test_loss=0.1)), "edited or damaged, move it away and run again"),
    damaged(edited(lambda r: r.pop("checksum")), "edited or damaged, move it away and run again"),
    damaged(edited(lambda r: r["config"].update(lr=0.2)), "it was renamed or edited, move it away"),
    damaged(json.dumps(record(Config("fixup", lr=0.1, steps=2))), "its content belongs to the run"),
    Case(GRID, "cannot be read: Is a directory", {"notebooks/05_skipinit.ipynb": notebook(), "out/RECORD.json/": ""}),
]
CONFIGURATION = [
    config("'nonee', steps=2", "unknown arm 'nonee'; did you mean 'none'?"),
    config("3, steps=2", "arm is 3, which is no str"),
    config("'none', lr=-1, steps=2", "learning rate -1.0 is not a positive number"),
    config("'none', lr='high', steps=2", "lr is 'high', which is no float | None"),
    config("'none', steps=2, epochs=1", "give epochs or steps, exactly one"),
    config("'none'", "give epochs or steps, exactly one"),
    config("'none', steps='3'", "steps is '3', which is no int | None"),
    config("'none', steps=-3", "at least 1"),
    config("'none', steps=2, batch_size=8.5", "batch_size is 8.5, which is no int"),
    config("'none', steps=2, augment=1", "augment is 1, which is no bool"),
    config("'none', steps=2, model='mpl'", "did you mean 'mlp'?"),
    config("'none', steps=2, optimizer='sdg'", "did you mean 'sgd'?"),
    config("'none', steps=2, data='cifar'", "unknown data set 'cifar'; did you mean 'cifar10'?"),
    config("'none', steps=2, evaluate=('tst',)", "unknown evaluate 'tst'; did you mean 'test'?"),
    config("'none', steps=2, evaluate='test'", "evaluate is 'test', which is no tuple[str, ...]"),
    config("'none', steps=2, seed=(0,)", "seed is (0,), which is no tuple[int, int]"),
    config("'none', steps=2, seed=(0, -1)", "seed (0, -1) is negative"),
    config("'fixup', steps=2, model='mlp'", "model 'mlp' has none"),
    config("'none', steps=2, trainable='norm'", "set weight_decay=0"),
    config("'none', steps=2, model='mlp', dropout_at='before_conv'", "use dropout_at='head'"),
    claim("(None, None), 'none', 5", "claim XX-1: region (None, None) is empty or everything"),
    claim("(2, 1), 'none', 5", "claim XX-1: region (2, 1) is empty or everything"),
    claim("(0, None), 'none', 3", "claim XX-1: t needs n >= 5, not 3"),
    claim("(0, None), 'none', 5, 'tt'", "unknown estimator 'tt'"),
    claim("(0, None), 'none', 5, 'exact'", "an exact claim has n = 1, not 5"),
    claim("(0, None), 'none', 5, level=95", "level 95 is not in [0.5, 1)"),
    chapter("run 5 --device cpu --scale paper", "no grid at scale 'paper' yet (it has: quick)"),
    chapter("run 5 --device cpu --scale cifar --plan", "no grid at scale 'cifar' yet (it has: quick)"),
    chapter("refresh 5 --scale cifar", "no grid at scale 'cifar' yet (it has: quick)"),
    chapter("grid 5 --device cpu --out out --only steps=3", "unknown steps of --only '3' (one of: 2)"),
    chapter(
        "run 5 --device cpu", "unknown parameter 'data'", parameters="scale = seed = device = precision = norm = 0"
    ),
    Case("run 5 --device cpu", "05_skipinit.ipynb: not a notebook", {"notebooks/05_skipinit.ipynb": "{"}),
    Case("run 5 --device cpu", "restore it, for example with git", {"notebooks/05_skipinit.ipynb": "[]"}),
    Case("claims", "not a notebook (KeyError: 'source')", {"notebooks/05_skipinit.ipynb": '{"cells": [{}]}'}),
    results("quick/verdicts/05.json", "{", "claims", "05.json: not a verdict file"),
    results("quick/verdicts/05.json", '{"verdicts": {"A": {}}}', "claims --json", "restore it with git, or run make"),
    results("stability/05.json", '{"passes": 3}', "stability 5 --show", "05.json: not a file of passes"),
]
CASES = [*COMMAND_LINE, *PARAMETER, *FOLDERS, *RECORDS, *CONFIGURATION]


@pytest.fixture
def typed(monkeypatch, capsys, tmp_path):
    """A function that types a command in the current folder, which is empty: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "path", list(sys.path))  # `run` adds the current folder
    monkeypatch.setattr("normbook.data.sources.default_folder", lambda: tmp_path.with_name(f"{tmp_path.name} cache"))

    def call(command):
        words = shlex.split(command)
        if "grid" in words[:2]:
            code = grid.main([word for word in words if word != "grid"])
        else:
            monkeypatch.setattr(sys, "argv", ["normbook", *words])
            with pytest.raises(SystemExit) as stop:
                cli.main()
            code = stop.value.code
        return code, *capsys.readouterr()

    return call


def lay_out(files, folder, monkeypatch):
    for name, content in files.items():
        path = folder / name.replace("RECORD", record()["name"])
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        if name.startswith("notebooks/"):
            monkeypatch.setattr(claims, "ROOT", folder)


def state(folder):
    """Every file and folder with its content; Python's own cache of a module that was imported is not ours."""
    found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): path.read_bytes() if path.is_file() else None for path in found}


def lines_of(err):
    """What stands on stderr, but for the word that a chapter is started."""
    return [line for line in err.splitlines() if not line.endswith("base seed 0")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command}: {case.says}"[:90])
def test_bad_input_is_one_line_and_exit_code_2(case, typed, tmp_path, monkeypatch):
    lay_out(case.files, tmp_path, monkeypatch)
    before = state(tmp_path)
    code, out, err = typed(case.command)
    assert code == 2 and out == "" and case.says in err, err
    (line,) = lines_of(err)
    assert line.startswith("normbook.grid: " if case.command.startswith("grid") else "normbook: ")
    assert state(tmp_path) == before

    code, out, err = typed(f"--debug {case.command}")
    assert code == 2 and out == "" and err.endswith(f"{line}\n")
    assert lines_of(err)[0] == "Traceback (most recent call last):" and err.count(line) == 1


def test_there_are_at_least_forty_cases():
    assert len(CASES) >= 40 and min(map(len, (COMMAND_LINE, PARAMETER, FOLDERS, RECORDS, CONFIGURATION))) >= 9
    assert len({str(case) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("command", ["run 5 --device cpu", GRID, "claims"])
@pytest.mark.parametrize(("cells", "says"), [
    ({"declare": "1 / 0"}, "05_skipinit, the cell tagged 'declare': ZeroDivisionError: division by zero"),
    ({"declare": "CLAIMS = [\n"}, "the cell tagged 'declare': SyntaxError: "),
    ({"declare": "raise ValueError('two\\nlines')"}, "the cell tagged 'declare': ValueError: two lines"),
    ({"declare": "import sys; sys.exit(1)"}, "the cell tagged 'declare': SystemExit: 1"),
    ({"declare": "RUNS = []"}, "the cell tagged 'declare': it sets no CLAIMS"),
    ({"parameters": "scale = quick"}, "05_skipinit, the cell tagged 'parameters': NameError: name 'quick' is not"),
])  # fmt: skip
def test_a_chapter_that_breaks_off_is_one_line_with_its_name_and_cell_and_exit_code_3(
    command, cells, says, typed, tmp_path, monkeypatch
):
    lay_out({"notebooks/05_skipinit.ipynb": notebook(**cells), "out/": ""}, tmp_path, monkeypatch)
    code, out, err = typed(command)
    assert code == 3 and out == "" and says in err and len(err.splitlines()) == 1
    code, out, err = typed(f"{command} --debug")
    assert code == 3 and says in err and "Traceback" in err


def test_debug_stands_in_every_commands_help(typed):
    for command in ("", *cli.commands.commands):
        code, out, _ = typed(f"{command} --help")
        assert code == 0 and "--debug" in out, command


def test_debug_changes_nothing_where_nothing_goes_wrong(typed):
    assert typed("claims --debug") == typed("--debug claims") == typed("claims")


@pytest.mark.parametrize("command", ["normbook run skipint", "normbook.grid nope --out .", "normbook --debug run 9"])
def test_a_real_process_says_the_same(command, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and os.listdir(tmp_path) == []
    *before, line = done.stderr.splitlines()
    assert line.startswith(f"{command.split()[0]}: unknown chapter")
    assert bool(before) == ("--debug" in command) and before[:1] in ([], ["Traceback (most recent call last):"])


def test_a_reader_that_has_gone_is_no_error_message():
    """As `normbook claims | head`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    command = [sys.executable, "-m", "normbook", "claims", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(timeout=120) == 141


# ---- anything at all: it is read or refused, and nothing else happens


quick = settings(
    deadline=None, max_examples=150, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from(["none", "mlp", "wrn", "digits", "sgd", "test", "running", "halve", "norm", "head", "bf16"])
VALUE = JSON | WORDS | st.lists(WORDS, max_size=2) | st.lists(st.integers(), min_size=2, max_size=2)


def read_or_refused(given_config):
    """The configuration, which is then as it was given, or None where it was refused in one line."""
    try:
        found = grid.config_of({"name": "0123", "config": given_config})
    except InputError as error:
        assert "record 0123" in str(error) and "move it away" in str(
            error
        )  # printed on one line: tests of the commands
        return None
    assert hash(found.kind()) == hash(found.kind())
    again = json.loads(json.dumps(asdict(found)))
    assert {key: again[key] for key in given_config} == given_config
    return found


@quick
@given(st.dictionaries(st.sampled_from([f.name for f in fields(Config)]) | st.text(max_size=5), VALUE, max_size=8))
@example({"arm": "none", "steps": 2})
@example({"arm": ["none"], "steps": 2})
@example({"arm": "none", "steps": 10**400, "lr": 10**400})
def test_any_configuration_is_read_or_refused(given_config):
    read_or_refused(given_config)


@quick
@given(st.sampled_from([f.name for f in fields(Config)]), VALUE)
@example("lr", float("nan"))
@example("momentum", 10**400)
@example("steps", None)
def test_a_configuration_with_any_value_in_any_field_is_read_or_refused(name, value):
    whole = json.loads(json.dumps(asdict(RUN)))
    assert read_or_refused(whole) == RUN
    read_or_refused(whole | {name: value})


@quick
@given(st.integers(min_value=0), st.integers(0, 255))
def test_a_record_with_any_byte_changed_is_the_same_record_or_refused(tmp_path, place, byte):
    path = records.write(tmp_path, {key: value for key, value in record().items() if key != "checksum"})
    whole, text = records.read(path), bytearray(path.read_bytes())
    text[place % len(text)] = byte
    path.write_bytes(text)
    try:
        assert records.canonical(records.read(path)) == records.canonical(whole)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)


@quick
@given(
    JSON | st.fixed_dictionaries({"cells": JSON | st.lists(st.fixed_dictionaries({"source": JSON, "metadata": JSON}))})
)
def test_any_notebook_is_read_or_refused(tmp_path, value):
    path = tmp_path / "05_x.ipynb"
    path.write_text(json.dumps(value))
    try:
        assert isinstance(claims.cells(path), list)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
