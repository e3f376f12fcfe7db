"""Pre-flight checks: each finds its fault, says what to do, and lets a sound machine pass."""

from __future__ import annotations

import http.server
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tripletune.cli.app import CHECKOUT
from tripletune.cli.main import main
from tripletune.config import FinetuneConfig, RunConfig, TrackingConfig
from tripletune.doctor import inputs, machine, model, servers
from tripletune.doctor.check import GIB, Check, worst
from tripletune.doctor.examine import examine
from tripletune.store.runs import RunRecord, write_run

RATINGS = "userId,movieId,rating,timestamp\n1,1,4.0,978300000\n"
MOVIES = "movieId,title,genres\n1,Heat (1995),Crime\n"


def settings(**sections: Any) -> RunConfig:
    finetune = {"accelerate_config": str(CHECKOUT / "configs/accelerate/single.yaml"), **sections.pop("finetune", {})}
    return RunConfig.model_validate({"dataset": "made", "finetune": finetune, **sections})


@pytest.fixture
def release(tmp_path: Path) -> Path:
    path = tmp_path / "ml-made.zip"
    with zipfile.ZipFile(path, "w") as out:
        for name, content in (("ratings.csv", RATINGS), ("movies.csv", MOVIES), ("README.txt", "terms")):
            out.writestr(f"ml-made/{name}", content)
    return path


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    folder = tmp_path / "imdb"
    folder.mkdir()
    for name in inputs.DUMPS:
        (folder / f"{name}.tsv.gz").write_bytes(b"\x1f\x8b\x08")
    return folder


def finished_run(root: Path, *, started: str, peak: int = 0, written: int = 0) -> None:
    """A completed run with one stage, which took and wrote so much."""
    folder = root / "made" / "ingest" / "abc"
    folder.mkdir(parents=True)
    manifest = {"stage": "ingest", "peak_bytes": peak, "files": {}}
    if written:
        with (folder / "rows").open("wb") as out:
            out.truncate(written)  # sparse: it has the size and takes no disk
        manifest["files"] = {"rows": {"bytes": written}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    record = RunRecord(
        name="made-1", dataset="made", status="completed", started=started, config={}, fingerprints={"ingest": "abc"}
    )
    write_run(root, record)


def give_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    real = os.statvfs

    def statvfs(path: Any) -> Any:
        there = real(path)
        found = {name: getattr(there, name) for name in dir(there) if name.startswith("f_")}
        return SimpleNamespace(**(found | {"f_bavail": free // there.f_frsize}))

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_a_sound_machine_passes_and_every_check_says_what_it_found(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "check_memory", lambda *_: Check("memory", "ok", "enough"))
    found = examine(settings(), tmp_path)
    assert [check.name for check in found if check.status == "fail"] == []
    assert all(check.found for check in found)
    assert {check.name for check in found} == {
        *("python", "libraries", "disk", "memory", "gpus", "mlflow", "inputs", "licences", "model", "locale", "clock"),
    }


def test_the_worst_outcome_counts():
    assert worst([]) == "ok"
    assert worst(["ok", "warn"]) == "warn"
    assert worst(["fail", "ok", "warn"]) == "fail"


def test_another_python_fails(monkeypatch):
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.13.1")
    assert machine.check_python().status == "fail"
    assert "<3.12" in machine.check_python().advice


def test_a_library_that_the_package_refuses_fails_and_one_the_tests_did_not_have_warns(tmp_path, monkeypatch):
    real = metadata.version
    constraints = tmp_path / "constraints.txt"
    constraints.write_text(f"polars=={real('polars')}\ntyper==0.1.0\n")
    other = machine.check_libraries(settings(), constraints)
    assert (other.status, f"typer {real('typer')} in place of 0.1.0" in other.found) == ("warn", True)
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.0" if name == "sqlalchemy" else real(name))
    wrong = machine.check_libraries(settings(), constraints)
    assert (wrong.status, "sqlalchemy is 2.1.0 and has to be <2.1" in wrong.found) == ("fail", True)


def test_only_the_extras_that_the_settings_need_have_to_be_there(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name == "bitsandbytes":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    assert machine.check_libraries(settings()).status != "fail"
    four_bits = machine.check_libraries(settings(finetune={"quantization": "nf4"}))
    assert (four_bits.status, "bitsandbytes is missing" in four_bits.found) == ("fail", True)


def test_a_full_disk_fails_and_one_smaller_than_the_last_run_warns(tmp_path, monkeypatch):
    give_disk(monkeypatch, 100 * GIB)
    assert machine.check_disk(tmp_path / "not" / "there", "made").status == "ok"
    finished_run(tmp_path, started="2020-01-01T00:00:00Z", written=3 * GIB)
    assert machine.check_disk(tmp_path, "made").status == "ok"
    give_disk(monkeypatch, 2 * GIB)
    assert machine.check_disk(tmp_path, "made").status == "warn"
    assert "the last run wrote 3.0" in machine.check_disk(tmp_path, "made").found
    assert machine.check_disk(tmp_path, "another").status == "ok"
    give_disk(monkeypatch, GIB // 4)
    full = machine.check_disk(tmp_path, "made")
    assert (full.status, "tripletune gc" in full.advice) == ("fail", True)


def test_an_artifact_root_that_cannot_be_written_fails(tmp_path):
    (tmp_path / "file").write_text("")
    assert machine.check_disk(tmp_path / "file" / "artifacts", "made").status == "fail"


def test_less_memory_than_the_last_run_took_warns_and_next_to_none_fails(tmp_path, monkeypatch):
    def give(available: float) -> None:
        memory = SimpleNamespace(available=available * GIB, total=16 * GIB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    give(4)
    assert machine.check_memory(tmp_path, "made").status == "ok"
    finished_run(tmp_path, started="2020-01-01T00:00:00Z", peak=6 * GIB)
    low = machine.check_memory(tmp_path, "made")
    assert (low.status, "ingest of the last run took 6.0" in low.found) == ("warn", True)
    give(0.5)
    assert machine.check_memory(tmp_path, "made").status == "fail"


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Put a program of that name first in PATH, which prints what it is given."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(lines: str, code: int = 0) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\nprintf '{lines}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def test_gpus_are_named_and_busy_or_missing_ones_are_found(tmp_path, monkeypatch, nvidia_smi):
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0")
    nvidia_smi("A card, 100, 80000\\nA card, 50000, 80000\\n")
    found = machine.check_gpus(settings())
    assert (found.status, "50000 of 80000 MiB of GPU 1" in found.found) == ("warn", True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert machine.check_gpus(settings()).status == "ok"
    four = tmp_path / "four.yaml"
    four.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n")
    few = machine.check_gpus(settings(finetune={"accelerate_config": str(four)}))
    assert (few.status, "1 in sight" in few.found, "asks for 4" in few.found) == ("fail", True, True)
    nvidia_smi("Failed to initialize NVML: Driver/library version mismatch\\n", code=18)
    assert machine.check_gpus(settings()).status == "fail"


def test_gpus_next_to_a_cpu_build_of_torch_warn(monkeypatch, nvidia_smi):
    monkeypatch.setattr(metadata, "version", lambda name: "2.13.0+cpu")
    nvidia_smi("A card, 100, 80000\\n")
    assert "CPU build" in machine.check_gpus(settings()).found


def test_an_encoding_that_lacks_letters_warns(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    found = machine.check_locale()
    assert (found.status, found.found.startswith("stdout latin-1"), "PYTHONUTF8" in found.advice) == (
        "warn",
        True,
        True,
    )


def test_a_clock_behind_the_newest_run_or_a_wrong_time_zone_warns(tmp_path, monkeypatch):
    monkeypatch.delenv("TZ", raising=False)
    assert machine.check_clock(tmp_path).status == "ok"
    monkeypatch.setenv("TZ", "Mars/Olympus")
    assert "no time zone" in machine.check_clock(tmp_path).found
    monkeypatch.delenv("TZ")
    finished_run(tmp_path, started=(datetime.now(UTC) + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ"))
    assert machine.check_clock(tmp_path).status == "warn"


class _Health(http.server.BaseHTTPRequestHandler):
    status, ahead = 200, timedelta()

    def do_GET(self) -> None:
        self.send_response_only(self.status if self.path.endswith("/health") else 404)
        self.send_header("Date", format_datetime(datetime.now(UTC) + self.ahead, usegmt=True))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    monkeypatch.setattr(_Health, "status", 200)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Health) as there:
        threading.Thread(target=there.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{there.server_port}"
        there.shutdown()


def test_servers_answer_or_fail_in_one_line(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    assert servers.check_prefect().status == "ok"
    assert servers.check_mlflow(TrackingConfig(uri=server), tmp_path).status == "ok"
    monkeypatch.setattr(_Health, "ahead", timedelta(minutes=5))
    late = servers.check_prefect()
    assert (late.status, "s ahead" in late.found) == ("warn", True)
    monkeypatch.setattr(_Health, "status", 503)
    broken = servers.check_mlflow(TrackingConfig(uri=server), tmp_path)
    assert (broken.status, "(status 503)" in broken.found) == ("fail", True)


def test_a_server_that_is_away_fails_and_its_password_is_not_shown(tmp_path, monkeypatch):
    for address in ("http://ann:secret@127.0.0.1:9", "postgresql://ann:secret@127.0.0.1:9/mlflow"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        away = servers.check_mlflow(TrackingConfig(), tmp_path)
        assert away.status == "fail"
        assert "127.0.0.1:9" in away.found
        assert "secret" not in str(away)
        assert "\n" not in str(away)


def test_the_prefect_server_of_a_profile_is_asked(server, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    assert "no PREFECT_API_URL" in servers.check_prefect().found
    (tmp_path / "profiles.toml").write_text(f'active = "here"\n[profiles.here]\nPREFECT_API_URL = "{server}/api"\n')
    assert servers.check_prefect() == Check("prefect", "ok", f"{server}/api answers")


def test_inputs_that_are_there_pass_and_their_terms_are_named(release, dumps):
    whole = settings(source={"movielens": str(release), "imdb": str(dumps)})
    assert inputs.check_inputs(whole).status == "ok"
    terms = inputs.check_licences(whole)
    assert (terms.status, "ml-made/README.txt" in terms.found, "IMDb's" in terms.found) == ("ok", True, True)


def test_every_input_that_is_absent_or_broken_is_named(release, dumps, tmp_path):
    absent = settings(source={"movielens": "no.zip", "imdb": "no", "extra_triples": ["no.tsv"]})
    said = inputs.check_inputs(absent)
    assert said.status == "fail"
    for name in ("source.movielens: no.zip is not there", "source.imdb: no is not there", "extra_triples[0]: no.tsv"):
        assert name in said.found
    (dumps / "title.crew.tsv.gz").write_text("tconst")
    (dumps / "name.basics.tsv.gz").unlink()
    release.write_bytes(release.read_bytes()[:-30])
    feed = {"ratings": [str(tmp_path / "day-*.csv")]}
    broken = inputs.check_inputs(settings(source={"movielens": str(release), "imdb": str(dumps), "feed": feed}))
    for name in ("ml-made.zip is no zip", "title.crew.tsv.gz is not gzip", "name.basics.tsv.gz is not there", "day-*"):
        assert name in broken.found
    with zipfile.ZipFile(release, "w") as out:
        out.writestr("readme.txt", "")
    assert "holds none of" in inputs.check_inputs(settings(source={"movielens": str(release)})).found


def test_data_without_terms_warns(tmp_path):
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "movies.csv").write_text(MOVIES)
    found = settings(source={"movielens": str(tmp_path)})
    assert inputs.check_licences(found).status == "warn"
    (tmp_path / "LICENSE").write_text("terms")
    assert inputs.check_licences(found).status == "ok"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model's folder with one weight of eight bytes."""
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    return folder


def test_a_base_model_that_cannot_be_read_fails(base):
    tuned = FinetuneConfig(model=str(base))
    assert model.check_model(tuned, ("finetune",)).status == "ok"
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    cut = model.check_model(tuned, ("finetune",))
    assert (cut.status, "bytes in place of" in cut.found) == ("fail", True)
    assert model.check_model(tuned, ("shards",)).status == "ok"  # a machine that makes shards reads the tokenizer alone
    weights.unlink()
    assert "no *.safetensors" in model.check_model(tuned, ("rank",)).found
    (base / "tokenizer.json").write_text("{")
    assert model.check_model(tuned, ("shards",)).status == "fail"
    (base / "tokenizer.json").unlink()
    assert "tokenizer.json" in model.check_model(tuned, ("shards",)).found
    (base / "tokenizer.model").write_bytes(b"sentencepiece")
    assert model.check_model(tuned, ("shards",)).status == "ok"
    (base / "config.json").unlink()
    assert "config.json" in model.check_model(tuned, ("shards",)).found


def test_parts_of_the_weights_that_an_index_names_have_to_be_there(base):
    (base / model.INDEX).write_text(json.dumps({"weight_map": {"w": "model.safetensors", "v": "other.safetensors"}}))
    assert "lacks other.safetensors" in model.check_model(FinetuneConfig(model=str(base)), ("finetune",)).found


def test_a_model_of_the_hub_that_cannot_be_had_fails(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    gated = FinetuneConfig(model="meta/none", revision="0" * 40)
    said = model.check_model(gated, ("finetune",))
    assert (said.status, "HF_HUB_OFFLINE" in said.found) == ("fail", True)


def test_the_command_exits_with_2_and_a_line_for_each_check_and_json_says_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    config = ["--config", str(CHECKOUT / "configs/smoke.toml"), "--artifacts", str(tmp_path / "a")]
    assert main(["doctor", *config]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(("ok", "warn"))] == []
    wrong = [*config, "--movielens", str(tmp_path / "no.zip")]
    assert main(["doctor", *wrong]) == 2
    assert sum(line.startswith("fail  inputs: ") for line in capsys.readouterr().out.splitlines()) == 1
    assert main(["doctor", "--json", *wrong]) == 2
    found = {check["name"]: check["status"] for check in json.loads(capsys.readouterr().out)}
    assert found["inputs"] == "fail"
    assert not (tmp_path / "a").exists()


def test_the_checks_import_no_torch():
    call = (
        "import sys; from pathlib import Path; from tripletune.config import RunConfig; "
        "from tripletune.doctor.examine import examine; "
        "examine(RunConfig(dataset='x'), Path('.')); print(*({'torch', 'mlflow', 'prefect'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
