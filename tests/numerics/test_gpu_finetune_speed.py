"""The benchmark of fine-tuning speed trains as the product does, counts right, and goes on where a part fails."""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.benchmark_scripts import BENCHMARKS, benchmark_script
from tripletune.estimate.model_size import size_of

CPU = torch.device("cpu")
PEAK = 989e12


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("gpu/finetune_speed") as module:
        yield module


@pytest.fixture
def setup(script: ModuleType, tmp_path: Path) -> Any:
    import speed_training

    return speed_training.Setup("tiny", 40, 2, CPU, tmp_path)


class Recorder:
    """A session that keeps what it is given."""

    def __init__(self) -> None:
        self.device, self.results = CPU, {}

    def record(self, name: str, result: Any) -> None:
        self.results[name] = result


def measured(seconds: float, **changes: Any) -> dict[str, Any]:
    """A result of one step of 3,000 tokens whose model FLOPs are the peak's of a second."""
    variant = {"path": "ours", "objective": "sft", "batch": 2} | changes
    counted = {"tokens": 3000, "padding": 0.0, "model_flops": PEAK, "recomputed_flops": PEAK / 2}
    step = {"median": seconds, "min": seconds, "max": seconds}
    memory = {"peak_gib": 100.04, "used_gib": 110.0, "estimated_gib": 120.0}
    return {"variant": variant, "seconds_per_step": step, "seconds": seconds, **counted, **memory}


def test_without_a_gpu_it_says_so_and_writes_nothing(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.measure(out=tmp_path / "report.json")
    assert "torch sees no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_trains_on_every_path_in_a_tiny_size(script, device, tmp_path):
    script.measure(out=tmp_path / "report.json", device=device, tiny=True, steps=2)
    page = json.loads((tmp_path / "report.json").read_text())
    found = page["results"]
    assert page["ended"] == "complete"
    assert [name for name in found if name in script.VARIANTS] == list(script.TINY_NAMES)
    if device == "cpu":
        failed = {name: one["failed"] for name, one in found.items() if isinstance(one, dict) and "failed" in one}
        assert list(failed) == ["FlashAttention 2"]
        assert "finetune.attention = 'flash_attention_2' needs a GPU" in failed["FlashAttention 2"]
    for name in ("sft, 8 examples, checkpointing", script.STOCK, "full logits, checkpointing"):
        assert found[name]["tokens"] == 2 * 2 * 48
        assert found[name]["recomputed_flops"] > 0
    assert found[script.MAIN]["recomputed_flops"] == 0
    assert found[script.MAIN]["model_flops"] == found[script.STOCK]["model_flops"]
    assert found[script.MAIN]["estimated_gib"] > 0
    assert found[script.STOCK]["estimated_gib"] is None
    for name in ("mixed lengths, sft, own trainer", "listwise, own trainer, as in ml-32m.toml"):
        assert 2 * 2 * 32 <= found[name]["tokens"] < 2 * 2 * 48
        assert found[name]["padding"] < 0.03  # TRL's order has about a tenth
    parts = found[script.PARTS]
    assert min(parts[name] for name in ("forward", "backward", "optimizer", "products", "attention", "head")) > 0
    text = script.format_report(page)
    assert "| mixed lengths, sft, own trainer | trainer | 2 |" in text
    assert "| products | " in text


def test_without_trl_the_rest_is_measured_and_its_line_stands_in_the_page(script, monkeypatch, tmp_path):
    for name in ("trl", "datasets", *(name for name in sys.modules if name.startswith(("trl.", "datasets.")))):
        monkeypatch.setitem(sys.modules, name, None)
    names = [script.STOCK, script.MAIN, "listwise, own trainer", "listwise, 8 examples"]
    script.measure(out=tmp_path / "report.json", device="cpu", only=names, steps=1, tiny=True)
    page = json.loads((tmp_path / "report.json").read_text())
    assert page["ended"] == "complete"
    failed = {name: one["failed"] for name, one in page["results"].items() if name in names and "failed" in one}
    assert list(failed) == names[:3]
    assert all(line.startswith("ModuleNotFoundError: ") and "\n" not in line for line in failed.values())
    assert page["results"]["listwise, 8 examples"]["tokens"] == 2 * 48


def test_the_products_head_gives_the_loss_and_the_gradients_of_all_logits(script, setup):
    import speed_training

    ours = replace(script.VARIANTS[script.MAIN], mixed=True, dropout=0.0)
    full = replace(ours, path="full")
    rows = speed_training.draw_rows(ours, setup)[:3]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    losses, gradients, weights = [], [], None
    for variant in (ours, full):
        model = speed_training.build_model(variant, setup)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zeros at first, which would hide the gradients of lora_A
                torch.nn.init.constant_(weight, 0.1)
        weights = weights or {name: weight.detach().clone() for name, weight in model.named_parameters()}
        model.load_state_dict(weights)
        loss = speed_training.loss_of(model, speed_training.collate(rows, variant), variant)
        loss.backward()
        losses.append(loss)
        gradients.append({name: one.grad for name, one in model.named_parameters() if one.requires_grad})
    torch.testing.assert_close(losses[0], losses[1])
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-7)


def test_checkpointing_keeps_less_and_changes_no_gradient(script, setup):
    import speed_training

    losses, norms, kept = [], [], []
    for checkpointing in (False, True):
        variant = script.Variant(objective="listwise", batch=2, checkpointing=checkpointing, dropout=0.0)
        model = speed_training.build_model(variant, setup)
        batch = speed_training.collate(speed_training.draw_rows(variant, setup)[:2], variant)
        sizes: list[int] = []

        def keep(values: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(values.numel())
            return values

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
            loss = speed_training.loss_of(model, batch, variant)
        loss.backward()
        losses.append(float(loss.detach()))
        norms.append(sum(float(one.grad.square().sum()) for one in model.parameters() if one.grad is not None))
        kept.append(sum(sizes))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert norms[0] > 0
    assert kept[1] < kept[0] / 2


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [("llama-3.1-8b", 8_030_261_248), ("smollm2-135m", 134_515_008)],  # as their model cards count them
)
def test_the_shapes_are_those_of_the_releases(script, shape, parameters):
    import speed_kit

    config = speed_kit.config_of(shape)
    assert size_of(config.to_dict()).parameters == parameters
    assert config.rope_parameters["rope_type"] == ("llama3" if shape == "llama-3.1-8b" else "default")


def test_its_settings_are_those_of_the_preset_and_trls_defaults_are_trls(script):
    import speed_training
    from trl import SFTConfig

    settings = tomllib.loads((BENCHMARKS.parent / "configs" / "ml-32m.toml").read_text())["finetune"]
    as_preset = script.VARIANTS["listwise, own trainer, as in ml-32m.toml"]
    assert (settings["lora_r"], settings["lora_alpha"]) == (speed_training.LORA_R, speed_training.LORA_ALPHA)
    assert as_preset.dropout == script.Variant().dropout == settings["lora_dropout"]
    assert as_preset.batch == settings["per_device_train_batch_size"]
    assert (as_preset.objective, as_preset.checkpointing) == (settings["objective"], settings["gradient_checkpointing"])
    fields, stock = SFTConfig.__dataclass_fields__, script.VARIANTS[script.STOCK]
    assert fields["per_device_train_batch_size"].default == stock.batch
    assert fields["gradient_checkpointing"].default == stock.checkpointing
    assert fields["loss_type"].default == "nll"  # through its fused head


def test_memory_is_estimated_for_what_the_product_does(script, tmp_path):
    import speed_kit
    import speed_training

    setup = speed_training.Setup("llama-3.1-8b", 1500, 1, torch.device("cuda"), tmp_path)
    size = size_of(speed_kit.config_of(setup.shape).to_dict())
    found = {name: script.estimated_gib(variant, setup, size) for name, variant in script.VARIANTS.items()}
    # 8.03 G weights of 2 bytes, and of 42 M LoRA weights 4 numbers of 4 bytes each, before any activation
    least = (8_030_261_248 * 2 + 41_943_040 * 16) / 2**30
    assert least < found["sft, 8 examples, checkpointing"] < found[script.MAIN] < found["sft, 8 examples"] < 139.8
    assert found["NF4, own trainer"] < found["sft, own trainer"]
    for name in (script.STOCK, "full logits, checkpointing", "adapter in bfloat16", "compiled", "Liger"):
        assert found[name] is None


def test_work_counts_examples_tokens_squares_and_predicted_places(script):
    import speed_training

    timed = speed_training.Timed([1.0, 1.0], [[3, 5], [4, 4]], "sdpa")
    assert script.work_of(script.Variant(objective="listwise"), timed) == script.Work(16, 66, 4)
    assert script.work_of(script.Variant(), timed) == script.Work(16, 66, 4 * script.COMPLETION)


def test_the_page_says_utilisation_and_how_many_times_trls_defaults(script):
    where = {"card": "NVIDIA H200", "torch": "2.11.0", "commit": "abc"}
    page = {"environment": where, "started": "", "ended": "deadline", "command": "", "results": {}}
    page["results"] = {
        "copy": {"gb_per_s": {"median": 4300.0}},
        "bf16_product": {"tflop_per_s": {"median": 791.2}},
        "setup": {"shape": "llama-3.1-8b", "length": 1500, "steps": 1, "peak_flops": PEAK},
        "planned": ["a", script.STOCK, "b", "c"],
        "a": measured(1.6),
        script.STOCK: measured(4.0, path="trl"),
        "b": {"failed": "OutOfMemoryError: CUDA out of memory"},
    }
    text = script.format_report(page)
    assert "- Fastest sft: a, 1,875 tokens/s, MFU 62.5%; 2.50 times TRL's defaults." in text
    row = "| a | ours | 2 | 1.6000 (1.6000 to 1.6000) | 1,875 | 0.0% | 62.5% | 93.8% | 78.1% | 100.0 | 110.0 | 120.0 |"
    assert row in text
    assert "- b: OutOfMemoryError: CUDA out of memory" in text
    assert "Not reached: c." in text


def test_what_fails_is_recorded_by_its_line_and_the_next_is_measured(script):
    import speed_kit

    session = Recorder()

    def fail() -> dict[str, Any]:
        raise RuntimeError("out of memory\nand a long explanation")

    speed_kit.record_each(session, {"first": fail, "second": lambda: {"seconds": 1.0}})
    assert session.results == {
        "planned": ["first", "second"],
        "first": {"failed": "RuntimeError: out of memory"},
        "second": {"seconds": 1.0},
    }


def test_a_variant_that_does_not_exist_is_refused_by_name(script, tmp_path):
    with pytest.raises(SystemExit, match="no variant 'none'; there are: sft, 4 examples;"):
        script.measure(out=tmp_path / "report.json", device="cpu", only=["none"], tiny=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NF4, own trainer", "compiled", "compiled, 8 examples, checkpointing"])
def test_variants_that_take_longer_run_too(script, tmp_path, name):
    script.measure(out=tmp_path / "report.json", device="cpu", only=[name], tiny=True, steps=1)
    found = json.loads((tmp_path / "report.json").read_text())["results"][name]
    assert found.get("failed") is None
    assert found["tokens"] == 2 * 48
