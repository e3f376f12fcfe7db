"""``tripletune estimate``: what it says, what it refuses, and where its numbers come from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.finetune_shards import write_shards
from tripletune.cli.app import CHECKOUT
from tripletune.cli.main import main
from tripletune.config import FinetuneConfig, RunConfig
from tripletune.errors import ConfigError, InputError, TrainingError
from tripletune.estimate.cards import find_card
from tripletune.estimate.machine import Machine, Rates, gpu_machine, measure_rates
from tripletune.estimate.memory import GIB
from tripletune.estimate.model_size import ModelSize, Work, size_of
from tripletune.estimate.models import KNOWN, find_config
from tripletune.estimate.plan import count_steps, cpu_seconds, estimate
from tripletune.estimate.tokens import Tokens, assume_tokens, read_tokens

HUB = {"model": "meta-llama/Llama-3.1-8B-Instruct", "revision": "0" * 40}
TOKENS = Tokens(examples=1000, mean=800.0, longest=1000, predicted=60.0, valid=100, assumptions=())


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def eight() -> ModelSize:
    return size_of(find_config(FinetuneConfig(**HUB)))


def preset(tmp_path: Path, **finetune: object) -> Path:
    lines = [f"{name} = {json.dumps(value)}" for name, value in finetune.items()]
    path = tmp_path / "preset.toml"
    path.write_text('dataset = "x"\n[finetune]\n' + "\n".join(lines) + "\n")
    return path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main(["estimate", *map(str, arguments)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_gpu_training_is_described_before_there_are_shards(tmp_path, capsys):
    config = preset(tmp_path, **HUB, max_length=2048, per_device_train_batch_size=2, gradient_checkpointing=True)
    where = ("--config", config, "--artifacts", tmp_path / "none")
    code, out, _ = call(capsys, *where, "--gpu", "h100-80gb", "--gpus", 2, "--examples", 64_000)
    assert code == 0
    for part in (
        "8,030,261,248",
        "41,943,040 trained",
        "2 x H100-80GB",
        "64,000 of 2,048 tokens",
        "finetune.max_length",
    ):
        assert part in out
    code, out, _ = call(capsys, *where, "--gpu", "h100-80gb", "--gpus", 2, "--examples", 64_000, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["training"]["steps"] == 3 * 8_000  # of eight examples
    assert found["memory_gib_per_rank"]["weights"] == pytest.approx(8_030_261_248 * 2 / GIB, abs=1e-3)
    assert found["memory_gib_per_rank"]["adapter"] == pytest.approx(41_943_040 * 16 / GIB, abs=1e-3)
    parts = {name: value for name, value in found["memory_gib_per_rank"].items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(found["memory_gib_per_rank"]["total"], abs=0.01)
    assert any("40%" in said for said in found["assumptions"])


def test_hours_are_flops_over_the_peak_times_its_share():
    settings = FinetuneConfig(**HUB, num_train_epochs=2, per_device_train_batch_size=1)
    machine = gpu_machine(find_card("H100-80GB"), 4)
    found = estimate(settings, eight(), TOKENS, machine, mfu=0.4, rates=None)
    flops = 2 * eight().training_flops(Work.of(1000, 800, 60), settings.lora_r)
    assert found.model_flops == pytest.approx(flops)
    assert found.training_seconds == pytest.approx(flops / (0.4 * 989e12 * 4))
    slower = settings.model_copy(update={"gradient_checkpointing": True})
    recomputed = estimate(slower, eight(), TOKENS, machine, mfu=0.4, rates=None)
    assert recomputed.model_flops == found.model_flops
    assert 1.4 < recomputed.training_seconds / found.training_seconds < 1.6  # three forward passes in place of two
    assert recomputed.memory.total < found.memory.total


@pytest.mark.parametrize(
    ("examples", "expected"),
    # ceil(examples / 8) steps in an epoch, 1.5 epochs; evaluated before, every 10 and at the end
    [(100, (20, 3)), (96, (18, 3)), (3, (2, 2))],
)
def test_steps_and_evaluations(examples, expected):
    settings = FinetuneConfig(per_device_train_batch_size=2, global_batch=8, num_train_epochs=1.5, eval_steps=10)
    assert count_steps(settings, examples) == expected


def test_what_cannot_fit_ends_in_one_line_with_settings_that_do(tmp_path, capsys):
    config = preset(tmp_path, **HUB, max_length=3000, per_device_train_batch_size=4)
    where = ("--config", config, "--artifacts", tmp_path / "none")
    code, out, err = call(capsys, *where, "--gpu", "A100-40GB", "--gpus", 1)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "A100-40GB has 39.4 GiB for it; set finetune.per_device_train_batch_size = " in err
    assert ", or finetune.gradient_checkpointing = true" in err
    # each of the two does fit
    batch = int(err.split("per_device_train_batch_size = ")[1].split()[0])
    for change in ({"per_device_train_batch_size": batch}, {"gradient_checkpointing": True}):
        settings = {**HUB, "max_length": 3000, "per_device_train_batch_size": 4, **change}
        code, _, err = call(capsys, "--config", preset(tmp_path, **settings), *where[2:], "--gpu", "A100-40GB")
        assert (code, err) == (0, "")
    settings["per_device_train_batch_size"] = 2 * batch
    settings["gradient_checkpointing"] = False
    assert call(capsys, "--config", preset(tmp_path, **settings), *where[2:], "--gpu", "A100-40GB")[0] == 2


def test_weights_that_no_setting_makes_fit_name_cards_that_hold_them(tmp_path, capsys):
    where = ("--config", preset(tmp_path, **HUB, max_length=512), "--artifacts", tmp_path / "none")
    code, _, err = call(capsys, *where, "--gpu", "T4")
    assert code == 2
    assert "and quantization = 'nf4' (" in err  # in 4 bits alone
    seventy = ("--config", preset(tmp_path, **HUB | {"model": "meta-llama/Llama-3.1-70B"}, max_length=512))
    code, _, err = call(capsys, *seventy, *where[2:], "--gpu", "T4")
    assert code == 2
    assert "even the smallest batch with gradient checkpointing and weights in NF4 needs" in err
    assert "use H200, " in err
    assert "T4," not in err.split("use ")[1]
    assert "or share the weights: configs/accelerate/fsdp.yaml" in err
    huge = FinetuneConfig(model="meta-llama/Llama-3.1-70B", revision="0" * 40)
    longer = replace(TOKENS, longest=400_000)
    with pytest.raises(TrainingError, match="no known card holds it"):
        estimate(huge, size_of(find_config(huge)), longer, gpu_machine(find_card("H100"), 8), mfu=0.4, rates=None)


def test_on_a_cpu_the_advice_is_about_processes():
    machine = Machine("CPU, 2 cores", "cpu", 2, 0.1 * GIB, "float32")
    tiny = FinetuneConfig(per_device_train_batch_size=1, gradient_checkpointing=True)
    with pytest.raises(TrainingError, match=r"use fewer processes or a smaller finetune\.model"):
        estimate(tiny, size_of(find_config(tiny)), TOKENS, machine, mfu=0.4, rates=Rates(1e9, 1e9, 1e9))


def test_options_that_do_not_go_together_are_one_line(tmp_path, capsys):
    where = ("--config", preset(tmp_path, **HUB), "--artifacts", tmp_path / "none")
    code, _, err = call(capsys, *where, "--gpu", "L4", "--tflops", 100, "--memory-gib", 20)
    assert (code, err) == (2, "tripletune: give either --gpu, or --memory-gib and --tflops\n")
    code, _, err = call(capsys, *where, "--tflops", 100)
    assert (code, err) == (2, "tripletune: --memory-gib and --tflops describe a card together; give both\n")
    assert call(capsys, *where, "--tflops", 100, "--memory-gib", 200)[0] == 0


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("meta-llama/Meta-Llama-3.1-70B", 70_553_706_496),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("unsloth/Llama-3.2-3B-Instruct", 3_212_749_824),
    ],
)
def test_known_models_need_no_config(model, parameters):
    assert size_of(find_config(FinetuneConfig(model=model, revision="0" * 40))).parameters == parameters


def test_a_model_that_is_neither_known_nor_cached_is_not_downloaded():
    with pytest.raises(ConfigError, match=r"not in the Hugging Face cache .*; download its config.json \(hf download"):
        find_config(FinetuneConfig(model="someone/else", revision="1" * 40))


def test_a_folders_config_and_that_of_the_stage_base_are_read(tmp_path):
    shape = find_config(FinetuneConfig(model="smollm2-135m"))
    assert size_of(shape).parameters == 134_515_008
    other = {**shape, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(other))
    assert find_config(FinetuneConfig(model=str(tmp_path))) == other
    assert find_config(FinetuneConfig(model="smollm2-135m"), tmp_path) == other
    assert set(KNOWN) >= {"smollm2-135m", "Llama-3.1-8B"}
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="no model config"):
        find_config(FinetuneConfig(model=str(tmp_path)))


def test_lengths_are_read_from_the_shards(tmp_path):
    shards = write_shards(tmp_path, train=7, valid=4, test=1)
    rows = pl.concat(pl.read_parquet(path) for path in sorted((shards / "train").glob("*")))
    for path in (shards / "train").glob("*"):  # as with a model whose tokenizer is there
        part = pl.read_parquet(path)
        part.with_columns(num_tokens=pl.col("user_id") * 100).write_parquet(path)
    found = read_tokens(shards, RunConfig(dataset="x"))
    assert (found.examples, found.mean, found.longest, found.valid) == (7, 400.0, 700, 2)
    assert found.assumptions == ()

    def chars(messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"]) for message in messages)

    pairs = [(chars(row["prompt"]), chars(row["completion"])) for row in rows.iter_rows(named=True)]
    share = sum(answer / (prompt + answer) for prompt, answer in pairs) / 7
    assert found.predicted == pytest.approx(400 * share)
    listwise = RunConfig.model_validate({"dataset": "x", "finetune": {"objective": "listwise"}})
    prompts = read_tokens(shards, listwise)
    assert prompts.mean == pytest.approx(400 * (1 - share))
    assert prompts.predicted == 1.0


def test_without_counted_tokens_or_shards_the_assumption_is_said(tmp_path):
    shards = write_shards(tmp_path, train=3, valid=0, test=1)
    found = read_tokens(shards, RunConfig(dataset="x"))
    assert "characters a token" in found.assumptions[0]
    bound = assume_tokens(RunConfig(dataset="x"), None)
    assert (bound.examples, bound.longest) == (1000, 2048)
    assert len(bound.assumptions) == 2
    assert len(assume_tokens(RunConfig(dataset="x"), 5).assumptions) == 1


def test_a_cpus_rates_are_measured_and_its_seconds_grow_with_the_work():
    size = size_of(find_config(FinetuneConfig()))
    rates = measure_rates(size, 64, "float32", 1)
    assert 1e8 < rates.products == rates.attention < 1e13
    assert rates.numbers > 1e7
    made_up = Rates(products=1e9, attention=5e8, numbers=1e9)
    one, two = (cpu_seconds(size, Work.of(n, 100, 1), 16, made_up, 3, tiled=False) for n in (1, 2))
    assert two == pytest.approx(2 * one)
    every_place = cpu_seconds(size, Work.of(1, 100, 1), 16, made_up, 3, tiled=True)
    assert every_place > one + 3 * 2 * 99 * size.vocabulary * size.hidden / 1e9


def test_the_help_says_how_it_is_used(capsys):
    assert main(["estimate", "--help"]) == 0
    shown = capsys.readouterr().out
    for part in ("--gpu", "--mfu", "--json", "exit code 2", "For example"):
        assert part in shown


def test_naming_a_card_needs_no_preset_beside_the_shipped_ones(capsys, tmp_path):
    config = CHECKOUT / "configs/ml-32m.toml"
    code, out, _ = call(capsys, "--config", config, "--artifacts", tmp_path, "--gpu", "H200", "--json")
    assert code == 0
    assert json.loads(out)["machine"]["ranks"] == 1  # auto, in configs/accelerate/ddp.yaml


def test_shared_weights_are_spread_over_the_cards_and_gathered_by_layers():
    config = find_config(FinetuneConfig(model="meta-llama/Llama-3.1-70B", revision="0" * 40))
    settings = FinetuneConfig(model="meta-llama/Llama-3.1-70B", revision="0" * 40, gradient_checkpointing=True)
    machine = gpu_machine(find_card("H100-80GB"), 8, shares_weights=True)
    size = size_of(config)
    found = estimate(settings, size, TOKENS, machine, mfu=0.4, rates=None).memory
    layer, rest = size.linear_parameters / size.layers, size.parameters - size.linear_parameters
    assert found.weights == pytest.approx(2 * (size.parameters / 8 + 2 * layer + rest))
    assert found.adapter == pytest.approx(16 * size.lora_parameters(settings.lora_r) / 8)
    with pytest.raises(TrainingError, match=r"configs/accelerate/fsdp\.yaml|quantization = 'nf4'"):
        estimate(settings, size, TOKENS, gpu_machine(find_card("H100-80GB"), 8), mfu=0.4, rates=None)


def test_weights_in_4_bits_take_an_eighth_of_float32_and_a_map_turned_back():
    config = find_config(FinetuneConfig(model="meta-llama/Llama-3.1-8B", revision="0" * 40))
    settings = FinetuneConfig(model="meta-llama/Llama-3.1-8B", revision="0" * 40, quantization="nf4")
    found = estimate(settings, size_of(config), TOKENS, gpu_machine(find_card("H100"), 1), mfu=0.4, rates=None).memory
    # 224 maps of 32 layers in blocks of 64; embeddings, head and norms in bfloat16; one feed-forward map turned back
    linear, largest = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336), 4096 * 14336
    rest = 8_030_261_248 - linear
    assert found.weights == pytest.approx(linear * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * rest + 2 * largest)
