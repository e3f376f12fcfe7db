"""Credits from dumps in IMDb's layout: union of two files, caps, names, years, damaged files, order of rows."""

from __future__ import annotations

import gzip
import os
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest

from tripletune.config import KnowledgeConfig
from tripletune.errors import InputError
from tripletune.knowledge.imdb import CREDITS, read_credits
from tripletune.schemas.ingest import LINKS, MOVIES

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
tt0000001	7	nm33	producer	\\N	\\N
tt0000001	8	nm34	editor	\\N	\\N
tt0000001	9	nm35	archive_footage	\\N	["Self"]
tt0000002	1	nm11	actor	\\N	\\N
tt0000002	2	nm11	actor	\\N	\\N
"""
NAMES = """nconst	primaryName	birthYear	deathYear	primaryProfession	knownForTitles
nm1	Ann "Ace" O'Hara	\\N	\\N	\\N	\\N
nm2	Ben	\\N	\\N	\\N	\\N
nm11	\\N	\\N	\\N	\\N	\\N
nm10	Cem	\\N	\\N	\\N	\\N
"""
BASICS = """tconst	titleType	primaryTitle	originalTitle	isAdult	startYear	endYear	runtimeMinutes	genres
tt0000001	movie	One	One	0	1996	\\N	\\N	\\N
tt0000002	movie	Two	Two	0	1962	\\N	\\N	\\N
tt0000003	movie	Three	Three	0	\\N	\\N	\\N	\\N
"""
FOUR = ("director", "writer", "actor", "cinematographer")
ALL_FILES = ["title.crew.tsv.gz", "title.principals.tsv.gz", "name.basics.tsv.gz", "title.basics.tsv.gz"]


def dumps(folder: Path, **texts: str) -> Path:
    files = {"crew": ("title.crew", CREW), "principals": ("title.principals", PRINCIPALS)}
    files |= {"names": ("name.basics", NAMES), "basics": ("title.basics", BASICS)}
    for name, (file, text) in files.items():
        (folder / f"{file}.tsv.gz").write_bytes(gzip.compress(texts.get(name, text).encode()))
    return folder


def links(*rows: tuple[int, str | None]) -> pl.LazyFrame:
    default = ((10, "tt0000001"), (20, "tt0000002"), (30, "tt0000003"))
    return pl.LazyFrame(rows or default, schema=LINKS, orient="row")


def movies(*years: int | None) -> pl.LazyFrame:
    rows = [(movie, f"Film {movie}", year, []) for movie, year in zip((10, 20, 30), years, strict=True)]
    return pl.LazyFrame(rows, schema=MOVIES, orient="row")


def people(credits: pl.DataFrame, movie: int, relation: str) -> list[str]:
    return credits.filter(movie_id=movie, relation=relation)["person"].to_list()


def test_credits_are_the_union_of_crew_and_principals_without_repeats(tmp_path):
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig())
    assert credits.schema == CREDITS
    assert people(credits, 10, "director") == ["nm1"]
    assert people(credits, 10, "writer") == ["nm1", "nm2", "nm20"]
    assert people(credits, 10, "actor") == ["nm10", "nm11"]
    assert people(credits, 10, "cinematographer") == ["nm30"]
    assert people(credits, 10, "composer") == ["nm31"]
    assert people(credits, 10, "producer") == ["nm33"]
    assert people(credits, 10, "editor") == ["nm34"]
    assert people(credits, 20, "writer") == []
    assert people(credits, 20, "actor") == ["nm11"]
    assert set(credits["movie_id"]) == {10, 20}
    assert (facts["films_with_credits"], facts["films_without_credits"]) == (2, 1)


def test_caps_keep_top_billing_and_the_order_of_the_crew(tmp_path):
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig(max_actors=1, max_credits=2))
    assert people(credits, 10, "actor") == ["nm11"]  # billed second, before the tenth
    assert people(credits, 10, "writer") == ["nm1", "nm2"]  # crew before principals
    assert people(credits, 20, "director") == ["nm4", "nm6"]
    assert facts["credits_before_caps"] == 15
    assert facts["credits"] == credits.height == 11


def test_people_without_a_name_stay_with_a_null_name(tmp_path):
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig())
    names = dict(credits.select("person", "name").iter_rows())
    assert names["nm1"] == 'Ann "Ace" O\'Hara'
    assert names["nm11"] is None  # its name is \N
    assert names["nm30"] is None  # it has no row
    assert facts["credit_people"] == 12
    assert facts["credit_people_without_name"] == 9


def test_of_several_names_of_one_person_the_first_by_alphabet_counts_in_any_order(tmp_path):
    more = NAMES + "nm2\tBenjamin\t\\N\t\\N\t\\N\t\\N\nnm2\tBen \t\\N\t\\N\t\\N\t\\N\nnm11\tDeb\t\\N\t\\N\t\\N\t\\N\n"
    header, *lines = more.splitlines(keepends=True)
    for number, text in enumerate((more, header + "".join(reversed(lines)))):
        (folder := tmp_path / str(number)).mkdir()
        credits, facts = read_credits(dumps(folder, names=text), links(), KnowledgeConfig())
        names = dict(credits.select("person", "name").iter_rows())
        assert (names["nm2"], names["nm11"]) == ("Ben", "Deb")
        assert facts["credit_people_with_several_names"] == 1


def test_only_the_configured_credits_are_read(tmp_path):
    settings = KnowledgeConfig(credits=("composer", "director"))
    credits, facts = read_credits(dumps(tmp_path), links(), settings)
    assert set(credits["relation"]) == {"composer", "director"}
    assert set(facts["credit_coverage_before_caps"]) == {"composer", "director"}
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig(credits=()))
    assert credits.is_empty()
    assert facts["credits"] == 0


def test_coverage_counts_all_linked_films(tmp_path):
    _, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig())
    want = {"director": 2 / 3, "actor": 2 / 3}
    want |= dict.fromkeys(("writer", "cinematographer", "composer", "producer", "editor"), 1 / 3)
    assert facts["credit_coverage_before_caps"] == pytest.approx(want)


def test_two_movies_with_one_imdb_id_both_get_its_credits(tmp_path):
    linked = links((10, "tt0000001"), (11, "tt0000001"), (12, None))
    credits, _ = read_credits(dumps(tmp_path), linked, KnowledgeConfig())
    assert people(credits, 10, "writer") == people(credits, 11, "writer") == ["nm1", "nm2", "nm20"]


def test_years_that_differ_by_one_are_no_disagreement(tmp_path):
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig(), movies(1995, 1962, 2000))
    assert set(credits["movie_id"]) == {10, 20}
    assert (facts["years_compared"], facts["years_differ"], facts["year_disagreements"]) == (2, 1, 0)


def test_credits_of_films_whose_years_disagree_are_counted_and_left_out_on_request(tmp_path):
    released = movies(1995, 1964, 2000)
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig(), released)
    assert set(credits["movie_id"]) == {10, 20}
    assert (facts["years_differ"], facts["year_disagreements"]) == (2, 1)
    assert facts["year_largest_disagreement"] == "movie 20: 1964 in the release, 1962 for tt0000002"
    credits, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig(drop_year_disagreements=True), released)
    assert set(credits["movie_id"]) == {10}
    assert (facts["year_disagreements"], facts["films_without_credits"]) == (1, 2)
    _, facts = read_credits(dumps(tmp_path), links(), KnowledgeConfig(max_year_gap=2), released)
    assert facts["year_disagreements"] == 0


def test_without_title_basics_years_are_not_compared_and_the_facts_say_so(tmp_path):
    (dumps(tmp_path) / "title.basics.tsv.gz").unlink()
    credits, facts = read_credits(tmp_path, links(), KnowledgeConfig(), movies(1995, 1900, 2000))
    assert set(credits["movie_id"]) == {10, 20}
    assert (facts["years_compared"], facts["years_not_compared"]) == (0, "title.basics.tsv.gz is not there")


def test_lines_with_fields_too_few_or_too_many_are_counted_and_never_used(tmp_path):
    damaged = PRINCIPALS + "tt0000001\tnm66\tdirector\t\\N\t\\N\n" + "tt0000001\t1\tnm77\tdirector\t\\N\t\\N\t\\N\n\n"
    credits, facts = read_credits(dumps(tmp_path, principals=damaged), links(), KnowledgeConfig())
    (sound := tmp_path / "sound").mkdir()
    assert credits.equals(read_credits(dumps(sound), links(), KnowledgeConfig())[0])
    assert facts["malformed_dump_lines"] == {"title.crew": 0, "title.principals": 2, "name.basics": 0}


def test_a_dump_whose_lines_are_mostly_malformed_is_refused(tmp_path):
    text = PRINCIPALS.replace("\n", "\tmore\n").replace("characters\tmore", "characters")
    with pytest.raises(InputError, match=r"title.principals.tsv.gz: 11 of 12 lines have not the 6 fields of the first"):
        read_credits(dumps(tmp_path, principals=text), links(), KnowledgeConfig())


def test_a_credit_without_a_place_comes_after_those_with_one(tmp_path):
    text = PRINCIPALS + "tt0000002\t\\N\tnm01\tactor\t\\N\t\\N\n"
    credits, _ = read_credits(dumps(tmp_path, principals=text), links(), KnowledgeConfig(max_actors=1))
    assert people(credits, 20, "actor") == ["nm11"]


def test_line_ends_and_a_byte_order_mark_do_not_matter(tmp_path):
    want, _ = read_credits(dumps(tmp_path), links(), KnowledgeConfig())
    texts = {"crew": CREW, "principals": PRINCIPALS, "names": NAMES, "basics": BASICS}
    windows = {name: "\ufeff" + text.replace("\n", "\r\n") for name, text in texts.items()}
    got, _ = read_credits(dumps(tmp_path, **windows), links(), KnowledgeConfig())
    assert got.equals(want)


@pytest.mark.parametrize("file", ALL_FILES[:3])
def test_a_missing_file_is_named(tmp_path, file):
    (dumps(tmp_path) / file).unlink()
    with pytest.raises(InputError, match=f"has no {file}"):
        read_credits(tmp_path, links(), KnowledgeConfig())


@pytest.mark.parametrize("file", ALL_FILES)
@pytest.mark.parametrize("lost", [8, 20])
def test_a_truncated_file_is_named_and_nothing_is_returned(tmp_path, file, lost):
    path = dumps(tmp_path) / file
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(InputError, match=f"{file} cannot be read"):
        read_credits(tmp_path, links(), KnowledgeConfig(), movies(1995, 1962, 2000))


@pytest.mark.parametrize("file", ALL_FILES)
def test_one_flipped_bit_is_noticed(tmp_path, file):
    path = dumps(tmp_path) / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"^[^\n]*{file} cannot be read[^\n]*fetch it again$"):
        read_credits(tmp_path, links(), KnowledgeConfig(), movies(1995, 1962, 2000))


def test_text_that_is_not_utf8_is_an_input_error(tmp_path):
    (dumps(tmp_path) / "name.basics.tsv.gz").write_bytes(
        gzip.compress(NAMES.replace("Ben", "B\xe9n").encode("latin-1"))
    )
    with pytest.raises(InputError, match=r"name.basics.tsv.gz cannot be read \(invalid utf8\)"):
        read_credits(tmp_path, links(), KnowledgeConfig())


def test_another_header_is_named_with_the_expected_columns(tmp_path):
    with pytest.raises(InputError, match=r"title.crew.tsv.gz has no column 'directors'; expected .*tconst, directors"):
        read_credits(dumps(tmp_path, crew="tconst\tdirector\twriters\n"), links(), KnowledgeConfig())


def test_the_id_must_be_the_first_column(tmp_path):
    text = "directors\ttconst\twriters\nnm1\ttt0000001\tnm2\n"
    with pytest.raises(InputError, match=r"title.crew.tsv.gz begins with column 'directors'; expected 'tconst'"):
        read_credits(dumps(tmp_path, crew=text), links(), KnowledgeConfig())


def test_an_empty_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"title.crew.tsv.gz is empty"):
        read_credits(dumps(tmp_path, crew=""), links(), KnowledgeConfig())


def test_no_folder_gives_no_credits():
    credits, facts = read_credits(None, links(), KnowledgeConfig())
    assert credits.schema == CREDITS
    assert credits.is_empty()
    assert facts["credits"] == 0


def test_coverage_of_the_real_credits_is_the_known_one(real_data):
    numbers = pl.read_csv(real_data / "ml-latest-small" / "links.csv", infer_schema=False)
    linked = numbers.select(movie_id=pl.col("movieId").cast(pl.Int32), imdb_id="tt" + pl.col("imdbId"))
    settings = KnowledgeConfig(credits=FOUR, max_actors=999, max_credits=999)
    credits, facts = read_credits(real_data / "imdb", linked.lazy(), settings)
    by_relation = dict(credits.group_by("relation").len().iter_rows())
    assert by_relation == {"actor": 70648, "writer": 24113, "director": 10515, "cinematographer": 5850}
    coverage = {name: round(share, 2) for name, share in facts["credit_coverage_before_caps"].items()}
    assert coverage == {"director": 0.88, "writer": 0.87, "actor": 0.87, "cinematographer": 0.54}
    assert facts["films_with_credits"] == 8711
    assert facts["credit_people_without_name"] == 6670


CATEGORIES = ("actor", "actress", "director", "writer", "cinematographer", "composer", "producer", "editor", "self")


def many_dumps(folder: Path, seed: int | None = None) -> Path:
    """Dumps of 400 titles with repeats, ties, gaps and damage; with a seed, shuffled and in several gzip members."""
    told = random.Random(1)
    nobody, rest = "\\N", "\t\\N" * 4

    def cast(most: int) -> str:
        return ",".join(f"nm{told.randrange(300)}" for _ in range(told.randrange(most))) or nobody

    crew = [f"tt{title}\t{cast(4)}\t{cast(6)}" for title in range(400) for _ in range(told.choice((1, 1, 1, 0, 2)))]
    principals = []
    for title in range(400):
        for _ in range(told.randrange(30)):
            place = told.choice((nobody, *range(1, 12)))
            principals.append(f"tt{title}\t{place}\tnm{told.randrange(300)}\t{told.choice(CATEGORIES)}\t\\N\t\\N")
    names = [f"nm{told.randrange(330)}\tName {told.randrange(200)}{rest}" for _ in range(500)]
    basics = [
        f"tt{title}\tmovie\tT\tT\t0\t{told.randrange(1990, 2000)}\t\\N\t\\N\t\\N" for title in [*range(400), *range(50)]
    ]
    principals += ["tt7\tnm7", "tt8\t1\tnm8\tactor\t\\N\t\\N\t\\N\t\\N"]
    tables = {"title.crew": (CREW, crew), "title.principals": (PRINCIPALS, principals)}
    tables |= {"name.basics": (NAMES, names), "title.basics": (BASICS, basics)}
    folder.mkdir()
    for table, (example, lines) in tables.items():
        if seed is not None:
            random.Random(seed).shuffle(lines)
        text = "".join(f"{line}\n" for line in lines).encode()
        header = example.split("\n")[0].encode() + b"\n"
        members = [header + text] if seed is None else [header, text[:999], text[999:]]
        (folder / f"{table}.tsv.gz").write_bytes(b"".join(map(gzip.compress, members)))
    return folder


MANY = [(movie, f"tt{movie % 390}") for movie in range(0, 800, 2)]
MANY_MOVIES = pl.LazyFrame([(movie, "T", 1995, []) for movie, _ in MANY], schema=MOVIES, orient="row")


def test_credits_are_those_of_a_plain_loop_over_the_lines(tmp_path):
    """Reference implementation: dictionaries, no joins."""
    folder = many_dumps(tmp_path / "dumps")
    rows = {
        path.name.removesuffix(".tsv.gz"): [
            line.split("\t") for line in gzip.decompress(path.read_bytes()).decode().split("\n")
        ]
        for path in folder.iterdir()
    }
    billing: dict[tuple[str, str], dict[str, tuple[int, float]]] = defaultdict(dict)

    def bill(title: str, relation: str, person: str, place: tuple[int, float]) -> None:
        known = billing[title, relation].get(person, place)
        billing[title, relation][person] = min(known, place)

    for title, *columns in [row for row in rows["title.crew"][1:] if len(row) == 3]:
        for relation, listed in zip(("director", "writer"), columns, strict=True):
            for number, person in enumerate(listed.split(",") if listed != "\\N" else []):
                bill(title, relation, person, (0, number))
    for title, place, person, category, *_ in [row for row in rows["title.principals"][1:] if len(row) == 6]:
        if category != "self":
            relation = "actor" if category == "actress" else category
            bill(title, relation, person, (1, float("inf") if place == "\\N" else int(place)))
    names: dict[str, str] = {}
    for person, name, *_ in [row for row in rows["name.basics"][1:] if len(row) == 6]:
        names[person] = min(names.get(person, name), name)
    want = []
    for movie, title in MANY:
        for relation in ("actor", "cinematographer", "composer", "director", "editor", "producer", "writer"):
            ranked = sorted(billing[title, relation].items(), key=lambda item: (item[1], item[0]))
            chosen = ranked[: 4 if relation == "actor" else 3]
            want += [(movie, relation, person, names.get(person)) for person, _ in chosen]
    credits, facts = read_credits(folder, links(*MANY), KnowledgeConfig(max_actors=4, max_credits=3))
    assert sorted(want, key=lambda row: row[:3]) == credits.rows()
    assert facts["malformed_dump_lines"]["title.principals"] == 2


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_the_dumps_rows_does_not_matter(tmp_path, seed):
    linked, settings = links(*MANY), KnowledgeConfig()
    credits, facts = read_credits(many_dumps(tmp_path / "dumps"), linked, settings, MANY_MOVIES)
    shuffled, shuffled_facts = read_credits(many_dumps(tmp_path / "shuffled", seed), linked, settings, MANY_MOVIES)
    assert shuffled.equals(credits)
    assert shuffled_facts == facts
    assert facts["year_disagreements"] > 0


def test_the_number_of_threads_does_not_matter(tmp_path):
    many_dumps(tmp_path / "dumps")
    links(*MANY).sink_parquet(tmp_path / "links.parquet")
    code = (
        "import polars, sys, pathlib; from tripletune.config import KnowledgeConfig as K; "
        "from tripletune.knowledge.imdb import read_credits; root = pathlib.Path(sys.argv[1]); "
        "credits, _ = read_credits(root / 'dumps', polars.scan_parquet(root / 'links.parquet'), K()); "
        "print(polars.thread_pool_size()); credits.write_parquet(root / (sys.argv[2] + '.parquet'))"
    )
    for threads in ("1", "4"):
        command = [sys.executable, "-c", code, str(tmp_path), threads]
        told = subprocess.check_output(command, env={**os.environ, "POLARS_MAX_THREADS": threads}, text=True)
        assert told.strip() == threads
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "4.parquet").read_bytes()
