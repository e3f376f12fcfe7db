"""Unpacking a zip that lies: never more bytes than the limit, in files or in memory."""

from __future__ import annotations

import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from tripletune.data import archive
from tripletune.data.archive import unpack
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
