"""Answer styles: an answer is parsed back and passes the audit, also in a newly declared style."""

from __future__ import annotations

from pathlib import Path

import pytest
from prompt_frames import build, llama_like_tokenizer

from tripletune.answer_lines import Names
from tripletune.audit.lines import named_films
from tripletune.audit.text import text_findings
from tripletune.errors import ConfigError
from tripletune.rank.decoding import read_answer
from tripletune.schemas.answers import (
    ANSWER_STYLES,
    LETTERS,
    TITLES,
    AnswerStyle,
    answer_style,
    candidate_letters,
)

RANKED_LETTERS = AnswerStyle(name="ranked-letters", labels=candidate_letters, numbered=True)
DIGITS = AnswerStyle(name="digits", labels=lambda number: [str(place + 1) for place in range(number)], numbered=False)
PLAIN_TITLES = AnswerStyle(name="plain-titles", numbered=False)
STYLES = (TITLES, LETTERS, RANKED_LETTERS, DIGITS, PLAIN_TITLES)


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_answers_of_any_style_are_written_counted_read_and_audited(
    style: AnswerStyle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = llama_like_tokenizer()
    monkeypatch.setitem(ANSWER_STYLES, style.name, style)
    template = tmp_path / "mine.txt"
    template.write_text(f"---\nid: mine\nbase: hints-first\nanswers: {style.name}\n---\n[system]\nHello.\n")
    examples = build(str(template), tokenizer=tokenizer)
    picks = build()
    for row, by_title in zip(examples.iter_rows(named=True), picks.iter_rows(named=True), strict=True):
        names = Names.of(style, row["candidate_titles"], row["candidate_letters"])
        text = row["completion"][0]["content"]
        found, valid = read_answer(text, names)
        assert valid
        assert text == "\n".join(style.line(number, names.names[index]) for number, index in enumerate(found, 1))
        said = [row["candidate_titles"][index] for index in found]
        assert [f"{number}. {title}" for number, title in enumerate(said, 1)] == by_title["completion"][0][
            "content"
        ].split("\n")
        labels = style.labels(len(said)) if style.labels else ["-"] * len(said)
        marks = [f"{label}." if style.labels else label for label in labels]
        for mark, title in zip(marks, row["candidate_titles"], strict=False):
            assert f"\n{mark} {title}\n" in row["prompt"][1]["content"]
    findings = [one for one in text_findings(examples, named_films(examples), "test", style) if one.rows.height]
    assert [(one.rule, one.kind) for one in findings] == []


@pytest.mark.parametrize(
    ("style", "line", "name"),
    [
        (TITLES, "1. Heat (1995)", "Heat (1995)"),
        (TITLES, " 2 )  Heat (1995) ", "Heat (1995)"),
        (TITLES, "Heat (1995)", ""),
        (LETTERS, " C ", "C"),
        (LETTERS, "1. C", "1. C"),
        (RANKED_LETTERS, "1. C", "C"),
    ],
)
def test_a_line_is_read_in_its_style(style: AnswerStyle, line: str, name: str) -> None:
    assert style.name_in(line) == name


def test_a_style_is_known_by_its_name() -> None:
    assert (answer_style("titles"), answer_style("letters")) == (TITLES, LETTERS)
    assert (TITLES.is_labelled, LETTERS.is_labelled) == (False, True)
    with pytest.raises(ConfigError, match="no answer style 'both'; the styles are titles, letters"):
        answer_style("both")
