"""normbook.recorded: a chapter's page says how much is recorded, where and when, and what it shows; never more."""

from dataclasses import replace

import fakes
import pytest

from normbook import chapters, claims, recorded, records, sweep
from normbook.errors import InputError


@pytest.fixture
def path(monkeypatch, tmp_path):
    return fakes.chapter(monkeypatch, tmp_path)


def chosen(chapter, lr=0.2):
    """The chapter's runs at this learning rate."""
    return [replace(c, lr=lr) for c in chapter.runs]


def test_a_scale_without_a_plan_and_one_without_records_say_so(monkeypatch, tmp_path):
    text = fakes.notebook().replace('    paper={\\"scan\\": range(5), \\"closer\\": ()},\\n', "")
    assert text != fakes.notebook()
    fakes.chapter(monkeypatch, tmp_path, text)
    first, second = recorded.passage("05_small", []).split("\n\n")
    assert first.startswith("**Scale `cifar`.** None of its 22 runs is recorded yet. `normbook run 5 --scale cifar`")
    assert second == "**Scale `paper`.** This chapter declares no grid at this scale yet."


def test_what_is_recorded_is_counted_with_devices_dates_data_and_code(path, monkeypatch, tmp_path):
    chapter = claims.load(5, scale="paper")
    folder = tmp_path / "results" / "paper" / "records"
    fakes.keep(folder, chapter.scan[:3], threads=2, seconds=1800.0)
    fakes.keep(folder, chapter.scan[3:4], device="NVIDIA X", seconds=7200.0, end=1e9 + 86400)
    assert recorded.summary(chapter, folder) == {
        "runs": 4, "of": 30, "probes": 0, "of_probes": 0, "devices": {"NVIDIA X": 2.0, "some cpu": 3.0},
        "start": "2001-09-09",
        "end": "2001-09-10", "data": ["digits"], "code": [records.code_hash()],
    }  # fmt: skip
    text = recorded.passage("05_small", [])
    assert (
        "4 of 30 runs are recorded: NVIDIA X (2.0 hours), some cpu (3.0 core hours), 2001-09-09 to 2001-09-10" in text
    )
    assert "data `digits`." in text and "older code" not in text and "with `--plan`" in text
    monkeypatch.setattr(records, "code_hash", lambda: "another")
    assert "All of them are of older code." in recorded.passage("05_small", [])


def test_verdicts_stand_in_a_table_beside_the_papers_numbers(path, tmp_path):
    chapter = claims.load(5, scale="cifar")
    folder = tmp_path / "results" / "cifar" / "records"
    closer = [replace(c, seed=(0, 1001)) for c in chapter.scan]
    fakes.keep(folder, [*chapter.scan, *closer, *chosen(chapter)], lambda c: abs(c.lr - 0.2) + 1 + c.seed[1] / 1e4)
    executed = chapters.execute(path, tmp_path / "out" / "05_small", {"scale": "cifar"})
    assert recorded.commit(executed, chapter, "cifar", folder) == []
    verdict = claims.Verdict("inconclusive", 0.0, -1.0, 1.0, 5, "not reproduced")
    quick = chapters.Executed(path, executed.notebook, {"XX-1": verdict})
    quick.notebook.metadata["normbook"]["scale"] = "quick"
    chapters.commit(quick, 5)
    text = recorded.passage("05_small", chapters.listing(path))
    assert "22 of 22 runs are recorded: some cpu" in text and "`normbook run 5 --scale cifar`" not in text
    assert "```{image} 05_cifar.png\n:alt: a dot at scale cifar\n" in text
    assert "| claim | verdict | ours | paper | interval | n |" in text
    assert "| [XX-1]{.claim-id} There is a loss | [reproduced]{.verdict-reproduced} | 1 nats | 2 | 1 to 1 | 5 |" in text
    assert "Judged otherwise at scale `quick`: XX-1 (inconclusive, here reproduced)." in text
    assert "XX-2 (" not in text and "control failed" not in text


def test_a_chapter_without_records_commits_nothing(path, tmp_path):
    chapter = claims.load(5, scale="paper")
    executed = chapters.execute(path, tmp_path / "out" / "05_small", {"scale": "paper"})
    with pytest.raises(InputError, match="none of the 30 runs of chapter 5 is recorded there"):
        recorded.commit(executed, chapter, "paper", sweep.place("paper", tmp_path))
    assert not (tmp_path / "results").exists()


def test_a_chapter_without_a_key_figure_is_one_line(path, tmp_path):
    executed = chapters.execute(path, tmp_path / "out" / "05_small", {"scale": "cifar"})
    for cell in executed.notebook.cells:
        cell.metadata["tags"] = []
    with pytest.raises(InputError, match="no figure in a cell tagged 'key-figure'"):
        chapters.key_figure(executed)
