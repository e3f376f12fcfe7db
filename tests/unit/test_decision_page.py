"""A promotion decision as rows and as a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tripletune.promote.decision import Comparison, PromotionDecision
from tripletune.promote.pages import DecisionRow, decision_rows, headline, write_decision_page

MADE = Comparison(
    "champion", "3", "failed", "too <far>", 0.25, -0.05, -0.0999, 0.01, -0.025, num_viewers=1234, own_contract=True
)
SKIPPED = Comparison("earlier", "", "skipped", "no version is 7 days old yet")


def decision(**changes: Any) -> dict[str, Any]:
    made = PromotionDecision(False, "too <far>", num_viewers=1234, value=0.2, comparisons=(MADE, SKIPPED))
    return {**asdict(made), "model": "m", "adapter": "a" * 32, "version": "", "run": "r-1", **changes}


def test_rows_have_the_numbers_as_they_are_read_and_nothing_where_there_is_none() -> None:
    assert decision_rows(decision()) == [
        DecisionRow("champion", "3", "own", "0.2500", "-0.0500", "-0.0999", "-0.0250", "1,234", "failed", "too <far>"),
        DecisionRow("earlier", "", "", "", "", "", "", "", "skipped", "no version is 7 days old yet"),
    ]
    assert decision_rows({"promote": True, "reason": "of an older version"}) == []


def test_the_headline_says_promoted_or_not_and_as_what() -> None:
    assert headline(decision()) == "not promoted: too <far>"
    promoted = decision(promote=True, is_best=True, version="4", reason="fine")
    assert headline(promoted) == "promoted as version 4, the best version: fine"


def test_the_page_escapes_and_names_run_and_comparisons(tmp_path: Path) -> None:
    page = write_decision_page(tmp_path, decision()).read_text()
    assert "too &lt;far&gt;" in page
    assert "too <far>" not in page
    assert "Promotion of r-1" in page
    assert "-0.0999" in page
    assert "on prompts of its own" in page
