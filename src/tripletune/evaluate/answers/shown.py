"""Candidates of each query and system with their place in the prompt and in the answer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.evaluate.answers.correlation import kendall_tau
from tripletune.evaluate.significance import FloatArray
from tripletune.schemas.answers import NUM_ANSWERS

QUERY = ("user_id", "cutoff")
"""Key of a test query."""


def place_candidates(answers: pl.DataFrame, examples: pl.DataFrame) -> pl.DataFrame:
    """One row per candidate of each answer: ``list, user_id, cutoff, system, movie_id, num_candidates, shown,
    answered, in_five``.

    Args:
        answers: ``user_id, cutoff, system, answers``, one row per query and system.
        examples: ``user_id, cutoff, candidates`` of these queries.

    Returns:
        ``list`` numbers the rows of ``answers``; ``shown`` and ``answered`` are places from 0. Candidates that an
        answer does not name share the place behind those it names. ``in_five``: among the first ``NUM_ANSWERS``.
    """
    numbered = answers.with_row_index("list")
    named = numbered.select(
        "list", movie_id="answers", answered=pl.int_ranges(pl.col("answers").list.len(), dtype=pl.Int64)
    ).explode("movie_id", "answered", empty_as_null=False)
    num_candidates = pl.col("candidates").list.len().cast(pl.Int64)
    shown = (
        numbered.join(examples.select(*QUERY, "candidates"), on=QUERY, maintain_order="left")
        .select(
            *("list", *QUERY, "system"),
            movie_id="candidates",
            num_candidates=num_candidates,
            shown=pl.int_ranges(num_candidates),
            behind=pl.col("answers").list.len().cast(pl.Int64),
        )
        .explode("movie_id", "shown", empty_as_null=False)
    )
    joined = shown.join(named, on=["list", "movie_id"], how="left", maintain_order="left")
    is_named = pl.col("answered").is_not_null()
    return joined.with_columns(
        in_five=is_named & (pl.col("answered") < NUM_ANSWERS), answered=pl.col("answered").fill_null(pl.col("behind"))
    ).drop("behind")


def correlate(placed: pl.DataFrame, column: str) -> pl.DataFrame:
    """Kendall's tau-b between a column and the place in the answer: ``user_id, cutoff, system, tau``, by list.

    Positive where a small value of the column goes with an early place; NaN where the column ties all candidates.
    """
    lists = placed.unique("list", maintain_order=True).select("list", *QUERY, "system")
    row_of = {number: row for row, number in enumerate(lists["list"].to_list())}
    rows = placed["list"].replace_strict(row_of, return_dtype=pl.Int64).to_numpy()
    width = int(placed["num_candidates"].max() or 0)  # type: ignore[arg-type]
    tau_Q = kendall_tau(*(_matrix(placed, rows, (len(lists), width), name) for name in (column, "answered")))
    return lists.drop("list").with_columns(tau=pl.Series(tau_Q))


def _matrix(placed: pl.DataFrame, rows: npt.NDArray[np.int64], shape: tuple[int, int], column: str) -> FloatArray:
    """Shape (Q, C), by place shown; NaN behind the last candidate."""
    matrix_QC = np.full(shape, np.nan)
    matrix_QC[rows, placed["shown"].to_numpy()] = placed[column].cast(pl.Float64).to_numpy()
    return matrix_QC
