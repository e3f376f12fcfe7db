"""The report's section on the answers: what ``templates/report/answers.html.j2`` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from tripletune.evaluate.answers.audit import AnswerAudits
from tripletune.evaluate.answers.genres import REFERENCE
from tripletune.evaluate.answers.groups import LEAST_USERS
from tripletune.evaluate.answers.popularity import CANDIDATES, HELD_OUT
from tripletune.evaluate.answers.written import KINDS
from tripletune.evaluate.metrics import PROMOTION_METRIC
from tripletune.html.pictures import Dot, draw_columns, draw_dots
from tripletune.schemas.rank import SERVED

DRAWN = ("untuned", "tuned", SERVED)
"""Systems whose first answers are drawn by place."""
AUDITS = ("positions", "popularity", "genres", "groups", "written")


def answers_section(audits: AnswerAudits) -> dict[str, Any] | None:
    """Context of the section; None where nothing was ranked.

    Returns:
        ``verdicts`` by audit, and for each audit the rows of its table: lines of ``LINES`` by measure or part.
    """
    if not audits.verdicts:
        return None
    frame = audits.frame()
    systems = list(dict.fromkeys(verdict.row for verdict in audits.verdicts))
    groups = frame.filter(pl.col("audit") == "groups")
    return {
        "verdicts": {
            audit: [one._asdict() for one in audits.verdicts if one.audit == audit and one.row != REFERENCE]
            for audit in AUDITS
        },
        "positions": _rows(frame, "positions", systems, ("tau", "first_chi_square", "five_chi_square")),
        "places": _places(frame),
        "popularity": _rows(
            frame,
            "popularity",
            [HELD_OUT, CANDIDATES, *systems],
            ("likes", "novelty", "tail", "coverage", "gini", "tau"),
        ),
        "genres": _rows(frame, "genres", [CANDIDATES, *systems], ("kl", "kl_over_random")),
        "groups": _groups(groups, systems, audits.ranges),
        "group_systems": systems,
        "metric": PROMOTION_METRIC,
        "least_users": LEAST_USERS,
        "gaps": _gaps(groups, systems),
        "kinds": KINDS,
        "written": _written(frame),
        "invented": {row: titles for row, titles in audits.invented.items() if titles},
    }


def _rows(frame: pl.DataFrame, audit: str, names: Sequence[str], measures: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each name that the audit measured, with its lines by measure; None where it lacks one."""
    lines = frame.filter(pl.col("audit") == audit, pl.col("measure").is_in(measures)).to_dicts()
    found = {(line["row"], line["measure"]): line for line in lines}
    measured = {row for row, _ in found}
    return [
        {"name": name, "cells": {measure: found.get((name, measure)) for measure in measures}}
        for name in names
        if name in measured
    ]


def _places(frame: pl.DataFrame) -> str:
    """Shares of first answers by place of the model's systems, with the even share as a line."""
    lines = frame.filter(pl.col("audit") == "positions", pl.col("measure") == "first", pl.col("row").is_in(DRAWN))
    shares = {row: lines.filter(pl.col("row") == row)["value"].to_list() for row in DRAWN if row in lines["row"]}
    if not shares:
        return ""
    longest = max(shares, key=lambda row: len(shares[row]))
    labels = [label.removeprefix("place ") for label in lines.filter(pl.col("row") == longest)["part"]]
    padded = {row: [*values, *[0.0] * (len(labels) - len(values))] for row, values in shares.items()}
    return draw_columns(
        labels, padded, title="First answers by place shown", xlabel="place shown", even=1 / len(labels)
    )


def _groups(lines: pl.DataFrame, systems: Sequence[str], ranges: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row for each group: the promotion metric of each system, and which systems' gaps were judged."""
    means = lines.filter(pl.col("measure") == PROMOTION_METRIC).to_dicts()
    cells = {(line["part"], line["row"]): line for line in means}
    gaps = {(line["part"], line["row"]): line for line in lines.filter(pl.col("measure") == "gap").to_dicts()}
    return [
        {
            "name": part,
            "range": ranges.get(part, ""),
            "num_users": max(line["num_users"] for (name, _), line in cells.items() if name == part),
            "is_judged": any(name == part for name, _ in gaps),
            "cells": [(cells.get((part, system)), gaps.get((part, system))) for system in systems],
        }
        for part in dict.fromkeys(line["part"] for line in means)
    ]


def _gaps(lines: pl.DataFrame, systems: Sequence[str]) -> str:
    """Gaps of what is served, next to the retriever's."""
    served = SERVED if SERVED in systems else "tuned"
    chosen = lines.filter(pl.col("measure") == "gap", pl.col("row").is_in([served, "retriever"]))
    if chosen.is_empty():
        return ""
    dots = [Dot(line["part"], line["row"], line["value"], line["low"], line["high"]) for line in chosen.to_dicts()]
    return draw_dots(dots, title="Gap between a group and the other users", xlabel=f"gap in {PROMOTION_METRIC}")


def _written(frame: pl.DataFrame) -> list[dict[str, Any]]:
    lines = frame.filter(pl.col("audit") == "written").to_dicts()
    found = {(line["row"], line["part"]): line for line in lines}
    rows = dict.fromkeys(line["row"] for line in lines)
    return [{"name": row, "cells": [found[row, kind] for kind in KINDS]} for row in rows]
