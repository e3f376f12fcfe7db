"""Base models in 4 bits: NF4 as in QLoRA (Dettmers et al., NeurIPS 2023, https://arxiv.org/abs/2305.14314).

The weights of the linear layers are rounded to 16 values spaced as a normal distribution's, in blocks of 64 whose
scales are quantised again; head, embeddings and norms stay as they are. Products are computed in the contract's number
format, from weights that are turned back each time. bitsandbytes does it, on GPUs and processors.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from tripletune.errors import ConfigError

_REPACKS = "support_avx512bf16_for_cpu"
"""Attribute of bitsandbytes' layers on processors that compute in bfloat16: whether the first evaluation packs the
weights again with scales rounded to bfloat16, for good, and fails where a layer's width is no multiple of 32. Training
would then go on with other weights than it began with."""
INSTALL = "pip install 'tripletune[nf4]'"


def check_quantization(quantization: str) -> None:
    """Refuse what needs a package that is not installed; imports nothing.

    Args:
        quantization: ``finetune.quantization``.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if quantization == "nf4":
        require_bitsandbytes("finetune.quantization = 'nf4'", "set it to 'none'")


def require_bitsandbytes(setting: str, instead: str) -> None:
    """Refuse a setting that needs bitsandbytes where it is not installed; imports nothing.

    Args:
        setting: as the message names it.
        instead: what to do without the package.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(f"{setting} needs the package bitsandbytes; {INSTALL}, or {instead}")


def load_causal_lm(
    source: str,
    hub_revision: str | None,
    dtype: str,
    quantization: str,
    *,
    attention: str | None = None,
    sharded: bool = False,
) -> Any:
    """A causal language model as ``finetune.quantization`` has it; on the CPU, or quantised on the GPU where there is
    one.

    Args:
        source: folder or id for ``from_pretrained``.
        hub_revision: commit of an id.
        dtype: number format of torch's such as ``float32``, of the weights or of the products with them.
        quantization: ``none`` or ``nf4``.
        attention: implementation of transformers'; None: its choice.
        sharded: whether processes will share the weights.

    Raises:
        ConfigError: see ``check_quantization``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_quantization(quantization)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        revision=hub_revision,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        quantization_config=_nf4(dtype, sharded) if quantization == "nf4" else None,
        use_safetensors=True,
        trust_remote_code=False,
    )
    for module in model.modules():
        if hasattr(module, _REPACKS):
            setattr(module, _REPACKS, False)
    return model


def _nf4(dtype: str, sharded: bool) -> Any:
    """FSDP shards floating-point weights alone, so it is given the bytes of the 4-bit ones as if they were such."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
        bnb_4bit_quant_storage=getattr(torch, dtype) if sharded else torch.uint8,
    )


def dequantized(model: Any) -> Any:
    """The model with full weights whose values are those that its 4-bit weights stand for: the same function, so that
    an adapter can be merged without rounding again. A model that is not quantised is returned as it is."""
    return model.dequantize() if getattr(model, "is_quantized", False) else model
