"""Text flaws that a reader overlooks and a model learns."""

from __future__ import annotations

import polars as pl
import pytest

from tripletune.quality.text import FLAWS, find_flaws

FLAWED = {
    "not in Unicode NFC": ["Ame\u0301lie", "Å is \u212b", "\u1112\u1161\u11ab"],
    "replacement character": ["Am\ufffdlie"],
    "control character": ["Heat\r", "Heat\x07", "Heat\x85", "Heat\u2028end", "Heat\x1b[0m"],
    "bidirectional control": ["Heat \u202egnp", "\u2066Heat\u2069", "\u200fHeat"],
    "invisible character": ["He\u200bat", "He\u00adat", "\ufeffHeat", "Heat\ufe0f", "\U000e0041Heat", "\u3164"],
    "private or unassigned character": ["\ue000", "\U0010ffff"],
    "looks like UTF-8 read as Latin-1": ["AmÃ©lie", "Donâ€™t", "Â¿Qué?", "ã‚¹", "ðŸŽ¬"],
}
SOUND = [
    "Amélie (2001)",
    "L'Âge d'or (1930), NÃO, CAFÉ’S, «À l’heure…», Ærø – Ålesund",
    "千と千尋の神隠し (Spirited Away) 한국 Сталкер",
    "[REC]² ½ ™ … ‹b›",
    "- Heat (1995) - directed by - Michael Mann",
]


def texts(*prompts: str) -> pl.DataFrame:
    rows = [(f"{number}:test", prompt, "1. Heat") for number, prompt in enumerate(prompts)]
    return pl.DataFrame(rows, schema=["example_id", "prompt", "completion"], orient="row")


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, lines in FLAWED.items() for text in lines])
def test_each_flaw_is_found_and_named(kind: str, text: str) -> None:
    found = find_flaws(texts("- Heat", f"Hint 1:\n- {text}\n- Ronin"))
    assert ("1:test", kind, f"- {text}") in list(found.iter_rows())
    assert set(found["example_id"]) == {"1:test"}


def test_sound_titles_of_any_script_have_no_flaw() -> None:
    assert find_flaws(texts(*SOUND)).is_empty()


def test_every_kind_is_planted_here() -> None:
    assert set(FLAWED) == set(FLAWS)


def test_an_example_is_named_once_per_kind_with_its_first_line() -> None:
    found = find_flaws(texts("one\x07\ntwo\x07\nthree\ufffd"))
    assert sorted(found.iter_rows()) == [
        ("0:test", "control character", "one\x07"),
        ("0:test", "replacement character", "three\ufffd"),
    ]


def test_a_flaw_in_the_completion_is_found() -> None:
    frame = texts("- Heat").with_columns(completion=pl.lit("1. He\ufffdat"))
    assert find_flaws(frame).rows() == [("0:test", "replacement character", "1. He\ufffdat")]
