"""Benchmark of the search for similar users: recall and hint quality of the inverted file against the exact search.

    python benchmarks/similar_users.py --work FOLDER   # of generate_200k.py, made first where it is missing

Queries are the test queries of the first two buckets of the split; the users searched are those of an eighth, a
quarter, a half and all of the buckets. Recall: share of the 20 nearest users by the exact search that are found. Films:
share of the exact search's five films that are suggested too. Hits: share of queries whose answer is among the five
films. A pool, the first users in the order of ties, is searched exactly for comparison. CPU seconds are of one thread.
The vectors are made up (``generate_world.py``): nearly all directions have the same variance, which is hard for
clusters. Results go to benchmarks/similar_users.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import torch
import typer
from generate_200k import CONFIG, SIZES, prepare

from tripletune.models.lightgcn.serve import load_lightgcn
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.histories import (
    find_answers,
    find_history,
    find_questions,
    find_seen,
    number_histories,
    read_fit_likes,
    read_rows,
)
from tripletune.retrieve.similar import Neighbours
from tripletune.schemas.query import QUERY_KEY
from tripletune.store.shards import split_files

BUCKETS = 2
POOL = 25_000
NEAREST, FILMS = CONFIG.retrieve.similar_viewers, CONFIG.retrieve.similar_films
REPORT = Path(__file__).with_name("similar_users.md")
COLUMNS = "| users | search | building, CPU s | search, CPU s per 1,000 queries | recall | films | hits | difference |"


def measure(work: Path, size: int) -> list[str]:
    """Rows of the table for some buckets' users."""
    folder = work / f"first-{size}" / "lightgcn"
    fit, likes = load_lightgcn(folder, CONFIG.seed, ("b",))["b"], read_fit_likes(folder, "b")
    files = list(split_files(work / f"first-{size}" / "split").values())[:BUCKETS]
    rows = read_rows(files).collect()
    asked = find_questions(rows).filter(pl.col("purpose") == "test").sort(QUERY_KEY)
    answers = asked.join(find_answers(rows, asked), on=QUERY_KEY, how="left", maintain_order="left")["movie_id"]
    _, histories = number_histories(asked, find_history(rows, asked), find_seen(rows, asked), fit)
    answer_U, users_U = fit.catalogue.columns(answers.to_numpy()), asked["user_id"].to_numpy().astype(np.int64)
    exact, build_seconds = _timed(lambda: Neighbours.build(fit, likes, CONFIG.seed))
    clustered, clustered_seconds = _timed(lambda: Neighbours.build(fit, likes, CONFIG.seed, exact_users=0))
    searches = {
        "exact": (exact, build_seconds),
        "inverted file": (clustered, clustered_seconds),
        f"pool of {POOL:,}": (_pool(exact), build_seconds),
    }
    lines, near_UK, films_UF, hit_U = [], np.empty(0), np.empty(0), np.empty(0)
    for name, (neighbours, building) in searches.items():
        (found_UK, _), seconds = _timed(lambda: neighbours.nearest(histories.lightgcn_UD, users_U, NEAREST))  # noqa: B023
        suggested_UF = neighbours.films(histories.lightgcn_UD, users_U, histories.seen, NEAREST, FILMS)
        hits_U = (suggested_UF == answer_U[:, None]).any(axis=1).astype(float)
        if name == "exact":
            near_UK, films_UF, hit_U = found_UK, suggested_UF, hits_U
        change_U = hits_U - hit_U
        lines.append(
            f"| {len(exact.users_V):,} | {name} | {building:.1f} | {1000 * seconds / len(users_U):.2f} "
            f"| {_share(near_UK, found_UK):.3f} | {_share(films_UF, suggested_UF):.3f} | {hits_U.mean():.4f} "
            f"| {change_U.mean():+.4f} ± {change_U.std() / len(change_U) ** 0.5:.4f} |"
        )
    return lines


def _timed(make: Callable[[], Neighbours]) -> tuple[Neighbours, float]:
    start = time.process_time()
    made = make()
    return made, time.process_time() - start


def _pool(exact: Neighbours) -> Neighbours:
    """The first users alone; the others are out of every query's reach, and keep their place for likes."""
    unit_VD = exact.unit_VD.clone()
    unit_VD[POOL:] = 0  # no similarity, so no vote
    return dataclasses.replace(exact, unit_VD=unit_VD)


def _share(want_UK: Ints, found_UK: Ints) -> float:
    both_U = [
        len(set(want) & set(found) - {-1}) / max(1, len(set(want) - {-1}))
        for want, found in zip(want_UK.tolist(), found_UK.tolist(), strict=True)
    ]
    return float(np.mean(both_U))


def main(
    work: Annotated[Path, typer.Option(help="Folder of generate_200k.py.")],
    release: Annotated[str, typer.Option(help="A MovieLens release; empty: synthetic ml-32m.")] = "",
) -> None:
    """Measure, and write benchmarks/similar_users.md."""
    torch.set_num_threads(1)
    prepare(work, release)
    lines = [line for size in SIZES for line in measure(work, size)]
    head = ["# Similar users: the inverted file against the exact search", ""]
    told = [
        "What is measured and how: the head of `similar_users.py`. The machine was shared with other processes.",
        "",
    ]
    table = [COLUMNS, "|--:|---|--:|--:|--:|--:|--:|--:|", *lines, ""]
    REPORT.write_text("\n".join([*head, *told, *table]), encoding="utf-8")
    print(REPORT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    typer.run(main)
