"""Plain training loop and scoring of ``llm.py``, for machines without TRL, around the product's own functions.

LoRA on all linear layers, AdamW, cosine with warm-up, bfloat16 autocast where the device has it, batches of similar
length, padded on the right without a mask. A test compares it with the product's trainer: same losses, same weights in
the end.
"""

# Shape letters in this file: B examples of a batch, C candidates, E examples
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, get_cosine_schedule_with_warmup

from tripletune.behaviour.embedding import PROJECTOR, attach_films
from tripletune.finetune.curriculum import Curriculum
from tripletune.finetune.label_batches import label_logits, pad_labels
from tripletune.finetune.label_loss import LOSSES, combined_scores, mass_loss
from tripletune.finetune.length_batches import LengthBatches
from tripletune.next_token import head_in_float32
from tripletune.precision import has_bfloat16
from tripletune.residual import Flags, Floats, fit_weight, mean_loss

LORA_R, LORA_ALPHA, WARM_UP, MAX_NORM = 16, 32, 0.05, 1.0
TRAIN_TOKENS = {"cuda": 1 << 15, "cpu": 1 << 11}
RANK_TOKENS = {"cuda": 1 << 17, "cpu": 1 << 14}
"""Tokens of a forward pass at most, padding included: on a GPU an estimated 40 GiB in training."""
PAD = 0
"""Any token: nothing sees what stands right of a prompt."""
Row = dict[str, Any]
"""Tokens of an example, see ``tokenize_labels``."""


@dataclass(frozen=True, slots=True)
class Variant:
    """How a model is made; fields that ``--variants`` may set."""

    weights: str = "pretrained"
    """pretrained, or random: the same shape with weights drawn from the seed."""
    trains: str = "lora"
    """lora, or all: every weight of the model."""
    objective: str = "listwise"
    residual: bool = True
    """Whether the loss is taken over the sum with the prior."""
    residual_weight: float = 1.0
    """Weight of the labels' logits in that sum."""
    behaviour: bool = False
    """Whether prompts have behaviour tokens."""
    curriculum: float = 0.0
    """Share of the training in which they come in, as ``finetune.curriculum``."""
    epochs: int | None = None
    """None: as the main job; 0: nothing is trained."""
    batch: int = 32
    """Examples of a step."""
    learning_rate: float = 1e-3


def load_model(
    folder: Path,
    variant: Variant,
    seed: int,
    device: torch.device,
    dtype: torch.dtype | None = None,
    vectors_RD: torch.Tensor | None = None,
) -> Any:
    """A variant's model before its training.

    Args:
        dtype: of the weights; None: as in the product for a model that is kept in bfloat16, but float32 where all are
            trained. Adapters are in float32.
        vectors_RD: film vectors of a variant with behaviour tokens.
    """
    described = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    half = variant.trains != "all" and (device.type == "cuda" or (described.dtype == torch.bfloat16 and has_bfloat16()))
    dtype = dtype or (torch.bfloat16 if half else torch.float32)
    torch.manual_seed(seed)
    if variant.weights == "random":
        model = AutoModelForCausalLM.from_config(described, dtype=dtype, trust_remote_code=False)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False)
    if vectors_RD is not None:
        attach_films(model, vectors_RD, seed)
    head_in_float32(model)
    if variant.trains == "lora" and variant.epochs != 0:
        whole = [PROJECTOR] if variant.behaviour else None
        targets = {"target_modules": "all-linear", "modules_to_save": whole, "task_type": "CAUSAL_LM"}
        model = get_peft_model(model, LoraConfig(r=LORA_R, lora_alpha=LORA_ALPHA, **targets))
    return model.to(device)


def num_tokens(rows: Sequence[Row]) -> int:
    """Tokens of the prompts."""
    return sum(len(row["input_ids"]) for row in rows)


def clock(device: torch.device) -> float:
    """Seconds, after all that the device was given is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def batch_losses(model: Any, batch: dict[str, torch.Tensor], variant: Variant) -> torch.Tensor:
    """Loss (B,) of each example: of the objective, and of the labels' mass, as ``LabelTrainer`` takes it."""
    logits_BC, logits_BV = label_logits(model, batch)
    prior_BC = batch["prior"] if variant.residual else None
    score_BC = combined_scores(logits_BC, batch["shown"], prior_BC, variant.residual_weight)
    loss_B: torch.Tensor = LOSSES[variant.objective](score_BC, batch["targets"])
    return loss_B + mass_loss(logits_BV, logits_BC, batch["shown"])


def train(
    model: Any,
    rows: Sequence[Row],
    prior: Sequence[float],
    variant: Variant,
    seed: int,
    after_epoch: Callable[[int, float], None] = lambda epoch, loss: None,
) -> dict[str, Any]:
    """Train in place; facts with tokens per second.

    Args:
        rows: with behaviour tokens, all examples as text alone and then, in the same order, with the tokens.
        after_epoch: gets the epoch, from 1, and its mean loss; its time does not count. A loss that is not finite ends
            the training.
    """
    epochs, trained = variant.epochs or 0, [weight for weight in model.parameters() if weight.requires_grad]
    number = len(rows) // 2 if variant.behaviour else len(rows)
    batches = LengthBatches([len(row["input_ids"]) for row in rows[-number:]], variant.batch, seed)
    order: LengthBatches | Curriculum = batches
    if variant.behaviour:
        order = Curriculum(batches, variant.batch, epochs, variant.curriculum, seed)
    steps = math.ceil(number / variant.batch)
    fused = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(trained, lr=variant.learning_rate, weight_decay=0.0, fused=fused)
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(WARM_UP * steps * epochs), steps * epochs)
    seconds, tokens, done = 0.0, 0, 0
    while done < epochs:
        order.set_epoch(done)
        epoch_rows = [rows[number] for number in order]
        losses: list[torch.Tensor] = []
        model.train()
        start = clock(model.device)
        for step in range(0, number, variant.batch):
            losses += _step(model, epoch_rows[step : step + variant.batch], prior, variant)
            torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        mean = float(torch.stack(losses).sum()) / number
        seconds += clock(model.device) - start
        tokens += num_tokens(epoch_rows)
        done += 1
        after_epoch(done, mean)
        if not math.isfinite(mean):
            break
    facts = {"steps": done * steps, "seconds": round(seconds, 3), "tokens": tokens, "examples": number}
    return facts | {"tokens_per_s": tokens / seconds, "trained_parameters": sum(one.numel() for one in trained)}


def _step(model: Any, rows: Sequence[Row], prior: Sequence[float], variant: Variant) -> Iterator[torch.Tensor]:
    """Gradients of the mean loss of the rows, in as many passes as memory asks; the sum of each pass's losses."""
    size = max(1, TRAIN_TOKENS[model.device.type] // max(len(row["input_ids"]) for row in rows))
    for start in range(0, len(rows), size):
        batch = _to_device(pad_labels(rows[start : start + size], PAD, prior), model)
        with _autocast(model):
            loss = batch_losses(model, batch, variant).sum()
        (loss / len(rows)).backward()
        yield loss.detach()


def _to_device(batch: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    return {name: values.to(model.device) for name, values in batch.items()}


def _autocast(model: Any) -> torch.autocast:
    """Bfloat16 on a GPU, and on a CPU whose model has such weights; else all stays in float32."""
    device = model.device.type
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda" or model.dtype == torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Scores:
    """Arrays of shape (E, C): logits, prior, targets, and which places hold a candidate."""

    logits: Floats
    prior: Floats
    targets: Floats
    shown: Flags

    @property
    def are_finite(self) -> bool:
        """Whether the model's logits are numbers."""
        return bool(np.isfinite(self.logits).all())

    def weight(self) -> float:
        """Weight of the logits next to the prior that suits these examples best."""
        return fit_weight(self.logits, self.prior, self.targets, self.shown)

    def losses(self, weight: float) -> dict[str, float]:
        """Mean cross-entropy with the prior alone, with both, and with the model alone, in nats."""
        rest = (self.targets, self.shown)
        both = {"prior": 0.0, "both": weight}
        found = {name: mean_loss(self.logits, self.prior, *rest, one) for name, one in both.items()}
        return found | {"alone": mean_loss(self.logits, np.zeros_like(self.prior), *rest, 1.0)}


def score(model: Any, rows: Sequence[Row], prior: Sequence[float]) -> Scores:
    """Read every prompt once; the scores in the order of ``rows``."""
    by_length = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))
    shape = len(rows), max((len(row["label_ids"]) for row in rows), default=0)
    scores = Scores(*(np.zeros(shape) for _ in range(3)), np.zeros(shape, np.bool_))
    read: list[tuple[list[int], torch.Tensor]] = []
    start = 0
    model.eval()
    with torch.inference_mode(), _autocast(model):
        while start < len(rows):
            size = max(1, RANK_TOKENS[model.device.type] // len(rows[by_length[start]]["input_ids"]))
            numbers = by_length[start : start + size]
            batch = pad_labels([rows[number] for number in numbers], PAD, prior)
            read.append((numbers, label_logits(model, _to_device(batch, model))[0]))
            for name in ("prior", "targets", "shown"):
                getattr(scores, name)[numbers, : batch[name].shape[1]] = batch[name].numpy()
            start += size
    for numbers, logits_BC in read:  # once all is on its way, so that the device does not wait for the copies
        scores.logits[numbers, : logits_BC.shape[1]] = logits_BC.double().cpu().numpy()
    return scores
