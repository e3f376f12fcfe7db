"""All audits of a run's answers, from the files of its stages; no model is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import polars as pl

from tripletune.config import EvaluateConfig
from tripletune.evaluate.answers.genres import audit_genres
from tripletune.evaluate.answers.groups import audit_groups, describe_users, name_ranges
from tripletune.evaluate.answers.popularity import audit_popularity, film_measures
from tripletune.evaluate.answers.positions import NAME as POSITIONS
from tripletune.evaluate.answers.positions import audit_positions
from tripletune.evaluate.answers.record import Audited, Verdict
from tripletune.evaluate.answers.shown import QUERY, place_candidates
from tripletune.evaluate.answers.written import INVENTED, audit_written
from tripletune.evaluate.tables import ranked_systems
from tripletune.schemas.answers import LETTERS, TITLES
from tripletune.schemas.base import conform
from tripletune.schemas.ingest import MOVIES, USERS
from tripletune.schemas.rank import PREDICTIONS, SYSTEMS
from tripletune.schemas.split import LIKE_LABELS
from tripletune.store.catalogue import read_catalogue
from tripletune.store.files import write_json
from tripletune.store.parquet import parquet_files, scan, write_parquet
from tripletune.store.popularity import film_popularity, num_fit_users
from tripletune.store.read import read_parquet
from tripletune.store.shards import split_files

HEADLINES = {
    ("positions", "top"): "top_place_share",
    ("positions", "tau"): "place_tau",
    ("popularity", "tau"): "popularity_tau",
    ("genres", "kl"): "genre_kl",
    ("groups", "worst_gap"): "worst_group_gap",
    ("written", "answers"): "invented_titles",
}
"""Audit and measure of the figures that become facts of the stage, with their name behind the system's."""


@dataclass(frozen=True, slots=True)
class AnswerAudits(Audited):
    """Lines and verdicts of all audits, and what their page says besides."""

    ranges: dict[str, str] = field(default_factory=dict)
    """What the thirds of the users are, such as ``activity: low`` -> ``3 to 17 likes``."""
    invented: dict[str, list[str]] = field(default_factory=dict)
    """By system invented titles, as they were written."""

    def facts(self) -> dict[str, float]:
        """Headline figures of the systems by flat name; a ``+`` is written ``_with_``."""
        return {
            f"{line.row}_{HEADLINES[line.audit, line.measure]}".replace("+", "_with_"): line.value
            for line in self.lines
            if (line.audit, line.measure) in HEADLINES and line.row in SYSTEMS
            if line.measure != "answers" or line.part == INVENTED
        }


class _Queries(NamedTuple):
    """The test queries that were ranked."""

    examples: pl.DataFrame
    """``user_id, cutoff, movie_id`` (the held-out film), ``candidates, candidate_titles, candidate_letters,
    retrieved``."""
    likes: pl.DataFrame
    """``user_id, cutoff, movie_id``: the user's likes before each query."""


def audit_answers(
    folders: Mapping[str, Path], scores: pl.DataFrame, out: Path, settings: EvaluateConfig, seed: int
) -> AnswerAudits:
    """Audit positions, popularity, genres, groups and written answers; writes answers.parquet and answers.json.

    Args:
        folders: of ``ingest, split, generate, rank``.
        scores: ``user_id, row`` and metrics of the re-ranked test queries, one row per user and system.
        out: folder that receives the files.
        settings: resamples and confidence.
        seed: of all draws.
    """
    predictions = conform(read_parquet(folders["rank"] / "predictions.parquet"), PREDICTIONS)
    predictions = predictions.filter(pl.col("purpose") == "test")
    queries = _queries_of(folders, predictions)
    # both trivial orders name only candidates
    trivial = pl.col("system").is_in(["random", "retriever"])
    constrained = predictions.filter(pl.col("constrained") | trivial).join(queries.examples, on=QUERY, how="semi")
    systems = [name for name in ranked_systems(constrained["system"]) if name in constrained["system"]]
    found = AnswerAudits()
    if systems:
        placed = place_candidates(constrained.select(*QUERY, "system", "answers"), queries.examples)
        popularity = film_popularity(folders["split"])["test"]
        found.add(_positions(placed, queries.examples, systems, settings, seed))
        found.add(_films(folders, queries, placed, popularity, systems, settings, seed))
        people = conform(read_parquet(folders["ingest"] / "users.parquet"), USERS)
        users = describe_users(queries.likes, queries.examples.select(QUERY), popularity, people)
        found.add(audit_groups(scores, users, systems, settings=settings, seed=seed))
        found.ranges.update(name_ranges(users))
        _written(found, folders, queries, predictions.filter(~pl.col("constrained") & ~trivial), settings)
    write_parquet(out / "answers.parquet", found.frame())
    written = {"verdicts": [verdict._asdict() for verdict in found.verdicts], "ranges": found.ranges}
    write_json(out / "answers.json", written | {"invented": found.invented})
    return found


def _queries_of(folders: Mapping[str, Path], predictions: pl.DataFrame) -> _Queries:
    columns = ("candidates", "candidate_titles", "candidate_letters", "retrieved")
    ranked = predictions.select(QUERY).unique()
    examples = (
        scan(parquet_files(folders["generate"], "test"))
        .select(*QUERY, *columns, movie_id=pl.col("answers").list.first())
        .join(ranked.lazy(), on=QUERY, how="semi")
        .filter(pl.col("candidates").list.len() > 0)
        .collect()
        .sort(QUERY)
    )
    keys = examples.select(QUERY)
    # unlike a join alone, the filter lets the reader skip other users' rows
    rows = scan(list(split_files(folders["split"]).values())).filter(
        pl.col("user_id").is_in(keys["user_id"].unique().implode()), pl.col("label").is_in(LIKE_LABELS)
    )
    likes = rows.join(keys.lazy(), on="user_id").filter(pl.col("position") < pl.col("cutoff"))
    return _Queries(examples, likes.select(*QUERY, "movie_id", "position").collect().sort(*QUERY, "position"))


def _positions(
    placed: pl.DataFrame, examples: pl.DataFrame, systems: Sequence[str], settings: EvaluateConfig, seed: int
) -> Audited:
    """The audit of positions, where the order shown is random."""
    if examples.filter(pl.col("candidates") != pl.col("retrieved")).is_empty():
        words = 'candidates are shown in the retriever\'s order (prompt.candidate_order = "retrieved")'
        return Audited([], [Verdict(POSITIONS, system, "not judged", words) for system in systems])
    longest = examples.sort(pl.col("candidates").list.len(), descending=True).row(0, named=True)
    numbers = [str(place) for place in range(1, len(longest["candidates"]) + 1)]
    labels = longest["candidate_letters"] or [f"place {number}" for number in numbers]
    return audit_positions(placed, systems, labels, settings=settings, seed=seed)


def _films(
    folders: Mapping[str, Path],
    queries: _Queries,
    placed: pl.DataFrame,
    popularity: pl.DataFrame,
    systems: Sequence[str],
    settings: EvaluateConfig,
    seed: int,
) -> Audited:
    """The audits of popularity and of genres."""
    num_users = num_fit_users(folders["split"], "test")
    found = audit_popularity(
        placed,
        queries.examples.select(*QUERY, "movie_id"),
        film_measures(popularity, num_users),
        systems,
        num_films=len(read_catalogue(folders["split"])),
        num_users=num_users,
        settings=settings,
        seed=seed,
    )
    genres = _movies(folders).select("movie_id", "genres")
    found.add(audit_genres(placed, queries.likes, genres, systems, settings=settings, seed=seed))
    return found


def _written(
    found: AnswerAudits, folders: Mapping[str, Path], queries: _Queries, answers: pl.DataFrame, settings: EvaluateConfig
) -> None:
    texts = answers.select(*QUERY, "system", "text", "valid").join(
        queries.examples.select(*QUERY, "candidate_titles", "candidate_letters"), on=QUERY, maintain_order="left"
    )
    is_labelled = bool(queries.examples["candidate_letters"].list.len().sum())
    style = LETTERS if is_labelled else TITLES
    audited, invented = audit_written(texts, style, _movies(folders)["title"], SYSTEMS, settings)
    found.add(audited)
    found.invented.update(invented)


def _movies(folders: Mapping[str, Path]) -> pl.DataFrame:
    return conform(read_parquet(folders["ingest"] / "movies.parquet"), MOVIES)
