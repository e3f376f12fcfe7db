"""Draw inline hints: what a candidate's line says after its title, as ``> LightGCN 1 > directed by Michael Mann``."""
# Shape letters in this file: L lines of candidates in all examples

from __future__ import annotations

import polars as pl

from tripletune.prompts.wording import TripleForm, Wording, words_of_relations
from tripletune.schemas.hints import HINT_OF
from tripletune.schemas.inline import FACT, INLINE_MARK, PLACE, Words


def inline_pieces(examples: pl.DataFrame, inline: Words, form: TripleForm, wording: Wording) -> list[pl.Series]:
    """Pieces of the candidates' lines after the title, each of shape (L,), null for a candidate that lacks it.

    Args:
        examples: ``candidates`` and the inline columns.
        inline: column and words of each inline hint, in the order of the line.
        form: form of a triple.
        wording: words of relations.

    Returns:
        One piece for each column of films; for a column of triples as many as a candidate has facts at most.
    """
    candidates = _exploded(examples, "candidates").select("row", "movie_id")
    pieces: list[pl.Series] = []
    for column, words in inline:
        hint = HINT_OF.get(column)
        listed = _exploded(examples, column)
        if hint and hint.kind == "triples":
            said = _facts(listed, words, form, wording)
        else:
            said = listed.select("row", "movie_id", text=_replaced(words, PLACE, pl.col("place")), number=pl.lit(0))
        for number in range(int(said["number"].max() or 0) + 1):  # type: ignore[arg-type]  # an integer column
            mine = said.filter(number=number).unique(["row", "movie_id"], keep="first", maintain_order=True)
            found = candidates.join(mine, on=["row", "movie_id"], how="left", maintain_order="left")
            if found["text"].null_count() < len(found):
                pieces.append(found["text"])
    return pieces


def _exploded(examples: pl.DataFrame, column: str) -> pl.DataFrame:
    """Items of a list column: ``row, place`` (from 1) and ``movie_id``, or the fields of a triple."""
    items = examples.select(
        pl.row_index("row"), pl.col(column).alias("movie_id"), place=pl.int_ranges(1, pl.col(column).list.len() + 1)
    ).explode("movie_id", "place", empty_as_null=False)
    is_struct = isinstance(items.schema["movie_id"], pl.Struct)
    return items.rename({"movie_id": "item"}).unnest("item") if is_struct else items


def _facts(listed: pl.DataFrame, words: str, form: TripleForm, wording: Wording) -> pl.DataFrame:
    """``row, movie_id, text`` of each fact, and ``number``, its place among those of its film, from 0."""
    around = words_of_relations(listed["relation"].unique().sort(), form, wording, inline=True)
    told = listed.join(around, on="relation", how="left", maintain_order="left")
    fact = pl.concat_str("between", "entity_name", "end")
    return told.select(
        "row",
        "movie_id",
        text=_replaced(words, FACT, fact),
        number=pl.int_range(pl.len()).over("row", "movie_id"),
    )


def _replaced(words: str, slot: str, value: pl.Expr) -> pl.Expr:
    """``> words`` with the value in place of its slot, if it has one."""
    before, found, after = f"{INLINE_MARK} {words}".partition(slot)
    return pl.concat_str(pl.lit(before), value, pl.lit(after)) if found else pl.lit(before)
