"""A training that starts from an earlier adapter: in this process, and killed and repeated by the stage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tests.flows.test_finetune import published
from tests.flows.test_label_training import label_job
from tests.flows.test_trainer import Trained, changed, keep_on_the_cpu, run
from tripletune.behaviour.embedding import PROJECTOR, attach_films
from tripletune.errors import ConfigError, TrainingError
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.start import load_start
from tripletune.finetune.token_files import write_token_files
from tripletune.finetune.training import train
from tripletune.finetune.warm import Champion
from tripletune.schemas.finetune import TRAINED_EXAMPLES_NAME
from tripletune.store.paths import RunPaths


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_on_the_cpu(monkeypatch)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training from the base model."""
    world = label_job(tmp_path_factory.mktemp("world"), valid=4)
    job = changed(world, tmp_path_factory.mktemp("fresh"))
    job.scratch.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        keep_on_the_cpu(patch)
        write_token_files(job)
        train(job)
    result = json.loads(job.result.read_text())
    return Trained(job, result["facts"], result["history"], [])


def warm_job(fresh: Trained, out: Path) -> TrainingJob:
    """From the fresh adapter, on half of the examples."""
    return changed(fresh.job, out, start=fresh.job.adapter, train=fresh.job.train[:1])


def test_it_starts_from_the_earlier_weights_with_a_schedule_of_its_own_and_resumes_to_the_same(
    fresh: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warm = run(warm_job(fresh, tmp_path / "warm"), capsys)
    assert fresh.facts["eval_loss"] < fresh.facts["eval_loss_before"]
    assert warm.facts["eval_loss_before"] == pytest.approx(fresh.facts["eval_loss"], rel=1e-6)
    assert warm.facts["steps"] == 4  # 6 examples, 6 a step, 4 epochs
    assert any(not torch.equal(warm.weights()[name], weight) for name, weight in fresh.weights().items())
    rates = [rate for _, rate in warm.logged("learning_rate")]
    assert rates[0] > rates[-1]

    job = warm_job(fresh, tmp_path / "resumed")
    shutil.copytree(warm.job.checkpoints, job.checkpoints)
    shutil.rmtree(job.checkpoints / "checkpoint-4")
    resumed = run(job, capsys)
    assert resumed.facts["resumed_from_step"] == 2
    assert all(torch.equal(resumed.weights()[name], weight) for name, weight in warm.weights().items())


def peft_model(base: str, seed: int, rank: int = 4) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    vectors_RD = torch.nn.functional.normalize(torch.randn(9, 6), dim=1)
    attach_films(model, vectors_RD, seed)
    config = LoraConfig(r=rank, target_modules="all-linear", modules_to_save=[PROJECTOR], task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def test_the_projector_of_behaviour_tokens_comes_with_the_matrices_and_nothing_is_left_out(
    fresh: Trained, tmp_path: Path
) -> None:
    trained, started = peft_model(fresh.job.base, 1), peft_model(fresh.job.base, 2)
    for weight in trained.parameters():
        if weight.requires_grad:
            weight.data += 0.1
    trained.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    load_start(started, tmp_path / "adapter")
    theirs = dict(trained.named_parameters())
    learned = [name for name, weight in started.named_parameters() if weight.requires_grad]
    assert any(PROJECTOR in name for name in learned)
    assert all(torch.equal(started.get_parameter(name), theirs[name]) for name in learned)

    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    lost = next(name for name in weights if "lora_B" in name)
    kept = {name: weight for name, weight in weights.items() if name != lost}
    save_file(kept, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(TrainingError, match=r"other weights than this training, first .*lora_B.*; set finetune\.start"):
        load_start(started, tmp_path / "adapter")


LABELS = LAUNCHED.model_copy(update={"objective": "listwise", "num_train_epochs": 2.0, "save_steps": 5})


def build(root: Path, name: str, shards: Path, champion: Champion | None = None) -> Path:
    """A published output of the stage, under a fingerprint of this name."""
    paths = RunPaths(root=root, dataset="toy", fingerprints={"finetune": name})
    return paths.build(
        "finetune", lambda work: finetune_adapter(shards, work, LABELS, LETTERS_CONTRACT, {}, 0, champion=champion)
    )


def contents(out: Path) -> dict[str, str]:
    """SHA-256 of every file but the manifest, which has times."""
    return {name: digest for name, digest in published(out).items() if name != "manifest.json"}


@pytest.mark.slow
def test_a_warm_training_reads_new_examples_alone_and_repeats_to_the_byte_also_after_a_kill(tmp_path: Path) -> None:
    before, after = (
        write_shards(tmp_path / f"shards-{number}", train=number, valid=12, test=1, long=False, letters=True)
        for number in (40, 64)
    )
    first = build(tmp_path, "a", before)
    champion = Champion(first, "a", "r1", since=1)
    second = build(tmp_path, "b", after, champion)
    facts = json.loads((second / "manifest.json").read_text())["facts"]
    assert (facts["examples_new"], facts["examples_known"], facts["examples"]) == (24, 40, 24)
    assert facts["ancestors"] == [{"fingerprint": "a", "run": "r1"}]
    seen = pl.read_parquet(second / TRAINED_EXAMPLES_NAME)
    assert seen.filter(pl.col("generation") == 1)["user_id"].to_list() == list(range(41, 65))
    wanted = contents(second)
    assert contents(build(tmp_path, "again", after, champion)) == wanted

    out = tmp_path / "killed"
    out.mkdir()
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from tripletune.config import FinetuneConfig
        from tripletune.finetune.launch import finetune_adapter
        from tripletune.finetune.warm import Champion

        def on_log(step, metrics):
            if step >= 10:
                os.kill(os.getpid(), signal.SIGKILL)

        settings = FinetuneConfig.model_validate_json({LABELS.model_dump_json()!r})
        champion = Champion(Path({str(first)!r}), "a", "r1", since=1)
        finetune_adapter(Path({str(after)!r}), Path({str(out)!r}), settings, {LETTERS_CONTRACT!r}, {{}}, 0, on_log,
                         champion=champion)
        """
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert finetune_adapter(after, out, LABELS, LETTERS_CONTRACT, {}, 0, champion=champion)["resumed_from_step"] >= 5
    assert contents(out) == wanted

    # the same shards once more: nothing is trained, and the chain does not grow
    third = build(tmp_path, "c", after, Champion(second, "b", "r2", since=2))
    assert contents(third) == wanted
    assert json.loads((third / "manifest.json").read_text())["facts"]["same_as"] == "b"


@pytest.mark.slow
def test_a_champion_on_another_base_model_is_refused_before_training(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", train=8, valid=0, test=1, long=False, letters=True)
    first = build(tmp_path, "a", shards)
    more = write_shards(tmp_path / "more", train=9, valid=0, test=1, long=False, letters=True)
    shutil.copytree(first / "base", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.lm_head.weight.data += 1
    model.save_pretrained(tmp_path / "base")
    settings = LABELS.model_copy(update={"model": str(tmp_path / "base")})
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match=r"base model .* has another weights or config .*or set finetune\.start"):
        finetune_adapter(
            more, tmp_path / "out", settings, LETTERS_CONTRACT, {}, 0, champion=Champion(first, "a", "r1", since=1)
        )
