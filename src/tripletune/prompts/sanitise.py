"""Sanitise text from data (titles, tags, names) before it is put into a prompt.

Cleaned text can't become a control token or break the line structure: angle brackets, instruction tags, line breaks,
invisible characters and bidirectional controls are removed or replaced, and the text stays readable. It is shown on a
line that begins with a mark of data, which no line of a template does, so a title or tag can't pass for a heading, a
hint or an answer.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

MAX_CHARS = 200
"""Longer texts are cut; the longest title of ml-32m has 191 characters."""

UNTITLED = "(untitled)"

# by model family: Llama 2, Mistral, BERT, ChatGLM; a film called [REC] must keep its name
_TAGS = (
    r"(?i)\[(/?(?:INST|SYS|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX|MIDDLE|SUFFIX"
    r"|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|TRANSCRIBE|ARGS|CALL_ID|MODEL_SETTINGS|CONTROL_\d+"
    r"|CLS|SEP|[GS]?MASK|PAD|UNK|BOS|EOS|UNUSED_?\d+|THINK))\]"
)
_LEFT, _RIGHT = "[<＜﹤≮]", "[>＞﹥≯]"
"""Angle brackets, and characters that some tokenizers' normalisation (NFKC, NFD) turns into one."""
_SPACES = r"[\p{Cc}\p{Z}\s\u2800]+"
"""White space and control characters; also the Braille blank, which Unicode classes as a symbol."""
_PLAIN = r"^[!-;=?-Z\\^-~\u00C0-\u024F]+(?: [!-;=?-Z\\^-~\u00C0-\u024F]+)*$"
"""Most names: Latin letters, digits and marks, none of them a bracket, single spaces between."""


def clean_text(text: pl.Expr) -> pl.Expr:
    """A string column as safe text; null when nothing visible remains.

    Unicode NFC; invisible characters (zero width, bidi, soft hyphen, tags, fillers, variation selectors) and private
    use characters are removed; control characters, every kind of line and paragraph break and runs of white space
    become one space; ``<`` and ``>`` become ``‹`` and ``›`` and tags like ``[INST]`` get the brackets ``⟦ ⟧``; cut to
    ``MAX_CHARS``. The function is idempotent.
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
    """``name, clean`` of each distinct name with something visible: the result of ``clean_text``, computed faster.

    Most names are plain and are kept as they are; only the others go through the full cleaning.
    """
    distinct = names.drop_nulls().unique().alias("name").to_frame()
    is_plain = pl.col("name").str.contains(_PLAIN) & (pl.col("name").str.len_chars() <= MAX_CHARS)
    split = distinct.with_columns(plain=is_plain)
    plain = split.filter("plain").select("name", clean="name")
    other = split.filter(~pl.col("plain")).select("name", clean=clean_text(pl.col("name")))
    return pl.concat([plain, other]).drop_nulls("clean")


def display_titles(movies: pl.DataFrame, reserved: Iterable[str] = ()) -> pl.DataFrame:
    """Title of each film as prompts show it: safe, never empty, and distinct within the catalogue.

    Films that share a title all get `` [<movieId>]``, so that a copied title identifies one film; so do films whose
    title is a line of the template, so that no line of the template names a film.

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
