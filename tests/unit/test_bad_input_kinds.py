"""Each kind of damage at the command line: message, exit code, rows kept and rows rejected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pytest

from tripletune.cli import main as cli

FILES = {
    "ratings": b"userId,movieId,rating,timestamp\r\n"
    + b"".join(b"%d,%d,4.0,%d\r\n" % (1 + row // 10, row % 10, 1_000_000_000 + row) for row in range(40)),
    "movies": b"movieId,title,genres\r\n"
    + b"".join(b'%d,"Film, The (%d)",Drama|Comedy\r\n' % (film, 1960 + film) for film in range(40)),
    "tags": b"userId,movieId,tag,timestamp\r\n" + b"".join(b"%d,3,slow,1000000000\r\n" % user for user in range(40)),
    "links": b"movieId,imdbId,tmdbId\r\n" + b"".join(b"%d,%07d,1\r\n" % (film, film + 1) for film in range(40)),
}
ROWS = {"ratings": 40, "movies": 40, "tags": 40, "links": 40}
ID = "not a whole number from 0 to 2147483647"


@dataclass(frozen=True)
class Kept:
    """Damage that rejects only ``rejects`` (line, column, value, start of the reason) of one table."""

    table: str
    damage: Callable[[bytes], bytes]
    rejects: list[tuple[int, str | None, str, str]] = field(default_factory=list)
    added: int = 0


@dataclass(frozen=True)
class Refused:
    """Damage that stops the stage with a one-line error."""

    table: str
    damage: Callable[[bytes], bytes]
    said: str


def add(line: bytes) -> Callable[[bytes], bytes]:
    return lambda text: text + line


def swap(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda text: text.replace(old, new, 1)


KEPT = {
    "nothing wrong": Kept("ratings", lambda text: text),
    "byte order mark": Kept("ratings", lambda text: b"\xef\xbb\xbf" + text),
    "byte order mark in movies": Kept("movies", lambda text: b"\xef\xbb\xbf" + text),
    "LF and CRLF mixed": Kept("ratings", lambda text: text.replace(b"\r\n", b"\n", 7)),
    "no line end at the end": Kept("ratings", lambda text: text.removesuffix(b"\r\n")),
    "blank lines": Kept("ratings", swap(b"\r\n2,", b"\r\n\r\n\r\n2,")),
    "columns in another order": Kept(
        "links", lambda text: b"\r\n".join(b",".join(reversed(line.split(b","))) for line in text.split(b"\r\n"))
    ),
    "id is text": Kept("ratings", add(b"x,1,4.0,1000000000\r\n"), [(42, "userId", "x", ID)], 1),
    "id is negative": Kept("ratings", add(b"-1,1,4.0,1000000000\r\n"), [(42, "userId", "-1", ID)], 1),
    "id too large": Kept("ratings", add(b"1,2147483648,4.0,1000000000\r\n"), [(42, "movieId", "2147483648", ID)], 1),
    "rating is text": Kept("ratings", add(b"9,1,good,1000000000\r\n"), [(42, "rating", "good", "not a number")], 1),
    "rating out of range": Kept("ratings", add(b"9,1,7,1000000000\r\n"), [(42, "rating", "7", "outside 0.5 to 5")], 1),
    "time in milliseconds": Kept(
        "ratings",
        add(b"9,1,4.0,1000000000000\r\n"),
        [(42, "timestamp", "1000000000000", "not in the seconds from 1995")],
        1,
    ),
    "time before MovieLens": Kept("ratings", add(b"9,1,4.0,7\r\n"), [(42, "timestamp", "7", "not in the seconds")], 1),
    "newer rating of a film": Kept(
        "ratings", add(b"1,0,2.0,1100000000\r\n"), [(2, "movieId", "0", "duplicate: another rating")], 1
    ),
    "film nobody knows": Kept(
        "ratings", add(b"9,77,4.0,1000000000\r\n"), [(42, "movieId", "77", "movie is not in the movies file")], 1
    ),
    "short last line": Kept("ratings", add(b"9,1,4.0"), [(42, None, "9,1,4.0", "not 4 fields")], 1),
    "a field too many": Kept("ratings", add(b"9,1,4.0,1,1\r\n"), [(42, None, "9,1,4.0,1,1", "not 4 fields")], 1),
    "rating not UTF-8": Kept(
        "ratings", add(b"9,1,\xff,1000000000\r\n"), [(42, None, "9,1,\ufffd,1000000000", "not UTF-8")], 1
    ),
    "title not UTF-8": Kept(
        "movies", add(b"77,Am\xe9lie,Drama\r\n"), [(42, None, "77,Am\ufffdlie,Drama", "not UTF-8")], 1
    ),
    "quote never closed": Kept("movies", add(b'77,"Open,Drama\r\n'), [(42, None, '77,"Open,Drama', "not 3 fields")], 1),
    "text after a quote": Kept(
        "tags", add(b'1,3,"a"b,1000000000\r\n'), [(42, None, '1,3,"a"b,1000000000', "not 4 fields")], 1
    ),
    "no title": Kept("movies", add(b"77, ,Drama\r\n"), [(42, "title", " ", "no title")], 1),
    "movie id twice": Kept(
        "movies", add(b"3,Other,Drama\r\n"), [(42, "movieId", "3", "movie id stands in an earlier")], 1
    ),
    "tag of a film nobody knows": Kept(
        "tags", add(b"1,77,slow,1000000000\r\n"), [(42, "movieId", "77", "movie is not in")], 1
    ),
    "tag in milliseconds": Kept(
        "tags", add(b"1,3,slow,1000000000000\r\n"), [(42, "timestamp", "1000000000000", "not in the seconds")], 1
    ),
    "no IMDb id": Kept("links", swap(b"\r\n9,0000010,1", b"\r\n9,,1"), [(11, "imdbId", "", "not an IMDb id")]),
}
REFUSED = {
    "empty": Refused("ratings", lambda text: b"", "ratings.csv is empty; expected the header 'userId,movieId"),
    "only blank lines": Refused("ratings", lambda text: b"\r\n\r\n", "ratings.csv is empty; expected the header"),
    "empty movies": Refused("movies", lambda text: b"", "movies.csv is empty; expected the header 'movieId,title"),
    "empty tags": Refused("tags", lambda text: b"", "tags.csv is empty; expected the header 'userId,movieId,tag"),
    "header only": Refused("ratings", lambda text: text[:33], "ratings.csv has no ratings; expected rows below"),
    "movies header only": Refused("movies", lambda text: text[:22], "movies.csv has no usable row (0 refused)"),
    "column missing": Refused(
        "ratings", swap(b",timestamp", b""), "reads 'userId,movieId,rating' and has no column 'timestamp'; expected"
    ),
    "column twice": Refused("ratings", swap(b"movieId", b"userId"), "line 1 reads 'userId,userId,rating,timestamp'"),
    "no header": Refused(
        "ratings", lambda text: text[33:], "line 1 reads '1,0,4.0,1000000000' and has no column 'userId'"
    ),
    "swapped columns": Refused(
        "ratings", swap(b"rating,timestamp", b"timestamp,rating"), "40 of 40 ratings were refused, more than the share"
    ),
    "other separator": Refused(
        "ratings", lambda text: text.replace(b",", b";"), "ratings.csv line 1 reads 'userId;movieId"
    ),
    "UTF-16": Refused("ratings", lambda text: text.decode().encode("utf-16"), "ratings.csv line 1 reads"),
    "too many tags without a date": Refused(
        "tags",
        lambda text: text.replace(b"1000000000", b"2001-09-09"),
        "40 of 40 tags were refused, more than the share",
    ),
    "too many bad rows": Refused(
        "ratings", add(b"1,1,9.9,1000000000\r\n" * 3), "such as '9.9' in ratings.csv line 42, rating"
    ),
}


def ingest(folder: Path, table: str, damage: Callable[[bytes], bytes]) -> int:
    (folder / "ml").mkdir()
    for name, text in FILES.items():
        (folder / "ml" / f"{name}.csv").write_bytes(damage(text) if name == table else text)
    return cli.main(["ingest", "--movielens", str(folder / "ml"), "--artifacts", str(folder / "artifacts")])


@pytest.mark.parametrize("case", KEPT.values(), ids=KEPT)
def test_damage_costs_its_own_rows_and_nothing_else(case, tmp_path):
    assert ingest(tmp_path, case.table, case.damage) == 0
    (written,) = (tmp_path / "artifacts" / "smoke" / "ingest").glob("*/ratings.parquet")
    rejects = pl.read_parquet(written.with_name("rejects.parquet"))
    assert rejects.select("file", "line", "column", "value").rows() == [
        (f"{case.table}.csv", *told[:3]) for told in case.rejects
    ]
    for found, (*_, reason) in zip(rejects["reason"], case.rejects, strict=True):
        assert found.startswith(reason)
    for table, rows in ROWS.items():
        lost = len(case.rejects) - case.added if table == case.table else 0
        assert pl.read_parquet(written.with_name(f"{table}.parquet")).height == rows - lost


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_damage_to_a_whole_file_ends_in_one_line_and_exit_code_2(case, tmp_path, capsys):
    assert ingest(tmp_path, case.table, case.damage) == 2
    error = capsys.readouterr().err
    assert error.startswith("tripletune: ")
    assert len(error.splitlines()) == 1
    assert case.said in error
    assert not list((tmp_path / "artifacts").rglob("manifest.json"))
