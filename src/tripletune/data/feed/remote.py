"""List the files of a feed, local or in an object store, with a checksum each, and fetch them."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tripletune.errors import InputError
from tripletune.store.files import write_atomically
from tripletune.store.fingerprint import sha256_file
from tripletune.store.objects import WILD, Entry, Store, append_rest, changed, gives_up, holds_secret
from tripletune.store.retries import Patience, keep_trying

SUFFIXES = (".csv", ".csv.gz", ".parquet")
"""File name endings (any case) that are read when a pattern names a folder."""

_LOCAL = re.compile(r"(?:file|local)://")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a feed as listed."""

    url: str
    """A local path, or ``s3://bucket/key``."""
    name: str
    """Unique in the listing: the path below the pattern's fixed folder."""
    size: int
    """Bytes."""
    checksum: str
    """SHA-256 of a local file; ETag and size of a remote one, so that nothing is read. Equal only for equal bytes.

    Equal bytes may have two ETags: an upload in parts gets another one than an upload as a whole.
    """

    @property
    def is_remote(self) -> bool:
        """Whether ``fetch`` makes a copy, which may be deleted after use; a local file is the user's own."""
        return "://" in self.url  # a local path is normalised, without a double slash


@dataclass(frozen=True, slots=True)
class _Match:
    """A file that a pattern stands for; the last ``depth`` parts of its URL are its name."""

    url: str
    depth: int
    entry: Entry | None = None
    """The store's entry; None for a local file."""

    @property
    def name(self) -> str:
        return "/".join(self.url.split("/")[-self.depth :])


def list_files(patterns: Sequence[str]) -> list[SourceFile]:
    """List the matching files, each once, sorted by name.

    Local files are read through for their SHA-256. A name is the path below the pattern's last folder without a
    wildcard; where two files would share a name, parent folders are prepended.

    Args:
        patterns: local paths and ``s3://`` URLs, with ``*``, ``?``, ``[...]`` and ``/**/`` as in a shell. A folder
            stands for the files in it that end in one of ``SUFFIXES``. No wildcard matches a dot at a name's start.

    Raises:
        InputError: a pattern matches nothing, or matches a folder named with one of ``SUFFIXES`` (as Spark writes) but
            no file in it; the package for its protocol is missing; the pattern may contain credentials; or the store
            or a file cannot be read.
    """
    found: dict[str, _Match] = {}
    for place, pattern in enumerate(patterns, start=1):
        is_remote = "://" in pattern and not _LOCAL.match(pattern)
        if is_remote and holds_secret(pattern):
            raise InputError(
                f"source.feed.ratings: entry {place} is a URL with an @, or a ? and later a =, as a password or a "
                "signature brings; set credentials in the environment or in a profile, and write * where a name has "
                "such a character"
            )
        for match in _match_remote(pattern) if is_remote else _match_local(_LOCAL.sub("", pattern)):
            identity = match.url if match.entry else str(Path(match.url).resolve())
            if identity not in found or match.depth < found[identity].depth:
                found[identity] = match
    return sorted((_described(match) for match in _told_apart(list(found.values()))), key=lambda file: file.name)


def _match_local(pattern: str) -> list[_Match]:
    try:
        path = Path(pattern).expanduser().absolute()
    except RuntimeError:
        raise InputError(f"source.feed.ratings: {pattern}: no such user; write the home folder out") from None
    if path.is_dir():
        folder, found = path, [child for child in path.iterdir() if _counts(child.name)]
    elif path.is_file():
        folder, found = path.parent, [path]
    else:
        folder = Path(_fixed_folder(str(path)))
        # pathlib's glob takes hidden files and refuses **.csv
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
    files = [file for file in found if file.is_file()]
    _refuse_folders(pattern, [str(each) for each in found if each.is_dir()], [str(file) for file in files])
    if not files:
        raise _nothing(pattern, "")
    return [_Match(str(file), len(file.parts) - len(folder.parts)) for file in files]


def _match_remote(pattern: str) -> list[_Match]:
    store = Store(pattern)
    folder = store.path.rpartition("/")[0]
    if WILD.search(store.path):
        folder = _fixed_folder(store.path)
        entries = [entry for entry in store.match() if not _last(entry.url).startswith(".")]
    else:
        entries, is_folder = store.named()
        if is_folder:
            folder, entries = store.path, [entry for entry in entries if _counts(_last(entry.url))]
    files = [entry for entry in entries if not entry.is_folder]
    _refuse_folders(pattern, [entry.url for entry in entries if entry.is_folder], [file.url for file in files])
    if not files:
        raise _nothing(pattern, store.why_nothing(folder))
    above = f"{store.protocol}://{folder}".count("/")
    return [_Match(file.url, file.url.count("/") - above, file) for file in files]


def _refuse_folders(pattern: str, folders: list[str], files: list[str]) -> None:
    """Raise InputError for a matched folder that looks like a table in parts, unless its files match too (``**``)."""
    tables = [folder for folder in folders if _counts(_last(folder))]
    reached = {file[:place] for file in files if tables for place, letter in enumerate(file) if letter == "/"}
    for folder in sorted(tables):
        if folder not in reached:
            raise InputError(
                f"source.feed.ratings: {pattern} matches {folder}, which is a folder; give "
                f"{folder}/*{PurePosixPath(folder).suffix} for the files in it, or a pattern that does not match it"
            )


def _fixed_folder(pattern: str) -> str:
    """The pattern up to the last slash before its first wildcard."""
    return WILD.split(pattern, maxsplit=1)[0].rpartition("/")[0]


def _counts(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _last(url: str) -> str:
    return PurePosixPath(url).name


def _nothing(pattern: str, reason: str) -> InputError:
    detail = f" ({reason})" if reason else ""
    return InputError(
        f"source.feed.ratings: {pattern} matches no file{detail}; give a file, a folder with {', '.join(SUFFIXES)} "
        "files, or a pattern with *"
    )


def _told_apart(matches: list[_Match]) -> list[_Match]:
    """Prepend parent folders until no two files share a name."""
    while True:
        count = Counter(match.name for match in matches)
        if max(count.values(), default=1) == 1:
            return matches
        matches = [
            dataclasses.replace(match, depth=match.depth + 1) if count[match.name] > 1 else match for match in matches
        ]


def _described(match: _Match) -> SourceFile:
    if match.entry:
        return SourceFile(match.url, match.name, match.entry.size, match.entry.version)
    path = Path(match.url)
    try:
        return SourceFile(match.url, match.name, path.stat().st_size, sha256_file(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check that it is there and readable") from None


def fetch(file: SourceFile, scratch: Path, *, patience: Patience | None = None) -> Path:
    """Return a local path with the file's bytes.

    For a remote file, a copy of its own in ``scratch``: delete it after reading; a later call fetches it again. For a
    local file, the file itself.

    Args:
        file: from ``list_files``.
        scratch: folder for downloads, created when missing. A download's name contains a hash of URL and checksum: a
            finished one is reused, and a broken one is resumed.
        patience: retry limits for a failing store.

    Raises:
        InputError: the file is gone or has changed since it was listed, the store cannot be read, or scratch cannot be
            written.
    """
    if not file.is_remote:
        path = Path(file.url)
        if not path.is_file() or path.stat().st_size != file.size:
            raise changed(file.url)
        return path
    identity = hashlib.sha256(f"{file.url} {file.checksum}".encode()).hexdigest()[:16]
    target = scratch / f"{identity}-{_last(file.url)}"
    part = target.with_name(f"{target.name}.part")
    try:
        if not target.exists():
            scratch.mkdir(parents=True, exist_ok=True)
            part.touch()
            with gives_up("run it again"):
                keep_trying(
                    lambda: append_rest(file.url, file.checksum, file.size, part),
                    reached=lambda: part.stat().st_size,
                    patience=patience or Patience(),
                )
            write_atomically(target, part.replace)
    except OSError as error:
        raise InputError(f"cannot write {target} ({error.strerror or error}); make room and run it again") from None
    return target
