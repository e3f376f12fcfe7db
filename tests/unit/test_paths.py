"""The artifact store: exactly once, reuse, resume, and nothing half-written under a final name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from tripletune.errors import InputError, MissingArtifactError
from tripletune.store.files import write_atomically, write_json
from tripletune.store.paths import RunPaths, damaged_files, read_manifest


def paths_for(root: Path, fingerprint: str = "f1") -> RunPaths:
    return RunPaths(
        root=root,
        dataset="toy",
        fingerprints={"split": fingerprint},
        ingredients={"split": {"parents": {"ingest": "f0"}, "fields": {"seed": 1}}},
    )


def write_rows(work: Path) -> dict[str, int]:
    frame = pl.DataFrame({"user_id": [1, 2, 3]})
    write_atomically(work / "rows.parquet", frame.write_parquet)
    return {"rows_kept": 3}


def test_a_finished_stage_is_reused_without_calling_it_again(tmp_path):
    paths = paths_for(tmp_path)
    folder = paths.build("split", write_rows)

    def refuse(work: Path) -> dict[str, int]:
        raise AssertionError("made again")

    assert paths.build("split", refuse) == folder
    assert not list(folder.parent.glob("*.work"))


def test_the_manifest_says_what_is_in_the_folder_and_where_it_comes_from(tmp_path):
    paths = paths_for(tmp_path)
    folder = paths.build("split", write_rows)
    manifest = paths.manifest("split")
    described = manifest["files"]["rows.parquet"]
    assert described["rows"] == 3
    assert described["schema"] == {"user_id": "int64"}
    assert described["bytes"] == (folder / "rows.parquet").stat().st_size
    assert manifest["parents"] == {"ingest": "f0"}
    assert manifest["facts"] == {"rows_kept": 3}
    assert manifest["seconds"] >= 0
    assert manifest["peak_bytes"] > 1_000_000


def test_a_store_that_cannot_be_made_is_the_users_to_repair_and_a_stages_own_trouble_is_not(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write .*file/toy/split \(Not a directory\); name another folder"):
        paths_for(tmp_path / "file").build("split", write_rows)

    def lose_a_file(work: Path) -> dict[str, int]:
        raise FileNotFoundError(2, "No such file or directory", "rows.csv")

    with pytest.raises(FileNotFoundError, match=r"rows\.csv"):
        paths_for(tmp_path).build("split", lose_a_file)


def test_another_fingerprint_is_another_folder(tmp_path):
    first = paths_for(tmp_path, "f1").build("split", write_rows)
    second = paths_for(tmp_path, "f2").build("split", write_rows)
    assert first != second


def test_a_failed_stage_publishes_nothing_and_keeps_its_finished_files_for_the_next_try(tmp_path):
    paths = paths_for(tmp_path)

    def fail_half_way(work: Path) -> dict[str, int]:
        (work / "shard-000.parquet").write_bytes(b"finished")
        (work / ".shard-001.parquet.part").write_bytes(b"half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        paths.build("split", fail_half_way)
    assert not paths.is_done("split")

    def go_on(work: Path) -> dict[str, int]:
        assert (work / "shard-000.parquet").read_bytes() == b"finished"
        assert not (work / ".shard-001.parquet.part").exists()
        (work / "shard-000.parquet").unlink()
        return write_rows(work)

    paths.build("split", go_on)
    assert paths.is_done("split")


def test_a_folder_whose_file_was_cut_or_removed_is_made_again(tmp_path):
    paths = paths_for(tmp_path)
    folder = paths.build("split", write_rows)
    (folder / "rows.parquet").write_bytes(b"cut")
    assert read_manifest(folder) is None
    paths.build("split", write_rows)
    assert pl.read_parquet(folder / "rows.parquet").height == 3


def test_changed_bytes_of_the_same_size_are_found_by_their_hash(tmp_path):
    folder = paths_for(tmp_path).build("split", write_rows)
    assert damaged_files(folder) == []
    content = bytearray((folder / "rows.parquet").read_bytes())
    content[10] ^= 1
    (folder / "rows.parquet").write_bytes(content)
    assert damaged_files(folder) == ["rows.parquet"]


def test_scratch_is_not_part_of_the_output(tmp_path):
    paths = paths_for(tmp_path)

    def with_checkpoint(work: Path) -> dict[str, int]:
        (work / "_scratch").mkdir()
        (work / "_scratch" / "checkpoint").write_text("x")
        return write_rows(work)

    folder = paths.build("split", with_checkpoint)
    assert not (folder / "_scratch").exists()
    assert list(paths.manifest("split")["files"]) == ["rows.parquet"]


def test_two_runs_at_once_make_it_once(tmp_path):
    paths, made = paths_for(tmp_path), []

    def slowly(work: Path) -> dict[str, int]:
        made.append(threading.get_ident())
        time.sleep(0.3)
        return write_rows(work)

    threads = [threading.Thread(target=paths.build, args=("split", slowly)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert paths.is_done("split")


KILLED = """
import sys, time
from pathlib import Path
from tripletune.store.files import write_json
from tripletune.store.paths import RunPaths
paths = RunPaths(root=Path(sys.argv[1]), dataset="toy", fingerprints={"split": "f1"})
def make(work):
    for i in range(1000):
        write_json(work / f"shard-{i:03d}.json", {"shard": i})
        print(i, flush=True)
        time.sleep(0.005)
    return {}
paths.build("split", make)
"""


def test_a_killed_process_leaves_whole_files_and_a_free_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 20:
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()

    seen = []

    def go_on(work: Path) -> dict[str, int]:
        for file in work.glob("shard-*.json"):
            json.loads(file.read_text())
            seen.append(file.name)
        return write_rows(work)

    paths_for(tmp_path).build("split", go_on)  # would wait for ever if the lock outlived its holder
    assert len(seen) >= 20


def test_a_missing_stage_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(MissingArtifactError, match="tripletune split"):
        paths_for(tmp_path).require("split")


def test_a_stage_that_an_older_run_did_not_have_is_named(tmp_path):
    with pytest.raises(MissingArtifactError, match="this run has no 'ease'; an older version made it"):
        RunPaths(root=tmp_path, dataset="x", fingerprints={}).require("ease")


def test_what_a_writer_left_half_done_is_no_part_of_the_output(tmp_path):
    paths = RunPaths(root=tmp_path, dataset="x", fingerprints={"split": "0" * 32})

    def make(work):
        (work / "shard").write_text("whole")
        (work / ".shard.part").write_text("ha")
        return {}

    paths.build("split", make)
    assert list(paths.manifest("split")["files"]) == ["shard"]


def test_write_json_replaces_whole_files_only(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    assert json.loads(target.read_text()) == {"a": 1}
