"""Give a run two further sources, facts and ratings, without code: ``python -m docs.example_source``."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from docs.checkout import TINY, Checkout, with_example

SOURCES = """
[source]
movielens = "release"
extra_triples = ["awards.tsv"]
[source.feed]
ratings = ["feed/*.csv"]
columns = { user_id = "who", movie_id = "film", rating = "stars", timestamp = "rated_at" }
"""


def main() -> str:
    """Coverage of the relations with the new one among them, and where the ratings came from."""
    with with_example("source") as checkout:
        settings = TINY.replace("[rgat]", SOURCES + "[rgat]").replace("[synthetic]\nviewers = 120\nmovies = 100\n", "")
        write_sources(checkout)
        ingest = checkout.tripletune("ingest", settings=settings)
        knowledge = checkout.tripletune("knowledge", settings=settings)
        coverage = pl.read_parquet(Path(checkout.folder, knowledge.strip().splitlines()[-1]) / "coverage.parquet")
        return "\n".join([ingest, knowledge, str(coverage.filter(pl.col("relation") == "award"))])


def write_sources(checkout: Checkout) -> None:
    """A MovieLens release, its ratings under other names as a feed, and a file of ``head relation tail``."""
    made = Path(checkout.folder, checkout.tripletune("ingest").strip().splitlines()[-1])
    (made / "release").rename(checkout.folder / "release")
    names = {"user_id": "who", "movie_id": "film", "rating": "stars", "timestamp": "rated_at"}
    ratings = pl.read_parquet(made / "ratings.parquet").rename(names)
    (checkout.folder / "feed").mkdir()
    ratings.write_csv(checkout.folder / "feed" / "2026-11.csv")
    best = ratings.group_by("film").agg(pl.col("stars").mean(), pl.len()).filter(pl.col("len") >= 20).sort("film")
    rows = [f"{film}\taward\tAudience award" for film, stars, _ in best.iter_rows() if stars >= 3.5]
    (checkout.folder / "awards.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(main())
