"""A dead server is refused in one line; one that is just restarting is waited for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tripletune.errors import ConfigError
from tripletune.reach import require_server


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A socket that has a port and does not listen yet."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held


@pytest.fixture
def port(deaf: socket.socket) -> int:
    return int(deaf.getsockname()[1])


def test_nobody_listening_is_one_line_that_says_where_and_what_to_do(port):
    url = f"http://anna:secret@127.0.0.1:{port}/api"
    with pytest.raises(ConfigError) as refused:
        require_server("MLflow server", url, "start it", patience=0)
    text = str(refused.value)
    assert text.startswith(f"no MLflow server answers at 127.0.0.1:{port} (")
    assert text.endswith("; start it")
    assert "secret" not in text


def test_a_server_that_comes_back_in_time_is_waited_for(deaf, port):
    restart = threading.Timer(0.3, deaf.listen)
    restart.start()
    began = time.monotonic()
    require_server("Prefect server", f"http://127.0.0.1:{port}", "start it", patience=20)
    assert time.monotonic() - began > 0.3


@pytest.mark.parametrize("uri", ["sqlite:////tmp/mlflow.db", "databricks", "file:///tmp/runs", ""])
def test_what_names_no_server_is_not_asked(uri):
    require_server("MLflow server", uri, "start it", patience=0)


def test_what_is_reached_through_a_proxy_is_not_asked(monkeypatch, port):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    require_server("MLflow server", f"http://127.0.0.1:{port}", "start it", patience=0)


def test_an_address_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="the address of MLflow server is none"):
        require_server("MLflow server", "http://127.0.0.1:many", "start it")
