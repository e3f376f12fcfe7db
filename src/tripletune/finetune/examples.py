"""Examples of a training as datasets: whole chats for TRL, or prompts with their candidates' label tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from tripletune.answer_lines import LineTokens
from tripletune.behaviour.tokens import BehaviourTokens
from tripletune.chat import write_chat
from tripletune.errors import TrainingError
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.label_batches import tokenize_labels
from tripletune.schemas.answers import answer_style

_TOKENIZED_AT_ONCE = 1000
"""Columns from which the labels and targets of an example are made."""


def read_examples(files: tuple[Path, ...], job: TrainingJob) -> Dataset:
    """The columns that the job's objective reads."""
    names = [str(path) for path in files]
    return Dataset.from_parquet(names, columns=job.columns, cache_dir=str(job.scratch / "datasets"))


def chat_lengths(examples: Dataset, tokenizer: Any, job: TrainingJob) -> list[int]:
    """Tokens of each chat, prompt and completion.

    Raises:
        TrainingError: one exceeds ``max_length``.
    """
    lengths: list[int] = []
    for rows in examples.iter(batch_size=_TOKENIZED_AT_ONCE):
        chats = [prompt + completion for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True)]
        texts = [write_chat(tokenizer, chat, job.base_name) for chat in chats]
        lengths += [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    _require_fitting(lengths, examples["example_id"], job)
    return lengths


def label_examples(
    examples: Dataset, tokenizer: Any, job: TrainingJob, behaviour: BehaviourTokens | None = None
) -> Dataset:
    """The columns of ``label_batches.tokenize_labels``.

    Raises:
        TrainingError: a label is not a single token, no candidate is an answer, or a prompt exceeds ``max_length``.
    """
    lines, style = LineTokens(tokenizer), answer_style(job.answer_style)

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The new columns of some rows."""
        return tokenize_labels(
            rows,
            tokenizer,
            lines,
            style,
            base_name=job.base_name,
            objective=job.settings.objective,
            targets=job.settings.targets,
            behaviour=behaviour,
        )

    made = examples.map(
        tokenize,
        batched=True,
        batch_size=_TOKENIZED_AT_ONCE,
        remove_columns=[name for name in examples.column_names if name != "example_id"],
        load_from_cache_file=False,
        keep_in_memory=True,
    )
    _require_fitting([len(ids) for ids in made["input_ids"]], made["example_id"], job)
    return made.remove_columns("example_id")


def _require_fitting(lengths: list[int], example_ids: list[str], job: TrainingJob) -> None:
    longest, limit = max(lengths), job.settings.max_length
    if longest > limit:
        too_long = sum(length > limit for length in lengths)
        raise TrainingError(
            f"{too_long} of {len(lengths)} examples are longer than finetune.max_length = {limit} tokens, the "
            f"longest, {example_ids[lengths.index(longest)]}, has {longest}; set finetune.max_length to "
            f"{longest} or more, or show less (prompt.max_liked, retrieve.num_candidates, retrieve.triples_per_film)"
        )
