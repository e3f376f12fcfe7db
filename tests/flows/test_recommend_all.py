"""Recommendations to all users: the same as to one, the same bytes by any number of processes, and after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from tests.flows.conftest import ROOT, MicroRun
from tripletune.cli.recommend import read_users, recommend_to_all, recommend_to_user
from tripletune.errors import ContractError, InputError
from tripletune.pipeline.answering import Answering, answering
from tripletune.serve import batch
from tripletune.store.runs import list_runs, write_run


@pytest.fixture(scope="module")
def all_users(untouched: MicroRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("all") / "recs.parquet"
    with answering(untouched.root) as who:
        recommend_to_all(who, out)
    return out


def everybody(untouched: MicroRun) -> list[int]:
    rows = pl.scan_parquet(untouched.paths.folder("split") / "shard=*" / "part.parquet")
    return sorted(rows.select(pl.col("user_id").unique()).collect()["user_id"])


def test_every_user_gets_five_films_that_the_user_has_not_rated(untouched: MicroRun, all_users: Path) -> None:
    found = pl.read_parquet(all_users)
    assert sorted(found["user_id"].unique()) == everybody(untouched)
    assert found.group_by("user_id").agg(pl.col("place").sort()).select("place").unique().rows() == [([1, 2, 3, 4, 5],)]
    assert found.select("user_id", "movie_id").is_unique().all()
    rated = pl.read_parquet(untouched.paths.folder("split") / "shard=*" / "part.parquet").select("user_id", "movie_id")
    assert found.join(rated, on=["user_id", "movie_id"], how="semi").is_empty()
    titles = pl.read_parquet(untouched.paths.folder("ingest") / "movies.parquet").select("movie_id")
    assert found.join(titles, on="movie_id", how="anti").is_empty()
    assert not all_users.with_name(f".{all_users.name}.work").exists()


def test_the_file_says_which_model_version_and_run_answered(untouched: MicroRun, all_users: Path) -> None:
    note = {key.decode(): value.decode() for key, value in pq.read_schema(all_users).metadata.items()}
    assert note["tripletune.model"] == "tripletune-micro"
    assert note["tripletune.version"] == "1"
    assert note["tripletune.model_run"] == untouched.record.name
    assert note["tripletune.run"] in [run.name for run in list_runs(untouched.root)]
    assert note["tripletune.adapter"] == untouched.record.fingerprints["finetune"]


def test_it_is_what_recommend_prints_for_one_user(untouched: MicroRun, all_users: Path) -> None:
    found = pl.read_parquet(all_users)
    with answering(untouched.root) as who:
        for user in everybody(untouched)[::60]:
            alone = recommend_to_user(who, user)
            mine = found.filter(user_id=user).sort("place")
            assert mine["title"].to_list() == [film.title for film in alone]
            assert mine["reason"].fill_null("no fact is known").to_list() == [film.reason for film in alone]


def test_a_call_that_broke_off_goes_on_with_what_it_had_to_the_same_bytes(
    untouched: MicroRun, all_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "recs.parquet", tmp_path / ".recs.parquet.work"
    real = batch.write_parquet

    def once(path: Path, frame: pl.DataFrame, **more: Any) -> None:
        if path.name == "shard-001.parquet":
            raise KeyboardInterrupt
        real(path, frame, **more)

    monkeypatch.setattr(batch, "write_parquet", once)
    with answering(untouched.root) as who, pytest.raises(KeyboardInterrupt):
        recommend_to_all(who, out)
    first = work / "test" / "shard-000.parquet"
    before = first.stat().st_mtime_ns
    written: list[str] = []

    def note(path: Path, frame: pl.DataFrame, **more: Any) -> None:
        written.append(path.name)
        assert first.stat().st_mtime_ns == before
        real(path, frame, **more)

    monkeypatch.setattr(batch, "write_parquet", note)
    with answering(untouched.root) as who:
        recommend_to_all(who, out)
    assert written == ["shard-001.parquet", "shard-002.parquet"]
    assert out.read_bytes() == all_users.read_bytes()
    assert not work.exists()


def test_pieces_of_a_bucket_keep_their_users(
    untouched: MicroRun, all_users: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tripletune.rank.pieces._EXAMPLES", 16)
    with answering(untouched.root) as who:
        recommend_to_all(who, tmp_path / "recs.parquet")
    assert pq.ParquetFile(tmp_path / "recs.parquet").num_row_groups > pq.ParquetFile(all_users).num_row_groups
    assert_frame_equal(pl.read_parquet(tmp_path / "recs.parquet"), pl.read_parquet(all_users))


def test_what_another_model_or_list_of_users_left_behind_is_not_used(
    untouched: MicroRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_users: Path
) -> None:
    out, few = tmp_path / "recs.parquet", tmp_path / "few.txt"
    users = everybody(untouched)[:3]
    few.write_text("\n".join([*map(str, users), "", str(users[0])]))
    monkeypatch.setattr(batch, "_answer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with answering(untouched.root) as who, pytest.raises(KeyboardInterrupt):
        recommend_to_all(who, out)
    monkeypatch.undo()
    with answering(untouched.root) as who:
        assert recommend_to_all(who, out, users=few) == 3
    found, whole = pl.read_parquet(out), pl.read_parquet(all_users)
    assert sorted(found["user_id"].unique()) == users
    both = found.join(whole, on=["user_id", "place"], suffix="_all")
    assert both["movie_id"].to_list() == both["movie_id_all"].to_list()


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1\nx\n", "line 2: 'x' is no user id"), ("\n \n", "no user id in it"), ("-4\n", "line 1: '-4' is no user id")],
)
def test_a_list_of_users_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "users.txt").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_users(tmp_path / "users.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_users(tmp_path / "gone.txt")


def test_a_user_without_ratings_is_named(untouched: MicroRun, tmp_path: Path) -> None:
    (tmp_path / "users.txt").write_text(f"{everybody(untouched)[0]}\n999999\n")
    with answering(untouched.root) as who, pytest.raises(InputError, match="user 999999 has no ratings in this run"):
        recommend_to_all(who, tmp_path / "recs.parquet", users=tmp_path / "users.txt")


def test_the_champion_answers_by_default_and_a_named_run_with_its_own_model(untouched: MicroRun) -> None:
    with answering(untouched.root) as who:
        said = who.sentence()
    assert said.startswith("answered by tripletune-micro version 1, the champion, of run micro-")
    with answering(untouched.root, untouched.record.name) as own:
        assert own.version is None
        assert own.sentence() == f"answered by the model of run {untouched.record.name} (named by --run)"
        assert own.adapter == untouched.paths.folder("finetune")


def other_run(untouched: MicroRun, name: str, **changes: Any) -> None:
    config = untouched.record.config | {key: untouched.record.config[key] | value for key, value in changes.items()}
    write_run(
        untouched.root, untouched.record.model_copy(update={"name": name, "config": config, "started": "2099-01-01"})
    )


def answering_with(untouched: MicroRun, name: str, **changes: Any) -> Answering:
    other_run(untouched, name, **changes)
    try:
        with answering(untouched.root) as who:
            return who
    finally:
        (untouched.root / "runs" / f"{name}.json").unlink()


def test_without_a_champion_the_newest_runs_own_model_answers_and_says_so(untouched: MicroRun) -> None:
    who = answering_with(untouched, "micro-z", promote={"registered_model": "nobody"})
    assert who.sentence() == "answered by the model of run micro-z (nobody has no champion yet)"


def test_the_champion_is_asked_on_the_newest_run_that_has_its_contract(untouched: MicroRun) -> None:
    with answering(untouched.root) as who:
        before = who.record.name
    fitting = answering_with(untouched, "micro-y")
    assert fitting.record.name == "micro-y"
    newer = answering_with(untouched, "micro-x", prompt={"template": "letters"})
    assert newer.record.name == before
    assert "retrieved by the models of run micro-2" in newer.sentence()


def test_where_no_run_has_the_champions_contract_the_reason_is_given(
    untouched: MicroRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tripletune.pipeline import answering as module

    letters = untouched.record.config | {"prompt": untouched.record.config["prompt"] | {"template": "letters"}}
    only = untouched.record.model_copy(update={"config": letters})
    monkeypatch.setattr(module, "list_runs", lambda root: [only])
    reason = r"version 1 is the champion, and no run here makes its prompts .*template"
    with pytest.raises(ContractError, match=reason), answering(untouched.root):
        pass


@pytest.mark.slow
def test_two_processes_one_of_which_is_killed_and_a_new_try_give_the_same_bytes(
    untouched: MicroRun, all_users: Path, tmp_path: Path
) -> None:
    out = tmp_path / "recs.parquet"
    call = [sys.executable, "-m", "tripletune.cli.main", "recommend", "--all", "--out", str(out), "--workers", "2"]
    call += ["--artifacts", str(untouched.root)]
    process = subprocess.Popen(call, cwd=ROOT)
    pieces = tmp_path / ".recs.parquet.work" / "_scratch" / "pieces"
    while not list(pieces.glob("*.parquet")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    subprocess.run(call, cwd=ROOT, check=True)
    assert out.read_bytes() == all_users.read_bytes()
