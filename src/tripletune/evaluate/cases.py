"""Cases worth reading: the test queries whose held-out film the model moved furthest against the retriever's order.

A case has prompt, answer and both orders, and no id of its user: reports are passed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tripletune.schemas.answers import NUM_ANSWERS
from tripletune.store.parquet import parquet_files, scan
from tripletune.store.read import scan_parquet

NUM_CASES = 10
"""Shown of each kind, at most."""
MODEL, ORDER = "tuned", "retriever"
"""Systems whose orders are compared: the model alone, without the retriever's scores, and the retriever."""
KEY = ("user_id", "cutoff")


def worth_reading(generate: Path, rank: Path) -> dict[str, list[dict[str, Any]]]:
    """The queries that the model helped most and hurt most, at most ``NUM_CASES`` each and one of a user.

    Args:
        generate, rank: folders of the stages.

    Returns:
        ``helped`` and ``hurt``, the furthest first, equal ones in the order of users. Each case has ``gain``,
        ``unseen``, ``held_out``, ``orders`` (of the retriever and the model: name, place of the held-out film from 1,
        and the first titles, each with whether it is the held-out one), ``texts`` (what the model wrote) and
        ``prompt``.
    """
    predictions = scan_parquet(rank / "predictions.parquet").filter(pl.col("purpose") == "test").collect()
    shards = scan(parquet_files(generate, "test"))
    answers = shards.select(*KEY, "retrieved", answer=pl.col("answers").list.first()).collect()
    orders = _orders(predictions, answers)
    furthest = (
        _gains(orders)
        .sort(pl.col("gain").abs().round(12), *KEY, descending=[True, False, False])
        .unique("user_id", keep="first", maintain_order=True)  # of several queries the one that moved furthest
    )
    kinds = {"helped": pl.col("gain") > 0, "hurt": pl.col("gain") < 0}
    chosen = {kind: furthest.filter(condition).head(NUM_CASES) for kind, condition in kinds.items()}
    keys = pl.concat(chosen.values()).select(KEY)
    examples = _by_query(shards.join(keys.lazy(), on=KEY, how="semi").collect())
    shown = _by_query(orders.join(keys, on=KEY, how="semi"))
    written = predictions.filter(pl.col("system") == MODEL).join(keys, on=KEY, how="semi")
    texts = _by_query(written.sort("constrained", descending=True))
    return {
        kind: [
            _case(row["gain"], examples[_key(row)][0], shown[_key(row)], texts[_key(row)]) for row in rows.to_dicts()
        ]
        for kind, rows in chosen.items()
    }


def _orders(predictions: pl.DataFrame, answers: pl.DataFrame) -> pl.DataFrame:
    """Both orders of each query: ``KEY``, ``system``, ``order`` and ``answer``; the retriever's first.

    A written answer names five films; whoever reads on reads the others as retrieval gave them.
    """
    ranks = (pl.col("system") == ORDER) | ((pl.col("system") == MODEL) & pl.col("constrained"))
    joined = predictions.filter(ranks).select(*KEY, "system", "answers").join(answers, on=KEY, how="inner")
    order = pl.concat_list("answers", "retrieved").list.unique(maintain_order=True)
    return joined.select(*KEY, "system", "answer", order=order).sort(*KEY, "system")


def _gains(orders: pl.DataFrame) -> pl.DataFrame:
    """``KEY`` and ``gain`` of the queries whose held-out film is a candidate: 1 / log2(1 + place) in the model's order
    minus that in the retriever's, which is the difference of nDCG over all candidates."""
    places = (
        orders.explode("order", empty_as_null=False)
        .with_columns(place=pl.int_range(1, pl.len() + 1).over(*KEY, "system"))
        .filter(pl.col("order") == pl.col("answer"))
    )
    ndcg = places.with_columns(ndcg=1 / (pl.col("place") + 1).log(2))
    of_model = ndcg.filter(pl.col("system") == MODEL).select(*KEY, "ndcg")
    both = of_model.join(ndcg.filter(pl.col("system") == ORDER).select(*KEY, before="ndcg"), on=KEY, how="inner")
    return both.select(*KEY, gain=pl.col("ndcg") - pl.col("before"))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _by_query(frame: pl.DataFrame) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in frame.to_dicts():
        found.setdefault(_key(row), []).append(row)
    return found


def _case(
    gain: float, example: Mapping[str, Any], orders: list[dict[str, Any]], written: list[dict[str, Any]]
) -> dict[str, Any]:
    titles = dict(zip(example["candidates"], example["candidate_titles"], strict=True))
    answer = example["answers"][0]
    return {
        "gain": gain,
        "unseen": example["unseen"],
        "held_out": titles[answer],
        "orders": [
            {
                "name": line["system"],
                "place": line["order"].index(answer) + 1,
                "first": [(titles.get(film, f"film {film}"), film == answer) for film in line["order"][:NUM_ANSWERS]],
            }
            for line in orders
        ],
        "texts": [(line["constrained"], line["text"]) for line in written if line["text"]],
        "prompt": example["prompt"],
    }
