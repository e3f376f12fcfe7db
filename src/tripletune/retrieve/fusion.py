"""The stage ``fusion``: learn the weights of the fused list, and write ``fusion.json``.

Weights are chosen on the ``target`` likes, ranked by fit a, which was not trained on them. Whether the fusion is used
is decided on the ``valid`` likes, ranked by fit b: where the best single list ranks them better, it alone has a weight.
"""

# Shape letters in this file: Q queries, L lists, K places, W weightings
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tripletune.config import RetrieveConfig
from tripletune.errors import InputError
from tripletune.models.lightgcn.serve import load_lightgcn
from tripletune.models.serving.retriever import Serving
from tripletune.models.serving.topk import Ints
from tripletune.retrieve.first_stage import load_first_stages
from tripletune.retrieve.histories import (
    find_answers,
    find_history,
    find_questions,
    find_seen,
    find_seen_in_training,
    number_histories,
    read_rows,
    with_request_time,
)
from tripletune.retrieve.weights import Ranks, best_weighting, weightings
from tripletune.schemas.query import ANSWER_LABEL, FIT_OF, QUERY_KEY
from tripletune.stable_hash import mix
from tripletune.store.files import write_json
from tripletune.store.paths import Facts
from tripletune.store.request_time import reading_request_time
from tripletune.store.shards import split_files
from tripletune.threads import map_in_threads

NAME = "fusion.json"
USERS = 2000
"""Users whose likes are ranked for each purpose, the first by a hash: an error of about .003 in ndcg."""
CUTOFFS = 5
"""Target likes of a user that are ranked, each from the rows before it."""
USERS_AT_ONCE = 256
_DRAW = 14 << 40
"""Seed offset of the draw of users."""


def learn_fusion(split: Path, trained: Mapping[str, Path], out: Path, settings: RetrieveConfig, seed: int) -> Facts:
    """Choose weights and write ``fusion.json``: ``weights`` by list, and how every list ranked.

    Args:
        split: output of the split stage.
        trained: folders of the trained models' stages, by name.
        out: work folder.
        settings: section ``[retrieve]``; the lists with a weight take part.
        seed: of the run.

    Returns:
        ``weights``; ``ndcg_at_10`` of the fusion and of every list on ``target`` and ``valid`` likes, and the number of
        those; ``fell_back`` where a single list is used because it ranks the valid likes better.

    Raises:
        InputError: a model's files are missing, damaged or do not fit the others.
    """
    names = tuple(settings.fused_weights)
    gains = {purpose: _rank(split, trained, settings, seed, purpose, names) for purpose in ("train", "valid")}
    weights_WL = weightings(len(names))
    chosen_W = gains["train"].gains(weights_WL, settings.fused_k)
    chosen = best_weighting(chosen_W, weights_WL) if chosen_W.shape[1] else len(names)
    valid_W = gains["valid"].gains(weights_WL, settings.fused_k)
    best_single, fell_back = chosen, False
    if valid_W.shape[1]:
        best_single = int(np.argmax(chosen_W[: len(names)].mean(axis=1))) if chosen_W.shape[1] else 0
        fell_back = bool(valid_W[chosen].mean() < valid_W[best_single].mean())
    used = best_single if fell_back else chosen
    facts: Facts = {
        "weights": {name: float(weight) for name, weight in zip(names, weights_WL[used], strict=True)},
        "fell_back": fell_back,
        **{
            purpose: {
                "queries": gains_WQ.shape[1],
                "ndcg_at_10": {
                    **{name: _mean(gains_WQ[number]) for number, name in enumerate(names)},
                    "fused": _mean(gains_WQ[used]),
                },
            }
            for purpose, gains_WQ in (("target", chosen_W), ("valid", valid_W))
        },
    }
    write_json(out / NAME, facts)
    return facts


def read_fusion(folder: Path, settings: RetrieveConfig) -> dict[str, float]:
    """Weights of a finished stage, zero weights dropped.

    Raises:
        InputError: the file is missing or damaged, or of other lists than this config's.
    """
    try:
        stored = json.loads((folder / NAME).read_text("utf-8"))["weights"]
        weights = {str(name): float(value) for name, value in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / NAME} must hold 'weights' by list ({error}); run fusion again") from None
    if weights.keys() != settings.fused_weights.keys():
        raise InputError(
            f"{folder / NAME} fuses {', '.join(weights)}, and this config {', '.join(settings.fused_weights)}; run "
            "fusion again, or remove the pin"
        )
    return {name: weight for name, weight in weights.items() if weight}


def _mean(gains_Q: Any) -> float:
    return round(float(gains_Q.mean()), 6) if len(gains_Q) else 0.0


def _rank(
    split: Path, trained: Mapping[str, Path], settings: RetrieveConfig, seed: int, purpose: str, names: tuple[str, ...]
) -> Ranks:
    """The lists of a sample of users with a like of this purpose, and that like: the first from the cutoff on."""
    files = list(split_files(split).values())
    fit = FIT_OF[purpose]
    lightgcn = load_lightgcn(trained["lightgcn"], seed, (fit,))
    catalogue = lightgcn[fit].catalogue
    serving = Serving(catalogue=catalogue, lightgcn=lightgcn, seed=seed, settings=settings)
    stage = load_first_stages(trained, serving)[fit]
    rows = _rows_of_sample(files, purpose, seed)
    leaked = find_seen_in_training(files, trained["lightgcn"])
    queries = find_questions(rows, train_cutoffs=CUTOFFS).filter(pl.col("purpose") == purpose)
    queries = queries.join(leaked, on=["user_id", "purpose"], how="anti", maintain_order="left")
    if reading_request_time(trained):
        queries = with_request_time(queries, rows)
    users = queries["user_id"].unique(maintain_order=True)
    groups = [users.slice(start, USERS_AT_ONCE) for start in range(0, len(users), USERS_AT_ONCE)]

    def rank(group: pl.Series) -> tuple[list[Ints], Ints]:
        asked = queries.filter(pl.col("user_id").is_in(group.implode())).sort(QUERY_KEY)
        mine = rows.filter(pl.col("user_id").is_in(group.implode()))
        _, histories = number_histories(asked, find_history(mine, asked), find_seen(mine, asked), lightgcn[fit])
        lists = stage.ask(histories)
        first = find_answers(mine, asked).unique(QUERY_KEY, keep="first", maintain_order=True)
        answers = asked.join(first, on=QUERY_KEY, maintain_order="left")["movie_id"].to_numpy()
        return [lists.top(name, settings.depth) for name in names], catalogue.columns(answers)

    found = map_in_threads(rank, groups, most=8)
    if not found:
        nothing = np.zeros((0, settings.depth), dtype=np.int64)
        return Ranks.of([nothing] * len(names), np.zeros(0, dtype=np.int64))
    tops = [np.concatenate([lists[number] for lists, _ in found]) for number in range(len(names))]
    return Ranks.of(tops, np.concatenate([answers for _, answers in found]))


def _rows_of_sample(files: list[Path], purpose: str, seed: int) -> pl.DataFrame:
    """All rows of the first ``USERS`` users, by hash, who have a like of this purpose and are not unseen."""
    rows = read_rows(files)
    asked = rows.filter(pl.col("label") == ANSWER_LABEL[purpose], ~pl.col("unseen")).select(pl.col("user_id").unique())
    users = asked.collect(engine="streaming")["user_id"].sort()
    drawn = users.gather(np.lexsort((users.to_numpy(), mix(users.to_numpy(), seed + _DRAW)))[:USERS])
    return rows.filter(pl.col("user_id").is_in(drawn.implode())).collect(engine="streaming").sort("user_id", "position")
