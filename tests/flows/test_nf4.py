"""A base model in 4 bits (NF4): it trains, goes on after a kill, and ranks as the trainer's own model does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_export import run_code, write_record
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tests.flows.test_trainer import keep_on_the_cpu
from tripletune.chat import load_tokenizer
from tripletune.contract import locate_base, read_contract
from tripletune.export.export import export_run
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.token_files import write_token_files
from tripletune.finetune.training import train
from tripletune.next_token import next_token_logits
from tripletune.rank.merge import load_base, merge_adapter
from tripletune.rank.predict import rank_examples
from tripletune.store.paths import SCRATCH

pytest.importorskip("bitsandbytes")

SETTINGS = LAUNCHED.model_copy(
    update={
        "quantization": "nf4",
        "objective": "listwise",
        "per_device_train_batch_size": 8,
        "global_batch": 8,
        "learning_rate": 0.02,
        "save_steps": 5,
        "logging_steps": 5,
        "timeout_minutes": 8,
    }
)
STEPS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(tmp_path_factory.mktemp("nf4"), train=24, valid=9, test=6, long=False, letters=True, files=1)


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("adapter")
    return out, finetune_adapter(shards, out, SETTINGS, LETTERS_CONTRACT, {}, 0)


@pytest.fixture(scope="module")
def examples(shards: Path) -> pl.DataFrame:
    return pl.read_parquet(shards / "test" / "*.parquet")


def in_four_bits(out: Path) -> Any:
    """The base model as bitsandbytes quantises it, by transformers alone."""
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(out / "base", quantization_config=settings, dtype=torch.float32)


def next_logits(model: Any, out: Path, examples: pl.DataFrame) -> torch.Tensor:
    """Logits after each prompt, of the whole vocabulary; shape (E, V). The model trains, so that no inference kernel
    of bitsandbytes' takes its place."""
    tokenizer = load_tokenizer(str(out / "base"), None)
    found = []
    for prompt in examples["prompt"].to_list():
        ids = torch.tensor([tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)])
        with torch.no_grad():
            found.append(next_token_logits(model.train(), ids, torch.tensor([ids.shape[1] - 1])))
    return torch.cat(found)


def test_training_learns_and_the_contract_says_what_on(trained: tuple[Path, dict[str, Any]]) -> None:
    out, facts = trained
    assert facts["steps"] == STEPS
    assert facts["eval_loss"] < facts["eval_loss_before"]
    assert read_contract(out).quantization == "nf4"
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}  # TRL alone would round them
    assert any((weight != weight.bfloat16().float()).any() for weight in weights.values())


def test_a_killed_training_goes_on_to_the_same_weights(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_on_the_cpu(monkeypatch)
    job = TrainingJob.model_validate_json((trained[0] / SCRATCH / "job.json").read_bytes())
    resumed = job.model_copy(update={"out": tmp_path})
    shutil.copytree(job.checkpoints, resumed.checkpoints)
    shutil.rmtree(resumed.checkpoints / f"checkpoint-{STEPS}")
    write_token_files(resumed)
    train(resumed)
    assert json.loads(resumed.result.read_text())["facts"]["resumed_from_step"] == 10
    ours, theirs = ((one.adapter / "adapter_model.safetensors").read_bytes() for one in (resumed, job))
    assert ours == theirs


def test_ranking_has_the_logits_of_the_adapter_on_the_quantised_base(
    trained: tuple[Path, dict[str, Any]], examples: pl.DataFrame
) -> None:
    out, _ = trained
    contract = read_contract(out)
    merged = merge_adapter(load_base(locate_base(out, contract), contract), out / "adapter")
    assert not any("4bit" in type(module).__name__ for module in merged.modules())
    unmerged = PeftModel.from_pretrained(in_four_bits(out), str(out / "adapter"))
    wanted = next_logits(unmerged, out, examples)
    # float32 sums of the same numbers in another order
    torch.testing.assert_close(next_logits(merged, out, examples), wanted, rtol=1e-4, atol=1e-4)
    full = AutoModelForCausalLM.from_pretrained(out / "base", dtype=torch.float32)
    on_original = merge_adapter(full, out / "adapter")
    assert (next_logits(on_original, out, examples) - wanted).abs().max() > 0.1  # what rounding to 4 bits changes


def test_ranking_has_the_loss_that_the_trainer_measured(trained: tuple[Path, dict[str, Any]], shards: Path) -> None:
    out, facts = trained
    job = TrainingJob.model_validate_json((out / SCRATCH / "job.json").read_bytes())
    assert job.select is not None
    chosen = pl.read_parquet(job.select)["example_id"]
    rows = pl.read_parquet(shards / "valid" / "*.parquet").filter(pl.col("example_id").is_in(chosen.implode()))
    answered = rank_examples(rows, out, tuned=True, constrained=True, batch_size=3)
    losses = []
    for row, answer in zip(answered.iter_rows(named=True), rows["answers"].to_list(), strict=True):
        scores = np.array(row["scores"])
        losses.append(np.logaddexp.reduce(scores) - scores[row["answers"].index(answer[0])])
    assert np.mean(losses) == pytest.approx(facts["select_loss"], abs=1e-4)


def test_a_merged_model_is_written_as_a_plain_one(
    trained: tuple[Path, dict[str, Any]], examples: pl.DataFrame, tmp_path: Path
) -> None:
    out, _ = trained
    contract = read_contract(out)
    merged = merge_adapter(load_base(locate_base(out, contract), contract), out / "adapter")
    merged.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    read = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(next_logits(read, out, examples), next_logits(merged, out, examples))


def test_an_evaluation_leaves_the_weights_as_they_are(trained: tuple[Path, dict[str, Any]]) -> None:
    """On processors that compute in bfloat16 bitsandbytes would pack them anew, with scales rounded to it."""
    from tripletune.quantization import load_causal_lm

    model = load_causal_lm(str(trained[0] / "base"), None, "float32", "nf4")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = model.train()(input_ids=ids).logits
        model.eval()(input_ids=ids)
        after = model.train()(input_ids=ids).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_an_export_has_the_logits_that_are_ranked_by(
    trained: tuple[Path, dict[str, Any]], examples: pl.DataFrame, tmp_path: Path, form: str
) -> None:
    """With the code of its model card, which loads an adapter's base in 4 bits."""
    out, _ = trained
    record = write_record(tmp_path, "nf4-1")

    def copied(work: Path) -> dict[str, Any]:
        shutil.copytree(out, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns(SCRATCH))
        return {}

    record.paths(tmp_path).build("finetune", copied)
    exported = export_run(record, tmp_path, tmp_path / "out", form, text_only=True).folder
    names = run_code(exported / "README.md")
    in_four_bits = any("4bit" in type(module).__name__ for module in names["model"].modules())
    assert in_four_bits == (form == "adapter")
    contract = read_contract(out)
    merged = merge_adapter(load_base(locate_base(out, contract), contract), out / "adapter")
    # float32 sums of the same numbers in another order
    wanted = next_logits(merged, out, examples)
    torch.testing.assert_close(next_logits(names["model"], out, examples), wanted, rtol=1e-4, atol=1e-4)
