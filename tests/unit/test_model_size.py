"""Parameters, FLOPs and saved bytes from a config, next to those of the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

from tripletune.errors import ConfigError
from tripletune.estimate.cards import CARDS, card_of, find_card
from tripletune.estimate.memory import layer_bytes
from tripletune.estimate.model_size import Work, size_of

RANK = 4
TINY = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 500}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
# SmolLM2-135M's proportions, a third of it in each direction
SMOL = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 2000}
LLAMAS = {
    "tiny": LlamaConfig(**TINY, **HEADS, tie_word_embeddings=True),
    "smollm2": LlamaConfig(**SMOL, num_attention_heads=3, num_key_value_heads=1, tie_word_embeddings=True),
    "wide heads": LlamaConfig(**TINY, **HEADS, head_dim=32, tie_word_embeddings=False, attention_bias=True),
}
OTHERS = {
    "qwen2": Qwen2Config(**TINY, **HEADS, tie_word_embeddings=True),
    "gpt2": GPT2Config(n_embd=96, n_layer=2, n_head=4, vocab_size=500),
}


def build(config: PreTrainedConfig, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lora = LoraConfig(r=RANK, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora).train()


@pytest.fixture(autouse=True)
def _attention_in_plain_products() -> Iterator[None]:
    """The counter knows no FLOPs of the fused kernel on a CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@pytest.mark.parametrize("name", [*LLAMAS, *OTHERS])
def test_parameters_are_those_of_the_model(name):
    config = (LLAMAS | OTHERS)[name]
    model, size = build(config), size_of(config.to_dict())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert size.lora_parameters(RANK) == trained
    assert size.parameters == sum(weight.numel() for weight in model.parameters()) - trained
    tables = {id(one.weight): one.weight.numel() for one in (model.get_input_embeddings(), model.lm_head)}
    assert size.embedding_parameters == sum(tables.values())


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ((128256, 4096, 14336, 32, 32, 8, False), 8_030_261_248),  # Llama 3.1 8B, as its model card says
        ((128256, 2048, 8192, 16, 32, 8, True), 1_235_814_400),  # Llama 3.2 1B
        ((49152, 576, 1536, 30, 9, 3, True), 134_515_008),  # SmolLM2 135M
    ],
)
def test_parameters_of_known_models(shape, parameters):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = dict(zip((*names, "num_key_value_heads", "tie_word_embeddings"), shape, strict=True))
    assert size_of({"model_type": "llama", **config}).parameters == parameters


@pytest.mark.parametrize("name", [*LLAMAS, *OTHERS])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("predicted", [1, 20])
def test_flops_are_those_that_torch_counts(name, checkpointing, predicted):
    config, examples, tokens = (LLAMAS | OTHERS)[name], 2, 70
    model, size = build(config), size_of(config.to_dict())
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    work = Work.of(examples, tokens, predicted)
    ids = torch.randint(0, config.vocab_size, (examples, tokens))
    places = torch.arange(tokens - predicted, tokens)
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=places).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert forward.get_total_flops() == pytest.approx(size.forward_flops(work, RANK), rel=1e-9)
    want = size.training_flops(work, RANK)
    if checkpointing:
        want += size.recomputed_flops(work, RANK)
    # the recomputation stops when all is there that is needed, before the last product of a layer. Of a model that is
    # not Llama the gradient of the embeddings is counted, which is only computed with checkpointing: 6 % of two layers
    tolerance = (0.01 if checkpointing else 1e-9) if name in LLAMAS else 0.08
    assert forward.get_total_flops() + backward.get_total_flops() == pytest.approx(want, rel=tolerance)


def test_a_backward_pass_over_frozen_weights_costs_one_forward_pass_and_not_two():
    size = size_of({"model_type": "llama", "vocab_size": 128256, **EIGHT})
    work = Work.of(1, 1000, 1)
    ratio = size.training_flops(work, 16) / size.forward_flops(work, 16)
    assert 2.0 < ratio < 2.1


EIGHT = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32} | {
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def kept_bytes(config: PreTrainedConfig, layers: int, dtype: torch.dtype, dropout: float, examples: int) -> int:
    """Bytes that autograd keeps of a forward pass over 64 tokens, weights aside, each block of memory once."""
    config.num_hidden_layers = layers
    model = build(config, dropout=dropout, dtype=dtype)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    blocks: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        where = tensor.untyped_storage().data_ptr()
        if where not in weights:
            blocks.setdefault(where, tensor)  # kept alive, so that no other gets its address
        return tensor

    ids = torch.randint(0, config.vocab_size, (examples, 64))
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
    with hooks, autocast, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        model(input_ids=ids, use_cache=False, logits_to_keep=torch.tensor([63]))
    return sum(tensor.untyped_storage().nbytes() for tensor in blocks.values())


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layers_activations_are_those_that_autograd_keeps(name, dtype, dropout):
    def kept(layers: int, examples: int) -> int:
        return kept_bytes(LlamaConfig(**LLAMAS[name].to_dict()), layers, dtype, dropout, examples)

    # of one more layer, of one more example: what does not grow with both is no activation of a layer
    found = (kept(3, 3) - kept(2, 3)) - (kept(3, 2) - kept(2, 2))
    number = str(dtype).removeprefix("torch.")
    size = size_of(LLAMAS[name].to_dict())
    assert found / 64 == pytest.approx(layer_bytes(size, RANK, dropout, number, "cpu"), rel=1e-9)


def test_a_model_with_experts_or_of_an_unknown_type_is_one_line():
    with pytest.raises(ConfigError, match="'mixtral' has experts"):
        size_of({"model_type": "mixtral", "num_local_experts": 8})
    with pytest.raises(ConfigError, match="model_type = 'unheard' is no causal language model"):
        size_of({"model_type": "unheard"})


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-40GB"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA GeForce RTX 3090", "RTX-3090"),
        ("Tesla T4", "T4"),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A10", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_card_is_known_by_its_drivers_name(device, name):
    card = card_of(device)
    assert (card.name if card else None) == name


def test_peak_rates_are_those_of_trls_table():
    from trl.trainer.utils import get_peak_flops

    theirs = {card.name: get_peak_flops(card.name.replace("-", " "), "bfloat16") for card in CARDS}
    # A10G: theirs is the A10's; the others are not in their table, or have no bfloat16
    compared = {card.name for card in CARDS} - {"A10G", "RTX-4090", "RTX-3090", "T4"}
    assert {name: theirs[name] for name in compared} == {
        card.name: card.tflops * 1e12 for card in CARDS if card.name in compared
    }
    assert all(theirs[name] is None for name in ("RTX-4090", "RTX-3090", "T4"))


@pytest.mark.parametrize("written", ["h100-80gb", "H100 80GB", "nvidia_h100_80gb", "NVIDIA H100 80GB HBM3"])
def test_a_card_is_found_however_it_is_written(written):
    assert find_card(written).name == "H100-80GB"


def test_an_unknown_card_is_one_line_with_those_there_are():
    with pytest.raises(ConfigError, match=r"--gpu 'GTX 1080' is not known; there are H200, .*, T4; of another one"):
        find_card("GTX 1080")
