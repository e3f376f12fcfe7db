"""Credits from dumps in IMDb's layout: union of two files, caps, missing names, damaged files."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from tripletune.config import KnowledgeConfig
from tripletune.data.imdb import CREDITS, read_credits
from tripletune.errors import InputError
from tripletune.schemas import LINKS

CREW = """tconst	directors	writers
tt0000001	nm1	nm2,nm1
tt0000002	nm6,nm4,nm3,nm5	\\N
tt0009999	nm1	nm1
"""
PRINCIPALS = """tconst	ordering	nconst	category	job	characters
tt0000001	10	nm10	actor	\\N	["An ""A"" "]
tt0000001	2	nm11	actress	\\N	\\N
tt0000001	3	nm1	director	\\N	\\N
tt0000001	4	nm20	writer	\\N	\\N
tt0000001	5	nm30	cinematographer	\\N	\\N
tt0000001	6	nm31	composer	\\N	\\N
tt0000002	1	nm11	actor	\\N	\\N
tt0000002	2	nm11	actor	\\N	\\N
"""
NAMES = """nconst	primaryName	birthYear	deathYear	primaryProfession	knownForTitles
nm1	Ann "Ace" O'Hara	\\N	\\N	\\N	\\N
nm2	Ben	\\N	\\N	\\N	\\N
nm11	\\N	\\N	\\N	\\N	\\N
nm10	Cem	\\N	\\N	\\N	\\N
"""


def dumps(folder: Path, **texts: str) -> Path:
    files = {"crew": ("title.crew", CREW), "principals": ("title.principals", PRINCIPALS)}
    files["names"] = ("name.basics", NAMES)
    for name, (file, text) in files.items():
        (folder / f"{file}.tsv.gz").write_bytes(gzip.compress(texts.get(name, text).encode()))
    return folder


def links(*rows: tuple[int, str | None]) -> pl.LazyFrame:
    default = ((10, "tt0000001"), (20, "tt0000002"), (30, "tt0000003"))
    return pl.LazyFrame(rows or default, schema=LINKS, orient="row")


def people(credits: pl.DataFrame, movie: int, relation: str) -> list[str]:
    return credits.filter(movie_id=movie, relation=relation)["person"].to_list()


def test_credits_are_the_union_of_crew_and_principals_without_repeats(tmp_path):
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig())
    assert credits.schema == CREDITS
    assert people(credits, 10, "director") == ["nm1"]
    assert people(credits, 10, "writer") == ["nm1", "nm2", "nm20"]
    assert people(credits, 10, "actor") == ["nm10", "nm11"]
    assert people(credits, 10, "cinematographer") == ["nm30"]
    assert people(credits, 20, "writer") == []
    assert people(credits, 20, "actor") == ["nm11"]
    assert set(credits["movie_id"]) == {10, 20}
    assert (facts["films_with_credits"], facts["films_without_credits"]) == (2, 1)


def test_caps_keep_top_billing_and_the_order_of_the_crew(tmp_path):
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig(max_actors=1, max_credits=2))
    assert people(credits, 10, "actor") == ["nm11"]  # billed second, before the tenth
    assert people(credits, 10, "writer") == ["nm1", "nm2"]  # crew before principals
    assert people(credits, 20, "director") == ["nm4", "nm6"]
    assert facts["credits_before_caps"] == 12
    assert facts["credits"] == credits.height == 8


def test_people_without_a_name_stay_with_a_null_name(tmp_path):
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig())
    names = dict(credits.select("person", "name").iter_rows())
    assert names["nm1"] == 'Ann "Ace" O\'Hara'
    assert names["nm11"] is None  # its name is \N
    assert names["nm30"] is None  # it has no row
    assert facts["credit_people"] == 9
    assert facts["credit_people_without_name"] == 6


def test_coverage_counts_all_linked_films(tmp_path):
    _, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig())
    want = {"director": 2 / 3, "writer": 1 / 3, "actor": 2 / 3, "cinematographer": 1 / 3}
    assert facts["credit_coverage_before_caps"] == pytest.approx(want)


def test_two_movies_with_one_imdb_id_both_get_its_credits(tmp_path):
    linked = links((10, "tt0000001"), (11, "tt0000001"), (12, None))
    credits, _ = read_credits(dumps(tmp_path), linked, KnowledgeConfig())
    assert people(credits, 10, "writer") == people(credits, 11, "writer") == ["nm1", "nm2", "nm20"]


@pytest.mark.parametrize("file", ["title.crew.tsv.gz", "title.principals.tsv.gz", "name.basics.tsv.gz"])
def test_a_missing_file_is_named(tmp_path, file):
    (dumps(tmp_path) / file).unlink()
    with pytest.raises(InputError, match=f"has no {file}"):
        read_credits(tmp_path, links(), KnowledgeConfig())


@pytest.mark.parametrize("file", ["title.crew.tsv.gz", "title.principals.tsv.gz", "name.basics.tsv.gz"])
@pytest.mark.parametrize("lost", [8, 20])
def test_a_truncated_file_is_named_and_nothing_is_returned(tmp_path, file, lost):
    path = dumps(tmp_path) / file
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(InputError, match=f"{file} cannot be read"):
        read_credits(tmp_path, links(), KnowledgeConfig())


def test_another_header_is_named_with_the_expected_columns(tmp_path):
    with pytest.raises(InputError, match=r"title.crew.tsv.gz has no column 'directors'; expected .*tconst, directors"):
        read_credits(dumps(tmp_path, crew="tconst\tdirector\twriters\n"), links(), KnowledgeConfig())


def test_an_empty_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"title.crew.tsv.gz cannot be read"):
        read_credits(dumps(tmp_path, crew=""), links(), KnowledgeConfig())


def test_no_folder_gives_no_credits():
    credits, facts = read_credits(None, links(), KnowledgeConfig())
    assert credits.schema == CREDITS
    assert credits.is_empty()
    assert facts["credits"] == 0


def test_coverage_of_the_real_credits_is_the_known_one(real_data):
    numbers = pl.read_csv(real_data / "ml-latest-small" / "links.csv", infer_schema=False)
    linked = numbers.select(movie_id=pl.col("movieId").cast(pl.Int32), imdb_id="tt" + pl.col("imdbId"))
    credits, facts = read_credits(real_data / "imdb", linked.lazy(), KnowledgeConfig(max_actors=999, max_credits=999))
    by_relation = dict(credits.group_by("relation").len().iter_rows())
    assert by_relation == {"actor": 70648, "writer": 24113, "director": 10515, "cinematographer": 5850}
    coverage = {name: round(share, 2) for name, share in facts["credit_coverage_before_caps"].items()}
    assert coverage == {"director": 0.88, "writer": 0.87, "actor": 0.87, "cinematographer": 0.54}
    assert facts["films_with_credits"] == 8711
    assert facts["credit_people_without_name"] == 6670
