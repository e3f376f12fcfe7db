"""Text that comes from data (titles, tags, names) made safe to stand in a prompt.

It can never become a control token or break the frame of lines: no angle bracket and no instruction tag survives, and
no character that ends a line, hides, or turns the direction of writing. What a reader sees stays readable. What is left
stands on a line that begins with a mark of data, which no line of a template does: whatever a title or a tag says, it
is no heading, no hint and no answer.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

MAX_CHARS = 200
"""Longer texts are cut; the longest title of ml-32m has 191 characters."""

UNTITLED = "(untitled)"

# by the families that use them: Llama 2, Mistral, BERT, ChatGLM; a film called [REC] must keep its name
_TAGS = (
    r"(?i)\[(/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX|MIDDLE|SUFFIX"
    r"|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|ARGS|CALL_ID|MODEL_SETTINGS|CONTROL_\d+"
    r"|CLS|SEP|[GS]?MASK|PAD|UNK|BOS|EOS|UNUSED_?\d+|THINK))\]"
)
_LEFT, _RIGHT = "[<＜﹤≮]", "[>＞﹥≯]"
"""Angle brackets, and what some tokenizers' normalisation (NFKC, NFD) would turn into one."""
_SPACES = r"[\p{Cc}\p{Z}\s\u2800]+"
"""Also the blank of Braille, which is a symbol to Unicode."""
_PLAIN = r"^[!-;=?-Z\\^-~\u00C0-\u024F]+(?: [!-;=?-Z\\^-~\u00C0-\u024F]+)*$"
"""Most names: Latin letters, digits and marks, none of them a bracket, single spaces between."""


def clean_text(text: pl.Expr) -> pl.Expr:
    """A string column as safe text; null when nothing visible remains.

    Unicode NFC; what is invisible by itself (zero width, bidi, soft hyphen, tags, fillers, variation selectors) and
    private use removed; control characters, every kind of line and paragraph break and runs of white space become one
    space; ``<`` and ``>`` become ``‹`` and ``›`` and tags like ``[INST]`` get the brackets ``⟦ ⟧``; cut to
    ``MAX_CHARS``. Cleaning twice changes nothing more.
    """
    plain = (
        text.str.replace_all(r"[\p{Cf}\p{Co}\p{Default_Ignorable_Code_Point}]", "")
        .str.normalize("NFC")
        .str.replace_all(_SPACES, " ")
        .str.replace_all(_LEFT, "‹")
        .str.replace_all(_RIGHT, "›")
        .str.replace_all(_TAGS, "⟦${1}⟧")
        .str.strip_chars()
    )
    cut = (
        pl.when(plain.str.len_chars() > MAX_CHARS)
        .then(plain.str.slice(0, MAX_CHARS - 1).str.strip_chars_end() + "…")
        .otherwise(plain)
    )
    return pl.when(cut.str.len_chars() > 0).then(cut)


def clean_names(names: pl.Series) -> pl.DataFrame:
    """``name, clean`` of each distinct name that has something visible: what ``clean_text`` gives, sooner.

    Most names are plain and stay as they are; only the others go through its passes.
    """
    distinct = names.drop_nulls().unique().alias("name").to_frame()
    is_plain = pl.col("name").str.contains(_PLAIN) & (pl.col("name").str.len_chars() <= MAX_CHARS)
    split = distinct.with_columns(plain=is_plain)
    plain = split.filter("plain").select("name", clean="name")
    other = split.filter(~pl.col("plain")).select("name", clean=clean_text(pl.col("name")))
    return pl.concat([plain, other]).drop_nulls("clean")


def display_titles(movies: pl.DataFrame, reserved: Iterable[str] = ()) -> pl.DataFrame:
    """The title of each film as prompts show it: safe, never empty, and distinct within the catalogue.

    Films that share a title all get `` [<movieId>]``, so that a title that is copied names one film; so do films whose
    title is a line of the template, so that no line of it names a film.

    Args:
        movies: ``movie_id, title``, unique by movie.
        reserved: the template's lines.

    Returns:
        ``movie_id, display``, sorted by movie.
    """
    cleaned = movies.join(clean_names(movies["title"]), left_on="title", right_on="name", how="left")
    shown = cleaned.select("movie_id", display=pl.col("clean").fill_null(UNTITLED)).sort("movie_id")
    shared = pl.col("display").is_duplicated() | pl.col("display").is_in(sorted(reserved))
    while shown.select(shared.any()).item():
        shown = shown.with_columns(
            display=pl.when(shared).then(pl.format("{} [{}]", "display", "movie_id")).otherwise("display")
        )
    return shown
