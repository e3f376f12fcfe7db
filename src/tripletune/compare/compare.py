"""Compare runs: paired differences of every metric to a baseline run, with one family of adjusted p-values.

Everything that is drawn depends on the shared users alone, never on the order of the runs: the other way round the
differences are negated and the p-values the same.
"""

# Shape letters in this file:
#   U users, V metrics

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tripletune.compare.differences import Difference, differing_inputs, differing_settings, differing_stages
from tripletune.compare.paired import detectable_difference, sign_flip_p_values, wilcoxon_p_value
from tripletune.compare.runs import COMPARED, UNIT, RunScores, same_questions
from tripletune.errors import UserError
from tripletune.evaluate.significance import bootstrap_means, holm, summarise
from tripletune.store.fingerprint import sha256_json

Floats = npt.NDArray[np.float64]
POWER = 0.8
"""Of the detectable difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One metric of one run against the baseline, over the users of one purpose."""

    purpose: str
    metric: str
    run: str
    baseline: str
    mean: float
    baseline_mean: float
    difference: float
    """Mean of the run minus that of the baseline."""
    low: float | None
    high: float | None
    """Percentile bootstrap over users; None with fewer than two."""
    num_users: int
    num_differing: int
    """Users whose two values differ: only they can show anything."""
    p_value: float
    """Of the randomisation test."""
    p_wilcoxon: float
    p_adjusted: float
    """``p_value`` after Holm's correction over the family."""
    detectable: float | None
    """The true difference that so many users show in 80 of 100 samples, in one test without correction."""
    verdict: str
    """``better`` or ``worse`` than the baseline by ``p_adjusted``, else ``no difference shown``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """The users and questions of a purpose that all runs share."""

    purpose: str
    num_users: int
    num_questions: int
    users_of_runs: list[int]
    """Users of each run with a question of the purpose, shared or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What ``compare`` found; plain data, written as comparison.json."""

    runs: list[dict[str, Any]]
    """``name``, ``dataset``, ``row``, ``started`` and ``status`` of each run, in the order given."""
    baseline: str
    family: dict[str, Any]
    """``num_tests``, ``pairs``, ``metrics`` by purpose, and ``said``, a sentence."""
    confidence: float
    resamples: int
    power: float
    shared: list[Shared]
    lines: list[Line]
    settings: list[Difference]
    inputs: list[Difference]
    stages: list[Difference]


def compare_runs(
    runs: Sequence[RunScores],
    baseline: str = "",
    *,
    metrics: Sequence[str] = (),
    confidence: float,
    resamples: int,
) -> Comparison:
    """Compare runs on the users and questions that all of them share.

    Args:
        runs: two or more.
        baseline: name of the run that the others are compared with; empty: the first.
        metrics: the family's; empty: all that every run measured.
        confidence: of the intervals, and 1 minus the level of the verdicts.
        resamples: of the bootstrap and of the randomisation test.

    Raises:
        UserError: a run is named twice, the baseline is none of them, or a metric was not measured by all.
        InputError: they share no questions; the message gives the reason.
    """
    names = [run.name for run in runs]
    _check_names(names, baseline)
    shared = same_questions(list(runs))
    first = next(run for run in runs if run.name == (baseline or names[0]))
    others = [run for run in runs if run is not first]
    parts = shared.partition_by("purpose", as_dict=True)
    asked = {purpose: parts[purpose,] for purpose in COMPARED if (purpose,) in parts}
    columns = {purpose: _metrics(runs, purpose, metrics) for purpose in asked}
    lines = [
        line
        for other in others
        for purpose, users in asked.items()
        for line in _compare_pair(first, other, users, columns[purpose], confidence, resamples)
    ]
    if not lines:
        raise UserError(f"the runs measured no metric in common{' of ' + ', '.join(metrics) if metrics else ''}")
    return Comparison(
        runs=[_described(run) for run in runs],
        baseline=first.name,
        family=_family(first, others, columns, len(lines)),
        confidence=confidence,
        resamples=resamples,
        power=POWER,
        shared=[_shared(runs, purpose, users) for purpose, users in asked.items()],
        lines=_adjusted(lines, 1.0 - confidence),
        settings=differing_settings(runs),
        inputs=differing_inputs(runs),
        stages=differing_stages(runs, first),
    )


def _check_names(names: list[str], baseline: str) -> None:
    if len(names) < 2:
        raise UserError("compare needs two runs or more: tripletune compare RUN RUN")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"run {twice[0]} is named twice; a run does not differ from itself")
    if baseline and baseline not in names:
        raise UserError(f"--baseline {baseline!r} is none of the compared runs: {', '.join(names)}")


def _metrics(runs: Sequence[RunScores], purpose: str, wanted: Sequence[str]) -> list[str]:
    """Metrics of the purpose that all runs measured, of those wanted, in the first run's order."""
    found: list[list[str]] = []
    for run in runs:
        part = run.scores.filter(pl.col("purpose") == purpose).drop(*UNIT, "asked")
        found.append([column.name for column in part if not column.has_nulls()])
    common = [name for name in found[0] if all(name in names for names in found)]
    missing = [name for name in wanted if name not in common]
    if missing:
        raise UserError(f"--metric {missing[0]!r} was not measured by every run; all measured {', '.join(common)}")
    return [name for name in common if not wanted or name in wanted]


def _compare_pair(
    first: RunScores, other: RunScores, users: pl.DataFrame, metrics: list[str], confidence: float, resamples: int
) -> list[Line]:
    """Every metric of one purpose; ``p_adjusted`` and ``verdict`` are filled in over the family."""
    if not metrics:
        return []
    before_UV, after_UV = (_values(run, users, metrics) for run in (first, other))
    differences_UV = after_UV - before_UV
    seed = _seed(users)
    means_RV = bootstrap_means(differences_UV, resamples=resamples, seed=seed)
    p_V = sign_flip_p_values(differences_UV, resamples=resamples, seed=seed)
    lines = []
    for v, metric in enumerate(metrics):
        difference_U = differences_UV[:, v]
        found = summarise(difference_U, means_RV[:, v], confidence=confidence)
        line = Line(
            purpose=str(users["purpose"][0]),
            metric=metric,
            run=other.name,
            baseline=first.name,
            mean=float(after_UV[:, v].mean()),
            baseline_mean=float(before_UV[:, v].mean()),
            difference=found.value,
            low=found.low,
            high=found.high,
            num_users=found.num_viewers,
            num_differing=int((difference_U != 0).sum()),
            p_value=float(p_V[v]),
            p_wilcoxon=wilcoxon_p_value(difference_U),
            p_adjusted=1.0,
            detectable=detectable_difference(difference_U, confidence=confidence, power=POWER),
            verdict="",
        )
        lines.append(line)
    return lines


def _values(run: RunScores, users: pl.DataFrame, metrics: list[str]) -> Floats:
    """Shape (U, V), in the order of the shared users."""
    joined = users.join(run.scores, on=list(UNIT), how="left", maintain_order="left", validate="1:1")
    return joined.select(metrics).to_numpy()


def _seed(users: pl.DataFrame) -> int:
    """Of the draws: from the users and what they were asked, the same whichever run is named first."""
    return int(sha256_json(users.select("user_id", "asked").rows())[:15], 16)


def _adjusted(lines: list[Line], level: float) -> list[Line]:
    """With Holm's correction over all lines, and the verdict by it."""
    adjusted = holm(np.array([line.p_value for line in lines]))
    return [
        replace(line, p_adjusted=float(p), verdict=_verdict(line.difference, float(p), level))
        for line, p in zip(lines, adjusted, strict=True)
    ]


def _verdict(difference: float, p_adjusted: float, level: float) -> str:
    if p_adjusted > level:
        return "no difference shown"
    return "better" if difference > 0 else "worse"


def _family(
    first: RunScores, others: Sequence[RunScores], columns: dict[str, list[str]], num_tests: int
) -> dict[str, Any]:
    pairs = [f"{other.name} ({other.row}) against {first.name} ({first.row})" for other in others]
    of_purposes = "; ".join(f"{purpose}: {', '.join(names)}" for purpose, names in columns.items())
    said = f"{num_tests} tests, {len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of runs by metric ({of_purposes})"
    return {"num_tests": num_tests, "pairs": pairs, "metrics": columns, "said": said}


def _shared(runs: Sequence[RunScores], purpose: str, users: pl.DataFrame) -> Shared:
    return Shared(
        purpose=purpose,
        num_users=users.height,
        num_questions=int(users["asked"].str.count_matches(" ").sum()) + users.height,
        users_of_runs=[run.scores.filter(pl.col("purpose") == purpose).height for run in runs],
    )


def _described(run: RunScores) -> dict[str, Any]:
    record = run.record
    return {
        "name": run.name,
        "dataset": record.dataset,
        "row": run.row,
        "started": record.started,
        "status": record.status,
    }
