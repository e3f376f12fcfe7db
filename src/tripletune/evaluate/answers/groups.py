"""Audit of groups: is the model worse for users of some kind than for the others?"""

# Shape letters in this file:
#   U users, G users of a group, O the others, K groups, V columns (a system and metric), S systems, R resamples
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.config import EvaluateConfig
from tripletune.evaluate.answers.record import Audited, Line, Verdict, plain, said_p
from tripletune.evaluate.answers.shown import QUERY
from tripletune.evaluate.metrics import PROMOTION_METRIC
from tripletune.evaluate.significance import BLOCK, FloatArray, bootstrap_means, holm
from tripletune.schemas.ages import AGE_GROUP, AGE_NAMES

NAME = "groups"
LEAST_USERS = 30
"""Users that a group, and the others together, must have to be judged."""
TERCILES = ("low", "middle", "high")
ATTRIBUTES = ("activity", "taste", "gender", "age")
"""activity: likes known at the query; taste: their mean popularity; gender and age: as the release has them."""
ROUNDING = 1e-12
"""Difference of means that counts as none: sums were added up in another order."""
_ORDER = {name: place for place, name in enumerate((*TERCILES, *AGE_NAMES))}
YARDSTICK = "retriever"
"""The system whose gap a verdict names too: candidates that miss the film are not the model's doing."""


def terciles(values: pl.Expr) -> pl.Expr:
    """Thirds of the users by a value; equal values are in one group, so thirds may differ in size."""
    middle = (values.rank("average") - 0.5) / values.count()
    return pl.lit(pl.Series(TERCILES)).gather(
        (middle * len(TERCILES)).floor().clip(0, len(TERCILES) - 1).cast(pl.UInt32)
    )


def describe_users(
    likes: pl.DataFrame, queries: pl.DataFrame, popularity: pl.DataFrame, people: pl.DataFrame
) -> pl.DataFrame:
    """One row per user: ``user_id``, the groups ``ATTRIBUTES`` (null where unknown), ``likes`` and ``popularity``.

    Args:
        likes: ``user_id, cutoff, movie_id``: likes before each query.
        queries: ``user_id, cutoff``; a user's first one counts.
        popularity: ``movie_id, quantile``; films without a like have the quantile 0.
        people: ``schemas.USERS``; empty where the release has none.
    """
    first = queries.group_by("user_id").agg(pl.col("cutoff").min()).sort("user_id")
    known = likes.join(popularity.select("movie_id", "quantile"), on="movie_id", how="left", maintain_order="left")
    of_query = known.group_by(QUERY).agg(
        likes=pl.len().cast(pl.Int64), popularity=pl.col("quantile").fill_null(0.0).sort().mean()
    )
    users = first.join(of_query, on=QUERY, how="left", maintain_order="left").with_columns(pl.col("likes").fill_null(0))
    age = pl.when(pl.col("age").is_not_null()).then(pl.lit(pl.Series(AGE_NAMES)).gather(AGE_GROUP))
    attributes = people.select("user_id", "gender", age=age)
    return users.join(attributes, on="user_id", how="left", maintain_order="left").select(
        "user_id",
        "likes",
        "popularity",
        "gender",
        "age",
        activity=terciles(pl.col("likes")),
        taste=terciles(pl.col("popularity")),
    )


def name_ranges(users: pl.DataFrame) -> dict[str, str]:
    """What the thirds of the users are, by ``<attribute>: <group>``, for people."""
    found = {}
    for attribute, column, unit in (("activity", "likes", "likes"), ("taste", "popularity", "mean popularity")):
        bounds = users.group_by(attribute).agg(low=pl.col(column).min(), high=pl.col(column).max()).drop_nulls()
        for group, low, high in bounds.sort(attribute).iter_rows():
            low, high = (value if isinstance(value, int) else plain(value) for value in (low, high))
            found[f"{attribute}: {group}"] = f"{low} to {high} {unit}"
    return found


def shuffled_p_values(
    values_US: FloatArray, group_U: npt.NDArray[np.int64], *, resamples: int, seed: int
) -> FloatArray:
    """Two-sided p-value of the difference between each group's mean and that of the other users.

    A randomisation test: if groups make no difference, which user belongs to which is chance. Labels are shuffled, and
    the observed ones count as one more (Phipson & Smyth 2010). A t-test accused innocent models of groups of 30 in
    up to 14 of 100 draws at the level 5 %: most users have 0.

    Args:
        values_US: one row per user; the same shuffles serve all columns.
        group_U: number of each user's group, 0 to K - 1; none is empty, and there are two or more.
        resamples: number of shuffles.
        seed: of the draw.

    Returns:
        Shape (K, S), each in (0, 1].
    """
    sizes_K1 = np.bincount(group_U)[:, None]
    starts_K = np.concatenate([[0], np.cumsum(sizes_K1[:-1, 0])])
    num_users, num_columns = values_US.shape
    total_S = values_US.sum(axis=0)

    def gaps(rows_BU: npt.NDArray[np.int64]) -> FloatArray:
        sums_BKS = np.add.reduceat(values_US[rows_BU], starts_K, axis=1)
        found: FloatArray = np.abs(sums_BKS / sizes_K1 - (total_S - sums_BKS) / (num_users - sizes_K1))
        return found

    observed_KS = gaps(np.argsort(group_U, kind="stable")[None])[0] - ROUNDING
    reached_KS = np.ones(observed_KS.shape)
    rng = np.random.default_rng(seed)
    size = max(1, BLOCK // (num_users * num_columns))
    for start in range(0, resamples, size):
        rows_BU = np.tile(np.arange(num_users), (min(size, resamples - start), 1))
        reached_KS += (gaps(rng.permuted(rows_BU, axis=1)) >= observed_KS).sum(axis=0)
    p_KS: FloatArray = reached_KS / (resamples + 1)
    return p_KS


def audit_groups(
    scores: pl.DataFrame, users: pl.DataFrame, systems: Sequence[str], *, settings: EvaluateConfig, seed: int
) -> Audited:
    """Metrics of each group, the gaps between a group and the other users, and the worst one.

    Args:
        scores: ``user_id, row`` and metrics, one row per user and system.
        users: ``describe_users``.
        systems: in the order of the tables.
        settings: resamples, and the confidence that Holm's correction over a system's groups keeps.
        seed: of the draws.

    Returns:
        Lines with the name of a metric (means), ``gap`` (of ``PROMOTION_METRIC``, for each group that is judged) and
        ``worst_gap``; a verdict for each system. ``part`` is ``<attribute>: <group>``.
    """
    metrics = [name for name in scores.columns if name not in ("user_id", "row", "purpose", "unseen")]
    audited, gaps = Audited(), dict[str, list[Line]]()
    for same in _with_same_users(scores, systems):
        parts = [scores.filter(pl.col("row") == row).sort("user_id") for row in same]
        described = parts[0].select("user_id").join(users, on="user_id", how="left", maintain_order="left")
        values_UV = np.hstack([part.select(metrics).to_numpy() for part in parts])
        for attribute in ATTRIBUTES:
            found = list(_measure(values_UV, described[attribute], same, metrics, settings, seed))
            for line in found:
                if line.measure == "gap":
                    gaps.setdefault(line.row, []).append(line)
            audited.lines.extend(line for line in found if line.measure != "gap")
    judged = {row: _adjusted(lines) for row, lines in gaps.items()}
    for row in systems:
        audited.add(_judge(row, judged, 1 - settings.confidence))
    return audited


def _with_same_users(scores: pl.DataFrame, systems: Sequence[str]) -> list[list[str]]:
    """Systems that ranked the same users, together."""
    together: dict[tuple[int, ...], list[str]] = {}
    for row in systems:
        users = scores.filter(pl.col("row") == row)["user_id"].sort().to_list()
        together.setdefault(tuple(users), []).append(row)
    return [rows for users, rows in together.items() if users]


def _measure(
    values_UV: FloatArray,
    groups: pl.Series,
    systems: Sequence[str],
    metrics: Sequence[str],
    settings: EvaluateConfig,
    seed: int,
) -> Iterator[Line]:
    """Means of each group, and the gaps of those that can be judged; both sides of a gap are resampled apart."""
    names = sorted(groups.drop_nulls().unique().to_list(), key=lambda name: (_ORDER.get(name, 0), name))
    is_known_U = groups.is_not_null().to_numpy()
    member_KU = {name: (groups == name).fill_null(value=False).to_numpy() for name in names}
    columns = [(row, metric) for row in systems for metric in metrics]
    compared = [v for v, (_, metric) in enumerate(columns) if metric == PROMOTION_METRIC]
    p_KS = None
    if len(names) > 1:
        number_U = groups.replace_strict({name: k for k, name in enumerate(names)}, default=None).drop_nulls()
        p_KS = shuffled_p_values(
            values_UV[is_known_U][:, compared],
            number_U.cast(pl.Int64).to_numpy(),
            resamples=settings.bootstrap_resamples,
            seed=seed,
        )
    tails = [(1 - settings.confidence) / 2, (1 + settings.confidence) / 2]
    for k, (name, is_member_U) in enumerate(member_KU.items()):
        part, members_GV, others_OV = (
            f"{groups.name}: {name}",
            values_UV[is_member_U],
            values_UV[is_known_U & ~is_member_U],
        )
        mean_RV = bootstrap_means(members_GV, resamples=settings.bootstrap_resamples, seed=seed)
        low_V, high_V = np.quantile(mean_RV, tails, axis=0).tolist()
        for v, (row, metric) in enumerate(columns):
            mean = float(members_GV[:, v].mean())
            low, high = (low_V[v], high_V[v]) if len(members_GV) > 1 else (None, None)
            yield Line(NAME, row, metric, part, mean, low, high, num_users=len(members_GV))
        if p_KS is None or min(len(members_GV), len(others_OV)) < LEAST_USERS:
            continue
        other_RV = bootstrap_means(others_OV, resamples=settings.bootstrap_resamples, seed=seed + 1)
        gap_low_V, gap_high_V = np.quantile(mean_RV - other_RV, tails, axis=0).tolist()
        for s, v in enumerate(compared):
            gap = float(members_GV[:, v].mean() - others_OV[:, v].mean())
            bounds = gap_low_V[v], gap_high_V[v], float(p_KS[k, s])
            yield Line(NAME, columns[v][0], "gap", part, gap, *bounds, num_users=len(members_GV))


def _adjusted(gaps: Sequence[Line]) -> list[Line]:
    """The gaps of a system with Holm's correction over all of them."""
    adjusted = holm(np.array([line.p_value for line in gaps]))
    return [line._replace(p_adjusted=p_value) for line, p_value in zip(gaps, adjusted.tolist(), strict=True)]


def _judge(row: str, judged: dict[str, list[Line]], alpha: float) -> Audited:
    gaps = judged.get(row, [])
    if not gaps:
        words = f"no group and its other users have {LEAST_USERS} users each"
        return Audited([], [Verdict(NAME, row, "not judged", words)])
    worst = min(gaps, key=lambda line: line.value)
    lines = [*gaps, worst._replace(measure="worst_gap")]
    shown = [line for line in gaps if line.value < 0 and (line.p_adjusted or 0.0) <= alpha]
    behind = min(shown, key=lambda line: line.value) if shown else worst
    interval = f"{plain(behind.low or 0.0, 3)} to {plain(behind.high or 0.0, 3)}"
    said = f"{behind.part}, {plain(behind.value, 3)} ({interval}), {said_p(behind.p_adjusted or 0.0)}"
    yardstick = [line for line in judged.get(YARDSTICK, []) if line.part == behind.part and row != YARDSTICK]
    said += f"; {YARDSTICK}'s gap there {plain(yardstick[0].value, 3)}" if yardstick else ""
    if shown:
        return Audited(lines, [Verdict(NAME, row, "found", f"worse than for other users: {said}")])
    return Audited(lines, [Verdict(NAME, row, "none", f"no group shown to be worse off; the widest gap is {said}")])
