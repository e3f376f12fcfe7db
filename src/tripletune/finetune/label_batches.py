# Shape letters in this file: B examples of a batch, C candidates, L tokens of the longest prompt, V tokens of the
# vocabulary
"""Prompts with their candidates' label tokens: tokenised, padded into batches, and read where the answer begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from tripletune.answer_lines import LineTokens, Names
from tripletune.behaviour.tokens import BehaviourTokens, prompt_ids
from tripletune.errors import TrainingError
from tripletune.next_token import next_token_logits
from tripletune.schemas.answers import YES_NO, AnswerStyle

_READ = ("example_id", "candidate_titles", "candidate_letters", "candidates", "retrieved")


def tokenize_labels(
    rows: Mapping[str, Sequence[Any]],
    tokenizer: Any,
    lines: LineTokens,
    style: AnswerStyle,
    *,
    base_name: str,
    objective: str,
    targets: Literal["even", "rating"] = "even",
    behaviour: BehaviourTokens | None = None,
) -> dict[str, list[Any]]:
    """Prompts with what the loss over labels needs.

    Args:
        rows: columns ``example_id``, ``prompt``, ``candidates``, ``candidate_titles``, ``candidate_letters``,
            ``answers`` and ``retrieved`` of the shards, those of ``behaviour``, and ``answer_ratings`` where the
            targets are by rating.
        tokenizer, lines: of the base model; ``lines`` keeps the labels that it has cut.
        style: of the answers.
        base_name, objective: for the message.
        targets: how the answers among the candidates share the target, see ``_gains``.
        behaviour: writes the prompts with behaviour tokens; None: as text alone.

    Returns:
        ``input_ids`` of the prompt up to where the answer begins, and for each candidate in the order shown its label's
        token (``label_ids``), its share of the target (``targets``) and its place in the retriever's order
        (``places``, from 0). A question about a single film has one of each for Yes and for No.

    Raises:
        TrainingError: a label is not a single token, or no candidate is an answer.
    """
    new: dict[str, list[Any]] = {"input_ids": prompt_ids(rows, tokenizer, base_name, behaviour)}
    new |= {"label_ids": [], "targets": [], "places": []}
    read = (rows[name] for name in _READ)
    for example_id, titles, letters, shown, retrieved, gains in zip(*read, _gains(rows, targets), strict=True):
        tokens = lines.single(Names.of(style, titles, letters))
        if tokens is None:
            other = "set ensemble.forms to []" if len(shown) == 1 else "lower retrieve.num_candidates to 26 or less"
            raise TrainingError(
                f"finetune.objective = {objective!r} reads each candidate's score at its label, and "
                f"the tokenizer of {base_name} cuts labels of {len(shown)} candidates into several tokens; "
                f"{other}, or set finetune.objective to 'sft'"
            )
        gain = [gains.get(film, 0.0) for film in shown]
        if tuple(letters) == YES_NO:
            gain, shown = [gain[0], float(not gain[0])], [*shown, *shown]
        total = sum(gain)
        if not total:
            raise TrainingError(
                f"the example {example_id} has no answer among its candidates, so finetune.objective = {objective!r} "
                "has no target there; generate the prompts again, or set finetune.objective to 'sft'"
            )
        place = {film: number for number, film in enumerate(retrieved)}
        new["label_ids"].append(tokens)
        new["targets"].append([one / total for one in gain])
        new["places"].append([place[film] for film in shown])
    return new


def _gains(rows: Mapping[str, Sequence[Any]], targets: Literal["even", "rating"]) -> list[dict[int, float]]:
    """Gain of each answer, by example: 1, or ``2**rating - 1`` as in nDCG by the height of the ratings."""
    if targets == "even":
        return [dict.fromkeys(answers, 1.0) for answers in rows["answers"]]
    rated = zip(rows["answers"], rows["answer_ratings"], strict=True)
    return [
        {film: 2.0**rating - 1 for film, rating in zip(answers, ratings, strict=True)} for answers, ratings in rated
    ]


def pad_labels(rows: Sequence[dict[str, Any]], pad: int, prior: Sequence[float]) -> dict[str, Tensor]:
    """Batch of ``tokenize_labels``, padded on the right: causal attention sees nothing of it, so it needs no mask.

    Returns:
        ``input_ids`` (B, L), ``last`` (B,) the place of each prompt's last token, ``label_ids``, ``targets``,
        ``places``, ``prior`` and ``shown`` (B, C), and ``labels``, which the Trainer only counts: one for each example;
        also ``taught`` (B, C) of examples that a teacher has scored.
    """
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    width = max(len(row["label_ids"]) for row in rows)

    def padded(values: Sequence[Sequence[float]], to: int, fill: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *([fill] * (to - len(row)))] for row in values], dtype=dtype)

    place_BC = padded([row["places"] for row in rows], width, 0, torch.long)
    taught = (
        {"taught": padded([row["taught"] for row in rows], width, 0.0, torch.float32)} if "taught" in rows[0] else {}
    )
    return {
        "input_ids": padded([row["input_ids"] for row in rows], int(lengths.max()), pad, torch.long),
        "last": lengths - 1,
        "label_ids": padded([row["label_ids"] for row in rows], width, 0, torch.long),
        "targets": padded([row["targets"] for row in rows], width, 0.0, torch.float32),
        "places": place_BC,
        "prior": torch.tensor(prior, dtype=torch.float32)[place_BC],
        "shown": torch.arange(width)[None] < torch.tensor([[len(row["label_ids"])] for row in rows]),
        "labels": torch.zeros(len(rows), dtype=torch.long),
        "shift_labels": torch.zeros(len(rows), dtype=torch.long),
        **taught,
    }


def label_logits(model: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits in float32 after each prompt's last token: of the labels (B, C) and of all tokens (B, V)."""
    logits_BV = next_token_logits(model, inputs["input_ids"], inputs["last"])
    return logits_BV.gather(1, inputs["label_ids"]), logits_BV
