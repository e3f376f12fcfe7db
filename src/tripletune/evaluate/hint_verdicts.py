"""Did the hints help? Answered by the probe, which scores prompts once more without a hint; no other stage can."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from tripletune.evaluate.moves import moves_answers
from tripletune.evaluate.verdict import Verdict, signed
from tripletune.schemas.hints import HINTS
from tripletune.schemas.probe import CONTROL

QUESTION = "Did the hints help?"
NAMES = tuple(dict.fromkeys(f"hint {number}" for number in sorted(hint.number for hint in HINTS)))
"""Parts of the probe that are hints."""
HOW = (
    "Leaving hints out of the prompts says what the tuned model makes of them (probe.users = 100); tripletune ablate "
    "configs/ablations/hints.toml says what a training without them gives."
)


def hint_verdicts(probed: pl.DataFrame | None) -> list[Verdict]:
    """A verdict for each hint that the prompts have; one that names the way to know it where there is none.

    A hint helps where the interval of the right answer's gain in log-probability is above 0, and does not where it is
    below, or where the answers do not change without the hint. Test decides, valid where test was not probed; training
    examples, whose answers the model has seen, never do.

    Args:
        probed: rows of ``PROBED``; None where the run has no stage ``probe``.
    """
    if probed is None:
        return [Verdict(QUESTION, "not known", f"This run has not been probed. {HOW}")]
    parts = probed.filter(pl.col("kind") == "part", pl.col("system") == "tuned")
    for purpose in ("test", "valid"):
        rows = parts.filter(pl.col("purpose") == purpose)
        measured = {(row["name"], row["measure"]): row for row in rows.to_dicts()}
        names = [name for name in NAMES if (name, "change") in measured]
        if names:
            moves = moves_answers({name: row["value"] for (name, of), row in measured.items() if of == "distance"})
            return [_verdict(name, purpose, measured, moves=moves[name]) for name in names]
    return [Verdict(QUESTION, "not known", f"The probe found no hint in prompts of test or valid. {HOW}")]


def _verdict(name: str, purpose: str, measured: Mapping[tuple[str, str], Mapping[str, Any]], *, moves: bool) -> Verdict:
    gain, changed = measured[name, "change"], measured[name, "first_changed"]
    control = measured.get((CONTROL, "first_changed"))
    same = f", {control['value']:.3f} where nothing changes" if control else ""
    text = (
        f"With it the right answer's log-probability under the tuned model changes by {signed(gain['value'])} nats"
        f"{_between(gain, signed)}; without it the first answer changes for a share of {changed['value']:.3f}"
        f"{_between(changed, '{:.3f}'.format)}{same}; {gain['num_users']:,} users of {purpose}."
    )
    if not moves:
        word, text = "no", f"{text} The answers do not depend on it."
    elif gain["low"] is None:
        word = "not known"
    elif gain["low"] > 0:
        word = "yes"
    elif gain["high"] < 0:
        word, text = "no", f"{text} It hurts."
    else:
        word = "not shown"
    return Verdict(f"Did {name} help?", word, text)


def _between(line: Mapping[str, Any], form: Any) -> str:
    return "" if line["low"] is None else f" (interval {form(line['low'])} to {form(line['high'])})"
