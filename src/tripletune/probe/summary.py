"""Means over users with intervals, and what they say in a sentence.

The share of users whose first answer changes has an exact interval where each user has one prompt: a bootstrap of no
change at all has width 0.
"""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from tripletune.evaluate.moves import moves_answers
from tripletune.evaluate.significance import is_share, mean_interval, share_interval
from tripletune.schemas.base import conform
from tripletune.schemas.probe import FACT_CHANGES_NAME, PROBED, RELIANCE_NAME, STABILITY_NAME
from tripletune.schemas.rank import SERVED

_CHANGED = ("change", "distance", "first_changed")
_KINDS = {
    RELIANCE_NAME: ("part", pl.col("part"), _CHANGED),
    FACT_CHANGES_NAME: (
        "relation",
        pl.when(pl.col("how") == "swapped").then("swapped " + pl.col("relation")).otherwise("relation"),
        _CHANGED,
    ),
    STABILITY_NAME: ("stability", pl.col("perturbation"), ("tau", "tau_by_place", "kept", "first_changed")),
}
_GROUP = ("purpose", "system", "name")


def summarise_logs(logs: Mapping[str, pl.DataFrame], *, confidence: float, resamples: int, seed: int) -> pl.DataFrame:
    """Rows of ``PROBED``.

    Args:
        logs: by file.
        confidence, resamples, seed: of the bootstrap over users.
    """
    lines = []
    for file, (kind, name, measures) in _KINDS.items():
        named = logs[file].with_columns(name=name)
        for key, rows in named.group_by(_GROUP, maintain_order=True):
            for measure in measures:
                values = rows.select("user_id", value=pl.col(measure).cast(pl.Float64)).drop_nulls()
                if values.is_empty():
                    continue
                of_user = values.group_by("user_id").agg(pl.col("value").mean()).sort("user_id")
                values_U = of_user["value"].to_numpy()
                if measure == "first_changed" and is_share(values_U):
                    found = share_interval(values_U, confidence=confidence)
                else:
                    found = mean_interval(values_U, confidence=confidence, resamples=resamples, seed=seed)
                lines.append(
                    (*key[:2], kind, key[2], measure, found.value, found.low, found.high, len(of_user), len(values))
                )
    names = ("purpose", "system", "kind", "name", "measure", "value", "low", "high", "num_users", "num_examples")
    frame = pl.DataFrame(lines, schema=dict(zip(names, (PROBED[name] for name in names), strict=True)), orient="row")
    return conform(frame.sort("purpose", "system", "kind", "name", maintain_order=True), PROBED)


def say_reliance(summary: pl.DataFrame) -> list[str]:
    """One sentence for each purpose and system: which parts change its answers, and which do not.

    A part changes nothing as ``moves_answers`` has it.
    """
    parts = summary.filter(pl.col("kind") == "part", pl.col("measure") == "distance")
    said = []
    for (purpose, system), rows in parts.group_by("purpose", "system", maintain_order=True):
        moves = moves_answers(dict(rows.select("name", "value").iter_rows()))
        used = [name for name, moved in moves.items() if moved]
        unused = [name for name, moved in moves.items() if not moved]
        if not used:
            text = "nothing in the prompt changes its answers"
        elif not unused:
            text = "each part of the prompt changes its answers"
        else:
            text = f"its answers change with {_listed(used)}, not with {_listed(unused)}"
        said.append(f"{system} on {purpose}: {text}")
    return said


def say_places(summary: pl.DataFrame) -> list[str]:
    """A sentence for each purpose and system that orders the places shown and not the films."""
    orders = summary.filter(pl.col("kind") == "stability", pl.col("measure").is_in(["tau", "tau_by_place"]))
    said = []
    for (purpose, system, name), rows in orders.group_by("purpose", "system", "name", maintain_order=True):
        value = dict(rows.select("measure", "value").iter_rows())
        if "tau_by_place" in value and value["tau_by_place"] > max(value["tau"], 0.5):
            said.append(
                f"{system} on {purpose}: its order follows the places shown and not the films (tau "
                f"{value['tau']:.2f} by film and {value['tau_by_place']:.2f} by place under {name})"
            )
    return said


def headline(summary: pl.DataFrame) -> dict[str, float]:
    """Numbers to compare runs by, such as ``test_tuned_hint_1_change`` and ``test_tuned_like-removed_tau``."""
    measures = {"part": ("change", "first_changed"), "stability": ("tau", "first_changed")}
    found = {}
    for line in summary.to_dicts():
        if line["measure"] in measures.get(line["kind"], ()):
            system = line["system"].replace(SERVED, "tuned_with_retriever")
            name = f"{line['purpose']}_{system}_{line['name']}_{line['measure']}"
            found[name.replace(" ", "_").replace("'", "")] = round(line["value"], 6)
    return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
