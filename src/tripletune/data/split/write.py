"""Write the split: each user's ratings in time order, labelled, in shards by hash of user.

The protocols are in ``rules.py``. A small fold of users is marked unseen. Users do not depend on each other, so shards
are written independently, several at a time, from columns that are in memory once.
"""

# Shape letters in this file: V users, B the users of a shard or block
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from tripletune.config import SplitConfig
from tripletune.data.split.frozen import Frozen
from tripletune.data.split.history import Ratings, in_time_order, read_ratings
from tripletune.data.split.queries import Counts, count_queries, query_facts
from tripletune.data.split.rules import label_ratings
from tripletune.errors import ConfigError
from tripletune.schemas.ingest import midnight
from tripletune.schemas.split import LIKE_LABELS, SPLIT, SPLIT_LABELS, STARTS
from tripletune.stable_hash import mix, share_hash_expr
from tripletune.store.catalogue import write_catalogue
from tripletune.store.files import write_atomically, write_json
from tripletune.store.paths import Facts
from tripletune.store.read import read_parquet
from tripletune.store.shards import split_file

Ints = npt.NDArray[np.int64]

_ROW_GROUP = 1 << 18
_BLOCK = 1 << 18
"""Ratings sorted at a time, about: bounds the memory of a large shard and keeps a sort in the CPU cache."""
_ENCODING = dict.fromkeys(("user_id", "movie_id", "timestamp", "position"), "DELTA_BINARY_PACKED")
"""Within a user these columns are constant, small or rising: as differences the file takes 4.3 bytes a row, from
polars' own writer 7.4, and a third less time. Rating and label have few values and get a dictionary."""


def write_split(ratings: Path, out: Path, settings: SplitConfig, seed: int, movies: Path | None = None) -> Facts:
    """Split and write ``out/shard=NNN/part.parquet``, one per bucket of users, each sorted by user and position, and
    ``out/movies.parquet`` (schema CATALOGUE); under global_time also ``STARTS``.

    Args:
        ratings: Parquet, schema RATINGS, sorted by user; ``tie_order = "file"`` reads ``order.parquet`` next to it.
        out: the work folder.
        settings: the protocol, thresholds, how many likes each label takes, and the number of shards.
        seed: orders ties in time, draws the unseen users, the likes of a random ``ratio`` and the bucket of a user.
        movies: Parquet with a column ``movie_id``: all films of the release, which are the catalogue, rated or not,
            unless ``min_interactions`` restricts it to the films that it keeps. None: the rated films.

    Returns:
        The protocol; counts of rows, users, unseen users, likes and of each label; users with a query by purpose, and
        the others by the reason why they have none; and, of a frozen evaluation set, the users held and missing.

    Raises:
        InputError: the ratings are not sorted by user, or the frozen queries cannot be read or are of other ratings.
        ConfigError: the dates of ``global_time`` leave no valid or no test query, or ``min_interactions`` no rating.
    """
    order = ratings.with_name("order.parquet") if settings.tie_order == "file" else None
    everything = read_ratings(ratings, order)
    grouped = drop_rare(everything, settings.min_interactions)
    if everything.num_ratings and not grouped.num_ratings:
        raise ConfigError(f"split.min_interactions = {settings.min_interactions} leaves no rating; lower it")
    write_catalogue(out, _catalogue(grouped, None if settings.min_interactions else movies).tolist())
    shards = _users_of_shards(grouped, settings.shards, seed)
    frozen = _read_frozen(settings)

    def write(number: int) -> tuple[Counter[str], Counts, Ints]:
        shard, held = split_shard(grouped, shards[number], settings, seed, frozen)
        file = split_file(out, f"{number:03d}")
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, lambda path: _write_parquet(shard, path))
        return _count(shard), count_queries(shard, settings, held if frozen else None), held

    # numpy and pyarrow release the GIL while they sort, gather and compress
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        done = list(pool.map(write, range(settings.shards)))
    counts = sum((count for count, _, _ in done), Counter[str]())
    queries = query_facts(sum((count for _, count, _ in done), Counts()))
    frozen_facts: Facts = {}
    if frozen:
        held = np.concatenate([users for _, _, users in done])
        frozen_facts = {"frozen": frozen.write_asked(out, held, Path(settings.frozen))}
    if settings.protocol == "global_time":
        _require_questions(counts, grouped, settings)
        _write_starts(out, settings)
    facts = {"protocol": settings.protocol, "rows_in": everything.num_ratings, "viewers_in": everything.num_viewers}
    return facts | _facts(counts, queries) | {"shards": settings.shards} | frozen_facts


def drop_rare(ratings: Ratings, least: int) -> Ratings:
    """Drop users and films with fewer than ``least`` ratings, both counted before anything is dropped."""
    if not least:
        return ratings
    _, film_R, count_M = np.unique(ratings.movie_R, return_inverse=True, return_counts=True)
    return ratings.keep(ratings.per_row(ratings.count_V >= least) & (count_M[film_R] >= least))


def _catalogue(ratings: Ratings, movies: Path | None) -> Ints:
    """Ids of the rated films, and of those in the file."""
    rated = np.unique(ratings.movie_R).astype(np.int64)
    if movies is None:
        return rated
    return np.union1d(rated, read_parquet(movies, columns=["movie_id"])["movie_id"].to_numpy().astype(np.int64))


def _users_of_shards(ratings: Ratings, num_shards: int, seed: int) -> list[Ints]:
    """Numbers of the users of each shard, ascending: a user's bucket depends only on its id and the seed."""
    bucket_V = mix(ratings.user_ids_V, seed) % np.uint64(num_shards)
    by_bucket_V = np.argsort(bucket_V, kind="stable")
    return np.split(by_bucket_V, np.searchsorted(bucket_V[by_bucket_V], np.arange(1, num_shards)))


def _read_frozen(settings: SplitConfig) -> Frozen | None:
    return Frozen.read(Path(settings.frozen), settings) if settings.frozen else None


def split_shard(
    ratings: Ratings, users_B: Ints, settings: SplitConfig, seed: int, frozen: Frozen | None
) -> tuple[pl.DataFrame, Ints]:
    """Label and number the rows of some users, block by block.

    Args:
        ratings: of all users.
        users_B: numbers of the shard's users.
        settings: the protocol, thresholds, and how many likes each label takes.
        seed: orders ties in time, draws the unseen users and the likes of a random ``ratio``.
        frozen: the queries of ``split.frozen``, if set.

    Returns:
        Columns of ``SPLIT``, users in the given order and rows by position; ids of the users whose frozen queries are
        kept.
    """
    count_B = ratings.count_V[users_B]
    block_B = (np.cumsum(count_B) - count_B) // _BLOCK
    blocks = np.split(users_B, np.flatnonzero(np.diff(block_B)) + 1)
    # one chunk per column: chunk bounds could decide page bounds, and so change the bytes of the file
    parts = [_split_users(ratings, block_B, settings, seed, frozen) for block_B in blocks]
    return pl.concat([rows for rows, _ in parts], rechunk=True), np.concatenate([held for _, held in parts])


def _split_users(
    ratings: Ratings, users_B: Ints, settings: SplitConfig, seed: int, frozen: Frozen | None
) -> tuple[pl.DataFrame, Ints]:
    """Split some users: columns of ``SPLIT`` in their order and by position, and ids of users with held queries."""
    history = in_time_order(ratings, users_B, tie_order=settings.tie_order, seed=seed)
    held = frozen.find(history, settings.like) if frozen else None
    viewers = pl.DataFrame({"user_id": history.user_ids_V})
    unseen_V = viewers.select(share_hash_expr("user_id", seed) < settings.unseen_share).to_series().to_numpy()
    columns = {
        "user_id": history.per_row(history.user_ids_V),
        "movie_id": history.movie_R,
        "rating": history.rating_R,
        "timestamp": history.time_R,
        "position": np.arange(history.num_ratings, dtype=np.int32) - history.per_row(history.first_V.astype(np.int32)),
        "label": pl.Series(label_ratings(history, settings, seed, held)).cat.to(SPLIT_LABELS),
        "unseen": history.per_row(unseen_V),
    }
    held_users = history.user_ids_V[held.is_held_V].astype(np.int64) if held else np.empty(0, np.int64)
    return pl.DataFrame(columns, schema=SPLIT), held_users


def _write_parquet(shard: pl.DataFrame, path: Path) -> None:
    pq.write_table(
        shard.to_arrow(),
        path,
        row_group_size=_ROW_GROUP,
        compression="zstd",
        compression_level=1,
        use_dictionary=["rating", "label"],
        column_encoding=_ENCODING,
    )


def _count(shard: pl.DataFrame) -> Counter[str]:
    """Count a shard's rows, users, rows of each label, and users with a training query."""
    first_rows = shard.filter(pl.col("position") == 0)
    # numbers of the labels, because grouping 32 million rows by text takes seconds
    per_label = np.bincount(shard["label"].to_physical(), minlength=len(SPLIT_LABELS.categories)).tolist()
    return Counter(
        rows_kept=shard.height,
        viewers=first_rows.height,
        unseen_viewers=int(first_rows["unseen"].sum()),
        **dict(zip(SPLIT_LABELS.categories, per_label, strict=True)),
        **{"viewers with target": shard.filter(pl.col("label") == "target")["user_id"].n_unique()},
    )


def _facts(counts: Counter[str], queries: Mapping[str, Mapping[str, int]]) -> Facts:
    """Facts by what ``_count`` counted, and by purpose."""
    labels = {name: counts[name] for name in SPLIT_LABELS.categories}
    return {
        **{name: counts[name] for name in ("rows_kept", "viewers", "unseen_viewers")},
        "likes": sum(labels[name] for name in LIKE_LABELS),
        "labels": labels,
        "asked_viewers": {
            "target": counts["viewers with target"],
            **{name: of_purpose["warm"] + of_purpose["unseen"] for name, of_purpose in queries.items()},
        },
        "queries": queries,
    }


def _write_starts(out: Path, settings: SplitConfig) -> None:
    """Write the first seconds of valid and test, for the baseline of recent likes."""
    assert settings.valid_from
    assert settings.test_from
    starts = {"valid": midnight(settings.valid_from), "test": midnight(settings.test_from)}
    write_json(out / STARTS, starts)


def _require_questions(labels: Counter[str], ratings: Ratings, settings: SplitConfig) -> None:
    """Reject dates that leave no valid or no test query.

    Raises:
        ConfigError: no like is ``valid``, or none is ``test``; the message names the range of the data.
    """
    for name, field, days in (
        ("test", "test_from", f"on or after {settings.test_from}"),
        ("valid", "valid_from", f"from {settings.valid_from} to before {settings.test_from}"),
    ):
        if labels[name]:
            continue
        first, last = (
            datetime.fromtimestamp(int(end), UTC).date() for end in (ratings.time_R.min(), ratings.time_R.max())
        )
        raise ConfigError(
            f"split.{field} = {getattr(settings, field)} leaves no {name} like: the ratings run from {first} to "
            f"{last}, and no user with {settings.min_graph} likes before {settings.valid_from} has one {days}; "
            f"change split.{field} to another day, or lower split.min_graph"
        )
