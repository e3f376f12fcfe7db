"""`tripletune synth`: the published totals, the files' bytes as in the real releases, and a folder that is whole."""

from __future__ import annotations

import csv
import filecmp
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.unit.split_frames import split_ratings
from tripletune.cli.main import main
from tripletune.config import IngestConfig, SplitConfig
from tripletune.data.release.movielens import ingest_release
from tripletune.synthetic import release as synthetic
from tripletune.synthetic.release import synthesise
from tripletune.synthetic.sizes import SIZES

DUMPS = ("title.basics", "title.crew", "title.principals", "name.basics")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """As ml-latest-small, among 200,000 credits."""
    folder = tmp_path_factory.mktemp("sizes") / "made" / "small"
    synthesise(folder, "small", 3, principals=200_000)
    return folder


@pytest.fixture(scope="module")
def dumps(small) -> dict[str, pl.DataFrame]:
    return {name: read_dump(small, name) for name in DUMPS}


def read_dump(release: Path, name: str) -> pl.DataFrame:
    path = release / "imdb" / f"{name}.tsv.gz"
    return pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False, null_values="\\N")


@pytest.mark.parametrize(
    ("name", "viewers", "movies", "ratings"),
    [
        ("ml-32m", 200_948, 87_585, 32_000_204),
        ("ml-25m", 162_541, 62_423, 25_000_095),
        ("ml-1m", 6_040, 3_883, 1_000_209),
        ("small", 610, 9_742, 100_836),
    ],
)
def test_the_sizes_are_the_published_ones(name, viewers, movies, ratings):
    assert (SIZES[name].viewers, SIZES[name].movies, SIZES[name].ratings) == (viewers, movies, ratings)


def test_totals_are_exact_and_histories_have_a_heavy_tail(small):
    ratings, movies = pl.read_csv(small / "ratings.csv"), pl.read_csv(small / "movies.csv")
    lengths = ratings.group_by("userId").len()["len"]
    assert (ratings.height, movies.height, lengths.len()) == (100_836, 9_742, 610)
    assert pl.read_csv(small / "tags.csv").height == 3_683
    assert lengths.min() >= 20
    assert lengths.max() > 10 * lengths.median()
    assert ratings["userId"].unique().to_list() == list(range(1, 611))


def test_few_films_have_many_ratings(small):
    counts = pl.read_csv(small / "ratings.csv").group_by("movieId").len()["len"].sort(descending=True)
    # ml-latest-small: 3.3 per thousand for the first, 11 % for the first hundred, 41 % for the first thousand and more
    assert 0.001 < counts[0] / counts.sum() < 0.006
    assert 0.08 < counts[:100].sum() / counts.sum() < 0.25
    assert 0.35 < counts[:1000].sum() / counts.sum() < 0.75


def test_ratings_are_sorted_by_viewer_and_film_and_no_film_is_rated_before_its_year(small):
    ratings, movies = pl.read_csv(small / "ratings.csv"), pl.read_csv(small / "movies.csv")
    assert ratings.equals(ratings.sort("userId", "movieId"))
    assert not ratings.select("userId", "movieId").is_duplicated().any()
    year = pl.col("title").str.extract(r"\((\d{4})\)$").cast(pl.Int32)
    seen = pl.from_epoch("timestamp").dt.year()
    joined = ratings.join(movies.with_columns(year=year), on="movieId").drop_nulls("year")
    assert joined.filter(seen < pl.col("year")).height == 0


def test_sessions_are_evenings_and_some_ratings_share_a_second(small):
    ratings = pl.read_csv(small / "ratings.csv").sort("userId", "timestamp")
    pause = ratings.select(pl.col("timestamp").diff().over("userId")).drop_nulls().to_series()
    assert not pause.is_between(3600, 8 * 3600, closed="right").any()
    assert 0.03 < (pause > 8 * 3600).mean() < 0.07
    assert 0.1 < (pause == 0).mean() < 0.3


def test_tables_are_written_as_the_real_ones_are(small):
    for name in ("ratings", "movies", "tags", "links"):
        text = (small / f"{name}.csv").read_bytes().decode("utf-8")
        assert text.endswith("\r\n")
        assert text.count("\n") == text.count("\r\n")
        # quotes where they are needed and nowhere else, doubled inside: what Python's csv does by default
        again = [",".join(map(quoted, row)) for row in csv.reader(text.split("\r\n")[:-1])]
        assert again == text.split("\r\n")[:-1]
    assert (small / "ratings.csv").read_bytes().startswith(b"userId,movieId,rating,timestamp\r\n1,")
    assert (small / "links.csv").read_bytes().startswith(b"movieId,imdbId,tmdbId\r\n")


def quoted(field: str) -> str:
    return '"' + field.replace('"', '""') + '"' if set(field) & set(',"\r\n') else field


def test_titles_are_as_varied_as_real_ones_and_nearly_all_different(small):
    movies = pl.read_csv(small / "movies.csv")
    titles = movies["title"]
    assert 0.001 < titles.is_duplicated().mean() < 0.01
    assert titles.str.contains(r", The.* \(\d{4}\)$").mean() > 0.1
    assert titles.str.contains('"').any()
    assert titles.str.contains(r"[^\x00-\x7f]").any()
    assert 0.002 < (~titles.str.contains(r"\(\d{4}\)$")).mean() < 0.02
    assert 0.04 < (movies["genres"] == "(no genres listed)").mean() < 0.15


def test_the_release_is_ingested_without_a_reject(small, tmp_path):
    facts = ingest_release(small, tmp_path, IngestConfig())
    assert facts["rejected_by_reason"] == {}
    assert facts["rows_kept"] == 100_836


def test_every_film_is_linked_to_a_title_whose_year_differs_by_one_at_most(small, dumps):
    links = pl.read_csv(small / "links.csv", infer_schema=False).with_columns(tconst=pl.lit("tt") + pl.col("imdbId"))
    movies = pl.read_csv(small / "movies.csv", schema_overrides={"movieId": pl.String})
    year = pl.col("title").str.extract(r"\((\d{4})\)$").cast(pl.Int32)
    joined = links.join(dumps["title.basics"], on="tconst").join(movies.with_columns(year=year), on="movieId")
    assert joined.height == 9_742
    assert joined["startYear"].null_count() == joined["year"].null_count()
    off = joined.select((pl.col("startYear").cast(pl.Int32) - pl.col("year")).abs()).drop_nulls().to_series()
    assert off.max() == 1
    assert 0.005 < off.mean() < 0.05


def test_the_dumps_are_mostly_other_titles_and_hold_together(small, dumps):
    basics, crew, principals, names = (dumps[name] for name in DUMPS)
    links = pl.read_csv(small / "links.csv", infer_schema=False)
    assert abs(principals.height - 200_000) < 2_000
    assert basics["tconst"].n_unique() == basics.height > links.height
    assert crew["tconst"].equals(basics["tconst"])
    number = principals["tconst"].str.slice(2).cast(pl.Int64)
    assert number.is_sorted()
    assert principals["tconst"].is_in(basics["tconst"].implode()).all()
    assert not principals.select("tconst", "ordering").is_duplicated().any()
    assert set(principals["category"]) == {
        *("director", "writer", "actor", "actress", "cinematographer"),
        *("composer", "producer", "editor", "self"),
    }
    nameless = ~principals["nconst"].unique().is_in(names["nconst"].implode())
    assert 0.005 < nameless.mean() < 0.04
    assert 0 < names["nconst"].is_duplicated().sum() < 0.02 * names.height
    assert not names.filter(pl.col("nconst").is_duplicated())["primaryName"].is_duplicated().any()
    directed = principals.filter(pl.col("category") == "director").group_by("tconst", maintain_order=True)
    listed = crew.drop_nulls("directors").select("tconst", pl.col("directors").str.split(","))
    both = directed.agg("nconst").join(listed, on="tconst", how="full")
    assert both.filter(pl.col("nconst").list.unique(maintain_order=True).ne_missing(pl.col("directors"))).height == 0


def test_one_film_in_ten_has_no_credits_and_is_seldom_watched(small, dumps):
    links = pl.read_csv(small / "links.csv", infer_schema=False).with_columns(tconst=pl.lit("tt") + pl.col("imdbId"))
    bare = links.join(dumps["title.principals"], on="tconst", how="anti")["movieId"].cast(pl.Int64)
    assert 0.07 < len(bare) / links.height < 0.13
    assert pl.read_csv(small / "ratings.csv")["movieId"].is_in(bare.implode()).mean() < 0.05
    assert dumps["title.crew"].filter(pl.col("directors").is_null() & pl.col("writers").is_null()).height > len(bare)


def test_planted_people_have_names_and_are_credited(small, dumps):
    entities = pl.read_parquet(small / "truth_entities.parquet")
    people = entities.filter(pl.col("key").str.starts_with("person:"))["key"].str.strip_prefix("person:")
    assert people.is_in(dumps["name.basics"]["nconst"].implode()).all()
    assert people.is_in(dumps["title.principals"]["nconst"].implode()).all()
    assert entities["kind"].n_unique() == 6


def test_the_dumps_carry_no_time_stamp_and_are_one_gzip_stream(small):
    for name in DUMPS:
        packed = (small / "imdb" / f"{name}.tsv.gz").read_bytes()
        assert packed[4:8] == bytes(4)
        assert gzip.decompress(packed).endswith(b"\n")


def test_the_bytes_do_not_depend_on_the_number_of_threads(small, tmp_path):
    code = (
        "import sys; from pathlib import Path; from tripletune.synthetic.release import synthesise;"
        "synthesise(Path(sys.argv[1]), 'small', 3, principals=200_000)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "one")], check=True, env={**os.environ, "POLARS_MAX_THREADS": "1"}
    )
    names = [path.relative_to(small).as_posix() for path in small.rglob("*") if path.is_file()]
    assert len(names) == 13
    assert filecmp.cmpfiles(small, tmp_path / "one", names, shallow=False)[0] == names


def test_without_further_principals_the_dumps_hold_the_films_alone(tmp_path):
    facts = synthesise(tmp_path / "alone", "small", 3, principals=0)
    assert facts["synthetic_dumps"]["title.basics"] == 9_742
    assert facts["synthetic_dumps"]["title.principals"] > 50_000


def test_the_command_says_what_it_wrote_and_how_to_use_it(tmp_path, capsys):
    out = tmp_path / "made"
    assert main(["synth", "--size", "small", "--out", str(out), "--principals", "0"]) == 0
    printed = capsys.readouterr()
    assert "100,836 ratings, 610 viewers, 9,742 movies, 3,683 tags" in printed.out
    assert f"tripletune run --config configs/synthetic.toml --movielens {out} --imdb {out / 'imdb'}" in printed.out
    assert printed.err == ""  # no progress bar without a terminal


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["synth", "--size", "small", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"tripletune: {tmp_path} is a file or not empty; name a new folder, or remove what is there\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_unknown_size_is_refused_with_those_that_exist(tmp_path, capsys):
    assert main(["synth", "--size", "ml-20m", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == "tripletune: --size 'ml-20m': there are ml-32m, ml-25m, ml-1m, small\n"


def test_a_run_that_breaks_off_leaves_no_folder_and_the_next_one_succeeds(tmp_path, monkeypatch):
    def break_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(synthetic, "write_truth", break_off)
        with pytest.raises(KeyboardInterrupt):
            synthesise(tmp_path / "made", "small", 0, principals=0)
    assert list(tmp_path.iterdir()) == []
    killed = tmp_path / ".made.part"  # left by SIGKILL
    killed.mkdir()
    (killed / "old.csv").write_text("old")
    synthesise(tmp_path / "made", "small", 0, principals=0)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert not (tmp_path / "made" / "old.csv").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_popularity_and_ease_rank_as_they_do_on_the_real_ml_1m(tmp_path, seed):
    """Leave-one-out by time, likes of 4 and more, full ranking: on the real one .04 and .11."""
    synthesise(tmp_path / "ml-1m", "ml-1m", seed, principals=0)
    (tmp_path / "ingest").mkdir()
    ingest_release(tmp_path / "ml-1m", tmp_path / "ingest", IngestConfig())
    rows = split_ratings(pl.read_parquet(tmp_path / "ingest" / "ratings.parquet"), SplitConfig(), 0)
    rows = rows.with_columns(
        row=pl.col("user_id").rank("dense").cast(pl.Int64) - 1,
        column=pl.col("movie_id").rank("dense").cast(pl.Int64) - 1,
    )
    asked = rows.filter(pl.col("label") == "test").select("user_id", last="position", row="row", answer="column")
    before = rows.join(asked.select("user_id", "last"), on="user_id").filter(pl.col("position") < pl.col("last"))
    rated_UM = np.zeros((rows["row"].max() + 1, rows["column"].max() + 1), dtype=bool)
    liked_UM = np.zeros(rated_UM.shape, dtype=np.float32)
    rated_UM[before["row"], before["column"]] = True
    likes = before.filter(pl.col("rating") >= 4.0)
    liked_UM[likes["row"], likes["column"]] = 1.0

    gram_MM = liked_UM.T @ liked_UM + 500.0 * np.eye(liked_UM.shape[1], dtype=np.float32)
    inverse_MM = np.linalg.inv(gram_MM)  # EASE (Steck, WWW 2019)
    ease_MM = -inverse_MM / np.diag(inverse_MM)
    np.fill_diagonal(ease_MM, 0.0)

    def hit_rate(scores_UM: np.ndarray) -> float:
        scores_AM = np.where(rated_UM, -np.inf, scores_UM)[asked["row"]]
        of_answer_A = scores_AM[np.arange(asked.height), asked["answer"]]
        return float(((scores_AM > of_answer_A[:, None]).sum(axis=1) < 10).mean())

    popularity = hit_rate(np.broadcast_to(liked_UM.sum(axis=0), liked_UM.shape))
    ease = hit_rate(liked_UM @ ease_MM)
    print(f"seed {seed}: hr@10 of popularity {popularity:.4f}, of EASE {ease:.4f}")
    assert 0.04 / 1.5 < popularity < 0.04 * 1.5
    assert 0.11 / 1.5 < ease < 0.11 * 1.5
