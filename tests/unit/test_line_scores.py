"""Scores of candidates where an answer is written out: probabilities of constrained decoding's first line."""

from __future__ import annotations

import math

import polars as pl
import pytest
import torch

from tests.unit.test_answerer import CONTRACT, LETTERS, examples
from tests.unit.test_decoding import TITLES, model, tokenizer
from tripletune.answer_lines import LineTokens
from tripletune.errors import NonFiniteError
from tripletune.rank.answerer import Answerer


def answerer(style: str) -> Answerer:
    tokenizer().padding_side = "left"
    contract = CONTRACT.model_copy(update={"prompt": {"answer_style": style}})
    return Answerer(model(), tokenizer(), LineTokens(tokenizer()), contract)


def titled() -> pl.DataFrame:
    """Titles that begin one another."""
    return examples().with_columns(candidate_titles=pl.Series([TITLES] * 3), candidate_letters=None)


def directly(prompt: list[dict[str, str]]) -> list[float]:
    """Log-probability of each first line, from one call of transformers for each on the whole text, without a cache."""
    chat = tokenizer().apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    opened = tokenizer()(chat, add_special_tokens=False)["input_ids"]
    whole = [tokenizer()(f"{chat}1. {title}\n", add_special_tokens=False)["input_ids"] for title in TITLES]
    found = []
    for ids in whole:
        with torch.inference_mode():
            logits = model()(torch.tensor([ids])).logits[0]
        total = 0.0
        for place in range(len(opened), len(ids)):
            allowed = {other[place] for other in whole if other[:place] == ids[:place]}
            row = logits[place - 1]
            total += float(row[ids[place]] - torch.logsumexp(row[sorted(allowed)], 0))
        found.append(total)
    return found


def test_the_score_of_a_title_is_the_probability_that_a_constrained_answer_begins_with_it() -> None:
    scored = answerer("titles").score(titled(), batch_size=2)
    for row, got in zip(titled().iter_rows(named=True), scored.iter_rows(named=True), strict=True):
        wanted = directly(row["prompt"])
        assert sum(map(math.exp, wanted)) == pytest.approx(1.0, abs=1e-5)
        by_film = dict(zip(got["answers"], got["scores"], strict=True))
        assert [by_film[film] for film in row["candidates"]] == pytest.approx(wanted, abs=1e-4)
        assert got["scores"][1:] == sorted(got["scores"][1:], reverse=True)


def test_the_first_film_is_the_one_that_the_ranking_names_first() -> None:
    answered = answerer("titles").answer(titled(), constrained=True, batch_size=3)
    scored = answerer("titles").score(titled(), batch_size=3)
    assert scored["answers"].list.first().to_list() == answered["answers"].list.first().to_list()


def test_scores_of_written_answers_depend_neither_on_the_batch_nor_on_the_neighbours() -> None:
    alone = pl.concat(answerer("titles").score(titled().slice(row, 1), batch_size=1) for row in range(3))
    assert answerer("titles").score(titled(), batch_size=3).equals(alone)


def test_labels_have_the_scores_by_which_they_are_ranked() -> None:
    asked = examples()
    ranked = answerer("letters").answer(asked, constrained=True, batch_size=2)
    assert answerer("letters").score(asked, batch_size=2).equals(ranked)


def test_labels_of_several_tokens_are_scored_too() -> None:
    """Two capitals, which this tokenizer cuts."""
    pairs = [f"Q{letter}" for letter in LETTERS]
    asked = examples().with_columns(candidate_letters=pl.Series([pairs] * 3))
    scored = answerer("letters").score(asked, batch_size=2)
    assert scored["scores"].list.eval(pl.element().exp()).list.sum().to_list() == pytest.approx([1.0] * 3, abs=1e-5)
    ranked = answerer("letters").answer(asked, constrained=True, batch_size=2)
    assert ranked["scores"].null_count() == 3  # ranking alone writes them
    assert scored["answers"].list.first().to_list() == ranked["answers"].list.first().to_list()


def test_a_written_answer_of_a_model_that_is_not_finite_has_no_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    llama, unmasked = model(), model().forward

    def forward(*arguments: object, **named: object) -> object:
        output = unmasked(*arguments, **named)
        output.logits[:] = math.nan
        return output

    monkeypatch.setattr(llama, "forward", forward)
    with pytest.raises(NonFiniteError, match="run finetune again"):
        answerer("titles").score(titled(), batch_size=3)
