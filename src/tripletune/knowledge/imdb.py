"""Credits of the release's films, from a folder in the layout of IMDb's public dumps (``.tsv.gz``).

``title.crew`` names directors and writers in order, ``title.principals`` everyone by billing, ``name.basics`` gives
names to the ids, and ``title.basics``, which may be absent, the year of each title. Only rows of the release's films
are kept in memory: the full dumps have 90 million principals.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tripletune.config import KnowledgeConfig
from tripletune.knowledge.imdb_dumps import Dump, dump_path, read_dump
from tripletune.schemas.base import conform
from tripletune.schemas.ingest import LINKS, MOVIES
from tripletune.store.paths import Facts

CREDITS = pl.Schema({"movie_id": pl.Int32, "relation": pl.String, "person": pl.String, "name": pl.String})
"""Schema of ``read_credits``; unique by its first three columns and sorted by them."""

CREW = {"directors": "director", "writers": "writer"}
PRINCIPALS = {
    "actor": "actor",
    "actress": "actor",
    "cinematographer": "cinematographer",
    "composer": "composer",
    "director": "director",
    "editor": "editor",
    "producer": "producer",
    "writer": "writer",
}

_NAMED = pl.Schema(
    {"movie_id": pl.Int32, "relation": pl.String, "source": pl.Int8, "place": pl.Int32, "person": pl.String}
)
"""A credit of a dump: ``source`` 0 is title.crew, 1 title.principals; ``place`` is the billing in it."""


def read_credits(
    folder: Path | None, links: pl.LazyFrame, settings: KnowledgeConfig, movies: pl.LazyFrame | None = None
) -> tuple[pl.DataFrame, Facts]:
    """Read the credits in ``settings.credits`` of the linked films.

    A person counts once per film and relation. ``max_actors`` actors are kept by billing; of the other relations
    ``max_credits``, those of ``title.crew`` first, in its order. The result does not depend on the order of the dumps'
    rows or on the number of threads.

    Args:
        folder: with ``title.crew``, ``title.principals`` and ``name.basics``, each ``.tsv.gz``. None: no credits.
        links: schema LINKS.
        settings: relations, caps, and the allowed difference in years.
        movies: schema MOVIES, to compare its years with those of ``title.basics``. None: no comparison.

    Returns:
        Schema CREDITS (``name`` is null where ``name.basics`` has none), and counts; the share of films with each
        relation is computed before the caps.

    Raises:
        InputError: a file is missing, truncated, damaged, or has other columns.
    """
    if folder is None or not settings.credits:
        return pl.DataFrame(schema=CREDITS), {"credits": 0, "credit_people": 0}
    linked = links.select(*LINKS).collect()
    titles, year_facts, dumps = _checked_titles(folder, linked.drop_nulls().unique(), movies, settings)
    dumps["title.crew"] = read_dump(folder, "title.crew", ("tconst", *CREW), titles["imdb_id"])
    columns = ("tconst", "ordering", "nconst", "category")
    dumps["title.principals"] = read_dump(folder, "title.principals", columns, titles["imdb_id"])
    named = pl.concat([_crew(dumps["title.crew"].rows), _principals(dumps["title.principals"].rows)])
    found = _of_films(named.filter(pl.col("relation").is_in(settings.credits)), titles)
    kept = _cap(found, settings)
    dumps["name.basics"] = read_dump(folder, "name.basics", ("nconst", "primaryName"), kept["person"])
    names = _names(dumps["name.basics"].rows)
    credits = kept.join(names, on="person", how="left").select(*CREDITS).sort("movie_id", "relation", "person")
    return credits, {
        "linked_films": titles["movie_id"].n_unique(),
        **_counts(credits, found, linked["movie_id"].n_unique(), settings),
        "credit_people_with_several_names": names["several"].sum(),
        **year_facts,
        "malformed_dump_lines": {table: dump.malformed for table, dump in dumps.items()},
    }


def _checked_titles(
    folder: Path, titles: pl.DataFrame, movies: pl.LazyFrame | None, settings: KnowledgeConfig
) -> tuple[pl.DataFrame, Facts, dict[str, Dump]]:
    """Titles whose credits are read, counts of their years against the release's, and the dump of the years."""
    if movies is None or not dump_path(folder, "title.basics").is_file():
        why = "title.basics.tsv.gz is not there" if movies is not None else "the release's years were not given"
        return titles, {"years_compared": 0, "years_not_compared": why}, {}
    dump = read_dump(folder, "title.basics", ("tconst", "startYear"), titles["imdb_id"])
    stated = dump.rows.group_by("tconst").agg(stated=pl.col("startYear").cast(pl.Int32, strict=False).min())
    released = movies.select("movie_id", year=pl.col("year").cast(MOVIES["year"])).collect()
    compared = (
        titles.join(released, on="movie_id")
        .join(stated, left_on="imdb_id", right_on="tconst")
        .drop_nulls()
        .with_columns(gap=(pl.col("stated") - pl.col("year").cast(pl.Int32)).abs())
    )
    disagree = compared.filter(pl.col("gap") > settings.max_year_gap).sort("gap", "movie_id", descending=[True, False])
    facts: Facts = {
        "years_compared": compared.height,
        "years_differ": compared.filter(pl.col("gap") > 0).height,
        "year_disagreements": disagree.height,
    }
    if disagree.height:
        worst = disagree.row(0, named=True)
        facts["year_largest_disagreement"] = (
            f"movie {worst['movie_id']}: {worst['year']} in the release, {worst['stated']} for {worst['imdb_id']}"
        )
    if settings.drop_year_disagreements:
        titles = titles.join(disagree, on="movie_id", how="anti")
    return titles, facts, {"title.basics": dump}


def _crew(rows: pl.DataFrame) -> pl.DataFrame:
    """Schema _NAMED, with ``tconst`` in place of the film."""
    people = pl.concat(
        rows.select("tconst", relation=pl.lit(relation), person=pl.col(column).str.split(","))
        for column, relation in CREW.items()
    )
    # the place in the list is the billing
    placed = people.drop_nulls().with_columns(place=pl.int_ranges(pl.col("person").list.len()))
    return _named(placed.explode("person", "place"), source=0)


def _principals(rows: pl.DataFrame) -> pl.DataFrame:
    known = rows.filter(pl.col("category").is_in(list(PRINCIPALS)))
    placed = known.select(
        "tconst",
        relation=pl.col("category").replace_strict(PRINCIPALS, return_dtype=pl.String),
        person="nconst",
        place=pl.col("ordering").cast(pl.Int32, strict=False),
    )
    return _named(placed, source=1)


def _named(credits: pl.DataFrame, source: int) -> pl.DataFrame:
    known = credits.filter(pl.col("person").str.len_bytes() > 0).with_columns(source=pl.lit(source))
    return known.select("tconst", *(pl.col(name).cast(_NAMED[name]) for name in _NAMED if name != "movie_id"))


def _of_films(named: pl.DataFrame, titles: pl.DataFrame) -> pl.DataFrame:
    """Schema _NAMED: each person once per film and relation, in order of billing."""
    # several movie ids may share one IMDb id
    films = conform(named.join(titles, left_on="tconst", right_on="imdb_id"), _NAMED)
    # by person last, and credits without a place after those with one: independent of the order of rows
    ordered = films.sort("movie_id", "relation", "source", "place", "person", nulls_last=True)
    return ordered.unique(["movie_id", "relation", "person"], keep="first", maintain_order=True)


def _cap(found: pl.DataFrame, settings: KnowledgeConfig) -> pl.DataFrame:
    cap = pl.when(pl.col("relation") == "actor").then(settings.max_actors).otherwise(settings.max_credits)
    return found.filter(pl.int_range(pl.len()).over("movie_id", "relation") < cap)


def _names(rows: pl.DataFrame) -> pl.DataFrame:
    """``person``, ``name``, and whether ``several`` names were given, of which the alphabetically first is used."""
    name = pl.col("primaryName").str.strip_chars().replace("", None)
    given = rows.select(person="nconst", name=name)
    names = pl.col("name").drop_nulls()
    return given.group_by("person").agg(name=names.min(), several=names.n_unique() > 1)


def _counts(credits: pl.DataFrame, found: pl.DataFrame, num_links: int, settings: KnowledgeConfig) -> Facts:
    people = credits.unique("person")
    films = dict(found.group_by("relation").agg(pl.col("movie_id").n_unique()).iter_rows())
    with_credit = found["movie_id"].n_unique()
    return {
        "films_with_credits": with_credit,
        "films_without_credits": num_links - with_credit,
        "credits_before_caps": found.height,
        "credits": credits.height,
        "credit_people": people.height,
        "credit_people_without_name": people["name"].null_count(),
        "credit_coverage_before_caps": {
            relation: films.get(relation, 0) / max(num_links, 1) for relation in settings.credits
        },
    }
