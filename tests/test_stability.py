"""normbook.stability: passes are kept whole, found missing when code changes, and every disagreement is counted."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from normbook import chapters, claims, stability
from normbook.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Verdict
from normbook.errors import InputError


def verdict(kind, control=None):
    return Verdict(kind, 1.0, 0.5, 1.5, 6, control or (REPRODUCED if kind == NOT_REPRODUCED else NOT_REPRODUCED))


def one(seed, way=stability.SHIPPED, stamp="now", **verdicts):
    return stability.Pass(way, seed, stamp, "a processor", "2.15", 12.5, verdicts)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with a chapter whose committed verdicts are A and B reproduced."""
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    path = chapters.committed_path("quick", 5)
    path.parent.mkdir(parents=True)
    committed = {key: vars(verdict(REPRODUCED)) for key in "AB"}
    path.write_text(json.dumps({"stamp": "now", "verdicts": committed}))
    (tmp_path / "notebooks").mkdir()
    return tmp_path


def test_what_is_written_is_read_again_in_order(root):
    passes = [one(0, stability.AVX2, A=verdict(INCONCLUSIVE)), one(1, A=verdict(REPRODUCED)), one(0)]
    stability.write(5, passes)
    assert stability.read(5) == [passes[2], passes[1], passes[0]]
    assert stability.read(4) == []
    assert [p.name for p in stability.path_of(5).parent.iterdir()] == ["05.json"]


def test_a_damaged_file_is_named(root):
    stability.write(5, [one(0)])
    path = stability.path_of(5)
    for text in ("{", '{"passes": [{"way": "as shipped"}]}', "[]", path.read_text().replace('"seed"', '"sead"')):
        path.write_text(text)
        with pytest.raises(InputError, match="05.json: not a file of passes"):
            stability.read(5)


def test_agreement_counts_every_disagreement(root):
    steady, moved = verdict(REPRODUCED), verdict(INCONCLUSIVE)
    stability.write(5, [one(i, A=steady, B=steady) for i in range(19)] + [one(19, A=steady, B=moved)])
    a, b = stability.agreement(5)
    assert (a.share, a.stable, b.share, b.stable) == (1, True, 0.95, True)
    stability.write(5, [one(i, A=steady, B=steady) for i in range(9)] + [one(9, A=verdict(NOT_REPRODUCED), B=moved)])
    a, b = stability.agreement(5)
    assert a.flips and not a.stable and str(a) == "A (here reproduced; passes: 9 reproduced, 1 not reproduced)"
    assert "Reproduced in one pass and not reproduced in another: A." in stability.summary(5, "now")
    assert not b.flips and not b.stable and str(b) == "B (here reproduced; passes: 9 reproduced, 1 inconclusive)"


def test_passes_of_a_design_with_another_number_of_seeds_do_not_count(root):
    older = Verdict(INCONCLUSIVE, 1.0, 0.5, 1.5, 5, NOT_REPRODUCED)
    stability.write(5, [one(0, A=verdict(REPRODUCED)), one(1, A=older)])
    (a,) = stability.agreement(5)
    assert (a.passes, a.share) == (1, 1)


def test_pages_show_an_unstable_verdict_as_inconclusive_with_its_rate(root):
    def shown():
        rows = [{"id": key, "scales": {"quick": {"verdict": REPRODUCED}}} for key in "AB"]
        stability.temper([*rows, {"id": "C", "scales": {"quick": None}}], 5)
        return [row["scales"]["quick"] for row in rows]

    steady, moved = verdict(REPRODUCED), verdict(INCONCLUSIVE)
    for n in (2, 9):  # too few to say more; too few to call it inconclusive
        stability.write(5, [one(i, A=steady, B=moved if i < 1 else steady) for i in range(n)])
        rate = {"rate": "passes: 8 reproduced, 1 inconclusive"} if n == 9 else {}
        assert shown() == [{"verdict": REPRODUCED}, {"verdict": REPRODUCED, **rate}]
    stability.write(5, [one(i, A=steady, B=moved if i < 1 else steady) for i in range(10)])
    rate = "passes: 9 reproduced, 1 inconclusive"
    assert shown() == [{"verdict": REPRODUCED}, {"verdict": INCONCLUSIVE, "rate": rate}]


def test_a_pass_whose_control_failed_leaves_the_claim_open(root):
    passes = [one(i, A=verdict(REPRODUCED)) for i in range(20)]
    stability.write(5, [*passes, one(0, stability.AVX2, A=verdict(REPRODUCED, control=INCONCLUSIVE))])
    (a,) = stability.agreement(5)
    assert a.share == 20 / 21 and a.stable and a.said == "20 reproduced, 1 inconclusive" and a.failed_controls == 1
    turned = one(1, stability.AVX2, A=verdict(NOT_REPRODUCED, control=INCONCLUSIVE))
    stability.write(5, [*passes, turned])
    assert stability.agreement(5)[0].flips  # a failed control hides no flip
    stability.write(5, [*passes, one(0, stability.AVX2, A=verdict(REPRODUCED, control=INCONCLUSIVE))])
    said = stability.summary(5, "now")
    assert said.endswith("Controls that failed: A in 1 of the passes.") and "Less often" not in said


def test_passes_of_other_code_are_missing_and_counted_apart(root):
    stability.write(5, [one(0, A=verdict(REPRODUCED)), one(1, stamp="old", A=verdict(REPRODUCED))])
    assert (stability.SHIPPED, 0) not in stability.missing(5, "now")
    assert (stability.SHIPPED, 1) in stability.missing(5, "now")
    assert len(stability.missing(5, "now")) == sum(stability.SEEDS.values()) - 1 == 28
    assert (
        "2 passes (2 as shipped; 1 with this very code, others with older): 1 of 1 verdicts agree"
        in stability.summary(5, "now")
    )
    assert stability.summary(4, "now") == ""


def test_passes_of_code_with_the_same_numbers_are_carried_over_and_others_are_not(root):
    stability.write(5, [one(0, A=verdict(REPRODUCED)), one(1, stamp="older", A=verdict(REPRODUCED))])
    stability.carry(5, "now", "next")
    assert [p.stamp for p in stability.read(5)] == ["next", "older"]
    assert (stability.SHIPPED, 1) in stability.missing(5, "next") and len(stability.missing(5, "next")) == 28
    stability.carry(4, "now", "next")  # no passes, no file
    assert not stability.path_of(4).exists()


def test_a_pass_runs_the_chapter_and_takes_the_place_of_an_older_one(root):
    source = (
        "from IPython.display import display\nfrom normbook.claims import MIME\nimport os\n"
        "v = dict(verdict='reproduced', estimate=float(seed), ci_low=0, ci_high=len(os.sched_getaffinity(0)), n=6, "
        "control_verdict=os.environ.get('ATEN_CPU_CAPABILITY', 'none') + precision)\n"
        "display({MIME: {'verdicts': {'A': v}}}, raw=True)"
    )
    cells = [
        nbformat.v4.new_code_cell("seed = 0\nprecision = 'auto'", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(source),
    ]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=metadata), root / "notebooks" / "05_x.ipynb")
    stability.write(5, [one(2, stability.AVX2, stamp="old")])
    for way in (stability.AVX2, stability.BF16, stability.ONE_CORE):
        stability.run("05_x", way, 2)
    bf16, core, avx2 = stability.read(5)
    assert [p.way for p in (bf16, core, avx2)] == [stability.BF16, stability.ONE_CORE, stability.AVX2]
    assert {p.verdicts["A"].estimate for p in (bf16, core, avx2)} == {2}
    assert [p.verdicts["A"].control_verdict for p in (bf16, core, avx2)] == ["nonebf16", "noneauto", "avx2auto"]
    assert core.verdicts["A"].ci_high == 1
    assert avx2.stamp == chapters.stamp(root / "notebooks" / "05_x.ipynb")


def test_afterwards_this_process_computes_as_before():
    before = (dict(os.environ), os.sched_getaffinity(0))
    for way in stability.SEEDS:
        with pytest.raises(KeyError), stability.computing(way):
            raise KeyError
    assert (dict(os.environ), os.sched_getaffinity(0)) == before


def test_torch_obeys_the_avx2_way():
    with stability.computing(stability.AVX2):
        code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() in ("AVX2", "DEFAULT", "NO AVX")


def test_agreement_is_with_the_committed_verdict_and_not_among_the_passes(root):
    stability.write(5, [one(i, A=verdict(INCONCLUSIVE)) for i in range(20)])
    (a,) = stability.agreement(5)
    assert a.share == 0 and not a.stable and not a.flips
