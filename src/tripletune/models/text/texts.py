"""A film as text: its title, then what the knowledge graph says of it, relation by relation, by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from tripletune.errors import ConfigError, InputError
from tripletune.schemas.base import conform
from tripletune.schemas.knowledge import ENTITIES, MOVIE_KEY, RELATIONS, TRIPLES
from tripletune.store.read import read_parquet


def film_texts(knowledge: Path, relations: Sequence[str]) -> pl.DataFrame:
    """The text of every film of the graph, such as ``Heat (1995). Action, Crime. 1990s. Michael Mann``.

    Args:
        knowledge: output of that stage.
        relations: names in the order in which they are written; a film without an entity of a relation skips it.

    Returns:
        Columns ``movie_id``, ``text``, ascending by film.

    Raises:
        InputError: a file is missing or does not fit its schema. ConfigError: there is no such relation.
    """
    try:
        entities = conform(read_parquet(knowledge / "entities.parquet"), ENTITIES)
        names = conform(read_parquet(knowledge / "relations.parquet"), RELATIONS)
        triples = conform(read_parquet(knowledge / "triples.parquet"), TRIPLES)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{knowledge} does not hold entities, relations and triples ({error}); run knowledge"
        ) from None
    unknown = [name for name in relations if name not in names["name"]]
    if unknown:
        raise ConfigError(
            f"text.relations names {unknown[0]!r}, which the graph lacks; it has {', '.join(names['name'])}"
        )
    films = entities.filter(pl.col("kind") == "movie").select(
        "name", head="entity_id", movie_id=pl.col("key").str.strip_prefix(MOVIE_KEY).cast(pl.Int32)
    )
    places = pl.DataFrame({"relation_name": list(relations), "place": range(len(relations))})
    wanted = names.select("relation_id", relation_name="name").join(places, on="relation_name")
    facts = (
        triples.join(wanted, left_on="relation", right_on="relation_id")
        .join(entities.select("entity_id", fact="name"), left_on="tail", right_on="entity_id")
        .drop_nulls("fact")
        .sort("head", "place", "tail")
        .group_by("head", "place", maintain_order=True)
        .agg(pl.col("fact").str.join(", "))
        .group_by("head", maintain_order=True)
        .agg(pl.col("fact").str.join(". "))
    )
    text = pl.concat_str("name", "fact", separator=". ", ignore_nulls=True)
    return films.join(facts, on="head", how="left").select("movie_id", text=text).sort("movie_id")
