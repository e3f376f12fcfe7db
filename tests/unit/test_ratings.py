"""Damaged ratings files: no line is lost or kept twice, and the fast path equals the exact one."""

from __future__ import annotations

import gzip
import re
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tripletune.config import FeedColumns, IngestConfig
from tripletune.data.release import ratings_text
from tripletune.data.release.rating_rows import RatingsFormat
from tripletune.data.release.ratings import Parsed, parse_ratings
from tripletune.data.release.tables import TextTable
from tripletune.errors import InputError

SETTINGS = IngestConfig(earliest=date(1970, 1, 1))
TOLD = FeedColumns().model_dump()
NAMES = tuple(TOLD.values())
CSV = RatingsFormat(TextTable(file="r.csv", columns=NAMES, quoted=True), TOLD, SETTINGS, "r.csv")
DAT = RatingsFormat(TextTable(file="r.dat", columns=NAMES, separator="::", header=False), TOLD, SETTINGS, "r.dat")
HEADER = b"userId,movieId,rating,timestamp\r\n"
WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

good_line = st.builds(
    lambda user, movie, half_stars, time: f"{user},{movie},{half_stars / 2},{time}".encode(),
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**31 - 1),
    st.integers(1, 10),
    st.integers(0, 2_000_000_000),
)
junk = st.text('0123456789,.-+ \t"eENaif:\x00é٣', max_size=12).map(str.encode) | st.binary(max_size=6)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """Good lines, some of them cut, overwritten or stuffed with junk, blank lines, either line end."""
    lines = []
    for line in draw(st.lists(good_line, max_size=30)):
        if draw(st.integers(0, 3)) == 0:
            start, end = sorted((draw(st.integers(0, len(line))), draw(st.integers(0, len(line)))))
            line = line[:start] + draw(junk) + line[end:]
        lines.append(line + draw(st.sampled_from([b"\r\n", b"\n"])))
    return b"".join(lines)[: draw(st.integers(1, 2000))]


note = st.sampled_from(
    ["", "a", ",", "a,b", '"a, b"', '"a\n666,666,5.0,1000000000,b\nc"', '"a ""b"""', '"a"b', 'a"', '"', '"a" ', "é"]
)


@st.composite
def files_with_notes(draw: st.DrawFn) -> bytes:
    """As ``damaged_files`` with a column of text at the end, in quotes, over several lines, or with stray quotes."""
    lines = [b"userId,movieId,rating,timestamp,note"]
    for line in draw(st.lists(good_line, max_size=20)):
        text = draw(note).encode()
        if draw(st.integers(0, 6)) == 0:
            text = draw(junk)
        comma = b"" if draw(st.integers(0, 9)) == 0 else b","
        lines.append(line.replace(b",4.5,", b",9.5,") + comma + text)
    return b"\n".join(lines) + b"\n"


def expected(line: bytes) -> tuple[int, int, float, int] | None:
    """Parse a line without quotes with the standard library only; None when it must be rejected."""
    try:
        fields = [field.strip() for field in line.decode().split(",")]
    except UnicodeDecodeError:
        return None
    if len(fields) != 4 or not DECIMAL.fullmatch(fields[2]):
        return None
    if not all(WHOLE_NUMBER.fullmatch(fields[place]) for place in (0, 1, 3)):
        return None
    user, movie, rating, time = int(fields[0]), int(fields[1]), float(fields[2]), int(fields[3])
    good = 0 <= user < 2**31 and 0 <= movie < 2**31 and 0.5 <= rating <= 5.0 and 0 <= time < 4_102_444_800
    return (user, movie, rating, time) if good else None


def parse(folder: Path, body: bytes, form: RatingsFormat = CSV) -> Parsed:
    path = folder / form.table.file
    path.write_bytes((HEADER if form.table.header else b"") + body)
    return parse_ratings(path, form)


@pytest.fixture
def small_blocks(monkeypatch):
    """Set blocks of a few lines, so that short files are cut and halved as large ones are."""
    monkeypatch.setattr(ratings_text, "_BLOCK", 300)
    monkeypatch.setattr(ratings_text, "_SMALL", 60)


anything_goes = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@anything_goes
@given(body=damaged_files())
def test_every_line_is_kept_or_refused_as_the_standard_library_says(body, tmp_path, small_blocks):
    parsed = parse(tmp_path, body.replace(b'"', b"'"))
    lines = body.replace(b'"', b"'").split(b"\n")
    told = {number: line.removesuffix(b"\r") for number, line in enumerate(lines, start=2)}
    told = {number: line for number, line in told.items() if line}
    kept = {row[-1]: row[:-1] for row in parsed.rows.rows()}
    assert sorted([*kept, *parsed.rejects["line"]]) == sorted(told)
    for number, line in told.items():
        want = expected(line)
        assert kept.get(number) == (want and pytest.approx(want, rel=1e-6)), line


@anything_goes
@given(body=damaged_files(), form=st.sampled_from([CSV, DAT]))
def test_reading_fast_gives_the_rows_of_reading_line_by_line(body, form, tmp_path, small_blocks):
    body = body.replace(b",", form.table.separator.encode())
    fast = parse(tmp_path, body or b"\n", form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratings_text._Block, "_read_clean", lambda *_: None)
        exact = parse(tmp_path, body or b"\n", form)
    assert fast.rows.equals(exact.rows)
    assert fast.rejects.sort("line").equals(exact.rejects.sort("line"))


@anything_goes
@given(text=files_with_notes())
def test_notes_in_quotes_are_read_alike_wherever_the_blocks_are_cut(text, tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ratings_text._Block, "_read_clean", lambda *_: None)
        whole = parse_ratings(path, CSV)
    for block in (40, 61, 150, 1 << 24):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ratings_text, "_BLOCK", block)
            patch.setattr(ratings_text, "_SMALL", 60)
            cut = parse_ratings(path, CSV)
        assert cut.rows.rows() == whole.rows.rows()
        assert cut.rejects.rows() == whole.rejects.rows()


def test_a_note_over_several_lines_makes_no_rating_of_its_own(tmp_path, small_blocks):
    row = '7,%d,4.0,1000000000,"a\n666,666,5.0,1000000000,b\nc"\n'
    path = tmp_path / "r.csv"
    path.write_text("userId,movieId,rating,timestamp,note\n" + "".join(row % film for film in range(200)))
    parsed = parse_ratings(path, CSV)
    assert parsed.rejects.is_empty()
    assert parsed.rows["movie_id"].to_list() == list(range(200))
    assert parsed.rows["line"].to_list() == list(range(2, 602, 3))


@pytest.mark.parametrize("form", [CSV, DAT], ids=["with a header", "without"])
def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path, form):
    line = form.table.separator.join(["1", "2", "4.0", "10"]) + "\n"
    bad = form.table.separator.join(["1", "3", "9.0", "10"]) + "\n"
    header = "userId,movieId,rating,timestamp\n" if form.table.header else ""
    path = tmp_path / form.table.file
    path.write_text(header + line + bad, encoding="utf-8-sig")
    assert parse_ratings(path, form).rows.rows() == [(1, 2, 4.0, 10, 1 + form.table.header)]


def test_a_replacement_character_that_was_typed_is_no_damage(tmp_path):
    path = tmp_path / "r.csv"
    path.write_bytes("userId,movieId,rating,timestamp,note\n1,2,4.0,10,\ufffd\n".encode() + b"1,3,4.0,10,\xff\n")
    parsed = parse_ratings(path, CSV)
    assert parsed.rows["movie_id"].to_list() == [2]
    assert parsed.rejects.select("line", "reason").rows() == [(3, "not UTF-8")]


@pytest.mark.parametrize(
    "text", [b"0" * (3 << 20), HEADER + b"1" * (20 << 20), HEADER.replace(b"\n", b"\r") * (1 << 17)]
)
def test_a_line_beyond_all_measure_ends_the_file_with_its_number(tmp_path, text):
    path = tmp_path / "r.csv"
    path.write_bytes(text)
    with pytest.raises(InputError, match=r"r.csv line [12] is longer than 1 MiB"):
        parse_ratings(path, CSV)


def test_one_bad_line_in_a_large_file_costs_itself_and_keeps_the_line_numbers(tmp_path, monkeypatch):
    read_exactly = ratings_text._Block._read_exactly
    sizes: list[int] = []

    def counting(self, data, line, more):
        sizes.append(len(data))
        return read_exactly(self, data, line, more)

    monkeypatch.setattr(ratings_text._Block, "_read_exactly", counting)
    lines = [b"%d,%d,4.0,978300760\n" % (row, row) for row in range(400_000)]
    lines[300_000] = b"300000,300000,5.5,978300760\n"
    parsed = parse(tmp_path, b"".join(lines))
    assert parsed.rows.height == 399_999
    assert (parsed.rows["user_id"] + 2 == parsed.rows["line"]).all()
    assert parsed.rejects.rows() == [("r.csv", 300_002, "rating", "5.5", "outside 0.5 to 5")]
    assert sum(sizes) <= 1 << 20  # of nine million bytes


def test_a_packed_file_is_read_like_a_plain_one_and_a_truncated_one_is_named(tmp_path):
    body = b"".join(b"%d,%d,4.0,978300760\n" % (row, row) for row in range(5000))
    plain = parse(tmp_path, body)
    packed = tmp_path / "r.csv.gz"
    packed.write_bytes(gzip.compress(HEADER + body))
    assert parse_ratings(packed, CSV).rows.equals(plain.rows)
    packed.write_bytes(packed.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"r.csv cannot be unpacked .*fetch it again"):
        parse_ratings(packed, CSV)


def test_quoted_fields_and_further_columns_do_not_matter(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text('"rating","note","userId","timestamp","movieId"\n"4.0","a, ""b""\nc",1,"10",2\n3.5,,1,11,3\n')
    parsed = parse_ratings(path, CSV)
    assert parsed.rows.rows() == [(1, 2, 4.0, 10, 2), (1, 3, 3.5, 11, 4)]
    assert parsed.rejects.is_empty()


@pytest.mark.parametrize("types", ["as ours", "wide", "text", "category", "moment", "day"])
def test_parquet_of_any_reasonable_types_gives_the_same_rows(tmp_path, types):
    time = 978_307_200
    frame = pl.DataFrame({"userId": [1, 2], "movieId": [3, 4], "rating": [4.5, 1.0], "timestamp": [time, time + 86400]})
    moments = pl.from_epoch("timestamp", time_unit="s")
    changed = {
        "as ours": frame.cast({"userId": pl.Int32, "movieId": pl.Int32, "rating": pl.Float32}),
        "wide": frame.cast({"userId": pl.UInt64, "movieId": pl.Float64, "rating": pl.Decimal(4, 2)}),
        "text": frame.cast(dict.fromkeys(frame.columns, pl.String)),
        "category": frame.with_columns(pl.col("userId").cast(pl.String).cast(pl.Categorical)),
        "moment": frame.with_columns(moments.dt.replace_time_zone("UTC")),
        "day": frame.with_columns(moments.cast(pl.Date)),
    }
    changed[types].write_parquet(tmp_path / "r.parquet")
    parsed = parse_ratings(tmp_path / "r.parquet", CSV)
    assert parsed.rows.rows() == [(1, 3, 4.5, time, 1), (2, 4, 1.0, time + 86400, 2)]
    assert parsed.rejects.is_empty()


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("rating", [[1.0]], r"'rating' holds .*list.*; expected numbers"),
        ("rating", [True], r"'rating' holds bool; expected numbers"),
        ("userId", [b"1"], r"'userId' holds .*binary.*; expected numbers"),
        ("movieId", [date(2001, 1, 1)], r"'movieId' holds date.*; expected numbers"),
        ("timestamp", [{"a": 1}], r"'timestamp' holds struct.*; expected numbers, or days or moments"),
    ],
)
def test_parquet_types_that_say_no_number_are_named(tmp_path, column, values, said):
    frame = pl.DataFrame({"userId": [1], "movieId": [3], "rating": [4.5], "timestamp": [978_307_200]})
    frame.with_columns(pl.Series(column, values)).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(InputError, match=said):
        parse_ratings(tmp_path / "r.parquet", CSV)


def test_bad_rows_of_parquet_are_refused_by_row_number(tmp_path):
    pl.DataFrame(
        {"userId": [1, None, 2], "movieId": [3.0, 4.0, 4.5], "rating": [9.0, 4.0, 4.0], "timestamp": [1, 2, 3]},
        schema_overrides={"movieId": pl.Decimal(4, 1)},
    ).write_parquet(tmp_path / "r.parquet")
    parsed = parse_ratings(tmp_path / "r.parquet", CSV)
    assert parsed.rows.is_empty()
    assert [row[1:4] for row in parsed.rejects.sort("line").rows()] == [
        (1, "rating", "9.0"), (2, "userId", None), (3, "movieId", "4.5")
    ]  # fmt: skip


def test_a_parquet_file_without_a_column_or_without_an_end_is_named(tmp_path):
    path = tmp_path / "r.parquet"
    pl.DataFrame({"userId": [1], "movieId": [3], "stars": [4.0], "timestamp": [1]}).write_parquet(path)
    with pytest.raises(InputError, match=r"r.csv has the columns userId, movieId, stars.*has no column 'rating'"):
        parse_ratings(path, CSV)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"r.csv cannot be read as Parquet"):
        parse_ratings(path, CSV)
