"""The tuned model with rounded weights, against products of weights that are turned back by hand."""
# Shape letters in this file: T tokens, I inputs and O outputs of a layer

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.adapters import LORA_ALPHA, LORA_R, write_adapter
from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tripletune.chat import load_tokenizer
from tripletune.config import RankConfig
from tripletune.rank.predict import rank_shards

pytest.importorskip("bitsandbytes")

NF4 = [  # the 16 values of QLoRA, appendix E
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
BLOCK, SCALES = 64, 256
"""Weights that share a scale, and scales that share one of their own."""


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def llama() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=90, num_key_value_heads=2, initializer_range=0.3, **shape)).eval()
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 30.0  # activations beyond LLM.int8's threshold
    return model


def in_nf4(weight_OI: Tensor) -> Tensor:
    """The weights (O, I) that bitsandbytes' codes stand for, in float64: turned back by hand from the codes, their
    scales, and the scales of these. Compared with the nearest of the 16 values in each block."""
    import bitsandbytes as bnb

    packed, state = bnb.functional.quantize_4bit(weight_OI, compress_statistics=True, quant_type="nf4")
    pairs = packed.reshape(-1).numpy()
    codes = np.stack([pairs >> 4, pairs & 15], axis=1).reshape(-1)
    levels, coarse = state.state2.code.double().numpy(), state.state2.absmax.double().numpy()
    scale = levels[state.absmax.numpy()] * np.repeat(coarse, SCALES)[: len(state.absmax)] + float(state.offset)

    blocks = weight_OI.double().reshape(-1, BLOCK).numpy()
    largest = np.abs(blocks).max(axis=1)
    nearest = np.abs(blocks[..., None] / largest[:, None, None] - np.array(NF4)).argmin(axis=-1)
    assert (nearest.reshape(-1) == codes).mean() > 0.999  # but for weights that lie between two values
    np.testing.assert_allclose(scale, largest, rtol=0.05)
    return torch.from_numpy(np.array(NF4)[codes] * np.repeat(scale, BLOCK)).reshape(weight_OI.shape)


class InInt8(nn.Module):
    """LLM.int8 as the paper has it, in float64 but for the rounding."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.data.half().float()
        largest_O1 = weight_OI.abs().amax(dim=1, keepdim=True)
        self.weight_OI = torch.round(weight_OI * (127 / largest_O1)).double() * largest_O1.double() / 127

    def forward(self, hidden: Tensor) -> Tensor:
        """As the layer's; float32."""
        rows_TI = hidden.reshape(-1, hidden.shape[-1])
        is_outlier_TI = rows_TI.half().abs() >= 6
        kept_TI = rows_TI.half().float().masked_fill(is_outlier_TI, 0)
        apart_I = is_outlier_TI.any(dim=0)
        largest_T1 = kept_TI.abs().amax(dim=1, keepdim=True)
        small_TI = torch.round(kept_TI * (127 / largest_T1)).double() * largest_T1.double() / 127
        out_TO = (
            small_TI[:, ~apart_I] @ self.weight_OI[:, ~apart_I].T
            + rows_TI[:, apart_I].double() @ self.weight_OI[:, apart_I].T
        )
        return out_TO.float().reshape(*hidden.shape[:-1], -1)


def replaced(model: Any, make: Any) -> Any:
    """A copy whose linear layers, but for the head, are ``make``'s."""
    other = copy.deepcopy(model)
    for name, module in list(other.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            other.set_submodule(name, make(name, module))
    return other


def turned_back(name: str, linear: nn.Linear) -> nn.Linear:
    linear.weight.data = in_nf4(linear.weight.data).float()
    return linear


def logits(model: Any) -> Tensor:
    ids = torch.arange(60).reshape(2, 30)
    with torch.inference_mode():
        found: Tensor = model(input_ids=ids).logits
    return found


def test_nf4_has_the_products_of_the_weights_that_its_codes_stand_for() -> None:
    """Widths of 48 and 80 are no multiple of the block's, for which the library's kernel on processors is wrong."""
    from tripletune.rank.quantize import quantize

    full, rounded = llama(), llama()
    quantize(rounded, "nf4", "cpu")
    by_hand = replaced(full, turned_back)
    # scales are sums of float32 here and of float64 there
    torch.testing.assert_close(logits(rounded), logits(by_hand), rtol=1e-4, atol=1e-4)
    assert (logits(rounded) - logits(full)).abs().max() > 0.05
    assert rounded.lm_head.weight.equal(full.lm_head.weight)


def test_int8_has_the_products_of_llm_int8() -> None:
    from tripletune.rank.quantize import quantize

    full, rounded = llama(), llama()
    quantize(rounded, "int8", "cpu")
    by_hand = {name: InInt8(linear) for name, linear in full.named_modules() if isinstance(linear, nn.Linear)}
    with_outliers, only_weights = 0, 0.0

    def compare(name: str, hidden: Tensor, got: Tensor) -> None:
        nonlocal with_outliers, only_weights
        # the library's factor of 1 / 127**2 has seven digits
        torch.testing.assert_close(got, by_hand[name](hidden), rtol=1e-4, atol=1e-3)
        with_outliers += bool((hidden.abs() >= 6).any())
        plain = hidden @ by_hand[name].weight_OI.float().T
        only_weights = max(only_weights, (got - plain).abs().max().item())

    for name, layer in rounded.named_modules():
        if name in by_hand and name != "lm_head":
            layer.register_forward_hook(lambda module, inputs, got, name=name: compare(name, inputs[0], got))
    first = logits(rounded)
    assert 0 < with_outliers < len(by_hand) - 1
    assert only_weights > 0.01  # activations are rounded too
    assert (first - logits(full)).abs().max() > 0.01
    assert logits(rounded).equal(first)  # the first product prepares nothing that the second would not have


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards, and an adapter with random weights on the tiny Llama."""
    folder = tmp_path_factory.mktemp("quantized")
    shards = write_shards(folder / "shards", train=4, valid=5, test=5, long=False, letters=True)
    return shards, write_adapter(folder / "adapter", shards, LETTERS_CONTRACT)


def test_a_run_ranks_with_rounded_weights_next_to_the_tuned_model(finetuned: tuple[Path, Path], tmp_path: Path) -> None:
    shards, folder = finetuned
    settings = RankConfig(batch_size=2, unconstrained_viewers=1, quantized=("int8", "nf4"), quantized_viewers=3)
    facts = rank_shards(shards, folder, tmp_path, settings, LETTERS_CONTRACT, 0)
    rows = pl.read_parquet(tmp_path / "predictions.parquet").filter(pl.col("constrained"))
    counts = dict(rows.group_by("system").len().iter_rows())
    assert counts == {"random": 10, "retriever": 10, "tuned": 10, "untuned": 10, "tuned-int8": 6, "tuned-nf4": 6}
    assert set(facts["valid_share"]) == {
        f"{one}-constrained" for one in ("valid-tuned", "valid-untuned", "test-tuned", "test-untuned")
    } | {"test-tuned-free", "test-untuned-free"}

    # by hand: the adapter's product added to the weights, then these rounded
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    for name, linear in model.named_modules():
        if isinstance(linear, nn.Linear) and name != "lm_head":
            a, b = (factors[f"base_model.model.{name}.lora_{one}.weight"] for one in "AB")
            linear.weight.data += LORA_ALPHA / LORA_R * b @ a
    systems = {
        "tuned": model,
        "tuned-nf4": replaced(model, turned_back),
        "tuned-int8": replaced(model, lambda name, linear: InInt8(linear)),
    }
    tokenizer = load_tokenizer(str(folder / "base"), None)
    largest: dict[str, float] = {}
    for example in pl.read_parquet(shards / "test" / "*.parquet").iter_rows(named=True):
        ids = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True, return_dict=False)
        labels = tokenizer.convert_tokens_to_ids(example["candidate_letters"])
        for system, one in systems.items():
            found = rows.filter(purpose="test", system=system, user_id=example["user_id"])
            if system != "tuned" and not found.height:
                continue
            scores = dict(zip(found["answers"][0], found["scores"][0], strict=True))
            with torch.inference_mode():
                want = one(input_ids=torch.tensor([ids])).logits[0, -1, labels]
            got = torch.tensor([scores[film] for film in example["candidates"]])
            largest[system] = max(largest.get(system, 0.0), (got - want).abs().max().item())
    assert largest["tuned"] < 1e-4
    assert largest["tuned-nf4"] < 1e-4
    # what lies between two steps is rounded the other way by last bits, which other batches have
    assert largest["tuned-int8"] < 0.05
