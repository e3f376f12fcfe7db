"""Several queries of a user in one purpose keep their own candidates, orders and scores when they are ranked."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tripletune.config import RankConfig
from tripletune.contract import Residual
from tripletune.rank.pieces import COLUMNS, _chosen_users, examples_of
from tripletune.rank.predict import _served, _trivial_orders
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.rank import PREDICTIONS, SERVED

FILMS = {
    (1, 6): [10, 11, 12],
    (1, 7): [12, 10, 13],
    (1, 9): [13, 12, 11],
    (2, 4): [10, 12],
    (3, 5): [11, 13],
    (3, 8): [13, 10, 11],
}
"""The retriever's order by user and cutoff."""
SEED = 3


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for purpose in ("valid", "test"):
        rows = [
            {"user_id": user, "cutoff": cutoff, "purpose": purpose, "candidates": sorted(films), "retrieved": films}
            for (user, cutoff), films in FILMS.items()
        ]
        missing = [pl.lit(None, EXAMPLES[name]).alias(name) for name in COLUMNS if name not in rows[0]]
        frame = pl.DataFrame(rows, schema_overrides={name: EXAMPLES[name] for name in rows[0]}).with_columns(missing)
        (tmp_path / purpose).mkdir()
        frame.sample(fraction=1, shuffle=True, seed=1).write_parquet(tmp_path / purpose / "shard-000.parquet")
    return tmp_path


def test_a_number_of_users_is_chosen_and_all_their_queries_are_ranked_in_order(shards: Path) -> None:
    chosen = _chosen_users(shards, "test", RankConfig(max_viewers=2), SEED)
    assert len(chosen) == 2
    assert chosen["user_id"].is_unique().all()
    users = chosen["user_id"].to_list()
    wanted = [(user, cutoff) for user in users for one, cutoff in FILMS if one == user]
    assert examples_of(shards, "test", chosen).collect().select("user_id", "cutoff").rows() == wanted
    assert len(_chosen_users(shards, "test", RankConfig(max_viewers=0), SEED)) == 3


def test_orders_without_a_model_are_those_of_each_query(shards: Path) -> None:
    chosen = _chosen_users(shards, "test", RankConfig(max_viewers=0), SEED)
    found = {frame["system"][0]: frame for frame in _trivial_orders(shards, {"test": chosen}, SEED)}
    for system, frame in found.items():
        lists = {(user, cutoff): films for user, cutoff, films in frame.select("user_id", "cutoff", "answers").rows()}
        assert lists.keys() == FILMS.keys()
        for query, films in FILMS.items():
            assert lists[query] == films if system == "retriever" else sorted(lists[query]) == sorted(films)


def test_the_retrievers_scores_are_added_to_those_of_the_same_query(shards: Path) -> None:
    """With equal logits the order served is the retriever's own."""
    rows = [
        {
            "user_id": user,
            "purpose": "valid",
            "cutoff": cutoff,
            "system": "tuned",
            "constrained": True,
            "answers": sorted(films),
            "scores": [0.5] * len(films),
            "valid": True,
            "text": "",
        }
        for (user, cutoff), films in FILMS.items()
    ]
    tuned = pl.DataFrame(rows, schema=PREDICTIONS)
    chosen = _chosen_users(shards, "valid", RankConfig(max_viewers=0), SEED)
    served = _served(shards, "valid", chosen, tuned, Residual(prior=(-0.1, -0.7, -1.5), weight=1.0))
    assert served["system"].unique().to_list() == [SERVED]
    lists = {(user, cutoff): films for user, cutoff, films in served.select("user_id", "cutoff", "answers").rows()}
    assert lists == FILMS
