"""A loaded model answers with labels in one forward pass, as likely as it finds them."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import polars as pl
import pytest
import torch
from transformers import GenerationConfig

from tests.unit.test_decoding import model, tokenizer
from tripletune.answer_lines import LineTokens
from tripletune.contract import AdapterContract, write_contract
from tripletune.errors import ContractError, NonFiniteError
from tripletune.rank.answerer import Answerer

LETTERS = list("ABCDEFGH")
CONTRACT = AdapterContract(prompt={"answer_style": "letters"}, tokenizer_sha256="", base_model="tiny", base_revision="")


def examples() -> pl.DataFrame:
    asked = ["Which?", "Which of these five films will it be, after all?", "Which one"]
    return pl.DataFrame(
        {
            "user_id": [1, 2, 3],
            "prompt": [[{"role": "user", "content": text}] for text in asked],
            "candidates": [[10 * user + place for place in range(8)] for user in (1, 2, 3)],
            "candidate_titles": [[f"Film {place}" for place in range(8)]] * 3,
            "candidate_letters": [LETTERS] * 3,
        },
        schema_overrides={"user_id": pl.Int32, "candidates": pl.List(pl.Int32)},
    )


def test_labels_come_in_the_order_of_their_likelihood_whatever_the_batch_pads() -> None:
    tokenizer().padding_side = "left"
    answerer = Answerer(model(), tokenizer(), LineTokens(tokenizer()), CONTRACT)
    answered = answerer.answer(examples(), constrained=True, batch_size=3)
    ids = tokenizer().convert_tokens_to_ids(LETTERS)
    for row, got in zip(examples().iter_rows(named=True), answered.iter_rows(named=True), strict=True):
        text = tokenizer().apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        alone = tokenizer()(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model()(alone).logits[0, -1][ids]
        best = logits.argsort(descending=True).tolist()
        assert got["text"] == "\n".join(LETTERS[place] for place in best[:5])
        assert got["answers"] == [row["candidates"][place] for place in best]
        assert got["scores"] == pytest.approx(logits[best].tolist(), abs=1e-5)
        assert got["valid"]


def test_a_free_answer_is_read_by_its_labels() -> None:
    tokenizer().padding_side = "left"
    answerer = Answerer(model(), tokenizer(), LineTokens(tokenizer()), CONTRACT)
    answered = answerer.answer(examples(), constrained=False, batch_size=2)
    assert len(answered) == 3
    assert not answered["valid"].any()  # an untrained model


@pytest.mark.parametrize("constrained", [True, False])
def test_what_the_models_folder_says_about_generation_changes_no_answer(constrained: bool) -> None:
    tokenizer().padding_side = "left"
    titles = examples().with_columns(candidate_letters=None)
    contract = CONTRACT.model_copy(update={"prompt": {"answer_style": "titles"}})
    texts = []
    for strange in ({}, {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 3.0}):
        llama = copy.deepcopy(model())
        llama.generation_config = GenerationConfig(**strange, suppress_tokens=[5] if strange else None)
        answerer = Answerer(llama, tokenizer(), LineTokens(tokenizer()), contract)
        texts.append(answerer.answer(titles, constrained=constrained, batch_size=2)["text"].to_list())
    assert texts[0] == texts[1]


def test_an_example_is_answered_the_same_next_to_one_that_takes_another_way() -> None:
    """A prompt whose labels this tokenizer cuts is decoded line by line."""
    tokenizer().padding_side = "left"
    answerer = Answerer(model(), tokenizer(), LineTokens(tokenizer()), CONTRACT)
    alone = answerer.answer(examples(), constrained=True, batch_size=1)
    cut = [f"{letter}QZX" for letter in LETTERS]
    mixed = examples().with_columns(candidate_letters=pl.Series([LETTERS, cut, LETTERS]))
    answered = answerer.answer(mixed, constrained=True, batch_size=2)
    assert answered["text"].gather([0, 2]).to_list() == alone["text"].gather([0, 2]).to_list()
    assert answered["scores"].is_null().to_list() == [False, True, False]
    assert answered["valid"].all()
    assert set(answered["text"][1].split("\n")) < set(cut)


@pytest.mark.bytes
def test_scores_are_the_same_bits_for_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of one thread only: those of several are sums in another order for some shapes."""
    tokenizer().padding_side = "left"
    llama, used = model(), set()
    forward = llama.forward
    monkeypatch.setattr(llama, "forward", lambda **named: used.add(torch.get_num_threads()) or forward(**named))
    answerer = Answerer(llama, tokenizer(), LineTokens(tokenizer()), CONTRACT)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            found.append(answerer.answer(examples(), constrained=True, batch_size=2))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
    assert used == {1}


def test_labels_are_scored_without_a_mask_on_prompts_padded_on_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a mask, attention on a CPU is several times slower."""
    tokenizer().padding_side = "left"
    llama, given = model(), []
    forward = llama.forward
    monkeypatch.setattr(llama, "forward", lambda **named: given.append(named) or forward(**named))
    answerer = Answerer(llama, tokenizer(), LineTokens(tokenizer()), CONTRACT)
    answerer.answer(examples(), constrained=True, batch_size=2)
    assert len(given) == 2
    assert all("attention_mask" not in named for named in given)
    pad = tokenizer().pad_token_id
    assert [(named["input_ids"][:, 0] == pad).any().item() for named in given] == [False, False]
    assert (given[0]["input_ids"] == pad).any()


@pytest.mark.parametrize("prompt", [{}, {"answer_style": "numbers"}])
def test_an_adapter_whose_style_is_not_known_is_refused_before_its_weights_are_read(
    prompt: dict[str, str], tmp_path: Path
) -> None:
    write_contract(tmp_path, CONTRACT.model_copy(update={"prompt": prompt}))
    with pytest.raises(ContractError, match=r"answer_style: (None|numbers); this version knows titles, letters"):
        Answerer.load(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("constrained", "style"), [(True, "letters"), (True, "titles"), (False, "titles")])
@pytest.mark.parametrize("tuned", [True, False])
def test_a_model_whose_logits_are_not_finite_answers_nothing(
    value: float, constrained: bool, style: str, tuned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token out of all is enough: no candidate's line begins with it."""
    tokenizer().padding_side = "left"
    llama = model()
    unmasked = llama.forward

    def forward(*arguments: object, **named: object) -> object:
        output = unmasked(*arguments, **named)
        output.logits[1, -1, 7] = value
        return output

    monkeypatch.setattr(llama, "forward", forward)
    contract = CONTRACT.model_copy(update={"prompt": {"answer_style": style}})
    answerer = Answerer(llama, tokenizer(), LineTokens(tokenizer()), contract, tuned)
    letters = LETTERS if style == "letters" else []
    asked = examples().with_columns(candidate_letters=pl.lit(letters, pl.List(pl.String)))
    advice = "run finetune again" if tuned else "check the weights of 'tiny'"
    with pytest.raises(NonFiniteError, match=advice):
        answerer.answer(asked, constrained=constrained, batch_size=3)
    monkeypatch.undo()
    assert not llama._forward_hooks


def test_an_adapter_trained_on_the_first_label_is_free_to_say_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was never trained to end an answer; one label is all that it is asked for."""
    tokenizer().padding_side = "left"
    llama = model()
    unmasked = llama.forward
    letter = tokenizer().convert_tokens_to_ids("C")

    def forward(*arguments: object, **named: object) -> object:
        output = unmasked(*arguments, **named)
        output.logits[:, -1, letter] = 1e3
        return output

    monkeypatch.setattr(llama, "forward", forward)
    contract = CONTRACT.model_copy(update={"objective": "listwise"})
    answerer = Answerer(llama, tokenizer(), LineTokens(tokenizer()), contract)
    answered = answerer.answer(examples(), constrained=False, batch_size=2)
    assert answered["text"].to_list() == ["C"] * 3
    assert answered["valid"].all()
    assert answered["answers"].to_list() == [[12], [22], [32]]
    assert answered["scores"].null_count() == 3
    line_by_line = Answerer(llama, tokenizer(), LineTokens(tokenizer()), CONTRACT)
    assert not line_by_line.answer(examples(), constrained=False, batch_size=2)["valid"].any()


def test_what_the_model_says_behind_padding_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer().padding_side = "left"
    llama = model()
    unmasked = llama.forward

    def forward(*arguments: object, **named: object) -> object:
        output = unmasked(*arguments, **named)
        output.logits = torch.cat([torch.full_like(output.logits[:, :1], math.nan), output.logits], dim=1)
        return output

    contract = CONTRACT.model_copy(update={"prompt": {"answer_style": "titles"}})
    titles = examples().with_columns(candidate_letters=None)
    answerer = Answerer(llama, tokenizer(), LineTokens(tokenizer()), contract)
    clean = answerer.answer(titles, constrained=True, batch_size=3)
    monkeypatch.setattr(llama, "forward", forward)
    assert answerer.answer(titles, constrained=True, batch_size=3).equals(clean)
