"""Faulty HTTP server on 127.0.0.1; each test chooses the fault for each request."""

from __future__ import annotations

import hashlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Behaviour:
    """Faults of one response to a request for the zip; a correct response by default."""

    status: int = 0
    """Answer with this status and no file."""
    drop_after: int | None = None
    """Close the connection after so many bytes of the body."""
    stall_after: int | None = None
    """Send so many bytes of the body, then nothing until the test ends."""
    ignore_range: bool = False
    """Answer 200 with the whole file."""
    shift_range: int = 0
    """Answer 206 with a range that begins so many bytes later than requested."""
    announce: int | None = None
    """Content-Length, independent of the bytes sent."""
    announce_nothing: bool = False
    """No Content-Length: the body ends with the connection."""
    flip_byte: int | None = None
    """Send a wrong byte at this offset of the file."""


@dataclass
class BadServer:
    """A file and its MD5, served badly.

    ``behave`` is called with the number of the request for the zip (from 1) and returns how to answer it; it may
    change ``body`` as well. ``asked`` holds each request's Range and If-Range, ``sent`` counts the zip's bytes that
    went out.
    """

    body: bytes
    behave: Callable[[int], Behaviour] = lambda number: Behaviour()
    md5_text: str | None = ""
    """Body of the .md5; empty: the right one; None: it is not there."""
    md5_behaviour: Behaviour = field(default_factory=Behaviour)
    redirect_query: str = ""
    """Redirect requests for the zip to the same path with this query."""
    validators: tuple[str, ...] = ("ETag", "Last-Modified")
    url: str = ""
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    sent: int = 0
    stop: threading.Event = field(default_factory=threading.Event)

    def validator(self, header: str) -> str:
        digest = hashlib.sha1(self.body).hexdigest()
        return f'"{digest[:12]}"' if header == "ETag" else f"Mon, 01 Jan 2024 00:00:{int(digest[:8], 16) % 60:02} GMT"


@contextmanager
def serving(server: BadServer) -> Iterator[BadServer]:
    """Serve on a free port in a thread; ``server.url`` is the folder's URL."""

    class Handler(_Handler):
        state = server

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server.url = f"http://127.0.0.1:{http.server_address[1]}/movielens"
    thread = threading.Thread(target=lambda: http.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop.set()
        http.shutdown()
        http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: BadServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.close_connection = True
        state = self.state
        state.paths.append(self.path)
        if self.path.endswith(".md5"):
            if state.md5_text is None:
                self.send_error(404)
                return
            name = self.path.rsplit("/", 1)[-1].removesuffix(".md5")
            text = state.md5_text or f"MD5 ({name}) = {hashlib.md5(state.body).hexdigest()}\n"
            self._answer(200, text.encode(), {}, state.md5_behaviour)
            return
        if state.redirect_query and "?" not in self.path:
            self._answer(302, b"", {"Location": f"{self.path}?{state.redirect_query}"})
            return
        state.asked.append((self.headers.get("Range"), self.headers.get("If-Range")))
        self._send_file(state.behave(len(state.asked)))

    def _send_file(self, how: Behaviour) -> None:
        if how.status:
            self.send_error(how.status)
            return
        body, headers = self.state.body, {name: self.state.validator(name) for name in self.state.validators}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        unchanged = self.headers.get("If-Range", "") in ("", *headers.values())
        first, status = 0, 200
        if asked and unchanged and not how.ignore_range:
            first, status = int(asked[1]) + how.shift_range, 206
            if first >= len(body):
                self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
                return
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        if how.flip_byte is not None:
            body = body[: how.flip_byte] + bytes([body[how.flip_byte] ^ 1]) + body[how.flip_byte + 1 :]
        self._answer(status, body[first:], headers, how)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], how: Behaviour | None = None) -> None:
        how = how or Behaviour()
        length = len(body) if how.announce is None else how.announce
        end = next((n for n in (how.drop_after, how.stall_after) if n is not None), len(body))
        self.send_response(status)
        self.send_header("Connection", "close")
        if not how.announce_nothing:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.path.endswith(".zip"):
            self.state.sent += len(body[:end])
        try:
            self.wfile.write(body[:end])
            if how.stall_after is not None:
                self.wfile.flush()
                self.state.stop.wait()
            self.connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # the client went away
