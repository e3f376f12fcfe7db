"""The config of a base model without its weights: built from settings, read from a folder or the cache, or known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tripletune.config import SHIPPED, FinetuneConfig
from tripletune.errors import ConfigError, InputError

_SHAPE = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "tie_word_embeddings"),
)
KNOWN = {
    SHIPPED: (49152, 576, 1536, 30, 9, 3, 64, True),
    "Llama-3.1-8B": (128256, 4096, 14336, 32, 32, 8, 128, False),
    "Llama-3.1-70B": (128256, 8192, 28672, 80, 64, 8, 128, False),
    "Llama-3.2-1B": (128256, 2048, 8192, 16, 32, 8, 64, True),
    "Llama-3.2-3B": (128256, 3072, 8192, 28, 24, 8, 128, True),
}
"""Shapes (``_SHAPE``) of models whose config need not be in the cache, by name without owner and ``Instruct``."""


def find_config(settings: FinetuneConfig, base: Path | None = None) -> Mapping[str, Any]:
    """The content of a model's ``config.json``, or its shape. Nothing is downloaded.

    Args:
        settings: the ``[finetune]`` section.
        base: folder of the finished stage ``base``, where the base model is the shipped one.

    Raises:
        ConfigError: the model is on the hub, its config is not in the cache, and its shape is not known.
        InputError: a folder's ``config.json`` cannot be read.
    """
    if settings.model == "tiny":
        tiny = settings.tiny
        values = (tiny.vocab_size, tiny.hidden_size, tiny.intermediate_size, tiny.num_layers, tiny.num_heads)
        return _llama((*values, tiny.num_kv_heads, tiny.hidden_size // tiny.num_heads, True))
    if settings.is_shipped:
        return _read(base / "config.json") if base else _llama(KNOWN[SHIPPED])
    if settings.names_a_folder:
        return _read(Path(settings.model) / "config.json")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(settings.model, "config.json", revision=settings.revision)
    if isinstance(cached, str):
        return _read(Path(cached))
    name = settings.model.rpartition("/")[2].removeprefix("Meta-").removesuffix("-Instruct")
    if name in KNOWN:
        return _llama(KNOWN[name])
    raise ConfigError(
        f"finetune.model = {settings.model!r} is not in the Hugging Face cache and its shape is not known; download "
        f"its config.json (hf download {settings.model} config.json --revision {settings.revision}), or name a folder"
    )


def _llama(shape: tuple[Any, ...]) -> dict[str, Any]:
    return {"model_type": "llama", **dict(zip(_SHAPE, shape, strict=True))}


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no model config: {str(error).splitlines()[0]}; give a folder in HF layout") from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(f"{path}: no model config: model_type is missing; give a folder in HF layout")
    return config
