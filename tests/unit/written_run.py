"""A small run as the stages write it, clean by construction; tests of audits, evaluate and report use copies of it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tripletune.schemas.base import conform
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.ingest import MOVIES, USERS
from tripletune.schemas.rank import PREDICTIONS
from tripletune.schemas.retrieve import CHOICES, RANKINGS, REQUERIED
from tripletune.schemas.rgat import ATTENTION
from tripletune.schemas.split import SPLIT
from tripletune.schemas.training import CURVE, TRAINED_ON
from tripletune.store.catalogue import write_catalogue

NUM_VIEWERS, NUM_FILMS, NUM_RATED = 24, 60, 14
UNSEEN = (5, 17)
GENRES = ("Drama", "Comedy", "Action", "Horror")
CUTOFF = {"train": 10, "valid": 12, "test": 13}
DISLIKED = (1, 4)
"""Positions that hold a dislike; positions 10 and 11 are target, 12 valid, 13 test, the others graph. With ``held_out``
likes the first that many from 12 on are valid, and as many after these test."""


@dataclass(frozen=True)
class Run:
    """Folders by stage, and what the files were made from."""

    root: Path
    order: dict[int, list[int]]
    """By user all films: the rated ones in order of time, then the rest."""
    held_out: int = 1
    """Valid likes of each user, and test likes."""

    def copy_to(self, root: Path) -> Run:
        """The same files elsewhere, to be damaged; without what evaluate wrote."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("evaluate"))
        return replace(self, root=root)

    @property
    def num_rated(self) -> int:
        return NUM_RATED - 2 + 2 * self.held_out

    def cutoffs(self, purpose: str) -> range:
        first = {"train": 10, "valid": 12, "test": 12 + self.held_out}[purpose]
        return range(first, first + (1 if purpose == "train" else self.held_out))

    def label(self, position: int) -> str:
        if position in DISLIKED:
            return "other"
        for purpose, name in (("test", "test"), ("valid", "valid"), ("train", "target")):
            if position >= self.cutoffs(purpose)[0]:
                return name
        return "graph"

    @property
    def specialists(self) -> dict[str, Path]:
        return {"rgat": self.root / "rgat", "lightgcn": self.root / "lightgcn"}

    def __getattr__(self, stage: str) -> Path:
        return self.root / stage


def title(film: int) -> str:
    return f"Film {film} ({1950 + film})"


def write_run(
    root: Path, *, num_viewers: int = NUM_VIEWERS, unseen: tuple[int, ...] = UNSEEN, held_out: int = 1
) -> Run:
    rng = np.random.default_rng(7)
    order = {user: (rng.permutation(NUM_FILMS) + 1).tolist() for user in range(1, num_viewers + 1)}
    run = Run(root, order, held_out)
    _write_ingest(run)
    _write_split(run, unseen)
    _write_fits(run, unseen)
    examples = [
        example(run, user, purpose, cutoff, unseen)
        for user in order
        for purpose in CUTOFF
        for cutoff in run.cutoffs(purpose)
    ]
    for purpose in CUTOFF:
        rows = [row for row in examples if row["purpose"] == purpose and not (purpose == "train" and row["unseen"])]
        for shard in (0, 1):
            write(
                run.generate / purpose / f"shard-00{shard}.parquet",
                [r for r in rows if r["user_id"] % 2 == shard],
                EXAMPLES,
            )
    held_out = [row for row in examples if row["purpose"] != "train"]
    _write_retrieve(run, held_out, rng)
    _write_rank(run, held_out, rng)
    curve = [
        {"step": step, "metric": name, "value": 3.0 / step}
        for step in (1, 2, 3)
        for name in ("loss", "eval_loss", "eval_ndcg")
    ]
    write(run.finetune / "curve.parquet", curve, {"step": pl.Int32, "metric": pl.String, "value": pl.Float64})
    return run


def write(path: Path, rows: list[dict[str, Any]], schema: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=schema).write_parquet(path)


def rewrite(path: Path, change: Any) -> None:
    """Replace a file's rows, as dicts, by ``change`` of them."""
    frame = pl.read_parquet(path, hive_partitioning=False)
    rows = frame.to_dicts()
    rows = change(rows) or rows
    conform(pl.DataFrame(rows, schema=frame.schema), frame.schema).write_parquet(path)


def _write_ingest(run: Run) -> None:
    films = [
        {"movie_id": film, "title": title(film), "year": 1950 + film, "genres": [GENRES[film % 4], GENRES[film % 3]]}
        for film in range(1, NUM_FILMS + 1)
    ]
    films = [{**film, "genres": list(dict.fromkeys(film["genres"]))} for film in films]
    write(run.ingest / "movies.parquet", films, MOVIES)
    write(run.ingest / "users.parquet", [], USERS)


def _write_split(run: Run, unseen: tuple[int, ...]) -> None:
    rows = [
        {
            "user_id": user,
            "movie_id": film,
            "rating": 1.5 if position in DISLIKED else 4.5,
            "timestamp": 1000 + position,
            "position": position,
            "label": run.label(position),
            "unseen": user in unseen,
        }
        for user, films in run.order.items()
        for position, film in enumerate(films[: run.num_rated])
    ]
    for shard in (0, 1):
        write(run.split / f"shard=00{shard}" / "part.parquet", [r for r in rows if r["user_id"] % 2 == shard], SPLIT)
    write_catalogue(run.split, range(1, NUM_FILMS + 1))


def _write_fits(run: Run, unseen: tuple[int, ...]) -> None:
    allowed = {"a": ("graph",), "b": ("graph", "target")}
    trained = [
        {"user_id": user, "movie_id": film, "fit": fit}
        for fit, labels in allowed.items()
        for user, films in run.order.items()
        for position, film in enumerate(films[: run.num_rated])
        if user not in unseen and run.label(position) in labels
    ]
    curve = [
        {
            "fit": fit,
            "step": step,
            "loss": 2.0 / step,
            "valid_ndcg_at_10": 0.1 * step if fit == "b" else None,
        }
        for fit in "ab"
        for step in (10, 20)
    ]
    for stage in ("rgat", "lightgcn"):
        write(run.root / stage / "trained_on.parquet", trained, TRAINED_ON)
        write(run.root / stage / "curve.parquet", curve, CURVE)
    write(
        run.lightgcn / "movies.parquet",
        [{"movie_id": film} for film in range(1, NUM_FILMS + 1)],
        {"movie_id": pl.Int32},
    )
    attention = [
        {"fit": fit, "movie_id": film, "relation": relation, "entity": f"{relation}:{film % 5}", "alpha": alpha}
        for fit in "ab"
        for film in range(1, NUM_FILMS + 1)
        for relation, alpha in (("genre", 0.35), ("director", 0.65))
    ]
    write(run.rgat / "attention.parquet", attention, ATTENTION)


def example(run: Run, user: int, purpose: str, cutoff: int, unseen: tuple[int, ...]) -> dict[str, Any]:
    films = run.order[user]
    likes = [film for position, film in enumerate(films[:cutoff]) if position not in DISLIKED]
    later = films[10:12] if purpose == "train" else [films[cutoff]]
    # every third user's held-out film is not among the candidates
    found = later if purpose == "train" or user % 3 else []
    candidates = [*films[20 : 40 - len(found)], *found]
    candidates = candidates[user % 7 :] + candidates[: user % 7]
    retrieved = sorted(candidates)
    row: dict[str, Any] = {
        "example_id": f"{user}:{purpose}" + (f":{cutoff}" if purpose == "train" or run.held_out > 1 else ""),
        "user_id": user,
        "purpose": purpose,
        "unseen": user in unseen,
        "cutoff": cutoff,
        "answers": later,
        "answer_ratings": [4.5] * len(later),
        "candidates": candidates,
        "candidate_titles": [title(film) for film in candidates],
        "retrieved": retrieved,
        "liked": likes[::-1],
        "disliked": [films[position] for position in DISLIKED][::-1],
        "ranking": retrieved[9::-1],
        "similar": _liked_by_others(run, user, unseen)[:3],
        "triples": [
            {"movie_id": film, "relation": "genre", "entity": f"genre:{film % 5}", "entity_name": f"Genre {film % 5}"}
            for film in (*candidates, *likes[:2])
        ],
        "topics": [],
        "template_id": "hints-first",
        "template_sha256": "0" * 64,
        "lightgcn": "1" * 32,
        "rgat": "2" * 32,
    }
    return with_text(row)


def with_text(row: dict[str, Any]) -> dict[str, Any]:
    """Render prompt and completion from the columns."""

    def listed(films: list[int]) -> str:
        return "\n".join(f"- {title(film)}" for film in films) or "- none"

    facts = "\n".join(f"- {title(t['movie_id'])} - {t['relation']} - {t['entity_name']}" for t in row["triples"])
    parts = [f"{name}:\n{listed(row[name])}" for name in ("liked", "disliked", "ranking", "similar")]
    text = "\n\n".join([*parts, f"facts:\n{facts}", f"Which of these?\n{listed(row['candidates'])}"])
    row["prompt"] = [{"role": "system", "content": "You recommend films."}, {"role": "user", "content": text}]
    answers = [film for film in row["answers"] if film in row["candidates"]]
    picks = list(dict.fromkeys([*answers, *row["ranking"], *row["candidates"]]))[:5]
    answer = "\n".join(f"{number}. {title(film)}" for number, film in enumerate(picks, 1))
    row["completion"] = [{"role": "assistant", "content": answer}]
    return row


def _liked_by_others(run: Run, user: int, unseen: tuple[int, ...]) -> list[int]:
    liked = {
        film
        for other, films in run.order.items()
        if other not in unseen
        for position, film in enumerate(films[: run.num_rated])
        if run.label(position) == "graph"
    }
    return sorted(liked - set(run.order[user][: run.num_rated]))


def _write_retrieve(run: Run, held_out: list[dict[str, Any]], rng: np.random.Generator) -> None:
    rankings = [
        {
            "user_id": row["user_id"],
            "purpose": row["purpose"],
            "cutoff": row["cutoff"],
            "unseen": row["unseen"],
            "retriever": retriever,
            "answer": row["answers"][0],
            "top": (rng.permutation(NUM_FILMS) + 1)[:20].tolist(),
        }
        for retriever in ("lightgcn", "popularity", "rgat")
        for row in held_out
    ]
    write(run.retrieve / "rankings.parquet", rankings, RANKINGS)
    rank_by_popularity(run)
    choices = [
        {
            "user_id": row["user_id"],
            "purpose": row["purpose"],
            "cutoff": row["cutoff"],
            "movie_id": film,
            "rank": 0,
            "relation": "director",
            "entity": "person:nm1",
            "entity_name": "A Director",
            "score": 0.5,
            "propensity": 1.0,
        }
        for row in held_out
        for film in row["candidates"]
    ]
    write(run.retrieve / "choices" / "shard-000.parquet", choices, CHOICES)


def rank_by_popularity(run: Run) -> None:
    """Order the popularity lists by the likes that LightGCN's fit b was trained on, and copy a sample of all lists."""
    learned = pl.read_parquet(run.lightgcn / "trained_on.parquet").filter(fit="b")["movie_id"].to_list()
    popular = sorted(range(1, NUM_FILMS + 1), key=lambda film: -learned.count(film))

    def put_in(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            if row["retriever"] == "popularity":
                rated = run.order[row["user_id"]][: row["cutoff"]]
                row["top"] = [film for film in popular if film not in rated][:20]

    rewrite(run.retrieve / "rankings.parquet", put_in)
    some = pl.read_parquet(run.retrieve / "rankings.parquet").filter(pl.col("user_id") < 9)
    again = [{**row, "change": change} for row in some.to_dicts() for change in ("time", "ratings")]
    write(run.retrieve / "requeried.parquet", [{name: row[name] for name in REQUERIED} for row in again], REQUERIED)


def _write_rank(run: Run, held_out: list[dict[str, Any]], rng: np.random.Generator) -> None:
    predictions = []
    for row in held_out:
        for system, constrained in (
            *((name, True) for name in ("random", "retriever", "untuned", "tuned")),
            *((name, False) for name in ("untuned", "tuned") if row["user_id"] <= 6),
        ):
            films = rng.permutation(row["candidates"])[:5].tolist()
            if system == "tuned" and row["answers"][0] in row["candidates"]:
                films = [row["answers"][0], *(film for film in films if film != row["answers"][0])][:5]
            predictions.append(
                {
                    "user_id": row["user_id"],
                    "purpose": row["purpose"],
                    "cutoff": row["cutoff"],
                    "system": system,
                    "constrained": constrained,
                    "answers": films,
                    "valid": constrained or row["user_id"] % 2 == 0,
                    "text": "\n".join(f"{number}. {title(film)}" for number, film in enumerate(films, 1)),
                }
            )
    write(run.rank / "predictions.parquet", predictions, PREDICTIONS)
