"""The results of a set: its members' runs compared with the base's, as one table in Markdown, HTML and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tripletune.ablate.plan import Plan
from tripletune.ablate.run import Outcome
from tripletune.ablate.sets import BASE
from tripletune.compare.compare import Comparison, Line, compare_runs
from tripletune.compare.pages import about, markdown_table, p_value, signed, verdict, write_comparison
from tripletune.compare.runs import RunScores, read_scores, same_questions
from tripletune.errors import UserError
from tripletune.html.pages import write_result

FILES = ("ablation.json", "ablation.md", "ablation.html")
CONFIDENCE, RESAMPLES = 0.95, 10_000
SAID = "the member is"
HEADS = ("member", "metric", "difference", "interval", "p adjusted", SAID, "base", "member's", "p", "detectable")
MEMBER_HEADS = ("member", "changes", "asks", "row", "run", "ended", "stages made", "stages reused", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a set found."""

    plan: Plan
    outcomes: list[Outcome]
    comparison: Comparison | None
    """None where the base or all members lack a run that can be compared."""
    left_out: dict[str, str]
    """Members that are not compared, and why."""


def collect(plan: Plan, outcomes: list[Outcome]) -> Results:
    """Compare the members that have a run with the base.

    A member that shares no question with the base, or has not the row, is named with the reason, and the others are
    compared without it.
    """
    scores: list[RunScores] = []
    left_out: dict[str, str] = {}
    for one in outcomes:
        try:
            scores.append(_scores(one, scores[:1]))
        except UserError as error:
            left_out[one.planned.name] = str(error)
    if len(scores) < 2 or scores[0].name != BASE:
        return Results(plan=plan, outcomes=outcomes, comparison=None, left_out=left_out)
    found = compare_runs(scores, metrics=plan.metrics, confidence=CONFIDENCE, resamples=RESAMPLES)
    return Results(plan=plan, outcomes=outcomes, comparison=found, left_out=left_out)


def _scores(one: Outcome, base: Sequence[RunScores]) -> RunScores:
    """The scores of a member under its name; raises UserError where they cannot be compared with the base's."""
    if one.state == "failed":
        raise UserError(f"failed: {one.error}")
    found = replace(read_scores(one.run, one.planned.paths.root, one.planned.row), name=one.planned.name)
    if base:
        same_questions([*base, found])
    return found


def write_results(folder: Path, found: Results) -> list[Path]:
    """Write ablation.json, .md and .html, and comparison.* with all that differs between the runs.

    Raises:
        InputError: the folder cannot be made.
    """
    written = write_result(
        folder,
        "--artifacts",
        FILES,
        plain=plain(found),
        markdown=_markdown(found),
        template="templates/ablation.html.j2",
        found=found,
        verdict=said(found),
        about=about(found.comparison) if found.comparison else [],
        heads=HEADS,
        verdict_head=SAID,
        rows=rows(found),
        member_heads=MEMBER_HEADS,
        members=member_rows(found),
        counted=counted(found.outcomes),
    )
    return [*written, *(write_comparison(folder, found.comparison) if found.comparison else [])]


def plain(found: Results) -> dict[str, Any]:
    """Plain data, as ablation.json has it."""
    members = [
        {
            "name": one.planned.name,
            "why": one.planned.why,
            "changes": list(one.planned.changes),
            "overrides": list(one.planned.overrides),
            "row": one.planned.row,
            "run": one.run,
            "state": one.state,
            "error": one.error,
            "stages": one.stages,
            "seconds": round(one.seconds, 1),
        }
        for one in found.outcomes
    ]
    plan = found.plan
    return {
        "set": plan.name,
        "id": plan.id,
        "why": plan.why,
        "config": str(plan.config),
        "members": members,
        "left_out": found.left_out,
        "said": [*said(found), counted(found.outcomes)],
        "heads": list(HEADS),
        "table": [list(row) for row in rows(found)],
        "comparison": asdict(found.comparison) if found.comparison else None,
    }


def said(found: Results) -> list[str]:
    """The result in sentences, then the members without one."""
    lines = verdict(found.comparison) if found.comparison else ["Nothing could be compared."]
    return [*lines, *(f"{name} is not compared: {why}" for name, why in found.left_out.items())]


def difference_metrics(found: Results) -> dict[str, float]:
    """Differences from the base by name, such as ``no-hint-1.test_ndcg_at_10``, for MLflow."""
    lines = found.comparison.lines if found.comparison else []
    return {f"{line.run}.{line.purpose}_{line.metric}": line.difference for line in lines}


def rows(found: Results) -> list[tuple[str, ...]]:
    """Cells under ``HEADS``: a row for each member, metric and purpose, test before valid."""
    lines = found.comparison.lines if found.comparison else []
    return [_cells(line) for purpose in ("test", "valid") for line in lines if line.purpose == purpose]


def _cells(line: Line) -> tuple[str, ...]:
    interval = "-" if line.low is None or line.high is None else f"{signed(line.low)} to {signed(line.high)}"
    return (
        line.run,
        f"{line.metric}, {line.purpose}",
        signed(line.difference),
        interval,
        p_value(line.p_adjusted),
        line.verdict,
        f"{line.baseline_mean:.4f}",
        f"{line.mean:.4f}",
        p_value(line.p_value),
        "-" if line.detectable is None else f"{line.detectable:.4f}",
    )


def member_rows(found: Results) -> list[tuple[str, ...]]:
    """Cells under ``MEMBER_HEADS``."""
    compared = {run["name"]: run["row"] for run in found.comparison.runs} if found.comparison else {}
    return [
        (
            one.planned.name,
            ", ".join(one.planned.changes) or "-",
            one.planned.why,
            compared.get(one.planned.name, one.planned.row or "-"),
            one.run or "-",
            one.state,
            _made(one),
            str(one.count("reused")) if one.stages else "-",
            f"{one.seconds:.0f}" if one.stages else "-",
        )
        for one in found.outcomes
    ]


def _made(one: Outcome) -> str:
    names = [stage for stage, state in one.stages.items() if state == "made"]
    return f"{len(names)}: {', '.join(names)}" if names else "0" if one.stages else "-"


def counted(outcomes: Sequence[Outcome]) -> str:
    """How many stages were made and reused, in one sentence."""
    now = [one for one in outcomes if one.state == "ran"]
    made, reused = (sum(one.count(how) for one in now) for how in ("made", "reused"))
    before = sum(one.count("made") for one in outcomes if one.state == "finished before")
    earlier = f"; members that had finished made {before} before" if before else ""
    seconds = sum(one.seconds for one in now)
    return f"Stages: {made} made in {seconds:,.0f} s, {reused} reused{earlier}; no output was made twice."


def _markdown(found: Results) -> list[str]:
    plan = found.plan
    lines = [f"# Ablation {plan.name}", "", plan.why, ""]
    lines += [f"**{sentence}**" for sentence in said(found)] + [""]
    if found.comparison:
        lines += [*markdown_table(HEADS, rows(found)), ""]
        for sentence in about(found.comparison):
            lines += [sentence, ""]
    lines += ["## Members", "", *markdown_table(MEMBER_HEADS, member_rows(found)), "", counted(found.outcomes)]
    return lines
