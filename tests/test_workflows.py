"""The workflows of .github run what the README says, and what they use is what it was: actions are pinned by hash."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def steps(path):
    return [step for job in yaml.safe_load(path.read_text())["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_keep_no_credentials(path):
    text = path.read_text()
    used = [step for step in steps(path) if "uses" in step]
    assert used and len(re.findall(r"uses: [\w/-]+@[0-9a-f]{40}  # v\d", text)) == len(used)
    for step in used:
        if step["uses"].startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_they_make_is_in_the_makefile(path):
    makefile = (ROOT / "Makefile").read_text()
    made = [step["run"].removeprefix("make ") for step in steps(path) if step.get("run", "").startswith("make ")]
    assert made and all(re.search(rf"^{target}:", makefile, re.M) for target in made)


def test_links_are_checked_where_the_bibliography_has_them_after_the_build():
    weekly = steps(ROOT / ".github" / "workflows" / "weekly.yml")
    order = [step.get("run", step.get("uses", "")) for step in weekly]
    lychee = next(i for i, name in enumerate(order) if "lychee" in name)
    assert order.index("make book") < lychee and "_build/html/" in weekly[lychee]["with"]["args"]
    assert weekly[-1]["if"] == "failure()"
