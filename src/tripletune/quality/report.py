"""Quality report on a run's shards: their measures, and their drift from the last run's.

It runs after generate and, if limits are set, stops the run before a model is trained on shards that moved too far.
Leaks are checked by the audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tripletune.config import QualityConfig
from tripletune.errors import DriftError, InputError
from tripletune.quality import FIGURES, PAGE
from tripletune.quality.drift import Shift, find_shifts
from tripletune.quality.figures import figures_of, headline
from tripletune.quality.measures import Measures, measure_shards
from tripletune.quality.page import write_quality_page
from tripletune.store.files import write_json
from tripletune.store.paths import read_manifest
from tripletune.store.popularity import film_popularity


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Result of the quality report."""

    metrics: dict[str, float]
    """Headline figures by their name among a run's metrics, drift included."""
    too_far: tuple[Shift, ...]
    """Shifts above their limit, the largest first, relative to the limit."""
    page: Path


def report_quality(
    generate: Path,
    split: Path,
    out: Path,
    settings: QualityConfig,
    *,
    run: str,
    before: tuple[str, Path] | None,
    choice: str = "",
) -> Quality:
    """Measure the shards, compare them with the last run's, and write ``quality.html`` and ``quality.json``.

    Args:
        generate, split: folders of the finished stages.
        out: folder for the two files.
        settings: the limits.
        run: name of the run.
        before: name and generate folder of the run to compare with.
        choice: a sentence on the learned choice of triples; empty: none is learned.

    Raises:
        InputError: this run's shards cannot be read. If only the other run's cannot be read, the page gives the reason.
    """
    popularity = film_popularity(split)
    measures = measure_shards(generate, popularity, read_text=True)
    earlier, not_compared = None, "there is no other completed run of this dataset whose shards are there and differ."
    if before:
        try:
            earlier, not_compared = measure_shards(before[1], popularity, read_text=False), ""
        except InputError as error:
            not_compared = f"the shards of {before[0]} cannot be read: {error}"
    shifts = find_shifts(earlier, measures) if earlier else []
    too_far = _above(shifts, settings, measures, earlier)
    figures = {
        "run": run,
        "shards": generate.name,
        "compared_with": {"run": before[0], "shards": before[1].name} if before and earlier else None,
        "not_compared": not_compared,
        "shifts": [
            {**shift._asdict(), "limit": _limit(shift, settings), "above": shift in too_far} for shift in shifts
        ],
        **figures_of(measures),
        "triple_choice": choice,
    }
    metrics = headline(figures) | {shift.name: shift.value for shift in shifts}
    facts = (read_manifest(generate) or {}).get("facts", {})
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / FIGURES, figures)
    write_quality_page(out / PAGE, figures, measures, earlier, dropped=facts.get("train_without_answer"))
    return Quality(metrics=metrics, too_far=tuple(too_far), page=out / PAGE)


def _limit(shift: Shift, settings: QualityConfig) -> float:
    return settings.max_psi if shift.statistic == "psi" else settings.max_ks


def _above(shifts: Sequence[Shift], settings: QualityConfig, now: Measures, before: Measures | None) -> list[Shift]:
    if before is None or min(len(now.examples), len(before.examples)) < settings.min_examples:
        return []
    limited = [(shift, _limit(shift, settings)) for shift in shifts]
    above = [(shift.value / limit, shift) for shift, limit in limited if limit and shift.value > limit]
    return [shift for _, shift in sorted(above, key=lambda pair: -pair[0])]


def refuse_drift(quality: Quality, settings: QualityConfig) -> None:
    """Stop a run whose shards moved further than a limit.

    Raises:
        DriftError: a shift is above its limit; the line names the furthest.
    """
    if not quality.too_far:
        return
    first, *others = quality.too_far
    setting = f"max_{first.statistic}"
    more = f" (and {len(others)} more above their limits)" if others else ""
    raise DriftError(
        f"{first.name} = {first.value:.4f} is above quality.{setting} = {_limit(first, settings):g}{more}: this run's "
        f"shards moved too far from the last run's ({first.before} -> {first.now}); see {quality.page}. The shards "
        f"stay published and nothing was trained on them: repair the input, or raise the limit (0: no limit) and run "
        f"again"
    )
