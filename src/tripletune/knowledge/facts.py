"""Film facts from each source (genres, decades, tags, credits, extra TSV files), before ids are assigned."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import polars as pl

from tripletune.errors import InputError
from tripletune.schemas.base import conform
from tripletune.schemas.ingest import midnight
from tripletune.store.paths import Facts

FILM_FACTS = pl.Schema(
    {"movie_id": pl.Int32, "relation": pl.String, "key": pl.String, "kind": pl.String, "name": pl.String}
)
"""Film, relation, and the entity at its tail. Facts may repeat."""

_RELATION_NAME = r"^[A-Za-z][A-Za-z0-9_ -]{0,63}$"
_MAX_TAIL = 200


def genre_facts(catalogue: pl.DataFrame) -> pl.DataFrame:
    """Schema FILM_FACTS, from schema MOVIES."""
    genres = catalogue.select("movie_id", name="genres").explode("name").drop_nulls()
    return _facts_by_name("genre", "genre", genres)


def decade_facts(catalogue: pl.DataFrame) -> pl.DataFrame:
    """Schema FILM_FACTS, from schema MOVIES."""
    decade = (pl.col("year") // 10 * 10).cast(pl.String) + "s"
    return _facts_by_name("decade", "decade", catalogue.select("movie_id", name=decade).drop_nulls())


def tag_facts(tags: pl.DataFrame, min_viewers: int, before: date | None) -> tuple[pl.DataFrame, Facts]:
    """Tags that enough users gave a film.

    Args:
        tags: schema TAGS.
        min_viewers: minimum number of different users who gave it.
        before: tags of this day (UTC) or later are ignored. None: all are used.

    Returns:
        Schema FILM_FACTS, and the number of tags dropped as too late.
    """
    in_time = tags if before is None else tags.filter(pl.col("timestamp") < midnight(before))
    spellings = in_time["tag"].unique()
    # casefold is not in polars; there are far fewer spellings than tags
    normal = pl.Series([normalise_tag(tag) for tag in spellings], dtype=pl.String)
    same = pl.DataFrame({"tag": spellings, "name": normal}).filter(pl.col("name") != "")
    support = in_time.join(same, on="tag").group_by("movie_id", "name").agg(viewers=pl.col("user_id").n_unique())
    supported = support.filter(pl.col("viewers") >= min_viewers)
    late = {} if before is None else {"tags_after_cut": tags.height - in_time.height}
    return _facts_by_name("tag", "tag", supported), late


def normalise_tag(tag: str) -> str:
    """Normal form by which tags are compared: NFKC, case folded, control characters and runs of spaces to one space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tag).casefold())
    visible = "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in folded)
    return " ".join(visible.split())


def _facts_by_name(relation: str, kind: str, named: pl.DataFrame) -> pl.DataFrame:
    """Facts whose entity is identified by its name; ``named`` has columns movie_id, name."""
    return conform(
        named.select(
            "movie_id",
            relation=pl.lit(relation),
            key=pl.lit(f"{kind}:") + pl.col("name"),
            kind=pl.lit(kind),
            name="name",
        ),
        FILM_FACTS,
    )


def credit_facts(credits: pl.DataFrame) -> pl.DataFrame:
    """Schema FILM_FACTS, from columns movie_id, relation, person, name. People of the same name stay distinct."""
    people = credits.select(
        "movie_id", "relation", key=pl.lit("person:") + pl.col("person"), kind=pl.lit("person"), name="name"
    )
    return conform(people, FILM_FACTS)


def extra_facts(files: Sequence[Path], movie_ids: pl.Series) -> tuple[pl.DataFrame, Facts]:
    """Facts from extra TSV files.

    Args:
        files: TSV of ``head relation tail``.
        movie_ids: of the release.

    Returns:
        Schema FILM_FACTS, and counts of lines used and rejected.

    Raises:
        InputError: a file is missing or is not UTF-8 text.
    """
    if not files:
        return pl.DataFrame(schema=FILM_FACTS), {}
    lines = pl.concat([_extra_lines(file) for file in files])
    fields = pl.col("text").str.split_exact("\t", 3).struct.rename_fields(["head", "relation", "tail", "more"])
    named = lines.select("place", fields.struct.unnest()).select(
        "place",
        movie_id=pl.col("head").str.strip_chars().cast(pl.Int32, strict=False),
        relation=pl.col("relation").str.strip_chars(),
        name=pl.col("tail").str.strip_chars(),
        usable=pl.col("more").is_null(),
    )
    usable = (
        pl.col("usable")
        & pl.col("movie_id").is_in(movie_ids.implode())
        & pl.col("relation").str.contains(_RELATION_NAME)
        & pl.col("name").str.len_chars().is_between(1, _MAX_TAIL)
    )
    named = named.with_columns(usable=usable.fill_null(False))
    used, refused = named.filter("usable"), named.filter(~pl.col("usable"))
    used = used.with_columns(key=pl.format("other:{}:{}", "relation", "name"), kind=pl.lit("other"))
    return conform(used, FILM_FACTS), {
        "extra_lines": named.height,
        "extra_used": used.height,
        "extra_refused": refused.height,
        "extra_first_refused": refused["place"].first() or "",
    }


def _extra_lines(file: Path) -> pl.DataFrame:
    """Lines that are neither blank nor the header: ``place`` (file and line number) and ``text``."""
    if not file.is_file():
        raise InputError(f"source.extra_triples names {file}, which is no file; give a TSV of: head relation tail")
    try:
        lines = pl.read_lines(file, name="text", row_index_name="line", row_index_offset=1, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as UTF-8 text ({reason}); save it as UTF-8") from None
    text = pl.col("text").str.strip_prefix("\ufeff")
    placed = lines.select(place=pl.format("{} line {}", pl.lit(file.name), "line"), text=text)
    return placed.filter(~pl.col("text").is_in(["", "head\trelation\ttail"]))
