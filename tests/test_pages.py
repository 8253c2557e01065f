"""normbook.pages: numbers on pages come from verdicts, pictures show intervals where they are, nothing is left out."""

import copy
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from normbook import chapters, claims, pages, stability
from normbook.errors import InputError

ROOT = Path(__file__).parents[1]


def row(key="XX-1a", verdict="not reproduced", low=-1.5, high=-0.5, region=(0, None), **changes):
    found = {
        "verdict": verdict, "expected": verdict, "estimate": (low + high) / 2, "ci_low": low, "ci_high": high, "n": 6,
        "control_verdict": "reproduced", "code_current": True,
    }  # fmt: skip
    return {
        "id": key, "chapter": 5, "statement": "One < two & above zero", "source": "Somebody 2020, figure 1",
        "estimator": "t", "unit": "nats", "region": list(region), "level": 0.95, "paper_value": 0.2, "provenance": "",
        "scales": {"quick": found, "cifar": None, "paper": None}, **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def all_rows():
    return [one for path in claims.chapters().values() for one in chapters.listing(path)]


class Table(HTMLParser):
    """The texts of a table's cells, a list a row."""

    def __init__(self, page):
        super().__init__()
        self.rows = []
        self.open = []
        self.feed(page)
        assert not self.open, "tags are left open"

    def handle_starttag(self, tag, attrs):
        if tag not in ("rect", "line", "circle", "input"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        assert tag in ("rect", "line", "circle")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def test_the_scoreboard_counts_verdicts_and_errors_by_chance():
    page = pages.scoreboard([row()])
    assert "At scale quick: 0 reproduced, 1 not reproduced, 0 inconclusive." in page and "At scale cifar" not in page
    assert "more than one scale" not in page
    assert "at most 0.05 of the 1 intervals wrong" in page
    assert "| Somebody 2020 | 1 | 0 | 1: XX-1a | 0 |" in page


def test_every_claim_is_a_well_formed_line_with_its_numbers(all_rows):
    html = re.search(r"```\{raw\} html\n(.*?)```", pages.scoreboard(all_rows), re.S)[1]
    head, *lines = Table(html).rows
    judged = pages.judged(all_rows)
    assert tuple(head) == pages.COLUMNS and len(lines) == len(judged) >= len(all_rows) >= 210
    for line, (one, scale, found) in zip(lines, judged, strict=True):
        assert line[0] == f"{one['id']} {one['statement']}" and line[1] == f"{found['verdict']} {scale}"
        n = "" if one["estimator"] == "exact" else f", n\u00a0=\u00a0{found['n']}"
        assert line[3] == pages.estimate_text(one, found) + n and line[6] == found["control_verdict"]
        assert line[7] == one["source"]


def test_verdicts_at_two_scales_stand_side_by_side_those_that_differ_first():
    same, other = row("XX-2"), row("XX-3")
    same["scales"]["cifar"] = same["scales"]["quick"]
    other["scales"]["cifar"] = other["scales"]["quick"] | {"verdict": "reproduced", "estimate": 2.0}
    page = pages.scoreboard([row(), same, other])
    assert "At scale quick: 0 reproduced, 3 not" in page and "At scale cifar: 1 reproduced, 1 not reproduced" in page
    table = page.split("## At more than one scale")[1].split("## Paper")[0]
    assert "2 claims are judged at more than one scale; 1 of them come out differently" in table
    assert "| claim | quick | cifar |" in table and "XX-1" not in table
    assert table.index("XX-3") < table.index("XX-2")
    no, yes = "[not reproduced]{.verdict-not-reproduced} -1", "[reproduced]{.verdict-reproduced} 2"
    assert f"| [XX-3]{{.claim-id}} One < two & above zero | {no} (-1.5 to -0.5) nats | {yes} (" in table
    # the figure of the first page counts each claim once
    assert pages.overview([same, other]).count('class="sign-') == 2


def numbers(svg):
    box = [float(x) for x in re.search(r'<rect x="(.*?)" y="1" width="(.*?)"', svg).groups()]
    bar = [float(x) for x in re.search(r'x1="(.*?)".*? x2="(.*?)"', svg).groups()]
    return box[0], box[0] + box[1], *bar


@pytest.mark.parametrize(
    ("low", "high", "region"),
    [
        (1, 2, (0.5, None)), (1, 2, (None, 3)), (1, 2, (0.9, 2.1)), (-2, -1, (0, None)), (3, 4, (None, 2)),
        (-1, 1, (0, None)), (5, 5, (5, None)), (0, 0, (None, 1e-9)), (-0.1, 900, (-1, 1)), (0, 0, (0, None)),
    ],
)  # fmt: skip
def test_the_picture_says_what_the_verdict_says(low, high, region):
    one = row(low=low, high=high, region=region)["scales"]["quick"]
    left, right, a, b = numbers(pages.picture(one, region))
    assert 0 <= a <= b <= pages.WIDTH and 0 <= left <= right <= pages.WIDTH
    verdict = claims.compare(region, low, high)
    if verdict == claims.REPRODUCED:
        assert left <= a and b <= right
    elif low != high and verdict == claims.NOT_REPRODUCED:
        assert b <= left or right <= a
    elif low != high:
        assert a < left < b or a < right < b


def test_pages_are_filled_with_verdicts_and_unknown_claims_are_refused():
    text = pages.fill("so it is [[XX-1a]].", [row()])
    assert text == "so it is (XX-1a: [not reproduced]{.verdict-not-reproduced} -1 (-1.5 to -0.5) nats, n = 6)."
    unstable = row()
    unstable["scales"]["quick"] |= {"verdict": "inconclusive", "rate": "not reproduced in 80% of 10 passes"}
    shown = (
        "(XX-1a: [inconclusive]{.verdict-inconclusive} not reproduced in 80% of 10 passes; "
        "here -1 (-1.5 to -0.5) nats, n = 6)"
    )
    assert pages.fill("[[XX-1a]]", [unstable]) == shown
    unstable["scales"]["cifar"] = row()["scales"]["quick"] | {"verdict": "reproduced"}
    also = "; [reproduced]{.verdict-reproduced} at scale `cifar`)"
    assert pages.fill("[[XX-1a]]", [unstable]) == shown[:-1] + also
    with pytest.raises(InputError, match="XX-2, which no chapter declares"):
        pages.fill("[[XX-2]]", [row()])


def test_the_index_refutes_what_is_refuted_and_shows_every_claim(all_rows):
    text = (ROOT / "book" / "index.md").read_text()
    all_rows = copy.deepcopy(all_rows)
    for number in {one["chapter"] for one in all_rows}:
        stability.temper([one for one in all_rows if one["chapter"] == number], number)  # as the page shows them
    verdicts = {one["id"]: one["scales"]["quick"]["verdict"] for one in all_rows}
    said = {r"not\s+hold|but not": claims.NOT_REPRODUCED, r"stays\s+open|not clearly": claims.INCONCLUSIVE}
    for sentence in re.split(r"(?<=\]\])[.;,]", text):
        for key in re.findall(r"\[\[([\w-]+)\]\]", sentence):
            expected = next((v for words, v in said.items() if re.search(words, sentence)), claims.REPRODUCED)
            assert verdicts[key] == expected, f"the first page is wrong about {key}"
    known = {one["id"]: {found["verdict"] for _, _, found in pages.judged([one])} for one in all_rows}
    for point in re.split(r"^\* ", text, flags=re.M)[1:]:
        turned = [
            key for key in re.findall(r"\[\[([\w-]+)\]\]", point) if {"reproduced", "not reproduced"} <= known[key]
        ]
        assert not turned or "CIFAR-10" in point, f"the first page does not say that {turned} come out otherwise there"
    signs = re.findall(r'<span class="sign-([\w-]+)"', pages.fill(text, all_rows))
    assert sorted(signs) == sorted(v.replace(" ", "-") for v in verdicts.values())
    assert re.search(r"Of \d+ verdicts \d+ came out the same", pages.fill(text, all_rows))
    assert pages.totals(all_rows) in pages.fill(text, all_rows)


def test_the_index_counts_verdicts_at_each_scale_and_names_the_few_that_differ(monkeypatch):
    same, other = row("XX-2"), row("XX-3")
    same["scales"]["cifar"] = same["scales"]["quick"]
    other["scales"]["cifar"] = other["scales"]["quick"] | {"verdict": "reproduced"}
    said = pages.totals([row(), same, other])
    assert said.startswith(
        "Of 3 claims at scale `quick`: 0 reproduced, 3 not reproduced, 0 inconclusive. At scale `cifar`"
    )
    assert "2 of them are judged again: 1 verdicts are as at `quick`, 1 differ: " in said
    assert said.endswith("{doc}`XX-3 </notebooks/05_skipinit>` not reproduced at `quick`, reproduced at `cifar`.")
    monkeypatch.setattr(pages, "FEW_IDS", 0)
    said = pages.totals([row(), same, other])
    assert "1 differ; 1 turn from reproduced to not reproduced or back: {doc}`XX-3 </notebooks/05_skipinit>`." in said
    other["scales"]["cifar"]["verdict"] = "inconclusive"
    assert pages.totals([row(), same, other]).endswith("1 differ.")
    assert "cifar" not in pages.totals([row()])


def test_the_index_says_how_many_verdicts_turn_round(monkeypatch):
    outcomes = {"reproduced": 9, "not reproduced": 1}
    turned = stability.Agreement("A", "reproduced", 0.9, True, 0, outcomes)
    monkeypatch.setattr(stability, "agreement", lambda number: [turned] if number == 5 else [])
    assert " 1 turned from reproduced to not reproduced or back" in pages.how_sure()
    steady = stability.Agreement("A", "reproduced", 1.0, False, 0, {"reproduced": 10})
    monkeypatch.setattr(stability, "agreement", lambda number: [steady])
    assert " None turned from reproduced to not reproduced or back in any pass." in pages.how_sure()


def test_a_first_source_is_cut_at_its_year():
    sources = {"Ba, Kiros & Hinton 2016, section 5": "Ba, Kiros & Hinton 2016", "ours": "ours",
               "De & Smith 2020, table 1; Zhang 2019": "De & Smith 2020", "common advice, not a paper": "common advice",
               "ours, after De & Smith 2020": "ours"}  # fmt: skip
    assert {source: pages.paper({"source": source}) for source in sources} == sources


def test_the_status_page_leaves_out_what_is_kept_nowhere():
    committed = [chapters.read(path) for path in claims.chapters().values()]
    recorded = ["no grid declared"] * len(committed)
    recorded[4] = "299 of 299 at cifar"
    assert "seconds" not in pages.status(committed, recorded).split("## Stability")[0]
    committed[0].notebook.metadata["normbook"]["seconds"] = 12.0
    page = pages.status(committed, recorded)
    assert page.count("| fresh | 299 of 299 at cifar |") == 1
    assert "| 12 |" in page and "slowest" not in page and "Run on: " in page


def test_the_status_page_says_stale_when_the_code_moved_on(monkeypatch):
    executed = [chapters.read(path) for path in claims.chapters().values()]
    recorded = [""] * len(executed)
    assert "stale" not in pages.status(executed, recorded)
    monkeypatch.setattr(chapters, "stamp", lambda path: "another")
    assert pages.status(executed, recorded).count("**stale**") == len(executed)


def test_the_environment_page_reads_both_locks_and_knows_extras():
    project = '[project]\ndependencies = ["torch>=2"]\n[project.optional-dependencies]\ncluster = ["ray[client]>=2.50"]'
    page = pages.environment("torch==2.1 \\\nx==1 ; linux\n", "ray==2.60.0 \\\ntorch==2.1\ny==1\n", project)
    assert "| package | torch | `>=2` | 2.1 |" in page and "| cluster | ray[client] | `>=2.50` | 2.60.0 |" in page
    assert "not locked" not in page and "requirements.lock`: 2 packages" in page and "with 3 packages" in page
