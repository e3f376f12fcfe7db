"""Rule 1 on the fits really used: further fits besides the specialists, and fits of an earlier run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from written_run import Run, rank_by_popularity, rewrite, write_run

from tripletune.audit.audit import audit_shards
from tripletune.audit.leaks import Leak

VIEWER, GRAPH, VALID, TEST, UNSEEN = 3, 2, 12, 13, 5


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def run(clean: Run, tmp_path: Path) -> Run:
    shutil.copytree(clean.root, tmp_path / "run")
    return Run(tmp_path / "run", clean.order)


def audit(run: Run, fitted: Mapping[str, Path]) -> list[Leak]:
    return audit_shards(run.generate, run.split, run.retrieve, fitted)


def learn(folder: Path, run: Run, user: int, position: int, fit: str) -> int:
    """Write a row of a user into a fit's list of training rows."""
    film = run.order[user][position]
    rewrite(folder / "trained_on.parquet", lambda rows: [*rows, {"user_id": user, "movie_id": film, "fit": fit}])
    return film


def pin(folder: Path, split: str = "e" * 32) -> None:
    """Write a manifest that names the split of a fit."""
    (folder / "manifest.json").write_text(json.dumps({"parents": {"split": split}, "files": {}}))


@pytest.mark.parametrize("name", ["sasrec", "ease"])
@pytest.mark.parametrize(("fit", "position"), [("a", 10), ("b", VALID), ("b", TEST)])
def test_a_further_retriever_that_saw_more_than_its_likes_is_found(
    run: Run, name: str, fit: str, position: int
) -> None:
    fitted = {**run.specialists, name: run.root / name}
    shutil.copytree(run.lightgcn, fitted[name])
    assert audit(run, fitted) == []
    film = learn(fitted[name], run, VIEWER, position, fit)
    (leak,) = audit(run, fitted)
    assert (leak.rule, leak.subject) == (1, f"{name} fit {fit}, user {VIEWER}")
    assert leak.kind.startswith(f"fit {fit} trained on more than graph")
    assert str(film) in leak.detail


@pytest.mark.parametrize("name", ["rgat", "lightgcn"])
def test_a_test_like_of_tonight_that_a_pinned_fit_was_trained_on_is_named(run: Run, name: str) -> None:
    pin(run.root / name)
    film = learn(run.root / name, run, VIEWER, TEST, "b")
    rank_by_popularity(run)
    (leak,) = audit(run, run.specialists)
    assert (leak.rule, leak.kind) == (1, "a pinned fit was trained on the answer")
    assert (leak.subject, leak.detail) == (f"{VIEWER}:test", f"{name} was trained on {film}")


def test_only_the_fit_that_writes_the_hints_counts(run: Run) -> None:
    pin(run.lightgcn)
    learn(run.lightgcn, run, VIEWER, TEST, "a")
    assert audit(run, run.specialists) == []
    learn(run.lightgcn, run, VIEWER, 10, "a")
    (leak,) = audit(run, run.specialists)
    assert (leak.kind, leak.subject) == ("a pinned fit was trained on the answer", f"{VIEWER}:train:10")


def test_a_viewer_said_to_be_unseen_whom_a_pinned_fit_knows_is_named(run: Run) -> None:
    pin(run.rgat)
    learn(run.rgat, run, UNSEEN, GRAPH, "b")
    leaks = audit(run, run.specialists)
    assert {(leak.rule, leak.kind) for leak in leaks} == {(1, "a pinned fit was trained on a user marked as unseen")}
    assert {leak.subject for leak in leaks} == {f"{UNSEEN}:valid", f"{UNSEEN}:test"}


def test_rows_of_a_pinned_fit_that_tonight_asks_nothing_about_are_no_leak(run: Run) -> None:
    """A rating that is gone, and a valid like without a query: no prompt of this run shows them."""
    pin(run.lightgcn)
    learn(run.lightgcn, run, VIEWER, 40, "b")
    learn(run.lightgcn, run, VIEWER, VALID, "b")
    rank_by_popularity(run)

    def leave_out(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if row["user_id"] != VIEWER]

    rewrite(run.generate / "valid" / "shard-001.parquet", leave_out)
    assert audit(run, run.specialists) == []


def test_a_fit_of_tonights_own_split_gets_no_such_leave(run: Run) -> None:
    pin(run.lightgcn, run.split.name)
    learn(run.lightgcn, run, VIEWER, 40, "b")
    (leak,) = audit(run, run.specialists)
    assert leak.kind == "trained on a row that the split does not hold"
