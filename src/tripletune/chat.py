"""The chat format of a base model: its tokenizer, with all fixed that its template may write differently tomorrow.

Counting, training and ranking read their tokenizer here, so they write the same text. Templates are programs: some
write the present day (Llama 3.2) or open an answer with a block of reasoning unless a flag forbids it (Qwen 3).
"""

from __future__ import annotations

import os
from itertools import takewhile
from typing import Any

from tripletune.errors import ConfigError, InputError

DATE = "26 Jul 2024"
"""The day that a template writes, whatever the day is; Llama 3's own templates write this one where they know none."""
_FIXED = (
    "{{% set date_string = '{date}' %}}{{% set enable_thinking = false %}}"
    "{{% macro strftime_now(format) %}}{date}{{% endmacro %}}\n"
)
"""Before a template: names that it looks up. The line break belongs to the last block and is not written."""
_CHAT = [{"role": "system", "content": "A system."}, {"role": "user", "content": "A question?"}]
_REPLIES = ("A", "Q", "QX", "1. A", "1. é", '1. "x', "1. 漢字")
"""Beginnings of answers: labels, and numbered titles."""
_RENDERED = 3


def load_tokenizer(
    source: str | os.PathLike[str], revision: str | None = None, date: str = DATE, *, cached: bool = False
) -> Any:
    """Read a fast tokenizer and fix what its chat template may change.

    Args:
        source: a local folder or a Hugging Face id.
        revision: commit of an id.
        date: the day that the template writes where it writes one.
        cached: do not ask the hub for an id that is not in the cache.

    Raises:
        InputError: there is none, or it is neither cached nor reachable. ConfigError: it is not a fast one.
    """
    from transformers import AutoTokenizer  # takes seconds to import

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision=revision or None, trust_remote_code=False, local_files_only=cached
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"finetune.model = {str(source)!r}: its tokenizer cannot be read: {str(error).strip().splitlines()[0]}; "
            "name a local folder that has it, or fill the Hugging Face cache on a machine with network"
        ) from None
    if not tokenizer.is_fast:
        raise ConfigError(
            f"finetune.model = {str(source)!r} has no fast tokenizer (tokenizer.json); use a model that has"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    fix_template(tokenizer, date)
    return tokenizer


def fix_template(tokenizer: Any, date: str = DATE) -> None:
    """Fix what the chat template of a tokenizer may change from call to call; done twice it changes nothing more."""
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name; without tools this one is used
        template = template.get("default")
    fixed = _FIXED.format(date=date)
    if template and not template.startswith(fixed):
        tokenizer.chat_template = fixed + template


def write_chat(tokenizer: Any, chat: list[dict[str, str]], source: str, *, opened: bool = False) -> str:
    """A chat as text; ``opened`` ends it where the answer begins.

    Raises:
        ConfigError: the template does not take these messages.
    """
    try:
        text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opened)
    except Exception as error:  # jinja's errors, and any that a model's template raises
        raise ConfigError(
            f"{source} has no chat template that takes system, user and assistant messages: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; use an instruction-tuned model"
        ) from None
    return text


def require_one_format(tokenizer: Any, source: str) -> None:
    """Check that a chat is written the same in every call, and that an answer is written where the model is asked.

    Raises:
        ConfigError: two calls differ, or what the model is given before its answer is not what stands before a written
            answer, as text or as tokens; or nothing ends the answer.
    """
    opened = write_chat(tokenizer, _CHAT, source, opened=True)
    for _ in range(_RENDERED):
        if write_chat(tokenizer, _CHAT, source, opened=True) != opened:
            raise ConfigError(
                f"the chat template of {source} writes the same chat differently from call to call, so training and "
                "ranking would read other prompts; use a model whose template does not"
            )
    prompt_ids = tokenizer(opened, add_special_tokens=False)["input_ids"]
    for reply in _REPLIES:
        whole = write_chat(tokenizer, [*_CHAT, {"role": "assistant", "content": reply}], source)
        if not whole.startswith(opened + reply):
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(opened, whole, strict=False)))
            raise ConfigError(
                f"the chat template of {source} does not write an answer as header, text, end token: where a written "
                f"chat goes on {whole[same:][:40]!r}, the model is asked after {opened[same:][:40]!r}; use a model "
                "with a Llama-3-like template"
            )
        (end, *_) = tokenizer(whole[len(opened + reply) :], add_special_tokens=False)["input_ids"] or [None]
        if end not in tokenizer.added_tokens_decoder:
            raise ConfigError(
                f"the chat template of {source} does not end an answer with a control token: what follows it is "
                f"{whole[len(opened + reply) :][:40]!r}; use a model with a Llama-3-like template"
            )
        if tokenizer(whole, add_special_tokens=False)["input_ids"][: len(prompt_ids)] != prompt_ids:
            raise ConfigError(
                f"the tokenizer of {source} joins the header of an answer and its beginning {reply!r}, so training and "
                "ranking would read other tokens; use a model whose chat template ends the header with a line break"
            )
