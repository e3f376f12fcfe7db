# Shape letters in this file: B examples of a batch, C candidates, E examples, L places after the first, M figures of an
# evaluation and their number, V tokens of the vocabulary
"""TRL's trainer with this project's objectives, and an evaluation that does not depend on the batch size.

The library's own evaluation gives means over batches, or over examples of their batch's mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from trl import SFTTrainer

from tripletune.finetune.curriculum import Curriculum
from tripletune.finetune.distillation import Distillation
from tripletune.finetune.label_batches import label_logits
from tripletune.finetune.label_loss import LOSSES, combined_scores, listwise_loss, mass_loss
from tripletune.finetune.label_ndcg import label_ndcg
from tripletune.finetune.length_batches import LengthBatches
from tripletune.finetune.meter import meter_of
from tripletune.finetune.token_files import token_lengths
from tripletune.residual import Flags, Floats


class ChatTrainer(SFTTrainer):  # type: ignore[misc]  # the library has no types
    """Objective ``sft``: each token of the completion; loss and accuracy are means over tokens, in training as well."""

    _sums: list[Tensor]
    """Of each batch, what ``_measure`` gave."""

    _measured: tuple[str, ...] = ("loss", "mean_token_accuracy")
    """Names of the evaluation's figures."""

    _curriculum: float | None = None
    """See ``LabelTrainer``."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.meter = meter_of(self.model, self.accelerator, recomputes=self.args.gradient_checkpointing)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], *arguments: Any, **named: Any) -> Any:
        """The next batches, whose loading is timed."""
        return super().get_batch_samples(self.meter.watch(epoch_iterator), *arguments, **named)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the meter's figures next to a loss of the training."""
        if "loss" in logs:
            logs.update(self.meter.read())
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> LengthBatches | Curriculum:
        examples = self.train_dataset if train_dataset is None else train_dataset
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        lengths = token_lengths(examples)
        if self._curriculum is None:
            return LengthBatches(lengths, per_step, self.args.data_seed)
        batches = LengthBatches(lengths[len(lengths) // 2 :], per_step, self.args.data_seed)
        return Curriculum(batches, per_step, self.args.num_train_epochs, self._curriculum, self.args.data_seed)

    def get_train_dataloader(self) -> Any:
        """Batches of this process, whose order is that of the epoch also where a resumed training skips some."""
        return show_sampler(super().get_train_dataloader())

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **named: Any) -> Any:
        """Evaluate, with the means of what ``_measure`` gives over all examples."""
        self.meter.pause()
        self._sums = []
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        *sums, number = torch.cat(self._sums).sum(dim=0).tolist()
        means = zip(self._measured, sums, strict=True)
        output.metrics.update({f"{metric_key_prefix}_{name}": value / number for name, value in means})
        return output

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        """Sum up a batch in place of keeping its logits."""
        with torch.no_grad(), self.compute_loss_context_manager():
            sums_BM = self._measure(model, self._prepare_inputs(inputs))
        self._sums.append(self.accelerator.gather_for_metrics(sums_BM).cpu())  # without what fills up the last batch
        return sums_BM[:, 0].sum() / sums_BM[:, -1].sum(), None, None

    def _measure(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        """Sums over each example of a batch: the figures ``_measured``, and how many values each is a sum of;
        float64, shape (B, M)."""
        labels_BL = inputs.pop("labels")[:, 1:]
        logits_BLV = model(**inputs, use_cache=False).logits[:, :-1]
        # 0 where a label is -100: the prompt and the padding
        loss_BL = functional.cross_entropy(logits_BLV.float().transpose(1, 2), labels_BL, reduction="none")
        counted = (loss_BL, logits_BLV.argmax(dim=2) == labels_BL, labels_BL >= 0)
        return torch.stack([values_BL.double().sum(dim=1) for values_BL in counted], dim=1)


class LabelTrainer(ChatTrainer):
    """Objectives over labels: the candidates' labels at the one place where ranking reads them.

    Args:
        objective: key of ``LOSSES``.
        residual: weight of the labels' logits in the sum with the retriever's prior that the loss is taken over; None:
            it is taken over the logits alone.
        curriculum: the training set holds each example as text alone and then, in the same order, with behaviour
            tokens, which come in up to this share of the training; None: it holds each example once.
        teacher: how the scores of a teacher enter the loss, which the training set then holds; None: there are none.
        arguments, named: of SFTTrainer; the datasets hold the columns of ``tokenize_labels``.

    The training's loss holds ``mass_loss`` as well, and what compares with a teacher. The evaluation's is the listwise
    one alone, over the same sum as the objective, its accuracy the share of examples whose best label is an answer's,
    and ``eval_ndcg`` the mean of ``label_ndcg``: all can be compared between objectives, and with the prior's.
    """

    loss_is_scaled_for_ga = True
    _measured = ("loss", "mean_token_accuracy", "ndcg")

    def __init__(
        self,
        *arguments: Any,
        objective: str,
        residual: float | None,
        curriculum: float | None = None,
        teacher: Distillation | None = None,
        **named: Any,
    ) -> None:
        self._loss: Callable[[Tensor, Tensor], Tensor] = LOSSES[objective]
        self._residual, self._curriculum, self._teacher = residual, curriculum, teacher
        super().__init__(*arguments, **named)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The objective over the labels and ``mass_loss``: the mean over the examples of a step."""
        logits_BC, logits_BV = label_logits(model, inputs)
        score_BC = self._scores(logits_BC, inputs)
        loss_B = self._loss(score_BC, inputs["targets"])
        if self._teacher is not None:
            loss_B = self._teacher.mix(loss_B, score_BC, inputs["taught"], inputs["shown"])
        loss_B = loss_B + mass_loss(logits_BV, logits_BC, inputs["shown"])
        loss = loss_B.sum() / (len(loss_B) if num_items_in_batch is None else num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the ranks' gradients are averaged
        return (loss, {}) if return_outputs else loss

    def label_logits(self, examples: Dataset) -> tuple[Floats, Floats, Floats, Flags]:
        """Logits, prior, targets and which places hold a candidate, of all examples in order; shape (E, C) each.

        Every rank must call it, and each gets all of them.
        """
        found: list[tuple[Tensor, ...]] = []
        self.model.eval()
        for inputs in self.get_eval_dataloader(examples):
            batch = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                logits_BC, _ = label_logits(self.model, batch)
            rows = (logits_BC, batch["prior"], batch["targets"], batch["shown"])
            padded = self.accelerator.pad_across_processes(rows, dim=1)
            found.append(tuple(one.cpu() for one in self.accelerator.gather_for_metrics(padded)))
        width = max((rows[0].shape[1] for rows in found), default=0)
        arrays = [np.concatenate([_wide(rows[part], width) for rows in found]) for part in range(4)]
        return arrays[0], arrays[1], arrays[2], arrays[3].astype(np.bool_)

    def _measure(self, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        logits_BC, _ = label_logits(model, inputs)
        score_BC = self._scores(logits_BC, inputs)
        right_B = inputs["targets"].gather(1, score_BC.argmax(dim=1, keepdim=True))[:, 0] > 0
        ndcg_B = label_ndcg(logits_BC, inputs, self._residual)
        measured = (listwise_loss(score_BC, inputs["targets"]), right_B, ndcg_B, torch.ones_like(right_B))
        return torch.stack([values_B.double() for values_B in measured], dim=1)

    def _scores(self, logits_BC: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        if self._residual is None:
            return combined_scores(logits_BC, inputs["shown"], None)
        return combined_scores(logits_BC, inputs["shown"], inputs["prior"], self._residual)


def show_sampler(loader: Any) -> Any:
    """The same loader, with its sampler where accelerate looks for it behind the batches that a resumed training skips:
    with several processes it finds none there, and the epoch would go on in the first one's order."""
    if isinstance(loader.batch_sampler, BatchSamplerShard):
        loader.batch_sampler.sampler = loader.batch_sampler.batch_sampler.sampler
    return loader


def _wide(values: Tensor, width: int) -> Floats:
    """Float64 with zeros after the last column, up to ``width`` columns."""
    return np.pad(values.double().numpy(), ((0, 0), (0, width - values.shape[1])))
