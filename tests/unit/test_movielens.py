"""Ingest: rows kept, rows rejected and the error messages, for each layout and each kind of damage."""

from __future__ import annotations

import csv
import zipfile
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tripletune.config import IngestConfig
from tripletune.data.release import archive
from tripletune.data.release.movielens import ingest_release
from tripletune.errors import InputError
from tripletune.schemas.ingest import LINKS, MOVIES, ORDER, RATINGS, REJECTS, TAGS, USERS

MOVIES_CSV = 'movieId,title,genres\r\n1,Toy Story (1995),Animation|Comedy\r\n7,"Net, The (1995)",Thriller\r\n'
RATINGS_CSV = "userId,movieId,rating,timestamp\r\n5,7,4.0,200\r\n5,1,3.5,100\r\n9,1,0.5,50\r\n"
EPOCH = date(1970, 1, 1)
LENIENT = IngestConfig(max_reject_share=1.0, earliest=EPOCH)


def release(folder: Path, **files: str | bytes) -> Path:
    """A csv release; ``ratings="..."`` replaces ratings.csv, and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"ratings": RATINGS_CSV, "movies": MOVIES_CSV, **files}.items():
        (folder / f"{name}.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def ingest(source: Path, out: Path, settings: IngestConfig = LENIENT) -> tuple[dict[str, pl.DataFrame], dict]:
    out.mkdir(exist_ok=True)
    facts = ingest_release(source, out, settings)
    names = ("ratings", "order", "movies", "tags", "links", "users", "rejects")
    return {name: pl.read_parquet(out / f"{name}.parquet") for name in names}, facts


def refused(tables: dict[str, pl.DataFrame]) -> list[tuple]:
    return tables["rejects"].rows()


def zip_of(path: Path, **members: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(name, text)
    return path


def test_a_good_release_is_kept_whole_typed_and_sorted_by_user_and_movie(tmp_path):
    tables, facts = ingest(release(tmp_path / "ml"), tmp_path / "out")
    assert tables["ratings"].rows() == [(5, 1, 3.5, 100), (5, 7, 4.0, 200), (9, 1, 0.5, 50)]
    assert tables["movies"].rows() == [
        (1, "Toy Story (1995)", 1995, ["Animation", "Comedy"]),
        (7, "Net, The (1995)", 1995, ["Thriller"]),
    ]
    schemas = {"ratings": RATINGS, "movies": MOVIES, "tags": TAGS, "links": LINKS, "users": USERS, "rejects": REJECTS}
    schemas["order"] = ORDER
    assert {name: table.schema for name, table in tables.items()} == schemas
    assert (facts["rows_in"], facts["rows_kept"], facts["rows_rejected"]) == (3, 3, 0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(f"{name}.parquet" for name in schemas)


def test_each_bad_rating_is_refused_with_its_line_column_value_and_reason(tmp_path):
    rows = [
        "1,1,4.0,10",
        "1,7,11,10",
        "x,1,4.0,10",
        "1,1.5,4.0,10",
        "2,1,good,10",
        "2,7,NaN,10",
        "2,7,4.0,never",
        "3,99,4.0,10",
    ]
    rows += ["3,1,4.0", "3,1,4.0,10,", "", "4,7,5.0,10"]
    ratings = "userId,movieId,rating,timestamp\n" + "\n".join(rows) + "\n"
    tables, facts = ingest(release(tmp_path / "ml", ratings=ratings), tmp_path / "out")
    assert tables["ratings"].rows() == [(1, 1, 4.0, 10), (4, 7, 5.0, 10)]
    assert refused(tables) == [
        ("ratings.csv", 3, "rating", "11", "outside 0.5 to 5"),
        ("ratings.csv", 4, "userId", "x", "not a whole number from 0 to 2147483647"),
        ("ratings.csv", 5, "movieId", "1.5", "not a whole number from 0 to 2147483647"),
        ("ratings.csv", 6, "rating", "good", "not a number"),
        ("ratings.csv", 7, "rating", "NaN", "not a number"),
        ("ratings.csv", 8, "timestamp", "never", "not a whole number"),
        ("ratings.csv", 9, "movieId", "99", "movie is not in the movies file"),
        ("ratings.csv", 10, None, "3,1,4.0", "not 4 fields separated by ','"),
        ("ratings.csv", 11, None, "3,1,4.0,10,", "not 4 fields separated by ','"),
    ]
    assert (facts["rows_in"], facts["rows_kept"], facts["rows_rejected"]) == (11, 2, 9)
    assert sum(facts["rejected_by_reason"].values()) == 9


@pytest.mark.parametrize("shuffled", [False, True])
def test_of_two_ratings_of_one_film_the_newest_counts_and_at_equal_times_the_highest(tmp_path, shuffled):
    rows = ["1,1,1.0,300", "1,1,2.0,100", "1,7,3.0,50", "1,7,4.0,50", "2,1,5.0,10"]
    order = [4, 1, 3, 0, 2] if shuffled else [0, 1, 2, 3, 4]
    text = "userId,movieId,rating,timestamp\n" + "\n".join(rows[i] for i in order)
    tables, facts = ingest(release(tmp_path / "ml", ratings=text), tmp_path / "out")
    assert tables["ratings"].rows() == [(1, 1, 1.0, 300), (1, 7, 4.0, 50), (2, 1, 5.0, 10)]
    assert tables["order"]["row"].to_list() == [order.index(row) + 2 for row in (0, 3, 4)]
    assert {reason.split(":")[0] for reason in tables["rejects"]["reason"]} == {"duplicate"}
    assert sorted(tables["rejects"]["line"]) == sorted(order.index(i) + 2 for i in (1, 2))
    assert facts["rows_in"] == facts["rows_kept"] + facts["rows_rejected"] == 5


def test_a_rating_that_a_newer_one_replaces_does_not_count_as_damage(tmp_path):
    source = release(tmp_path / "ml", ratings=RATINGS_CSV + "5,7,5.0,300\r\n")
    tables, facts = ingest(source, tmp_path / "out", IngestConfig(earliest=EPOCH, max_reject_share=0.0))
    assert (5, 7, 5.0, 300) in tables["ratings"].rows()
    assert facts["rows_rejected"] == 1


@pytest.mark.parametrize(
    ("time", "said"),
    [("788000000", "1995-01-01 to 2100-01-01"), ("978300760000", "1995-01-01 to 2100-01-01"), ("1e9", "whole number")],
    ids=["before MovieLens", "milliseconds", "a float"],
)
def test_a_time_that_cannot_be_is_refused(tmp_path, time, said):
    ratings = f"userId,movieId,rating,timestamp\n1,1,4.0,{time}\n1,7,4.0,978300760\n"
    tables, _ = ingest(release(tmp_path / "ml", ratings=ratings), tmp_path / "out", IngestConfig(max_reject_share=1.0))
    assert tables["ratings"]["movie_id"].to_list() == [7]
    assert [row[1:4] for row in refused(tables)] == [(2, "timestamp", time)]
    assert said in tables["rejects"]["reason"][0]


def test_columns_are_found_by_name_in_any_order(tmp_path):
    ratings = "timestamp,movieId,extra,userId,rating\n100,7,x,5,4.0\n,1,x,5,4.0\n"
    movies = "genres,title,movieId\nDrama,A (1999),1\nDrama,B (1999),7\n"
    tables, _ = ingest(release(tmp_path / "ml", ratings=ratings, movies=movies), tmp_path / "out")
    assert tables["ratings"].rows() == [(5, 7, 4.0, 100)]
    assert refused(tables) == [("ratings.csv", 3, "timestamp", "", "not a whole number")]
    assert tables["movies"]["title"].to_list() == ["A (1999)", "B (1999)"]


def test_swapped_values_below_a_right_header_stop_the_stage(tmp_path):
    source = release(tmp_path / "ml", ratings="userId,movieId,rating,timestamp\n5,7,200,4\n5,1,100,3\n9,1,50,1\n")
    with pytest.raises(InputError, match=r"3 of 3 ratings .* outside 0.5 to 5, such as '200' in ratings.csv line 2"):
        ingest(source, tmp_path / "out", IngestConfig(earliest=EPOCH))


def test_too_many_refused_ratings_stop_the_stage_with_the_commonest_reason_and_an_example(tmp_path):
    ratings = RATINGS_CSV + "5,7,11,1\r\n6,7,11,1\r\n6,8,4.0,1\r\n"
    source = release(tmp_path / "ml", ratings=ratings)
    with pytest.raises(
        InputError, match=r"3 of 6 ratings were refused.*outside 0.5 to 5, such as '11' in ratings.csv line 5"
    ) as error:
        ingest(source, tmp_path / "out", IngestConfig(earliest=EPOCH))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "ratings.parquet").exists()


@pytest.mark.parametrize(
    "header",
    ["userId,userId,rating,timestamp,movieId", "userId,movieId,rating", "user,movie,rating,timestamp", "1,1,4.0,100"],
    ids=["twice", "missing", "renamed", "none"],
)
def test_another_header_is_refused_and_the_expected_one_is_said(tmp_path, header):
    source = release(tmp_path / "ml", ratings=f"{header}\n1,1,4.0,100\n")
    with pytest.raises(
        InputError, match=r"ratings.csv line 1 reads .*expected the header 'userId,movieId,rating,timestamp'"
    ):
        ingest(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["ratings", "movies"])
@pytest.mark.parametrize("text", ["", "\r\n\n"], ids=["no bytes", "blank lines"])
def test_an_empty_file_is_named(tmp_path, name, text):
    with pytest.raises(InputError, match=rf"{name}.csv is empty"):
        ingest(release(tmp_path / "ml", **{name: text}), tmp_path / "out")


@pytest.mark.parametrize(("name", "said"), [("ratings", "has no ratings"), ("movies", "has no usable row")])
def test_a_file_with_only_a_header_is_named(tmp_path, name, said):
    text = (RATINGS_CSV if name == "ratings" else MOVIES_CSV).split("\r\n")[0] + "\r\n"
    with pytest.raises(InputError, match=rf"{name}.csv {said}"):
        ingest(release(tmp_path / "ml", **{name: text}), tmp_path / "out")


def test_a_missing_release_an_unknown_layout_and_a_wrong_file_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "some.csv").write_text("a,b\n")
    with pytest.raises(InputError, match="does not exist"):
        ingest(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match=r"looked for ratings.csv, ratings.dat, u.data"):
        ingest(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(InputError, match=r"neither a folder nor a .zip"):
        ingest(tmp_path / "some.csv", tmp_path / "out")


def test_ratings_without_movies_and_two_releases_in_one_folder_are_refused(tmp_path):
    release(tmp_path / "both" / "a")
    release(tmp_path / "both" / "b")
    with pytest.raises(InputError, match="more than one release"):
        ingest(tmp_path / "both", tmp_path / "out")
    (tmp_path / "both" / "a" / "movies.csv").unlink()
    with pytest.raises(InputError, match=r"no movies.csv next to it"):
        ingest(tmp_path / "both" / "a", tmp_path / "out")


def test_titles_and_tags_come_through_unchanged(tmp_path):
    titles = [
        "11'09\"01 - September 11 (2002)",
        "Amélie, the (2001) ",
        "Ponyo 崖の上 (2008)",
        '12" Single (1999)',
        "No Year",
    ]
    movies = "\ufeffmovieId,title,genres\r\n" + "".join(
        f'{number},"{title.replace(chr(34), chr(34) * 2)}",(no genres listed)\r\n'
        for number, title in enumerate(titles, 1)
    )
    tags = (
        'userId,movieId,tag,timestamp\r\n1,1,"""artsy""",1\r\n1,2,"two\n\nlines, ""assistant:""",2\r\n1,3,5" disk,3\r\n'
    )
    ratings = "userId,movieId,rating,timestamp\r\n1,1,4.0,1\r\n"
    tables, _ = ingest(release(tmp_path / "ml", movies=movies, tags=tags, ratings=ratings), tmp_path / "out")
    assert tables["movies"]["title"].to_list() == titles
    assert tables["movies"]["year"].to_list() == [2002, 2001, 2008, 1999, None]
    assert tables["movies"]["genres"].to_list() == [[]] * 5
    assert tables["tags"]["tag"].to_list() == ['"artsy"', 'two\n\nlines, "assistant:"', '5" disk']
    assert tables["rejects"].is_empty()


def test_a_damaged_line_of_tags_costs_itself_and_nothing_else(tmp_path):
    lines = [
        "1,1,fine,1",
        '1,1,"never closed,2',
        "1,7,short",
        '1,7,"closed",4',
        "1,7,,5",
        "1,99,no such film,6",
        '1,7,"a"b,7',
    ]
    tags = "userId,movieId,tag,timestamp\n" + "\n".join([*lines, "2,7,last,8"]) + "\n"
    tables, facts = ingest(release(tmp_path / "ml", tags=tags), tmp_path / "out")
    assert tables["tags"]["tag"].to_list() == ["fine", "closed", "last"]
    assert [(line, column) for _, line, column, _, _ in refused(tables)] == [
        (3, None), (4, None), (6, "tag"), (7, "movieId"), (8, None)
    ]  # fmt: skip
    assert facts["tables"]["tags"] == {"rows_in": 8, "rows_kept": 3, "rows_rejected": 5}


def test_a_record_after_one_of_several_lines_has_the_right_line_number(tmp_path):
    tags = 'userId,movieId,tag,timestamp\n1,1,"three\nlines\nlong",1\n1,1,x,bad\n'
    tables, _ = ingest(release(tmp_path / "ml", tags=tags), tmp_path / "out")
    assert refused(tables) == [("tags.csv", 5, "timestamp", "bad", "not a whole number")]


def test_a_line_that_is_not_utf8_is_refused_and_its_neighbours_kept(tmp_path):
    movies = MOVIES_CSV.encode() + b"8,Am\xe9lie (2001),Drama\r\n9,Caf\xc3\xa9 (2002),Drama\r\n"
    tables, _ = ingest(release(tmp_path / "ml", movies=movies), tmp_path / "out")
    assert tables["movies"]["title"].to_list()[2:] == ["Café (2002)"]
    assert [(row[1], row[4]) for row in refused(tables)] == [(4, "not UTF-8")]


def test_repeated_movie_ids_and_unusable_links_are_refused(tmp_path):
    movies = MOVIES_CSV + "1,Another (2000),Drama\r\n8,  ,Drama\r\n"
    links = "movieId,imdbId,tmdbId\r\n1,0114709,862\r\n7,114,\r\n7,115,\r\n99,116,\r\n1,,\r\n"
    tables, _ = ingest(release(tmp_path / "ml", movies=movies, links=links), tmp_path / "out")
    assert tables["movies"]["movie_id"].to_list() == [1, 7]
    assert tables["links"].rows() == [(1, "tt0114709"), (7, "tt0000114")]
    assert [(row[0], row[1]) for row in refused(tables)] == [
        ("links.csv", 4), ("links.csv", 5), ("links.csv", 6), ("movies.csv", 4), ("movies.csv", 5)
    ]  # fmt: skip


def test_the_layout_of_ml_1m_is_read_from_latin_1(tmp_path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("1::2::5::978300760\n1::3::3::978302109\n")
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n1::M::25::15::55117\n")
    (folder / "movies.dat").write_bytes("2::Léon (1994)::Crime|Drama\n3::Net, The (1995)::Thriller\n".encode("latin-1"))
    tables, facts = ingest(folder, tmp_path / "out")
    assert facts["layout"] == "dat"
    assert tables["movies"].rows() == [
        (2, "Léon (1994)", 1994, ["Crime", "Drama"]),
        (3, "Net, The (1995)", 1995, ["Thriller"]),
    ]
    assert tables["ratings"].rows() == [(1, 2, 5.0, 978300760), (1, 3, 3.0, 978302109)]
    assert tables["users"].rows() == [(1, "F", 1, "10", "48067"), (2, "M", 56, "16", "70072")]
    assert refused(tables) == [("users.dat", 3, "userId", "1", "user id stands in an earlier row")]
    assert tables["tags"].is_empty()
    assert tables["links"].is_empty()


def test_the_layout_of_ml_100k_gives_genres_from_flags(tmp_path):
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    (folder / "u.data").write_text("196\t242\t3\t881250949\n")
    (folder / "u.user").write_text("196|49|M|writer|55105\n")
    drama_war = "|".join("1" if place in (8, 17) else "0" for place in range(19))
    unknown = "|".join(["1"] + ["0"] * 18)
    lines = f"242|Kolya (1996)|24-Jan-1997||http://x|{drama_war}\n267|unknown||||{unknown}\n"
    (folder / "u.item").write_text(lines, encoding="latin-1")
    tables, facts = ingest(folder, tmp_path / "out")
    assert facts["layout"] == "100k"
    assert tables["users"].rows() == [(196, "M", 49, "writer", "55105")]
    assert tables["movies"].rows() == [(242, "Kolya (1996)", 1996, ["Drama", "War"]), (267, "unknown", None, [])]


def test_a_zip_gives_the_same_bytes_as_its_folder(tmp_path):
    folder = release(tmp_path / "ml")
    packed = zip_of(
        tmp_path / "ml.zip", **{"ml/ratings.csv": RATINGS_CSV, "ml/movies.csv": MOVIES_CSV, "ml/README.txt": "x"}
    )
    ingest(folder, tmp_path / "a")
    ingest(packed, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()
    assert not list((tmp_path / "b").rglob("ratings.csv"))


@pytest.mark.parametrize("name", ["../evil/ratings.csv", "/etc/ratings.csv", "ml/../../ratings.csv", "..\\ratings.csv"])
def test_a_zip_member_that_climbs_out_is_refused_and_nothing_is_written(tmp_path, name):
    packed = zip_of(tmp_path / "ml.zip", **{name: RATINGS_CSV, "ml/movies.csv": MOVIES_CSV})
    with pytest.raises(InputError, match="points outside of the archive"):
        ingest(packed, tmp_path / "out")
    assert not list(tmp_path.rglob("*.csv"))


def test_a_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as file:
        link = zipfile.ZipInfo("ml/ratings.csv")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="is a link"):
        ingest(tmp_path / "ml.zip", tmp_path / "out")


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_zip_is_named(tmp_path, keep):
    packed = zip_of(tmp_path / "ml.zip", **{"ml/ratings.csv": RATINGS_CSV, "ml/movies.csv": MOVIES_CSV})
    packed.write_bytes(packed.read_bytes()[: int(keep * packed.stat().st_size)])
    with pytest.raises(InputError, match=r"ml.zip cannot be unpacked"):
        ingest(packed, tmp_path / "out")


def test_a_zip_with_a_wrong_checksum_is_named(tmp_path):
    packed = tmp_path / "ml.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as file:
        file.writestr("ml/ratings.csv", RATINGS_CSV)
        file.writestr("ml/movies.csv", MOVIES_CSV)
    packed.write_bytes(packed.read_bytes().replace(b"5,7,4.0,200", b"5,7,1.0,200"))
    with pytest.raises(InputError, match=r"cannot be unpacked .*CRC"):
        ingest(packed, tmp_path / "out")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    packed = zip_of(tmp_path / "ml.zip", **{"ml/ratings.csv": "0" * (1 << 25), "ml/movies.csv": MOVIES_CSV})
    with pytest.raises(InputError, match="more than 200 times its size"):
        ingest(packed, tmp_path / "out")
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1 << 20)
    with pytest.raises(InputError, match="unpack it yourself"):
        ingest(packed, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("ratings.csv"))


def test_ml_latest_small_is_kept_whole(real_data, tmp_path):
    _, facts = ingest(real_data / "ml-latest-small", tmp_path / "out", IngestConfig(earliest=EPOCH))
    assert {name: table["rows_kept"] for name, table in facts["tables"].items()} == {
        "movies": 9742, "ratings": 100836, "tags": 3683, "links": 9742, "users": 0
    }  # fmt: skip
    assert facts["rejected_by_reason"] == {}
    assert facts["viewers"] == 610


def test_the_87585_titles_of_ml_32m_come_through_byte_by_byte(real_data, tmp_path):
    movies = (real_data / "ml-32m" / "movies.csv").read_bytes()
    titles = {int(row["movieId"]): row["title"] for row in csv.DictReader(movies.decode().splitlines())}
    tables, facts = ingest(release(tmp_path / "ml", movies=movies, ratings=RATINGS_CSV), tmp_path / "out")
    assert len(titles) == 87_585
    assert dict(tables["movies"].select("movie_id", "title").iter_rows()) == titles
    assert facts["tables"]["movies"] == {"rows_in": 87_585, "rows_kept": 87_585, "rows_rejected": 0}
