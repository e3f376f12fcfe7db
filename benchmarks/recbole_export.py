"""Export the split for other libraries, with our queries: same rows for training, same answers, same mask.

``write_job`` fills a folder for ``recbole_side.py`` and ``rectools_side.py``:

- ``likes/likes.{train,valid,test}.inter``: the rows of fit B, and one like per evaluated user, or
- ``sequences/sequences.{train,valid,test}.inter``: the same for RecBole's sequence models, with every prefix of a
  user's likes as a training row, as RecBole makes them itself when it does the splitting, and
  ``windows/windows.{train,valid,test}.inter`` for BERT4Rec, whose training rows are stretches of a user's likes, each
  like in one of them; and
- ``questions.npz``: the training rows with their times, the evaluated users, the masked films (all rated before the
  cutoff) and the order of ties.

Unseen users are in no training row. Their queries are exported for sequence models alone: a model with a table of users
cannot rank for them.
"""

# Shape letters in this file: E likes, U queries, M films
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.models.serving.catalogue import Catalogue
from tripletune.models.training.interactions import Interactions, read_interactions
from tripletune.retrieve.histories import find_answers, find_questions, find_seen, read_rows
from tripletune.store.shards import split_files

Ints = npt.NDArray[np.int64]
MAX_SEQUENCE = 50
"""RecBole's own default of MAX_ITEM_LIST_LENGTH; older likes are cut off."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The queries of one purpose, sorted by user; every frame but the first has ``user_id`` and ``movie_id``."""

    users: pl.DataFrame
    """Columns ``user_id, row``."""
    answers: pl.DataFrame
    """One row per user, in the same order, with ``timestamp``."""
    seen: pl.DataFrame
    """With ``row``, ascending: what the mask takes out."""
    history: pl.DataFrame
    """With ``row``, ``timestamp`` and ``age``: likes before the cutoff, oldest first."""


def read_only_users(split: Path, purpose: str, *, unseen: bool = False) -> Asked:
    """The queries of ``purpose`` ("valid" or "test"), by the functions that retrieve reads the split with.

    Args:
        split: output of the split stage.
        purpose: see above.
        unseen: also those of unseen users.
    """
    rows = read_rows(list(split_files(split).values())).collect()
    queries = find_questions(rows).filter(pl.col("purpose") == purpose, unseen | ~pl.col("unseen"))
    users = queries.select("user_id").sort("user_id").with_row_index("row")
    first = find_answers(rows, queries).unique("user_id", keep="first", maintain_order=True)
    times = rows.select("user_id", "movie_id", "timestamp")
    answers = users.join(first, on="user_id", maintain_order="left").join(
        times, on=["user_id", "movie_id"], maintain_order="left"
    )
    seen = find_seen(rows, queries).join(users, on="user_id", maintain_order="left").sort("row", maintain_order=True)
    age = pl.len().over("row") - pl.int_range(pl.len()).over("row") - 1
    history = seen.filter("like").select("user_id", "movie_id", "row", "timestamp", age=age)
    answers = answers.select("user_id", "movie_id", "timestamp")
    return Asked(users, answers, seen.select("user_id", "movie_id", "row").sort("row", "movie_id"), history)


def write_job(split: Path, job: Path, seed: int, *, sequences: bool) -> None:
    """Write the folder that the other side reads.

    Args:
        split: output of the split stage.
        job: created if need be.
        seed: of the run, for the order of ties.
        sequences: the (large) files for sequence models and the queries of unseen users, in place of those for models
            with a table of users.
    """
    interactions = read_interactions(split)
    asked = {purpose: read_only_users(split, purpose, unseen=sequences) for purpose in ("valid", "test")}
    likes = training_likes(interactions)
    if not sequences:
        parts = {"train": likes} | {purpose: queries.answers for purpose, queries in asked.items()}
        for name, frame in parts.items():
            _write(job / "likes" / f"likes.{name}.inter", frame.select("user_id", "movie_id"), ())
    else:
        _write(job / "sequences" / "sequences.train.inter", prefixes(likes), ("item_id_list",))
        _write(job / "windows" / "windows.train.inter", windows(likes), ("item_id_list",))
        for purpose, queries in asked.items():
            before = queries.history.group_by("user_id", maintain_order=True).agg(
                item_id_list=pl.col("movie_id").tail(MAX_SEQUENCE)
            )
            last = queries.answers.join(before, on="user_id", maintain_order="left")
            for folder in ("sequences", "windows"):
                _write(job / folder / f"{folder}.{purpose}.inter", last, ("item_id_list",))
    times = read_rows(list(split_files(split).values())).select("user_id", "movie_id", "timestamp").collect()
    timed = likes.join(times, on=["user_id", "movie_id"], maintain_order="left")
    arrays: dict[str, Ints] = {
        "film_ids": Catalogue(interactions.movie_ids_M, seed).ids_M,
        "train_user": timed["user_id"].to_numpy(),
        "train_movie": timed["movie_id"].to_numpy(),
        "train_time": timed["timestamp"].to_numpy(),
    }
    for purpose, queries in asked.items():
        arrays |= {
            f"{purpose}_user": queries.users["user_id"].to_numpy(),
            f"{purpose}_answer": queries.answers["movie_id"].to_numpy(),
            f"{purpose}_answer_time": queries.answers["timestamp"].to_numpy(),
            f"{purpose}_seen_row": queries.seen["row"].to_numpy(),
            f"{purpose}_seen_movie": queries.seen["movie_id"].to_numpy(),
            f"{purpose}_history_row": queries.history["row"].to_numpy(),
            f"{purpose}_history_movie": queries.history["movie_id"].to_numpy(),
            f"{purpose}_history_time": queries.history["timestamp"].to_numpy(),
        }
    np.savez(job / "questions.npz", allow_pickle=False, **{name: ids.astype(np.int64) for name, ids in arrays.items()})


def training_likes(interactions: Interactions) -> pl.DataFrame:
    """Fit B's rows: ``user_id, movie_id``, each user's oldest first."""
    likes = interactions.fits["b"]
    return pl.DataFrame(
        {
            "user_id": likes.user_ids_U[likes.user_E.numpy()],
            "movie_id": interactions.movie_ids_M[likes.movie_E.numpy()],
        }
    )


def prefixes(likes: pl.DataFrame) -> pl.DataFrame:
    """Every like but a user's first, with the up to 50 likes before it: ``user_id, movie_id, item_id_list``."""
    numbered = likes.with_columns(place=pl.int_range(pl.len()).over("user_id")).with_row_index("at")
    later = numbered.filter(pl.col("place") > 0)
    length = later["place"].clip(upper_bound=MAX_SEQUENCE).to_numpy()
    start = later["at"].to_numpy().astype(np.int64) - length
    row = np.repeat(np.arange(len(later)), length)
    within = np.arange(len(row)) - np.repeat(np.cumsum(length) - length, length)
    films = likes["movie_id"].gather(start[row] + within)
    lists = pl.DataFrame({"row": row, "film": films}).group_by("row", maintain_order=True).agg("film")
    return later.select("user_id", "movie_id", item_id_list=lists["film"])


def windows(likes: pl.DataFrame) -> pl.DataFrame:
    """A user's likes cut into stretches of up to 50, counted from the newest: ``user_id, movie_id, item_id_list``.

    BERT4Rec hides films of a row and guesses them, so each like stands in one row, as published, not in fifty prefixes.
    ``movie_id`` is a stretch's last film; the model does not read it.
    """
    age = pl.len().over("user_id") - pl.int_range(pl.len()).over("user_id") - 1
    numbered = likes.with_columns(stretch=age // MAX_SEQUENCE)
    cut = numbered.group_by("user_id", "stretch", maintain_order=True).agg(item_id_list="movie_id")
    return cut.select("user_id", pl.col("item_id_list").list.last().alias("movie_id"), "item_id_list")


def _write(path: Path, frame: pl.DataFrame, lists: tuple[str, ...]) -> None:
    """RecBole's atomic file: a header that names types, tabs between fields, blanks within a list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {"user_id": "user_id:token", "movie_id": "item_id:token"} | {name: f"{name}:token_seq" for name in lists}
    joined = [pl.col(name).cast(pl.List(pl.String)).list.join(" ") for name in lists]
    frame.with_columns(joined).select(list(names)).rename(names).write_csv(path, separator="\t")
