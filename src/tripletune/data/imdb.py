"""Credits of the release's films, from a folder in the layout of IMDb's public dumps (``.tsv.gz``).

``title.crew`` names directors and writers in order, ``title.principals`` everyone by billing, ``name.basics`` gives
names to the ids. Only rows of the release's films are held: the full dumps have 90 million principals.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from tripletune.config import KnowledgeConfig
from tripletune.errors import InputError
from tripletune.paths import Facts
from tripletune.schemas import LINKS

CREDITS = pl.Schema({"movie_id": pl.Int32, "relation": pl.String, "person": pl.String, "name": pl.String})
"""Frame that ``read_credits`` returns; unique by its first three columns and sorted by them."""

CREW = {"directors": "director", "writers": "writer"}
PRINCIPALS = {
    "actor": "actor",
    "actress": "actor",
    "cinematographer": "cinematographer",
    "director": "director",
    "writer": "writer",
}
RELATIONS = ("director", "writer", "actor", "cinematographer")


def read_credits(folder: Path | None, links: pl.LazyFrame, settings: KnowledgeConfig) -> tuple[pl.DataFrame, Facts]:
    """Directors, writers, actors and cinematographers of the linked films.

    A person counts once per film and relation. ``max_actors`` actors are kept by billing; of the other relations
    ``max_credits``, those of ``title.crew`` first, in its order.

    Args:
        folder: with ``title.crew``, ``title.principals`` and ``name.basics``, each ``.tsv.gz``. None: no credits.
        links: schema LINKS.
        settings: the caps.

    Returns:
        Schema CREDITS (``name`` is null where ``name.basics`` has none), and counts; the share of films with each
        relation is taken before the caps.

    Raises:
        InputError: a file is missing, truncated, or has other columns.
    """
    if folder is None:
        return pl.DataFrame(schema=CREDITS), {"credits": 0, "credit_people": 0}
    titles = links.select(*LINKS).drop_nulls().collect()
    named = pl.concat([_crew(folder, titles), _principals(folder, titles)])
    found = named.sort("movie_id", "relation", "source", "place", "person").unique(
        ["movie_id", "relation", "person"], keep="first", maintain_order=True
    )
    cap = pl.when(pl.col("relation") == "actor").then(settings.max_actors).otherwise(settings.max_credits)
    kept = found.filter(pl.int_range(pl.len()).over("movie_id", "relation") < cap)
    credits = kept.join(_names(folder, kept["person"].unique()), on="person", how="left")
    credits = credits.select(*CREDITS).sort("movie_id", "relation", "person")
    return credits, _facts(credits, found, titles, links.select(pl.len()).collect().item())


def _crew(folder: Path, titles: pl.DataFrame) -> pl.DataFrame:
    rows = _read(folder, "title.crew", ("tconst", *CREW), lambda scan: _of_titles(scan, titles))
    people = pl.concat(
        rows.select("movie_id", relation=pl.lit(relation), person=pl.col(column).str.split(","))
        for column, relation in CREW.items()
    )
    # the place in the list is the billing
    placed = people.drop_nulls().with_columns(place=pl.int_ranges(pl.col("person").list.len(), dtype=pl.Int32))
    return placed.explode("person", "place").with_columns(source=pl.lit(0, pl.Int8))


def _principals(folder: Path, titles: pl.DataFrame) -> pl.DataFrame:
    wanted = pl.col("category").is_in(list(PRINCIPALS))
    columns = ("tconst", "ordering", "nconst", "category")
    rows = _read(folder, "title.principals", columns, lambda scan: _of_titles(scan.filter(wanted), titles))
    return rows.select(
        "movie_id",
        relation=pl.col("category").replace_strict(PRINCIPALS, return_dtype=pl.String),
        person="nconst",
        place=pl.col("ordering").cast(pl.Int32, strict=False),
        source=pl.lit(1, pl.Int8),
    ).drop_nulls(["relation", "person"])


def _names(folder: Path, people: pl.Series) -> pl.DataFrame:
    wanted = pl.col("nconst").is_in(people.implode())
    rows = _read(folder, "name.basics", ("nconst", "primaryName"), lambda scan: scan.filter(wanted))
    named = rows.unique("nconst", keep="first", maintain_order=True)
    return named.select(person="nconst", name=pl.col("primaryName").str.strip_chars().replace("", None))


def _of_titles(scan: pl.LazyFrame, titles: pl.DataFrame) -> pl.LazyFrame:
    # several movie ids may share one IMDb id, so this is a join and not a filter
    return scan.join(titles.lazy(), left_on="tconst", right_on="imdb_id")


def _read(
    folder: Path, table: str, columns: tuple[str, ...], choose: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> pl.DataFrame:
    """Columns of a dump, all strings, and of its rows those that ``choose`` leaves; the rest is never held."""
    path = folder / f"{table}.tsv.gz"
    if not path.is_file():
        raise InputError(f"{folder} has no {path.name}; put IMDb's {path.name} there")
    scan = pl.scan_csv(path, separator="\t", quote_char=None, infer_schema=False, null_values="\\N")
    try:
        missing = [name for name in columns if name not in scan.collect_schema()]
        if missing:
            raise InputError(f"{path} has no column {missing[0]!r}; expected IMDb's {', '.join(columns)}")
        return choose(scan.select(columns)).collect(engine="streaming")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path} cannot be read ({_first_line(error)}); fetch it again") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _facts(credits: pl.DataFrame, found: pl.DataFrame, titles: pl.DataFrame, num_links: int) -> Facts:
    people = credits.unique("person")
    coverage = {
        relation: found.filter(pl.col("relation") == relation)["movie_id"].n_unique() / max(num_links, 1)
        for relation in RELATIONS
    }
    with_credit = found["movie_id"].n_unique()
    return {
        "linked_films": titles.height,
        "films_with_credits": with_credit,
        "films_without_credits": num_links - with_credit,
        "credits_before_caps": found.height,
        "credits": credits.height,
        "credit_people": people.height,
        "credit_people_without_name": people["name"].null_count(),
        "credit_coverage_before_caps": coverage,
    }
