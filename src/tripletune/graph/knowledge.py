"""The film knowledge graph: genres, decades, tags, credits and triples of the user's own, around each movie."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from tripletune.config import KnowledgeConfig
from tripletune.errors import InputError
from tripletune.paths import Facts, write_atomically
from tripletune.schemas import (
    COVERAGE,
    ENTITIES,
    ENTITY_KINDS,
    MOVIES,
    RATINGS,
    RELATION_NAMES,
    RELATIONS,
    TAGS,
    TRIPLES,
    conform,
)

_FACTS_OF_FILMS = pl.Schema(
    {"movie_id": pl.Int32, "relation": pl.String, "key": pl.String, "kind": pl.String, "name": pl.String}
)
"""A triple before ids are given: film, relation, and the entity at its tail."""

_RELATION_NAME = r"^[A-Za-z][A-Za-z0-9_ -]{0,63}$"
_MAX_TAIL = 200


def write_knowledge(
    movies: Path,
    tags: Path,
    ratings: Path,
    credits: pl.DataFrame,
    extra: Sequence[Path],
    out: Path,
    settings: KnowledgeConfig,
) -> Facts:
    """Write ``entities relations triples coverage .parquet``.

    Args:
        movies, tags, ratings: Parquet files of ingest.
        credits: movie_id, relation, person, name; see data/imdb.py.
        extra: TSV files of ``head relation tail``: a movie id, a relation's name and any text.
        out: the work folder.
        settings: support that a tag needs.

    Returns:
        Counts of entities, triples by relation and extra lines used and refused; lines are refused when they have
        not three fields, the head is not a movie of the release, or the relation is no plain name.

    Raises:
        InputError: an extra file is missing or is not UTF-8 text.
    """
    catalogue = pl.read_parquet(movies, schema=MOVIES)
    added, extra_facts = _extra_facts(extra, catalogue["movie_id"])
    known = pl.col("movie_id").is_in(catalogue["movie_id"].implode())
    found = pl.concat(
        [
            _genre_facts(catalogue),
            _decade_facts(catalogue),
            _tag_facts(pl.read_parquet(tags, schema=TAGS), settings.tag_min_viewers),
            _credit_facts(credits),
            added,
        ]
    ).filter(known)
    relations = _relations(found)
    entities = _entities(catalogue, found)
    triples = _triples(found, entities, relations)
    coverage = _coverage(triples, entities, relations, pl.scan_parquet(ratings, schema=RATINGS))
    frames = {"entities": entities, "relations": relations, "triples": triples, "coverage": coverage}
    for name, frame in frames.items():
        write = partial(frame.write_parquet, compression="zstd", row_group_size=1 << 18)
        write_atomically(out / f"{name}.parquet", write)
    return {
        "entities": dict(entities.group_by(pl.col("kind").cast(pl.String)).len().sort("kind").iter_rows()),
        "entities_without_name": entities["name"].null_count(),
        "triples": triples.height,
        "triples_by_relation": dict(coverage.select("relation", "triples").iter_rows()),
        "films_without_triples": catalogue.height - triples["head"].n_unique(),
        **extra_facts,
    }


def normalise_tag(tag: str) -> str:
    """NFKC, case folded, control characters and runs of spaces to one space; what makes two tags the same."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", tag).casefold())
    visible = "".join(" " if unicodedata.category(letter)[0] == "C" else letter for letter in folded)
    return " ".join(visible.split())


def _genre_facts(catalogue: pl.DataFrame) -> pl.DataFrame:
    genres = catalogue.select("movie_id", name="genres").explode("name").drop_nulls()
    return _facts("genre", "genre", genres)


def _decade_facts(catalogue: pl.DataFrame) -> pl.DataFrame:
    decade = (pl.col("year") // 10 * 10).cast(pl.String) + "s"
    return _facts("decade", "decade", catalogue.select("movie_id", name=decade).drop_nulls())


def _tag_facts(tags: pl.DataFrame, min_viewers: int) -> pl.DataFrame:
    spellings = tags["tag"].unique()
    # casefold is not in polars; there are far fewer spellings than tags
    normal = pl.Series([normalise_tag(tag) for tag in spellings], dtype=pl.String)
    same = pl.DataFrame({"tag": spellings, "name": normal}).filter(pl.col("name") != "")
    support = tags.join(same, on="tag").group_by("movie_id", "name").agg(viewers=pl.col("user_id").n_unique())
    return _facts("tag", "tag", support.filter(pl.col("viewers") >= min_viewers))


def _facts(relation: str, kind: str, named: pl.DataFrame) -> pl.DataFrame:
    """Facts whose entity is told by its name: columns movie_id, name."""
    return conform(
        named.select(
            "movie_id",
            relation=pl.lit(relation),
            key=pl.lit(f"{kind}:") + pl.col("name"),
            kind=pl.lit(kind),
            name="name",
        ),
        _FACTS_OF_FILMS,
    )


def _credit_facts(credits: pl.DataFrame) -> pl.DataFrame:
    people = credits.select(
        "movie_id", "relation", key=pl.lit("person:") + pl.col("person"), kind=pl.lit("person"), name="name"
    )
    return conform(people, _FACTS_OF_FILMS)


def _extra_facts(files: Sequence[Path], movie_ids: pl.Series) -> tuple[pl.DataFrame, Facts]:
    if not files:
        return pl.DataFrame(schema=_FACTS_OF_FILMS), {}
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
    return conform(used, _FACTS_OF_FILMS), {
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
        lines = pl.read_lines(file, name="text", row_index_name="line", row_index_offset=1)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{file} cannot be read as UTF-8 text ({reason}); save it as UTF-8") from None
    text = pl.col("text").str.strip_prefix("\ufeff")
    told = lines.select(place=pl.format("{} line {}", pl.lit(file.name), "line"), text=text)
    return told.filter(~pl.col("text").is_in(["", "head\trelation\ttail"]))


def _relations(found: pl.DataFrame) -> pl.DataFrame:
    added = sorted(set(found["relation"]) - set(RELATION_NAMES))
    names = [*RELATION_NAMES, *added]
    return pl.DataFrame({"relation_id": range(len(names)), "name": names}, schema=RELATIONS)


def _entities(catalogue: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    films = catalogue.select(key=pl.format("movie:{}", "movie_id"), kind=pl.lit("movie"), name="title")
    tails = found.select("key", "kind", "name").group_by("key", "kind").agg(pl.col("name").drop_nulls().min())
    every = pl.concat([films, tails]).with_columns(pl.col("kind").cast(ENTITY_KINDS)).sort("kind", "key")
    return conform(every.with_row_index("entity_id"), ENTITIES)


def _triples(found: pl.DataFrame, entities: pl.DataFrame, relations: pl.DataFrame) -> pl.DataFrame:
    ids = entities.select("key", "entity_id")
    numbered = (
        found.with_columns(head_key=pl.format("movie:{}", "movie_id"))
        .join(ids.rename({"key": "head_key", "entity_id": "head"}), on="head_key")
        .join(ids.rename({"entity_id": "tail"}), on="key")
        .join(relations.rename({"relation_id": "id", "name": "relation"}), on="relation")
    )
    triples = conform(numbered.with_columns(relation="id"), TRIPLES)
    return triples.unique().sort("head", "relation", "tail")


def _coverage(
    triples: pl.DataFrame, entities: pl.DataFrame, relations: pl.DataFrame, ratings: pl.LazyFrame
) -> pl.DataFrame:
    """Per relation: triples, and the share of movies and of ratings whose movie has at least one."""
    films = entities.filter(pl.col("kind") == "movie").select(
        head="entity_id", movie_id=pl.col("key").str.strip_prefix("movie:").cast(pl.Int32)
    )
    counts = ratings.group_by("movie_id").agg(ratings=pl.len()).collect()
    films = films.join(counts, on="movie_id", how="left").with_columns(pl.col("ratings").fill_null(0))
    heads = triples.group_by("head", "relation").agg(triples=pl.len()).join(films, on="head")
    per_relation = heads.group_by("relation").agg(pl.col("triples").sum(), pl.col("ratings").sum(), movies=pl.len())
    table = relations.join(per_relation, left_on="relation_id", right_on="relation", how="left").fill_null(0)
    return conform(
        table.sort("relation_id").select(
            "triples",
            "movies",
            relation="name",
            share_of_movies=pl.col("movies") / max(films.height, 1),
            share_of_ratings=pl.col("ratings") / max(films["ratings"].sum(), 1),
        ),
        COVERAGE,
    )
