# Shape letters in this file: B prompts of a batch, V tokens of the vocabulary, C candidates of a prompt
"""Answer prompts in batches with a base model, or with it and an adapter merged into its weights.

Greedy decoding: the same prompt gets the same answer, up to the last bits of float sums, which depend on the batch a
prompt is padded in; where two titles are that close, another batch may turn them round. Scores of labels are the same
bits for any number of threads: each batch is computed on one. Written answers are decoded on all threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import torch
from torch import Tensor
from transformers import GenerationConfig

from tripletune.answer_lines import LineTokens, Names
from tripletune.behaviour.embedding import attach_films, with_unknown
from tripletune.behaviour.space import require_space, vectors_for
from tripletune.behaviour.tokens import UNKNOWN, BehaviourTokens, prompt_ids
from tripletune.chat import load_tokenizer
from tripletune.contract import AdapterContract, BaseIdentity, locate_base, read_contract
from tripletune.errors import ContractError, NonFiniteError
from tripletune.forms import Message
from tripletune.next_token import head_in_float32, next_token_logits
from tripletune.rank.decoding import AnswerConstraint, read_answer
from tripletune.rank.ensemble import combine_forms
from tripletune.rank.line_scores import score_lines
from tripletune.rank.merge import load_base, merge_adapter
from tripletune.schemas.answers import ANSWER_STYLES, NUM_ANSWERS, AnswerStyle
from tripletune.schemas.rank import PREDICTIONS
from tripletune.threads import map_blocks

_SHARED = ("user_id", "answers", "scores", "valid", "text")
Result = TypeVar("Result")
ANSWERED = pl.Schema({**{name: PREDICTIONS[name] for name in _SHARED}, "num_tokens": pl.Int32()})


@dataclass(frozen=True, slots=True)
class Written:
    """One answer: its text, and all candidates (by place) with their scores, best first, where each has one."""

    text: str
    num_tokens: int
    order: list[int] | None = None
    scores: list[float] | None = None


@dataclass(slots=True)
class Answerer:
    """A loaded model, tuned or not; make it with ``load``."""

    model: Any
    tokenizer: Any
    lines: LineTokens
    contract: AdapterContract
    tuned: bool = True
    """Whether the adapter is in the model's weights."""
    behaviour: BehaviourTokens | None = None

    def __post_init__(self) -> None:
        # a call takes what it does not set itself from here, such as the folder's repetition penalty
        self.model.generation_config = GenerationConfig()

    @classmethod
    def load(
        cls,
        finetuned: Path,
        folder_of: Callable[[str], Path] | None = None,
        *,
        tuned: bool = True,
        quantization: str = "none",
    ) -> Answerer:
        """Load the model of a finetuned folder, on the GPU where there is one.

        Args:
            finetuned: the folder.
            folder_of: the run's folder of a stage, whose film vectors the adapter's behaviour tokens are made of.
            tuned: with the adapter, merged into the weights: LoRA's own products cost a third of a forward pass.
                Without it the base model answers, to text alone.
            quantization: format that the weights are rounded to when the adapter is in them, see ``quantize``; none:
                they stay as they are.

        Raises:
            MissingArtifactError, ContractError: no adapter, its base model has changed, or it answers in a style that
                this version does not have.
            NonFiniteError: a weight of the adapter is NaN or infinite.
        """
        contract, base, tokenizer = open_folder(finetuned)
        model = load_base(base, contract)
        behaviour = None
        if tuned:
            behaviour = _attach_behaviour(model, tokenizer, finetuned, contract, folder_of)
            model = merge_adapter(model, finetuned / "adapter")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if quantization != "none":
            from tripletune.rank.quantize import quantize  # imports a library that only such a ranking needs

            quantize(model, quantization, device)
        model = model.to(device).eval()
        head_in_float32(model)
        return cls(model, tokenizer, LineTokens(tokenizer), contract, tuned, behaviour)

    def close(self) -> None:
        """Give back what does not go with this object; a model in this process does."""

    @property
    def style(self) -> AnswerStyle:
        """The style that the adapter was trained to answer in."""
        return style_of(self.contract)

    def answer(self, examples: pl.DataFrame, *, constrained: bool, batch_size: int) -> pl.DataFrame:
        """Answer each example; rows of ``ANSWERED`` in the order of ``examples``. Where the contract has an ensemble,
        constrained answers are those of ``combine_forms``, with its column ``utilities``.

        Args:
            examples: ``user_id``, ``prompt``, ``candidates``, ``candidate_titles``, ``candidate_letters`` as in the
                shards; for behaviour tokens also ``example_id`` and the contract's columns.
            constrained: allow only valid answers. Labels of one token each take one forward pass, which scores all
                candidates. Titles, and labels that this tokenizer cuts, are decoded line by line. Without constraint an
                answer is as long as those the adapter was trained to write: five lines, or one label.
            batch_size: prompts answered together. They are sorted by length first, so that little is padding.

        Raises:
            NonFiniteError: a logit is NaN or infinite, of whatever token: the order of the others then means nothing.
        """
        return self._answered(examples, constrained=constrained, scored=False, batch_size=batch_size)

    def score(self, examples: pl.DataFrame, *, batch_size: int) -> pl.DataFrame:
        """Score every candidate, in both styles of answers; rows of ``ANSWERED`` in the order of ``examples``.

        Of the list's prompt alone, also where the contract has an ensemble. ``answers`` begins with the film that a
        constrained answer names first; the others follow by their ``scores``.
        Labels of one token have the scores of ``answer``, their logits. Titles, and labels that this tokenizer cuts,
        have the log-probability that a constrained answer begins with their line; each such prompt is scored alone.

        Args:
            examples, batch_size: as for ``answer``.

        Raises:
            NonFiniteError: as ``answer``.
        """
        return self._answered(examples, constrained=True, scored=True, batch_size=batch_size)

    def _answered(self, examples: pl.DataFrame, *, constrained: bool, scored: bool, batch_size: int) -> pl.DataFrame:
        read = examples.select("prompt", *(("example_id", *self.behaviour.columns) if self.behaviour else ()))
        ids = prompt_ids(read.to_dict(as_series=False), self.tokenizer, self.contract.base_model, self.behaviour)
        named = examples.select("candidate_titles", "candidate_letters").iter_rows()
        requested = 1 if self._names_one and not constrained else NUM_ANSWERS
        names = [Names.of(self.style, titles, labels, requested) for titles, labels in named]
        candidates: list[list[int]] = examples["candidates"].to_list()
        users = examples["user_id"].to_list()
        order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), users[row]))
        rows: dict[int, dict[str, Any]] = {}
        write = self._score if scored else self._write
        for row, answer in write(ids, names, order, constrained, batch_size):
            found, valid = read_answer(answer.text, names[row])
            best = found if answer.order is None else answer.order
            rows[row] = {
                "user_id": users[row],
                "answers": [candidates[row][index] for index in best],
                "scores": answer.scores,
                "valid": valid,
                "text": answer.text,
                "num_tokens": answer.num_tokens,
            }
        listed = pl.DataFrame([rows[row] for row in range(len(rows))], schema=ANSWERED)
        if self.contract.ensemble is None or scored or not constrained:
            return listed
        score = functools.partial(self.score_labels, batch_size=batch_size)
        return combine_forms(examples, listed, self.contract.ensemble, score)

    def score_labels(
        self, prompts: Sequence[Sequence[Message]], labels: Sequence[Sequence[str]], *, batch_size: int
    ) -> list[list[float]]:
        """Logits of each prompt's labels where its answer begins, in one forward pass a batch.

        Raises:
            ContractError: the tokenizer cuts a label.
            NonFiniteError: as ``answer``.
        """
        ids = prompt_ids({"prompt": prompts}, self.tokenizer, self.contract.base_model, None)
        tokens = []
        for several in labels:
            found = self.lines.single(Names(several, self.style))
            if found is None:
                raise ContractError(
                    f"the tokenizer of {self.contract.base_model} cuts one of the labels {', '.join(several)} of the "
                    "short forms; train without ensemble.forms, or on another model"
                )
            tokens.append(found)
        batches = _batches(sorted(range(len(ids)), key=lambda row: len(ids[row])), batch_size)

        def score(number: int) -> list[Tensor]:
            batch = batches[number]
            return self._label_logits([ids[row] for row in batch], [tokens[row] for row in batch])

        scores: list[list[float]] = [[] for _ in ids]
        for batch, logits in zip(batches, self._each(score, len(batches)), strict=True):
            for row, logits_C in zip(batch, logits, strict=True):
                scores[row] = logits_C.tolist()
        return scores

    @contextmanager
    def _finite_logits(self) -> Iterator[None]:
        """Look at the logits of each forward pass as the model gives them, before anything masks or sorts them."""

        def check(module: Any, inputs: Any, output: Any) -> None:
            if not torch.isfinite(output.logits[:, -1]).all():  # what stands before may belong to padding
                raise self._not_finite()

        hook = self.model.register_forward_hook(check)
        try:
            yield
        finally:
            hook.remove()

    def _not_finite(self) -> NonFiniteError:
        return NonFiniteError(
            "the tuned model's logits are NaN or infinite; run finetune again with a lower finetune.learning_rate"
            if self.tuned
            else f"the untuned model's logits are NaN or infinite; check the weights of {self.contract.base_model!r}"
        )

    @property
    def _names_one(self) -> bool:
        """Whether the adapter was trained on the first label alone."""
        return self.contract.objective != "sft"

    def _write(
        self, ids: list[list[int]], names: Sequence[Names], order: Sequence[int], constrained: bool, batch_size: int
    ) -> Iterator[tuple[int, Written]]:
        """The answer to each prompt with its row, in batches along ``order``.

        Prompts answered by label and prompts answered in writing never share a batch, so an answer does not depend on
        how its neighbours are answered.
        """
        labels = [self.lines.single(row) if constrained else None for row in names]
        by_label = _batches([row for row in order if labels[row] is not None], batch_size)
        in_writing = _batches([row for row in order if labels[row] is None], batch_size)

        def score(number: int) -> list[Tensor]:
            batch = by_label[number]
            return self._label_logits([ids[row] for row in batch], [labels[row] or [] for row in batch])

        with self._finite_logits():
            for batch, logits in zip(by_label, self._each(score, len(by_label)), strict=True):
                for row, logits_C in zip(batch, logits, strict=True):
                    yield row, self._by_label(logits_C, names[row])
            for batch in in_writing:
                answers = self._generate([ids[row] for row in batch], [names[row] for row in batch], constrained)
                yield from zip(batch, answers, strict=True)

    def _score(
        self, ids: list[list[int]], names: Sequence[Names], order: Sequence[int], constrained: bool, batch_size: int
    ) -> Iterator[tuple[int, Written]]:
        """As ``_write``, with a score for each candidate also where an answer is written out."""
        in_writing = [row for row in order if self.lines.single(names[row]) is None]

        def score(number: int) -> list[tuple[Tensor, int]]:
            row = in_writing[number]
            texts = [names[row].line(1, index) for index in range(len(names[row]))]
            lines = self.lines.lines(texts, first=True, last=names[row].num_answers == 1)
            return [score_lines(self.model, ids[row], lines, self.lines.end)]

        by_label = [row for row in order if self.lines.single(names[row]) is not None]
        yield from self._write(ids, names, by_label, constrained, batch_size)
        if not in_writing:
            return
        for row, [(scores_C, first)] in zip(in_writing, self._each(score, len(in_writing)), strict=True):
            if not torch.isfinite(scores_C).all():
                raise self._not_finite()
            best: list[int] = scores_C.argsort(descending=True, stable=True).tolist()
            best = [first, *(index for index in best if index != first)]
            yield row, Written(names[row].line(1, first), 0, best, scores_C[best].tolist())

    def _each(self, function: Callable[[int], list[Result]], num_batches: int) -> Iterable[list[Result]]:
        """Results batch by batch: one after the other on a GPU, on the CPU each on one thread and several at once."""
        on_gpu = self.model.device.type == "cuda"
        return map(function, range(num_batches)) if on_gpu else map_blocks(function, num_batches)

    def _label_logits(self, prompts: list[list[int]], labels: Sequence[list[int]]) -> list[Tensor]:
        """One forward pass: the logits of each prompt's labels where its answer begins, each of shape (C,)."""
        width, pad, device = max(map(len, prompts)), self.tokenizer.pad_token_id, self.model.device
        input_ids = torch.tensor([row + [pad] * (width - len(row)) for row in prompts], device=device)
        last = torch.tensor([len(row) - 1 for row in prompts], device=device)
        most = max(map(len, labels))
        label_ids_BC = torch.tensor([row + row[:1] * (most - len(row)) for row in labels], device=device)
        with torch.inference_mode():
            logits_BV = next_token_logits(self.model, input_ids, last)
            if not torch.isfinite(logits_BV).all():
                raise self._not_finite()
            logits_BC = logits_BV.gather(1, label_ids_BC).cpu()
        return [logits_C[: len(row)] for logits_C, row in zip(logits_BC, labels, strict=True)]

    def _by_label(self, logits_C: Tensor, names: Names) -> Written:
        """All labels by how likely each is to begin the answer, of which the first are written."""
        scores, order = logits_C.sort(descending=True, stable=True)
        best = order.tolist()
        text = "\n".join(names.line(number, index) for number, index in enumerate(best[: names.num_answers], 1))
        num_tokens = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        return Written(text, num_tokens, best, scores.tolist())

    def _generate(self, prompts: list[list[int]], names: Sequence[Names], constrained: bool) -> list[Written]:
        """Greedy decoding, up to and without the end token."""
        inputs = self.tokenizer.pad({"input_ids": prompts}, return_tensors="pt").to(self.model.device)
        prompt_length = inputs["input_ids"].shape[1]
        constraint = AnswerConstraint(self.lines, names, prompt_length) if constrained else None
        one_label = self._names_one and not constrained  # its end token was never trained
        settings = GenerationConfig(
            max_new_tokens=1 if one_label else self._longest_answer(names),  # a longer answer can't be a valid one
            do_sample=False,
            num_beams=1,
            eos_token_id=self.lines.end,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        with torch.inference_mode():
            output = self.model.generate(**inputs, generation_config=settings, prefix_allowed_tokens_fn=constraint)
        return [self._as_text(row) for row in output[:, prompt_length:].tolist()]

    def _as_text(self, tokens: list[int]) -> Written:
        """An answer that the model wrote, without its end token and what pads the batch behind it."""
        end = self.lines.end
        answer = tokens[: tokens.index(end)] if end in tokens else tokens
        return Written(self.tokenizer.decode(answer, skip_special_tokens=True), len(answer))

    def _longest_answer(self, names: Sequence[Names]) -> int:
        """Tokens the longest possible answer of a batch takes, its end token included."""
        longest = 0
        for row in names:
            total = 0
            for number in range(1, row.num_answers + 1):
                texts = [row.line(number, index) for index in range(len(row))]
                lines = self.lines.lines(texts, first=number == 1, last=number == row.num_answers)
                total += max(map(len, lines))
            longest = max(longest, total)
        return longest


def _batches(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def open_folder(finetuned: Path) -> tuple[AdapterContract, BaseIdentity, Any]:
    """Contract of a finetuned folder, its base model and that one's tokenizer; no weights are loaded.

    Raises:
        MissingArtifactError, ContractError: as ``Answerer.load``.
    """
    contract = read_contract(finetuned)
    style_of(contract)
    base = locate_base(finetuned, contract)
    tokenizer = load_tokenizer(base.source, base.hub_revision, contract.date_string)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return contract, base, tokenizer


def _attach_behaviour(
    model: Any,
    tokenizer: Any,
    finetuned: Path,
    contract: AdapterContract,
    folder_of: Callable[[str], Path] | None,
) -> BehaviourTokens | None:
    """Let the model read the behaviour tokens that the adapter was trained with, if it was."""
    if not contract.behaviour:
        return None
    if folder_of is None:
        raise ContractError(f"{finetuned}: the adapter reads film vectors, and no run that has them is given")
    films = vectors_for(finetuned, contract.behaviour, folder_of)
    require_space(films, contract.behaviour)
    attach_films(model, with_unknown(films.vectors_MD), seed=0)
    return BehaviourTokens(
        tokenizer, films.movie_ids_M.tolist(), UNKNOWN + 1, contract.behaviour.columns, contract.base_model
    )


def style_of(contract: AdapterContract) -> AnswerStyle:
    """The style that an adapter was trained to answer in.

    Raises:
        ContractError: this version has no such style.
    """
    stated = contract.prompt.get("answer_style")
    if stated not in ANSWER_STYLES:
        raise ContractError(
            f"the adapter's contract says answer_style: {stated}; this version knows {', '.join(ANSWER_STYLES)}; "
            "run the finetune stage again"
        )
    return ANSWER_STYLES[stated]
