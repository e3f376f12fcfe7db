"""A run as of a day: later ratings and tags do not exist for it, and the audit finds one that does."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tripletune.audit.late import late_leaks
from tripletune.config import IngestConfig, SplitConfig
from tripletune.config.presets import load_config
from tripletune.data.release.movielens import ingest_release
from tripletune.data.split.write import write_split
from tripletune.errors import ConfigError, InputError

DAY = date(2016, 3, 1)
MIDNIGHT = int(datetime(2016, 3, 1, tzinfo=UTC).timestamp())
TABLES = ("ratings", "tags", "movies", "links", "users", "rejects")


def rows_of(number: int) -> list[tuple[int, int, float, int]]:
    """Twelve users with twenty ratings each, a day apart; a third of them on ``DAY`` and later, one repeated later."""
    found = [
        (user, 1 + (7 * user + step) % 30, 1.0 + (user + step) % 5, MIDNIGHT + 86_400 * (step - 13) + user)
        for user in range(1, number + 1)
        for step in range(20)
    ]
    return [*found, (3, found[40][1], 0.5, MIDNIGHT + 99)]


def write_release(folder: Path, before: int | None = None) -> Path:
    """The release, or as much of it as there was before a time."""
    folder.mkdir()
    kept = [row for row in rows_of(12) if before is None or row[3] < before]
    body = "".join(f"{user},{movie},{rating},{time}\n" for user, movie, rating, time in kept)
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{body}")
    films = "".join(f"{movie},Film {movie} (1999),Drama\n" for movie in range(1, 31))
    (folder / "movies.csv").write_text(f"movieId,title,genres\n{films}")
    tags = [(1, 1, "slow", MIDNIGHT - 1), (2, 1, "slow", MIDNIGHT), (3, 2, "loud", MIDNIGHT + 5)]
    body = "".join(f"{u},{m},{tag},{time}\n" for u, m, tag, time in tags if before is None or time < before)
    (folder / "tags.csv").write_text(f"userId,movieId,tag,timestamp\n{body}")
    return folder


def ingest(release: Path, out: Path, **settings: object) -> dict:
    out.mkdir()
    return ingest_release(release, out, IngestConfig.model_validate(settings))


def test_a_run_as_of_a_day_reads_what_was_there_on_that_day_and_no_more(tmp_path):
    facts = ingest(write_release(tmp_path / "whole"), tmp_path / "as_of", as_of=DAY)
    then = ingest(write_release(tmp_path / "then", MIDNIGHT), tmp_path / "only")
    for table in TABLES:
        asked, there = (pl.read_parquet(tmp_path / out / f"{table}.parquet") for out in ("as_of", "only"))
        assert_frame_equal(asked, there)
    for out in ("as_of", "only"):
        split = tmp_path / f"split-{out}"
        split.mkdir()
        paths = [tmp_path / out / f"{table}.parquet" for table in ("ratings", "movies")]
        write_split(paths[0], split, SplitConfig(shards=2), 7, paths[1])
    files = [path.relative_to(tmp_path / "split-only") for path in (tmp_path / "split-only").rglob("*.parquet")]
    assert files
    for file in files:
        assert (tmp_path / "split-as_of" / file).read_bytes() == (tmp_path / "split-only" / file).read_bytes()
    late = sum(row[3] >= MIDNIGHT for row in rows_of(12))
    assert facts["left_out_as_later"] == {"ratings": late, "tags": 2}
    assert (facts["as_of"], facts["undated"]) == ("2016-03-01", ["movies", "links", "users"])
    assert facts["rows_in"] == then["rows_in"]
    assert then.keys() & {"as_of", "undated", "left_out_as_later"} == set()


def test_a_rating_that_a_later_one_replaces_counts_before_that_day(tmp_path):
    release = write_release(tmp_path / "whole")
    ingest(release, tmp_path / "now")
    ingest(release, tmp_path / "then", as_of=DAY)
    user, movie, rating, _ = rows_of(12)[40]
    same = (pl.col("user_id") == user) & (pl.col("movie_id") == movie)
    for out, expected in (("now", 0.5), ("then", rating)):
        assert pl.read_parquet(tmp_path / out / "ratings.parquet").filter(same)["rating"].to_list() == [expected]


def test_a_day_before_every_rating_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^ingest\.as_of = 2001-01-01: every rating is of that day or later; give a"):
        ingest(write_release(tmp_path / "whole"), tmp_path / "out", as_of=date(2001, 1, 1))


@pytest.mark.parametrize("day", ["1994-01-01", "2200-01-01"])
def test_a_day_outside_the_valid_times_is_refused(day, tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text('dataset = "toy"\n')
    with pytest.raises(ConfigError, match=rf"as_of = {day} must be after earliest"):
        load_config(preset, [f"ingest.as_of={day}"])


@pytest.mark.parametrize(
    "given",
    [
        "finetune.start=champion",
        "finetune.teacher=run-1",
        "retrieve.triple_choice=learned",
        "specialists.pin=run-1",
    ],
)
def test_what_another_run_learned_is_refused_as_it_may_know_the_future(given, tmp_path):
    preset = tmp_path / "preset.toml"
    preset.write_text('dataset = "toy"\n[finetune]\nobjective = "listwise"\nteacher_weight = 0.5\n')
    day = "ingest.as_of=2016-03-01"
    load_config(preset, [day])
    with pytest.raises(ConfigError, match=rf"as_of = 2016-03-01, and {given.split('=')[0]} = '.*later ratings"):
        load_config(preset, [day, given])


def test_a_planted_later_row_is_found_in_any_stages_table(tmp_path):
    ingest(write_release(tmp_path / "whole"), tmp_path / "ingest", as_of=DAY)
    folders = {"ingest": tmp_path / "ingest"}
    assert late_leaks(folders, DAY) == []
    planted = tmp_path / "rank" / "deep"
    planted.mkdir(parents=True)
    pl.DataFrame({"user_id": [1, 1, 2], "timestamp": [MIDNIGHT - 1, MIDNIGHT, MIDNIGHT + 86_400]}).write_parquet(
        planted / "odd [1].parquet"
    )
    pl.DataFrame({"user_id": [1]}).write_parquet(planted / "no_times.parquet")
    found = late_leaks(folders | {"rank": tmp_path / "rank"}, DAY)
    assert [(leak.rule, leak.subject) for leak in found] == [
        (6, "rank/deep/odd [1].parquet row 1"),
        (6, "rank/deep/odd [1].parquet row 2"),
    ]
    assert found[1].detail == "of 2016-03-02, and the run is as of 2016-03-01"
    assert len(late_leaks(folders | {"rank": tmp_path / "rank"}, DAY, limit=1)) == 1
    assert late_leaks(folders | {"rank": tmp_path / "rank"}, None) == []
