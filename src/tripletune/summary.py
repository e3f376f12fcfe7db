"""A run's own page and description: the report of its outputs, with what only the run knows.

Outputs are shared by the runs that need the same, so ``evaluate/report.html`` names no run. The page of a run is that
file with the run's name, date and commit, the promotion and the changes since the last run put in. Pictures are not
drawn again: where nothing changed, this takes a moment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tripletune.compare.differences import (
    Difference,
    difference_tables,
    differing_inputs,
    differing_settings,
    differing_stages,
)
from tripletune.compare.runs import RunScores, read_scores
from tripletune.config import EvaluateConfig
from tripletune.errors import InputError, UserError
from tripletune.evaluate.metrics import PROMOTION_METRIC
from tripletune.evaluate.reliance import read_probed
from tripletune.evaluate.verdict import Verdict, signed
from tripletune.evaluate.verdicts import verdicts
from tripletune.html.pages import render_page
from tripletune.promote.pages import promotion_part
from tripletune.store.champion import read_decision
from tripletune.store.files import make_folder, write_atomically
from tripletune.store.read import read_parquet
from tripletune.store.runs import RunRecord, list_runs, run_page

if TYPE_CHECKING:
    from tripletune.compare.compare import Line

SLOT = re.compile(r"<!--run: (\w+)-->\n.*?<!--run: end \1-->\n?", re.DOTALL)
"""A place of the report that a run fills; data can't forge one, as its ``<`` is escaped."""
SLOTS = ("facts", "verdicts", "changes")
WORDS = {"better": "yes", "worse": "no", "no difference shown": "not shown"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs from the last run of the dataset."""

    last: str
    rows: tuple[str, ...]
    """The rows that are compared, the last run's first: what each serves."""
    lines: list[Line]
    """``PROMOTION_METRIC`` of test and valid on the shared users; none where the values were not compared."""
    settings: list[Difference]
    inputs: list[Difference]
    stages: list[Difference]
    not_compared: str = ""
    """Why there are no lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A run's verdicts, and where its page is."""

    page: Path
    verdicts: list[Verdict]
    facts: list[tuple[str, str]]

    def markdown(self) -> str:
        """What the run is and what it showed, for pages that show no HTML."""
        said = [f"- **{one.question}** {one.word}. {one.text}" for one in self.verdicts]
        return "\n".join([_listed(self.facts), "", *said]) + "\n"


def shown_verdicts(record: RunRecord, root: Path) -> list[Verdict]:
    """What the measurements of an evaluated run say, and those of its probe where it has one.

    Raises:
        MissingArtifactError: the run has no finished evaluate output.
    """
    paths = record.paths(root)
    evaluate = paths.require("evaluate")
    metrics, comparisons = (read_parquet(evaluate / f"{name}.parquet") for name in ("metrics", "comparisons"))
    has_probe = "probe" in paths.fingerprints and paths.is_here("probe")
    return verdicts(metrics, comparisons, read_probed(paths.folder("probe")) if has_probe else None)


def summarise_run(record: RunRecord, root: Path) -> Summary:
    """Write the page of an evaluated run, ``<root>/<dataset>/report/<run>/report.html``.

    Args:
        record: of the run; it may still be running.
        root: the artifact root.

    Raises:
        MissingArtifactError: the run has no finished evaluate output.
        InputError: the report in it was written by another version.
    """
    evaluate = record.paths(root).require("evaluate")
    shown = shown_verdicts(record, root)
    changes = _changes(record, root)
    of_run = [_promotion(record, root), _since(changes)]
    facts = run_facts(record)
    values: dict[str, Any] = {"last": "", "rows": (), "lines": [], "not_compared": "", "differing": []}
    if changes:
        values = {
            "last": changes.last,
            "rows": changes.rows,
            "lines": changes.lines,
            "not_compared": changes.not_compared,
            "differing": difference_tables(changes.settings, changes.inputs, changes.stages),
        }
    decision = read_decision(root, record.dataset, record.name)
    promotion = promotion_part(decision) if decision else None
    part = render_page("templates/run.html.j2", facts=facts, verdicts=of_run, promotion=promotion, **values)
    page = run_page(root, record)
    make_folder(page.parent, "--artifacts")
    html = _filled(evaluate / "report.html", part)
    write_atomically(page, lambda to: to.write_text(html, encoding="utf-8"))
    return Summary(page=page, verdicts=[*shown, *of_run], facts=[*facts, *_model(record)])


def describe_unevaluated(record: RunRecord) -> str:
    """What a run that is not evaluated yet is, as Markdown."""
    return f"{_listed([*run_facts(record), *_model(record)])}\n\nNot evaluated yet.\n"


def _listed(facts: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{label}: {text}" for label, text in facts)


def _model(record: RunRecord) -> list[tuple[str, str]]:
    tuned, prompt = (record.config.get(section, {}) for section in ("finetune", "prompt"))
    model = f"{Path(tuned.get('model', '')).name}, objective {tuned.get('objective', '')}"
    return [("model", model), ("template", Path(prompt.get("template", "")).stem)]


def run_facts(record: RunRecord) -> list[tuple[str, str]]:
    """Run, date, commit and data of a run, each with its label; paths are named by their last part."""
    source = record.config.get("source", {})
    named = [Path(source[name]).name for name in ("movielens", "imdb") if source.get(name)]
    commit = record.commit[:10] or "not known"
    dirty = ", with changes that are not committed" if record.dirty else ""
    return [
        ("run", record.name),
        ("started", record.started.replace("T", " ").replace("Z", " UTC")),
        ("commit", commit + dirty),
        ("release", ", ".join(named) if source.get("movielens") else ", ".join(["synthetic", *named])),
    ]


def _filled(report: Path, part: str) -> str:
    """The report with a run's part in its slots."""
    html = report.read_text(encoding="utf-8")
    given = {found[1]: found[0] for found in SLOT.finditer(part)}
    if [found[1] for found in SLOT.finditer(html)] != list(SLOTS):
        raise InputError(f"{report}: has no place for what a run adds; another version wrote it: run evaluate again")
    return SLOT.sub(lambda found: given[found[1]], html)


def _promotion(record: RunRecord, root: Path) -> Verdict:
    question = "Is it promoted?"
    decision: Mapping[str, Any] = read_decision(root, record.dataset, record.name)
    if not decision:
        return Verdict(question, "not known", "This run has made no decision.")
    if not decision["promote"]:
        return Verdict(question, "no", f"{decision['reason']}.")
    version = f"Version {decision['version']} of {decision['model']}: " if decision.get("version") else ""
    return Verdict(question, "yes", f"{version}{decision['reason']}.")


def _since(changes: Changes | None) -> Verdict:
    question = "Is it better than the last run?"
    if changes is None:
        return Verdict(question, "not known", "No earlier completed run of this dataset has its outputs here.")
    if not (changes.stages or changes.not_compared):
        return Verdict(question, "not shown", f"Every output is the same as in {changes.last}.")
    differ = [
        f"{len(of_kind)} {name}" for name, of_kind in (("settings", changes.settings), ("inputs", changes.inputs))
    ]
    other = f"{', '.join(differ)} and {len(changes.stages)} stages differ from {changes.last}"
    test = next((line for line in changes.lines if line.purpose == "test"), None)
    if test is None:
        return Verdict(question, "not known", f"{other}; {changes.not_compared or 'no test query is shared'}.")
    text = (
        f"{test.metric} of {changes.rows[1]} minus that run's {changes.rows[0]}: {signed(test.difference)} "
        f"(p adjusted {test.p_adjusted:.3f}, {test.num_users:,} shared users), "
        f"{test.mean:.3f} against {test.baseline_mean:.3f}; {other}."
    )
    return Verdict(question, WORDS[test.verdict], text)


def _last_run(record: RunRecord, root: Path) -> RunRecord | None:
    """The newest completed run of the same dataset that began before this one and whose outputs are here."""
    for other in reversed(list_runs(root)):
        is_earlier = other.name != record.name and other.started <= record.started and not other.is_aside
        evaluated = other.dataset == record.dataset and other.status == "completed" and "evaluate" in other.stages
        if is_earlier and evaluated and all(other.paths(root).is_here(stage) for stage in ("generate", "evaluate")):
            return other
    return None


def _changes(record: RunRecord, root: Path) -> Changes | None:
    last = _last_run(record, root)
    if last is None:
        return None
    settings = EvaluateConfig.model_validate(record.config.get("evaluate", {}))
    runs: list[RunScores] = []
    lines: list[Line] = []
    why = ""
    try:
        runs = [read_scores(one.name, root) for one in (last, record)]
        if last.fingerprints["evaluate"] != record.fingerprints["evaluate"]:
            from tripletune.compare.compare import compare_runs  # takes scipy.stats: a second that others need not wait

            metrics, confidence = [PROMOTION_METRIC], settings.confidence
            found = compare_runs(runs, metrics=metrics, confidence=confidence, resamples=settings.bootstrap_resamples)
            lines = found.lines
    except UserError as error:  # they share no questions, or a file of the last run is damaged
        why = str(error)
    return Changes(
        last=last.name,
        rows=tuple(run.row for run in runs),
        lines=lines,
        settings=differing_settings(runs),
        inputs=differing_inputs(runs),
        stages=differing_stages(runs, runs[0]) if runs else [],
        not_compared=why.rstrip("."),
    )
