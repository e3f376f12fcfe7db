"""Real training of a micro model: what comes out, what a kill changes (nothing), what is refused."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import load_file, save_file

from tests.finetune_shards import LETTERS_CONTRACT, PROMPT_CONTRACT, write_shards
from tripletune.config import FinetuneConfig, RankConfig, TinyLlamaConfig
from tripletune.contract import read_contract
from tripletune.errors import ContractError, NonFiniteError, TrainingDiverged, TrainingError
from tripletune.finetune.launch import finetune_adapter
from tripletune.rank.predict import rank_examples, rank_shards
from tripletune.schemas.rank import PREDICTIONS
from tripletune.store.fingerprint import sha256_file
from tripletune.store.paths import SCRATCH

ROOT = Path(__file__).parents[2]
SETTINGS = FinetuneConfig(
    tiny=TinyLlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1
    ),
    accelerate_config=str(ROOT / "configs/accelerate/single.yaml"),
    lora_r=4,
    global_batch=4,
    per_device_train_batch_size=4,
    num_train_epochs=4,
    save_steps=10,
    eval_steps=20,
    timeout_minutes=8,
)
STEPS = 60
LINEAGE = {"generate": "abc"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), train=60, valid=12, test=12, long=False)


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[int]]:
    """An undisturbed run: its folder, its facts and the steps it logged."""
    out = tmp_path_factory.mktemp("undisturbed")
    steps: list[int] = []
    facts = finetune_adapter(
        shards, out, SETTINGS, PROMPT_CONTRACT, LINEAGE, 0, lambda step, metrics: steps.append(step)
    )
    return out, facts, steps


def published(out: Path) -> dict[str, str]:
    """SHA-256 of every file of the output."""
    files = (path for path in out.rglob("*") if path.is_file() and SCRATCH not in path.parts)
    return {path.relative_to(out).as_posix(): sha256_file(path) for path in files}


def test_training_publishes_adapter_contract_curve_and_base(trained: tuple[Path, dict[str, Any], list[int]]) -> None:
    out, facts, logged = trained
    files = {"adapter", "base", "contract.json", "curve.parquet", "trained_examples.parquet", SCRATCH}
    assert {path.name for path in out.iterdir()} == files
    assert facts["steps"] == STEPS
    assert facts["world_size"] == 1
    assert facts["resumed_from_step"] == 0
    assert facts["eval_loss"] < facts["eval_loss_before"]
    curve = pl.read_parquet(out / "curve.parquet")
    assert curve.filter(pl.col("metric") == "loss")["step"].to_list() == list(range(5, STEPS + 1, 5))
    assert curve.filter(pl.col("metric") == "eval_loss")["step"].to_list() == [0, 20, 40, 60]
    assert {5, 30, STEPS} <= set(logged)
    contract = read_contract(out)
    assert contract.base_model == "tiny"
    assert contract.lineage == LINEAGE


def test_the_adapters_files_name_no_path_of_this_machine(trained: tuple[Path, dict[str, Any], list[int]]) -> None:
    out, _, _ = trained
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert {path.name for path in (out / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not any(str(out).encode() in path.read_bytes() for path in out.glob("*/*") if SCRATCH not in path.parts)


@pytest.mark.slow  # test_run.py kills one by the command line
@pytest.mark.parametrize("objective", ["sft", "listwise"])
def test_a_training_killed_three_times_ends_with_the_bytes_and_the_curve_of_an_undisturbed_one(
    tmp_path: Path, objective: str
) -> None:
    shards = write_shards(tmp_path / "shards", train=60, valid=12, test=12, long=False, letters=True)
    settings = SETTINGS.model_copy(update={"objective": objective})
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    finetune_adapter(shards, undisturbed, settings, LETTERS_CONTRACT, LINEAGE, 0, None)
    for step in (15, 30, 45):
        script = textwrap.dedent(
            f"""
            import os, signal
            from pathlib import Path
            from tripletune.config import FinetuneConfig
            from tripletune.finetune.launch import finetune_adapter

            def on_log(step, metrics):
                if step >= {step}:
                    os.kill(os.getpid(), signal.SIGKILL)

            settings = FinetuneConfig.model_validate_json({settings.model_dump_json()!r})
            finetune_adapter(Path({str(shards)!r}), Path({str(killed)!r}), settings, {LETTERS_CONTRACT!r}, {LINEAGE!r},
                             0, on_log)
            """
        )
        dead = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert dead.returncode == -signal.SIGKILL, dead.stderr
        assert not (killed / "adapter").exists()

    facts = finetune_adapter(shards, killed, settings, LETTERS_CONTRACT, LINEAGE, 0, None)

    assert 40 <= facts["resumed_from_step"] < STEPS
    assert facts["steps"] == STEPS
    ours, theirs = (pl.read_parquet(out / "curve.parquet") for out in (killed, undisturbed))
    assert ours.equals(theirs)
    assert published(killed) == published(undisturbed)


def test_a_finished_training_is_not_repeated(shards: Path, trained: tuple[Path, dict[str, Any], list[int]]) -> None:
    out, facts, _ = trained
    before = published(out)
    patient = SETTINGS.model_copy(update={"timeout_minutes": 5})  # the time limit is no part of the result
    assert finetune_adapter(shards, out, patient, PROMPT_CONTRACT, LINEAGE, 0, None) == facts
    assert published(out) == before


def test_an_example_that_does_not_fit_is_refused_and_never_cut(shards: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"max_length": 100})
    with pytest.raises(TrainingError, match=r"examples are longer than finetune\.max_length = 100") as caught:
        finetune_adapter(shards, tmp_path, settings, PROMPT_CONTRACT, LINEAGE, 0, None)
    assert "\n" not in str(caught.value)
    assert ":train:15, has" in str(caught.value)


def test_settings_of_the_trainer_reach_it(shards: Path, tmp_path: Path) -> None:
    trainer = {"lr_scheduler_type": "constant", "logging_first_step": True}
    settings = SETTINGS.model_copy(update={"trainer": trainer, "num_train_epochs": 0.7})
    finetune_adapter(shards, tmp_path, settings, PROMPT_CONTRACT, LINEAGE, 0, None)
    rates = pl.read_parquet(tmp_path / "curve.parquet").filter(pl.col("metric") == "learning_rate")
    assert rates["step"].to_list() == [1, 5, 10]
    assert rates["value"].to_list() == [SETTINGS.learning_rate] * 3


def test_a_tracking_server_that_fails_never_ends_a_training(
    shards: Path, trained: tuple[Path, dict[str, Any], list[int]], tmp_path: Path
) -> None:
    """Down for the first calls and again later; what it missed follows, and the adapter is the same."""
    calls, steps = 0, []

    def on_log(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal calls
        calls += 1
        if calls <= 3 or calls == 8:
            raise OSError("no connection")
        steps.append(step)

    finetune_adapter(shards, tmp_path, SETTINGS, PROMPT_CONTRACT, LINEAGE, 0, on_log)
    assert steps == trained[2]
    assert published(tmp_path) == published(trained[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e6, "num_train_epochs": 1}, r"the loss is nan at step 5; lower finetune\.learning_rate"),
        # one step, whose loss is measured before the weights overflow
        ({"learning_rate": 1e300, "num_train_epochs": 0.01}, r"the (evaluation loss|weight \S+) is .*step 1; lower"),
    ],
)
def test_a_training_that_diverges_stops_and_publishes_nothing(
    shards: Path, tmp_path: Path, changes: dict[str, float], message: str
) -> None:
    settings = SETTINGS.model_copy(update={"warmup_ratio": 0.0, **changes})
    with pytest.raises(TrainingDiverged, match=message) as caught:
        finetune_adapter(shards, tmp_path, settings, PROMPT_CONTRACT, LINEAGE, 0, None)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("adapter")) + list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_ranking_refuses_an_adapter_with_a_weight_that_is_not_finite(
    shards: Path, trained: tuple[Path, dict[str, Any], list[int]], tmp_path: Path, value: float
) -> None:
    broken = shutil.copytree(trained[0], tmp_path / "broken")
    weights = load_file(broken / "adapter" / "adapter_model.safetensors")
    name = sorted(weights)[-1]
    weights[name][0, 0] = value
    save_file(weights, broken / "adapter" / "adapter_model.safetensors")
    with pytest.raises(NonFiniteError, match=rf"the weight {name} is NaN or infinite.*lower finetune\.learning_rate"):
        rank_shards(shards, broken, tmp_path / "rank", RankConfig(), PROMPT_CONTRACT, 0)
    assert not (tmp_path / "rank" / "predictions.parquet").exists()


def test_every_system_answers_and_constrained_answers_are_valid(
    shards: Path, trained: tuple[Path, dict[str, Any], list[int]], tmp_path: Path
) -> None:
    settings = RankConfig(batch_size=5, max_viewers=8, unconstrained_viewers=3)
    facts = rank_shards(shards, trained[0], tmp_path, settings, PROMPT_CONTRACT, 0)
    rows = pl.read_parquet(tmp_path / "predictions.parquet")
    assert rows.schema == PREDICTIONS
    counts = rows.group_by("purpose", "system", "constrained").len().rows()
    assert sorted(counts) == [
        ("test", "random", True, 8),
        ("test", "retriever", True, 8),
        ("test", "tuned", False, 3),
        ("test", "tuned", True, 8),
        ("test", "untuned", False, 3),
        ("test", "untuned", True, 8),
        ("valid", "random", True, 8),
        ("valid", "retriever", True, 8),
        ("valid", "tuned", True, 8),
        ("valid", "untuned", True, 8),
    ]
    constrained = rows.filter("constrained")
    assert constrained["valid"].all()
    named = pl.when(pl.col("system").is_in(["random", "retriever"])).then(20).otherwise(5)
    assert constrained.filter(pl.col("answers").list.n_unique() != named).is_empty()
    assert rows["scores"].null_count() == len(rows), "titles are written, not scored"
    examples = pl.read_parquet(shards / "test" / "*.parquet").select("user_id", "purpose", "candidates", "retrieved")
    joined = rows.join(examples, on=["user_id", "purpose"])
    assert (joined["answers"].list.set_difference(joined["candidates"]).list.len() == 0).all()
    retriever = joined.filter(pl.col("system") == "retriever")
    assert (retriever["answers"] == retriever["retrieved"]).all()
    assert facts["valid_share"]["test-tuned-constrained"] == 1.0


def test_ranking_goes_on_from_the_pieces_a_killed_run_finished(
    shards: Path, trained: tuple[Path, dict[str, Any], list[int]], tmp_path: Path
) -> None:
    settings = RankConfig(batch_size=5, max_viewers=4, unconstrained_viewers=2)
    rank_shards(shards, trained[0], tmp_path, settings, PROMPT_CONTRACT, 0)
    before = sha256_file(tmp_path / "predictions.parquet")
    (tmp_path / SCRATCH / "pieces" / "test-tuned-constrained-00000.parquet").unlink()
    facts = rank_shards(shards, trained[0], tmp_path, settings, PROMPT_CONTRACT, 0)
    assert sha256_file(tmp_path / "predictions.parquet") == before
    assert facts["tokens"] > 0


def test_the_adapter_changes_answers_and_rank_examples_agrees_with_rank_shards(
    shards: Path, trained: tuple[Path, dict[str, Any], list[int]], tmp_path: Path
) -> None:
    rank_shards(shards, trained[0], tmp_path, RankConfig(), PROMPT_CONTRACT, 0)
    rows = pl.read_parquet(tmp_path / "predictions.parquet").filter(pl.col("purpose") == "test", "constrained")
    examples = pl.read_parquet(shards / "test" / "*.parquet").sort("user_id")
    alone = rank_examples(examples, trained[0], tuned=True, constrained=True, batch_size=1)
    tuned, untuned = (rows.filter(pl.col("system") == system)["text"].to_list() for system in ("tuned", "untuned"))
    assert alone["text"].to_list() == tuned
    assert tuned != untuned


def test_ranking_refuses_prompts_of_another_template(
    shards: Path, trained: tuple[Path, dict[str, Any], list[int]], tmp_path: Path
) -> None:
    with pytest.raises(ContractError, match="template"):
        rank_shards(shards, trained[0], tmp_path, RankConfig(), {**PROMPT_CONTRACT, "template": "other"}, 0)
