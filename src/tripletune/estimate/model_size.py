# Letters in this file: P parameters of the layers' linear maps, A width of all attention heads together, L tokens of an
# example, H hidden width, V tokens of the vocabulary, r rank of the LoRA matrices
"""Parameters and FLOPs of a causal language model with LoRA, from its config alone.

A multiplication and an addition are two FLOPs; only matrix products count. Conventions of PaLM (Chowdhery et al., 2022,
appendix B, https://arxiv.org/abs/2204.02311): attention counts every pair of places, the half that a causal mask hides
included, and what is computed twice (gradient checkpointing, scores inside fused attention) is no model FLOP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tripletune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Linear:
    """Equal linear maps of the decoder layers, which LoRA adapts; never the head."""

    inputs: int
    outputs: int
    count: int
    reads_embeddings: int = 0
    """How many of them read the embeddings, which are frozen: no gradient of such an input is needed."""


@dataclass(frozen=True, slots=True)
class Work:
    """Tokens of some examples, as far as FLOPs depend on them."""

    tokens: float
    squares: float
    """Sum of ``L ** 2``."""
    predicted: float
    """Places whose logits are needed: completion tokens (``sft``), or one an example (objectives over labels)."""

    @classmethod
    def of(cls, examples: float, length: float, predicted: float) -> Work:
        """``examples`` of ``length`` tokens each, with ``predicted`` places each."""
        return cls(examples * length, examples * length**2, examples * predicted)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """Shape of a causal language model with dense layers."""

    linears: tuple[Linear, ...]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    attention_width: int
    """A: heads times width of a head."""
    key_width: int
    """Heads of keys, times width of a head."""
    vocabulary: int
    parameters: int
    """All of them; a head tied to the embeddings counts once."""
    embedding_parameters: int
    """Of the token embeddings, and of the head where it is another matrix."""

    @property
    def linear_parameters(self) -> int:
        """P: parameters that every token is multiplied with, without the head."""
        return sum(one.inputs * one.outputs * one.count for one in self.linears)

    def lora_parameters(self, rank: int) -> int:
        """Trainable parameters with LoRA on all linear layers but the head."""
        return sum(rank * (one.inputs + one.outputs) * one.count for one in self.linears)

    def forward_flops(self, work: Work, rank: int) -> float:
        """Forward pass with LoRA: ``2 P + 2 P_lora`` a token, ``4 A L`` a token and layer, ``2 H V`` a predicted place.

        Args:
            work: of the examples.
            rank: of LoRA; 0: the model alone.
        """
        return self._layers_flops(work, rank) + self._head_flops(work)

    def training_flops(self, work: Work, rank: int) -> float:
        """Forward and backward pass with LoRA: the model FLOPs of MFU.

        Frozen weights need the gradient of their input and none of their own, so that the backward pass costs one
        forward pass and not two; attention, which has no weights, and LoRA cost two.
        """
        maps = 2 * work.tokens * (self.linear_parameters + 2 * self.lora_parameters(rank))
        attention = 2 * self._attention_flops(work)
        return self.forward_flops(work, rank) + maps + attention - self._unneeded(work, rank) + self._head_flops(work)

    def recomputed_flops(self, work: Work, rank: int) -> float:
        """What gradient checkpointing adds: the layers' forward pass once more, and the gradient of the embeddings'
        output, which it asks for."""
        return self._layers_flops(work, rank) + self._unneeded(work, rank)

    def _layers_flops(self, work: Work, rank: int) -> float:
        return 2 * work.tokens * (self.linear_parameters + self.lora_parameters(rank)) + self._attention_flops(work)

    def _attention_flops(self, work: Work) -> float:
        return 4 * work.squares * self.attention_width * self.layers

    def _head_flops(self, work: Work) -> float:
        return 2 * work.predicted * self.hidden * self.vocabulary

    def _unneeded(self, work: Work, rank: int) -> float:
        """Gradients of the inputs of the first layer's maps, through weights and LoRA's first matrix."""
        return 2 * work.tokens * sum(one.reads_embeddings * one.inputs * (one.outputs + rank) for one in self.linears)


def size_of(config: Mapping[str, Any]) -> ModelSize:
    """Shape of a model.

    Args:
        config: content of its ``config.json``, or ``to_dict()`` of a transformers config.

    Raises:
        ConfigError: it has experts of which a token passes some (the FLOPs of all would be wrong), or transformers
            knows no such causal language model.
    """
    kind = str(config.get("model_type", ""))
    if any(config.get(name) for name in ("num_local_experts", "num_experts", "n_routed_experts")):
        raise ConfigError(f"a model of type {kind!r} has experts, which are not estimated; use a dense model")
    return _llama_size(config) if kind == "llama" else _size_on_meta(config)


def _llama_size(config: Mapping[str, Any]) -> ModelSize:
    """Llama's layout in closed form; torch is not imported."""
    hidden, inner, layers = (int(config[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, vocabulary = int(config["num_attention_heads"]), int(config["vocab_size"])
    head = int(config.get("head_dim") or hidden // heads)
    width, keys = heads * head, int(config.get("num_key_value_heads") or heads) * head
    linears = (
        Linear(hidden, width, layers, 1),
        Linear(hidden, keys, 2 * layers, 2),
        Linear(width, hidden, layers),
        Linear(hidden, inner, 2 * layers),
        Linear(inner, hidden, layers),
    )
    biases = layers * (width + 2 * keys + hidden) if config.get("attention_bias") else 0
    biases += layers * (2 * inner + hidden) if config.get("mlp_bias") else 0
    norms = (2 * layers + 1) * hidden
    embedding = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return ModelSize(
        linears=linears,
        layers=layers,
        hidden=hidden,
        intermediate=inner,
        heads=heads,
        attention_width=width,
        key_width=keys,
        vocabulary=vocabulary,
        parameters=sum(one.inputs * one.outputs * one.count for one in linears) + biases + norms + embedding,
        embedding_parameters=embedding,
    )


def _size_on_meta(config: Mapping[str, Any]) -> ModelSize:
    """Any other dense model, built without memory. Which maps read the embeddings is not known, so the backward pass
    of the first layer is counted in full."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    kind = str(config.get("model_type", ""))
    described = {name: value for name, value in config.items() if name not in ("model_type", "quantization_config")}
    try:
        known = AutoConfig.for_model(kind, **described)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(known, trust_remote_code=False)
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"model_type = {kind!r} is no causal language model of transformers: {reason}") from None
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    maps = [one for one in model.modules() if isinstance(one, torch.nn.Linear | Conv1D) and one is not head]
    shapes = Counter(
        (one.in_features, one.out_features) if isinstance(one, torch.nn.Linear) else tuple(one.weight.shape)
        for one in maps
    )
    text = known.get_text_config()
    heads = int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    keys = int(getattr(text, "num_key_value_heads", None) or heads)
    embedding = {id(one.weight): one.weight.numel() for one in (head, table) if one is not None}
    return ModelSize(
        linears=tuple(Linear(inputs, outputs, count) for (inputs, outputs), count in shapes.items()),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        heads=heads,
        attention_width=heads * width,
        key_width=keys * width,
        vocabulary=int(text.vocab_size),
        parameters=sum(weight.numel() for weight in model.parameters()),
        embedding_parameters=sum(embedding.values()),
    )
