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

from tripletune.answer_lines import LineTokens, Names


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
        """Whether every line is written."""
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
