"""The benchmark of ranking speed times what the product computes, and says what the card would allow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.benchmark_scripts import benchmark_script
from tripletune.behaviour.tokens import prompt_ids

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with benchmark_script("gpu/ranking_speed") as module:
        yield module


@pytest.fixture(scope="module")
def bench(script: ModuleType) -> Any:
    return script.Bench(CPU)


def test_without_a_gpu_it_says_so_and_writes_nothing(script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.measure(out=tmp_path / "report.json")
    assert "torch sees no GPU here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_it_ranks_in_a_tiny_size(script, device, tmp_path):
    script.measure(out=tmp_path / "report.json", device=device, tiny=True)
    page = json.loads((tmp_path / "report.json").read_text())
    found = page["results"]
    assert page["ended"] == "complete"
    both = [found[f"tiny, {batch} prompts"] for batch in (2, 4)]
    assert [one["users"] for one in both] == [6, 6]
    assert both[0]["flops"] == both[1]["flops"]
    assert both[0]["tokens"] == both[1]["tokens"]
    assert both[0]["padding"] < both[1]["padding"] < 0.2
    assert all(min(one["seconds"].values()) > 0 for one in both)
    prefix = found["tiny, prefix of 16 tokens"]
    assert prefix["far"] < (1e-4 if device == "cpu" else 0.1)  # the same hidden states, in float32 and bfloat16
    if device == "cpu":
        assert "ImportError" in found["tiny, 2 prompts, FlashAttention 2"]["failed"]
    text = script.format_report(page)
    assert "| tiny, 4 prompts | " in text
    assert "| tiny | 2 | 360 | 16 | " in text


def test_it_times_the_tokens_and_labels_that_the_product_reads(script, bench, monkeypatch):
    sizes = script.SIZES["tiny"]
    answerer = bench.answerer("tiny")
    examples = script.draw_examples(sizes, answerer.tokenizer)
    ids = prompt_ids(examples.select("prompt").to_dict(as_series=False), answerer.tokenizer, "random", None)
    lengths = [len(one) for one in ids]
    assert all(sizes.shortest - 20 <= length <= sizes.longest for length in lengths)
    assert len(set(lengths)) > 3
    read: list[tuple[list[list[int]], list[list[int]]]] = []
    plain = script.Answerer._label_logits

    def watched(self: Any, prompts: list[list[int]], labels: list[list[int]]) -> Any:
        read.append((prompts, labels))
        return plain(self, prompts, labels)

    monkeypatch.setattr(script.Answerer, "_label_logits", watched)
    answered = answerer.answer(examples, constrained=True, batch_size=2)
    by_product = [(tuple(one), tuple(names)) for batch in read for one, names in zip(*batch, strict=True)]
    read.clear()
    script.measure_answers(bench, "tiny", 2, sizes)
    prompts, labels = script._read(answerer, examples)
    timed = [(tuple(one), tuple(names)) for one, names in zip(prompts, labels, strict=True)]
    assert sorted(timed) == sorted(by_product)
    assert [len(batch[0]) for batch in read] == [2] * 7  # the warm-up's, three of the answers, three alone
    assert answered["valid"].all()
    assert {len(films) for films in answered["answers"]} == {script.CANDIDATES}


def test_the_page_says_how_many_users_the_card_would_allow(script):
    where = {"card": "NVIDIA H200", "torch": "2.11.0", "commit": "abc"}
    page = {"environment": where, "started": "", "ended": "complete", "command": ""}
    one = {"shape": "llama-3.1-8b", "batch": 16, "users": 100, "tokens": 125_000, "longest": 1500, "padding": 0.02}
    one |= {"seconds": {"answers": 4.0, "forward": 3.8, "decoder": 3.0}, "flops": 2000e12, "peak_gib": 20.0}
    page["results"] = {
        "copy": {"gb_per_s": {"median": 4300.0}},
        "bf16_product": {"tflop_per_s": {"median": 800.0}},
        "setup": {"peak_flops": 1000e12},
        "planned": ["llama-3.1-8b, 16 prompts", "llama-3.1-8b, 32 prompts"],
        "llama-3.1-8b, 16 prompts": one,
    }
    text = script.format_report(page)
    best = "- llama-3.1-8b: 25.0 users/s (16 prompts); 50.0 at the data sheet's peak; 40.0 at the bfloat16 product; "
    assert best + "goal 25." in text
    row = "| llama-3.1-8b, 16 prompts | 25.0 | 31,250 | 2.0% | 50.0% | 62.5% | 75.0% | 20.0% | 5.0% | 20.0 |"
    assert row in text
    assert "Not reached: llama-3.1-8b, 32 prompts." in text


def test_one_model_is_held_at_a_time(script):
    bench = script.Bench(CPU)
    first = bench.answerer("tiny")
    assert bench.answerer("tiny") is first
    assert bench.answerer("tiny", "eager") is not first
    assert len(bench._held) == 1


def test_a_shape_that_does_not_exist_is_refused_by_name(script, tmp_path):
    with pytest.raises(SystemExit, match=r"no shape 'llama'; there are: llama-3\.1-8b, smollm2-135m, tiny"):
        script.measure(out=tmp_path / "report.json", device="cpu", only=["llama"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_compiled_decoder_runs_too(script, bench):
    found = script.measure_answers(bench, "tiny", 2, script.SIZES["tiny"], compiled=True)
    assert found["users"] == 6
