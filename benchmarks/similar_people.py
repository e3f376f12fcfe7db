"""Benchmark of ``retrieve.similar_people``: hit rate of hint 1's similar users' films, and its gap between groups.

    python benchmarks/similar_people.py --config RUN.toml --artifacts FOLDER   # ingest, split and lightgcn are finished

A hit: an answer (train: any of the ``target`` likes; valid, test: the one) is among the films that similar users liked.
Gap: hit rate of the best group by gender or age (those of MovieLens 1M, at least 50 queries) minus the worst one's.
Several configs with different seeds give the spread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer

from tripletune.config.presets import load_config
from tripletune.models.lightgcn.serve import load_lightgcn
from tripletune.pipeline.resolve import resolve
from tripletune.retrieve.histories import (
    find_answers,
    find_history,
    find_questions,
    find_seen,
    number_histories,
    read_fit_likes,
    read_rows,
)
from tripletune.retrieve.people import People
from tripletune.retrieve.similar import Neighbours
from tripletune.schemas.ages import AGE_GROUP
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.store.shards import split_files

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
LEAST = 50
"""Queries of a group, at least."""


def hits(path: Path, artifacts: Path) -> pl.DataFrame:
    """A row per query and weight: ``purpose, weight, seed, gender, age_group, hit``."""
    config = load_config(path)
    paths, settings, found = resolve(config, artifacts), config.retrieve, []
    ingest, folder = paths.require("ingest"), paths.require("lightgcn")
    rows = read_rows(list(split_files(paths.require("split")).values())).collect()
    queries = find_questions(rows)
    users = pl.read_parquet(ingest / "users.parquet")
    users = users.select("user_id", "gender", AGE_GROUP)
    fits = load_lightgcn(folder, config.seed)
    for purpose, name in FIT_OF.items():
        asked = queries.filter(pl.col("purpose") == purpose).sort(QUERY_KEY)
        _, histories = number_histories(asked, find_history(rows, asked), find_seen(rows, asked), fits[name])
        users_U = asked["user_id"].to_numpy().astype(np.int64)
        answers = find_answers(rows, asked).select(*QUERY_KEY, "movie_id")
        for weight in WEIGHTS:
            people = People.read(ingest, weight) if weight else None
            near = Neighbours.build(fits[name], read_fit_likes(folder, name), config.seed, people=people)
            films_UF = near.films(
                histories.lightgcn_UD, users_U, histories.seen, settings.similar_viewers, settings.similar_films
            )
            shown = asked.with_columns(movie_id=pl.Series(fits[name].catalogue.movie_ids(films_UF).tolist()))
            hit = shown.explode("movie_id").cast({"movie_id": pl.Int32}).join(answers, on=[*QUERY_KEY, "movie_id"])
            keys = hit.select(*QUERY_KEY, hit=pl.lit(1.0)).unique()
            whole = asked.join(keys, on=QUERY_KEY, how="left").with_columns(pl.col("hit").fill_null(0.0))
            whole = whole.join(users, on="user_id", how="left").with_columns(weight=weight, seed=config.seed)
            found.append(whole.select("purpose", "weight", "seed", "user_id", "gender", "age_group", "hit"))
    return pl.concat(found)


def gap(hits_Q: pl.DataFrame, group: str) -> float:
    """Best minus worst hit rate among the groups with enough queries."""
    by_group = hits_Q.group_by(group).agg(pl.col("hit").mean(), pl.len()).filter(pl.col("len") >= LEAST)["hit"]
    return float(by_group.max() - by_group.min())  # type: ignore[operator]


def main(
    config: Annotated[list[Path], typer.Option(help="Config of a run; repeat it for further seeds.")],
    artifacts: Annotated[Path, typer.Option(help="Where the runs' outputs are.")],
) -> None:
    """Measure, and print a table in Markdown."""
    found = pl.concat(hits(path, artifacts) for path in config)
    print("| purpose | weight | queries | hit rate | change | gap by gender | gap by age |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for (purpose, weight), mine in found.group_by("purpose", "weight", maintain_order=True):
        plain = found.filter(pl.col("purpose") == purpose, pl.col("weight") == 0.0)
        key = ["seed", "user_id"]
        change = (mine.sort(key)["hit"] - plain.sort(key)["hit"]).to_numpy()
        by_user = pl.DataFrame({"user_id": mine.sort(key)["user_id"], "change": change})
        mean_U = by_user.group_by("user_id").agg(pl.col("change").mean())["change"].to_numpy()  # seeds share users
        error = mean_U.std() / np.sqrt(len(mean_U))
        gaps = [gap(mine, group) for group in ("gender", "age_group")]
        print(
            f"| {purpose} | {weight} | {len(mine):,} | {mine['hit'].mean():.4f} | {change.mean():+.4f} ± {error:.4f} "
            f"| {gaps[0]:.3f} | {gaps[1]:.3f} |"
        )


if __name__ == "__main__":
    typer.run(main)
