# Shape letters in this file:
#   U questions (a viewer, a purpose and a cutoff), E likes, B likes of a block, T rows of like and triple, C relations
"""A viewer's preference profile: by which relation do the facts of liked films speak to this viewer.

Per liked film the R-GAT's posterior over its triples, ``softmax`` of the scores that choose hint 2, summed by relation;
the mean over the films is the profile's ``mass``. ``attention`` is the same mean without the viewer (alpha alone): what
these films would say to anybody. A relation with more mass than attention is one by which this viewer differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from tripletune.retrieve.specialists import FIT_OF, Likes, RgatFit
from tripletune.retrieve.topk import Ints
from tripletune.retrieve.triples import Doubles, TripleTable, score_personally
from tripletune.schemas import PROFILES, QUESTION, conform

LIKES_AT_ONCE = 1 << 13
"""Likes whose triples are scored at a time, at least; with some 15 triples a film that is 100,000 rows, some MiB."""


def find_profiles(
    fits: Mapping[str, RgatFit], tables: Mapping[str, TripleTable], questions: pl.DataFrame, history: pl.DataFrame
) -> pl.DataFrame:
    """The profile of each question's viewer, from the likes before the cutoff and the fit that answers the purpose.

    Args:
        fits, tables: R-GAT's vectors and triples by name of the fit.
        questions: ``user_id, purpose, cutoff``, unique.
        history: likes before the cutoff, ``user_id, purpose, cutoff, movie_id, age``.

    Returns:
        Frame of ``schemas.PROFILES``, sorted by question and relation. A viewer none of whose likes has a triple
        has no row; of the others each relation of their films has one, and ``mass`` sums to one, ``attention`` too.
    """
    parts = [PROFILES.to_frame()]
    for name, fit in fits.items():
        purposes = [purpose for purpose, of_fit in FIT_OF.items() if of_fit == name]
        asked = questions.filter(pl.col("purpose").is_in(purposes)).select(QUESTION).with_row_index("viewer")
        liked = history.join(asked, on=QUESTION).sort("viewer", "age")
        likes = Likes(*(liked[column].to_numpy().astype(np.int64) for column in ("viewer", "movie_id", "age")))
        profiles = build_profiles(tables[name], fit, likes, len(asked))
        parts.append(conform(profiles.join(asked, on="viewer", maintain_order="left"), PROFILES))
    return pl.concat(parts).sort(*QUESTION, "relation")


def build_profiles(table: TripleTable, rgat: RgatFit, likes: Likes, num_viewers: int) -> pl.DataFrame:
    """Profiles of viewers numbered from 0: ``viewer, relation, films, mass, attention``, sorted by viewer.

    Args:
        table: the fit's triples; only those whose entity has a name count, as in hint 2.
        rgat: the same fit's vectors.
        likes: sorted by viewer.
        num_viewers: U.
    """
    names, relation_X = np.unique(table.text["relation"].to_numpy(), return_inverse=True)
    share_X = table.alpha_X / np.repeat(np.add.reduceat(table.alpha_X, table.offsets[:-1]), np.diff(table.offsets))
    users_UD = rgat.pool(likes, num_viewers)
    shape = (num_viewers, len(names))
    mass_UC, attention_UC, films_U = np.zeros(shape), np.zeros(shape), np.zeros(num_viewers, dtype=np.int64)
    for first, last in _whole_viewers(likes.viewer_E, num_viewers):
        viewer_B = likes.viewer_E[first:last]
        like_T, triple_T = table.expand(likes.movie_E[first:last])
        viewer_T = viewer_B[like_T]
        cell_T = viewer_T * len(names) + relation_X[triple_T]
        posterior_T = _softmax(like_T, score_personally(table, rgat, users_UD, viewer_T, triple_T))
        for total_UC, share_T in ((mass_UC, posterior_T), (attention_UC, share_X[triple_T])):
            total_UC += np.bincount(cell_T, share_T, total_UC.size).reshape(shape)
        films_U += np.bincount(viewer_B[like_T[np.diff(like_T, prepend=-1) != 0]], minlength=num_viewers)
    viewer, relation = np.nonzero(attention_UC)
    columns = {"mass": mass_UC, "attention": attention_UC}
    return pl.DataFrame(
        {
            "viewer": pl.Series(viewer, dtype=pl.UInt32),
            "relation": pl.Series(names[relation], dtype=pl.String),
            "films": films_U[viewer],
            **{name: total_UC[viewer, relation] / films_U[viewer] for name, total_UC in columns.items()},
        }
    )


def _whole_viewers(viewer_E: Ints, num_viewers: int) -> Iterator[tuple[int, int]]:
    """Ranges of likes of about ``LIKES_AT_ONCE``, cut between viewers: a viewer's sums are made in one go, so that
    their last bits do not hang on who else is asked about."""
    ends_U = np.cumsum(np.bincount(viewer_E, minlength=num_viewers))
    first = 0
    while first < len(viewer_E):
        last = int(ends_U[np.searchsorted(ends_U, min(first + LIKES_AT_ONCE, len(viewer_E)))])
        yield first, last
        first = last


def _softmax(like_T: Ints, log_T: Doubles) -> Doubles:
    """Over the rows of each like; ``like_T`` is sorted."""
    starts = np.flatnonzero(np.diff(like_T, prepend=-1))
    counts = np.diff(np.append(starts, len(like_T)))
    if not len(starts):
        return np.zeros(0)
    power_T = np.exp(log_T - np.repeat(np.maximum.reduceat(log_T, starts), counts))
    shares: Doubles = power_T / np.repeat(np.add.reduceat(power_T, starts), counts)
    return shares
