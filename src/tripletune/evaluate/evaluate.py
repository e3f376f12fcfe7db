"""The evaluate stage: metrics of retrieval and re-ranking with intervals, comparisons, and the report.

Retrieval is ranked over the whole catalogue, re-ranking over the same queries for every system, and a held-out film
that retrieval missed counts 0 for all of them. A user's value is the mean over the user's held-out cutoffs
(``mean_over_cutoffs``), taken right after scoring: intervals and comparisons are over users, which makes them clustered
by user. Every number is a mean over users with a bootstrap interval, or a share of users with an exact one; every pair
of rows of a family is compared on the same users.
"""

# Shape letters in this file:
#   U users, V = rows x metrics, R resamples

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.config import EvaluateConfig
from tripletune.errors import InputError
from tripletune.evaluate.answers.audit import audit_answers
from tripletune.evaluate.cold import KNOWLEDGE_GROUPS, MEASURES, known_films, score_by_knowledge
from tripletune.evaluate.families import GROUPS
from tripletune.evaluate.metrics import VALID, is_share_metric, mean_over_cutoffs, measured_cutoffs, score_lists
from tripletune.evaluate.report import write_report
from tripletune.evaluate.significance import (
    Interval,
    bootstrap_means,
    is_share,
    mean_interval,
    share_interval,
    summarise,
)
from tripletune.evaluate.tables import CEILING_ROW, ranked_systems, retrieval_rows
from tripletune.schemas.base import conform
from tripletune.schemas.query import PURPOSES, QUERY_KEY
from tripletune.schemas.rank import PREDICTIONS, SAMPLED, SYSTEMS
from tripletune.schemas.retrieve import RANKINGS
from tripletune.store.files import write_json
from tripletune.store.parquet import ROW_GROUP, parquet_files, scan, write_parquet
from tripletune.store.paths import Facts
from tripletune.store.read import read_parquet

Floats = npt.NDArray[np.float64]

KEY = ("user_id", "purpose", "unseen", "row")
"""Key columns of per-user values; every other column is a metric."""

METRICS = pl.Schema(
    {
        "row": pl.String,
        "group": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "num_viewers": pl.Int64,
    }
)
"""evaluate/metrics.parquet: ``low`` and ``high`` are null with fewer than two users; an empty group has no line."""
COMPARISONS = pl.Schema(
    {
        "row_a": pl.String,
        "row_b": pl.String,
        "metric": pl.String,
        "group": pl.String,
        "difference": pl.Float64,
        "low": pl.Float64,
        "high": pl.Float64,
        "num_viewers": pl.Int64,
    }
)
"""evaluate/comparisons.parquet: ``difference`` is a - b over the same users."""


class Measured(NamedTuple):
    """Rows of METRICS and of COMPARISONS."""

    metrics: list[tuple[Any, ...]]
    comparisons: list[tuple[Any, ...]]

    def frames(self) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Both as tables."""
        return (
            pl.DataFrame(self.metrics, METRICS, orient="row"),
            pl.DataFrame(self.comparisons, COMPARISONS, orient="row"),
        )


def evaluate_run(
    predictions: Path,
    shards: Path,
    retrieve: Path,
    split: Path,
    out: Path,
    settings: EvaluateConfig,
    seed: int,
    trained: Mapping[str, Path],
    *,
    ingest: Path,
) -> Facts:
    """Measure a run and write the report.

    Args:
        predictions: the rank stage's folder.
        shards: the generate stage's folder; its test and valid examples hold the held-out films.
        retrieve: its rankings and choices.
        split: its rows tell which films the fits know.
        out: receives per_viewer, metrics, comparisons and answers.parquet, metrics.json, answers.json, report.html.
        settings: cut-offs, resamples and confidence.
        seed: of the bootstrap.
        trained: folders of ``finetune``, of the stages that train a model, and of ``probe`` where it ran: curves,
            R-GAT's attention and what the model relies on go into the report.
        ingest: its films and users, for the audits of the answers.

    Returns:
        The means under flat names: ``<row>_<metric>`` for all users, ``..._warm``, ``..._unseen`` and ``..._cold`` for
        the groups; a ``+`` is written ``_with_``. With them the headline figures of the audits of the answers.

    Raises:
        InputError: a system or retriever is missing, a query was ranked twice, or a cut-off is deeper than the lists.
    """
    held_out = _held_out(shards)
    answered = _answered(predictions, held_out)
    lists = _retrieval_lists(retrieve / "rankings.parquet")
    retrieval = _scored(lists, "top", list(settings.retrieval_cutoffs))
    reranked = _rerank_scores(answered, measured_cutoffs(settings.rerank_cutoffs))
    on_test = reranked.filter(pl.col("purpose") == "test")
    on_valid = reranked.filter(pl.col("purpose") == "valid").rename(lambda name: name if name in KEY else VALID + name)

    measured = Measured([], [])
    _measure_family(measured, retrieval, retrieval_rows(retrieval["row"]), settings, seed)
    for ranked in (on_test, on_valid):
        _measure_family(measured, ranked, ranked_systems(ranked["row"]), settings, seed)
    _measure_shares(measured, answered, on_test, settings, seed)
    test = held_out.filter(pl.col("purpose") == "test")
    _measure_knowledge(measured, score_by_knowledge(lists, test, known_films(split)), settings, seed)
    metrics, comparisons = measured.frames()

    per_viewer = pl.concat([retrieval, reranked], how="diagonal").sort("row", "purpose", "user_id", maintain_order=True)
    for name, frame in (("per_viewer", per_viewer), ("metrics", metrics), ("comparisons", comparisons)):
        write_parquet(out / f"{name}.parquet", frame, row_group_size=ROW_GROUP)
    folders = {"rank": predictions, "generate": shards, "retrieve": retrieve, "split": split, **trained}
    audits = audit_answers({**folders, "ingest": ingest}, on_test, out, settings, seed)
    users = {"retrieval_viewers": retrieval["user_id"].n_unique(), "rerank_viewers": on_test["user_id"].n_unique()}
    facts = _flat(metrics) | audits.facts() | users
    write_json(out / "metrics.json", facts)
    write_report(out / "report.html", metrics, comparisons, folders, audits, confidence=settings.confidence, seed=seed)
    return facts


def _held_out(shards: Path) -> pl.DataFrame:
    """``user_id, purpose, cutoff, unseen, answer, candidates, retrieved, is_candidate`` of valid and test examples."""
    parts = [
        scan(parquet_files(shards, purpose)).select(
            "user_id",
            pl.lit(purpose).cast(PURPOSES).alias("purpose"),
            "cutoff",
            "unseen",
            "candidates",
            "retrieved",
            answer=pl.col("answers").list.first(),
            is_candidate=pl.col("candidates").list.contains(pl.col("answers").list.first()),
        )
        for purpose in ("valid", "test")
    ]
    return pl.concat(parts).collect()


def _answered(predictions: Path, held_out: pl.DataFrame) -> pl.DataFrame:
    """Predictions joined with the held-out films; both trivial orders name only candidates and count as constrained."""
    path = predictions / "predictions.parquet"
    frame = conform(read_parquet(path), PREDICTIONS).drop("text")
    trivial = pl.col("system").is_in(["random", "retriever"])
    frame = frame.with_columns(constrained=pl.col("constrained") | trivial)
    if frame.select(*QUERY_KEY, "system", "constrained").is_duplicated().any():
        raise InputError(f"{path}: a query was ranked twice by one system; run rank again in an empty folder")
    joined = frame.join(held_out.drop("candidates"), on=QUERY_KEY, how="left", validate="m:1", maintain_order="left")
    strangers = joined.filter(pl.col("answer").is_null())
    if strangers.height:
        raise InputError(
            f"{path}: user {strangers['user_id'][0]} has no {strangers['purpose'][0]} example at cutoff "
            f"{strangers['cutoff'][0]} in the shards; give the shards that were ranked"
        )
    return joined


def _rerank_scores(answered: pl.DataFrame, cutoffs: list[int]) -> pl.DataFrame:
    """Values per user, purpose and system of constrained answers, on the queries that every system ranked; those of
    ``SAMPLED`` on the part of them that they ranked."""
    constrained = answered.filter(pl.col("constrained")).rename({"system": "row"})
    systems = ranked_systems(constrained["row"])
    lists = pl.concat(
        _in_every_row(constrained.filter(pl.col("purpose") == purpose), systems, "systems of rank/predictions.parquet")
        for purpose in ("valid", "test")
    )
    # a written answer names five films; whoever reads on reads the others as retrieval gave them
    whole = pl.concat_list("answers", "retrieved").list.unique(maintain_order=True)
    return _scores_of(lists.with_columns(answers=whole), "answers", cutoffs)


def _retrieval_lists(rankings: Path) -> pl.DataFrame:
    """Lists of the test queries, with the name of the list as ``row``."""
    frame = conform(scan(rankings).filter(pl.col("purpose") == "test").collect(), RANKINGS)
    rows = retrieval_rows(frame["retriever"])
    return _in_every_row(frame.rename({"retriever": "row"}), rows, "retrievers of retrieve/rankings.parquet")


def _in_every_row(frame: pl.DataFrame, rows: tuple[str, ...], what: str) -> pl.DataFrame:
    """Keep only the queries that stand in all rows: means over different ones can't be compared.

    Rows of ``SAMPLED`` decide over nobody but themselves: such a row keeps the users whose queries it has all.
    """
    missing = [row for row in rows if row not in frame["row"]]
    if missing:
        raise InputError(f"{what}: no test users of {', '.join(missing)}; run that stage again")
    whole = [row for row in rows if row not in SAMPLED]
    num_whole = pl.col("row").is_in(whole).sum().over(QUERY_KEY)
    kept = frame.filter(pl.col("row").is_in(rows)).filter(num_whole == len(whole))
    return kept.filter(pl.len().over("user_id", "row") == pl.col("cutoff").n_unique().over("user_id"))


def _scored(frame: pl.DataFrame, lists: str, cutoffs: list[int]) -> pl.DataFrame:
    deepest = frame.select(pl.col(lists).list.len().max()).item() or 0
    if frame.height and max(cutoffs) > deepest:
        raise InputError(
            f"a cut-off of {max(cutoffs)} is deeper than every list of '{lists}' ({deepest} films); "
            "lower evaluate.retrieval_cutoffs"
        )
    return _scores_of(frame, lists, cutoffs)


def _scores_of(frame: pl.DataFrame, lists: str, cutoffs: list[int]) -> pl.DataFrame:
    scores = score_lists(frame[lists], frame["answer"], cutoffs)
    return mean_over_cutoffs(pl.concat([frame.select(KEY), scores], how="horizontal"), KEY)


class _Resampled(NamedTuple):
    """Some rows' values on the same users, and their resampled means; a column for each row and metric."""

    values_UV: Floats
    means_RV: Floats
    column: dict[tuple[str, str], int]


def _measure_family(
    measured: Measured, frame: pl.DataFrame, rows: tuple[str, ...], settings: EvaluateConfig, seed: int
) -> None:
    """Means of every row and differences of every pair of rows, by group, from one bootstrap of each group.

    A row with fewer users is measured on these, and compared on these alone with the rows that have them all: of two
    such rows the pair is over the users of the smaller, as both hold the first users of one order.
    """
    names = [name for name in frame.columns if name not in KEY]
    for group in GROUPS:
        part = _group(frame, group)
        if not part.height:
            continue
        users = {row: part.filter(pl.col("row") == row)["user_id"] for row in rows}
        everyone = max(map(len, users.values()))
        whole = tuple(row for row in rows if len(users[row]) == everyone)
        found = _measure_means(measured, part, group, whole, names, settings, seed)
        _compare(measured, found, group, list(combinations(whole, 2)), names, settings)
        compared = set(combinations(whole, 2))
        fewer = [row for row in rows if row not in whole and len(users[row])]
        for row in sorted(fewer, key=lambda row: len(users[row]), reverse=True):
            shared = part.filter(pl.col("user_id").is_in(users[row].implode()))
            _measure_means(measured, shared, group, (row,), names, settings, seed)
            having = tuple(other for other in rows if users[row].is_in(users[other].implode()).all())
            found = _resample(shared, having, names, settings, seed)
            pairs = [pair for pair in combinations(having, 2) if row in pair and pair not in compared]
            _compare(measured, found, group, pairs, names, settings)
            compared |= {*pairs}


def _compare(
    measured: Measured,
    found: _Resampled,
    group: str,
    pairs: Sequence[tuple[str, str]],
    names: list[str],
    settings: EvaluateConfig,
) -> None:
    """Differences of pairs of rows, the second minus the first, over the users that were resampled."""
    values_UV, means_RV, column = found
    for (row_b, row_a), name in product(pairs, names):
        a, b = column[row_a, name], column[row_b, name]
        difference = summarise(
            values_UV[:, a] - values_UV[:, b], means_RV[:, a] - means_RV[:, b], confidence=settings.confidence
        )
        measured.comparisons.append((row_a, row_b, name, group, *_numbers(difference)))


def _measure_means(
    measured: Measured,
    part: pl.DataFrame,
    group: str,
    rows: tuple[str, ...],
    names: list[str],
    settings: EvaluateConfig,
    seed: int,
) -> _Resampled:
    """Measure every row over a group's users."""
    found = _resample(part, rows, names, settings, seed)
    for (row, name), v in found.column.items():
        values_U = found.values_UV[:, v]
        if is_share_metric(name) and is_share(values_U):
            mean = share_interval(values_U, confidence=settings.confidence)
        else:
            mean = summarise(values_U, found.means_RV[:, v], confidence=settings.confidence)
        measured.metrics.append((row, group, name, *_numbers(mean)))
    return found


def _resample(
    part: pl.DataFrame, rows: tuple[str, ...], names: list[str], settings: EvaluateConfig, seed: int
) -> _Resampled:
    """One bootstrap of all rows together; each must have the same users."""
    values_UV = np.hstack([_values(part, row, names) for row in rows])
    means_RV = bootstrap_means(values_UV, resamples=settings.bootstrap_resamples, seed=seed)
    return _Resampled(values_UV, means_RV, {pair: v for v, pair in enumerate(product(rows, names))})


def _numbers(found: Interval) -> tuple[float, float | None, float | None, int]:
    return found.value, found.low, found.high, found.num_viewers


def _group(frame: pl.DataFrame, group: str) -> pl.DataFrame:
    return frame if group == "all" else frame.filter(pl.col("unseen") == (group == "unseen"))


def _values(frame: pl.DataFrame, row: str, names: list[str]) -> Floats:
    """Shape (U, metrics), users in order of id, so that all rows are aligned by user."""
    return frame.filter(pl.col("row") == row).sort("user_id").select(names).to_numpy()


def _measure_shares(
    measured: Measured, answered: pl.DataFrame, on_test: pl.DataFrame, settings: EvaluateConfig, seed: int
) -> None:
    """Measure retrieval's ceiling and the shares of valid answers."""
    test = answered.filter(pl.col("purpose") == "test")
    ceiling = test.unique(QUERY_KEY, maintain_order=True).join(on_test, on="user_id", how="semi", maintain_order="left")
    shares = [(CEILING_ROW, "ceiling", ceiling, "is_candidate")]
    for constrained, name in ((True, "valid_answers_constrained"), (False, "valid_answers_unconstrained")):
        for system in SYSTEMS:
            part = test.filter(pl.col("system") == system, pl.col("constrained") == constrained)
            shares.append((system, name, part, "valid"))
    for row, metric, frame, column in shares:
        of_users = mean_over_cutoffs(frame.select("user_id", "unseen", column), ("user_id", "unseen"))
        for group in GROUPS:
            part = _group(of_users, group)
            if not part.height:
                continue
            values_U = part.sort("user_id")[column].to_numpy()
            if is_share(values_U):
                found = share_interval(values_U, confidence=settings.confidence)
            else:  # of a user with several queries
                found = mean_interval(
                    values_U, confidence=settings.confidence, resamples=settings.bootstrap_resamples, seed=seed
                )
            measured.metrics.append((row, group, metric, *_numbers(found)))


def _measure_knowledge(measured: Measured, scores: pl.DataFrame, settings: EvaluateConfig, seed: int) -> None:
    """Measure every list, and the candidates, for warm users, unseen users and cold films; a user's value is the mean
    over the user's queries of the group."""
    lists = retrieval_rows(scores["row"])
    for group, condition in KNOWLEDGE_GROUPS.items():
        part = mean_over_cutoffs(scores.filter(condition()).select("user_id", "row", *MEASURES), ("user_id", "row"))
        for rows in (lists, (CEILING_ROW,)):
            mine = part.filter(pl.col("row").is_in(rows))
            if mine.height:
                _measure_means(measured, mine, group, rows, list(MEASURES), settings, seed)


def _flat(metrics: pl.DataFrame) -> dict[str, Any]:
    return {
        f"{row}_{metric}".replace("+", "_with_") + ("" if group == "all" else f"_{group}"): value
        for row, group, metric, value in metrics.select("row", "group", "metric", "value").iter_rows()
    }
