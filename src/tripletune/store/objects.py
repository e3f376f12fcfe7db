"""Access to object stores through fsspec: listing, file versions, bytes in both directions, and one-line errors.

Credentials and endpoint come from the sources of s3fs: the environment (``AWS_*``) or a profile. None is taken from a
URL (``holds_secret`` detects URLs that may contain any), and none appears in a message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tripletune.errors import InputError
from tripletune.store.retries import Interrupted

WILD = re.compile(r"[*?\[]")

_SECRET = re.compile(r"@|\?.*=", re.DOTALL)
PROTOCOLS = "s3://, gs:// and abfs://"
_PACKAGES = {"s3": "tripletune[s3]", "gs": "gcsfs", "abfs": "adlfs"}
_CHUNK = 8 << 20
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or a folder of a store."""

    url: str
    size: int
    etag: str
    """Empty for a folder."""
    is_folder: bool = False

    @property
    def version(self) -> str:
        """Equal only for equal bytes."""
        return f"etag:{self.etag}:{self.size}"


def holds_secret(url: str) -> bool:
    """Whether a URL given by the user may contain credentials or a signature, so that no message may repeat it.

    The whole URL is searched: a password may contain a slash, which ends the host for every parser.
    """
    return bool(_SECRET.search(url))


class Store:
    """Store of a URL.

    Args:
        url: ``s3://bucket/key``, ``gs://...`` or ``abfs://...``, with a bucket. Messages repeat it.

    Raises:
        InputError: another protocol, no bucket, or a package that is not installed.
    """

    def __init__(self, url: str) -> None:
        self.protocol, _, self.path = url.partition("://")
        self.path = self.path.rstrip("/")
        bucket = self.path.split("/")[0]
        if self.protocol not in _PACKAGES:
            raise InputError(f"{self.protocol}://{bucket}/...: object stores are {PROTOCOLS}; copy it to one of them")
        if not bucket or WILD.search(bucket):
            raise InputError(f"{url}: the bucket has to be written out, as in {self.protocol}://bucket/ratings-*.csv")
        self.url = url
        try:
            import fsspec  # type: ignore[import-untyped]  # commands that use no store need not wait for it

            with _explained(url):
                self._files = fsspec.filesystem(self.protocol, use_listings_cache=False)
        except ImportError:
            raise InputError(
                f"{url}: the package that reads {self.protocol}:// is not installed; install {_PACKAGES[self.protocol]}"
            ) from None

    def match(self) -> list[Entry]:
        """List the files and folders that match the URL's wildcards."""
        with _explained(self.url):
            return self._entries(self._files.glob(self.path, detail=True).values())

    def named(self) -> tuple[list[Entry], bool]:
        """List the file at this URL, or the entries directly below it; the second value is whether it is a folder."""
        with _explained(self.url):
            try:
                info = self._files.info(self.path)
            except FileNotFoundError:
                return [], False
            is_folder = info["type"] == "directory"
            return self._entries(self._files.ls(self.path, detail=True) if is_folder else [info]), is_folder

    def why_nothing(self, folder: str) -> str:
        """The store's error for a folder without matches: a glob reports no missing bucket or permission."""
        try:
            with _explained(self.url, but=FileNotFoundError):
                self._files.ls(folder)
        except FileNotFoundError as error:
            return _reason(error)
        return ""

    def entry_now(self) -> Entry:
        """Current entry of the file.

        Raises:
            InputError: the file is missing or access is denied.
            Interrupted: any other failure, taken as transient.
        """
        with _interruptions(self.url):
            return self._entry(self._files.info(self.path))

    def find(self) -> Entry | None:
        """Current entry of the file, None where there is none; raises like ``entry_now``."""
        with _interruptions(self.url):
            try:
                info = self._files.info(self.path)
            except FileNotFoundError:
                return None
            return None if info["type"] == "directory" else self._entry(info)

    def chunks(self, first: int) -> Iterator[bytes]:
        """Read the file from byte ``first`` on, 8 MiB at a time; raises like ``entry_now``."""
        with (
            _interruptions(self.url),
            self._files.open(self.path, "rb", block_size=_CHUNK, cache_type="none") as source,
        ):
            source.seek(first)
            while chunk := source.read(_CHUNK):
                yield chunk

    def upload(self, path: Path, report: Callable[[int], object] = lambda num_bytes: None) -> None:
        """Write a local file's bytes to this URL, which has them all or stays as it was; raises like ``entry_now``.

        Args:
            path: the file.
            report: called with the number of bytes of each part that the store has taken.
        """
        from fsspec.callbacks import Callback  # type: ignore[import-untyped]

        class Reported(Callback):  # type: ignore[misc]  # the library has no types
            def relative_update(self, inc: int = 1) -> None:
                report(inc)

        with _interruptions(self.url):
            self._files.put_file(str(path), self.path, callback=Reported())

    def _entries(self, infos: Any) -> list[Entry]:
        # the web console marks a folder by an object whose key ends in a slash
        return [self._entry(info) for info in infos if info["type"] == "directory" or not info["name"].endswith("/")]

    def _entry(self, info: dict[str, Any]) -> Entry:
        url = f"{self.protocol}://{info['name']}"
        if info["type"] == "directory":
            return Entry(url.rstrip("/"), 0, "", is_folder=True)
        etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
        if not etag:
            raise InputError(f"{url}: the store gives no ETag, so a change would not be noticed; copy it to local disk")
        return Entry(url, info["size"], etag)


def append_rest(
    url: str, version: str, size: int, part: Path, report: Callable[[int], object] = lambda num_bytes: None
) -> None:
    """One attempt to fetch a file: append the missing bytes, and check that all are of one version.

    Args:
        url: of the file.
        version: ``Entry.version`` of the bytes that are wanted.
        size: of the file.
        part: the bytes so far; emptied where they cannot belong to that version.
        report: called with the number of bytes of each part that arrived.

    Raises:
        InputError: the file is gone or has another version, or access is denied.
        Interrupted: any other failure.
    """
    store = Store(url)
    _require_unchanged(store, version, part)
    with part.open("ab") as sink:
        for chunk in store.chunks(first=part.stat().st_size):
            sink.write(chunk)
            report(len(chunk))
    _require_unchanged(store, version, part)
    found = part.stat().st_size
    if found != size:
        part.write_bytes(b"")
        raise Interrupted(f"{url} brought {found:,} bytes, and it has {size:,}")


def _require_unchanged(store: Store, version: str, part: Path) -> None:
    if store.entry_now().version != version:
        part.write_bytes(b"")  # it may hold bytes of both versions
        raise changed(store.url)


def changed(url: str) -> InputError:
    """The error for a file that is no longer what was listed."""
    return InputError(f"{url} is gone or has changed since this run began; run it again when nothing writes to it")


@contextmanager
def gives_up(advice: str) -> Iterator[None]:
    """Turn the last ``Interrupted`` of ``keep_trying`` into a one-line InputError that ends in ``advice``."""
    try:
        yield
    except Interrupted as error:
        raise InputError(f"{error}; check the network and AWS_ENDPOINT_URL, and {advice}") from None


@contextmanager
def _explained(url: str, *, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Turn any error of a store's library into a one-line InputError; each library has its own classes."""
    try:
        yield
    except (InputError, ImportError):
        raise
    except Exception as error:
        if isinstance(error, but):
            raise
        raise InputError(f"{url} {_diagnosis(error)}") from None


@contextmanager
def _interruptions(url: str) -> Iterator[None]:
    """Treat any failure of the store as transient, except a missing file, permission or credential."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, (FileNotFoundError, PermissionError)) or type(error).__name__ in _NO_CREDENTIALS:
            raise InputError(f"{url} {_diagnosis(error)}") from None
        raise Interrupted(f"{url} cannot be read ({_reason(error)})") from None


def _diagnosis(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"is not there ({_reason(error)}); check bucket and key"
    if isinstance(error, PermissionError):
        return f"is refused by the store ({_reason(error)}); check the credentials in the environment and their rights"
    if type(error).__name__ in _NO_CREDENTIALS:
        return (
            f"needs credentials ({_reason(error)}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE to "
            "a profile that exists"
        )
    if isinstance(error, ValueError):
        return f"cannot be looked up ({_reason(error)}); write the pattern in another way"
    return f"cannot be read ({_reason(error)}); check the network and AWS_ENDPOINT_URL"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"//\S*@", "//", text)[:300]  # an endpoint may contain a password, and the password a slash
