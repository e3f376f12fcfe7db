# Shape letters in this file:
#   U users, N draws
"""Selection of users for training queries: all of them, or a seeded sample of the warm users.

The methods are those of RecRanker (Luo et al., arXiv 2312.16018): importance ln(number of likes), k-means on the
users' vectors, and a user already drawn n times is drawn again with its weight times C ** n. Unlike there, a cluster's
share does not grow with its size, the vectors have length one (similar users are found by cosine, too), and with C = 0,
the default, no user is drawn twice. RecRanker draws 1.2 times the users, then the wanted number from these, with
replacement; here half of them are drawn by importance, half by clusters, and C acts in each draw.

Draws are simulated as arrivals: a user of weight w arrives first after Exp(1) / w, then after a further Exp(1) / (w C),
and so on. The first N arrivals are N successive draws with exactly these probabilities, because exponential waiting
times are memoryless. The waiting times are hashes of the user, so one more user displaces at most one other.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from torch import Tensor
from torch.nn.functional import normalize

from tripletune.config import SampleConfig
from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.serving.catalogue import Likes
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.clusters import cluster_users
from tripletune.retrieve.histories import with_age
from tripletune.schemas.base import conform
from tripletune.schemas.retrieve import SAMPLE
from tripletune.stable_hash import exponential
from tripletune.threads import one_thread

Floats = npt.NDArray[np.float64]

_IMPORTANCE, _CLUSTERS, _CENTRES = 7 << 40, 8 << 40, 9 << 40
"""Added to the run's seed, so that the parts of a sample are independent."""


def sample_users(rows: pl.LazyFrame, fit: LightGCNFit, settings: SampleConfig, seed: int) -> pl.DataFrame:
    """Draw warm users who have a ``target`` like.

    Args:
        rows: of all buckets of the split (``histories.read_rows``).
        fit: LightGCN's fit a, which makes the hints of training examples.
        settings: any method but ``all``.
        seed: the run's.

    Returns:
        ``schemas.SAMPLE``.
    """
    counted = pl.col("label").is_in(["graph", "target"]) & ~pl.col("unseen")
    askable = (
        rows.filter(counted)
        .group_by("user_id")
        .agg(likes=(pl.col("label") == "graph").sum(), targets=(pl.col("label") == "target").sum())
        .filter(pl.col("targets") > 0)
        .sort("user_id")
        .collect(engine="streaming")
    )
    users_U, likes_U = (askable[name].to_numpy().astype(np.int64) for name in ("user_id", "likes"))
    cluster_U = None
    if settings.method in ("clusters", "recranker") and len(users_U):
        cluster_U = cluster_users(_vectors(rows, users_U, fit), users_U, settings.clusters, seed + _CENTRES)
    draws_U = draw_users(users_U, likes_U, cluster_U, settings, seed)
    deciles = (pl.col("likes").rank("min") - 1) * 10 // pl.len()
    sample = askable.with_columns(decile=deciles, cluster=pl.lit(None), draws=pl.Series(draws_U))
    if cluster_U is not None:
        sample = sample.with_columns(cluster=pl.Series(cluster_U))
    return conform(sample, SAMPLE)


def _vectors(rows: pl.LazyFrame, users_U: Ints, fit: LightGCNFit) -> Tensor:
    """Each user's vector of length one, shape (U, D), from the likes before the training cutoff."""
    likes = rows.filter(pl.col("label") == "graph").select("user_id", "movie_id", "position")
    likes = likes.filter(pl.col("user_id").is_in(pl.Series(users_U).cast(pl.Int32).implode()))
    aged = with_age(likes.collect(engine="streaming"), ("user_id",))
    user_E, movie_E, age_E = (aged[name].to_numpy().astype(np.int64) for name in ("user_id", "movie_id", "age"))
    with one_thread():
        return normalize(fit.pool(Likes(np.searchsorted(users_U, user_E), movie_E, age_E), len(users_U)), dim=1)


def draw_users(users_U: Ints, likes_U: Ints, cluster_U: Ints | None, settings: SampleConfig, seed: int) -> Ints:
    """Number of draws of each user, shape (U,); the sum is ``settings.viewers``, or less where too few can be drawn.

    Args:
        users_U: ids.
        likes_U: number of likes of each.
        cluster_U: cluster of each, for the methods with clusters.
        settings: any method but ``all``.
        seed: the run's.
    """
    draws_U = np.zeros(len(users_U), np.int64)
    num_by_clusters = {"clusters": settings.viewers, "recranker": settings.viewers // 2}.get(settings.method, 0)
    if num := settings.viewers - num_by_clusters:
        weight_U = np.ones(len(users_U)) if settings.method == "uniform" else np.log(np.maximum(likes_U, 1))
        draws_U += _draw(users_U, weight_U, num, settings.penalty, seed + _IMPORTANCE)
    if num_by_clusters and cluster_U is not None:
        weight_U = settings.penalty ** draws_U.astype(np.float64)
        supply_K = np.bincount(cluster_U, weights=weight_U > 0, minlength=settings.clusters).astype(np.int64)
        quota_K = _equal_shares(num_by_clusters, supply_K, can_repeat=settings.penalty > 0)
        for cluster, quota in enumerate(quota_K):
            members = np.flatnonzero(cluster_U == cluster)
            draws_U[members] += _draw(
                users_U[members], weight_U[members], int(quota), settings.penalty, seed + _CLUSTERS
            )
    return draws_U


def _draw(users_U: Ints, weight_U: Floats, num: int, penalty: float, seed: int) -> Ints:
    """Number of each user's arrivals among the first ``num``; a user of weight 0 never arrives."""
    user_U = np.flatnonzero(weight_U > 0)
    clock_U, found = np.zeros(len(user_U)), []
    repeat, last = 0, np.inf
    while len(user_U):
        with np.errstate(divide="ignore"):  # a weight that underflows to 0 is no longer drawn
            clock_U = clock_U + exponential(users_U[user_U], repeat, seed) / (weight_U[user_U] * penalty**repeat)
        found.append((clock_U, user_U))
        times_N = np.concatenate([clock for clock, _ in found])
        if len(times_N) > num:
            last = np.partition(times_N, num)[num]
        is_early = clock_U < last
        clock_U, user_U, repeat = clock_U[is_early], user_U[is_early], repeat + 1
        if not penalty:
            break
    drawn = np.concatenate([viewer[clock < last] for clock, viewer in found]) if found else np.empty(0, np.int64)
    return np.bincount(drawn, minlength=len(users_U))


def _equal_shares(num: int, supply_K: Ints, *, can_repeat: bool) -> Ints:
    """Draws from each cluster: equal, but no more than it can supply; the remainder goes to the first clusters."""
    limit_K = np.where(supply_K > 0, num, 0) if can_repeat else supply_K
    share = bisect_right(range(1, int(limit_K.max()) + 1), num, key=lambda share: np.minimum(limit_K, share).sum())
    share_K = np.minimum(limit_K, share)
    over = np.flatnonzero(limit_K > share)[: num - int(share_K.sum())]
    share_K[over] += 1
    return share_K


def keep_drawn(queries: pl.DataFrame, sample: pl.DataFrame) -> pl.DataFrame:
    """Drop training queries of users who were not drawn; for a user drawn n times keep the n newest cutoffs."""
    asked = queries.join(sample.select("user_id", "draws"), on="user_id", how="left", maintain_order="left")
    newest = pl.col("cutoff").rank("ordinal", descending=True).over("user_id", "purpose")
    return asked.filter((pl.col("purpose") != "train") | (newest <= pl.col("draws"))).drop("draws")


def sample_facts(sample: pl.DataFrame, method: str) -> dict[str, Any]:
    """Facts for the manifest: draws and users in all, drawn and available users by decile and cluster."""

    def by(stratum: str) -> dict[str, dict[str, int]]:
        counts = sample.drop_nulls(stratum).group_by(stratum).agg(drawn=(pl.col("draws") > 0).sum(), of=pl.len())
        return {
            str(row[stratum]): {"drawn": row["drawn"], "of": row["of"]}
            for row in counts.sort(stratum).iter_rows(named=True)
        }

    return {
        "method": method,
        "draws": int(sample["draws"].sum()),
        "viewers": int((sample["draws"] > 0).sum()),
        "of": len(sample),
        "by_decile": by("decile"),
        "by_cluster": by("cluster"),
    }
