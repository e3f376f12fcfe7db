"""Constrained decoding of valid answers: N lines, each naming another candidate, and nothing else.

A line is a number with a candidate's title or, where the prompt labels its candidates, the label alone.

While the model writes, a small state machine per user allows only tokens that continue some candidate's line. It
works on whole tokenised lines rather than on characters: each line is tokenised in its context (after the chat header
or after a line break), where a tokenizer that cuts text at line breaks gives the tokens it would give the whole answer:
those the adapter was trained on. Also reads free text, for answers that were not constrained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tripletune.errors import ContractError
from tripletune.schemas.answers import NUM_ANSWERS, AnswerStyle

_PROBE = [{"role": "user", "content": "?"}]


@dataclass(frozen=True, slots=True)
class Names:
    """Distinct names of the candidates in one user's answer."""

    names: Sequence[str]
    style: AnswerStyle

    @classmethod
    def of(cls, style: AnswerStyle, titles: Sequence[str], labels: Sequence[str] | None) -> Names:
        """From ``candidate_titles`` and ``candidate_letters`` of an example, of which the style needs one.

        Raises:
            ContractError: the style names candidates by labels, and the example has not one for each.
        """
        if not style.is_labelled:
            return cls(titles, style)
        if labels is None or len(labels) != len(titles):
            raise ContractError(
                f"answers are {style.name}, but an example has {len(titles)} candidates and {len(labels or ())} "
                "labels; generate the prompts again"
            )
        return cls(labels, style)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_answers(self) -> int:
        """Number of lines that the prompt requests."""
        return min(NUM_ANSWERS, len(self))

    def line(self, number: int, index: int) -> str:
        """Line ``number`` (from 1) of an answer that names candidate ``index`` there."""
        return self.style.line(number, self.names[index])


class LineTokens:
    """Token ids of answer lines, as they come out when the whole conversation is tokenised.

    Args:
        tokenizer: a Hugging Face tokenizer with a chat template.

    Raises:
        ContractError: its chat template or tokens don't let an answer be built line by line.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._header = tokenizer.apply_chat_template(_PROBE, tokenize=False, add_generation_prompt=True)
        self._known: dict[tuple[str, bool, bool], tuple[int, ...]] = {}
        self.end = self._end_of_answer()

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _end_of_answer(self) -> int:
        """The token that closes an assistant's message in this chat template."""
        reply = "1. A"
        whole = self._tokenizer.apply_chat_template(
            [*_PROBE, {"role": "assistant", "content": reply}], tokenize=False, add_generation_prompt=False
        )
        opened = self._header + reply
        if not whole.startswith(opened) or whole == opened:
            raise ContractError(
                "the base model's chat template does not write an answer as header, text, end token; "
                "use a model with a Llama-3-like template"
            )
        return self._encode([whole[len(opened) :]])[0][0]

    def lines(self, texts: Sequence[str], *, first: bool, last: bool) -> list[tuple[int, ...]]:
        """Tokens of each line of text as the ``first`` line of an answer, as its ``last``, as both or between.

        Ends with a line break, or, when ``last``, with the end token; so no line's tokens begin another's, also
        where a title begins another title.
        """
        missing = list(dict.fromkeys(text for text in texts if (text, first, last) not in self._known))
        if missing:
            context = self._header if first else f"{self._header}1. A (2000)\n"
            ending = "" if last else "\n"
            before, *after = self._encode([context, *(f"{context}{text}{ending}" for text in missing)])
            for text, ids in zip(missing, after, strict=True):
                if ids[: len(before)] != before:
                    raise ContractError(
                        f"the base model's tokenizer merges across the start of the line {text!r}; "
                        "constrained decoding needs a tokenizer that cuts text at line breaks"
                    )
                closing = (self.end,) if last else ()
                self._known[text, first, last] = (*ids[len(before) :], *closing)
        return [self._known[text, first, last] for text in texts]

    def single(self, names: Names) -> list[int] | None:
        """The token of each label where one token is the whole label, at the start of an answer; else None."""
        if names.style.numbered:
            return None
        lines = self.lines(names.names, first=True, last=True)
        tokens = [line[0] for line in lines if len(line) == 2]
        return tokens if len(set(tokens)) == len(names) else None


@dataclass(slots=True)
class AnswerState:
    """State of one user's answer while it is written.

    Args:
        tokens: the tokenizer's lines.
        names: of the candidates.
    """

    tokens: LineTokens
    names: Names
    chosen: list[int] = field(default_factory=list)
    """Indices into ``names``, in the order written."""
    _matching: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _position: int = 0

    def __post_init__(self) -> None:
        self._open_line()

    def _open_line(self) -> None:
        free = [index for index in range(len(self.names)) if index not in self.chosen]
        number = len(self.chosen) + 1
        texts = [self.names.line(number, index) for index in free]
        lines = self.tokens.lines(texts, first=number == 1, last=number == self.names.num_answers)
        self._matching = dict(zip(free, lines, strict=True))
        self._position = 0

    @property
    def done(self) -> bool:
        return len(self.chosen) == self.names.num_answers

    def allowed(self) -> list[int]:
        """Ids of the tokens that may come next; after the last line only the end token."""
        if self.done:
            return [self.tokens.end]
        return sorted({line[self._position] for line in self._matching.values()})

    def advance(self, token: int) -> None:
        """Take the token that was written; it must be an allowed one."""
        if self.done:
            return
        position = self._position
        self._matching = {index: line for index, line in self._matching.items() if line[position] == token}
        self._position = position + 1
        finished = [index for index, line in self._matching.items() if len(line) == self._position]
        if finished:
            self.chosen.append(finished[0])
            if not self.done:
                self._open_line()


class AnswerConstraint:
    """``prefix_allowed_tokens_fn`` of transformers' ``generate`` for a batch, greedy or sampled, without beams.

    Args:
        tokens: the tokenizer's lines.
        names: of the candidates, for each row of the batch.
        prompt_length: tokens of the (left-padded) prompts.
    """

    def __init__(self, tokens: LineTokens, names: Sequence[Names], prompt_length: int) -> None:
        self.states = [AnswerState(tokens, row) for row in names]
        self._read = [prompt_length] * len(names)

    def __call__(self, row: int, ids: Any) -> list[int]:
        state = self.states[row]
        for token in ids[self._read[row] :].tolist():
            state.advance(token)
        self._read[row] = len(ids)
        return state.allowed()


def read_answer(text: str, names: Names) -> tuple[list[int], bool]:
    """Find the candidates in an answer.

    Args:
        text: the model's answer, without control tokens.
        names: of the candidates.

    Returns:
        Indices of the distinct candidates named, one to a line, in order, at most as many as were requested; and
        whether the text is exactly the requested lines, with distinct candidates and nothing else.
    """
    index_of = {name: index for index, name in enumerate(names.names)}
    lines = text.split("\n")
    found: list[int] = []
    for line in lines:
        index = index_of.get(names.style.name_in(line))
        if index is not None and index not in found:
            found.append(index)
    asked = [names.line(number, index) for number, index in enumerate(found, 1)]
    return found[: names.num_answers], len(found) == names.num_answers and lines == asked
