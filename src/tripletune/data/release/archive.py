"""Unpack a MovieLens release from an untrusted zip."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from tripletune.errors import InputError

MAX_UNPACKED = 8 << 30
"""Upper limit of a release's unpacked size in bytes, all files together; ml-32m has 1 GiB."""
MAX_RATIO = 200
"""Upper limit of unpacked over packed size; MovieLens text packs about 4 : 1, a zip bomb beyond 1000 : 1."""
_SMALL = 1 << 24  # bytes below which the ratio is not checked
_CHUNK = 1 << 22
# what zipfile raises on a damaged zip; an OSError where the directory points outside of the file
_DAMAGE = (
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    OSError,
    ValueError,
    struct.error,
)


def unpack(archive: Path, wanted: frozenset[str], target: Path) -> Path:
    """Extract the wanted files, from the top of the zip or one folder down.

    Args:
        archive: the zip.
        wanted: file names.
        target: folder to extract into, with the folder structure of the zip.

    Returns:
        ``target``.

    Raises:
        InputError: the file is no zip, is truncated, encrypted or damaged, is too large when unpacked, has a wanted
            file twice, or has a member that is a link or would be written outside of the target; or the target cannot
            be written.
    """
    with _damage_in_one_line(archive):
        file = zipfile.ZipFile(archive)
    with file:
        members = file.infolist()
        _check(archive, members)
        chosen = _chosen(archive, members, wanted)
        try:
            target.mkdir(parents=True, exist_ok=True)
            for path, member in chosen.items():
                _extract(file, member, target / path)
        except OSError as error:  # of writing; reading errors are reported in _chunks
            raise InputError(
                f"cannot write {error.filename or target} ({error.strerror or error}); make room and run it again"
            ) from None
    return target


@contextmanager
def _damage_in_one_line(archive: str | Path | None) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"{archive} cannot be unpacked ({reason}); fetch it again or unpack it yourself") from None


def _chosen(
    archive: Path, members: list[zipfile.ZipInfo], wanted: frozenset[str]
) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Members to extract, by their path below the target."""
    chosen: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for member in members:
        path = PurePosixPath(member.filename)
        if path.name in wanted and len(path.parts) <= 2 and not member.is_dir():
            if path in chosen:
                raise InputError(f"{archive} has {str(path)!r} twice; take one out, or unpack it yourself")
            chosen[path] = member
    return chosen


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        # zipfile cuts a name at a NUL; the checks below apply to the name as stored
        path = PurePosixPath(member.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
            raise InputError(f"{archive}: member {member.filename!r} points outside of the archive; use another zip")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # zipfile unpacks other methods one whole read at a time: 4 MiB of bzip2 may be gigabytes in memory
            raise InputError(
                f"{archive}: member {member.filename!r} is packed by method {member.compress_type}, not stored or "
                "deflated; unpack it yourself"
            )
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InputError(f"{archive}: member {member.filename!r} is a link; use a zip of plain files")
    unpacked = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if unpacked > MAX_UNPACKED:
        raise InputError(
            f"{archive} unpacks to {unpacked / 2**30:.1f} GiB, more than {MAX_UNPACKED >> 30}; unpack it yourself"
        )
    if unpacked > _SMALL and unpacked > MAX_RATIO * packed:
        raise InputError(f"{archive} unpacks to more than {MAX_RATIO} times its size; unpack it yourself")


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.writelines(_chunks(archive, member))


def _chunks(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    # zipfile reads no more than the size in the zip's directory (summed in _check) and checks the CRC at the end; so a
    # directory that understates a size ends in an error, not in a larger file
    with _damage_in_one_line(archive.filename), archive.open(member) as source:
        while chunk := source.read(_CHUNK):
            yield chunk
