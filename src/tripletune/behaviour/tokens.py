# Shape letters in this file: B prompts, F films of a prompt
"""Token ids of prompts with a behaviour token after each film's title, the same in training and in ranking."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tripletune.chat import write_chat
from tripletune.errors import TrainingError
from tripletune.schemas.inline import INLINE_MARK

FIRST_FILM = 1 << 30
"""Token id of the first row of the film vectors; no vocabulary reaches this far."""
UNKNOWN = 0
"""Row of a film without a vector; it is all zeros."""
_MARK = "<|film|>"
_LINE = re.compile(rf"(?m)^(?:- |[A-Z]{{1,2}}\. )[^\n]*?(?= {INLINE_MARK} |$)")
"""A line of data up to its inline hints. No line of a template begins so, and no title holds an angle bracket."""

Chat = Sequence[Mapping[str, str]]


class BehaviourTokens:
    """Write prompts with behaviour tokens.

    Args:
        tokenizer: of the base model; a copy of it cuts the text at the tokens.
        movie_ids: of the rows of the film vectors that belong to these prompts.
        first_row: row of the first of them.
        columns: that list the films of the template's sections, in the template's order.
        source: name of the base model in errors.
    """

    def __init__(
        self, tokenizer: Any, movie_ids: Sequence[int], first_row: int, columns: Sequence[str], source: str
    ) -> None:
        self._tokenizer, self._source = copy.deepcopy(tokenizer), source
        self._tokenizer.add_special_tokens({"additional_special_tokens": [_MARK]}, replace_extra_special_tokens=False)
        self._mark: int = self._tokenizer.convert_tokens_to_ids(_MARK)
        self._row = {int(film): row for row, film in enumerate(movie_ids, first_row)}
        self.columns = tuple(columns)

    def ids(self, rows: Mapping[str, Sequence[Any]]) -> list[list[int]]:
        """Token ids of each prompt, up to where the answer begins. A film's token is ``FIRST_FILM`` plus its row.

        Args:
            rows: columns ``example_id``, ``prompt`` and ``columns`` of the shards.

        Raises:
            TrainingError: a prompt has more or fewer lines of data than its columns have films.
        """
        texts = [write_chat(self._tokenizer, _marked(chat), self._source, opened=True) for chat in rows["prompt"]]
        found = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        shown = zip(rows["example_id"], zip(*(rows[name] for name in self.columns), strict=True), strict=True)
        return [self._with_films(ids, name, films) for ids, (name, films) in zip(found, shown, strict=True)]

    def _with_films(self, ids: list[int], example_id: str, films: Sequence[Sequence[int]]) -> list[int]:
        ids_F = [FIRST_FILM + self._row.get(film, UNKNOWN) for column in films for film in column or ()]
        written = np.array(ids, dtype=np.int64)
        is_film = written == self._mark
        if is_film.sum() != len(ids_F):
            raise TrainingError(
                f"the prompt of example {example_id} has {is_film.sum()} lines of data, and its columns "
                f"{', '.join(self.columns)} list {len(ids_F)} films; set finetune.behaviour_tokens = 'none'"
            )
        written[is_film] = ids_F
        return list(written.tolist())


def prompt_ids(
    rows: Mapping[str, Sequence[Any]], tokenizer: Any, source: str, behaviour: BehaviourTokens | None
) -> list[list[int]]:
    """Token ids of each prompt, up to where the answer begins: as text alone, or with behaviour tokens.

    Args:
        rows: column ``prompt`` of the shards, and those that ``BehaviourTokens.ids`` reads.
        tokenizer, source: of the base model, and its name in errors.
        behaviour: None: text alone.
    """
    if behaviour:
        return behaviour.ids(rows)
    texts = [write_chat(tokenizer, chat, source, opened=True) for chat in rows["prompt"]]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def _marked(chat: Chat) -> list[dict[str, str]]:
    """The chat with a mark after each title of the user's message."""
    return [
        {**message, "content": _LINE.sub(rf"\g<0>{_MARK}", message["content"])}
        if message["role"] == "user"
        else dict(message)
        for message in chat
    ]
