"""Build the film knowledge graph from genres, decades, tags, credits and extra triples."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from pathlib import Path

import polars as pl

from tripletune.config import KnowledgeConfig
from tripletune.knowledge.facts import credit_facts, decade_facts, extra_facts, genre_facts, tag_facts
from tripletune.schemas.base import conform
from tripletune.schemas.ingest import MOVIES, RATINGS, TAGS
from tripletune.schemas.knowledge import COVERAGE, ENTITIES, ENTITY_KINDS, RELATION_NAMES, RELATIONS, TRIPLES
from tripletune.store.parquet import ROW_GROUP, write_parquet
from tripletune.store.paths import Facts
from tripletune.store.read import read_parquet, scan_parquet


def write_knowledge(
    movies: Path,
    tags: Path,
    ratings: Path,
    credits: pl.DataFrame,
    extra: Sequence[Path],
    out: Path,
    settings: KnowledgeConfig,
    tags_before: date | None = None,
) -> Facts:
    """Write ``entities relations triples coverage .parquet``.

    Args:
        movies, tags, ratings: Parquet files of ingest.
        credits: movie_id, relation, person, name; see imdb.py.
        extra: TSV files of ``head relation tail``: a movie id, a relation's name and any text.
        out: the work folder.
        settings: support required of a tag, and the size of a hub.
        tags_before: tags given on this day (UTC) or later are ignored. None: all are used.

    Returns:
        Counts of entities, triples by relation, hubs, late tags, and extra lines used and rejected; a line is rejected
        when it does not have three fields, its head is not a movie of the release, or its relation is no plain name.

    Raises:
        InputError: an extra file is missing or is not UTF-8 text.
    """
    catalogue = read_parquet(movies, schema=MOVIES)
    tagged, tag_counts = tag_facts(read_parquet(tags, schema=TAGS), settings.tag_min_viewers, tags_before)
    added, extra_counts = extra_facts(extra, catalogue["movie_id"])
    known = pl.col("movie_id").is_in(catalogue["movie_id"].implode())
    sources = [genre_facts(catalogue), decade_facts(catalogue), tagged, credit_facts(credits), added]
    found = pl.concat(sources).filter(known)
    relations = _relations(found)
    entities = _entities(catalogue, found)
    triples = _triples(found, entities, relations)
    coverage = _coverage(triples, entities, relations, scan_parquet(ratings, schema=RATINGS))
    frames = {"entities": entities, "relations": relations, "triples": triples, "coverage": coverage}
    for name, frame in frames.items():
        write_parquet(out / f"{name}.parquet", frame, row_group_size=ROW_GROUP)
    return {
        "entities": dict(entities.group_by(pl.col("kind").cast(pl.String)).len().sort("kind").iter_rows()),
        "entities_without_name": entities["name"].null_count(),
        "triples": triples.height,
        **{
            f"{figure}_by_relation": dict(coverage.select("relation", figure).iter_rows())
            for figure in ("triples", "share_of_movies", "share_of_ratings")
        },
        "films_without_triples": catalogue.height - triples["head"].n_unique(),
        "hubs": _hubs(triples, entities, relations, settings.hub_films),
        **tag_counts,
        **extra_counts,
    }


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
    """Per relation: number of triples, and the share of movies and of ratings whose movie has at least one."""
    films = entities.filter(pl.col("kind") == "movie").select(
        head="entity_id", movie_id=pl.col("key").str.strip_prefix("movie:").cast(pl.Int32)
    )
    counts = ratings.group_by("movie_id").agg(ratings=pl.len()).collect(engine="streaming")
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


def _hubs(triples: pl.DataFrame, entities: pl.DataFrame, relations: pl.DataFrame, limit: int) -> Facts:
    """Per relation with triples: the entity with most films, its films, and the number of entities above ``limit``."""
    films = triples.group_by("relation", "tail").agg(films=pl.len())
    # ties: the lower id
    ordered = films.sort("relation", "films", "tail", descending=[False, True, False])
    largest = ordered.group_by("relation", maintain_order=True).agg(
        pl.col("tail", "films").first(), hubs=(pl.col("films") > limit).sum()
    )
    named = largest.join(entities, left_on="tail", right_on="entity_id").join(
        relations.rename({"name": "of"}), left_on="relation", right_on="relation_id"
    )
    rows = named.sort("relation").select("of", pl.coalesce("name", "key").alias("largest"), "films", "hubs")
    return {relation: dict(zip(rows.columns[1:], hub, strict=True)) for relation, *hub in rows.iter_rows()}
