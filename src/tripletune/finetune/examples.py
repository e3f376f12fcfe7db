"""Examples of a training as datasets: whole chats for TRL, or prompts with their candidates' label tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tripletune.answer_lines import LineTokens, Names
from tripletune.chat import write_chat
from tripletune.errors import TrainingError
from tripletune.finetune.job import TrainingJob
from tripletune.schemas.answers import answer_style

_TOKENIZED_AT_ONCE = 1000
_READ = ("example_id", "candidate_titles", "candidate_letters", "candidates", "answers", "retrieved")
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


def label_examples(examples: Dataset, tokenizer: Any, job: TrainingJob) -> Dataset:
    """Prompts with what the loss over labels needs.

    Returns:
        ``input_ids`` of the prompt up to where the answer begins, and for each candidate in the order shown its label's
        token (``label_ids``), its share of the target (``targets``: the answers share it evenly) and its place in the
        retriever's order (``places``, from 0).

    Raises:
        TrainingError: a label is not a single token, no candidate is an answer, or a prompt exceeds ``max_length``.
    """
    lines, style = LineTokens(tokenizer), answer_style(job.answer_style)

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The new columns of some rows."""
        texts = [write_chat(tokenizer, prompt, job.base_name, opened=True) for prompt in rows["prompt"]]
        new: dict[str, list[Any]] = {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}
        new |= {"label_ids": [], "targets": [], "places": []}
        for example_id, titles, letters, shown, answers, retrieved in zip(*(rows[name] for name in _READ), strict=True):
            tokens = lines.single(Names.of(style, titles, letters))
            if tokens is None:
                raise TrainingError(
                    f"finetune.objective = {job.settings.objective!r} reads each candidate's score at its label, and "
                    f"the tokenizer of {job.base_name} cuts labels of {len(shown)} candidates into several tokens; "
                    "lower retrieve.num_candidates to 26 or less, or set finetune.objective to 'sft'"
                )
            hits = set(answers) & set(shown)
            if not hits:
                raise TrainingError(
                    f"the example {example_id} has no answer among its candidates, so "
                    f"finetune.objective = {job.settings.objective!r} has no target there; generate the prompts again, "
                    "or set finetune.objective to 'sft'"
                )
            place = {film: number for number, film in enumerate(retrieved)}
            new["label_ids"].append(tokens)
            new["targets"].append([(film in hits) / len(hits) for film in shown])
            new["places"].append([place[film] for film in shown])
        return new

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


def pad_labels(rows: Sequence[dict[str, Any]], pad: int, prior: Sequence[float]) -> dict[str, torch.Tensor]:
    """Batch of ``label_examples``, padded on the right: causal attention sees nothing of it, so it needs no mask.

    Returns:
        ``input_ids`` (B, L), ``last`` (B,) the place of each prompt's last token, ``label_ids``, ``targets``,
        ``prior`` and ``shown`` (B, C), and ``labels``, which the Trainer only counts: one for each example.
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    width = max(len(row["label_ids"]) for row in rows)

    def padded(values: Sequence[Sequence[float]], to: int, fill: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([[*row, *([fill] * (to - len(row)))] for row in values], dtype=dtype)

    place_BC = padded([row["places"] for row in rows], width, 0, torch.long)
    return {
        "input_ids": padded([row["input_ids"] for row in rows], int(lengths.max()), pad, torch.long),
        "last": lengths - 1,
        "label_ids": padded([row["label_ids"] for row in rows], width, 0, torch.long),
        "targets": padded([row["targets"] for row in rows], width, 0.0, torch.float32),
        "prior": torch.tensor(prior, dtype=torch.float32)[place_BC],
        "shown": torch.arange(width)[None] < torch.tensor([[len(row["label_ids"])] for row in rows]),
        "labels": torch.zeros(len(rows), dtype=torch.long),
        "shift_labels": torch.zeros(len(rows), dtype=torch.long),
    }


def _require_fitting(lengths: list[int], example_ids: list[str], job: TrainingJob) -> None:
    longest, limit = max(lengths), job.settings.max_length
    if longest > limit:
        too_long = sum(length > limit for length in lengths)
        raise TrainingError(
            f"{too_long} of {len(lengths)} examples are longer than finetune.max_length = {limit} tokens, the "
            f"longest, {example_ids[lengths.index(longest)]}, has {longest}; set finetune.max_length to "
            f"{longest} or more, or show less (prompt.max_liked, retrieve.num_candidates, retrieve.triples_per_film)"
        )
