"""Models of a known shape with random weights, for measurements of speed, and what these measurements share.

The weights are drawn on the device, so none travel. Speed and memory do not depend on their values; what a model
answers means nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

import torch
from session import Session
from transformers import AutoModelForCausalLM, LlamaConfig

from tripletune.estimate.cards import card_of

SEED = 7
LLAMA_8B, SMOLLM2, TINY = "llama-3.1-8b", "smollm2-135m", "tiny"
_LLAMA_3_1 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    LLAMA_8B: {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": _LLAMA_3_1,
    },
    SMOLLM2: {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "tie_word_embeddings": True,
    },
    TINY: {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 600,
        "max_position_embeddings": 131_072,
        "rope_parameters": _LLAMA_3_1,
    },
}
"""Settings of ``LlamaConfig``, as the releases' ``config.json`` have them; tiny: to see that a script runs."""


def config_of(shape: str) -> LlamaConfig:
    """The config of a shape, a key of ``SHAPES``."""
    return LlamaConfig(**SHAPES[shape])


def random_model(config: LlamaConfig, device: torch.device, attention: str = "sdpa") -> Any:
    """A model drawn from ``SEED`` on the device: in bfloat16 on a GPU, in float32 on a CPU.

    Args:
        attention: implementation of transformers'.
    """
    torch.manual_seed(SEED)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=weights_dtype(device), attn_implementation=attention)


def weights_dtype(device: torch.device) -> torch.dtype:
    """Number format of a model's weights."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Bfloat16 on a GPU, as the product trains there; nothing on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def peak_flops(device: torch.device) -> float | None:
    """Dense bfloat16 FLOPs a second of the card's data sheet; None on a CPU and for a card that is not known."""
    card = card_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return card.tflops * 1e12 if card else None


def record_each(session: Session, measures: Mapping[str, Callable[[], dict[str, Any]]]) -> None:
    """Measure in order and record each as it ends, until the session's deadline ends the process.

    What fails (memory, a package that this machine lacks, a kernel that refuses the card) is recorded as the one line
    of its error, and the next is measured.
    """
    session.record("planned", list(measures))
    for name, measure in measures.items():
        try:
            found = measure()
        except Exception as error:  # whatever it is, what follows still has to be measured
            found = {"failed": one_line(error)}
        session.record(name, found)
        release(session.device)


def one_line(error: BaseException) -> str:
    """Kind of an error and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def release(device: torch.device) -> None:
    """Give back the memory of models that are no longer used, and begin to look for a new peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def memory_gib(device: torch.device) -> dict[str, float | None]:
    """``peak_gib``, the most that tensors took since ``release``, and ``used_gib`` of the card, with what the allocator
    keeps and the GPU's context; None on a CPU, whose peak can't be reset."""
    if device.type != "cuda":
        return {"peak_gib": None, "used_gib": None}
    free, total = torch.cuda.mem_get_info(device)
    return {"peak_gib": torch.cuda.max_memory_allocated(device) / 2**30, "used_gib": (total - free) / 2**30}


def head_lines(title: str, script: str, page: Mapping[str, Any]) -> list[str]:
    """Beginning of a page: title, machine, how the script ended, its command and the ceilings."""
    where, found = page["environment"], page["results"]
    card = where["card"] or f"{where['machine']} CPU, {where['threads']} threads"
    lines = [f"# {title}", "", f"What is measured and counted: the head of `{script}`.", ""]
    lines += [
        f"{card}; torch {where['torch']}; commit {where['commit']}; {page['started']}; ended: {page['ended']}",
        f"`{page['command']}`",
    ]
    if "bf16_product" in found:
        copied, product = found["copy"]["gb_per_s"]["median"], found["bf16_product"]["tflop_per_s"]["median"]
        lines.append(f"A copy on the device moves {copied:.0f} GB/s, a bfloat16 product does {product:.3g} TFLOP/s.")
    return lines


def tail_lines(found: Mapping[str, Any]) -> list[str]:
    """End of a page: what failed, with its line, and what was not reached."""
    failed = [f"- {name}: {one['failed']}" for name, one in found.items() if isinstance(one, dict) and "failed" in one]
    missing = [name for name in found.get("planned", []) if name not in found]
    lines = ["", "Failed:", "", *failed] if failed else []
    return lines + (["", f"Not reached: {'; '.join(missing)}."] if missing else [])


def share(flops: float, seconds: float, peak: float | None) -> str:
    """Share of a peak that so many FLOPs in so many seconds are, in per cent; empty where the peak is not known."""
    return f"{flops / seconds / peak:.1%}" if peak else ""
