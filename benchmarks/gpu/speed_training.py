"""Training steps of ``finetune_speed.py``: examples of random tokens, and each way of training on them.

``ours`` is a plain loop around the product's losses, without Trainer: what the model and the card can do. ``trainer``
is the product's own trainer with the settings that a stage gives it, on a model that it reads from disk. ``trl`` is
TRL's SFTTrainer as it comes: examples in random order, padded, with a mask, gradient checkpointing, its fused head.
``full`` is the plain loop with transformers' own loss: a mask, and the logits of every place over the whole vocabulary,
as TRL computed them before it had that head.
"""

# Shape letters in this file: B examples of a batch, L tokens of the longest one
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llm_training import Variant as LabelVariant
from llm_training import batch_losses, clock
from peft import LoraConfig, get_peft_model
from speed_kit import SEED, SHAPES, autocast, config_of, random_model
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from tripletune.finetune.attention import choose_attention
from tripletune.finetune.label_batches import pad_labels
from tripletune.finetune.length_batches import LengthBatches
from tripletune.next_token import head_in_float32

LORA_R, LORA_ALPHA = 16, 32
"""As in ``configs/ml-32m.toml``."""
COMPLETION, CANDIDATES = 10, 20
"""Tokens of an answer of five letters with its end token, which ``sft`` predicts; labels of ``listwise``."""
SHORTEST = 2 / 3
"""Of mixed lengths, as a share of the longest: prompts of 1,000 to 1,500 tokens."""
WARM_UPS, MIXED_STEPS = 2, 50
"""Steps that are not timed; steps' worth of mixed examples, among which the product sorts by length."""
PAD, NO_LOSS, MAX_NORM = 0, -100, 1.0
_LISTWISE = LabelVariant(objective="listwise")
Row = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train."""

    path: str = "ours"
    """ours, trainer, trl or full: see the head of this file."""
    objective: str = "sft"
    """sft or listwise."""
    batch: int = 8
    """Examples of a step, in one pass."""
    checkpointing: bool = False
    mixed: bool = False
    """Lengths from ``SHORTEST`` to the longest, instead of all the same."""
    attention: str = "auto"
    """As ``finetune.attention``."""
    dropout: float = 0.05
    """Before the LoRA matrices, as in ``configs/ml-32m.toml``."""
    adapter: str = "float32"
    """Number format of the LoRA matrices; the product has float32."""
    weights: str = "as they are"
    """Of the layers' linear maps: nf4 (path trainer alone), or float8, whose products are computed in 8 bits; to be
    compiled, as torchao's own backward pass makes gradients of frozen weights too."""
    liger: bool = False
    """Liger's kernels for norms, rotation and the feed-forward layers' activation."""
    compiled: bool = False
    """Each layer through torch.compile."""

    @property
    def predicted(self) -> int:
        """Places of an example whose logits the loss needs."""
        return COMPLETION if self.objective == "sft" else 1


@dataclass(frozen=True, slots=True)
class Setup:
    """What all variants have in common."""

    shape: str
    """Key of ``SHAPES``."""
    length: int
    """Tokens of the longest example."""
    steps: int
    """That are timed."""
    device: torch.device
    scratch: Path
    """For the path ``trainer``: the model, and what the trainer writes."""


@dataclass(slots=True)
class Timed:
    """The timed steps of a variant."""

    seconds: list[float]
    lengths: list[list[int]]
    """Tokens of each example, step by step."""
    attention: str
    """Implementation of transformers' that it took."""


def time_variant(variant: Variant, setup: Setup) -> Timed:
    """Train some steps, of which ``WARM_UPS`` do not count.

    Raises:
        Exception: whatever the variant's libraries, memory or card refuse.
    """
    paths: dict[str, Callable[[Variant, Setup], Timed]] = {"trl": _with_trl, "trainer": _with_own_trainer}
    return paths.get(variant.path, _in_plain_loop)(variant, setup)


def draw_rows(variant: Variant, setup: Setup) -> list[Row]:
    """Examples of random tokens, enough for the steps: the columns of ``finetune.examples.column_maker``."""
    random = np.random.default_rng(SEED)
    steps = WARM_UPS + setup.steps
    number = variant.batch * (max(steps, MIXED_STEPS) if variant.mixed else steps)
    shortest = round(SHORTEST * setup.length) if variant.mixed else setup.length
    rows: list[Row] = []
    for length in random.integers(shortest, setup.length + 1, number).tolist():
        ids = random.integers(PAD + 1, SHAPES[setup.shape]["vocab_size"], length).tolist()
        if variant.objective == "sft":
            labels = [NO_LOSS] * (length - COMPLETION) + ids[-COMPLETION:]
            rows.append({"input_ids": ids, "labels": labels})
            continue
        places = random.permutation(CANDIDATES).tolist()
        target = [1.0 if place == 0 else 0.0 for place in places]
        labels = [PAD + 1 + number for number in range(CANDIDATES)]
        rows.append({"input_ids": ids, "label_ids": labels, "targets": target, "places": places})
    return rows


def build_model(variant: Variant, setup: Setup) -> Any:
    """A random model with its adapter, as the plain loop trains it."""
    attention = choose_attention(variant.attention, "bfloat16" if setup.device.type == "cuda" else "float32")
    model = random_model(config_of(setup.shape), setup.device, attention)
    if variant.liger:  # what it does to the rotation stays for the rest of the process
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=model)
    if variant.weights == "float8":
        from torchao.float8 import convert_to_float8_training

        convert_to_float8_training(model.model)
    prepare_head(model, variant)
    model = get_peft_model(model, lora(variant), autocast_adapter_dtype=variant.adapter == "float32")
    if variant.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if variant.compiled:
        torch.compiler.reset()  # what other variants compiled of the same code would count
        for layer in model.get_base_model().model.layers:
            layer.compile()
    return model.train()


def prepare_head(model: Any, variant: Variant) -> None:
    """Have the model compute the logits as the product does, or leave it as it is for the path ``full``."""
    if variant.objective == "listwise":
        head_in_float32(model)
    elif variant.path != "full":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))


def lora(variant: Variant) -> LoraConfig:
    """The adapter on all linear layers, as the product has it."""
    return LoraConfig(
        r=LORA_R,
        lora_alpha=LORA_ALPHA,
        lora_dropout=variant.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def collate(rows: Sequence[Row], variant: Variant) -> dict[str, torch.Tensor]:
    """Batch of ``draw_rows``, padded on the right; with a mask for the path ``full`` alone."""
    if variant.objective == "listwise":
        return pad_labels(rows, PAD, [0.0] * CANDIDATES)
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=PAD),
        "labels": pad_sequence(labels, batch_first=True, padding_value=NO_LOSS),
    }
    if variant.path == "full":
        batch["attention_mask"] = pad_sequence([torch.ones_like(one) for one in ids], batch_first=True)
    return batch


def loss_of(model: Any, batch: dict[str, torch.Tensor], variant: Variant) -> torch.Tensor:
    """Mean loss of a batch on the model's device: over examples, or over the tokens of ``sft``."""
    if variant.objective == "listwise":
        return batch_losses(model, batch, _LISTWISE).mean()
    fused = {} if variant.path == "full" else {"fused_lm_head": True}
    loss: torch.Tensor = model(**batch, use_cache=False, **fused).loss
    return loss


def make_optimizer(model: Any) -> torch.optim.AdamW:
    """AdamW over the trained weights, as the Trainer makes it."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, fused=trained[0].device.type == "cuda")


def update(optimizer: torch.optim.AdamW) -> None:
    """Clip the gradients, take the step and drop them."""
    torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], MAX_NORM)
    optimizer.step()
    optimizer.zero_grad()


def _in_plain_loop(variant: Variant, setup: Setup) -> Timed:
    rows, model = draw_rows(variant, setup), build_model(variant, setup)
    order = list(range(len(rows)))
    if variant.path == "ours":
        order = list(LengthBatches([len(row["input_ids"]) for row in rows], variant.batch, SEED))
    optimizer, seconds, lengths = make_optimizer(model), [], []
    for number in range(WARM_UPS + setup.steps):
        some = [rows[row] for row in order[number * variant.batch : (number + 1) * variant.batch]]
        start = clock(setup.device)
        batch = {name: values.to(setup.device) for name, values in collate(some, variant).items()}
        with autocast(setup.device):
            loss = loss_of(model, batch, variant)
        loss.backward()
        update(optimizer)
        seconds.append(clock(setup.device) - start)
        lengths.append([len(row["input_ids"]) for row in some])
    return Timed(seconds[WARM_UPS:], lengths[WARM_UPS:], model.config._attn_implementation)


class _StepClock(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Times the steps of a Trainer, from the end of one to the end of the next: loading and logs included."""

    def __init__(self, device: torch.device) -> None:
        self._device, self.ends = device, []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(clock(self._device))


def _run_trainer(trainer: Any, setup: Setup) -> Timed:
    """Train with a Trainer; its batches come in the order of its steps."""
    lengths: list[list[int]] = []
    plain_collate = trainer.data_collator

    def counted(rows: Sequence[Row]) -> Any:
        lengths.append([len(row["input_ids"]) for row in rows])
        return plain_collate(rows)

    trainer.data_collator = counted
    watch = _StepClock(setup.device)
    trainer.add_callback(watch)
    trainer.train()
    seconds = np.diff(watch.ends)[WARM_UPS - 1 :].tolist()
    return Timed(seconds, lengths[WARM_UPS : WARM_UPS + len(seconds)], trainer.model.config._attn_implementation)


def _tokenizer() -> Any:
    """A tokenizer that a Trainer asks for and that nothing is read with."""
    from tripletune.finetune.tiny import train_tokenizer

    return train_tokenizer(iter(["a film"]), 300)


def _with_trl(variant: Variant, setup: Setup) -> Timed:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(setup.scratch / "trl"),
        max_steps=WARM_UPS + setup.steps,
        max_length=None,  # its default of 1,024 would cut the examples
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=setup.device.type == "cpu",
        bf16=setup.device.type == "cuda",
        gradient_checkpointing=variant.checkpointing,
        per_device_train_batch_size=variant.batch,
    )
    trainer = SFTTrainer(
        model=random_model(config_of(setup.shape), setup.device),
        args=arguments,
        train_dataset=Dataset.from_list(draw_rows(variant, setup)),
        processing_class=_tokenizer(),
        peft_config=lora(variant),
    )
    return _run_trainer(trainer, setup)


def _with_own_trainer(variant: Variant, setup: Setup) -> Timed:
    from datasets import Dataset

    from tripletune.config import FinetuneConfig
    from tripletune.finetune import training
    from tripletune.finetune.job import TrainingJob

    rows = draw_rows(variant, setup)
    steps = WARM_UPS + setup.steps
    settings = FinetuneConfig.model_validate(
        {
            "model": str(_base_folder(setup.scratch, setup.shape, setup.device)),
            "objective": variant.objective,
            "quantization": "nf4" if variant.weights == "nf4" else "none",
            "attention": variant.attention,
            "lora_r": LORA_R,
            "lora_alpha": LORA_ALPHA,
            "lora_dropout": variant.dropout,
            "learning_rate": 1e-5,
            "num_train_epochs": steps * variant.batch / len(rows),
            "global_batch": variant.batch,
            "per_device_train_batch_size": variant.batch,
            "gradient_checkpointing": variant.checkpointing,
            "max_length": setup.length,
            "save_steps": 1000,
        }
    )
    job = TrainingJob(
        out=setup.scratch / "own",
        train=(),
        evaluation=None,
        prior=(0.0,) * CANDIDATES,
        base=settings.model,
        hub_revision=None,
        base_name=setup.shape,
        settings=settings,
        seed=SEED,
    )
    named = {"use_cpu": setup.device.type == "cpu", "from_start": True}
    return _run_trainer(training._trainer(job, _tokenizer(), Dataset.from_list(rows), None, **named), setup)


@functools.cache
def _base_folder(scratch: Path, shape: str, device: torch.device) -> Path:
    """A random model on disk."""
    folder = scratch / f"base-{shape}"
    random_model(config_of(shape), device).save_pretrained(folder)
    return folder
