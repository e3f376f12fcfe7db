"""Runs with new ratings whose training starts from the champion, through the flow: until a fresh adapter is due."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.flows.conftest import MICRO, ROOT
from tripletune.config import RunConfig, SyntheticConfig
from tripletune.schemas.finetune import TRAINED_EXAMPLES_NAME
from tripletune.store.runs import RunRecord, read_run
from tripletune.synthetic.release import write_release

pytestmark = pytest.mark.slow

FRESH_EVERY = 3
# everything is promoted, and the hints stay those of the first run
SETTINGS = """
[promote]
margin = 1.0
confidence = 0.999

[source]
movielens = "{release}"

[source.feed]
ratings = ["{feed}/*.csv"]
"""


def call(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tripletune.cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def add_ratings(release: Path, feed: Path, night: int) -> None:
    """Two new likes for every fourth user, after all others."""
    ratings = pl.read_csv(release / "ratings.csv")
    movies, last = ratings["movieId"].unique().sort(), ratings["timestamp"].max()
    assert isinstance(last, int)
    rows = []
    for user in ratings["userId"].unique().sort().to_list()[night::4]:
        seen = set(ratings.filter(pl.col("userId") == user)["movieId"])
        unseen = [film for film in movies.to_list() if film not in seen]
        rows += [(user, film, 5.0, last + 86_400 * night + place) for place, film in enumerate(unseen[:2])]
    frame = pl.DataFrame(rows, schema=["userId", "movieId", "rating", "timestamp"], orient="row")
    frame.write_csv(feed / f"night-{night}.csv")


def facts(record: RunRecord, root: Path) -> dict[str, Any]:
    found: dict[str, Any] = record.paths(root).manifest("finetune")["facts"]
    return found


def decision(record: RunRecord, root: Path) -> dict[str, Any]:
    path = root / record.dataset / "promote" / record.name / "decision.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_runs_start_from_the_champion_with_new_examples_until_a_fresh_adapter_is_due(tmp_path: Path) -> None:
    release, feed, root = tmp_path / "release", tmp_path / "feed", tmp_path / "artifacts"
    feed.mkdir()
    settings = RunConfig(dataset="x", synthetic=SyntheticConfig(viewers=120, movies=100, mean_ratings=40))
    write_release(release, settings.synthetic, 3)
    text = MICRO.split("[synthetic]")[0] + "[split]" + MICRO.split("[split]", 1)[1].split("# of 24 users")[0]
    text = text.replace("[finetune]", f'[finetune]\nstart = "champion"\nfresh_every = {FRESH_EVERY}')
    config = tmp_path / "micro.toml"

    def night(number: int, pin: str = "") -> RunRecord:
        if number:
            add_ratings(release, feed, number)
        chosen = SETTINGS.format(release=release, feed=feed) + (f'[specialists]\npin = "{pin}"\n' if pin else "")
        config.write_text(text + (chosen if number else chosen.split("[source.feed]")[0]))
        done = call(tmp_path / "prefect", "run", "--config", str(config), "--artifacts", str(root))
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return read_run(root)

    first = night(0)
    fresh = facts(first, root)
    assert (fresh["start"], fresh["ancestors"], fresh["examples_known"]) == ("base", [], 0)
    assert decision(first, root)["promote"]

    again = night(0)
    assert again.fingerprints["finetune"] == first.fingerprints["finetune"]
    assert again.stages["finetune"] == "reused"
    assert "is the champion already" in decision(again, root)["reason"]

    champions = [first]
    for number in (1, 2):
        warm = night(number, pin=first.name)
        found = facts(warm, root)
        assert found["start"] == "champion"
        assert [one["fingerprint"] for one in found["ancestors"]] == [one.fingerprints["finetune"] for one in champions]
        assert [one["run"] for one in found["ancestors"]] == [one.name for one in champions]
        assert 0 < found["examples_new"] == found["examples"] < found["examples_known"]
        seen = pl.read_parquet(warm.paths(root).folder("finetune") / TRAINED_EXAMPLES_NAME)
        assert seen.filter(pl.col("generation") == number).height == found["examples_new"]
        assert decision(warm, root)["promote"]
        champions.append(warm)
        audit = call(tmp_path / "prefect", "audit", "--run", warm.name, "--artifacts", str(root))
        assert audit.returncode == 0, audit.stdout

    plan = call(tmp_path / "prefect", "plan", "--config", str(config), "--artifacts", str(root))
    assert plan.returncode == 0
    assert champions[-1].fingerprints["finetune"][:10] in plan.stdout  # its own inputs lead back to the champion

    # a champion of two warm trainings: the third run of three is fresh
    due = night(3, pin=first.name)
    assert facts(due, root)["start"] == "base"
    assert facts(due, root)["examples_known"] == 0
    assert decision(due, root)["promote"]

    unseen = text.replace("unseen_share = 0.1", "unseen_share = 0.5")
    config.write_text(unseen + config.read_text().removeprefix(text))
    add_ratings(release, feed, 3)
    refused = call(tmp_path / "prefect", "run", "--config", str(config), "--artifacts", str(root))
    assert refused.returncode == 2, refused.stdout[-4000:] + refused.stderr[-4000:]
    assert "examples were trained on by the champion" in refused.stderr.replace("\n", " ")
    assert "unseen user was trained on" in refused.stderr.replace("\n", " ")
