"""The tuned model in 8 or 4 bits: what rounding its weights costs is measured, not served.

int8 is LLM.int8 (Dettmers et al., NeurIPS 2022, https://arxiv.org/abs/2208.07339): weights are rounded to 8 bits by
row of the matrix, activations by token, but for columns of a batch with an activation of ``_OUTLIER`` or more, which
keep their format. So scores depend on what is batched together.

nf4 rounds weights alone, to the format of ``tripletune.quantization``. Whoever serves it turns them back for each
product, so here they are turned back once: the same function. bitsandbytes' own layers would take other scales on
processors where a matrix's width is no multiple of 64.

Embeddings, norms and the output head stay as they are, in both.
"""

from __future__ import annotations

import logging
from typing import Any

import bitsandbytes as bnb
from torch import nn

_OUTLIER = 6.0
"""As in the paper and in transformers."""


def quantize(model: Any, quantization: str, device: str) -> None:
    """Round the weights of a model's linear layers, in place, layer by layer.

    Args:
        model: with full weights, on the CPU.
        quantization: ``int8`` or ``nf4``.
        device: of torch, where weights in 8 bits will lie; the caller moves the rest of the model.
    """
    # one line for each product: "inputs will be cast from torch.float32 to float16"
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or module is head:
            continue
        if quantization == "nf4":
            _round_to_nf4(module)
        else:
            model.set_submodule(name, _int8(module, device))


def _round_to_nf4(linear: nn.Linear) -> None:
    flat = linear.weight.data.reshape(1, -1)  # blocks of 64 weights, whatever the width
    codes, scales = bnb.functional.quantize_4bit(flat, compress_statistics=True, quant_type="nf4")
    linear.weight.data = bnb.functional.dequantize_4bit(codes, scales).reshape(linear.weight.shape)


def _int8(linear: nn.Linear, device: str) -> Any:
    layer = bnb.nn.Linear8bitLt(
        *(linear.in_features, linear.out_features, linear.bias is not None),
        has_fp16_weights=False,
        threshold=_OUTLIER,
        device="meta",
    )
    weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.weight, layer.bias = weight.to(device), linear.bias
    layer.init_8bit_state()  # else by the first product, and several threads would make it at once
    return layer.train(linear.training)  # a layer that trains rounds no activations
