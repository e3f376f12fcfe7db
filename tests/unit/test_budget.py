"""The token budget: what is dropped, in which order, and never more than needed."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from chat_tokenizers import like
from prompt_frames import build, ids_of_whole, llama_like_tokenizer, movies, plain_titles, render_prompts
from pydantic import ValidationError

from tripletune.config import FinetuneConfig, PromptConfig, RetrieveConfig, RunConfig
from tripletune.errors import InputError
from tripletune.prompts.engine import prompt_contract
from tripletune.prompts.sanitise import display_titles
from tripletune.prompts.template import load_template
from tripletune.schemas.generate import EXAMPLES

KEPT = ("candidates", "candidate_titles", "candidate_letters", "retrieved", "ranking", "answers", "completion")
LISTS = ("liked", "disliked", "similar", "triples", "topics")


def tokens_of(row: dict[str, Any], template: str, form: str, tokenizer: Any = None) -> int:
    """Rendered alone, and tokenised whole."""
    titles = display_titles(movies(plain_titles()))
    films = {
        name: pl.List(pl.Int32)
        for name in ("liked", "disliked", "ranking", "similar", "candidates", "completion", "retrieved")
    }
    placed = row["retrieved"] if template == "compact" else row["ranking"]
    picks = list(dict.fromkeys([*row["answers"], *placed, *row["candidates"]]))[:5]
    schema = films | {name: EXAMPLES[name] for name in ("triples", "topics")}
    alone = pl.DataFrame({name: [{**row, "completion": picks}[name]] for name in schema}, schema=schema)
    rendered = render_prompts(alone, load_template(template), form, titles).row(0, named=True)
    return len(ids_of_whole(tokenizer or llama_like_tokenizer(), rendered))


def without_one(row: dict[str, Any], template: str) -> dict[str, Any]:
    """The documented order, one film at a time."""
    liked, disliked, similar, topics = (list(row[name]) for name in ("liked", "disliked", "similar", "topics"))
    gone: Any = None
    if len(liked) > 5:
        gone = liked.pop()
    elif disliked:
        disliked.pop()
    elif similar and template != "compact":
        similar.pop()
    elif topics:
        topics.pop()
    else:
        assert len(liked) > 1
        gone = liked.pop()
    stays = {*liked, *row["candidates"]}
    triples = [triple for triple in row["triples"] if triple["movie_id"] in stays or triple["movie_id"] != gone]
    films = {"liked": liked, "disliked": disliked, "similar": similar}
    return {**row, **films, "triples": triples, "topics": topics}


@pytest.mark.parametrize(
    ("template", "form", "share"),
    [
        ("hints-first", "arrow", 0.0),
        ("hints-first", "sentence", 0.35),
        ("published", "arrow", 0.35),
        ("japanese", "sentence", 0.35),
        ("letters", "arrow", 0.7),
        ("topics", "arrow", 0.1),
        ("compact", "arrow", 0.3),
        ("hint-2-only", "arrow", 0.1),
        ("likes-only", "arrow", 0.1),
    ],
)
def test_just_so_much_is_left_out_as_must_be_in_the_stated_order(template, form, share):
    tokenizer = llama_like_tokenizer()
    whole = build(template, form=form, tokenizer=tokenizer)
    shortest = least_budget(template, form)
    budget = int(shortest + share * (whole["num_tokens"].max() - shortest))
    cut = build(template, form=form, tokenizer=tokenizer, max_tokens=budget)
    assert cut["num_tokens"].max() <= budget < whole["num_tokens"].max()
    for row, got in zip(whole[::3].iter_rows(named=True), cut[::3].iter_rows(named=True), strict=True):
        assert got["num_tokens"] == len(ids_of_whole(tokenizer, got))
        want = row
        while tokens_of(want, template, form) > budget:
            want = without_one(want, template)
        assert {name: got[name] for name in LISTS} == {name: want[name] for name in LISTS}
        assert {name: got[name] for name in KEPT} == {name: row[name] for name in KEPT}
        assert got["shortened"] == {name: len(row[name]) - len(got[name]) for name in LISTS}


@pytest.mark.parametrize(
    ("template", "share"),
    [("topics", 0.1), ("hints-first", 0.2), ("letters", 0.6), ("compact", 0.3), ("likes-only", 0.1)],
)
def test_no_more_is_left_out_where_whole_conversations_are_counted(template, share):
    tokenizer = like("joining")
    whole = build(template, tokenizer=tokenizer)
    shortest = least_budget(template, "arrow", tokenizer)
    budget = int(shortest + share * (whole["num_tokens"].max() - shortest))
    cut = build(template, tokenizer=tokenizer, max_tokens=budget)
    for row, got in zip(whole[::3].iter_rows(named=True), cut[::3].iter_rows(named=True), strict=True):
        assert got["num_tokens"] == len(ids_of_whole(tokenizer, got)) <= budget
        want = row
        while tokens_of(want, template, "arrow", tokenizer) > budget:
            want = without_one(want, template)
        assert {name: got[name] for name in LISTS} == {name: want[name] for name in LISTS}


def least_budget(template: str, form: str, tokenizer: Any = None) -> int:
    """The budget that the error names is enough."""
    with pytest.raises(
        InputError, match=r"prompt.max_tokens = 1: .* the longest, \d+:test, has (\d+); set it"
    ) as error:
        build(template, form=form, tokenizer=tokenizer or llama_like_tokenizer(), max_tokens=1)
    return int(str(error.value).split("set it to ")[1].split(" ")[0])


@pytest.mark.parametrize("template", ["hints-first", "hint-2-only", "compact"])
def test_the_budget_that_a_refusal_names_is_the_least_that_does(template):
    tokenizer, least = llama_like_tokenizer(), least_budget(template, "arrow")
    bare = [nothing_left(row, template) for row in build(template).iter_rows(named=True)]
    lengths = [tokens_of(row, template, "arrow") for row in bare]
    assert least == max(lengths)
    got = build(template, tokenizer=tokenizer, max_tokens=least).row(lengths.index(least), named=True)
    assert {name: got[name] for name in LISTS} == {name: bare[lengths.index(least)][name] for name in LISTS}
    with pytest.raises(InputError, match=f"has {least}"):
        build(template, tokenizer=tokenizer, max_tokens=least - 1)


def nothing_left(row: dict[str, Any], template: str) -> dict[str, Any]:
    """What no budget drops: the newest like, the ranking, the candidates and facts about these, inline hints."""
    liked = row["liked"][:1]
    stays = {*liked, *row["candidates"]}
    triples = [triple for triple in row["triples"] if triple["movie_id"] in stays]
    similar = row["similar"] if template == "compact" else []
    return {**row, "liked": liked, "disliked": [], "similar": similar, "triples": triples, "topics": []}


def test_a_budget_with_room_for_all_changes_nothing():
    plain, wide = (build(tokenizer=llama_like_tokenizer(), max_tokens=limit) for limit in (0, 5000))
    assert wide.equals(plain)
    assert set(wide["shortened"].struct.unnest().sum_horizontal()) == {0}


def test_a_run_with_a_budget_names_a_model_that_has_a_tokenizer_before_the_prompts():
    folder = FinetuneConfig(model="./model", max_length=900)
    assert RunConfig(dataset="d", prompt=PromptConfig(max_tokens=900), finetune=folder).counted_with == ("./model", "")
    assert RunConfig(dataset="d").counted_with is None
    with pytest.raises(ValidationError, match="'tiny' is trained on them"):
        RunConfig(dataset="d", prompt=PromptConfig(max_tokens=900))
    with pytest.raises(ValidationError, match=r"must not exceed finetune\.max_length = 900"):
        RunConfig(dataset="d", prompt=PromptConfig(max_tokens=901), finetune=folder)


def test_the_budget_is_part_of_what_prompts_and_adapter_agree_in():
    plain, short = (prompt_contract(PromptConfig(max_tokens=limit), RetrieveConfig()) for limit in (0, 900))
    assert (plain["max_tokens"], short["max_tokens"]) == (0, 900)
