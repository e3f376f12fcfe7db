"""Text that comes from data (titles, tags, names) made safe to stand in a prompt.

It can never become a control token or break the frame of lines: no angle bracket and no instruction tag survives, and
no character that ends a line, hides, or turns the direction of writing. What a reader sees stays readable.
"""

from __future__ import annotations

import polars as pl

MAX_CHARS = 200
"""Longer texts are cut; the longest title of ml-32m has 191 characters."""

UNTITLED = "(untitled)"

# by the families that use them: Llama 2 and Mistral, BERT; a film called [REC] must keep its name
_TAGS = (
    r"(?i)\[(/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX|MIDDLE|SUFFIX"
    r"|IMG|IMG_BREAK|IMG_END|CLS|SEP|MASK|PAD|UNK|BOS|EOS|THINK))\]"
)


def clean_text(text: pl.Expr) -> pl.Expr:
    """A string column as safe text; null when nothing visible remains.

    Unicode NFC; format characters (zero width, bidi, soft hyphen, tags) and private use removed; control characters,
    line and paragraph separators and runs of white space become one space; ``<`` and ``>`` become ``‹`` and ``›`` and
    tags like ``[INST]`` get the brackets ``⟦ ⟧``; cut to ``MAX_CHARS``. Cleaning twice changes nothing more.
    """
    plain = (
        text.str.replace_all(r"[\p{Cf}\p{Co}]", "")
        .str.normalize("NFC")
        .str.replace_all(r"[\p{Cc}\p{Z}\s]+", " ")
        .str.replace_all("<", "‹", literal=True)
        .str.replace_all(">", "›", literal=True)
        .str.replace_all(_TAGS, "⟦${1}⟧")
        .str.strip_chars()
    )
    cut = (
        pl.when(plain.str.len_chars() > MAX_CHARS)
        .then(plain.str.slice(0, MAX_CHARS - 1).str.strip_chars_end() + "…")
        .otherwise(plain)
    )
    return pl.when(cut.str.len_chars() > 0).then(cut)


def display_titles(movies: pl.DataFrame) -> pl.DataFrame:
    """The title of each film as prompts show it: safe, never empty, and distinct within the catalogue.

    Films that share a title all get `` [<movieId>]``, so that a title that is copied names one film.

    Args:
        movies: ``movie_id, title``, unique by movie.

    Returns:
        ``movie_id, display``, sorted by movie.
    """
    shown = movies.select("movie_id", display=clean_text(pl.col("title")).fill_null(UNTITLED)).sort("movie_id")
    shared = pl.col("display").is_duplicated()
    while shown.select(shared.any()).item():
        shown = shown.with_columns(
            display=pl.when(shared).then(pl.format("{} [{}]", "display", "movie_id")).otherwise("display")
        )
    return shown
