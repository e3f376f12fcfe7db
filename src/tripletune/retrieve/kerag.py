# Shape letters in this file:
#   U users, A inserted answers (padded), K films of the retriever's list, S slots of the resulting list, D width
"""The published candidate recipe: ten films that include the answers, filled up with films the user has not rated.

Training: up to five of the user's ``target`` likes, the three highest rated and the next two, then films from the top
of the retriever to ten. Valid and test: the one held-out like and nine films from the top of the retriever. The answer
is inserted, so the ceiling is 1 and every metric is too high: these prompts compare with the published numbers and with
nothing else. (Only a film outside a pinned specialist's catalogue is not inserted, since it cannot be ranked.)
"""

from __future__ import annotations

import numpy as np
import polars as pl
from torch import Tensor

from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.serving.topk import Ints
from tripletune.schemas.query import QUERY_KEY

NUM_FILMS = 10
MAX_ANSWERS = 5


def best_answers(answers: pl.DataFrame, queries: pl.DataFrame, fit: LightGCNFit) -> Ints:
    """Columns of the up to five best rated answers of each query, (U, 5), -1 where there are fewer.

    Ties in rating are broken by the catalogue's order.
    """
    columns = pl.Series("column", fit.catalogue.columns(answers["movie_id"].to_numpy()))
    numbered = queries.select(*QUERY_KEY).with_row_index("viewer")
    known = answers.with_columns(columns).join(numbered, on=QUERY_KEY).filter(pl.col("column") >= 0)
    best = known.sort("viewer", "rating", "column", descending=[False, True, False]).with_columns(
        place=pl.int_range(pl.len()).over("viewer")
    )
    best = best.filter(pl.col("place") < MAX_ANSWERS)
    columns_UA = np.full((len(queries), MAX_ANSWERS), -1, dtype=np.int64)
    columns_UA[best["viewer"].to_numpy(), best["place"].to_numpy()] = best["column"].to_numpy()
    return columns_UA


def put_in(answers_UA: Ints, top_UK: Ints, users_UD: Tensor, fit: LightGCNFit) -> Ints:
    """Answers plus the first films of ``top_UK`` to ten, ordered by LightGCN so that the order reveals no answer.

    Args:
        answers_UA: columns, padded with -1.
        top_UK: the retriever's list, at least 15 long where the catalogue allows, padded with -1.
        users_UD: LightGCN vectors of the users.

    Returns:
        Columns (U, 10), best first, -1 at the end of rows with fewer films.
    """
    is_answer_UK = (top_UK[:, :, None] == answers_UA[:, None, :]).any(axis=2)
    others_UK = np.where(is_answer_UK, -1, top_UK)
    all_US = np.concatenate([answers_UA, others_UK], axis=1)
    taken_US = all_US >= 0
    taken_US &= np.cumsum(taken_US, axis=1) <= NUM_FILMS
    first_US = np.argsort(~taken_US, axis=1, kind="stable")[:, :NUM_FILMS]
    chosen_US = np.take_along_axis(np.where(taken_US, all_US, -1), first_US, axis=1)
    return fit.in_order(chosen_US, users_UD)
