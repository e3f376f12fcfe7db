"""Report leaks: on the screen, in a file, and in the error that stops a stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from tripletune.audit.rules import Finding
from tripletune.errors import InputError
from tripletune.store.files import write_atomically

MAX_PER_KIND = 1000
"""Leaks of one kind reported at a time; a broken split would otherwise name every example."""
SHOWN = 5
"""Leaks of one kind on the screen."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One violation of an audit rule.

    ``rule`` is 1 to 6 (docs/splits.md): (1) training rows of the fits, (2) evidence precedes the answers, (3) no answer
    in the evidence, (4) no test like in training, (5) no future in a ranked list, (6) nothing from ``ingest.as_of`` on;
    0 is for files that prove nothing: damaged, or with columns that contradict each other. ``subject`` is an example
    id, a user of a fit, a row, or a file.
    """

    rule: int
    kind: str
    subject: str
    detail: str


def to_leaks(findings: Iterable[Finding], *, limit: int | None) -> list[Leak]:
    """The first ``limit`` of every finding; None: all."""
    return [
        Leak(finding.rule, finding.kind, subject, detail)
        for finding in findings
        if finding.rows.height  # most are empty, and each query costs
        for subject, detail in finding.rows.select("example_id", "detail").slice(0, limit).iter_rows()
    ]


def format_leaks(leaks: Sequence[Leak]) -> str:
    """Text for the command line: by rule and kind, the number of leaks and the first of them."""
    if not leaks:
        return "no leak found: all rules hold"
    lines = ["1 leak found" if len(leaks) == 1 else f"{len(leaks)} leaks found"]
    by_kind: dict[tuple[int, str], list[Leak]] = {}
    for leak in leaks:
        by_kind.setdefault((leak.rule, leak.kind), []).append(leak)
    for (rule, kind), found in sorted(by_kind.items()):
        lines.append(f"  {_rule(rule)}: {kind}: {len(found)}")
        lines += [f"    {leak.subject}: {leak.detail}" for leak in found[:SHOWN]]
        lines += [f"    and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "\n".join(lines)


def write_leaks(path: Path, leaks: Sequence[Leak]) -> None:
    """Write all leaks as CSV: ``rule, kind, subject, detail``; no rows if there are none."""
    schema = {"rule": pl.Int64, "kind": pl.String, "subject": pl.String, "detail": pl.String}
    write_atomically(path, pl.DataFrame([asdict(leak) for leak in leaks], schema=schema).write_csv)


def _rule(rule: int) -> str:
    return f"rule {rule}" if rule else "no proof"


def refuse_leaks(leaks: Sequence[Leak]) -> None:
    """Stop a stage before it publishes, if there is a leak.

    Raises:
        InputError: there is a leak; the line counts them and names the first.
    """
    if leaks:
        first = leaks[0]
        raise InputError(
            f"the audit found {len(leaks)} leaks, first {_rule(first.rule)}: {first.kind}: {first.subject}: "
            f"{first.detail}; nothing was published. A pinned specialist of another split is the usual cause: "
            "remove the pin, or report a bug"
        )
