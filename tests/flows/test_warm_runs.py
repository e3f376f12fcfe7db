"""Runs with new ratings whose training starts from the champion, until a fresh adapter is due."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.flows.conftest import MICRO
from tripletune.audit.ancestors import ancestor_leaks
from tripletune.config import RunConfig
from tripletune.errors import InputError
from tripletune.pipeline.registry import reusable_stages
from tripletune.pipeline.resolve import resolve
from tripletune.pipeline.stages import run_promote
from tripletune.schemas.finetune import TRAINED_EXAMPLES_NAME
from tripletune.store.runs import RunRecord, read_run
from tripletune.synthetic.release import write_release
from tripletune.tracking import recorded_run, stage_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


class Nights:
    """A release, a feed that grows, and runs of a very small config on both."""

    def __init__(self, folder: Path) -> None:
        self.release, self.feed, self.root = folder / "release", folder / "feed", folder / "artifacts"
        self.feed.mkdir()
        self._settings = tomllib.loads(MICRO)
        self._settings["synthetic"] |= {"viewers": 60, "movies": 60}
        self._settings["rank"] |= {"max_viewers": 8}
        self._settings["retrieve"] = {"retriever": "lightgcn"}
        write_release(self.release, RunConfig.model_validate(self._settings).synthetic, 3)
        shutil.copyfile(self.release / "ratings.csv", self.feed / "night-0.csv")

    def config(self, pin: str = "", **split: Any) -> RunConfig:
        settings = json.loads(json.dumps(self._settings))
        settings["finetune"] |= {"start": "champion", "fresh_every": 2}
        settings["split"] |= split
        feed = {"ratings": [f"{self.feed}/*.csv"]}
        settings["source"] = {"movielens": str(self.release), "feed": feed}
        settings["specialists"] = {"pin": pin}
        return RunConfig.model_validate(settings)

    def run(self, config: RunConfig) -> RunRecord:
        """Every stage and the promotion."""
        paths = resolve(config, self.root)
        with recorded_run(config, paths, {}) as (name, tracker):
            for stage in reusable_stages(config):
                stage.run(paths, config)
            with stage_run(tracker, "promote", {}) as child:
                run_promote(paths, config, run=name, child=child)
        return read_run(self.root, name)

    def add_ratings(self, night: int) -> None:
        """Two new likes for every fourth user, after all others."""
        ratings = pl.read_csv(self.release / "ratings.csv")
        last = ratings["timestamp"].to_list()
        rows = []
        for user in ratings["userId"].unique().sort().to_list()[night::4]:
            seen = set(ratings.filter(pl.col("userId") == user)["movieId"])
            unseen = [film for film in ratings["movieId"].unique().sort().to_list() if film not in seen]
            rows += [(user, film, 5.0, max(last) + 86_400 * night + place) for place, film in enumerate(unseen[:2])]
        frame = pl.DataFrame(rows, schema=["userId", "movieId", "rating", "timestamp"], orient="row")
        frame.write_csv(self.feed / f"night-{night}.csv")

    def facts(self, record: RunRecord) -> dict[str, Any]:
        found: dict[str, Any] = record.paths(self.root).manifest("finetune")["facts"]
        return found

    def decision(self, record: RunRecord) -> dict[str, Any]:
        path = self.root / record.dataset / "promote" / record.name / "decision.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def test_runs_start_from_the_champion_with_new_examples_until_a_fresh_adapter_is_due(tmp_path: Path) -> None:
    nights = Nights(tmp_path)
    first = nights.run(nights.config())
    facts = nights.facts(first)
    assert (facts["start"], facts["ancestors"], facts["examples_known"]) == ("base", [], 0)
    assert nights.decision(first)["promote"]

    again = nights.run(nights.config())
    assert again.fingerprints["finetune"] == first.fingerprints["finetune"]
    assert nights.decision(again)["reason"] == "this adapter is the champion already"

    nights.add_ratings(1)
    warm = nights.run(nights.config(pin=first.name))
    facts = nights.facts(warm)
    assert facts["start"] == "champion"
    assert facts["ancestors"] == [{"fingerprint": first.fingerprints["finetune"], "run": first.name}]
    assert 0 < facts["examples_new"] == facts["examples"] < facts["examples_known"]
    paths = warm.paths(tmp_path / "artifacts")
    seen = pl.read_parquet(paths.folder("finetune") / TRAINED_EXAMPLES_NAME)
    assert seen.filter(pl.col("generation") == 1).height == facts["examples_new"]
    assert ancestor_leaks(paths.folder("finetune"), paths.folder("generate")) == []
    assert nights.decision(warm)["promote"]
    rerun = resolve(nights.config(pin=first.name), nights.root)
    assert rerun.fingerprints == warm.fingerprints
    assert rerun.is_done("finetune")

    nights.add_ratings(2)
    due = nights.run(nights.config(pin=first.name))
    facts = nights.facts(due)
    assert (facts["start"], facts["ancestors"], facts["examples_known"]) == ("base", [], 0)
    assert nights.decision(due)["promote"]

    nights.add_ratings(3)
    with pytest.raises(InputError, match=r"examples were trained on by the champion .*: unseen user was trained on"):
        nights.run(nights.config(unseen_share=0.5))
