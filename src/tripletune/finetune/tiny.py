"""Tiny Llama for a laptop and for CI: the same files, chat format and code path as a large model.

Byte-level BPE trained on the prompts themselves, with Llama 3's pre-tokeniser and control tokens; weights drawn from a
seed. It is not pretrained: it shows that training, decoding and tracking work, and how far copying gets.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tripletune.config import TinyLlamaConfig
from tripletune.store.read import scan_parquet

SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
_BEGIN, _END, _, _, _EOT, _PAD = SPECIAL_TOKENS
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_POSITIONS = 8192
_TOKENIZER_EXAMPLES = 20_000
"""Examples the tokenizer is trained on; more change nothing at these vocabulary sizes."""


def write_tiny_llama(train: Sequence[Path], folder: Path, settings: TinyLlamaConfig, seed: int) -> None:
    """Write tokenizer, config and weights as a Hugging Face folder; the same input and seed give the same bytes.

    Args:
        train: shards with ``prompt`` and ``completion``; their text trains the tokenizer.
        folder: replaced if it exists; renamed into place when complete.
        settings: vocabulary size and shape.
        seed: seed of the weights.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer = train_tokenizer(_texts(train), settings.vocab_size)
    model = build_model(tokenizer, settings, seed)
    tokenizer.save_pretrained(str(part))
    model.save_pretrained(str(part), safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _texts(train: Sequence[Path]) -> Iterator[str]:
    chats = (scan_parquet(path).select(pl.concat_list("prompt", "completion").alias("message")) for path in train)
    messages = (
        pl.concat(chats)  # files of two stages have other columns
        .head(_TOKENIZER_EXAMPLES)
        .explode("message", empty_as_null=False)
        .select(pl.col("message").struct.field("content"))
        .collect()
    )
    yield from messages["content"]


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Llama 3's pre-tokeniser, control tokens and chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BEGIN,
        eos_token=_EOT,
        pad_token=_PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, settings: TinyLlamaConfig, seed: int) -> LlamaForCausalLM:
    """A Llama with weights drawn from ``seed``; the process's own random state is restored."""
    end_ids = tokenizer.convert_tokens_to_ids([_EOT, _END])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        max_position_embeddings=_POSITIONS,
        tie_word_embeddings=True,
        # unit-norm rows: with the usual 0.02 a frozen, tied embedding this narrow gives nearly flat predictions
        initializer_range=settings.hidden_size**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_ids,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.do_sample = False
    return model
