"""Constrained answers are valid whatever the model prefers, and made of the tokens the adapter was trained on."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from tests.finetune_shards import example, title
from tripletune.answer_lines import LineTokens, Names
from tripletune.config import TinyLlamaConfig
from tripletune.errors import ContractError
from tripletune.finetune.tiny import build_model, train_tokenizer
from tripletune.rank.decoding import AnswerConstraint, AnswerState, read_answer
from tripletune.schemas import answers

MICRO = TinyLlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1)
TITLES = ["Alien", "Alien (1979)", "Aliens (1986)", "7", "7th Heaven: 2!", "...And Justice", "Amélie\u3000(2001)", "M"]
NAMES = Names(TITLES, answers.TITLES)
LETTERS = Names(list("ABCDEFGH"), answers.LETTERS)
PAIRS = Names([f"A{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"], answers.LETTERS)
"""Labels as of more than 26 candidates; this small tokenizer cuts most of them."""


@functools.cache
def tokenizer() -> Any:
    texts = [m["content"] for user in range(20) for m in example(user, "train")["prompt"]]  # type: ignore[attr-defined]
    return train_tokenizer(iter([*texts, *TITLES]), 600)


@functools.cache
def model() -> LlamaForCausalLM:
    return build_model(tokenizer(), MICRO, seed=3).eval()


def walk(state: AnswerState, rng: np.random.Generator) -> list[int]:
    written = []
    while not state.done:
        token = int(rng.choice(state.allowed()))
        state.advance(token)
        written.append(token)
    return written


def as_trained(answer: str) -> list[int]:
    """The completion's tokens when the whole conversation is tokenised at once, as in training."""
    chat = [{"role": "user", "content": "Which five?"}]
    opened = tokenizer().apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    whole = tokenizer().apply_chat_template([*chat, {"role": "assistant", "content": answer}], tokenize=False)
    before, ids = (tokenizer()(text, add_special_tokens=False)["input_ids"] for text in (opened, whole))
    assert ids[: len(before)] == before
    return list(ids[len(before) :])


@pytest.mark.parametrize("names", [NAMES, LETTERS, PAIRS], ids=["titles", "letters", "pairs"])
@pytest.mark.parametrize("seed", range(20))
def test_any_path_through_the_constraint_is_a_valid_answer_in_the_tokens_of_training(seed: int, names: Names) -> None:
    written = walk(AnswerState(LineTokens(tokenizer()), names), np.random.default_rng(seed))
    text = tokenizer().decode(written, skip_special_tokens=True)
    found, valid = read_answer(text, names)
    assert valid
    assert len(set(found)) == 5
    assert written == as_trained(text)


def test_every_order_of_titles_that_begin_one_another_can_be_written() -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(300):
        state = AnswerState(LineTokens(tokenizer()), Names(TITLES[:3], answers.TITLES))
        walk(state, rng)
        seen.add(tuple(state.chosen))
    assert len(seen) == 6


def test_after_the_last_line_only_the_end_token_is_allowed() -> None:
    lines = LineTokens(tokenizer())
    state = AnswerState(lines, NAMES)
    assert walk(state, np.random.default_rng(1))[-1] == lines.end
    assert state.allowed() == [lines.end]
    assert tokenizer().convert_ids_to_tokens(lines.end) == "<|eot_id|>"


def test_generate_under_the_constraint_answers_every_row_of_a_padded_batch() -> None:
    names = [Names([title(movie) for movie in range(start, start + 20)], answers.TITLES) for start in (0, 30, 60)]
    prompts = ["1. ", "which five films of these", "x " * 30]
    tokenizer().padding_side = "left"
    inputs = tokenizer()(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    length = inputs["input_ids"].shape[1]
    lines = LineTokens(tokenizer())
    output = model().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=200,
        do_sample=True,  # draws the whole width of what is allowed
        generation_config=None,
        eos_token_id=lines.end,
        prefix_allowed_tokens_fn=AnswerConstraint(lines, names, length),
    )
    for row, candidates in zip(output[:, length:], names, strict=True):
        assert read_answer(tokenizer().decode(row, skip_special_tokens=True), candidates)[1]


def test_the_constraint_follows_the_models_preference_where_it_is_free() -> None:
    wanted = [4, 1, 0, 7, 2]
    target = as_trained("\n".join(f"{k}. {TITLES[i]}" for k, i in enumerate(wanted, 1)))
    constraint = AnswerConstraint(LineTokens(tokenizer()), [NAMES], prompt_length=2)
    ids = [0, 0]
    for token in target[:-1]:
        assert token in constraint(0, torch.tensor(ids))
        ids.append(token)
    constraint(0, torch.tensor([*ids, target[-1]]))
    assert constraint.states[0].chosen == wanted


def test_fewer_candidates_than_answers_give_as_many_lines_as_there_are() -> None:
    constraint = AnswerConstraint(LineTokens(tokenizer()), [Names(TITLES[:2], answers.TITLES)], prompt_length=0)
    assert len(walk(constraint.states[0], np.random.default_rng(0))) > 0
    assert sorted(constraint.states[0].chosen) == [0, 1]


VALID = "1. Alien (1979)\n2. M\n3. 7\n4. Alien\n5. ...And Justice"


@pytest.mark.parametrize(
    ("text", "found", "valid"),
    [
        (VALID, [1, 7, 3, 0, 5], True),
        (VALID + "\n", [1, 7, 3, 0, 5], False),
        ("Sure!\n" + VALID, [1, 7, 3, 0, 5], False),
        (VALID.replace("2. M", "2. Alien (1979)"), [1, 3, 0, 5], False),
        (VALID.replace("2. M", "2. Unknown (1999)"), [1, 3, 0, 5], False),
        (VALID.replace("2. M", "3. M"), [1, 7, 3, 0, 5], False),
        (VALID.replace("2. M", "2.  M "), [1, 7, 3, 0, 5], False),
        (VALID.replace("2. M", "2. m"), [1, 3, 0, 5], False),
        (VALID.rsplit("\n", 1)[0], [1, 7, 3, 0], False),
        (VALID + "\n6. Aliens (1986)", [1, 7, 3, 0, 5], False),
        ("", [], False),
        ("1. Alien (1979), M, 7", [], False),
    ],
)
def test_free_text_is_valid_only_as_five_lines_of_distinct_candidates(text: str, found: list[int], valid: bool) -> None:
    assert read_answer(text, NAMES) == (found, valid)


@pytest.mark.parametrize(
    ("text", "found", "valid"),
    [
        ("C\nA\nH\nB\nD", [2, 0, 7, 1, 3], True),
        ("C\nA\nH\nB\nD\n", [2, 0, 7, 1, 3], False),
        (" C\nA\nH\nB\nD", [2, 0, 7, 1, 3], False),
        ("C\nC\nH\nB\nD", [2, 7, 1, 3], False),
        ("C\nA\nH\nB", [2, 0, 7, 1], False),
        ("C\nA\nH\nB\nD\nE", [2, 0, 7, 1, 3], False),
        ("c\nZ\nH", [7], False),
        ("1. C\n2. A", [], False),
        ("Alien\nM", [], False),
        ("CAHBD", [], False),
        ("", [], False),
    ],
)
def test_labels_are_valid_only_alone_on_five_lines(text: str, found: list[int], valid: bool) -> None:
    assert read_answer(text, LETTERS) == (found, valid)


def test_the_style_says_whether_candidates_are_named_by_their_labels() -> None:
    assert Names.of(answers.LETTERS, TITLES, list("ABCDEFGH")) == LETTERS
    assert Names.of(answers.TITLES, TITLES, []) == Names.of(answers.TITLES, TITLES, None) == NAMES


@pytest.mark.parametrize("labels", [[], None, ["A", "B"], list("ABCDEFGHI")])
def test_labels_that_a_style_needs_and_an_example_lacks_are_refused(labels: list[str] | None) -> None:
    with pytest.raises(ContractError, match=r"answers are letters, but an example has 8 candidates and [029] labels"):
        Names.of(answers.LETTERS, TITLES, labels)


def test_a_label_ranks_in_one_pass_only_where_one_token_says_it() -> None:
    lines = LineTokens(tokenizer())
    tokens = lines.single(LETTERS)
    assert tokens is not None
    assert tokenizer().convert_ids_to_tokens(tokens) == list("ABCDEFGH")
    assert lines.single(PAIRS) is None
    assert lines.single(NAMES) is None


def test_a_chat_template_that_does_not_end_an_answer_is_refused() -> None:
    class Other:
        def apply_chat_template(self, chat: list[dict[str, str]], **_: Any) -> str:
            return "".join(message["content"] for message in chat)

    with pytest.raises(ContractError, match="chat template"):
        LineTokens(Other())


class ByCharacter:
    """A token per character; the first one after the header is another token than after a line break."""

    def apply_chat_template(self, chat: list[dict[str, str]], *, add_generation_prompt: bool, **_: Any) -> str:
        text = "".join(f"<{m['role']}>{m['content']}$" for m in chat)
        return f"{text}<assistant>" if add_generation_prompt else text

    def __call__(self, texts: list[str], *, add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        special = [1] if add_special_tokens else []
        return {
            "input_ids": [
                special
                + [ord(letter) + 1000 * text[:place].endswith("<assistant>") for place, letter in enumerate(text)]
                for text in texts
            ]
        }


@pytest.mark.parametrize(
    ("first", "last", "tokens"),
    [
        (True, False, [ord("B") + 1000, ord("c"), ord("\n")]),
        (False, False, [ord("B"), ord("c"), ord("\n")]),
        (True, True, [ord("B") + 1000, ord("c"), ord("$")]),
        (False, True, [ord("B"), ord("c"), ord("$")]),
    ],
)
def test_a_line_is_tokenised_where_it_stands_in_the_answer(first: bool, last: bool, tokens: list[int]) -> None:
    lines = LineTokens(ByCharacter())
    assert lines.lines(["Bc", "Bc"], first=first, last=last) == [tuple(tokens)] * 2
    assert lines.end == ord("$")


def test_a_tokenizer_that_merges_across_the_start_of_a_line_is_refused() -> None:
    class Merging(ByCharacter):
        def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
            return super().__call__([text.replace("\nX", "#") for text in texts], **options)

    assert LineTokens(Merging()).lines(["X"], first=True, last=True) == [(ord("X") + 1000, ord("$"))]
    with pytest.raises(ContractError, match="merges across the start of the line 'X'"):
        LineTokens(Merging()).lines(["Y", "X"], first=False, last=True)


def test_a_label_of_two_tokens_and_a_token_of_two_labels_do_not_rank_in_one_pass() -> None:
    lines = LineTokens(ByCharacter())
    assert lines.single(Names(["A", "B"], answers.LETTERS)) == [ord("A") + 1000, ord("B") + 1000]
    assert lines.single(Names(["A", "Bc"], answers.LETTERS)) is None
    assert lines.single(Names(["A", ""], answers.LETTERS)) is None


def test_a_label_that_joins_with_a_line_break_still_is_one_token_at_the_end_of_an_answer() -> None:
    class Joining(ByCharacter):
        def __call__(self, texts: list[str], **options: bool) -> dict[str, list[list[int]]]:
            return super().__call__([text.replace(">B\n", ">#") for text in texts], **options)

    assert LineTokens(Joining()).single(Names(["A", "B"], answers.LETTERS)) == [ord("A") + 1000, ord("B") + 1000]


def test_titles_of_hundreds_of_tokens_are_written_to_their_end() -> None:
    names = Names(["x" * 300 + "a", "x" * 300 + "b", "x" * 290], answers.TITLES)
    state = AnswerState(LineTokens(ByCharacter()), names)
    written = walk(state, np.random.default_rng(3))
    text = "".join(chr(token % 1000) for token in written)
    assert text == "\n".join(f"{k}. {names.names[index]}" for k, index in enumerate(state.chosen, 1)) + "$"
    assert sorted(state.chosen) == [0, 1, 2]
    # of all tokens one is that of a character after the header: the first
    assert [place for place, token in enumerate(written) if token > 1000] == [0]
