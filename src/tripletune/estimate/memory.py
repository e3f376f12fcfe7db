# Letters in this file, as in transformers' Llama: H hidden width, I feed-forward width, A width of all attention heads,
# K width of all heads of keys, r rank of the LoRA matrices
"""Memory of a rank at the peak of a LoRA training step; nothing is offloaded.

The activations are what autograd keeps for the backward pass of the code that runs here: transformers' Llama layers
with PEFT's LoRA on every linear map, in float32, or in bfloat16 under autocast with LoRA in float32. Other dense models
keep about the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tripletune.estimate.model_size import ModelSize

Device = Literal["cpu", "cuda"]
GIB = 2**30
_FLOAT = 4
_ADAPTER_BYTES = 3 * _FLOAT
"""Gradient and AdamW's two moments of a trained weight, next to the weight itself."""
CPU_HEAP = {"float32": 1.9, "bfloat16": 1.6}
"""Resident memory of the activations over their bytes, by number format. glibc's heap keeps what is freed between
blocks still in use, with gradient checkpointing as much as without it. Measured, see ``benchmarks/estimate.md``."""
CUDA_CACHE = 1.1
"""The same of torch's caching allocator. An assumption: not measured here."""
_OVERHEAD = {"cpu": 0.7 * GIB, "cuda": 0.8 * GIB}
"""On a CPU libraries, tokenizer and examples in main memory, measured; on a GPU its context with cuBLAS's workspaces,
an assumption."""
_NF4_BYTES = 1 / 2 + 1 / 64 + _FLOAT / (64 * 256)
"""Of a weight in NF4: 4 bits, a byte of scale for each block of 64, and for 256 of these a scale in float32."""
_LAYERS_GATHERED = 2
"""Layers whose shared weights are whole at once: the one that computes, and the next one on its way."""
_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768
"""TRL computes the logits of ``sft`` in tiles of this size at most."""
_TILE_COPIES = 6
"""Arrays of a tile in float32 at the peak of the backward pass, in plain torch; TRL's GPU kernel needs one."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Shape of the largest batch of a rank."""

    examples: int
    tokens: int
    """Of its longest example: the others are padded to it."""
    predicted: int
    """Places of an example whose logits are computed."""
    tiled: bool
    """Whether its logits are computed in tiles (``sft``), or all are kept (objectives over labels)."""


@dataclass(frozen=True, slots=True)
class Holding:
    """How a rank holds the weights."""

    quantization: str = "none"
    """Of the layers' frozen weights: ``none`` or ``nf4``."""
    sharers: int = 1
    """Ranks that share all weights (FSDP); 1: each holds them whole."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a rank at its peak, by what they hold."""

    weights: float
    adapter: float
    """LoRA's weights, their gradients and AdamW's moments."""
    activations: float
    """What the backward pass needs of the forward pass."""
    allocator: float
    """What the allocator adds to the activations."""
    logits: float
    overhead: float
    """Libraries, or the GPU's context."""

    @property
    def total(self) -> float:
        """Bytes of all parts."""
        return self.weights + self.adapter + self.activations + self.allocator + self.logits + self.overhead


def training_memory(
    size: ModelSize,
    batch: Batch,
    *,
    rank: int,
    dropout: float,
    dtype: str,
    checkpointing: bool,
    device: Device,
    holding: Holding,
) -> Memory:
    """Peak of a training step.

    Args:
        size: of the model.
        batch: the largest one.
        rank, dropout: of LoRA.
        dtype: of the frozen weights, ``bfloat16`` or ``float32``.
        checkpointing: the layers' activations are recomputed: the inputs of all and the activations of one are kept.
        device: where it runs.
        holding: how its ranks hold the weights.
    """
    number = _FLOAT if dtype == "float32" else 2
    places = batch.examples * batch.tokens
    layer = places * layer_bytes(size, rank, dropout, dtype, device) + _casted(size, rank, dtype) / size.layers
    kept = layer + places * size.hidden * (number * size.layers + _FLOAT) if checkpointing else layer * size.layers
    allocator = layer * size.layers * (CPU_HEAP[dtype] - 1) if device == "cpu" else kept * (CUDA_CACHE - 1)
    trained = size.lora_parameters(rank)
    return Memory(
        weights=_weights(size, number, holding),
        adapter=trained * (_FLOAT + _ADAPTER_BYTES) / holding.sharers,
        activations=kept,
        allocator=allocator,
        logits=_logits(size, batch, device),
        overhead=_OVERHEAD[device],
    )


def _weights(size: ModelSize, number: int, holding: Holding) -> float:
    """Frozen weights with what a step makes of them for a moment: a map turned back from 4 bits, whole layers gathered.

    Embeddings, head and norms are never quantised, and stay gathered during a step.
    """
    layers, rest = size.linear_parameters, size.parameters - size.linear_parameters
    turned_back = 0
    if holding.quantization == "nf4":
        of_layers = layers * _NF4_BYTES
        turned_back = number * max(one.inputs * one.outputs for one in size.linears)
    else:
        of_layers = float(layers * number)
    held = (of_layers + rest * number) / holding.sharers
    gathered = 0.0 if holding.sharers == 1 else _LAYERS_GATHERED * of_layers / size.layers + rest * number
    return held + gathered + turned_back


def layer_bytes(size: ModelSize, rank: int, dropout: float, dtype: str, device: Device) -> float:
    """Bytes that autograd keeps of a layer for each token.

    In float32 inputs of several maps are kept once. In bfloat16 norms are computed in float32, and each LoRA layer
    keeps a copy of its input; dropout makes copies in both, with a mask of its own.
    """
    hidden, inner, width, keys = size.hidden, size.intermediate, size.attention_width, size.key_width
    maps = 5 * hidden + width + inner  # inputs of q, k, v, gate and up; of o; of down
    maps_of_layer = sum(one.count for one in size.linears) / size.layers
    number = _FLOAT if dtype == "float32" else 2
    # in float32 once for q, k and v, once for gate and up; what attention gives is kept by attention itself
    inputs = 2 * hidden + inner if dtype == "float32" and not dropout else maps
    norms = 2 * _FLOAT * (hidden + 1)
    attention = number * 2 * (width + keys) + _FLOAT * size.heads
    feed_forward = number * 3 * inner
    masks = (maps * (_FLOAT if device == "cpu" else 1)) if dropout else 0
    return norms + attention + feed_forward + number * (inputs + rank * maps_of_layer) + masks


def _casted(size: ModelSize, rank: int, dtype: str) -> float:
    """LoRA's weights in bfloat16, which autocast keeps."""
    return 0 if dtype == "float32" else 2 * size.lora_parameters(rank)


def _logits(size: ModelSize, batch: Batch, device: Device) -> float:
    """Arrays over the vocabulary at the peak."""
    if not batch.tiled:
        # as computed, in float32, their softmax and their gradient; each example computes the places of all
        return 4 * _FLOAT * batch.examples**2 * batch.predicted * size.vocabulary
    # in plain torch every place is computed, on a GPU those of the completion
    places = batch.examples * (batch.tokens if device == "cpu" else batch.predicted)
    tile = min(places, _TILE_TOKENS) * min(size.vocabulary, _TILE_VOCABULARY) * _FLOAT
    return tile * (_TILE_COPIES if device == "cpu" else 1)
