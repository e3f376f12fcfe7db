"""A backfill gives each day the shards that a run on that day's data alone would have made."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.flows.conftest import call_tripletune
from tripletune.audit.late import late_leaks
from tripletune.config import SyntheticConfig
from tripletune.config.presets import load_config
from tripletune.pipeline.registry import STAGES
from tripletune.pipeline.resolve import resolve
from tripletune.store.paths import RunPaths
from tripletune.store.runs import list_runs, read_run
from tripletune.synthetic.release import write_release

pytestmark = pytest.mark.slow
DAYS = 5
TABLES = ("ratings", "tags")
FITS = ("rgat", "lightgcn")
"""Columns with the fingerprints of the fits, which name the files that were read; their outputs are equal."""


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "release"
    write_release(folder, SyntheticConfig(viewers=120, movies=100, mean_ratings=40), 3)
    return folder


@pytest.fixture(scope="module")
def first(release) -> date:
    """The first of the days: by its midnight nine tenths of the ratings are there."""
    times = pl.read_csv(release / "ratings.csv")["timestamp"]
    return datetime.fromtimestamp(int(times.quantile(0.9) or 0), UTC).date()


def cut(release: Path, to: Path, day: date) -> Path:
    """The release as it was at the beginning of a day."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
    to.mkdir()
    for path in release.glob("*.csv"):
        table = pl.read_csv(path, infer_schema=False)
        if path.stem in TABLES:
            table = table.filter(pl.col("timestamp").cast(pl.Int64) < midnight)
        table.write_csv(to / path.name)
    return to


def make_shards(config: Path, release: Path, root: Path) -> RunPaths:
    settings = load_config(config, movielens=str(release))
    paths = resolve(settings, root)
    for stage in STAGES:
        if stage.part == "shards" and not stage.never_reused and stage.needed(settings):
            stage.run(paths, settings)
    return paths


def test_the_shards_of_each_day_are_those_of_that_days_data_alone(release, first, micro_config, tmp_path):
    root, home = tmp_path / "artifacts", tmp_path / "prefect"
    last = first + timedelta(days=30 * (DAYS - 1))
    words = ["backfill", "--from", str(first), "--to", str(last), "--every", "30", "--config", str(micro_config)]
    words += ["--movielens", str(release), "--artifacts", str(root)]
    done = call_tripletune(*words, home=home)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    (table,) = (root / "micro" / "backfills").glob("*/backfill.json")
    rows = json.loads(table.read_text())
    assert [row["state"] for row in rows] == ["ran"] * DAYS
    assert len({row["ratings"] for row in rows}) == DAYS
    for row in rows:
        day = date.fromisoformat(row["day"])
        alone = make_shards(micro_config, cut(release, tmp_path / row["day"], day), tmp_path / f"alone-{row['day']}")
        backfilled = read_run(root, row["run"]).paths(root)
        assert late_leaks({stage: backfilled.folder(stage) for stage in backfilled.fingerprints}, day) == []
        for purpose in ("train", "valid", "test"):
            files = sorted((alone.folder("generate") / purpose).glob("*.parquet"))
            assert files
            for file in files:
                there = backfilled.folder("generate") / purpose / file.name
                found, expected = (pl.read_parquet(path).drop(FITS) for path in (there, file))
                assert_frame_equal(found, expected)
    assert {"quality", "promote"}.isdisjoint(stage for run in list_runs(root) for stage in run.stages)

    again = call_tripletune(*words, home=home)
    assert again.returncode == 0, again.stderr[-8000:]
    assert [row["state"] for row in json.loads(table.read_text())] == ["finished before"] * DAYS
    assert len(list_runs(root)) == DAYS
