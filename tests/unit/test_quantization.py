"""What is refused before a base model is quantised, and how attention is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.finetune_shards import LETTERS_CONTRACT
from tripletune import quantization
from tripletune.config import FinetuneConfig
from tripletune.errors import ConfigError, TrainingError
from tripletune.finetune import attention
from tripletune.finetune.attention import choose_attention
from tripletune.finetune.launch import finetune_adapter
from tripletune.quantization import check_quantization, dequantized

pytestmark = pytest.mark.unit


def test_nf4_without_bitsandbytes_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    check_quantization("none")
    with pytest.raises(ConfigError, match=r"needs the package bitsandbytes; pip install 'tripletune\[nf4\]'") as caught:
        finetune_adapter(tmp_path, tmp_path, FinetuneConfig(quantization="nf4"), LETTERS_CONTRACT, {}, 0)
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_quantised_is_left_alone() -> None:
    model = torch.nn.Linear(2, 2)
    assert dequantized(model) is model


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages of FlashAttention that a pretended Hopper GPU has."""
    found: set[str] = set()
    monkeypatch.setattr(attention, "is_flash_attn_2_available", lambda: "2" in found)
    monkeypatch.setattr(attention, "is_flash_attn_3_available", lambda: "3" in found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return found


def test_auto_takes_flash_attention_where_it_runs(installed: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_attention("auto", "bfloat16") == "sdpa"
    installed.add("2")
    assert choose_attention("auto", "bfloat16") == "flash_attention_2"
    assert choose_attention("auto", "float32") == "sdpa"
    installed.add("3")
    assert choose_attention("auto", "bfloat16") == "flash_attention_3"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert choose_attention("auto", "bfloat16") == "flash_attention_2"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_attention("auto", "bfloat16") == "sdpa"


def test_an_implementation_asked_for_by_name_is_taken_or_refused(
    installed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert choose_attention("eager", "float32") == "eager"
    assert choose_attention("flex_attention", "bfloat16") == "flex_attention"
    with pytest.raises(TrainingError, match=r"finetune\.attention = 'flash_attention_2' needs .* flash-attn; install"):
        choose_attention("flash_attention_2", "bfloat16")
    installed.update("23")
    assert choose_attention("flash_attention_2", "bfloat16") == "flash_attention_2"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(TrainingError, match=r"flash_attn_interface, and a Hopper GPU"):
        choose_attention("flash_attention_3", "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="has no gradients on the CPU"):
        choose_attention("flex_attention", "float32")
