"""A feed of many files in any order; a run that adds one file parses only that one."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tripletune.cli import main as cli
from tripletune.config import RunConfig
from tripletune.config.presets import parse_config
from tripletune.data.feed import parse as feed_module
from tripletune.errors import InputError
from tripletune.pipeline import stages
from tripletune.pipeline.resolve import resolve
from tripletune.store.paths import RunPaths

NUM_FILMS = 60
COLUMNS = ["uid", "item", "stars", "ts"]
RENAMED = dict(zip(("user_id", "movie_id", "rating", "timestamp"), COLUMNS, strict=True))


@pytest.fixture(scope="module")
def rows() -> list[tuple[int, int, float, int]]:
    draw = random.Random(3)
    pairs = [(user, film) for user in range(1, 41) for film in draw.sample(range(1, NUM_FILMS + 1), 25)]
    found = [(user, film, draw.randint(1, 10) / 2, 1_000_000_000 + draw.randint(0, 30)) for user, film in pairs]
    found += [(user, film, draw.randint(1, 10) / 2, time + draw.randint(0, 5)) for user, film, _, time in found[::9]]
    return sorted(set(found))


@pytest.fixture
def catalogue(tmp_path) -> Path:
    folder = tmp_path / "catalogue"
    folder.mkdir()
    films = "".join(f"{film},Film {film} (1999),Drama\n" for film in range(1, NUM_FILMS + 1))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + films)
    return folder


def write(path: Path, rows: list[tuple[int, int, float, int]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    frame.write_parquet(path) if path.suffix == ".parquet" else frame.write_csv(path, line_terminator="\r\n")
    return path


def settings(catalogue: Path, *feed: Path | str, columns: dict[str, str] = RENAMED) -> RunConfig:
    source = {"movielens": str(catalogue), "feed": {"ratings": [str(path) for path in feed], "columns": columns}}
    return parse_config({"dataset": "feed", "source": source, "split": {"shards": 3}}, "test")


def ingest(config: RunConfig, artifacts: Path) -> RunPaths:
    paths = resolve(config, artifacts)
    stages.run_ingest(paths, config)
    return paths


def hashes(paths: RunPaths, config: RunConfig) -> dict[str, str]:
    """Hashes of all files of ingest and split except the rejects, whose line numbers depend on the files."""
    folders = [paths.folder("ingest"), stages.run_split(paths, config)]
    files = {
        f"{folder.parent.name}/{f.relative_to(folder)}": f for folder in folders for f in folder.rglob("*.parquet")
    }
    return {
        name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items() if "rejects" not in name
    }


def test_rows_files_and_formats_may_come_in_any_order(rows, catalogue, tmp_path):
    seen = []
    for number in range(3):
        draw = random.Random(number)
        mixed = draw.sample(rows, len(rows))
        places = sorted(draw.sample(range(len(rows)), number))
        pieces = [mixed[start:end] for start, end in zip([0, *places], [*places, len(rows)], strict=True)]
        folder = tmp_path / f"feed-{number}"
        for piece, suffix in zip(pieces, ("csv", "parquet", "csv"), strict=False):
            write(folder / f"{draw.random()}.{suffix}", piece)
        config = settings(catalogue, folder)
        seen.append(hashes(ingest(config, tmp_path / f"artifacts-{number}"), config))
    assert len(seen[0]) == 9
    assert seen[0] == seen[1] == seen[2]


def test_the_number_of_threads_does_not_change_a_byte(rows, catalogue, tmp_path):
    feed = write(tmp_path / "feed" / "a.csv", random.Random(5).sample(rows, len(rows)))
    seen = []
    for threads in ("1", "2", "3"):
        config, artifacts = settings(catalogue, feed), tmp_path / threads
        script = (
            "import sys; from pathlib import Path; from tripletune.pipeline import stages;"
            "from tripletune.pipeline.resolve import resolve;"
            "from tripletune.config import RunConfig;"
            "config = RunConfig.model_validate_json(sys.argv[1]); paths = resolve(config, Path(sys.argv[2]));"
            "stages.run_ingest(paths, config); stages.run_split(paths, config)"
        )
        subprocess.run(
            [sys.executable, "-c", script, config.model_dump_json(), str(artifacts)],
            env={**os.environ, "POLARS_MAX_THREADS": threads},
            check=True,
        )
        seen.append(hashes(resolve(config, artifacts), config))
    assert seen[0] == seen[1] == seen[2]


def test_a_night_that_adds_a_file_parses_that_file_alone(rows, catalogue, tmp_path):
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    feed = tmp_path / "feed"
    write(feed / "night-1.csv", first)
    config = settings(catalogue, feed)
    before = ingest(config, tmp_path / "a")
    parsed = {folder: folder.stat().st_ino for folder in (tmp_path / "a" / "feed" / "parsed").iterdir()}
    write(feed / "night-2.csv", second)
    after = ingest(config, tmp_path / "a")
    assert after.fingerprints["ingest"] != before.fingerprints["ingest"]
    assert after.manifest("ingest")["facts"]["feed_files"] == 2
    assert after.manifest("ingest")["facts"]["feed_files_parsed"] == 1
    assert {folder: folder.stat().st_ino for folder in parsed} == parsed
    whole = settings(catalogue, write(tmp_path / "whole.csv", rows))
    assert hashes(after, config) == hashes(ingest(whole, tmp_path / "b"), whole)


def test_a_file_that_changed_is_parsed_again_and_a_renamed_column_parses_all_again(rows, catalogue, tmp_path):
    feed = tmp_path / "feed"
    write(feed / "a.csv", rows[:200])
    write(feed / "b.csv", rows[200:])
    config = settings(catalogue, feed)
    ingest(config, tmp_path / "a")
    write(feed / "b.csv", rows[200:-1])
    assert ingest(config, tmp_path / "a").manifest("ingest")["facts"]["feed_files_parsed"] == 1
    (feed / "b.csv").rename(feed / "c.csv")
    assert ingest(config, tmp_path / "a").manifest("ingest")["facts"]["feed_files_parsed"] == 0
    (feed / "b.csv").write_text((feed / "c.csv").read_text().replace("stars", "rating"))
    (feed / "c.csv").unlink()
    (feed / "a.csv").write_text((feed / "a.csv").read_text().replace("stars", "rating"))
    changed = settings(catalogue, feed, columns={**RENAMED, "rating": "rating"})
    assert ingest(changed, tmp_path / "a").manifest("ingest")["facts"]["feed_files_parsed"] == 2


def test_other_names_for_the_same_columns_are_another_input(rows, catalogue, tmp_path):
    feed = write(tmp_path / "feed.csv", rows)
    swapped = {**RENAMED, "user_id": RENAMED["movie_id"], "movie_id": RENAMED["user_id"]}
    one, other = settings(catalogue, feed), settings(catalogue, feed, columns=swapped)
    before, after = (ingest(config, tmp_path / "a").folder("ingest") / "ratings.parquet" for config in (one, other))
    assert pl.read_parquet(before)["user_id"].n_unique() == 40
    assert pl.read_parquet(after)["user_id"].n_unique() == NUM_FILMS


def test_a_file_that_arrives_during_a_run_is_for_the_next_and_one_that_changes_stops_it(rows, catalogue, tmp_path):
    feed = tmp_path / "feed"
    write(feed / "a.csv", rows[:500])
    config = settings(catalogue, feed)
    paths = resolve(config, tmp_path / "a")
    write(feed / "b.csv", rows[500:])
    stages.run_ingest(paths, config)
    assert paths.manifest("ingest")["facts"]["rows_in"] == 500
    paths = resolve(config, tmp_path / "a")
    write(feed / "b.csv", rows[600:])
    with pytest.raises(InputError, match=r"b.csv in the feed was changed since this run began; run again"):
        stages.run_ingest(paths, config)


def test_a_parsed_file_whose_bytes_were_damaged_is_parsed_again(rows, catalogue, tmp_path):
    feed = tmp_path / "feed"
    write(feed / "a.csv", rows[:500])
    config = settings(catalogue, feed)
    ingest(config, tmp_path / "a")
    (parsed,) = (tmp_path / "a" / "feed" / "parsed").glob("*/rows.parquet")
    damaged = bytearray(parsed.read_bytes())
    damaged[100] ^= 4
    parsed.write_bytes(damaged)
    write(feed / "b.csv", rows[500:])
    after = ingest(config, tmp_path / "a")
    whole = settings(catalogue, write(tmp_path / "whole.csv", rows))
    assert after.manifest("ingest")["facts"]["feed_files_parsed"] == 2
    assert hashes(after, config) == hashes(ingest(whole, tmp_path / "b"), whole)


def test_what_changes_while_it_is_read_is_not_published(rows, catalogue, tmp_path, monkeypatch):
    feed = write(tmp_path / "feed.csv", rows)
    config = settings(catalogue, feed)
    parse = feed_module.parse_ratings

    def parse_too_late(path, form):
        path.write_text(path.read_text().replace("4.5", "0.5"))
        return parse(path, form)

    monkeypatch.setattr(feed_module, "parse_ratings", parse_too_late)
    with pytest.raises(InputError, match=r"feed.csv was changed while it was read; run again"):
        ingest(config, tmp_path / "a")
    monkeypatch.setattr(feed_module, "parse_ratings", parse)
    paths = resolve(config, tmp_path / "a")
    (catalogue / "movies.csv").write_text((catalogue / "movies.csv").read_text().replace("Film 7 ", "Film VII "))
    with pytest.raises(InputError, match=r"movies.csv was changed while it was read; run again"):
        stages.run_ingest(paths, config)
    assert not list((tmp_path / "a" / "feed" / "ingest").glob("*/manifest.json"))


def test_bad_rows_are_named_by_file_and_line_and_everything_adds_up(rows, catalogue, tmp_path):
    feed = tmp_path / "feed"
    good = write(feed / "a.csv", rows[:300])
    good.write_bytes(good.read_bytes() + b"1,2,9.5,1000000000\r\n1,99999,4.0,1000000000\r\n\xff,1,4.0,1\r\n")
    pl.DataFrame(
        {"uid": [1, 1], "item": [2, 3], "stars": [4.0, None], "ts": [2_000_000_000_000, 1_000_000_000]}
    ).write_parquet(feed / "b.parquet")
    paths = ingest(settings(catalogue, feed), tmp_path / "a")
    facts, rejects = paths.manifest("ingest")["facts"], pl.read_parquet(paths.folder("ingest") / "rejects.parquet")
    told = [row[:4] for row in rejects.filter(~pl.col("reason").str.starts_with("duplicate")).rows()]
    assert told == [
        ("a.csv", 302, "stars", "9.5"),
        ("a.csv", 303, "item", "99999"),
        ("a.csv", 304, None, "\ufffd,1,4.0,1"),
        ("b.parquet", 1, "ts", "2000000000000"),
        ("b.parquet", 2, "stars", None),
    ]
    kept = pl.read_parquet(paths.folder("ingest") / "ratings.parquet").height
    assert facts["rows_in"] == 305 == kept + rejects.height
    assert kept == len({row[:2] for row in rows[:300]})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda feed: None, "matches no file"),
        (lambda feed: feed.write_text(""), "is empty"),
        (lambda feed: feed.write_text("uid,item,stars,ts\n"), "not one row"),
        (lambda feed: feed.write_text("user,item,stars,ts\n1,1,4.0,1000000000\n"), "line 1 reads 'user,item,stars,ts'"),
        (lambda feed: feed.write_text("uid,item,stars,ts\n1,1,1000000000,4\n"), "max_reject_share"),
        (lambda feed: feed.write_bytes(b"\xff\xfeu\x00i\x00d\x00"), "expected the header 'uid,item,stars,ts'"),
    ],
    ids=["missing", "empty", "header only", "other columns", "swapped values", "UTF-16"],
)
def test_a_bad_feed_ends_in_one_line_and_exit_code_2(make, said, catalogue, tmp_path, capsys):
    make(tmp_path / "feed.csv")
    preset = tmp_path / "feed.toml"
    columns = ", ".join(f'{name} = "{told}"' for name, told in RENAMED.items())
    preset.write_text(
        f'dataset = "feed"\n[source]\nmovielens = "{catalogue}"\n'
        f'[source.feed]\nratings = ["{tmp_path / "feed.csv"}"]\ncolumns = {{ {columns} }}\n'
    )
    assert cli.main(["ingest", "--config", str(preset), "--artifacts", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert said in error
    assert not list((tmp_path / "a").rglob("ratings.parquet"))


def test_a_feed_without_a_release_for_its_films_is_refused(tmp_path, capsys):
    preset = tmp_path / "feed.toml"
    preset.write_text('dataset = "feed"\n[source.feed]\nratings = ["x.csv"]\n')
    assert cli.main(["plan", "--config", str(preset)]) == 2
    assert "feed.ratings needs movielens" in capsys.readouterr().err


def test_a_feed_on_s3_gives_the_bytes_of_the_local_one(rows, catalogue, tmp_path, monkeypatch):
    boto3, server_module = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    secret = "not-for-any-log"
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": secret, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        store = boto3.client("s3")
        store.create_bucket(Bucket="feed")
        local = [write(tmp_path / "feed" / f"night-{n}.csv", rows[n::2]) for n in range(2)]
        for path in local:
            store.upload_file(str(path), "feed", f"ratings/{path.name}")
        remote, here = settings(catalogue, "s3://feed/ratings/*.csv"), settings(catalogue, tmp_path / "feed")
        seen = hashes(ingest(remote, tmp_path / "remote"), remote)
        assert seen == hashes(ingest(here, tmp_path / "here"), here)
        store.upload_file(str(write(tmp_path / "more.csv", rows[:5])), "feed", "ratings/night-3.csv")
        manifest = ingest(remote, tmp_path / "remote").manifest("ingest")
        assert (manifest["facts"]["feed_files"], manifest["facts"]["feed_files_parsed"]) == (3, 1)
        assert secret not in json.dumps(manifest)
    finally:
        server.stop()
