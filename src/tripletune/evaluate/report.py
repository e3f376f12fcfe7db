"""The HTML report of a run: one file, no network, the same bytes for the same inputs.

It gathers what the stages wrote, and lets Jinja2 escape every text that comes from data. ``SECTIONS`` is its order; a
section is a line there and a template in ``html/templates/report/``. What only a run knows (its name, date and commit,
the promotion, what changed since the last run) is put in later, by ``tripletune.summary``: runs may share this output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from tripletune.evaluate.answers.audit import AnswerAudits
from tripletune.evaluate.answers.section import answers_section
from tripletune.evaluate.asked import asked_users
from tripletune.evaluate.cases import worth_reading
from tripletune.evaluate.cold import KNOWLEDGE_GROUPS, MEASURES
from tripletune.evaluate.curves import training_curves
from tripletune.evaluate.examples import first_examples
from tripletune.evaluate.families import FAMILIES, family_tables, is_ranking_metric
from tripletune.evaluate.relations import triples_by_relation
from tripletune.evaluate.reliance import read_probed, reliance_section
from tripletune.evaluate.tables import CEILING_ROW, retrieval_rows
from tripletune.evaluate.verdicts import verdicts
from tripletune.html.pages import write_page
from tripletune.schemas.rank import SERVED
from tripletune.schemas.retrieve import RECENT
from tripletune.store.paths import read_manifest
from tripletune.store.request_time import request_time_note

HEADLINES = (
    (SERVED, "ndcg_at_5", "tuned model with the retriever's scores, ndcg_at_5"),
    ("tuned", "ndcg_at_5", "tuned model, ndcg_at_5"),
    ("untuned", "ndcg_at_5", "untuned model, ndcg_at_5"),
    ("retriever", "ndcg_at_5", "retriever's order, ndcg_at_5"),
    ("fused", "ndcg_at_10", "fused retriever, all films, ndcg_at_10"),
    ("lightgcn", "ndcg_at_10", "LightGCN, all films, ndcg_at_10"),
    ("retrieval", "ceiling", "held-out film is a candidate"),
    ("tuned", "valid_answers_unconstrained", "valid answers without constraint"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """What a section is made from."""

    metrics: pl.DataFrame
    comparisons: pl.DataFrame
    """Rows of ``METRICS`` and ``COMPARISONS`` of evaluate."""
    folders: Mapping[str, Path]
    """Of ``split, rank, generate, retrieve, finetune`` and of the stages that train a model, by stage."""
    audits: AnswerAudits
    """Of the answers."""


class Section(NamedTuple):
    """One section of the report: ``html/templates/report/<template>.html.j2``, which finds its context as ``part``."""

    anchor: str
    title: str
    template: str
    context: Callable[[Evaluated], Mapping[str, Any] | None]
    """None where the run has nothing to show: the section is left out of the page and of its contents."""


def _family(family: Mapping[str, Any]) -> Section:
    return Section(
        family["anchor"],
        family["title"],
        "family",
        lambda given: family_tables(family, given.metrics, given.comparisons),
    )


RESULTS = (
    *(_family(family) for family in FAMILIES),
    Section("shares", "Ceiling and valid answers", "shares", lambda given: {"shares": _shares(given)}),
    Section("cases", "Cases worth reading", "cases", lambda given: _cases(given)),
)
AUDITS = (
    Section("answers", "The answers", "answers", lambda given: answers_section(given.audits)),
    Section("users", "Users asked", "users", lambda given: _users(given)),
    Section(
        "cold", "Warm users, unseen users and cold films", "cold", lambda given: {"groups": _knowledge(given.metrics)}
    ),
    Section(
        "reliance", "What the model relies on", "reliance", lambda given: reliance_section(given.folders.get("probe"))
    ),
    Section("relations", "Triples by relation", "relations", lambda given: triples_by_relation(given.folders)),
)
"""Sections on whom and what the results rest, and on how the model answers; a new audit is a line here."""
RECORDS = (
    Section("training", "Training", "training", lambda given: {"curves": training_curves(given.folders)}),
    Section("examples", "Examples", "examples", lambda given: {"examples": _examples(given)}),
    Section("lineage", "Lineage", "lineage", lambda given: {"lineage": _lineage(given.folders)}),
)
SECTIONS: Mapping[str, tuple[Section, ...]] = {"Results": RESULTS, "Audits": AUDITS, "Records": RECORDS}
"""In the order of the page, by heading of the contents."""


def write_report(
    path: Path,
    metrics: pl.DataFrame,
    comparisons: pl.DataFrame,
    folders: Mapping[str, Path],
    audits: AnswerAudits,
    *,
    confidence: float,
    seed: int,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        metrics, comparisons, folders, audits: as in ``Evaluated``.
        confidence: of the intervals.
        seed: of the run.
    """
    given = Evaluated(metrics=metrics, comparisons=comparisons, folders=folders, audits=audits)
    parts = {
        title: [(section, part) for section in sections if (part := section.context(given)) is not None]
        for title, sections in SECTIONS.items()
    }
    write_page(
        path,
        "templates/report.html.j2",
        dataset=_dataset(folders),
        facts=_facts(folders, seed),
        confidence=confidence,
        headlines=_headlines(metrics),
        verdicts=verdicts(metrics, comparisons, read_probed(folders["probe"]) if "probe" in folders else None),
        contents=parts,
    )


def _dataset(folders: Mapping[str, Path]) -> str:
    manifest = read_manifest(folders["rank"]) or {}
    return str(manifest.get("dataset", "unpublished"))


def _facts(folders: Mapping[str, Path], seed: int) -> list[tuple[str, str]]:
    """Model, prompts and data from the stages' manifests, each with its label; of work folders the seed alone."""

    def of(stage: str, part: str) -> Mapping[str, Any]:
        manifest = read_manifest(folders[stage]) or {}
        return dict(
            manifest.get("ingredients", {}).get("fields", {}) if part == "fields" else manifest.get("facts", {})
        )

    tuned, prompts, split = of("finetune", "fields"), of("generate", "facts"), of("split", "facts")
    found = []
    if "finetune.model" in tuned:
        steps = of("finetune", "facts").get("steps")
        model = f"{tuned['finetune.model']}, objective {tuned.get('finetune.objective', 'sft')}"
        found.append(("model", f"{model}, {steps:,} steps" if steps is not None else model))
    if "template" in prompts:
        examples = prompts.get("examples", {}).get("train")
        found.append(("template", prompts["template"] + (f", {examples:,} training examples" if examples else "")))
    if "rows_kept" in split:
        counts = f"{split['rows_kept']:,} ratings of {split['viewers']:,} users"
        found.append(("data", f"{counts}, split {split['protocol']}"))
    return [*found, ("seed", str(seed))]


def _headlines(metrics: pl.DataFrame) -> list[dict[str, Any]]:
    found = {(line["row"], line["metric"]): line for line in metrics.filter(pl.col("group") == "all").to_dicts()}
    return [found[row, metric] | {"label": label} for row, metric, label in HEADLINES if (row, metric) in found]


def _shares(given: Evaluated) -> list[dict[str, Any]]:
    """Lines whose metric is no ranking metric of a family: the ceiling, valid answers, the promotion's metric."""
    return given.metrics.filter(~is_ranking_metric(given.comparisons), pl.col("group") == "all").to_dicts()


def _cases(given: Evaluated) -> Mapping[str, Any] | None:
    found = worth_reading(given.folders["generate"], given.folders["rank"])
    return found if any(found.values()) else None


def _users(given: Evaluated) -> dict[str, Any]:
    return {
        "asked": asked_users(given.folders["split"], given.folders["retrieve"]),
        "recent": RECENT if RECENT in given.metrics["row"] else "",
        "request_time": request_time_note(given.folders),
    }


def _examples(given: Evaluated) -> list[dict[str, Any]]:
    return first_examples(given.folders["generate"], given.folders["rank"])


def _knowledge(metrics: pl.DataFrame) -> list[dict[str, Any]]:
    """Groups of ``cold.KNOWLEDGE_GROUPS``, each with its rows: recall and share of cold films."""
    groups = []
    for group in KNOWLEDGE_GROUPS:
        part = metrics.filter(pl.col("group") == group)
        found = {(line["row"], line["metric"]): line for line in part.to_dicts()}
        rows = {row: [found[row, name] for name in MEASURES] for row, name in found if name == MEASURES[0]}
        order = [row for row in (*retrieval_rows(rows), CEILING_ROW) if row in rows]
        groups.append({"name": group, "rows": [(row, *rows[row]) for row in order]})
    return groups


def _lineage(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Stage, fingerprint and parents of every folder the report was made from, and of their parents."""
    known: dict[str, str] = {}
    parents: dict[str, list[str]] = {}
    for stage, folder in folders.items():
        manifest = read_manifest(folder) or {}
        known[stage] = manifest.get("fingerprint", folder.name)
        parents[stage] = sorted(manifest.get("parents", {}))
        for parent, fingerprint in manifest.get("parents", {}).items():
            known.setdefault(parent, fingerprint)
    return [{"stage": stage, "fingerprint": known[stage], "parents": parents.get(stage, [])} for stage in sorted(known)]
