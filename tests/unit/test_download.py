"""Download from a faulty HTTP server (drops, stalls, corrupts): resumed, or one-line error."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from bad_http_server import BadServer, Behaviour, serving

from tripletune.cli import main as cli
from tripletune.data.download.fetch import RELEASES, Downloaded, download
from tripletune.errors import InputError
from tripletune.store.retries import Patience

BODY = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
HASTY = Patience(tries=4, pause=0.0, timeout=5.0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


def fetch(server: BadServer, folder: Path, **settings) -> Downloaded:
    return download("ml-1m", folder, base_url=server.url, **{"patience": HASTY, **settings})


def refusal(server: BadServer, folder: Path, **settings) -> str:
    with pytest.raises(InputError) as error:
        fetch(server, folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"ml-1m.zip.lock"}


def once(how: Behaviour):
    """Spoil the first response only."""
    return lambda number: how if number == 1 else Behaviour()


def dropping(times: int, *, seed: int):
    chance = random.Random(seed)

    def behave(number: int) -> Behaviour:
        return Behaviour(drop_after=chance.randrange(1, 14_000)) if number <= times else Behaviour()

    return behave


def test_a_good_server_is_asked_once_and_only_the_zip_stays(tmp_path):
    with serving(BadServer(BODY)) as server:
        found = fetch(server, tmp_path / "new" / "folder")
    assert found == Downloaded(path=tmp_path / "new" / "folder" / "ml-1m.zip", md5=MD5, fetched=True)
    assert found.path.read_bytes() == BODY
    assert names(found.path.parent) == {"ml-1m.zip"}
    assert server.asked == [(None, None)]


def test_twenty_random_drops_are_survived_and_no_byte_is_sent_twice(tmp_path):
    with serving(BadServer(BODY, dropping(20, seed=7))) as server:
        found = fetch(server, tmp_path)
    assert found.path.read_bytes() == BODY
    assert len(server.asked) == 21
    assert all(range_ and if_range for range_, if_range in server.asked[1:])
    assert server.sent == len(BODY)


@pytest.mark.parametrize("resumed", [False, True], ids=["whole", "resumed"])
def test_one_corrupted_byte_is_refused_with_both_checksums_and_the_download_is_removed(tmp_path, resumed):
    def behave(number: int) -> Behaviour:
        return Behaviour(flip_byte=123_456, drop_after=200_000 if resumed and number == 1 else None)

    damaged = BODY[:123_456] + bytes([BODY[123_456] ^ 1]) + BODY[123_457:]
    with serving(BadServer(BODY, behave)) as server:
        message = refusal(server, tmp_path)
        assert names(tmp_path) == set()
        server.behave = lambda number: Behaviour()
        assert fetch(server, tmp_path).path.read_bytes() == BODY
    assert MD5 in message
    assert hashlib.md5(damaged).hexdigest() in message
    assert f"{server.url}/ml-1m.zip" in message
    assert "run it again" in message


def test_what_a_failed_download_left_is_gone_on_with_by_the_next_one(tmp_path):
    with serving(BadServer(BODY, lambda number: Behaviour(drop_after=100_000 if number == 1 else 0))) as server:
        message = refusal(server, tmp_path)
        assert "of 300,000 bytes" in message
        assert f"fetch {server.url}/ml-1m.zip yourself into {tmp_path}" in message
        kept = (tmp_path / "ml-1m.zip.part").stat().st_size
        assert 0 < kept <= 100_000
        assert "ml-1m.zip" not in names(tmp_path)
        server.behave = lambda number: Behaviour()
        assert fetch(server, tmp_path).path.read_bytes() == BODY
    assert server.asked[-1] == (f"bytes={kept}-", server.validator("ETag"))


def test_a_killed_download_is_gone_on_with_by_the_next_process(tmp_path):
    code = (
        "import sys; from pathlib import Path; from tripletune.data.download.fetch import download; "
        "download('ml-1m', Path(sys.argv[2]), base_url=sys.argv[1], "
        "report=lambda done, total: print(done, flush=True) if done >= 200_000 else None)"
    )
    with serving(BadServer(BODY, once(Behaviour(stall_after=200_000)))) as server:
        process = subprocess.Popen([sys.executable, "-c", code, server.url, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert (tmp_path / "ml-1m.zip.part").stat().st_size > 100_000
        assert fetch(server, tmp_path).path.read_bytes() == BODY
        assert server.asked[-1][0] is not None


@pytest.mark.parametrize("validators", [("ETag", "Last-Modified"), ("ETag",), ("Last-Modified",)], ids=str)
def test_a_file_that_changed_on_the_server_is_fetched_anew(tmp_path, validators):
    newer = random.Random(2).randbytes(300_000)
    server = BadServer(BODY, validators=validators, md5_text=f"{hashlib.md5(newer).hexdigest()}  ml-1m.zip")

    def behave(number: int) -> Behaviour:
        if number == 1:
            return Behaviour(drop_after=150_000)
        server.body = newer
        return Behaviour()

    server.behave = behave
    with serving(server):
        assert fetch(server, tmp_path).path.read_bytes() == newer
    assert len(server.asked) == 2


def test_bytes_of_another_published_version_are_not_gone_on_with(tmp_path):
    with serving(BadServer(BODY, lambda number: Behaviour(drop_after=100_000 if number == 1 else 0))) as server:
        refusal(server, tmp_path)
        server.body, server.behave = BODY[::-1], lambda number: Behaviour()
        assert fetch(server, tmp_path).path.read_bytes() == BODY[::-1]
    assert server.asked[-1] == (None, None)


def test_a_server_without_etag_and_date_is_resumed_all_the_same(tmp_path):
    with serving(BadServer(BODY, once(Behaviour(drop_after=150_000)), validators=())) as server:
        assert fetch(server, tmp_path).path.read_bytes() == BODY
    assert server.asked[1][0] is not None
    assert server.asked[1][1] is None


@pytest.mark.parametrize(
    "how",
    [
        Behaviour(ignore_range=True),
        Behaviour(status=416),
        Behaviour(shift_range=1),
        Behaviour(status=500),
        Behaviour(status=503),
        Behaviour(status=429),
        Behaviour(drop_after=0),
    ],
    ids=["ignores Range", "416", "wrong range", "500", "503", "429", "drops at once"],
)
def test_a_resume_that_goes_wrong_once_still_ends_with_the_right_file(tmp_path, how):
    def behave(number: int) -> Behaviour:
        return {1: Behaviour(drop_after=150_000), 2: how}.get(number, Behaviour())

    with serving(BadServer(BODY, behave)) as server:
        assert fetch(server, tmp_path).path.read_bytes() == BODY
    assert names(tmp_path) == {"ml-1m.zip"}


def test_a_signed_url_that_the_server_redirects_to_is_in_no_message(tmp_path, caplog):
    behave = {1: Behaviour(drop_after=150_000), 2: Behaviour(shift_range=1)}
    server = BadServer(BODY, lambda number: behave.get(number, Behaviour()), redirect_query="X-Amz-Signature=hidden")
    with serving(server), caplog.at_level(logging.INFO, logger="tripletune"):
        assert fetch(server, tmp_path).path.read_bytes() == BODY
    assert "/movielens/ml-1m.zip?X-Amz-Signature=hidden" in server.paths
    told = [record.getMessage() for record in caplog.records if record.name.startswith("tripletune")]
    assert any("the server has no bytes of ml-1m.zip from 150000 on" in message for message in told)
    assert not any("hidden" in message for message in told)


def test_a_stalled_connection_is_left_and_resumed(tmp_path):
    with serving(BadServer(BODY, once(Behaviour(stall_after=150_000)))) as server:
        patience = Patience(tries=2, pause=0.0, timeout=0.2)
        assert fetch(server, tmp_path, patience=patience).path.read_bytes() == BODY
    assert server.asked[1][0] == "bytes=150000-"


def test_a_server_that_announces_more_than_it_has_is_found_out(tmp_path):
    with serving(BadServer(BODY, lambda number: Behaviour(announce=400_000))) as server:
        assert fetch(server, tmp_path).path.read_bytes() == BODY


def test_a_server_that_announces_less_than_it_has_is_refused_by_checksum(tmp_path):
    with serving(BadServer(BODY, lambda number: Behaviour(announce=1000))) as server:
        message = refusal(server, tmp_path)
    assert hashlib.md5(BODY[:1000]).hexdigest() in message
    assert MD5 in message


def test_a_server_that_announces_nothing_is_believed_when_the_checksum_is_right(tmp_path):
    with serving(BadServer(BODY, lambda number: Behaviour(announce_nothing=True))) as server:
        assert fetch(server, tmp_path).path.read_bytes() == BODY


def test_attempts_that_bring_nothing_are_counted_and_their_pauses_grow(tmp_path, caplog, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("tripletune.store.retries.time.sleep", pauses.append)
    behave = {1: Behaviour(status=503), 2: Behaviour(status=503), 3: Behaviour(drop_after=5000)}
    with (
        serving(BadServer(BODY, lambda number: behave.get(number, Behaviour(status=503)))) as server,
        caplog.at_level(logging.INFO, logger="tripletune"),
    ):
        message = refusal(server, tmp_path, patience=Patience(tries=4, pause=1.0, longest_pause=3.0))
    assert pauses == [1, 2, 1, 1, 2, 3]  # after 503, 503, some bytes, 503, 503, 503; the next 503 was the last
    assert len(server.asked) == 7
    assert "answers 503" in message
    assert caplog.messages[0].endswith("again in 1 s")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 501])
def test_a_refusal_by_the_server_is_not_tried_again(tmp_path, status):
    with serving(BadServer(BODY, lambda number: Behaviour(status=status))) as server:
        assert f"answers {status}" in refusal(server, tmp_path)
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "text",
    [
        f"MD5 (ml-1m.zip) = {MD5}\n",
        f"{MD5}  ml-1m.zip\n",
        f"{MD5} *ml-1m.zip",
        f"{MD5.upper()}\r\n",
        f"{MD5}  ./ml-1m.zip",
        f"{'0' * 32}  ml-10m.zip\n{MD5}  ml-1m.zip\n",
    ],
    ids=["BSD", "GNU", "GNU binary", "bare", "with a folder", "list"],
)
def test_each_way_to_write_an_md5_is_read(tmp_path, text):
    with serving(BadServer(BODY, md5_text=text)) as server:
        assert fetch(server, tmp_path).md5 == MD5


@pytest.mark.parametrize("text", ["<html>Sign in to this network</html>" * 1000, f"{MD5}  ml-10m.zip", "no"])
def test_a_page_in_place_of_the_md5_is_refused_before_the_zip_is_asked_for(tmp_path, text):
    with serving(BadServer(BODY, md5_text=text)) as server:
        message = refusal(server, tmp_path)
    assert f"{server.url}/ml-1m.zip.md5 holds no MD5 of ml-1m.zip" in message
    assert "--md5" in message
    assert server.asked == []


def test_a_page_in_place_of_the_md5_is_not_read_to_its_end(tmp_path):
    endless = Behaviour(announce=1 << 40, stall_after=5000)
    with serving(BadServer(BODY, md5_text="<html>" * 1000, md5_behaviour=endless)) as server:
        assert "holds no MD5" in refusal(server, tmp_path, patience=Patience(tries=1, pause=0.0, timeout=0.5))


def test_without_a_published_md5_one_has_to_be_given(tmp_path):
    with serving(BadServer(BODY, md5_text=None)) as server:
        message = refusal(server, tmp_path)
        assert "no MD5 is published" in message
        assert "--md5 HEX" in message
        assert server.asked == []
        assert fetch(server, tmp_path, md5=MD5.upper()).fetched
        assert server.paths.count("/movielens/ml-1m.zip.md5") == 1


def test_a_verified_file_is_not_fetched_again_and_a_damaged_one_is_named_and_left(tmp_path):
    with serving(BadServer(BODY)) as server:
        assert fetch(server, tmp_path).fetched
        assert not fetch(server, tmp_path).fetched
        assert len(server.asked) == 1
        (tmp_path / "ml-1m.zip").write_bytes(b"mine")
        message = refusal(server, tmp_path)
        assert len(server.asked) == 1
    assert (tmp_path / "ml-1m.zip").read_bytes() == b"mine"
    assert hashlib.md5(b"mine").hexdigest() in message
    assert MD5 in message
    assert "move it away" in message


def test_with_md5_given_a_file_that_is_there_needs_no_network(tmp_path):
    (tmp_path / "ml-1m.zip").write_bytes(BODY)
    assert not download("ml-1m", tmp_path, base_url="http://127.0.0.1:9/", md5=MD5, patience=HASTY).fetched


def test_two_downloads_at_once_send_one_file_and_both_find_it(tmp_path):
    both = threading.Barrier(2)
    found: list[Downloaded] = []

    def one() -> None:
        both.wait()
        found.append(fetch(server, tmp_path))

    with serving(BadServer(BODY, once(Behaviour(drop_after=100_000)))) as server:
        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(result.fetched for result in found) == [False, True]
    assert (tmp_path / "ml-1m.zip").read_bytes() == BODY
    assert len(server.asked) == 2


def test_a_full_disk_is_one_line_and_what_came_is_gone_on_with(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving(BadServer(BODY)) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            message = refusal(server, tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert "cannot write" in message
        assert "ml-1m.zip" in message
        assert names(tmp_path) == {"ml-1m.zip.part", "ml-1m.zip.part.json"}
        assert fetch(server, tmp_path).path.read_bytes() == BODY
    assert server.asked[-1][0] is not None


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with serving(BadServer(BODY)) as server:
        message = refusal(server, tmp_path / "file" / "downloads")
    assert "cannot write" in message
    assert "--to" in message


def test_nobody_at_the_port_names_the_host_and_the_way_round(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError) as error:
            download("ml-1m", tmp_path, base_url=f"http://{host}/m", patience=HASTY)
    assert str(error.value).startswith(f"cannot reach {host} (")
    assert "check the network" in str(error.value)
    assert f"fetch http://{host}/m/ml-1m.zip yourself into {tmp_path}" in str(error.value)


def test_a_host_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^cannot reach no-such-host\.invalid \("):
        download("ml-1m", tmp_path, base_url="http://no-such-host.invalid", patience=HASTY)


@pytest.mark.parametrize(
    ("base_url", "expected"),
    [
        ("ftp://example.org/m", "expected https://"),
        ("example.org/m", "expected https://"),
        ("https:///m", "expected https://"),
        ("http://example.org:99999x/m", "is no URL"),
        ("https://example.org:hidden/m", "is no URL"),
        ("https://example.org/m?token=hidden", "query"),
        ("ftp://example.org/m?token=hidden", "query"),
        ("https://example.org/m#hidden", "query"),
        ("https://somebody:hidden@example.org/m", "a user name, a password"),
        ("https://some/body:hidden@example.org/m", "a user name, a password"),
        ("https://somebody:hidden#2@example.org/m", "a user name, a password"),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused_and_no_secret_is_repeated(tmp_path, base_url, expected):
    with pytest.raises(InputError) as error:
        download("ml-1m", tmp_path, base_url=base_url, patience=HASTY)
    assert expected in str(error.value)
    assert "hidden" not in str(error.value)


def test_an_unknown_release_and_a_wrong_md5_option_say_what_there_is(tmp_path):
    with pytest.raises(InputError, match="ml-32m, ml-25m, ml-20m, ml-latest, ml-latest-small, ml-1m, ml-100k"):
        download("../ml-1m", tmp_path)
    with pytest.raises(InputError, match="32 hexadecimal digits"):
        download("ml-1m", tmp_path, md5="123")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", RELEASES)
def test_each_release_is_asked_for_by_its_name(tmp_path, name):
    with serving(BadServer(BODY)) as server:
        download(name, tmp_path, base_url=server.url + "/", patience=HASTY)
    assert server.paths == [f"/movielens/{name}.zip.md5", f"/movielens/{name}.zip"]


def test_the_command_fetches_then_says_it_is_there(tmp_path, capsys):
    command = ["download", "ml-1m", "--to", str(tmp_path)]
    with serving(BadServer(BODY)) as server:
        assert cli.main([*command, "--base-url", server.url]) == 0
        first = capsys.readouterr()
        assert cli.main([*command, "--base-url", server.url]) == 0
        second = capsys.readouterr()
    assert first.out == f"{tmp_path}/ml-1m.zip: fetched, MD5 {MD5}\n"
    assert second.out == f"{tmp_path}/ml-1m.zip: already there, MD5 {MD5}\n"
    assert first.err == second.err == ""  # no progress bar in a pipe


def test_the_command_refuses_a_corrupted_byte_in_one_line_with_exit_code_2(tmp_path, capsys):
    with serving(BadServer(BODY, lambda number: Behaviour(flip_byte=7))) as server:
        assert cli.main(["download", "ml-1m", "--to", str(tmp_path), "--base-url", server.url]) == 2
    err = capsys.readouterr().err
    assert err.startswith("tripletune: what came from http://127.0.0.1")
    assert err.count("\n") == 1
    assert MD5 in err
    assert os.listdir(tmp_path) == ["ml-1m.zip.lock"]  # noqa: PTH208
