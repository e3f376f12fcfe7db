"""Small tokenizers with the cuts, normaliser and chat template of well-known models, learnt from the tests' prompts."""

from __future__ import annotations

import functools
import json
from typing import Any

from prompt_frames import build, llama_like_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tripletune.prompts.template import shipped

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' %}"
    "{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + message.content + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
TURNS = (
    "{{ bos_token }}{%- set first = messages[0]['content'] + '\n\n' if messages[0]['role'] == 'system' else '' -%}"
    "{%- for message in messages if message['role'] != 'system' -%}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' }}"
    "{{ (first if loop.first else '') + message['content'] | trim }}{{ '<end_of_turn>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)


@functools.cache
def like(model: str) -> Any:
    """A tokenizer like that of ``llama``, ``qwen``, ``gemma`` or ``smollm``; or one that joins lines of a prompt."""
    made = {"llama": llama_like_tokenizer, "qwen": _qwen, "gemma": _gemma, "smollm": _smollm, "joining": _joining}
    return made[model]()


def _qwen() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _learn(tokenizer, ["<|im_start|>", "<|im_end|>"], THINKING, eos_token="<|im_end|>")


def _smollm() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _learn(tokenizer, ["<|im_start|>", "<|im_end|>"], CHATML, eos_token="<|im_end|>")


def _joining() -> Any:
    tokenizer = Tokenizer(models.BPE())
    # the break before a line of a list, and its mark, are one word
    cut = pre_tokenizers.Split(Regex(r"\n- |[^\n]+|\n"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _learn(tokenizer, ["<|im_start|>", "<|im_end|>"], CHATML, eos_token="<|im_end|>")


def _gemma() -> Any:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    names = ["<unk>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    return _learn(tokenizer, names, TURNS, fallback, bos_token="<bos>", eos_token="<end_of_turn>")


def _learn(tokenizer: Tokenizer, names: list[str], template: str, further: list[str] | None = None, **ends: str) -> Any:
    special = [AddedToken(name, special=True, normalized=False) for name in names]
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=[*special, *(further or [])],
        initial_alphabet=[] if further else sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [message["content"] for name in shipped() for prompt in build(name)["prompt"] for message in prompt]
    if further:  # its cuts do not end a word at the end of a line
        texts = [line for text in texts for line in text.splitlines(keepends=True)]
    tokenizer.train_from_iterator(texts, trainer=trainer)
    described = json.loads(tokenizer.to_str())
    # plain tokens: as special ones they would be dropped where an answer is decoded
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in names]
    tokenizer = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **ends)
