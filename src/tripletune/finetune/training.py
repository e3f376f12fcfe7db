"""Training of a LoRA adapter with TRL, inside one rank.

LoRA: Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, on all linear layers. The loss is taken over the
completion only, or over the candidates' labels where the answer begins (``finetune.objective``). Nothing is packed and
nothing is cut; the stage has tokenised the examples and refused those that do not fit (``token_files``).
"""
# Shape letters in this file: C candidates, E examples

from __future__ import annotations

import json
import math
import shutil
import time
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig

from tripletune.behaviour.embedding import PROJECTOR, attach_films
from tripletune.behaviour.tables import FilmTables, read_film_tables
from tripletune.chat import load_tokenizer
from tripletune.errors import TrainingDiverged, TrainingError
from tripletune.finetune.attention import choose_attention
from tripletune.finetune.best import BestKeeper, evaluation_facts, restore_published, resumable
from tripletune.finetune.checkpoints import agreed, seal, step_of
from tripletune.finetune.distillation import Distillation
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.label_batches import pad_labels
from tripletune.finetune.ranks import accumulated_batches
from tripletune.finetune.sharding import (
    held,
    held_share,
    reduce_in_float32,
    share_on_cpu,
    shares_weights,
    trained_weights,
)
from tripletune.finetune.start import load_start
from tripletune.finetune.token_files import EVALUATION, SELECT, TRAIN, TRAIN_TEXT, read_token_files, token_lengths
from tripletune.finetune.trainers import ChatTrainer, LabelTrainer
from tripletune.next_token import head_in_float32
from tripletune.precision import choose_dtype
from tripletune.processes.messages import send
from tripletune.quantization import load_causal_lm
from tripletune.residual import fit_weight, mean_loss
from tripletune.store.files import write_json


def train(job: TrainingJob) -> None:
    """Train, going on from a whole checkpoint where there is one; the first rank publishes adapter and result.

    The result has the log's history and the facts: those of ``best.evaluation_facts``, steps, seconds, tokens,
    longest_tokens, examples, eval_examples, trainable_parameters, world_size, dtype, held_share
    (``sharding.held_share`` of the first process), attention (transformers' name), resumed_from_step (0 when it started
    over); of the steps since then tokens_trained, tokens_per_second, peak_memory_gib, loader_wait_share, and on a known
    GPU mfu (``meter``); where valid has users who select, those of ``_weigh``.

    Args:
        job: its examples are read from the files of ``token_files.write_token_files``.

    Raises:
        TrainingError: ``max_length`` does not fit into the model.
        TrainingDiverged: a logged loss, or a weight at a checkpoint or at the end, is NaN or infinite.
    """
    transformers.logging.set_verbosity_warning()
    use_cpu = not torch.cuda.is_available()
    state = _open_group(job, use_cpu)
    tokenizer = load_tokenizer(job.base, job.hub_revision)
    films = read_film_tables(job.films) if job.films else None
    train_set, lengths = _training_examples(job)
    eval_set = read_token_files(job, EVALUATION) if job.evaluation else None
    select_set = read_token_files(job, SELECT) if job.select else None
    resumed = agreed(resumable(job), gather_object)
    trainer = _trainer(job, tokenizer, train_set, eval_set, films, use_cpu=use_cpu, from_start=resumed is None)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    metered = trainer.meter.facts()
    if eval_set is not None and not _evaluated(trainer.state):
        trainer.evaluate()
    published = restore_published(job, trainer)
    weighed = _weigh(trainer, select_set) if select_set is not None else {}
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    _publish_adapter(job, model)
    if state.is_main_process:
        facts = {
            **evaluation_facts(trainer.state, published),
            "steps": trainer.state.global_step,
            "seconds": round(time.perf_counter() - started, 3),
            "tokens": int(sum(lengths) * min(trainer.state.epoch, job.settings.num_train_epochs)),
            "longest_tokens": max(lengths),
            "examples": len(lengths),
            "eval_examples": len(eval_set) if eval_set is not None else 0,
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "world_size": state.num_processes,
            "dtype": choose_dtype(job.settings.model),
            "held_share": round(held_share(model), 4),
            "attention": trainer.model.config._attn_implementation,
            "resumed_from_step": step_of(resumed) if resumed else 0,
            **metered,
            **weighed,
        }
        write_json(job.result, {"facts": facts, "history": trainer.state.log_history})
    state.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _open_group(job: TrainingJob, use_cpu: bool) -> PartialState:
    """Open the ranks' process group, before anything else would open it with the back end's own timeout: NCCL's is 10
    minutes, in which an evaluation or the writing of a checkpoint may not end."""
    return PartialState(cpu=use_cpu, timeout=timedelta(minutes=job.settings.ddp_timeout_minutes))


class _Messenger(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Sends each log to the stage, seals checkpoints that every rank has written, and stops a training that diverged.

    Every rank checks, and all of them see the same numbers: losses are gathered and weights are kept equal.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._job = job

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.is_world_process_zero:
            send("begin", {"step": state.global_step, "of": state.max_steps})
        if state.global_step:
            where = f"in the checkpoint of step {state.global_step}"
            _require_finite_weights(model, where, "it was removed: run again to start over")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        metrics = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, int | float)}
        _require_finite_losses(metrics, state.global_step, self._job)
        if state.is_world_process_zero and metrics:
            send("log", {"step": state.global_step, "metrics": metrics})

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        _require_finite_weights(model, f"after step {state.global_step}")
        PartialState().wait_for_everyone()
        if state.is_local_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


_WATCHED = {
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "train_loss": "mean loss of the training",
    "eval_loss": "evaluation loss",
}
"""Logged figures that must be finite, and what they are called."""
_TOKENISED = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "remove_unused_columns": False,
}
"""Arguments of the trainer for examples whose columns are those of ``token_files``."""
_ADVICE = "lower finetune.learning_rate (nothing was published)"


def _require_finite_losses(metrics: dict[str, float], step: int, job: TrainingJob) -> None:
    """Stop at the first logged figure that is NaN or infinite; up to the first step, whose loss and gradient are those
    of untrained weights, the base model itself is to blame."""
    for name, label in _WATCHED.items():
        value = metrics.get(name, 0.0)
        if math.isfinite(value):
            continue
        if step == 0 or (step == 1 and name != "eval_loss"):
            raise TrainingDiverged(
                f"the {label} is {value} before the first step; check the weights of finetune.model = "
                f"{job.settings.model!r} (nothing was published)"
            )
        raise TrainingDiverged(f"the {label} is {value} at step {step}; {_ADVICE}")


def _require_finite_weights(model: Any, when: str, advice: str = _ADVICE) -> None:
    """Stop when a trained weight, or its gradient where there still is one, is NaN or infinite: in every process,
    though each may hold but a part of a weight."""
    bad = [
        f"{what} {name}"
        for name, weight in model.named_parameters()
        if weight.requires_grad
        for what, values in (("weight", weight), ("gradient of the weight", weight.grad))
        if values is not None and not torch.isfinite(held(values)).all()
    ]
    for first in gather_object(bad):
        raise TrainingDiverged(f"the {first} is NaN or infinite {when}; {advice}")


def _training_examples(job: TrainingJob) -> tuple[Dataset, list[int]]:
    """What the trainer draws from, and the tokens of each example; where there are behaviour tokens, the examples as
    text alone come first, then with the tokens, which are those that count."""
    examples = read_token_files(job, TRAIN)
    lengths = token_lengths(examples)
    if job.films:
        examples = concatenate_datasets([read_token_files(job, TRAIN_TEXT), examples])
    return examples, lengths


def _trainer(
    job: TrainingJob,
    tokenizer: Any,
    train: Dataset,
    evaluation: Dataset | None,
    films: FilmTables | None = None,
    *,
    use_cpu: bool,
    from_start: bool,
) -> ChatTrainer:
    arguments = _arguments(job, use_cpu, evaluate=evaluation is not None, from_start=from_start)
    share_on_cpu()
    named: dict[str, Any] = {
        "model": _load_model(job, films),
        "args": arguments,
        "train_dataset": train,
        "eval_dataset": evaluation,
        "processing_class": tokenizer,
        "peft_config": _lora(job),
        "callbacks": [_Messenger(job), BestKeeper(job)],
    }
    trainer = _of_objective(job, tokenizer, films, named)
    trainer.remove_callback(PrinterCallback)  # the stage has each log as a message
    reduce_in_float32(trainer.accelerator)
    for weight in trainer.model.parameters():
        if weight.requires_grad:  # TRL rounds those on a quantised base to bfloat16, where small steps are lost
            weight.data = weight.data.float()
    if job.start:
        load_start(trainer.model, job.start)
    return trainer


def _of_objective(job: TrainingJob, tokenizer: Any, films: FilmTables | None, named: dict[str, Any]) -> ChatTrainer:
    if not job.settings.scores_labels:
        return ChatTrainer(**named)
    collate = partial(pad_labels, pad=tokenizer.pad_token_id or 0, prior=job.prior)
    curriculum = 0.0 if job.start else job.settings.curriculum  # an earlier adapter has been through it
    return LabelTrainer(
        **named,
        data_collator=collate,
        objective=job.settings.objective,
        residual=job.settings.residual_weight if job.settings.residual else None,
        curriculum=curriculum if films else None,
        teacher=Distillation(job.settings.teacher_weight, job.settings.teacher_temperature) if job.teacher else None,
    )


def _weigh(trainer: LabelTrainer, examples: Dataset) -> dict[str, float]:
    """Weight of the trained model's logits next to the prior, from valid examples of the users who select: ``weight``,
    and their mean cross-entropy with it and with the prior alone.

    Raises:
        TrainingDiverged: a label's logit is NaN or infinite, in every rank, as each has all logits.
    """
    arrays = trainer.label_logits(examples)
    logits_EC, _, _, shown_EC = arrays
    if not np.isfinite(logits_EC[shown_EC]).all():
        raise TrainingDiverged(f"a label's logit of a valid example is NaN or infinite after the last step; {_ADVICE}")
    weight = fit_weight(*arrays)
    return {
        "weight": weight,
        "select_examples": len(examples),
        "select_loss": mean_loss(*arrays, weight),
        "select_loss_retriever": mean_loss(*arrays, 0.0),
    }


def _load_model(job: TrainingJob, films: FilmTables | None) -> Any:
    dtype, settings = choose_dtype(job.settings.model), job.settings
    attention = choose_attention(settings.attention, dtype)
    model = load_causal_lm(
        job.base, job.hub_revision, dtype, settings.quantization, attention=attention, sharded=shares_weights()
    )
    context = getattr(model.config, "max_position_embeddings", job.settings.max_length)
    if job.settings.max_length > context:
        raise TrainingError(
            f"finetune.max_length = {job.settings.max_length} exceeds the {context} positions of {job.base_name}; "
            f"set it to at most {context}"
        )
    if films:
        attach_films(model, films.vectors_RD, job.seed)
    model.register_forward_pre_hook(_without_mask, with_kwargs=True)
    if settings.scores_labels:  # the loss of sft has its own product
        head_in_float32(model)
    return model


def _without_mask(model: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Drop the mask: batches are padded on the right, and under causal attention no token sees the padding. It stays in
    the batch, as TRL counts tokens by it."""
    return inputs, named | {"attention_mask": None}


def _lora(job: TrainingJob) -> LoraConfig:
    return LoraConfig(
        r=job.settings.lora_r,
        lora_alpha=job.settings.lora_alpha,
        lora_dropout=job.settings.lora_dropout,
        target_modules="all-linear",
        modules_to_save=[PROJECTOR] if job.films else None,
        task_type="CAUSAL_LM",
    )


def _arguments(job: TrainingJob, use_cpu: bool, *, evaluate: bool, from_start: bool) -> SFTConfig:
    """This project's settings with those of ``[finetune.trainer]`` over them."""
    own = _own_arguments(job, use_cpu, evaluate=evaluate, from_start=from_start)
    try:
        return SFTConfig(**(own | job.settings.trainer))
    except (ImportError, TypeError, ValueError) as error:
        if not job.settings.trainer:
            raise
        reason = str(error).strip().splitlines()[0]
        raise TrainingError(f"[finetune.trainer] is refused by SFTConfig: {reason}") from None


def _own_arguments(job: TrainingJob, use_cpu: bool, *, evaluate: bool, from_start: bool) -> dict[str, Any]:
    settings = job.settings
    return {
        "output_dir": str(job.checkpoints),
        "num_train_epochs": settings.num_train_epochs,
        "per_device_train_batch_size": settings.per_device_train_batch_size,
        "per_device_eval_batch_size": settings.per_device_train_batch_size,
        "gradient_accumulation_steps": accumulated_batches(settings, PartialState(cpu=use_cpu).num_processes),
        "gradient_checkpointing": settings.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "ddp_find_unused_parameters": False,  # each batch uses every one, also the projector of behaviour tokens
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_ratio,  # below 1 it is a share of all steps
        "completion_only_loss": True,
        "packing": False,
        "max_length": None,  # checked before: TRL would cut the completion
        "logging_steps": settings.logging_steps,
        "logging_nan_inf_filter": False,  # the Trainer would show the mean of the other losses in place of a NaN
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": settings.eval_steps,
        "eval_on_start": evaluate and from_start,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "save_on_each_node": True,  # machines share no disk, and each resumes from its own
        "seed": job.seed,
        "data_seed": job.seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not use_cpu,
        "use_cpu": use_cpu,
        "bf16": choose_dtype(settings.model) == "bfloat16",
        "report_to": "none",
        "disable_tqdm": True,
        **_TOKENISED,
    }


def _evaluated(state: Any) -> bool:
    """Whether the last step was evaluated; a run's length need not be a multiple of ``eval_steps``."""
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _publish_adapter(job: TrainingJob, model: Any) -> None:
    """Write the adapter under a temporary name and rename it: a folder of its final name is whole. Every process must
    call it, as each may hold but a part of the weights; the first one writes."""
    _require_finite_weights(model, "after the last step")
    weights = trained_weights(model)
    if not PartialState().is_main_process:
        return
    part = job.scratch / "adapter"
    for folder in (part, job.adapter):
        shutil.rmtree(folder, ignore_errors=True)
    # the path of a work folder would be wrong after publishing, and would make the bytes differ between runs
    model.peft_config["default"].base_model_name_or_path = job.base_name
    model.save_pretrained(str(part), state_dict=weights, safe_serialization=True, save_embedding_layers=False)
    (part / "README.md").unlink(missing_ok=True)
    config = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set: another order in every process
    write_json(part / "adapter_config.json", config)
    part.rename(job.adapter)
