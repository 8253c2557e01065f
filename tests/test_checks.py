"""normbook.checks: layers that are right pass, the book's faulty one is caught, and nothing is passed over silently."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from normbook import claims, stability
from normbook.checks import plugin

ROOT = Path(__file__).parents[1]


def check(folder, *arguments):
    # -P: as for the program `normbook`, the current folder is not where Python looks by itself
    command = [sys.executable, "-P", "-m", "normbook", "check", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("norm", ["torch.nn", "normbook.norms"])
def test_layers_that_are_right_hold(tmp_path, norm):
    done = check(tmp_path, "--norm", norm, "layers")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^78 hold, 0 do not, 0 were not checked", done.stdout, re.M)


def test_the_faulty_layer_of_the_book_does_not_hold(tmp_path):
    page = (ROOT / "book" / "your_layer.md").read_text()
    (code,) = re.findall(r"```python\n(# faulty.py\n.*?)```", page, re.S)
    (tmp_path / "faulty.py").write_text(code)
    done = check(tmp_path, "--norm", "faulty", "layers")
    assert done.returncode == 1
    bad = re.findall(r"^does not hold: (\S+): (.*)$", done.stdout, re.M)
    assert all("BatchNorm2d" in name for name, _ in bad)
    text = " ".join(reason for _, reason in bad)
    for what in ("the output differs by", "running_var", "DID NOT RAISE"):
        assert what in text, done.stdout


def test_a_class_that_is_missing_is_counted_not_passed_over(tmp_path):
    (tmp_path / "only.py").write_text("from torch.nn import BatchNorm1d\n")
    done = check(tmp_path, "--norm", "only", "layers", "5")
    assert done.returncode == 0
    claims_of_5 = len(claims.load(5).claims)
    held, failed, skipped = map(int, re.search(r"(\d+) hold, (\d+) do not, (\d+) were not", done.stdout).groups())
    assert held > 10 and failed == 0 and skipped > claims_of_5  # chapter 5 needs BatchNorm2d


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--norm", "nothere"), "norm namespace 'nothere' cannot be imported"),
        (("--norm", "torch.nn", "9"), "unknown chapter '9'"),
        ((), "Missing option '--norm'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, message):
    done = check(tmp_path, *arguments)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


def test_as_a_pytest_plugin_with_a_test_for_every_claim(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "normbook.checks.plugin", "--pyargs", "normbook.checks"]
    command += ["-p", "no:cacheprovider", "--collect-only", "-q"]
    done = subprocess.run([*command, "--norm", "torch.nn"], cwd=tmp_path, capture_output=True, text=True)
    for path in claims.chapters().values():
        for claim in claims.load(path.stem).claims:
            assert f"test_claim[{path.stem}-{claim.id}]" in done.stdout
    without = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert without.returncode == 4 and "--norm package.module" in without.stderr


def test_a_claim_may_have_the_verdicts_that_our_layers_give_it(tmp_path, monkeypatch):
    key, kept = "PL-1a", claims.load(4).claims
    assert key in {claim.id for claim in kept}
    monkeypatch.setattr(plugin.stability, "read", lambda number: [])
    assert plugin.allowed(4, key) == {"reproduced"}
    edge = claims.Verdict("inconclusive", 0, -1, 1, 6, "not reproduced")
    one = stability.Pass(stability.SHIPPED, 1, "x", "cpu", "2.15", 1.0, {key: edge})
    monkeypatch.setattr(plugin.stability, "read", lambda number: [one])
    assert plugin.allowed(4, key) == {"reproduced", "inconclusive"}
    assert plugin.allowed(4, "no such claim") == set()
