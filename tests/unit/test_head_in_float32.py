# Shape letters in this file: B prompts, H hidden width, V tokens of the vocabulary
"""Logits of a model in bfloat16 that are not rounded, in values and gradients, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tripletune import next_token
from tripletune.next_token import head_in_float32, next_token_logits

pytestmark = pytest.mark.unit

IDS_BL = torch.arange(2, 32).reshape(2, 15)
LAST_B = torch.tensor([14, 9])


def model_of(dtype: torch.dtype, *, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "vocab_size": 300, "tie_word_embeddings": tied}
    model = LlamaForCausalLM(LlamaConfig(**shape)).to(dtype).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 40  # logits of some tens, as trained models have
    return model


def read(model: LlamaForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, V) in 16-bit autocast as in training, and the hidden states (B, B, H) that the head was given."""
    given = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
        logits_BV = next_token_logits(model, IDS_BL, LAST_B)
    handle.remove()
    return logits_BV, given[0]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [8192, 128], ids=["one-part", "three-parts"])
def test_logits_are_the_product_of_what_the_head_is_given(
    monkeypatch: pytest.MonkeyPatch, rows: int, tied: bool
) -> None:
    monkeypatch.setattr(next_token, "_ROWS", rows)
    model = model_of(torch.bfloat16, tied=tied)
    rounded_BV, _ = read(model)
    head_in_float32(model)
    logits_BV, hidden_BBH = read(model)
    assert logits_BV.dtype == torch.float32
    # places are sorted: the second prompt ends first
    hidden_BH = torch.stack([hidden_BBH[0, 1], hidden_BBH[1, 0]])
    wanted_BV = hidden_BH.double() @ model.get_output_embeddings().weight.double().T
    torch.testing.assert_close(logits_BV.double(), wanted_BV, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_BV, rounded_BV, rtol=2**-8, atol=2**-8)
    assert (logits_BV - rounded_BV).abs().max() > 1e-2  # what rounding takes
    assert logits_BV[0].unique().numel() > rounded_BV[0].unique().numel()


def test_gradients_are_those_of_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_token, "_ROWS", 128)
    model = model_of(torch.bfloat16)
    head_in_float32(model)
    head = model.get_output_embeddings()
    head.weight.requires_grad_(False)
    hidden_BH = torch.randn(2, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    weight_BV = torch.randn(2, 300, generator=torch.Generator().manual_seed(2))
    (head(hidden_BH) * weight_BV).sum().backward()
    wanted_BH = weight_BV.double() @ head.weight.double()
    assert hidden_BH.grad is not None
    torch.testing.assert_close(hidden_BH.grad.double(), wanted_BH, rtol=2**-8, atol=1e-6)


def test_a_model_in_float32_is_left_as_it_is() -> None:
    model = model_of(torch.float32)
    before_BV, _ = read(model)
    head_in_float32(model)
    assert not model.get_output_embeddings()._forward_hooks
    assert torch.equal(read(model)[0], before_BV)
