"""What one training process computes, reports and leaves behind, against separate references; runs in this process."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.finetune_shards import write_shards
from tripletune.config import FinetuneConfig, TinyLlamaConfig
from tripletune.errors import TrainingError
from tripletune.finetune.checkpoints import is_whole
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.tiny import write_tiny_llama
from tripletune.finetune.token_files import write_token_files
from tripletune.finetune.training import train
from tripletune.processes.messages import receive

TINY = TinyLlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1)
SETTINGS = FinetuneConfig(
    tiny=TINY,
    lora_r=4,
    learning_rate=0.01,
    warmup_ratio=0.25,
    per_device_train_batch_size=3,
    global_batch=6,
    num_train_epochs=4,
    max_length=1024,
    logging_steps=2,
    eval_steps=3,
    save_steps=2,
)
# 12 examples in batches of 2 x 3, four times: 8 steps
STEPS = 8


@dataclass(frozen=True)
class Trained:
    """A finished training: its job, its facts, its history and what it sent."""

    job: TrainingJob
    facts: dict[str, Any]
    history: list[dict[str, Any]]
    logs: list[dict[str, Any]]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.job.adapter / "adapter_model.safetensors")

    def logged(self, name: str) -> list[tuple[int, float]]:
        return [(entry["step"], entry[name]) for entry in self.history if name in entry]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A job with twelve examples to learn from and three to evaluate on; nothing is trained yet."""
    folder = tmp_path_factory.mktemp("world")
    shards = write_shards(folder / "shards", train=12, valid=3, test=1, long=False)
    files = tuple(sorted((shards / "train").glob("*.parquet")))
    pl.read_parquet(shards / "valid" / "*.parquet").write_parquet(folder / "evaluation.parquet")
    write_tiny_llama(files, folder / "base", TINY, seed=1)
    return TrainingJob(
        out=folder,
        train=files,
        evaluation=folder / "evaluation.parquet",
        base=str(folder / "base"),
        hub_revision=None,
        base_name="tiny",
        settings=SETTINGS,
        seed=5,
    )


def keep_on_the_cpu(patch: pytest.MonkeyPatch) -> None:
    """No GPU in sight; and what a driver says of bfloat16 is nothing to a training on the CPU."""
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_on_the_cpu(monkeypatch)


def changed(job: TrainingJob, out: Path, settings: dict[str, Any] | None = None, **changes: Any) -> TrainingJob:
    return job.model_copy(update={"out": out, "settings": job.settings.model_copy(update=settings or {}), **changes})


def run(job: TrainingJob, capsys: pytest.CaptureFixture[str]) -> Trained:
    job.scratch.mkdir(parents=True, exist_ok=True)
    capsys.readouterr()
    write_token_files(job)
    train(job)
    messages = [receive(line) for line in capsys.readouterr().out.splitlines()]
    result = json.loads(job.result.read_text())
    logs = [message for message in messages if message is not None and message["kind"] == "log"]
    return Trained(job, result["facts"], result["history"], logs)


def token_ids(job: TrainingJob, files: tuple[Path, ...]) -> list[tuple[list[int], int]]:
    """Tokens of each whole conversation, and how many of them come before the completion."""
    tokenizer = AutoTokenizer.from_pretrained(job.base)
    rows = []
    for row in pl.concat(pl.read_parquet(file) for file in files).iter_rows(named=True):
        chat = [*row["prompt"], *row["completion"]]
        whole, before = (
            tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=opened, return_dict=True)
            for messages, opened in ((chat, False), (row["prompt"], True))
        )
        assert whole["input_ids"][: len(before["input_ids"])] == before["input_ids"]
        rows.append((list(whole["input_ids"]), len(before["input_ids"])))
    return rows


def untrained_loss(job: TrainingJob) -> float:
    """Mean over all completion tokens of the evaluation examples of ``- log p`` under the base model."""
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32).eval()
    assert job.evaluation is not None
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, num_before in token_ids(job, (job.evaluation,)):
            logits = model(input_ids=torch.tensor([ids])).logits[0, num_before - 1 : -1]
            total += float(cross_entropy(logits, torch.tensor(ids[num_before:]), reduction="sum"))
            count += len(ids) - num_before
    return total / count


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_evaluation_loss_is_a_mean_over_tokens_whatever_the_batch(world, tmp_path, capsys, batch):
    lengths = [len(ids) - before for ids, before in token_ids(world, (world.evaluation,))]
    assert len(set(lengths)) > 1, "with completions of one length all means are the same"
    settings = {"global_batch": 2 * batch, "per_device_train_batch_size": batch, "num_train_epochs": 0.1}
    facts = run(changed(world, tmp_path, settings), capsys).facts
    assert facts["eval_loss_before"] == pytest.approx(untrained_loss(world), rel=1e-6)


@pytest.fixture(scope="module")
def trained(world: TrainingJob, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """An undisturbed training."""
    job = changed(world, tmp_path_factory.mktemp("trained"))
    job.scratch.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        keep_on_the_cpu(patch)
        sent: list[dict[str, Any]] = []
        patch.setattr("tripletune.finetune.training.send", lambda kind, payload: sent.append({"kind": kind, **payload}))
        write_token_files(job)
        train(job)
    result = json.loads(job.result.read_text())
    begun, *logs = sent
    assert begun == {"kind": "begin", "step": 0, "of": STEPS}
    return Trained(job, result["facts"], result["history"], logs)


def test_the_loss_before_training_is_that_of_the_base_model_over_the_completions_alone(trained: Trained) -> None:
    # three examples are one batch, so that the mean is over their tokens
    assert trained.facts["eval_loss_before"] == pytest.approx(untrained_loss(trained.job), rel=1e-5)
    assert trained.logged("eval_loss")[0] == (0, trained.facts["eval_loss_before"])


def test_facts_count_tokens_examples_and_weights(trained: Trained) -> None:
    lengths = [len(ids) for ids, _ in token_ids(trained.job, trained.job.train)]
    # of rank 4 on q, k, v, o, gate, up and down: 4 x (inputs + outputs)
    weights = 4 * (32 + 24 + 24 + 32 + 48 + 48 + 48)
    timed = {"seconds", "tokens_per_second", "peak_memory_gib", "loader_wait_share"}
    got = {name: trained.facts[name] for name in trained.facts.keys() - timed if "loss" not in name}
    assert got == {
        "steps": STEPS,
        "tokens": 4 * sum(lengths),
        "tokens_trained": 4 * sum(lengths),
        "longest_tokens": max(lengths),
        "examples": 12,
        "eval_examples": 3,
        "trainable_parameters": weights,
        "world_size": 1,
        "dtype": "float32",
        "held_share": 1.0,
        "attention": "sdpa",
        "resumed_from_step": 0,
        "published_step": STEPS,
        "stopped_early": False,
        "best_step": STEPS,
        "best_beats_start": True,
    }
    assert sum(tensor.numel() for tensor in trained.weights().values()) == weights
    assert 0 < trained.facts["seconds"] < 600


def test_each_logged_loss_comes_with_speed_and_memory_and_the_facts_sum_them_up(trained: Trained) -> None:
    names = ("tokens_per_second", "tokens_per_second_per_gpu", "peak_memory_gib", "loader_wait_seconds", "cpu_cores")
    for name in names:
        sent = [(message["step"], message["metrics"][name]) for message in trained.logs if name in message["metrics"]]
        assert [step for step, _ in sent] == [2, 4, 6, 8]
        assert all(value > 0 for _, value in sent)
        assert sent == trained.logged(name)
    facts, resident = trained.facts, psutil.Process().memory_info().rss / 2**30
    rates = [rate for _, rate in trained.logged("tokens_per_second")]
    assert min(rates) <= facts["tokens_per_second"] <= max(rates)
    # evaluations, four of them here, take time that is not counted
    assert 0 < facts["tokens_trained"] / facts["tokens_per_second"] < facts["seconds"]
    assert 0.5 * resident < facts["peak_memory_gib"] < 20
    assert 0 < facts["loader_wait_share"] < 0.5
    assert "mfu" not in facts  # no peak is known of a CPU


def test_the_last_losses_are_the_facts_and_training_lowers_them(trained: Trained) -> None:
    assert trained.facts["train_loss"] == trained.logged("loss")[-1][1]
    assert trained.facts["eval_loss"] == trained.logged("eval_loss")[-1][1] < trained.facts["eval_loss_before"]


def test_it_is_evaluated_before_on_the_way_and_once_more_at_the_end(trained: Trained) -> None:
    assert [step for step, _ in trained.logged("eval_loss")] == [0, 3, 6, STEPS]


def test_an_evaluation_in_the_last_step_is_not_repeated(
    world: TrainingJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(changed(world, tmp_path, {"eval_steps": 4, "save_steps": 100}), capsys)
    assert [step for step, _ in found.logged("eval_loss")] == [0, 4, 8]


def test_the_learning_rate_rises_for_a_share_of_the_steps_and_falls_as_a_cosine(trained: Trained) -> None:
    warm = 2  # a quarter of 8 steps
    for step, rate in trained.logged("learning_rate"):
        taken = step - 1  # the learning rate used in the step
        want = taken / warm if taken < warm else (1 + math.cos(math.pi * (taken - warm) / (STEPS - warm))) / 2
        assert rate == pytest.approx(0.01 * want)
    assert [step for step, _ in trained.logged("learning_rate")] == [2, 4, 6, 8]


def test_every_log_is_sent_with_its_step_and_its_numbers(trained: Trained) -> None:
    sent = [(message["step"], message["metrics"]) for message in trained.logs]
    assert [step for step, metrics in sent if "loss" in metrics] == [2, 4, 6, 8]
    assert [step for step, metrics in sent if "eval_loss" in metrics] == [0, 3, 6, 8]
    assert {message["kind"] for message in trained.logs} == {"log"}
    for name in ("loss", "eval_loss", "grad_norm"):
        assert [(step, metrics[name]) for step, metrics in sent if name in metrics] == trained.logged(name)


def test_the_two_newest_checkpoints_stay_and_are_sealed(trained: Trained) -> None:
    folders = sorted(path.name for path in trained.job.checkpoints.glob("checkpoint-*"))
    assert folders == ["checkpoint-6", "checkpoint-8"]
    assert all(is_whole(trained.job.checkpoints / name) for name in folders)


def test_the_adapter_holds_its_settings_and_nothing_of_this_machine(trained: Trained) -> None:
    config = json.loads((trained.job.adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (
        4,
        SETTINGS.lora_alpha,
        SETTINGS.lora_dropout,
    )
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == [
        *(f"model.layers.0.mlp.{name}_proj" for name in ("down", "gate", "up")),
        *(f"model.layers.0.self_attn.{name}_proj" for name in "koqv"),
    ]
    assert sorted(path.name for path in trained.job.adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not (trained.job.scratch / "adapter").exists()


def test_a_training_goes_on_from_its_last_whole_checkpoint_to_the_same_weights(
    world: TrainingJob, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = changed(world, tmp_path)
    shutil.copytree(trained.job.checkpoints, job.checkpoints)
    shutil.rmtree(job.checkpoints / "checkpoint-8")
    (job.out / "adapter").mkdir()  # of an older job
    (job.out / "adapter" / "left.txt").write_text("over")
    resumed = run(job, capsys)
    assert (resumed.facts["resumed_from_step"], resumed.facts["steps"]) == (6, STEPS)
    assert [message["step"] for message in resumed.logs if "loss" in message["metrics"]] == [8]
    ours, theirs = resumed.weights(), trained.weights()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert [step for step, _ in resumed.logged("eval_loss")] == [0, 3, 6, STEPS]
    assert resumed.facts["eval_loss_before"] == trained.facts["eval_loss_before"]
    # steps 7 and 8 are the last of four passes; the batches before them were skipped
    assert resumed.facts["tokens_trained"] == trained.facts["tokens_trained"] / 4
    assert not (job.adapter / "left.txt").exists()


def test_another_seed_gives_another_adapter(
    world: TrainingJob, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run(changed(world, tmp_path, {"num_train_epochs": 1}, seed=6), capsys)
    ours, theirs = other.weights(), trained.weights()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours if "lora_A" in name)


def test_without_examples_to_evaluate_there_is_no_evaluation(
    world: TrainingJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(changed(world, tmp_path, {"num_train_epochs": 1}, evaluation=None), capsys)
    assert found.logged("eval_loss") == []
    assert (found.facts["eval_loss"], found.facts["eval_loss_before"], found.facts["eval_examples"]) == (None, None, 0)
    assert found.facts["train_loss"] > 0


def test_a_training_too_short_to_log_has_no_training_loss(
    world: TrainingJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(
        changed(world, tmp_path, {"num_train_epochs": 1, "logging_steps": 50, "save_steps": 50}, evaluation=None),
        capsys,
    )
    assert found.facts["train_loss"] is None


def test_an_example_of_just_the_greatest_length_is_taken_and_a_longer_one_refused(
    world: TrainingJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = sorted(len(ids) for ids, _ in token_ids(world, world.train))
    least = max(lengths[-1], *(len(ids) for ids, _ in token_ids(world, (world.evaluation,))))
    run(changed(world, tmp_path / "fits", {"num_train_epochs": 0.5, "max_length": least}), capsys)
    limit = lengths[-3]
    num_longer = sum(length > limit for length in lengths)
    message = (
        rf"^{num_longer} of 12 examples are longer than finetune\.max_length = {limit} tokens, the longest, "
        rf"\d+:train:15, has {lengths[-1]}; set finetune.max_length to {lengths[-1]} or more"
    )
    with pytest.raises(TrainingError, match=message):
        write_token_files(changed(world, tmp_path / "long", {"max_length": limit}))
    assert not (tmp_path / "long" / "adapter").exists()


def test_a_greatest_length_beyond_the_models_positions_is_refused(
    world: TrainingJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(world.base, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1023}))
    with pytest.raises(TrainingError, match=r"max_length = 1024 exceeds the 1023 positions of tiny; set it to at most"):
        run(changed(world, tmp_path / "out", base=str(base)), capsys)


def test_code_that_comes_with_a_model_is_not_run(
    world: TrainingJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, trace = tmp_path / "base", tmp_path / "trace"
    shutil.copytree(world.base, base)
    (base / "theirs.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    for file, classes in (
        ("config.json", {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "theirs.Tokenizer"]}),
    ):
        content = json.loads((base / file).read_text())
        (base / file).write_text(json.dumps({**content, "auto_map": classes}))
    found = run(changed(world, tmp_path / "out", {"num_train_epochs": 0.5}, base=str(base), evaluation=None), capsys)
    assert found.facts["steps"] == 1
    assert not trace.exists()
