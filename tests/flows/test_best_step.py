"""A training whose middle step ranks best: that adapter is published, by one process or two, killed or not."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tests.flows.test_label_training import PRIOR, label_job
from tests.flows.test_trainer import Trained, changed, keep_on_the_cpu, run
from tripletune.finetune.checkpoints import seal
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import _curve, finetune_adapter
from tripletune.residual import fit_weight, mean_loss

ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"
TOO_FAST = 0.1
"""A peak step size at which eight steps get better and then worse: SETTINGS warms up for two."""


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_on_the_cpu(monkeypatch)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    folder = tmp_path_factory.mktemp("best")
    return label_job(folder, valid=30, learning_rate=TOO_FAST, eval_steps=1, keep="best")


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of each checkpoint that a training writes in this process, as the Trainer keeps but two."""

    def copy(checkpoint: Path) -> None:
        seal(checkpoint)
        shutil.copytree(checkpoint, tmp_path / "copies" / checkpoint.name, dirs_exist_ok=True)

    monkeypatch.setattr("tripletune.finetune.training.seal", copy)
    return tmp_path / "copies"


def scores(found: Trained) -> dict[int, tuple[float, float]]:
    """nDCG and minus the loss of each evaluated step."""
    return {
        step: (ndcg, -loss)
        for (step, ndcg), (_, loss) in zip(found.logged("eval_ndcg"), found.logged("eval_loss"), strict=True)
    }


def best_step(found: Trained) -> int:
    return max((step for step in scores(found) if step), key=lambda step: (scores(found)[step], -step))


def untrained_ndcg(job: TrainingJob, *, residual: bool) -> float:
    """Mean of ``1 / log2(rank + 1)`` of the answer, from whole forward passes, one prompt at a time."""
    assert job.evaluation is not None
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    gains = []
    for row in pl.read_parquet(job.evaluation).iter_rows(named=True):
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([list(ids)])).logits[0, -1]
        values = logits[tokenizer.convert_tokens_to_ids(row["candidate_letters"])].double().numpy()
        if residual:
            places = [row["retrieved"].index(film) for film in row["candidates"]]
            values = values - values.mean() + np.array(PRIOR)[places]
        answer = row["candidates"].index(row["answers"][0])
        rank = 1 + int((values > values[answer]).sum())
        gains.append(1 / math.log2(rank + 1) if rank <= 5 else 0.0)
    return float(np.mean(gains))


@pytest.mark.parametrize(("residual", "batch"), [(True, 3), (False, 2)])
def test_the_evaluations_ndcg_is_that_of_the_order_that_is_served(world, tmp_path, capsys, residual, batch):
    settings = {"residual": residual, "per_device_train_batch_size": batch, "num_train_epochs": 0.1, "keep": "last"}
    facts = run(changed(world, tmp_path, settings), capsys).facts
    assert 0 < facts["eval_ndcg_before"] < 1
    assert facts["eval_ndcg_before"] == pytest.approx(untrained_ndcg(world, residual=residual), abs=1e-12)


def test_the_adapter_of_the_best_step_is_weighed_and_published(world, tmp_path, capsys, checkpoints, monkeypatch):
    weighed: list[Any] = []
    monkeypatch.setattr(
        "tripletune.finetune.training.fit_weight", lambda *all_: weighed.append(all_) or fit_weight(*all_)
    )
    found = run(changed(world, tmp_path / "out", {"save_steps": 2, "logging_steps": 1}), capsys)
    best, facts = best_step(found), found.facts
    assert 1 < best <= 5, "not among the two checkpoints that the Trainer keeps"
    assert (facts["best_step"], facts["published_step"], facts["steps"]) == (best, best, 8)
    assert facts["stopped_early"] is False
    assert facts["best_ndcg"] == facts["eval_ndcg"] == scores(found)[best][0]
    assert facts["eval_loss"] == -scores(found)[best][1]
    # the same examples select and evaluate, so weighed logits of this step have its loss
    assert mean_loss(*weighed[0], 1.0) == pytest.approx(facts["eval_loss"], rel=1e-6)
    curve = _curve(found.history).filter(pl.col("metric") == "eval_ndcg")
    assert curve.select("step", "value").rows() == found.logged("eval_ndcg")
    last = run(changed(world, tmp_path / "last", {"save_steps": 1, "logging_steps": 1, "keep": "last"}), capsys)
    assert scores(last) == scores(found)
    published = (found.job.adapter / WEIGHTS).read_bytes()
    assert published == (checkpoints / f"checkpoint-{best}" / WEIGHTS).read_bytes()
    assert (
        (last.job.adapter / WEIGHTS).read_bytes() == (checkpoints / "checkpoint-8" / WEIGHTS).read_bytes() != published
    )


def test_a_training_killed_after_its_best_step_ends_with_the_same_bytes(world, tmp_path, capsys):
    settings = {"save_steps": 2, "patience": 3}
    whole = run(changed(world, tmp_path / "whole", settings), capsys)
    best, stopped = best_step(whole), whole.facts["steps"]
    assert whole.facts["stopped_early"] is True
    assert stopped == best + 3 < 8
    assert whole.facts["tokens"] == whole.facts["tokens_trained"]
    job = changed(world, tmp_path / "killed", settings)
    job.scratch.mkdir(parents=True)
    script = textwrap.dedent(
        f"""
        import os, signal, torch
        from tripletune.finetune import training
        from tripletune.finetune.job import TrainingJob
        from tripletune.finetune.token_files import write_token_files

        def send(kind, payload):
            if payload["step"] == {stopped} and "eval_loss" in payload["metrics"]:
                os.kill(os.getpid(), signal.SIGKILL)

        torch.cuda.is_available, training.send = lambda: False, send
        torch.set_num_threads({torch.get_num_threads()})  # sums have the same last bits
        job = TrainingJob.model_validate_json({job.model_dump_json()!r})
        write_token_files(job)
        training.train(job)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert [file.name for file in job.best.iterdir()] == [f"step-{best}.safetensors"]
    again = run(job, capsys)
    assert best <= again.facts["resumed_from_step"] < stopped
    for path in whole.job.adapter.iterdir():
        assert path.read_bytes() == (job.adapter / path.name).read_bytes(), path.name
    assert _curve(again.history).equals(_curve(whole.history))
    same = (
        "best_step",
        "best_ndcg",
        "best_beats_start",
        "published_step",
        "stopped_early",
        "steps",
        "weight",
        "eval_loss",
    )
    assert {name: again.facts[name] for name in same} == {name: whole.facts[name] for name in same}


@pytest.mark.slow
def test_two_processes_keep_the_step_that_one_keeps_and_stop_where_it_stops(tmp_path):
    write_shards(tmp_path / "shards", train=24, valid=60, test=1, long=False, letters=True)
    facts, weights = [], []
    for config, batch in (("single.yaml", 8), ("cpu-2.yaml", 4)):
        out = tmp_path / config
        out.mkdir()
        changes = {
            "accelerate_config": str(ROOT / "configs" / "accelerate" / config),
            "objective": "listwise",
            "global_batch": 8,
            "per_device_train_batch_size": batch,
            "learning_rate": TOO_FAST,
            "eval_steps": 1,
            "keep": "best",
            "patience": 3,
        }
        settings = LAUNCHED.model_copy(update=changes)
        facts.append(finetune_adapter(tmp_path / "shards", out, settings, LETTERS_CONTRACT, {}, 0))
        weights.append(load_file(out / "adapter" / WEIGHTS))
    one, two = facts
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["stopped_early"] is two["stopped_early"] is True
    for name in ("best_step", "published_step", "steps", "best_beats_start"):
        assert one[name] == two[name], name
    assert one["best_step"] < one["steps"]
    assert two["best_ndcg"] == pytest.approx(one["best_ndcg"], abs=1e-9)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-5)
