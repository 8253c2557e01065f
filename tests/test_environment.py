"""pyproject.toml, requirements.lock and environment.yml say the same, and nothing of a machine is in the project."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def locked(lock="requirements.lock"):
    """{name: version} of the lines of a lock that hold on Linux with this Python."""
    found = {}
    for line in (ROOT / lock).read_text().splitlines():
        match = re.match(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)(?: ; ([^\\]+))?", line)
        if match and (not match[3] or Marker(match[3].strip()).evaluate()):
            found[match[1].lower().replace("_", "-")] = match[2]
    return found


def test_every_requirement_is_locked_at_a_version_it_allows():
    table = project()["project"]
    extras = table["optional-dependencies"]
    assert set(extras) == {"book", "test", "bench", "cluster"}  # bench: peers, which no command needs
    for lock, names in (("requirements.lock", ("book", "test")), ("requirements-cluster.lock", ("cluster",))):
        versions = locked(lock)
        for requirement in map(Requirement, sum((extras[name] for name in names), table["dependencies"])):
            name = requirement.name.lower().replace("_", "-")
            assert name in versions, f"{name} is not in {lock}: run make lock"
            assert requirement.specifier.contains(versions[name]), f"{name} {versions[name]}, wanted: {requirement}"


def test_one_environment_can_hold_both_locks():
    book, cluster = locked(), locked("requirements-cluster.lock")
    assert {n: v for n, v in book.items() if n in cluster} == {n: v for n, v in cluster.items() if n in book}
    assert "torch" in cluster and "ray" in cluster and "ray" not in book


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-cluster.lock"])
def test_every_locked_package_has_a_hash_and_no_address(lock):
    text = (ROOT / lock).read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", text)
    for entry in entries:
        if "==" in entry.splitlines()[0]:
            assert "--hash=sha256:" in entry, entry.splitlines()[0]
    assert "http" not in re.sub(r"#.*|^(httpcore|httpx|aiohttp|.*http).*==.*", "", text, flags=re.M)


def test_conda_users_get_the_lock():
    lines = (ROOT / "environment.yml").read_text()
    python = re.search(r"python=(\S+)", lines)
    assert python and project()["project"]["requires-python"] == f">={python[1]}"
    assert "- pip\n" in lines and "-r requirements.lock" in lines


def test_a_bare_gpu_machine_needs_five_packages():
    names = {Requirement(r).name for r in project()["project"]["dependencies"]}
    assert names == {"torch", "numpy", "scipy", "scikit-learn", "tqdm"}


def test_version_stands_once_more_in_the_package_and_the_citation():
    from normbook import __version__

    assert project()["project"]["version"] == __version__
    assert f"version: {__version__}" in (ROOT / "CITATION.cff").read_text().replace('"', "")


def test_nothing_a_user_runs_needs_the_folder_beside_the_project():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.suffix in {".py", ".yml", ".toml", ".md", ".ipynb", ".cff"} or path.name == "Makefile":
            if path.exists() and path != Path(__file__):
                assert "../shared" not in path.read_text(encoding="utf-8"), name


def make(tmp_path, target, python3):
    """`make target` in a copy of the Makefile, with a python3 of our own in front."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "python3"
    fake.write_text(f"#!/bin/sh\n{python3}\n")
    fake.chmod(0o755)
    for name in ("Makefile", "requirements.lock"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    path = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    return subprocess.run(["make", target], cwd=tmp_path, env=path, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("python3", "says"),
    [
        ('[ "$1" = -V ] && echo Python 3.9.2 && exit; exit 1', "needs 3.11 or newer: install"),
        ('case "$2" in *venv*) exit 1;; esac; exit 0', "lacks venv: install it, e.g. sudo apt install python3-venv"),
    ],
)
def test_a_missing_prerequisite_gives_one_line_with_the_command_that_installs_it(tmp_path, python3, says):
    done = make(tmp_path, "book", python3)
    assert done.returncode == 2
    assert says in done.stdout and len(done.stdout.splitlines()) == 1
    assert not (tmp_path / ".venv").exists()


def test_a_given_environment_is_used_as_it_is_and_named_where_it_lacks_something(tmp_path):
    def given(python):
        command = ["make", "-s", "env-given", f"PYTHON={python}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    good = given(sys.executable)
    assert good.returncode == 0 and re.search(r"^python 3\S+ torch \d", good.stdout), good.stderr
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no site-packages, so no torch
    bare.chmod(0o755)
    lacking = given(bare)
    assert lacking.returncode == 2 and "lacks torch: install the packages of pyproject.toml" in lacking.stderr
    assert "Traceback" not in lacking.stderr
