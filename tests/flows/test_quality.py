"""The quality stage of a real run: its figures in MLflow, and a run whose shards moved too far."""

from __future__ import annotations

import json
import shutil

import polars as pl
import pytest
from mlflow import MlflowClient

from tests.flows.conftest import MicroRun
from tripletune.cli.main import main
from tripletune.errors import DriftError
from tripletune.pipeline.stages import run_quality
from tripletune.store.paths import RunPaths
from tripletune.store.runs import read_run
from tripletune.tracking import recorded_run, stage_run

ANOTHER = "e" * 32


def logged(micro: MicroRun, run_id: str) -> tuple[dict[str, float], set[str]]:
    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    files = {file.path for file in client.list_artifacts(run_id)}
    return dict(client.get_run(run_id).data.metrics), files


def test_the_run_has_its_page_and_figures_in_mlflow(micro):
    metrics, files = logged(micro, micro.record.mlflow_run_id)
    assert {"quality.html", "quality.json"} <= files
    test = pl.read_parquet(sorted((micro.paths.folder("generate") / "test").glob("*.parquet")))
    retrieved = test.select(pl.col("candidates").list.contains(pl.col("answers").list.first()).mean()).item()
    assert metrics["share_answers_retrieved"] == pytest.approx(retrieved, abs=1e-5)
    assert 0 <= metrics["answer_position_p_value"] <= 1
    assert metrics["examples_with_text_flaws"] == metrics["repeated_prompts"] == 0
    folder = micro.root / "micro" / "quality" / micro.record.name
    figures = json.loads((folder / "quality.json").read_text())
    assert figures["shards"] == micro.record.fingerprints["generate"]
    assert figures["examples"] == sum(micro.paths.manifest("generate")["facts"]["examples"].values())


def test_a_night_that_moved_too_far_fails_with_its_page_logged_and_its_shards_published(micro):
    """The same run with one like left in every prompt, as a broken feed would leave."""
    paths = micro.paths
    tonight = RunPaths(root=paths.root, dataset=paths.dataset, fingerprints={**paths.fingerprints, "generate": ANOTHER})

    def make(work):
        shutil.copytree(paths.folder("generate"), work, dirs_exist_ok=True)
        for shard in work.glob("*/shard-*.parquet"):
            examples = pl.read_parquet(shard)
            examples.with_columns(pl.col("liked").list.head(1)).write_parquet(shard)
        return {}

    folder = tonight.build("generate", make)
    settings = micro.record.settings()
    quality = settings.quality.model_copy(update={"max_ks": 0.3, "min_examples": 10})
    config = settings.model_copy(update={"quality": quality})
    try:
        with (
            pytest.raises(DriftError, match=r"ks_liked = .* is above quality\.max_ks = 0\.3.*quality\.html"),
            recorded_run(config, tonight, {}) as (name, tracker),
            stage_run(tracker, "quality", {}) as child,
        ):
            run_quality(tonight, config, run=name, child=child)
        record = read_run(micro.root, name)
        assert record.status == "failed"
        assert record.error.startswith("ks_liked = ")
        metrics, files = logged(micro, record.mlflow_run_id)
        assert metrics["ks_liked"] > 0.3
        assert "quality.html" in files
        assert tonight.is_done("generate")
    finally:
        shutil.rmtree(folder)


def test_the_command_shows_what_a_run_measured_and_records_nothing(micro, capsys):
    before = sorted((micro.root / "runs").iterdir())
    assert main(["quality", micro.record.name, "--artifacts", str(micro.root)]) == 0
    said = capsys.readouterr().out
    page = micro.root / "micro" / "quality" / micro.record.name / "quality.html"
    assert said.splitlines()[-1] == f"page: {page}"
    assert "drift: not measured: there is no other completed run" in said
    assert sorted((micro.root / "runs").iterdir()) == before
