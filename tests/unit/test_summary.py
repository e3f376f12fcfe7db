"""A run's own page: the report of its outputs with what only the run knows."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.page_rules import faults
from tests.unit.compared_runs import values_of, write_evaluated
from tripletune import summary
from tripletune.cli.main import main
from tripletune.errors import InputError
from tripletune.html.pages import render_page
from tripletune.store.files import write_json
from tripletune.store.runs import local_run, run_page, write_run
from tripletune.summary import summarise_run

NUM_USERS = 300


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_evaluated(tmp_path, "first", 1, 0.0, "2026-01-01T00:00:00Z")
    config = {"finetune": {"lora_r": 99}, "source": {"movielens": "/data/ml-small"}}
    write_evaluated(tmp_path, "later", 1, 0.3, "2026-01-02T00:00:00Z", config=config)
    return tmp_path


def page_of(root: Path, name: str) -> str:
    return summarise_run(local_run(root, name), root).page.read_text(encoding="utf-8")


def words(html: str) -> dict[str, str]:
    return dict(re.findall(r'<li><b>([^<]*)</b> <span class="answer [a-z-]+">([^<]*)</span>', html))


def test_the_page_names_run_commit_and_data(root: Path) -> None:
    page = page_of(root, "later")
    assert faults(page) == []
    for text in (
        "<dd>later</dd>",
        "c0ffeec0ff, with changes that are not committed",
        "2026-01-02",
        "<dd>ml-small</dd>",
    ):
        assert text in page
    assert "<dd>/data" not in page
    first = page_of(root, "first")
    assert "<dd>synthetic</dd>" in first
    assert "not committed" not in first
    assert run_page(root, local_run(root, "first")).read_text(encoding="utf-8") == page_of(root, "first")


def test_what_changed_is_shown_with_the_paired_difference(root: Path) -> None:
    page = page_of(root, "later")
    assert words(page)["Is it better than the last run?"] == "yes"
    assert "finetune.lora_r" in page
    before, after = (values_of(NUM_USERS, 1, gain) for gain in (0.0, 0.3))
    assert f"<b>{np.mean(after - before):+.3f}</b>" in page
    assert words(page_of(root, "first"))["Is it better than the last run?"] == "not known"
    assert 'id="changes"' not in page_of(root, "first")


def test_a_run_that_reused_everything_changed_nothing(root: Path) -> None:
    later = local_run(root, "later")
    write_run(root, later.model_copy(update={"name": "again", "started": "2026-01-03T00:00:00Z"}))
    page = page_of(root, "again")
    assert "Every output is the same as in later" in page
    assert "Settings that differ: none." in page


def test_a_last_run_on_other_queries_is_named_with_the_reason(root: Path) -> None:
    write_evaluated(root, "shifted", 1, 0.0, "2026-01-04T00:00:00Z", shift=3, config={"prompt": {"max_liked": 9}})
    page = page_of(root, "shifted")
    assert words(page)["Is it better than the last run?"] == "not known"
    assert "share no questions" in page


def test_a_last_run_that_cannot_be_read_is_named_with_the_reason(root: Path) -> None:
    write_evaluated(root, "odd", 2, 0.0, "2026-01-05T00:00:00Z", rows=("retriever",))
    write_evaluated(root, "after", 3, 0.0, "2026-01-06T00:00:00Z")
    page = page_of(root, "after")
    assert words(page)["Is it better than the last run?"] == "not known"
    assert "run odd has no row" in page
    assert "Every output is the same" not in page


@pytest.mark.parametrize(
    ("decision", "word", "text"),
    [
        (None, "not known", "made no decision"),
        ({"promote": True, "reason": "it <is> better", "version": "3"}, "yes", "Version 3 of m: it &lt;is&gt; better."),
        ({"promote": False, "reason": "it is worse", "version": ""}, "no", "it is worse."),
    ],
)
def test_the_promotion_is_that_of_the_run(root: Path, decision: dict[str, object] | None, word: str, text: str) -> None:
    if decision:
        folder = root / "ml" / "promote" / "later"
        folder.mkdir(parents=True)
        write_json(folder / "decision.json", {"model": "m", "adapter": "a", "champion_before": None, **decision})
    page = page_of(root, "later")
    assert words(page)["Is it promoted?"] == word
    assert text in page
    assert "These outputs can serve several runs" not in page


def test_the_description_says_the_verdicts_in_markdown(root: Path) -> None:
    text = summarise_run(local_run(root, "later"), root).markdown()
    assert "- **Did tuning help?** yes. ndcg_at_5 of tuned minus untuned: +0.250 (interval +0.100 to +0.400)" in text
    assert "- **Is it better than the last run?** yes." in text
    assert text.startswith("run: later; started: 2026-01-02 00:00:00 UTC; commit: c0ffeec0ff, with changes")


def test_a_report_of_another_version_is_refused(root: Path) -> None:
    path = local_run(root, "later").paths(root).folder("evaluate") / "report.html"
    path.write_text("<html></html>", encoding="utf-8")
    with pytest.raises(InputError, match="another version wrote it: run evaluate again"):
        page_of(root, "later")


def test_data_cannot_forge_a_place_that_a_run_fills() -> None:
    forged = "<!--run: facts-->\n<!--run: end facts-->"
    html = render_page(
        "templates/report.html.j2",
        dataset=forged,
        facts=[("model", forged)],
        confidence=0.95,
        headlines=[],
        verdicts=[],
        contents={},
    )
    assert [found[1] for found in summary.SLOT.finditer(html)] == list(summary.SLOTS)


def test_the_command_writes_the_page_again(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "ml" / "report", ignore_errors=True)
    assert main(["report", "later", "--artifacts", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "**Did tuning help?** yes." in printed
    page = run_page(root, local_run(root, "later"))
    assert str(page) in printed.replace("\n", "")
    assert page.is_file()
    assert json.loads((root / "runs" / "later.json").read_text())["commit"].startswith("c0ffee")
