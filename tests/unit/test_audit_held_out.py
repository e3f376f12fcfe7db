"""Leaks in a run that holds out three likes per user for valid and three for test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from written_run import Run, rank_by_popularity, rewrite, with_text, write_run

from tripletune.audit.audit import audit_shards
from tripletune.audit.popularity import KIND
from tripletune.audit.requeried import KINDS

Row = dict[str, Any]
USER = 3
VALID, TEST = (12, 13, 14), (15, 16, 17)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("clean"), held_out=3)


@pytest.fixture
def run(clean: Run, tmp_path: Path) -> Run:
    """A copy to damage."""
    shutil.copytree(clean.root, tmp_path / "run")
    return Run(tmp_path / "run", clean.order, clean.held_out)


def leaks(run: Run) -> list[tuple[int, str, str]]:
    found = audit_shards(run.generate, run.split, run.retrieve, run.specialists)
    return [(leak.rule, leak.kind, leak.subject) for leak in found]


def examples(run: Run, purpose: str) -> pl.DataFrame:
    return pl.read_parquet(run.generate / purpose / "*.parquet").filter(user_id=USER)


def plant(run: Run, purpose: str, cutoff: int, change: Callable[[Row], object]) -> None:
    """Damage the user's example at a cutoff; the text follows the columns."""

    def damage(rows: list[Row]) -> None:
        row = next(row for row in rows if (row["user_id"], row["cutoff"]) == (USER, cutoff))
        change(row)
        with_text(row)

    rewrite(run.generate / purpose / "shard-001.parquet", damage)


def test_earlier_held_out_likes_are_evidence_of_later_queries_and_no_leak(clean: Run) -> None:
    assert leaks(clean) == []
    held_out = {position: clean.order[USER][position] for position in (*VALID, *TEST)}
    for purpose, cutoffs in (("valid", VALID), ("test", TEST)):
        for row in examples(clean, purpose).iter_rows(named=True):
            assert row["cutoff"] in cutoffs
            shown = {position for position, film in held_out.items() if film in row["liked"]}
            assert shown == {position for position in held_out if position < row["cutoff"]}


@pytest.mark.parametrize("position", [*VALID, *TEST])
@pytest.mark.parametrize("fit", ["a", "b"])
def test_a_fit_that_was_trained_on_any_of_the_held_out_likes_is_found(run: Run, fit: str, position: int) -> None:
    film = run.order[USER][position]
    rewrite(run.rgat / "trained_on.parquet", lambda rows: [*rows, {"user_id": USER, "movie_id": film, "fit": fit}])
    kind = {"a": "fit a trained on more than graph likes", "b": "fit b trained on more than graph and target likes"}
    assert leaks(run) == [(1, kind[fit], f"rgat fit {fit}, user {USER}")]


@pytest.mark.parametrize(("purpose", "cutoff", "later"), [("valid", 12, 14), ("valid", 13, 15), ("test", 15, 16)])
def test_a_later_held_out_like_in_the_evidence_is_found(run: Run, purpose: str, cutoff: int, later: int) -> None:
    film = run.order[USER][later]
    plant(run, purpose, cutoff, lambda row: row["liked"].insert(0, film))
    found = {(rule, kind) for rule, kind, subject in leaks(run) if subject == f"{USER}:{purpose}:{cutoff}"}
    assert (2, "evidence that does not precede the cutoff") in found
    assert ((4, f"test like in a {purpose} example") in found) is (later in TEST and purpose == "valid")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(16, "answer after the cutoff"), (17, "answer after the cutoff"), (14, "answer before the cutoff")],
)
def test_the_answer_of_another_of_the_users_queries_is_found(run: Run, answer: int, kind: str) -> None:
    plant(run, "test", 15, lambda row: row.update(answers=[run.order[USER][answer]]))
    assert (2, kind, f"{USER}:test:15") in leaks(run)


def test_an_id_without_the_cutoff_is_found_where_the_user_has_several_queries(run: Run) -> None:
    plant(run, "test", 16, lambda row: row.update(example_id=f"{USER}:test"))
    assert leaks(run) == [(0, "example id of another query", f"{USER}:test")]


def test_an_example_of_no_held_out_like_is_found(run: Run) -> None:
    plant(run, "valid", 13, lambda row: row.update(cutoff=11, example_id=f"{USER}:valid:11"))
    assert (2, "no held-out like at the cutoff", f"{USER}:valid:11") in leaks(run)


def test_lists_that_know_the_future_are_named_by_their_query(run: Run) -> None:

    def turn(rows: list[Row]) -> None:
        for row in rows:
            if (row["user_id"], row["cutoff"]) == (USER, 16) and row["retriever"] in ("popularity", "rgat"):
                row["top"] = row["top"][::-1]

    rewrite(run.retrieve / "rankings.parquet", turn)
    named = f"{USER}:test:16"
    assert sorted(leaks(run)) == sorted([(5, KIND, named), *((5, kind, named) for kind in KINDS.values())])
    rank_by_popularity(run)  # also writes the sample again
    assert leaks(run) == []
