"""Files of a feed: pattern matching, checksums, and an S3 server on localhost."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import sys
from pathlib import Path

import moto.settings
import pytest
import s3fs

from tests.s3 import SECRET
from tripletune.data.feed.remote import SourceFile, fetch, list_files
from tripletune.errors import InputError
from tripletune.store import objects
from tripletune.store.retries import Patience

BODY = b"userId,movieId,rating,timestamp\n" + b"".join(b"%d,1,4.0,1000000000\n" % user for user in range(2000))
HASTY = Patience(tries=3, pause=0.0)


def files_in(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def names(*patterns: str | Path) -> list[str]:
    return [file.name for file in list_files([str(pattern) for pattern in patterns])]


def refusal(*patterns: str | Path) -> str:
    with pytest.raises(InputError) as error:
        list_files([str(pattern) for pattern in patterns])
    return one_line(error.value)


def one_line(error: InputError) -> str:
    assert "\n" not in str(error)
    assert SECRET not in str(error)
    return str(error)


# --- local ---------------------------------------------------------------------------------------------------------


def test_a_local_file_is_told_by_its_own_bytes_and_fetched_as_itself(tmp_path):
    path = tmp_path / "night.csv"
    path.write_bytes(BODY)
    (file,) = list_files([str(path)])
    assert file == SourceFile(str(path), "night.csv", len(BODY), hashlib.sha256(BODY).hexdigest())
    assert fetch(file, tmp_path / "scratch") == path
    assert not (tmp_path / "scratch").exists()


def test_a_folder_stands_for_its_csv_and_parquet_files_alone(tmp_path):
    files_in(tmp_path, "b.csv", "a.csv.gz", "c.parquet", "notes.txt", ".part.csv", "_SUCCESS", "sub/d.csv")
    assert names(tmp_path) == ["a.csv.gz", "b.csv", "c.parquet"]
    assert names(f"{tmp_path}/") == names(f"file://{tmp_path}") == ["a.csv.gz", "b.csv", "c.parquet"]


def test_a_suffix_may_be_in_capitals(tmp_path):
    files_in(tmp_path, "8.csv", "9.CSV", "a.Csv.GZ", "b.PARQUET", ".C.CSV")
    assert names(tmp_path) == ["8.csv", "9.CSV", "a.Csv.GZ", "b.PARQUET"]


@pytest.mark.parametrize("pattern", ["night*", "*", "*.parquet", "**/*[t1]", ""])
def test_a_folder_that_is_a_table_in_parts_is_named_and_not_left_out(tmp_path, pattern):
    files_in(tmp_path, "night0.parquet", "night1.parquet/part-0")
    message = refusal(f"{tmp_path}/{pattern}")
    assert f"{tmp_path}/night1.parquet, which is a folder; give {tmp_path}/night1.parquet/*.parquet" in message


def test_a_folder_that_is_a_table_in_parts_is_read_when_its_files_are_matched(tmp_path):
    files_in(tmp_path, "night0.parquet", "night1.parquet/part-0.parquet", "night2.parquet/hour=1/part-0.parquet")
    (tmp_path / ".night3.parquet").mkdir()
    (tmp_path / "other").mkdir()
    assert names(tmp_path / "night1.parquet") == names(tmp_path / "night1.parquet/*.parquet") == ["part-0.parquet"]
    assert names(tmp_path / "**/*.parquet") == [
        "night0.parquet",
        "night1.parquet/part-0.parquet",
        "night2.parquet/hour=1/part-0.parquet",
    ]


def test_an_unknown_users_folder_is_one_line():
    assert "~nosuchuser/x.csv: no such user" in refusal("~nosuchuser/x.csv")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.csv", ["a1.csv", "a2.csv"]),
        ("a?.csv", ["a1.csv", "a2.csv"]),
        ("a[1].csv", ["a1.csv"]),
        ("*/r.csv", ["m1/r.csv", "m2/r.csv"]),
        ("m*/r.csv", ["m1/r.csv", "m2/r.csv"]),
        ("m1/*.csv", ["r.csv"]),
        ("**/*.csv", ["a1.csv", "a2.csv", "m1/r.csv", "m2/r.csv"]),
        ("odd[x].csv", ["odd[x].csv"]),
    ],
)
def test_a_name_is_the_path_below_the_patterns_fixed_folder(tmp_path, pattern, expected):
    files_in(tmp_path, "a1.csv", "a2.csv", "m1/r.csv", "m2/r.csv")
    if pattern == "odd[x].csv":
        files_in(tmp_path, pattern)
    assert names(f"{tmp_path}/{pattern}") == expected


def test_a_file_that_several_patterns_match_counts_once_in_any_order(tmp_path):
    files_in(tmp_path, "2026/a.csv", "2026/b.csv")
    (tmp_path / "link.csv").symlink_to(tmp_path / "2026" / "a.csv")
    patterns = [f"{tmp_path}/*/*.csv", f"{tmp_path}/2026/a.csv", f"{tmp_path}/2026/../2026/*.csv"]
    listings = [list_files(order) for order in itertools.permutations(patterns)]
    assert {tuple(file.name for file in listing) for listing in listings} == {("a.csv", "b.csv")}
    assert len(list_files([*patterns, str(tmp_path / "link.csv")])) == 2


def test_equal_names_get_parent_folders_and_others_keep_theirs(tmp_path):
    files_in(tmp_path, "x/jan/r.csv", "y/jan/r.csv", "y/other.csv")
    assert names(tmp_path / "x/jan/r.csv", tmp_path / "y/jan/r.csv", tmp_path / "y/other.csv") == [
        "other.csv",
        "x/jan/r.csv",
        "y/jan/r.csv",
    ]


def test_names_and_checksums_do_not_depend_on_where_the_folder_lies(tmp_path):
    listings = [list_files([str(files_in(tmp_path / place, "n/a.csv", "n/b.csv") / "*/*.csv")]) for place in "pq"]
    first, second = ([(file.name, file.checksum) for file in listing] for listing in listings)
    assert first == second


def test_a_pattern_that_the_store_cannot_use_is_named(bucket):
    assert "'**' can only be an entire path component" in refusal(bucket.url("in/**.csv"))


def test_a_pattern_without_a_match_is_named_among_those_with_one(tmp_path):
    files_in(tmp_path, "a.csv", "empty/readme.txt")
    assert f"{tmp_path}/b*.csv matches no file" in refusal(tmp_path / "a.csv", tmp_path / "b*.csv")
    assert f"{tmp_path}/gone.csv matches no file" in refusal(tmp_path / "gone.csv")
    assert f"{tmp_path}/empty matches no file" in refusal(tmp_path / "empty")


def test_a_local_file_that_changed_or_went_since_it_was_listed_is_refused(tmp_path):
    path = files_in(tmp_path, "a.csv") / "a.csv"
    (file,) = list_files([str(path)])
    path.write_bytes(b"more than before")
    with pytest.raises(InputError, match="has changed since this run began"):
        fetch(file, tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="is gone"):
        fetch(file, tmp_path)


def test_a_protocol_that_is_not_read_and_a_package_that_is_missing_say_what_to_do(monkeypatch):
    assert "s3://, gs:// and abfs://" in refusal("ftp://example.org/a.csv")
    assert "s3://, gs:// and abfs://" in refusal("https://example.org/a.csv")
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    assert refusal("s3://bucket/a.csv").endswith("is not installed; install tripletune[s3]")


@pytest.mark.parametrize(
    "url",
    [
        f"s3://AKIA:{SECRET}@bucket/a.csv",
        f"s3://{SECRET}@bucket/*.csv",
        f"s3://AKIA:abc/{SECRET}@bucket/r-*.csv",
        f"s3://bucket/r.csv?X-Amz-Signature={SECRET}",
        f"s3://bucket/r.csv?X-Amz-Credential=AKIA/2026/{SECRET}",
        f"https://example.org?signature={SECRET}",
        f"ftp://AKIA:abc/{SECRET}@example.org/a.csv",
        f"AKIA:{SECRET}@s3://bucket/a.csv",
    ],
)
def test_a_url_that_may_hold_a_secret_is_refused_by_its_place_and_not_repeated(tmp_path, url):
    files_in(tmp_path, "a.csv")
    message = refusal(tmp_path / "a.csv", url)
    assert "source.feed.ratings: entry 2 is a URL with an @, or a ? and later a =" in message
    assert "AKIA" not in message


@pytest.mark.parametrize("url", ["s3://", "s3://*/a.csv", "s3:///a.csv"])
def test_a_bucket_has_to_be_written_out(url):
    assert "the bucket has to be written out" in refusal(url)


# --- S3 ------------------------------------------------------------------------------------------------------------


def test_a_glob_lists_objects_by_name_without_reading_them(bucket, monkeypatch):
    bucket.put(**{"in/2.csv": BODY, "in/1.csv": b"x", "in/sub/3.csv": b"x", "in/.tmp.csv": b"x", "other/4.csv": b"x"})
    monkeypatch.setattr(s3fs.S3FileSystem, "open", None)
    listed = list_files([bucket.url("in/*.csv")])
    assert [(file.name, file.url, file.size) for file in listed] == [
        ("1.csv", bucket.url("in/1.csv"), 1),
        ("2.csv", bucket.url("in/2.csv"), len(BODY)),
    ]
    assert names(bucket.url("in/**/*.csv")) == ["1.csv", "2.csv", "sub/3.csv"]
    assert names(bucket.url("*/*.csv")) == ["in/1.csv", "in/2.csv", "other/4.csv"]
    assert names(bucket.url("in/1.csv"), bucket.url("in/*.csv")) == ["1.csv", "2.csv"]


def test_a_folder_of_a_bucket_stands_for_its_csv_and_parquet_files(bucket):
    bucket.put(**{"in/2.csv": BODY, "in/1.parquet": b"x", "in/sub/3.csv": b"x", "in/readme.md": b"x", "0.csv.gz": b"x"})
    assert names(bucket.url("in")) == names(bucket.url("in/")) == ["1.parquet", "2.csv"]
    assert names(bucket.url("")) == ["0.csv.gz"]


@pytest.mark.parametrize("pattern", ["in/night*", "in/*.parquet", "in", "*/*"])
def test_a_folder_of_a_bucket_that_is_a_table_in_parts_is_named_and_not_left_out(bucket, pattern):
    bucket.put(**{"in/night0.parquet": b"x", "in/night1.parquet/part-0": b"x"})
    folder = bucket.url("in/night1.parquet")
    assert f"{folder}, which is a folder; give {folder}/*.parquet" in refusal(bucket.url(pattern))


def test_a_folder_of_a_bucket_that_is_a_table_in_parts_is_read_when_its_files_are_matched(bucket):
    bucket.put(**{"in/night1.parquet/": b"", "in/night1.parquet/part-0.parquet": b"x", "in/.hidden.parquet/x": b"x"})
    parts = ["night1.parquet/part-0.parquet"]
    assert names(bucket.url("in/**/*.parquet")) == names(bucket.url("in/*/*.parquet")) == parts
    assert names(bucket.url("in/night1.parquet")) == ["part-0.parquet"]


def test_a_fetched_copy_may_be_deleted_and_fetched_again_and_a_local_file_is_no_copy(bucket, tmp_path):
    bucket.put(**{"x/A.CSV": b"12", "y/A.CSV": b"12"})
    local = files_in(tmp_path / "data", "A.CSV") / "A.CSV"
    files = list_files([str(local), bucket.url("x"), bucket.url("y")])
    fetched = {file.url: fetch(file, tmp_path / "scratch", patience=HASTY) for file in files}
    assert {file.url for file in files if not file.is_remote} == {str(local)}
    assert fetched[str(local)] == local
    copies = {fetched[file.url] for file in files if file.is_remote}
    assert set((tmp_path / "scratch").iterdir()) == copies
    assert len(copies) == 2
    assert all(copy.suffix == ".CSV" for copy in copies)
    fetched[bucket.url("x/A.CSV")].unlink()
    assert fetched[bucket.url("y/A.CSV")].read_bytes() == b"12"
    again = next(file for file in files if file.url == bucket.url("x/A.CSV"))
    assert fetch(again, tmp_path / "scratch", patience=HASTY).read_bytes() == b"12"


def test_a_key_with_characters_of_credentials_is_fetched_when_a_pattern_matches_it(bucket, tmp_path):
    bucket.put(**{"in/a@b?c=d.csv": BODY})
    (file,) = list_files([bucket.url("in/*.csv")])
    assert fetch(file, tmp_path, patience=HASTY).read_bytes() == BODY


def test_a_fetched_object_has_its_bytes_and_its_suffix_and_nothing_else_stays(bucket, tmp_path):
    packed = gzip.compress(BODY)
    bucket.put(**{"in/a.csv.gz": packed})
    (file,) = list_files([bucket.url("in/*")])
    path = fetch(file, tmp_path / "scratch", patience=HASTY)
    assert path.read_bytes() == packed
    assert path.name.endswith("-a.csv.gz")
    assert list((tmp_path / "scratch").iterdir()) == [path]


def test_an_unchanged_object_keeps_its_checksum_and_a_changed_one_of_equal_size_does_not(bucket):
    bucket.put(**{"a.csv": b"1234", "b.csv": b"5678"})
    before = {file.name: file.checksum for file in list_files([bucket.url("*.csv")])}
    bucket.put(**{"a.csv": b"1234", "b.csv": b"5679"})  # a uploaded again, b changed
    after = {file.name: file.checksum for file in list_files([bucket.url("*.csv")])}
    assert after["a.csv"] == before["a.csv"] == list_files([bucket.url("a.csv")])[0].checksum
    assert after["b.csv"] != before["b.csv"]


def test_an_object_that_changed_or_went_since_it_was_listed_is_refused_unread(bucket, tmp_path, monkeypatch):
    bucket.put(**{"a.csv": b"1234"})
    (file,) = list_files([bucket.url("a.csv")])
    bucket.put(**{"a.csv": b"5678"})
    monkeypatch.setattr(s3fs.S3FileSystem, "open", None)
    with pytest.raises(InputError, match=r"a\.csv is gone or has changed since this run began") as error:
        fetch(file, tmp_path, patience=HASTY)
    one_line(error.value)
    bucket.client.delete_object(Bucket=bucket.name, Key="a.csv")
    with pytest.raises(InputError, match=r"a\.csv is not there"):
        fetch(file, tmp_path, patience=HASTY)
    assert not list(tmp_path.glob("*.csv"))


def test_an_object_that_changes_while_it_is_read_is_refused_and_not_kept(bucket, tmp_path, monkeypatch):
    bucket.put(**{"a.csv": b"1234"})
    (file,) = list_files([bucket.url("a.csv")])
    read = s3fs.core.S3File._fetch_range

    def read_then_change(self, start, end):
        chunk = read(self, start, end)
        bucket.put(**{"a.csv": b"5678"})
        return chunk

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", read_then_change)
    with pytest.raises(InputError, match="has changed since this run began"):
        fetch(file, tmp_path, patience=HASTY)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def flaky(monkeypatch, fails) -> list[int]:
    """Make the reads fail for whose number (from 1) ``fails`` is true; returns where each read began."""
    begun: list[int] = []
    read = s3fs.core.S3File._fetch_range

    def fetch_range(self, start, end):
        begun.append(start)
        if fails(len(begun)):
            raise OSError(f"connection reset by //key:abc/{SECRET}@host")
        return read(self, start, end)

    monkeypatch.setattr(s3fs.core.S3File, "_fetch_range", fetch_range)
    monkeypatch.setattr(objects, "_CHUNK", 8000)
    return begun


def test_a_fetch_that_breaks_off_again_and_again_goes_on_where_it_was(bucket, tmp_path, monkeypatch):
    bucket.put(**{"a.csv": BODY})
    (file,) = list_files([bucket.url("a.csv")])
    begun = flaky(monkeypatch, lambda number: number % 2 == 0)
    assert fetch(file, tmp_path, patience=HASTY).read_bytes() == BODY
    assert sorted(set(begun)) == list(range(0, len(BODY), 8000))
    assert begun == sorted(begun)  # never back to the beginning


def test_a_store_that_keeps_failing_is_one_line_and_what_came_is_gone_on_with(bucket, tmp_path, monkeypatch):
    bucket.put(**{"a.csv": BODY})
    (file,) = list_files([bucket.url("a.csv")])
    with monkeypatch.context() as broken:
        begun = flaky(broken, lambda number: number > 2)
        with pytest.raises(InputError, match=r"cannot be read .*connection reset by //host.*run it again") as error:
            fetch(file, tmp_path, patience=HASTY)
        one_line(error.value)
        assert begun == [0, 8000, 16_000, *[16_000] * HASTY.tries]
    begun = flaky(monkeypatch, lambda number: False)
    path = fetch(file, tmp_path, patience=HASTY)
    assert path.read_bytes() == BODY
    assert begun[0] == 16_000
    begun.clear()
    assert fetch(file, tmp_path, patience=HASTY) == path  # finished before: nothing is read
    assert begun == []


def test_a_missing_bucket_object_or_match_is_named(bucket):
    bucket.put(**{"in/a.csv": b"x"})
    for url in ("s3://no-such-bucket/in/*.csv", "s3://no-such-bucket/in/a.csv", "s3://no-such-bucket/in"):
        assert f"{url} matches no file (The specified bucket does not exist)" in refusal(url)
    for key in ("in/b*.csv", "in/b.csv", "nowhere/*.csv", "nowhere"):
        assert f"{bucket.url(key)} matches no file" in refusal(bucket.url(key))


@pytest.mark.parametrize("key", ["a.csv", "*.csv", ""], ids=["file", "glob", "folder"])
def test_refused_rights_are_one_line(bucket, monkeypatch, key):
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    message = refusal(bucket.url(key))
    assert f"{bucket.url(key)} is refused by the store" in message
    assert "check the credentials" in message


@pytest.mark.parametrize("key", ["a.csv", "*.csv", ""], ids=["file", "glob", "folder"])
def test_missing_credentials_are_one_line(bucket, monkeypatch, key):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "needs credentials (Unable to locate credentials); set AWS_ACCESS_KEY_ID" in refusal(bucket.url(key))


def test_a_profile_that_does_not_exist_is_named(bucket, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "The config profile (nobody) could not be found" in refusal(bucket.url("a.csv"))


def test_an_endpoint_that_nobody_answers_is_one_line(bucket, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    message = refusal(bucket.url("a.csv"))
    assert f"{bucket.url('a.csv')} cannot be read (" in message
    assert message.endswith("check the network and AWS_ENDPOINT_URL")


def test_a_scratch_folder_that_cannot_be_written_is_one_line(bucket, tmp_path):
    bucket.put(**{"a.csv": BODY})
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write .*a\.csv .*; make room") as error:
        fetch(list_files([bucket.url("a.csv")])[0], tmp_path / "file" / "scratch", patience=HASTY)
    one_line(error.value)
