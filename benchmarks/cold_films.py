"""Films that nobody had rated: how often does each list hold those that a user goes on to like?

    python benchmarks/cold_films.py --movielens FOLDER [--imdb FOLDER] [--years 2004 2006 ...] [--out cold_films.md]

For each year the release is split by global time: everything before 1 July of the year before is trained on, the first
like from 1 January on is a user's query, and the answers are the films liked from there on that had no rating at all
before the first day. Every list ranks the whole catalogue without the films that the user had rated. Users of all
years are pooled: few people of one year come back. recall@20 is the share of a user's answers (of 20, where there are
more) among the first 20 films, averaged over users; intervals are 95 % percentile bootstraps over users. ``fused``
gives SLIST, the sequence model and the text list equal weights.
"""

from __future__ import annotations

import argparse
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl

from tripletune.config.presets import parse_config
from tripletune.models.lightgcn.serve import load_lightgcn
from tripletune.models.serving.retriever import Serving
from tripletune.pipeline.registry import BY_NAME
from tripletune.pipeline.resolve import resolve
from tripletune.retrieve.first_stage import load_first_stages
from tripletune.retrieve.histories import find_history, find_questions, find_seen, number_histories, read_rows
from tripletune.retrieve.rankings import rank_by_popularity
from tripletune.schemas.query import QUERY_KEY
from tripletune.store.shards import split_files

YEARS = (2004, 2007, 2010, 2013, 2016, 2018)
TOP, SEED, DRAWS = 20, 7, 10_000
LISTS = ("lightgcn", "ease", "slist", "sequence", "text", "fused")


def main() -> None:
    """Measure all years, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--movielens", type=Path, required=True, help="folder of a MovieLens release")
    parser.add_argument("--imdb", type=Path, help="folder of IMDb dumps, for credits")
    parser.add_argument("--years", type=int, nargs="+", default=YEARS)
    parser.add_argument("--artifacts", type=Path, help="keep the models here")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = given.artifacts or Path(scratch)
        found = []
        for year in given.years:
            found.append(measure(given.movielens, given.imdb, year, artifacts))
            print(found[-1].group_by("list", maintain_order=True).agg(pl.len(), pl.col("recall").mean()), flush=True)
    users = pl.concat(found)
    text = report(users, given.years)
    print(text)
    given.out.write_text(text, encoding="utf-8")


def measure(movielens: Path, imdb: Path | None, year: int, artifacts: Path) -> pl.DataFrame:
    """Train on one year's past: columns ``year``, ``list``, ``user_id``, ``answers``, ``recall``, ``cold_share``."""
    config = parse_config(
        {
            "dataset": f"cold-{year}",
            "seed": SEED,
            "source": {"movielens": str(movielens), "imdb": str(imdb or "")},
            "split": {
                "protocol": "global_time",
                "valid_from": date(year - 1, 7, 1),
                "test_from": date(year, 1, 1),
                "unseen_share": 0.0,
            },
            "retrieve": {"fusion": "fixed", "fused_text": 1.0},
        },
        where=f"year {year}",
    )
    paths = resolve(config, artifacts)
    folders = {
        name: BY_NAME[name].run(paths, config)
        for name in ("ingest", "split", "knowledge", "text", "lightgcn", "ease", "sequence", "slist")
    }
    lightgcn = load_lightgcn(folders["lightgcn"], SEED, ("b",))
    fit = lightgcn["b"]
    serving = Serving(catalogue=fit.catalogue, lightgcn=lightgcn, seed=SEED, settings=config.retrieve)
    stage = load_first_stages(folders, serving)["b"]
    rows = read_rows(list(split_files(folders["split"]).values())).collect().sort("user_id", "position")
    start = int(np.datetime64(f"{year - 1}-07-01", "s").astype(np.int64))
    known = rows.filter(pl.col("timestamp") < start)["movie_id"].unique()
    queries = find_questions(rows).filter(pl.col("purpose") == "test").sort(QUERY_KEY)
    cold = (
        rows.join(queries.select("user_id", "cutoff"), on="user_id")
        .filter(pl.col("position") >= pl.col("cutoff"), pl.col("label") != "other")
        .filter(~pl.col("movie_id").is_in(known.implode()))
        .group_by("user_id")
        .agg("movie_id")
    )
    queries = queries.join(cold.select("user_id"), on="user_id", how="semi", maintain_order="left")
    _, histories = number_histories(queries, find_history(rows, queries), find_seen(rows, queries), fit)
    lists = stage.ask(histories)
    counts_M = np.zeros(len(fit.catalogue))
    likes = rows.filter(pl.col("label").is_in(["graph", "target"]))["movie_id"]
    np.add.at(counts_M, fit.catalogue.columns(likes.to_numpy()), 1)
    tops = {"popularity": rank_by_popularity(counts_M, histories.seen, len(queries))[:, :TOP]}
    tops |= {name: lists.top(name, TOP) for name in LISTS}
    answers = dict(cold.iter_rows())
    known_ids, parts = set(known.to_list()), []
    for name, top_UK in tops.items():
        ids = [row[row >= 0].tolist() for row in fit.catalogue.movie_ids(top_UK)]
        for user, ranked in zip(queries["user_id"].to_list(), ids, strict=True):
            wanted = answers[user]
            hits = len(set(ranked) & set(wanted)) / min(TOP, len(wanted))
            share = np.mean([film not in known_ids for film in ranked]) if ranked else 0.0
            parts.append((year, name, user, len(wanted), hits, float(share)))
    columns = ["year", "list", "user_id", "answers", "recall", "cold_share"]
    return pl.DataFrame(parts, schema=columns, orient="row")


def report(users: pl.DataFrame, years: list[int]) -> str:
    """The table as Markdown."""
    lines = [
        "# Films that nobody had rated",
        "",
        "What is measured and how: the head of `cold_films.py`.",
        "",
        f"Years {', '.join(map(str, years))}; {users.filter(pl.col('list') == 'popularity').height} users, "
        f"{users.filter(pl.col('list') == 'popularity')['answers'].sum():,} answers; one seed.",
        "",
        f"| list | recall@{TOP} | 95 % | users with a hit | share of the list that nobody had rated |",
        "|---|--:|--:|--:|--:|",
    ]
    for name in users["list"].unique(maintain_order=True):
        of_list = users.filter(pl.col("list") == name)
        recall_U = of_list["recall"].to_numpy()
        draw = np.random.default_rng(0).integers(0, len(recall_U), (DRAWS, len(recall_U)))
        low, high = np.quantile(recall_U[draw].mean(axis=1), [0.025, 0.975])
        lines.append(
            f"| {name} | {recall_U.mean():.4f} | {low:.4f} to {high:.4f} | {(recall_U > 0).sum()} | "
            f"{of_list['cold_share'].mean():.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
