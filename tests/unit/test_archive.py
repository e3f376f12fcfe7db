"""Unpacking a zip with false sizes: never more bytes than the limit, on disk or in memory."""

from __future__ import annotations

import random
import resource
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest

from tripletune.data.release import archive
from tripletune.data.release.archive import unpack
from tripletune.errors import InputError

WANTED = frozenset({"ratings.csv", "movies.csv"})
SIZE = 1 << 20


def zip_of(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        for name, body in members.items():
            file.writestr(name, body)
    return path


def state_size(path: Path, size: int) -> None:
    """Write another unpacked size into the local header and the directory of a zip with one member."""
    raw = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", raw, raw.index(signature) + offset, size)
    path.write_bytes(raw)


def with_offset(raw: bytes, offset: int) -> bytes:
    """Set the start of the directory in the end record."""
    changed = bytearray(raw)
    struct.pack_into("<I", changed, raw.index(b"PK\x05\x06") + 16, offset)
    return bytes(changed)


def damaged(raw: bytes, chance: random.Random) -> bytes:
    """Some bytes changed, most of them in the directory, or a piece cut out."""
    changed = bytearray(raw)
    first = chance.choice([0, raw.index(b"PK\x01\x02")])
    if chance.random() < 0.2:
        start = chance.randrange(first, len(raw))
        del changed[start : start + chance.randrange(1, 60)]
        return bytes(changed)
    for _ in range(chance.randrange(1, 6)):
        changed[chance.randrange(first, len(raw))] = chance.choice([0, 1, 255, chance.randrange(256)])
    return bytes(changed)


def unpacked_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def refusal(path: Path, target: Path) -> str:
    with pytest.raises(InputError) as error:
        unpack(path, WANTED, target)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_members_are_unpacked_up_to_the_limit_and_refused_together_beyond_it(tmp_path, monkeypatch):
    packed = zip_of(tmp_path / "ml.zip", {"ml/ratings.csv": b"a" * 600, "ml/movies.csv": b"b" * 400, "ml/x": b"c" * 24})
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1024)
    assert unpacked_bytes(unpack(packed, WANTED, tmp_path / "fits")) == 1000
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1023)
    assert f"{packed} unpacks to" in refusal(packed, tmp_path / "out")
    assert unpacked_bytes(tmp_path / "out") == 0


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_directory_that_states_less_than_there_is_unpacks_no_more_than_it_states(tmp_path, method):
    packed = zip_of(tmp_path / "ml.zip", {"ml/ratings.csv": b"0" * SIZE}, method)
    state_size(packed, 1000)
    assert "cannot be unpacked" in refusal(packed, tmp_path / "out")
    assert unpacked_bytes(tmp_path / "out") <= 1000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_a_packing_whose_bombs_burst_in_memory_is_refused_unread(tmp_path, method):
    packed = zip_of(tmp_path / "ml.zip", {"ml/ratings.csv": b"0" * (64 * SIZE)}, method)
    state_size(packed, 1000)
    tracemalloc.start()
    message = refusal(packed, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "not stored or deflated; unpack it yourself" in message
    assert peak < SIZE


def test_a_directory_that_lies_elsewhere_is_one_line(tmp_path):
    packed = zip_of(tmp_path / "ml.zip", {"ml/ratings.csv": b"a"})
    packed.write_bytes(with_offset(packed.read_bytes(), 1 << 31))
    assert refusal(packed, tmp_path / "out").startswith(f"{packed} cannot be unpacked (")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_a_damaged_zip_is_unpacked_whole_or_refused_in_one_line(tmp_path, method):
    chance, path, refused = random.Random(int(method)), tmp_path / "damaged.zip", 0
    lines: set[int] = set()
    members = {"ml/ratings.csv": b"1,2,3.5,1000000000\n" * 20, "ml/movies.csv": b"1,A (1990),Drama\n"}
    raw = zip_of(tmp_path / "ml.zip", members, method).read_bytes()
    for _ in range(300):
        path.write_bytes(damaged(raw, chance))
        try:
            unpack(path, WANTED, tmp_path / "out")
        except InputError as error:
            refused += 1
            lines |= {str(error).count("\n")}
    assert 100 < refused < 300
    assert lines == {0}


@pytest.mark.parametrize("second", ["ml/ratings.csv", "./ml//ratings.csv"])
def test_a_wanted_file_that_is_there_twice_is_refused(tmp_path, second):
    packed = tmp_path / "ml.zip"
    with zipfile.ZipFile(packed, "w") as file, warnings.catch_warnings(action="ignore"):
        for name, body in [("ml/ratings.csv", b"a"), ("ml/readme", b"b"), ("ml/readme", b"c"), (second, b"d")]:
            file.writestr(name, body)
    assert refusal(packed, tmp_path / "out") == (
        f"{packed} has 'ml/ratings.csv' twice; take one out, or unpack it yourself"
    )
    assert unpacked_bytes(tmp_path) == packed.stat().st_size


def test_a_full_disk_is_told_as_such_and_not_as_a_damaged_zip(tmp_path):
    packed = zip_of(tmp_path / "ml.zip", {"ml/ratings.csv": b"0" * SIZE})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        message = refusal(packed, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message.startswith("cannot write ")
    assert "(File too large); make room" in message
