"""Results of ``llm.py``: orders of the candidates, their metrics with intervals over users, and the page of a file."""

# Shape letters in this file: C candidates, E examples, M columns, R resamples, S systems, U users
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from llm_kit import SEED, Prompts
from llm_training import Scores

from tripletune.evaluate.metrics import metric_names, score_lists
from tripletune.evaluate.significance import bootstrap_means, summarise
from tripletune.residual import Floats, combine
from tripletune.stable_hash import pair_hash

SYSTEMS = ("tuned", "tuned+retriever", "retriever", "random")
KEPT = ("tuned+retriever", "tuned")
"""Systems that are compared with the retriever, and between jobs."""
MAIN = "tuned"
"""Name of the variant that the others are compared with."""
CUTOFFS, RESAMPLES, CONFIDENCE = (5, 10), 2000, 0.95
_METRICS = ("ndcg_at_5", "ndcg_at_10", "hr_at_10")
CURVE = "curve of "
"""Before a job's key: what its epochs reached."""
Jobs = dict[tuple[str, ...], dict[str, Any]]
"""By shards, variant and seed."""


def measure_scores(prompts: Prompts, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """The weight, what it makes of the cross-entropies, and the metrics of both ranked parts."""
    weight = scores["select"].weight()
    values = {
        part: score_users(order_films(prompts.frame.filter(part=part), scores[part], weight))
        for part in ("test", "judge")
    }
    kept = {system: [round(value, 6) for value in values["test"][system]["ndcg_at_10"]] for system in KEPT}
    return {
        "weight": weight,
        "losses": {part: {"examples": len(one.logits)} | one.losses(weight) for part, one in scores.items()},
        "test": compare(values["test"]),
        "valid": compare(values["judge"]),
        "test_ndcg_at_10": kept | {"users": values["test"]["tuned"]["user_id"].to_list()},
    }


def order_films(frame: pl.DataFrame, scores: Scores, weight: float) -> pl.DataFrame:
    """``user_id, answers`` and a list of films per system, in the order of ``frame``.

    Args:
        frame: rows of ``Prompts.frame``. Without a hit every system gets the retriever's list, since none can be right.
        scores: of the rows with a hit.
        weight: of the logits next to the prior.
    """
    both_EC = combine(scores.logits, scores.prior, scores.shown, weight)
    lists: dict[str, list[list[int]]] = {system: [] for system in SYSTEMS}
    number = 0
    for user, hit, films, retrieved in frame.select("user_id", "hit", "candidates", "retrieved").iter_rows():
        orders = dict.fromkeys(SYSTEMS, retrieved)
        if hit:
            film_C, place = np.array(films), {film: place for place, film in enumerate(retrieved)}
            logit_C, both_C = (array_EC[number, : len(films)] for array_EC in (scores.logits, both_EC))
            order_C = {
                "tuned": np.argsort(-logit_C, kind="stable"),
                "tuned+retriever": np.lexsort(([place[film] for film in films], -both_C)),
                "random": np.argsort(pair_hash(np.full(len(films), user), film_C, SEED), kind="stable"),
            }
            orders |= {system: film_C[one].tolist() for system, one in order_C.items()}
            number += 1
        for system in SYSTEMS:
            lists[system].append(orders[system])
    columns = [pl.Series(system, found, dtype=pl.List(pl.Int32)) for system, found in lists.items()]
    return frame.select("user_id", "answers").with_columns(columns)


def score_users(lists: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """``user_id`` and every metric, mean over a user's examples, users ascending; of each system."""
    found = {}
    for system in SYSTEMS:
        values = score_lists(lists[system], lists["answers"], CUTOFFS).with_columns(lists["user_id"])
        found[system] = values.group_by("user_id").agg(pl.col(metric_names(CUTOFFS)).mean()).sort("user_id")
    return found


def compare(values: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """Means of every system, and gains over the retriever with intervals: whole users are drawn, so that all is paired
    and a user's examples stay together."""
    names = metric_names(CUTOFFS)
    value_SUM = np.stack([values[system].select(names).to_numpy() for system in SYSTEMS])
    mean_SM = value_SUM.mean(axis=1)
    base_UM = value_SUM[SYSTEMS.index("retriever")]
    gain_UM = np.hstack([value_SUM[SYSTEMS.index(system)] - base_UM for system in KEPT])
    found = iter(intervals(gain_UM))
    return {
        "users": len(base_UM),
        "means": {
            system: dict(zip(names, row.tolist(), strict=True)) for system, row in zip(SYSTEMS, mean_SM, strict=True)
        },
        "gains": {system: {name: next(found) for name in names} for system in KEPT},
    }


def intervals(value_UM: Floats) -> list[dict[str, float | None]]:
    """Each column's mean with its percentile interval over users."""
    means_RM = bootstrap_means(value_UM, resamples=RESAMPLES, seed=SEED)
    found = [summarise(value_UM[:, m], means_RM[:, m], confidence=CONFIDENCE) for m in range(value_UM.shape[1])]
    return [{"value": one.value, "low": one.low, "high": one.high} for one in found]


def format_report(page: Mapping[str, Any]) -> str:
    """The Markdown page of a JSON file, also of one that was cut: what is missing is left out."""
    where, found = page["environment"], page["results"]
    card = where["card"] or f"{where['machine']} CPU, {where['threads']} threads"
    jobs: Jobs = {tuple(key.split(" | ")): value for key, value in found.items() if "training" in value}
    whole = {key: job for key, job in jobs.items() if "weight" in job}
    lines = [
        "# The language model against its retriever, on a GPU",
        "",
        "What is measured: the head of `llm.py`.",
        "",
        f"{card}; torch {where['torch']}; commit {where['commit']}; {page['started']}; ended: {page['ended']}",
        f"`{page['command']}`",
        "",
    ]
    if "check" in found:
        far = found["check"]
        lines.append(
            f"Logits differ from the CPU's by {far['float32']:.1e} in float32, {far['bfloat16']:.1e} in bfloat16."
        )
    if "films" in found:
        films = found["films"]
        lines.append(
            f"Film vectors of `{films['source']}`, fit b turned into the space of fit a: mean cosine "
            f"{films['cosine']:.2f} of {films['shared']:,} shared films."
        )
    if "plan" in found:
        lines.append(f"Epochs of a training, unless a variant says otherwise: {found['plan']['epochs']}.")
    lines += ["", *(_describe(key, value) for key, value in found.items() if key.startswith("shards "))]
    lines += [line for table in (_losses, _metrics, _between_jobs) for line in table(whole)]
    lines += _curves(found) + _speed(jobs)
    diverged = [" | ".join(key) for key, job in jobs.items() if "diverged" in job]
    if diverged:
        lines += ["", f"Diverged: {'; '.join(diverged)}."]
    if "skipped" in found:
        lines += ["", f"Skipped: {'; '.join(f'{key} ({reason})' for key, reason in found['skipped'].items())}."]
    return "\n".join([*lines, ""])


def _describe(key: str, size: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{part} {one['hits']:,} of {one['examples']:,}" for part, one in size["parts"].items())
    name = key.removeprefix("shards ")
    return f"- `{name}`: {size['tokens']:.0f} tokens a prompt; examples whose answer is a candidate: {parts}"


def _table(columns: str, rows: list[list[str]]) -> list[str]:
    names = columns.split(", ")
    marks = ["---", "---", *["--:"] * (len(names) - 2)]
    return [
        "",
        *(f"| {' | '.join(row)} |" for row in [names]),
        f"|{'|'.join(marks)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _losses(jobs: Jobs) -> list[str]:
    names = [(part, name) for part in ("select", "test") for name in ("prior", "both", "alone")]
    rows = [
        [*key, f"{job['weight']:.3f}", *(f"{job['losses'][part][name]:.4f}" for part, name in names)]
        for key, job in jobs.items()
    ]
    head = (
        "Cross-entropy of the answer among the candidates, in nats, with the retriever's prior alone, with both by the"
    )
    head += " fitted weight, and with the model alone; of valid users who select, and of test users."
    columns = "shards, variant, seed, weight, select: prior, both, alone, test: prior, both, alone"
    return ["", head, *_table(columns, rows)]


def _metrics(jobs: Jobs) -> list[str]:
    lines = []
    for part, users, metrics in (
        ("test", "all test users", _METRICS),
        ("valid", "valid users who judge", _METRICS[1:2]),
    ):
        for metric in metrics:
            rows = [
                [
                    *key,
                    *(f"{job[part]['means'][system][metric]:.4f}" for system in SYSTEMS),
                    _interval(job[part]["gains"]["tuned+retriever"][metric]),
                ]
                for key, job in jobs.items()
            ]
            lines += ["", f"{metric} of {users}; gain: tuned+retriever minus retriever, 95 % interval over users."]
            lines += _table(f"shards, variant, seed, {', '.join(SYSTEMS)}, gain", rows)
    return lines


def _between_jobs(jobs: Jobs) -> list[str]:
    """Each job against the main one, on the test users that both have."""
    main = next((key for key in jobs if key[1] == MAIN), None)
    if main is None:
        return []
    base, rows = jobs[main]["test_ndcg_at_10"], []
    for key, job in jobs.items():
        mine = job["test_ndcg_at_10"]
        _, here, there = np.intersect1d(mine["users"], base["users"], return_indices=True)
        if key != main and len(here):
            columns = [np.array(mine[system])[here] - np.array(base[system])[there] for system in KEPT]
            rows.append([*key, *(_interval(one) for one in intervals(np.stack(columns, axis=1)))])
    head = f"ndcg_at_10 of test users, minus that of {', '.join(main)}, 95 % interval over the users of both."
    return ["", head, *_table(f"shards, variant, seed, {', '.join(KEPT)}", rows)]


def _curves(found: Mapping[str, Any]) -> list[str]:
    rows = []
    for key, epochs in found.items():
        if key.startswith(CURVE):
            names = key.removeprefix(CURVE).split(" | ")
            rows += [
                [*names, str(one["epoch"]), *(f"{one[name]:.4f}" for name in ("train", "select", "weight"))]
                for one in epochs
            ]
    head = "Mean training loss of an epoch, with that of the labels' mass; after it, cross-entropy with both of valid"
    head += " users who select (the first ones), and the weight fitted on them."
    return ["", head, *_table("shards, variant, seed, epoch, training, select: both, weight", rows)]


def _speed(jobs: Jobs) -> list[str]:
    rows = []
    for key, job in jobs.items():
        trained, ranking, peak = job["training"], job["ranking"], job["peak_gib"]
        rate = f"{trained['tokens_per_s']:,.0f}" if trained else ""
        rows.append([*key, f"{trained['seconds']:.1f}" if trained else "", rate, f"{ranking['seconds']:.1f}"])
        rows[-1] += [f"{ranking['users_per_s']:,.0f}", f"{ranking['tokens_per_s']:,.0f}", f"{peak:.1f}" if peak else ""]
    return _table("shards, variant, seed, training s, tokens/s, ranking s, users/s, tokens/s, peak GiB", rows)


def _interval(one: Mapping[str, float | None]) -> str:
    bounds = "" if one["low"] is None else f" [{one['low']:+.4f}, {one['high']:+.4f}]"
    return f"{one['value']:+.4f}{bounds}"
