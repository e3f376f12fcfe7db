"""Stability of the retriever: its candidates again, from a history with one like less, or in another order of time.

What the prompt says in words means nothing to it. Its models are not trained again: only the history that the query
is asked with changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import polars as pl

from tripletune.config import RetrieveConfig
from tripletune.probe.perturb import HISTORY_SHUFFLED, LIKE_REMOVED
from tripletune.probe.scores import tau_of_lists
from tripletune.retrieve.histories import find_answers, find_history, find_seen, read_rows, with_request_time
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.base import conform
from tripletune.schemas.probe import STABILITY
from tripletune.schemas.query import FIT_OF, QUERY_KEY
from tripletune.schemas.split import LIKE_LABELS
from tripletune.stable_hash import pair_hash_expr
from tripletune.store.shards import split_files

_REMOVED, _ORDER = 22 << 40, 23 << 40
"""Added to the run's seed, as for the prompts."""
_OF_A_FILM = ("movie_id", "rating", "label")


def probe_retriever(
    split: Path,
    examples: pl.DataFrame,
    load: Callable[[tuple[str, ...]], Retriever],
    settings: RetrieveConfig,
    names: Sequence[str],
    seed: int,
) -> pl.DataFrame:
    """Load the run's retriever and measure it; no rows where no perturbation is of the history, or where candidates
    are not the retriever's own list.

    Args:
        split: folder of that stage, which holds the histories.
        examples: ``EXAMPLES`` to measure.
        load: gives the run's retriever with the fits of these names.
        settings: of the retriever.
        names: perturbations.
        seed: the run's.
    """
    if settings.candidates != "retrieved" or examples.is_empty() or not {LIKE_REMOVED, HISTORY_SHUFFLED} & {*names}:
        return STABILITY.to_frame()
    fits = tuple(sorted({FIT_OF[purpose] for purpose in examples["purpose"].unique()}))
    mine = pl.col("user_id").is_in(examples["user_id"].unique().implode())
    rows = read_rows(list(split_files(split).values())).filter(mine).collect()
    return retriever_stability(load(fits), rows, examples, names, seed)


def retriever_stability(
    retriever: Retriever, rows: pl.DataFrame, examples: pl.DataFrame, names: Sequence[str], seed: int
) -> pl.DataFrame:
    """Rows of ``STABILITY`` with the system ``retriever``.

    Args:
        retriever: of the run, with the fits of these examples.
        rows: of the split, of the examples' users.
        examples: ``EXAMPLES``; ``retrieved`` is the order to compare with.
        names: perturbations, of which those of the history count.
        seed: the run's.
    """
    queries = examples.select(*QUERY_KEY, "unseen").sort(QUERY_KEY)
    asked = with_request_time(queries, rows) if retriever.reads_request_time else queries
    changes: dict[str, Callable[[pl.DataFrame, int, int], pl.DataFrame]] = {
        LIKE_REMOVED: _without_a_like,
        HISTORY_SHUFFLED: _in_another_order,
    }
    found = []
    for name, changed in ((name, changes[name]) for name in names if name in changes):
        # the rows before a query's cutoff are its history, so each query has a change of its own
        for part in _one_of_each_user(asked):
            changed_rows = pl.concat(
                changed(rows.filter(pl.col("user_id") == user).sort("position"), cutoff, seed)
                for user, cutoff in part.select("user_id", "cutoff").iter_rows()
            )
            lists, _ = retriever.retrieve_users(
                part, find_history(changed_rows, part), find_seen(changed_rows, part), find_answers(rows, part)
            )
            found.append(lists.select(*QUERY_KEY, after="candidates").with_columns(perturbation=pl.lit(name)))
    if not found:
        return STABILITY.to_frame()
    both = examples.join(pl.concat(found), on=QUERY_KEY, how="inner").with_columns(system=pl.lit("retriever"))
    measured = [_compared(*lists) for lists in both.select("retrieved", "after").iter_rows()]
    schema = {name: STABILITY[name] for name in ("tau", "kept", "first_changed")}
    values = pl.DataFrame(measured, schema=schema, orient="row")
    joined = both.hstack(values).with_columns(tau_by_place=pl.lit(None, pl.Float64))
    return conform(joined, STABILITY).sort("example_id", "perturbation")


def _one_of_each_user(queries: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Parts of the queries, in none of which a user has two."""
    numbered = queries.with_columns(number=pl.int_range(pl.len()).over("user_id"))
    for _, part in numbered.group_by("number", maintain_order=True):
        yield part.drop("number")


def _without_a_like(rows: pl.DataFrame, cutoff: int, seed: int) -> pl.DataFrame:
    """The user's rows without one of the likes before the cutoff, by a hash."""
    is_like = pl.col("label").is_in(LIKE_LABELS) & (pl.col("position") < cutoff)
    likes = rows.filter(is_like).with_columns(hashed=pair_hash_expr("user_id", "movie_id", seed + _REMOVED))
    drawn = likes.sort("hashed", "movie_id").tail(1).select("movie_id", "position")
    return rows.join(drawn, on=["movie_id", "position"], how="anti", maintain_order="left")


def _in_another_order(rows: pl.DataFrame, cutoff: int, seed: int) -> pl.DataFrame:
    """The user's rows with those before the cutoff in another order: their times stay, the films change places."""
    before, after = rows.filter(pl.col("position") < cutoff), rows.filter(pl.col("position") >= cutoff)
    hashed = before.with_columns(hashed=pair_hash_expr("user_id", "movie_id", seed + _ORDER))
    films = hashed.sort("hashed", "movie_id").select(_OF_A_FILM)
    return pl.concat([before.with_columns(films.get_columns()), after])


def _compared(before: list[int], after: list[int]) -> tuple[float | None, float, bool]:
    tau, kept = tau_of_lists(before, after)
    return tau, kept, before[:1] != after[:1]
