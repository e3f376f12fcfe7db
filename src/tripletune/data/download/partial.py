"""A partly downloaded file: its bytes, their version, and the HTTP range request for the rest."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import IO, Any

import httpx

from tripletune.store.files import write_atomically, write_json
from tripletune.store.retries import Interrupted

_CONTENT_RANGE = re.compile(r"bytes (?:(?P<first>\d+)-\d+|\*)/(?P<total>\d+|\*)")


class PartialFile:
    """``NAME.part`` next to the final path, and ``NAME.part.json`` with the version it belongs to.

    Args:
        target: the file's final path.
        version: must not change between two attempts (the published checksum). Bytes of another or an unknown version
            are dropped.
    """

    def __init__(self, target: Path, version: str) -> None:
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self._state_path = target.with_name(f"{target.name}.part.json")
        self._version = version
        self._state = self._read_state()
        if self._state.get("version") != version:
            self.drop()

    def _read_state(self) -> dict[str, Any]:
        try:
            state = json.loads(self._state_path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def total(self) -> int:
        """Bytes of the whole file as stated by the server; 0 while unknown."""
        return int(self._state.get("total") or 0)

    @property
    def is_whole(self) -> bool:
        """Whether all bytes are here, of a file whose size is known."""
        return 0 < self.total == self.size

    def drop(self) -> None:
        """Delete the bytes and their state."""
        self.path.unlink(missing_ok=True)
        self._state_path.unlink(missing_ok=True)
        self._state = {}

    def request_headers(self) -> dict[str, str]:
        """Headers that request the rest, or the whole file if it has changed since."""
        headers = {"Accept-Encoding": "identity"}  # a range counts bytes of the file, not of its compressed form
        if self.size:
            headers["Range"] = f"bytes={self.size}-"
            if validator := self._state.get("validator"):
                headers["If-Range"] = validator
        return headers

    def begin(self, response: httpx.Response) -> None:
        """Prepare for the body of a 200, 206 or 416.

        A 200 is the whole file, whatever was requested: the bytes on disk are dropped. A 416 has no bytes to add:
        either the file is complete, or it has more bytes than the server's.

        Raises:
            Interrupted: the response does not fit the bytes on disk, which were dropped; request again.
        """
        if response.status_code == 200:
            self.drop()
            self._state = {
                "version": self._version,
                "validator": _validator(response.headers),
                "total": int(response.headers.get("Content-Length") or 0),
            }
            write_json(self._state_path, self._state)
            return
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        total = int(found["total"]) if found and found["total"] != "*" else 0
        if response.status_code == 416 and 0 < total == self.size:
            self._state["total"] = total  # the length announced before was wrong
            return
        first = int(found["first"]) if found and found["first"] else -1
        if response.status_code == 206 and first == self.size and total in (0, self.total or total):
            self._state["total"] = total or self.total
            return
        size = self.size
        self.drop()
        # without the response's URL: after a redirect it may be signed
        raise Interrupted(f"the server has no bytes of {self.target.name} from {size} on; starting over")

    def open(self) -> IO[bytes]:
        """Open the file for appending."""
        return self.path.open("ab")

    def publish(self) -> None:
        """Flush to disk and give the file its final name."""
        write_atomically(self.target, self.path.replace)
        self._state_path.unlink(missing_ok=True)


def _validator(headers: httpx.Headers) -> str:
    """Version for an If-Range header: a strong ETag, else the date."""
    etag = str(headers.get("ETag", ""))
    return etag if etag.startswith('"') else str(headers.get("Last-Modified", ""))
