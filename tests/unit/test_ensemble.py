"""The order from all forms of a prompt: by hand, through a model, and as rows of the rank stage."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import polars as pl
import pytest
import torch
from prompt_frames import build
from transformers import LlamaForCausalLM

from tripletune.answer_lines import LineTokens
from tripletune.config import RunConfig, TinyLlamaConfig
from tripletune.contract import AdapterContract, Ensemble
from tripletune.errors import ContractError
from tripletune.estimate.tokens import assume_tokens, with_short_forms
from tripletune.export.carried import not_carried, require_carried
from tripletune.finetune.tiny import build_model, train_tokenizer
from tripletune.forms import LABELS, ListPrompt, pairs_of
from tripletune.prompts.template import load_template
from tripletune.rank.answerer import Answerer
from tripletune.rank.ensemble import combine_forms
from tripletune.serve.answers import ServedModel

TEXTS = load_template("recranker").further_forms()
EQUAL = Ensemble(weights={"listwise": 1.0, "pointwise": 1.0, "pairwise": 1.0}, texts=TEXTS)
MICRO = TinyLlamaConfig(vocab_size=600, hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1)
QUESTION, CHOICE = "Will the viewer like", "Which of these two"


def a_list(films: Sequence[str]) -> list[dict[str, str]]:
    lines = [f"{letter}. {film}" for letter, film in zip("ABCDEFG", films, strict=False)]
    user = "Liked:\n- Heat" + TEXTS.before + "\n".join(lines) + TEXTS.after
    return [{"role": "system", "content": "Rank."}, {"role": "user", "content": user}]


def one_query(films: Sequence[str] = ("one", "two", "three", "four")) -> pl.DataFrame:
    """A query whose candidates 10, 11, ... have these titles."""
    return pl.DataFrame(
        {
            "prompt": [a_list(films)],
            "candidates": [[10 + place for place in range(len(films))]],
            "candidate_letters": [list("ABCDEFG"[: len(films)])],
        }
    )


def listed(order: Sequence[int]) -> pl.DataFrame:
    return pl.DataFrame(
        {"user_id": [1], "answers": [list(order)], "scores": [[float(-place) for place in range(len(order))]]},
        schema_overrides={"answers": pl.List(pl.Int32), "scores": pl.List(pl.Float32)},
    )


def scripted(likely: dict[str, float], better: Sequence[str]) -> Any:
    """A model that says Yes of a title with these odds, and prefers the title that comes first in ``better``."""

    def score(prompts: Sequence[Any], labels: Sequence[Any]) -> list[list[float]]:
        found = []
        for prompt, names in zip(prompts, labels, strict=True):
            text = prompt[1]["content"]
            assert prompt[0]["content"] == "Rank."
            shown = [
                line.split(" ", 1)[1] for line in text.split("\n") if line[:3] in ("A. ", "B. ") or line[:2] == "- "
            ]
            shown = shown[1:]  # the film that was liked
            if QUESTION in text:
                assert tuple(names) == ("Yes", "No")
                found.append([math.log(likely[shown[0]]), 0.0])
            else:
                assert CHOICE in text
                assert tuple(names) == ("A", "B")
                found.append([float(-better.index(shown[0])), float(-better.index(shown[1]))])
        return found

    return score


def test_the_sum_of_three_utilities_is_that_of_a_case_worked_by_hand() -> None:
    """Films 10 to 13. List: 12, 10, 13, 11, so 1, .8, .6, .4. Odds of Yes 1, 3, 1/3, 1: .5, .75, .25, .5. Pairs (10,
    12) and (11, 13), both in both orders, and one < two < three < four: 12 and 13 win both, so 0, 0, 1, 1.
    Sums: 10: .8 + .5 + 0 = 1.3; 11: .4 + .75 + 0 = 1.15; 12: 1 + .25 + 1 = 2.25; 13: .6 + .5 + 1 = 2.1."""
    score = scripted({"one": 1, "two": 3, "three": 1 / 3, "four": 1}, ["four", "three", "two", "one"])
    found = combine_forms(one_query(), listed([12, 10, 13, 11]), EQUAL, score).row(0, named=True)
    assert found["answers"] == [12, 13, 10, 11]
    assert found["scores"] == pytest.approx([2.25, 2.1, 1.3, 1.15])
    by_form = {form: [one[form] for one in found["utilities"]] for form in EQUAL.weights}
    assert by_form["listwise"] == pytest.approx([1.0, 0.6, 0.8, 0.4])
    assert by_form["pointwise"] == pytest.approx([0.25, 0.5, 0.5, 0.75])
    assert by_form["pairwise"] == pytest.approx([1.0, 1.0, 0.0, 0.0])


def test_weights_and_forms_that_are_not_asked_count_as_the_contract_says() -> None:
    ensemble = Ensemble(weights={"listwise": 0.0, "pointwise": 2.0}, texts=TEXTS)
    score = scripted({"one": 1, "two": 3, "three": 1 / 3, "four": 1}, [])
    found = combine_forms(one_query(), listed([13, 10, 12, 11]), ensemble, score).row(0, named=True)
    assert found["answers"] == [11, 13, 10, 12]  # 13 and 10 are equal, and the list has 13 first
    assert found["scores"] == pytest.approx([1.5, 1.0, 1.0, 0.5])
    assert [one["pairwise"] for one in found["utilities"]] == [None] * 4


def test_a_model_that_always_prefers_the_film_shown_first_makes_no_difference_by_pairs() -> None:
    found = combine_forms(
        one_query(("a", "b", "c", "d", "e")),
        listed([10, 11, 12, 13, 14]),
        Ensemble(weights={"listwise": 1.0, "pairwise": 1.0}, texts=TEXTS),
        lambda prompts, labels: [[1.0, 0.0]] * len(prompts),
    )
    assert [one["pairwise"] for one in found["utilities"][0]] == [0.5] * 5
    assert found["answers"][0].to_list() == [10, 11, 12, 13, 14]


def test_an_answer_that_names_five_is_followed_by_the_other_candidates() -> None:
    films = ("a", "b", "c", "d", "e", "f", "g")
    ensemble = Ensemble(weights={"listwise": 1.0, "pointwise": 0.1}, texts=TEXTS)
    score = scripted(dict.fromkeys(films[:6], 1.0) | {"g": 3.0}, [])
    found = combine_forms(one_query(films), listed([14, 13, 12, 11, 10]), ensemble, score)
    assert found["answers"][0].to_list() == [14, 13, 12, 11, 10, 16, 15]


@functools.cache
def examples() -> pl.DataFrame:
    return build("recranker", num_viewers=3)


@functools.cache
def tokenizer() -> Any:
    texts = [message["content"] for chat in examples()["prompt"] for message in chat]
    made = train_tokenizer(iter([*texts, *["Yes", "No"] * 50]), MICRO.vocab_size)
    made.padding_side = "left"
    return made


@functools.cache
def model() -> LlamaForCausalLM:
    return build_model(tokenizer(), MICRO, seed=3).eval()


def answerer(ensemble: Ensemble | None) -> Answerer:
    contract = AdapterContract(
        prompt={"answer_style": "letters"},
        tokenizer_sha256="",
        base_model="tiny",
        base_revision="",
        ensemble=ensemble,
    )
    return Answerer(model(), tokenizer(), LineTokens(tokenizer()), contract)


def logit_of(prompt: list[Any], label: str) -> float:
    text = tokenizer().apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return float(model()(ids).logits[0, -1][tokenizer().convert_tokens_to_ids(label)])


def test_an_answerer_asks_all_forms_and_each_gives_what_whole_forward_passes_give() -> None:
    found = answerer(EQUAL).answer(examples(), constrained=True, batch_size=7)
    alone = answerer(None).answer(examples(), constrained=True, batch_size=7)
    for row, example in enumerate(examples().head(1).iter_rows(named=True)):
        cut = ListPrompt.cut(example["prompt"], example["candidate_letters"], TEXTS, "")
        films, order = example["candidates"], alone["answers"][row].to_list()
        assert order != found["answers"][row].to_list()
        want = dict.fromkeys(films, 0.0)
        for place, film in enumerate(films):
            yes, no = (logit_of(cut.pointwise(place), label) for label in LABELS["pointwise"])
            want[film] += math.exp(yes) / (math.exp(yes) + math.exp(no)) + max(0, 5 - order.index(film)) / 5
        for pair in pairs_of(len(films)):
            a, b = (logit_of(cut.pairwise(*pair), label) for label in LABELS["pairwise"])
            want[films[pair[0 if a >= b else 1]]] += 0.5
        got = dict(zip(found["answers"][row], found["scores"][row], strict=True))
        assert got == pytest.approx(want, abs=1e-5)
        assert found["answers"][row].to_list() == sorted(got, key=got.__getitem__, reverse=True)


def test_free_answers_and_scores_are_the_lists_alone() -> None:
    asked, plain = answerer(EQUAL), answerer(None)
    for method, named in ((Answerer.answer, {"constrained": False}), (Answerer.score, {})):
        ours, theirs = (method(one, examples(), batch_size=3, **named) for one in (asked, plain))
        assert ours.equals(theirs)


def test_a_served_model_orders_as_the_answerer_does_from_prompts_alone() -> None:
    asked = answerer(EQUAL)
    asked.contract.prompt["num_candidates"] = 20
    rows = examples().select("prompt", "candidates").to_dicts()
    served = ServedModel(asked, load_template("recranker"), batch_size=7).answer(rows)
    ranked = asked.answer(examples(), constrained=True, batch_size=7)
    assert [row["answers"] for row in served] == ranked["answers"].to_list()
    assert [row["system"] for row in served] == ["tuned"] * 3


def test_an_estimate_counts_each_form_as_an_example() -> None:
    without, forms = (
        RunConfig.model_validate({"dataset": "x", "ensemble": {"forms": names}})
        for names in ([], ["pointwise", "pairwise"])
    )
    lists = assume_tokens(without, 100)
    assert with_short_forms(lists, without) == lists
    assert with_short_forms(lists, forms).examples == 300
    assert "pointwise and pairwise forms" in with_short_forms(lists, forms).assumptions[-1]


def test_a_tokenizer_that_cuts_a_label_is_refused() -> None:
    prompt = [{"role": "user", "content": "Which?"}]
    with pytest.raises(ContractError, match="cuts one of the labels Maybe, Never"):
        answerer(EQUAL).score_labels([prompt], [("Maybe", "Never")], batch_size=1)


def test_an_export_says_that_it_drops_the_forms() -> None:
    contract = answerer(EQUAL).contract
    assert "pointwise, pairwise are dropped" in not_carried(contract)[0]
    with pytest.raises(ContractError, match="further forms of its prompts"):
        require_carried(contract, "a-run")
