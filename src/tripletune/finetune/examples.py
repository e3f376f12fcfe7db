"""Columns of token ids of an example, by objective: whole chats with their labels, or prompts with label tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from tripletune.answer_lines import LineTokens
from tripletune.behaviour.tokens import BehaviourTokens
from tripletune.chat import write_chat
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.label_batches import tokenize_labels
from tripletune.schemas.answers import answer_style

Rows = Mapping[str, Sequence[Any]]
_NO_LOSS = -100
"""Label of a token that the loss leaves out, as in transformers."""


def column_maker(
    job: TrainingJob, tokenizer: Any, behaviour: BehaviourTokens | None = None
) -> Callable[[Rows], dict[str, list[Any]]]:
    """The function that makes the columns of the job's objective from some rows of ``job.columns``.

    Args:
        job: says the objective.
        tokenizer: of the base model.
        behaviour: writes prompts with behaviour tokens; None: as text alone.

    Returns:
        A function that gives ``input_ids`` and ``labels`` of ``chat_columns``, or the columns of ``tokenize_labels``,
        and raises what these raise.
    """
    if not job.settings.scores_labels:
        return lambda rows: chat_columns(rows, tokenizer, job.base_name)
    lines, style = LineTokens(tokenizer), answer_style(job.answer_style)
    return lambda rows: tokenize_labels(
        rows,
        tokenizer,
        lines,
        style,
        base_name=job.base_name,
        objective=job.settings.objective,
        targets=job.settings.targets,
        behaviour=behaviour,
    )


def chat_columns(rows: Rows, tokenizer: Any, base_name: str) -> dict[str, list[Any]]:
    """Whole chats, as TRL tokenises them: the completion begins where a chat's tokens and its prompt's part.

    Args:
        rows: columns ``prompt`` and ``completion``.
        tokenizer: of the base model.
        base_name: its name in errors.

    Returns:
        ``input_ids`` of prompt and completion, and ``labels``: the same for the completion, -100 for the prompt.
    """
    chats = [prompt + completion for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True)]
    texts = [write_chat(tokenizer, chat, base_name) for chat in chats]
    opened = [write_chat(tokenizer, prompt, base_name, opened=True) for prompt in rows["prompt"]]
    whole: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompts: list[list[int]] = tokenizer(opened, add_special_tokens=False)["input_ids"]
    labels = []
    for ids, prompt in zip(whole, prompts, strict=True):
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, prompt, strict=False)))
        labels.append([_NO_LOSS] * same + ids[same:])
    return {"input_ids": whole, "labels": labels}
