"""The whole flow on a very small release: what it prints, leaves behind and does the second time."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import polars as pl
import psutil
import pytest

from tests.flows.conftest import ROOT, TRIPLETUNE, MicroRun
from tripletune.config import RunConfig
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.rank import PREDICTIONS
from tripletune.store.paths import read_manifest
from tripletune.store.runs import run_page


def shard_hashes(micro: MicroRun, root: Path | None = None) -> dict[str, str]:
    paths = micro.record.paths(root or micro.root)
    files = paths.manifest("generate")["files"]
    return {name: file["sha256"] for name, file in files.items()}


def test_the_run_ends_with_tables_folders_and_the_commands_that_open_the_pages(micro):
    for text in ("popularity", "lightgcn", "rgat", "random", "retriever", "untuned", "tuned", "retrieval ceiling"):
        assert text in micro.output
    for text in ("valid answers, tuned, constrained", "mlflow server", "prefect server start", "report.html"):
        assert text in micro.output


def test_every_stage_is_finished_and_named_in_the_runs_file(micro):
    assert micro.record.status == "completed"
    assert set(micro.record.stages) == {*micro.record.fingerprints, "quality", "promote"}
    for stage in micro.record.fingerprints:
        assert read_manifest(micro.paths.folder(stage)) is not None


def test_lineage_leads_from_the_adapter_back_to_the_ratings(micro):
    seen, waiting = set(), ["finetune"]
    while waiting:
        stage = waiting.pop()
        seen.add(stage)
        parents = micro.paths.manifest(stage)["parents"]
        assert all(micro.record.fingerprints[name] == value for name, value in parents.items())
        waiting += [name for name in parents if name not in seen]
    assert {"generate", "retrieve", "rgat", "lightgcn", "knowledge", "split", "ingest"} <= seen


def test_shards_have_the_published_schema_and_every_viewer_once(micro):
    for purpose in ("train", "valid", "test"):
        frame = pl.read_parquet(sorted((micro.paths.folder("generate") / purpose).glob("*.parquet")))
        assert frame.schema == EXAMPLES
        assert frame["example_id"].is_unique().all()
    assert not pl.read_parquet(micro.paths.folder("generate") / "train")["unseen"].any()


def test_constrained_answers_are_always_distinct_candidates_five_where_a_model_writes_them(micro):
    predictions = pl.read_parquet(micro.paths.folder("rank") / "predictions.parquet")
    assert predictions.schema == PREDICTIONS
    constrained = predictions.filter(pl.col("constrained"))
    assert set(constrained["system"]) == {"random", "retriever", "untuned", "tuned"}
    assert constrained["valid"].all()
    named = pl.when(pl.col("system").is_in(["random", "retriever"])).then(20).otherwise(5)
    assert constrained.filter(pl.col("answers").list.n_unique() != named).is_empty()


def test_the_same_command_again_makes_nothing_again_and_gives_the_same_champion(micro):
    before = shard_hashes(micro)
    done = micro.call("run", "--config", str(micro.config))
    assert done.returncode == 0, done.stderr[-4000:]
    runs = sorted((micro.root / "runs").glob("*.json"), key=lambda path: path.stat().st_mtime)
    stages = json.loads(runs[-1].read_text())["stages"]
    assert {stages[name] for name in micro.record.fingerprints} == {"reused"}
    assert shard_hashes(micro) == before
    for stage, fingerprint in micro.record.fingerprints.items():
        assert f"| {stage} reused, {fingerprint[:8]}, made in " in done.stderr
        assert f"| {stage} starts: " not in done.stderr
    decision = json.loads((micro.root / "micro" / "promote" / runs[-1].stem / "decision.json").read_text())
    assert decision["reason"] == "this adapter is the champion already"


def test_plan_names_the_setting_that_changed_and_the_stages_behind_it(micro, tmp_path):
    changed = tmp_path / "changed.toml"
    changed.write_text(micro.config.read_text().replace("max_viewers = 24", "max_viewers = 23"))
    done = micro.call("plan", "--config", str(changed))
    assert "fields rank.max_viewers: 24 -> 23" in done.stdout
    verdicts = {line.split()[1]: line.split()[3] for line in done.stdout.splitlines() if line.startswith("│")}
    assert verdicts["finetune"] == "reuse"
    assert verdicts["rank"] == verdicts["evaluate"] == "make"


def test_pinned_specialists_are_kept_although_their_settings_changed(micro, tmp_path):
    changed, pinned = tmp_path / "changed.toml", tmp_path / "pinned.toml"
    changed.write_text(micro.config.read_text().replace("max_steps = 12", "max_steps = 11"))
    pinned.write_text(f'{changed.read_text()}\n[specialists]\npin = "{micro.record.name}"\n')

    def verdicts(config: Path) -> dict[str, str]:
        lines = micro.call("plan", "--config", str(config)).stdout.splitlines()
        return {line.split()[1]: line.split()[3] for line in lines if line.startswith("│")}

    assert verdicts(changed)["rgat"] == verdicts(changed)["retrieve"] == "make"
    assert verdicts(pinned)["rgat"] == verdicts(pinned)["generate"] == "reuse"


def test_audit_and_show_and_prompt_answer_for_the_run(micro):
    audit = micro.call("audit")
    assert audit.returncode == 0, audit.stdout + audit.stderr
    show = micro.call("show", micro.record.name)
    assert all(stage in show.stdout for stage in micro.record.fingerprints)
    user = pl.read_parquet(micro.paths.folder("generate") / "test")["user_id"][0]
    prompt = micro.call("prompt", "--user", str(user))
    assert "candidate: movie" in prompt.stdout
    assert "held-out likes" in prompt.stdout


def test_recommend_serves_a_known_viewer_and_a_stranger(micro):
    viewer = pl.scan_parquet(micro.paths.folder("split") / "shard=*" / "part.parquet").head(1).collect()["user_id"][0]
    known = micro.call("recommend", "--user", str(viewer), "--why")
    assert known.returncode == 0, known.stderr[-3000:]
    assert "relied on" in known.stdout
    assert "log-probability falls by" in known.stdout
    titles = pl.read_parquet(micro.paths.folder("ingest") / "movies.parquet")["title"]
    plain = titles.filter(~titles.is_duplicated() & ~titles.str.contains("<", literal=True)).to_list()
    stranger = micro.call("recommend", "--like", plain[0], "--like", plain[1].upper())
    assert stranger.returncode == 0, stranger.stderr[-3000:]
    assert all(f"│ {place} " in stranger.stdout for place in range(1, 6))
    assert plain[0] not in stranger.stdout
    wrong = micro.call("recommend", "--like", plain[0][:-4] + "3000)")
    assert wrong.returncode == 2
    assert plain[0] in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1


def test_mlflow_has_one_parent_with_a_child_per_stage_and_the_lineage(micro):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    parent = client.get_run(micro.record.mlflow_run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["prefect.flow_run_id"]
    assert parent.data.tags["config.sha256"]
    assert parent.data.params["finetune.lora_r"]
    assert "tuned_ndcg_at_5" in parent.data.metrics
    query = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = {run.data.tags["stage"]: run for run in client.search_runs([parent.info.experiment_id], query)}
    assert set(children) == set(micro.record.stages)
    digests = {item.dataset.digest for item in children["finetune"].inputs.dataset_inputs}
    assert micro.record.fingerprints["generate"] in digests
    recall = client.get_metric_history(children["lightgcn"].info.run_id, "valid_ndcg_at_10_fit_b")
    assert len({point.step for point in recall}) > 1
    assert children["generate"].data.metrics["examples.test"] > 0
    losses = client.get_metric_history(children["finetune"].info.run_id, "loss")
    assert len({point.step for point in losses}) > 1
    finetune = children["finetune"]
    assert finetune.info.run_name == "finetune tiny sft"
    assert finetune.data.params["finetune.lora_r"] == parent.data.params["finetune.lora_r"]
    assert all(name.startswith("finetune.") for name in finetune.data.params)
    curve = pl.read_parquet(micro.paths.folder("finetune") / "curve.parquet")
    points = client.get_metric_history(finetune.info.run_id, "eval_loss")
    assert [point.step for point in points] == curve.filter(pl.col("metric") == "eval_loss")["step"].to_list()
    for name in ("train_loss", "steps", "tokens_per_second"):
        logged = [point.step for point in client.get_metric_history(finetune.info.run_id, name)]
        assert 0 not in logged
        assert logged.count(curve["step"].max()) == 1


def test_the_run_has_a_page_of_its_own_and_a_description_in_mlflow(micro):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    tags = client.get_run(micro.record.mlflow_run_id).data.tags
    page = run_page(micro.root, micro.record).read_text(encoding="utf-8")
    for text in (
        micro.record.name,
        micro.record.started[:10],
        micro.record.commit[:10],
        "Version 1 of tripletune-micro",
    ):
        assert text in page
    assert tags["git.dirty"] == str(micro.record.dirty).lower()
    assert "**Did tuning help?**" in tags["mlflow.note.content"]
    assert f"/runs/{micro.record.mlflow_run_id}/artifacts/report.html" in tags["mlflow.note.content"]
    with tempfile.TemporaryDirectory() as folder:
        logged = Path(client.download_artifacts(micro.record.mlflow_run_id, "report.html", folder))
        assert logged.read_text(encoding="utf-8") == page


def test_the_champion_reloads_from_the_registry_with_the_same_answers(micro, tmp_path):
    from tripletune.rank.predict import rank_examples
    from tripletune.tracking import open_registry
    from tripletune.versions import download_version, find_version

    tracker = open_registry(micro.record.settings().tracking, micro.root)
    version = find_version(tracker, "tripletune-micro")
    assert version is not None
    assert version.fingerprint == micro.record.fingerprints["finetune"]
    folder = download_version(tracker, version, tmp_path / "version").adapter
    examples = pl.read_parquet(sorted((micro.paths.folder("generate") / "test").glob("*.parquet"))).head(4)
    settings = {"tuned": True, "constrained": True, "batch_size": 4}
    ours = rank_examples(examples, micro.paths.folder("finetune"), **settings)
    assert rank_examples(examples, folder, **settings)["text"].to_list() == ours["text"].to_list()


def copy_upstream(micro: MicroRun, root: Path, stages: tuple[str, ...]) -> None:
    for stage in stages:
        source = micro.paths.folder(stage)
        shutil.copytree(source, micro.record.paths(root).folder(stage))


def kill_when(process: subprocess.Popen[bytes], ready: object, patience: float = 120.0) -> None:
    """SIGKILL the process as soon as ``ready()`` is true."""
    assert callable(ready)
    deadline = time.monotonic() + patience
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


UP_TO_RETRIEVE = ("ingest", "split", "knowledge", *RunConfig(dataset="x").specialist_stages, "retrieve")


@pytest.mark.parametrize("after_shards", [1, 4])
def test_generate_killed_and_run_again_gives_the_same_bytes(micro, tmp_path, after_shards):
    copy_upstream(micro, tmp_path, UP_TO_RETRIEVE)
    command = [str(TRIPLETUNE), "generate", "--config", str(micro.config), "--artifacts", str(tmp_path)]
    folder = micro.record.paths(tmp_path).folder("generate")
    work = folder.with_name(f"{folder.name}.work")
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_when(process, lambda: len(list(work.glob("*/shard-*.parquet"))) >= after_shards)
    assert not folder.exists()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert shard_hashes(micro, tmp_path) == shard_hashes(micro)
    assert not [path for path in folder.parent.rglob("*") if ".part" in path.name or path.suffix == ".work"]


def test_finetune_killed_resumes_and_ends_with_the_same_adapter(micro, tmp_path):
    copy_upstream(micro, tmp_path, (*UP_TO_RETRIEVE, "generate"))
    command = [str(TRIPLETUNE), "finetune", "--config", str(micro.config), "--artifacts", str(tmp_path)]
    folder = micro.record.paths(tmp_path).folder("finetune")
    scratch = folder.with_name(f"{folder.name}.work") / "_scratch"
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family: set[psutil.Process] = set()

    def checkpoint_is_there() -> bool:
        family.update(psutil.Process(process.pid).children(recursive=True))
        return any(scratch.rglob("complete.json"))  # sealed: a checkpoint without it is not taken

    kill_when(process, checkpoint_is_there)
    gone, alive = psutil.wait_procs(list(family), timeout=20)
    assert gone
    assert not alive
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert micro.record.paths(tmp_path).manifest("finetune")["facts"]["resumed_from_step"] > 0
    adapters = [paths.manifest("finetune")["files"] for paths in (micro.paths, micro.record.paths(tmp_path))]
    name = "adapter/adapter_model.safetensors"
    assert adapters[0][name]["sha256"] == adapters[1][name]["sha256"]
