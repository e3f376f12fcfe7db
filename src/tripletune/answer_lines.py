"""Lines of an answer as names and as tokens, the same in training and in ranking.

A line is a number with a candidate's title or, where the prompt labels its candidates, the label alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tripletune.errors import ContractError
from tripletune.schemas.answers import NUM_ANSWERS, YES_NO, AnswerStyle

_PROBE = [{"role": "user", "content": "?"}]


@dataclass(frozen=True, slots=True)
class Names:
    """Distinct names of the candidates in one user's answer."""

    names: Sequence[str]
    style: AnswerStyle
    requested: int = NUM_ANSWERS

    @classmethod
    def of(
        cls, style: AnswerStyle, titles: Sequence[str], labels: Sequence[str] | None, requested: int = NUM_ANSWERS
    ) -> Names:
        """From ``candidate_titles`` and ``candidate_letters`` of an example, of which the style needs one. A question
        about a single film has the labels ``YES_NO``.

        Args:
            style: of the answer.
            titles, labels: of the candidates, in the order shown.
            requested: lines of an answer; fewer where there are fewer candidates.

        Raises:
            ContractError: the style names candidates by labels, and the example has not one for each.
        """
        if not style.is_labelled:
            return cls(titles, style, requested)
        is_question = len(titles) == 1 and tuple(labels or ()) == YES_NO
        if labels is None or (len(labels) != len(titles) and not is_question):
            raise ContractError(
                f"answers are {style.name}, but an example has {len(titles)} candidates and {len(labels or ())} "
                "labels; generate the prompts again"
            )
        return cls(labels, style, requested)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def num_answers(self) -> int:
        """Number of lines that an answer has."""
        return min(self.requested, len(self))

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
