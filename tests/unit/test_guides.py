"""The examples of the guides: what they add appears, with as few existing lines changed as the guides say."""

from __future__ import annotations

import re

from docs import example_hint, example_metric, example_source, example_stage, example_template


def changed_lines(printed: str) -> int:
    """Insertions and deletions of ``git diff --stat`` in what an example prints."""
    return sum(int(number) for number in re.findall(r"(\d+) (?:insertion|deletion)", printed))


def test_the_stage_of_the_guide_is_a_file_and_two_lines():
    printed = example_stage.main()
    assert re.search(r"^years \d+, ratings 4,800$", printed, re.M)
    assert re.search(r"activity\s+│ reuse", printed)
    assert changed_lines(printed) == 2


def test_the_sources_of_the_guide_take_no_code():
    printed = example_source.main()
    assert "4,800 ratings kept" in printed
    assert re.search(r"award\s+┆ \d\d", printed)


def test_the_hint_of_the_guide_is_shown_stored_and_audited():
    printed = example_hint.main()
    assert re.search(r"^Hint 3, films below that most people liked, most liked first:\n1\. .+\n2\. .+\n3\. ", printed)
    assert re.search(r"^column popular of \d+:test: \[\d+, \d+, \d+\]$", printed, re.M)
    assert "nothing forged: no leak found" in printed
    assert "rule 2: popular name a film outside candidates: 1" in printed
    assert re.search(
        r"^prompt forged: 1 leak found\n  rule 2: section of the prompt differs from its column: 1", printed, re.M
    )
    assert re.search(r"^ 1 file changed, 2 insertions\(\+\)$", printed, re.M)


def test_the_template_of_the_guide_lies_elsewhere_and_changes_no_line():
    printed = example_template.main()
    assert "What may matter to this person:\n- " in printed
    assert re.search(r"^Name the letters of exactly five .*\n\n[A-J]\n[A-J]\n[A-J]\n[A-J]\n[A-J]$", printed, re.M)
    assert re.search(r"^template brief [0-9a-f]{10}$", printed, re.M)
    assert printed.endswith("existing lines changed: none")


def test_the_metric_of_the_guide_is_a_file_and_two_lines():
    printed = example_metric.main()
    assert re.search(r"┃ mrr_at_3\s+┃", printed)
    # the tuned model of the written run puts the held-out film first wherever it is a candidate: for 16 of 24 users
    assert "tuned mrr_at_5 0.6667" in printed
    assert "9 comparisons by mrr_at_5; it is in metrics.json and report.html" in printed
    assert changed_lines(printed) == 2
