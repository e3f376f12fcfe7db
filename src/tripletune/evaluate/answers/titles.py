"""Titles as keys that do not depend on how they are written, to tell a film that exists from an invented one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import NamedTuple

_YEAR = re.compile(r"\((\d{4})[^()]*\)?\s*$")
_BRACKETS = re.compile(r"[(\[][^)\]]*[)\]]?")
_ARTICLE = re.compile(
    r"^(.*), (the|an?|le|la|les|l'|un|une|der|die|das|ein|eine|el|los|las|il|lo|i|gli|o|os|as|den|det|de|en)$"
)
"""A title that ends in its article, as MovieLens writes them: ``Matrix, The``."""


class TitleKey(NamedTuple):
    """A title without case, marks, accents, alternative titles in brackets and the place of its article."""

    words: str
    year: str
    """Four digits; empty where the title gives none."""


def title_key(title: str) -> TitleKey:
    """The key of a title: ``("the matrix", "1999")`` of ``Matrix, The (1999)`` and of ``**The Matrix** (1999``."""
    text = unicodedata.normalize("NFKD", title).casefold().strip()
    text = "".join(char for char in text if not unicodedata.combining(char)).strip(" \t*_\"'`“”‘’.,;:-–—")
    found = _YEAR.search(text)
    name = _BRACKETS.sub(" ", text[: found.start()] if found else text)
    article = _ARTICLE.match(name.strip())
    name = f"{article[2]} {article[1]}" if article else name
    words = " ".join("".join(char if char.isalnum() else " " for char in name).split())
    return TitleKey(words or text, found[1] if found else "")


class TitleIndex:
    """Films by title: with the year, and without it for a title that gives none."""

    def __init__(self, titles: Iterable[str]) -> None:
        keys = [title_key(title) for title in titles]
        self._keys = set(keys)
        self._words = {key.words for key in keys}

    def __contains__(self, key: TitleKey) -> bool:
        return key in self._keys or (not key.year and key.words in self._words)
