"""Download a MovieLens release from GroupLens: resumed after failures, published only with the right MD5.

The zip stays a zip; ingest reads it (``archive.py`` rejects unsafe archives).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
from filelock import FileLock, Timeout

from tripletune.data.download.partial import PartialFile
from tripletune.errors import InputError
from tripletune.store.retries import Interrupted, Patience, keep_trying

log = logging.getLogger(__name__)

BASE_URL = "https://files.grouplens.org/datasets/movielens"
RELEASES = ("ml-32m", "ml-25m", "ml-20m", "ml-latest", "ml-latest-small", "ml-1m", "ml-100k")

Report = Callable[[int, int], object]
"""Called with the bytes downloaded and the bytes of the whole file (0: unknown)."""

_MD5_LINE = re.compile(
    r"MD5 \((?P<of>[^)]+)\) = (?P<bsd>[0-9a-f]{32})|(?P<gnu>[0-9a-f]{32})(?:[ \t]+\*?(?P<name>\S+))?", re.IGNORECASE
)
_MD5_FILE_LIMIT = 4096  # bytes; a web page served in its place is not read to its end
_MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """A verified release on disk."""

    path: Path
    md5: str
    fetched: bool
    """False: the file existed before."""


def download(
    name: str,
    folder: Path,
    *,
    base_url: str = BASE_URL,
    md5: str = "",
    patience: Patience | None = None,
    report: Report = lambda done, total: None,
) -> Downloaded:
    """Download ``<base_url>/<name>.zip`` into ``folder``, resuming an earlier attempt.

    Args:
        name: one of ``RELEASES``.
        folder: created when missing. A concurrent download of the same release waits for the first, then uses its file.
        base_url: http or https, without user, password or query.
        md5: the zip's MD5 in hex; empty: read from ``<base_url>/<name>.zip.md5``, which GroupLens has for each
            release.
        patience: when to give up.
        report: progress callback.

    Raises:
        InputError: no such release or URL, no MD5 published, the server cannot be reached or refuses, the bytes
            have another MD5 (they are removed), or the folder cannot be written. Bytes already downloaded are kept in
            all cases but the wrong MD5.
    """
    patience = patience or Patience()
    if name not in RELEASES:
        raise InputError(f"no release {name!r}; there are {', '.join(RELEASES)}")
    if md5 and not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
        raise InputError(f"--md5 {md5!r} is no MD5; it has 32 hexadecimal digits")
    url = f"{_checked_base(base_url)}/{name}.zip"
    target = folder / f"{name}.zip"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(target), httpx.Client(timeout=patience.timeout, follow_redirects=True) as client:
            expected = md5.lower() or _published_md5(client, url, patience)
            origin = "given with --md5" if md5 else f"published in {url}.md5"
            fetched = not target.exists()
            if fetched:
                part = PartialFile(target, version=expected)
                keep_trying(lambda: _fetch(client, url, part, report), reached=lambda: part.size, patience=patience)
                _verify_and_publish(part, url, expected, origin)
            elif (found := _md5_of(target)) != expected:
                raise InputError(
                    f"{target} is there with MD5 {found}, not {expected} as {origin}; move it away and run it again"
                )
            return Downloaded(path=target, md5=expected, fetched=fetched)
    except Interrupted as error:
        raise InputError(
            f"{error}; check the network and run it again (what came is kept), or fetch {url} yourself into {folder}"
        ) from None
    except OSError as error:
        raise InputError(
            f"cannot write {error.filename or target} ({error.strerror or error}); make room or name another folder "
            "with --to and run it again (what came is kept)"
        ) from None


def _verify_and_publish(part: PartialFile, url: str, expected: str, origin: str) -> None:
    if (found := _md5_of(part.path)) != expected:
        part.drop()
        raise InputError(
            f"what came from {url} has MD5 {found} and not {expected} as {origin}; "
            "it was removed: run it again, or try another --base-url"
        )
    part.publish()


def _checked_base(base_url: str) -> str:
    # searched in the whole URL, no part of which is repeated: a password with a slash may end up in host or path
    if re.search(r"[@?#]", base_url):
        raise InputError(
            "--base-url holds an @, ? or #, as a user name, a password or a query brings; give the URL without "
            "them, or fetch the release yourself and give it with --movielens"
        )
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:
        raise InputError(
            "--base-url is no URL; write it as in https://host/folder or http://host:8080/folder"
        ) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"--base-url {base_url!r}: expected https://... or http://... with a host")
    return str(url).rstrip("/")


def _alone(target: Path) -> AbstractContextManager[object]:
    lock = FileLock(target.with_name(f"{target.name}.lock"))
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that fetches %s", target)
        return lock.acquire()


def _published_md5(client: httpx.Client, url: str, patience: Patience) -> str:
    text = keep_trying(lambda: _read_text(client, f"{url}.md5"), reached=lambda: 0, patience=patience)
    file = PurePosixPath(url).name
    for line in text.splitlines():
        found = _MD5_LINE.fullmatch(line.strip())
        if found and PurePosixPath(found["of"] or found["name"] or file).name == file:
            return (found["bsd"] or found["gnu"]).lower()
    raise InputError(f"{url}.md5 holds no MD5 of {file} (it begins with {text[:30]!r}); give it with --md5 HEX")


def _read_text(client: httpx.Client, url: str) -> str:
    with _failures_in_one_line(url), client.stream("GET", url) as response:
        if response.status_code in (404, 410):
            raise InputError(
                f"no MD5 is published at {url}; get it from whoever made the zip and give it with --md5 HEX"
            )
        _check_status(response, url)
        text = b""
        for chunk in response.iter_bytes():
            text += chunk
            if len(text) > _MD5_FILE_LIMIT:
                break
    return text.decode("utf-8", "replace")


def _fetch(client: httpx.Client, url: str, part: PartialFile, report: Report) -> None:
    """One attempt: request the missing bytes and append them."""
    if part.is_whole:
        return
    with _failures_in_one_line(url, part), client.stream("GET", url, headers=part.request_headers()) as response:
        if response.status_code != 416:
            _check_status(response, url)
        part.begin(response)
        if response.status_code != 416:
            done = part.size
            with part.open() as file:
                for chunk in response.iter_raw():
                    file.write(chunk)
                    done += len(chunk)
                    report(done, part.total)
    if part.size < part.total:
        raise Interrupted(f"{url} ended after {part.size:,} of {part.total:,} bytes")


@contextmanager
def _failures_in_one_line(url: str, part: PartialFile | None = None) -> Iterator[None]:
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        host = httpx.URL(url).netloc.decode()
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise InputError(
                f"the certificate of {host} is not trusted ({_reason(error)}); set SSL_CERT_FILE"
            ) from None
        raise Interrupted(f"cannot reach {host} ({_reason(error)})") from None
    except httpx.HTTPError as error:
        where = f" after {part.size:,} of {part.total or '?':,} bytes" if part else ""
        raise Interrupted(f"{url} broke off{where} ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _check_status(response: httpx.Response, url: str) -> None:
    code = response.status_code
    if code in (200, 206):
        return
    answer = f"{httpx.URL(url).netloc.decode()} answers {code} {response.reason_phrase} for {url}"
    if code in _MAY_PASS:
        raise Interrupted(answer)
    raise InputError(f"{answer}; check --base-url, or fetch the release yourself and give it with --movielens")


def _md5_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
