"""Hints are declared once: columns, slots, settings and rules are assembled from the declarations."""

from __future__ import annotations

import dataclasses

import polars as pl
import pytest

from tripletune.audit import rules, text
from tripletune.config import PromptConfig, RetrieveConfig
from tripletune.prompts import budget, template
from tripletune.prompts.engine import prompt_contract
from tripletune.schemas.generate import EXAMPLE_COLUMNS, EXAMPLES, SHORTENED
from tripletune.schemas.hint import LIGHTGCN, RGAT
from tripletune.schemas.hints import FILM_HINTS, HINTS, SPECIALISTS, written_by
from tripletune.schemas.retrieve import RETRIEVED

FILMS = pl.List(pl.Int32)
TRIPLES = pl.List(
    pl.Struct({"movie_id": pl.Int32, "relation": pl.String, "entity": pl.String, "entity_name": pl.String})
)

TOPICS = pl.List(
    pl.Struct(
        {"relation": pl.String, "entity": pl.String, "entity_name": pl.String, "films": pl.Int32, "recent": pl.Int32}
    )
)


def test_the_columns_of_two_specialists_are_those_that_shards_have_always_had() -> None:
    assert EXAMPLES.names() == [
        *("example_id", "user_id", "purpose", "unseen", "cutoff", "prompt", "completion", "answers"),
        *("answer_ratings", "candidates", "candidate_titles", "candidate_letters", "retrieved", "liked", "disliked"),
        *(
            "ranking",
            "similar",
            "triples",
            "topics",
            "worked",
            "num_tokens",
            "shortened",
            "template_id",
            "template_sha256",
        ),
        *("lightgcn", "rgat"),
    ]
    assert [EXAMPLES[name] for name in ("ranking", "similar", "triples", "topics")] == [FILMS, FILMS, TRIPLES, TOPICS]
    assert [EXAMPLES[name] for name in ("lightgcn", "rgat")] == [pl.String, pl.String]
    counts = dict.fromkeys(("liked", "disliked", "similar", "triples", "topics"), pl.Int16)
    assert EXAMPLES["shortened"] == SHORTENED == pl.Struct(counts)
    hints = {"candidates": FILMS, "ranking": FILMS, "similar": FILMS, "topics": TOPICS}
    assert list(RETRIEVED.items())[4:] == list(hints.items())


def test_columns_are_described_by_their_hints_and_specialists() -> None:
    assert EXAMPLE_COLUMNS["ranking"] == "hint 1: the first of the candidates in LightGCN's order"
    assert EXAMPLE_COLUMNS["similar"] == "hint 1: films that similar users liked"
    assert EXAMPLE_COLUMNS["triples"] == "hint 2: the facts shown, as chosen by the R-GAT"
    assert EXAMPLE_COLUMNS["lightgcn"] == "fingerprint of the LightGCN that wrote hint 1"
    assert EXAMPLE_COLUMNS["rgat"] == "fingerprint of the R-GAT that wrote hints 2 and 3"


def test_a_specialist_of_several_hints_is_said_to_write_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fourth = dataclasses.replace(HINTS[0], name="popular", number=4)
    monkeypatch.setattr("tripletune.schemas.hints.HINTS", (*HINTS, fourth))
    assert (written_by(LIGHTGCN), written_by(RGAT)) == ("hints 1 and 4", "hints 2 and 3")


def test_slots_rules_and_the_budget_follow_the_declarations() -> None:
    assert template.SLOTS == ("liked", "disliked", "ranking", "similar", "triples", "topics", "candidates")
    assert rules.MASKED == ("candidates", "retrieved", "ranking", "similar")
    assert text.NAMING == ("candidates", "ranking", "similar", "liked", "disliked")
    assert budget.DROPPABLE == ("liked", "disliked", "similar", "topics")
    assert [hint.name for hint in FILM_HINTS] == ["ranking", "similar"]
    assert [one.stage for one in SPECIALISTS] == ["lightgcn", "rgat"]


def test_prompts_and_adapter_agree_in_the_settings_of_every_hint() -> None:
    contract = prompt_contract(PromptConfig(), RetrieveConfig(hint_films=4, triple_choice="random"))
    settings = [name for hint in HINTS for name in hint.settings]
    similar = ["similar_films", "similar_viewers", "similar_people"]
    assert settings == ["hint_films", *similar, "triple_choice", "triples_per_film", "num_topics"]
    assert [name for name in contract if name in settings] == settings[:-1]  # no topics, as in every older contract
    assert prompt_contract(PromptConfig(), RetrieveConfig(num_topics=6)) == {
        **prompt_contract(PromptConfig(), RetrieveConfig()),
        "num_topics": 6,
    }
    assert (contract["hint_films"], contract["similar_viewers"], contract["triple_choice"]) == (4, 20, "random")


@pytest.mark.parametrize("name", ["Popular", "most_liked", "hint 3", "", "candidates", "words"])
def test_a_hint_whose_name_cannot_be_a_section_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="its name must be lower-case letters and none of liked, disliked"):
        dataclasses.replace(HINTS[0], name=name)
