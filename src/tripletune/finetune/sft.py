# Shape letters in this file: B examples of a batch, L places after the first, V tokens of the vocabulary
"""Supervised fine-tuning of a LoRA adapter with TRL, inside one rank.

LoRA: Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, on all linear layers. The loss is taken over the
completion only. Nothing is packed and nothing is cut: an example that does not fit is refused by name.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from torch.nn import functional
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

from tripletune.chat import load_tokenizer
from tripletune.errors import TrainingDiverged, TrainingError
from tripletune.finetune.checkpoints import last_whole, seal, step_of
from tripletune.finetune.job import COLUMNS, TrainingJob, send
from tripletune.store.files import write_json

_TOKENIZED_AT_ONCE = 1000


def train(job: TrainingJob) -> None:
    """Train, going on from a whole checkpoint where there is one; the first rank publishes adapter and result.

    Raises:
        TrainingError: an example does not fit into ``max_length``, or ``max_length`` not into the model.
        TrainingDiverged: a logged loss, or a weight at a checkpoint or at the end, is NaN or infinite.
    """
    transformers.logging.set_verbosity_warning()
    use_cpu = not torch.cuda.is_available()
    state = PartialState(cpu=use_cpu)
    tokenizer = load_tokenizer(job.base, job.hub_revision)
    with state.main_process_first():  # the others then read what it cached
        train_set = _dataset(job.train, job)
        eval_set = _dataset((job.evaluation,), job) if job.evaluation else None
    train_lengths = _checked_lengths(train_set, tokenizer, job.settings.max_length)
    if eval_set is not None:
        _checked_lengths(eval_set, tokenizer, job.settings.max_length)
    resumed = last_whole(job.checkpoints)  # the stage has removed the others
    trainer = _Trainer(
        model=_load_model(job, use_cpu),
        args=_arguments(job, use_cpu, evaluate=eval_set is not None, from_start=resumed is None),
        train_dataset=train_set,
        eval_dataset=eval_set,
        processing_class=tokenizer,
        peft_config=_lora(job),
        callbacks=[_Messenger(job)],
    )
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if eval_set is not None and not _evaluated(trainer.state):
        trainer.evaluate()
    if state.is_main_process:
        _publish_adapter(job, trainer.accelerator.unwrap_model(trainer.model))
        facts = {
            **_losses(trainer.state.log_history),
            "steps": trainer.state.global_step,
            "seconds": round(time.perf_counter() - started, 3),
            "tokens": int(sum(train_lengths) * job.settings.num_train_epochs),
            "longest_tokens": max(train_lengths),
            "examples": len(train_set),
            "eval_examples": len(eval_set) if eval_set is not None else 0,
            "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "world_size": state.num_processes,
            "resumed_from_step": step_of(resumed) if resumed else 0,
        }
        write_json(job.result, {"facts": facts, "history": trainer.state.log_history})
    state.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Trainer(SFTTrainer):  # type: ignore[misc]  # the library has no types
    """TRL's trainer with an evaluation whose loss and accuracy are means over tokens, as the training's loss is.

    The library's own are means over batches or over examples of their batch's mean, and depend on the batch size.
    """

    _sums: list[torch.Tensor]
    """Shape (B, 3) each: loss, right tokens and tokens of each example of a batch."""

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **named: Any) -> Any:
        self._sums = []
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **named)
        loss, right, num_tokens = torch.cat(self._sums).sum(dim=0).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / num_tokens
        output.metrics[f"{metric_key_prefix}_mean_token_accuracy"] = right / num_tokens
        return output

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        labels_BL = inputs.pop("labels")[:, 1:]
        with torch.no_grad(), self.compute_loss_context_manager():
            logits_BLV = model(**inputs, use_cache=False).logits[:, :-1]
        # 0 where a label is -100: the prompt and the padding
        loss_BL = functional.cross_entropy(logits_BLV.float().transpose(1, 2), labels_BL, reduction="none")
        counted = (loss_BL, logits_BLV.argmax(dim=2) == labels_BL, labels_BL >= 0)
        sums_B3 = torch.stack([values_BL.double().sum(dim=1) for values_BL in counted], dim=1)
        self._sums.append(self.accelerator.gather_for_metrics(sums_B3).cpu())  # without what fills up the last batch
        return sums_B3[:, 0].sum() / sums_B3[:, 2].sum(), None, None


class _Messenger(TrainerCallback):  # type: ignore[misc]  # the library has no types
    """Sends each log to the stage, seals checkpoints that every rank has written, and stops a training that diverged.

    Every rank checks, and all of them see the same numbers: losses are gathered and weights are kept equal.
    """

    def __init__(self, job: TrainingJob) -> None:
        self._job = job

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
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
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


_WATCHED = {
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "train_loss": "mean loss of the training",
    "eval_loss": "evaluation loss",
}
"""Logged figures that must be finite, and what they are called."""
_ADVICE = "lower finetune.learning_rate (nothing was published)"


def _require_finite_losses(metrics: dict[str, float], step: int, job: TrainingJob) -> None:
    """Stop at the first logged figure that is NaN or infinite; before step 1 the base model itself is to blame."""
    for name, label in _WATCHED.items():
        value = metrics.get(name, 0.0)
        if math.isfinite(value):
            continue
        if step == 0:
            raise TrainingDiverged(
                f"the {label} is {value} before the first step; check the weights of finetune.model = "
                f"{job.settings.model!r} (nothing was published)"
            )
        raise TrainingDiverged(f"the {label} is {value} at step {step}; {_ADVICE}")


def _require_finite_weights(model: Any, when: str, advice: str = _ADVICE) -> None:
    """Stop when a trained weight, or its gradient where there still is one, is NaN or infinite."""
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        for what, values in (("weight", weight), ("gradient of the weight", weight.grad)):
            if values is not None and not torch.isfinite(values).all():
                raise TrainingDiverged(f"the {what} {name} is NaN or infinite {when}; {advice}")


def _dataset(files: tuple[Path, ...], job: TrainingJob) -> Dataset:
    names = [str(path) for path in files]
    return Dataset.from_parquet(names, columns=COLUMNS, cache_dir=str(job.scratch / "datasets"))


def _checked_lengths(examples: Dataset, tokenizer: Any, max_length: int) -> list[int]:
    """Tokens of each example, prompt and completion; none may exceed ``max_length``."""
    lengths: list[int] = []
    for rows in examples.iter(batch_size=_TOKENIZED_AT_ONCE):
        chats = [prompt + completion for prompt, completion in zip(rows["prompt"], rows["completion"], strict=True)]
        texts = [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]
        lengths += [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(lengths)
    if longest > max_length:
        too_long = sum(length > max_length for length in lengths)
        raise TrainingError(
            f"{too_long} of {len(lengths)} examples are longer than finetune.max_length = {max_length} tokens, the "
            f"longest, {examples[lengths.index(longest)]['example_id']}, has {longest}; set finetune.max_length to "
            f"{longest} or more, or show less (prompt.max_liked, retrieve.num_candidates, retrieve.triples_per_film)"
        )
    return lengths


def _load_model(job: TrainingJob, use_cpu: bool) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        revision=job.hub_revision,
        dtype=torch.bfloat16 if _bf16(use_cpu) else torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
    )
    context = getattr(model.config, "max_position_embeddings", job.settings.max_length)
    if job.settings.max_length > context:
        raise TrainingError(
            f"finetune.max_length = {job.settings.max_length} exceeds the {context} positions of {job.base_name}; "
            f"set it to at most {context}"
        )
    return model


def _bf16(use_cpu: bool) -> bool:
    return not use_cpu and torch.cuda.is_bf16_supported()


def _lora(job: TrainingJob) -> LoraConfig:
    return LoraConfig(
        r=job.settings.lora_r,
        lora_alpha=job.settings.lora_alpha,
        lora_dropout=job.settings.lora_dropout,
        target_modules="all-linear",
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
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "gradient_checkpointing": settings.gradient_checkpointing,
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
        "seed": job.seed,
        "data_seed": job.seed,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": not use_cpu,
        "use_cpu": use_cpu,
        "bf16": _bf16(use_cpu),
        "report_to": "none",
        "disable_tqdm": True,
    }


def _evaluated(state: Any) -> bool:
    """Whether the last step was evaluated; a run's length need not be a multiple of ``eval_steps``."""
    return any("eval_loss" in entry and entry["step"] == state.global_step for entry in state.log_history)


def _losses(history: list[dict[str, float]]) -> dict[str, float | None]:
    """The last logged training loss, and the evaluation loss before and after."""
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluations = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    return {
        "train_loss": losses[-1] if losses else None,
        "eval_loss_before": evaluations[0] if evaluations else None,
        "eval_loss": evaluations[-1] if evaluations else None,
    }


def _publish_adapter(job: TrainingJob, model: Any) -> None:
    """Write the adapter under a temporary name and rename it: a folder of its final name is whole."""
    _require_finite_weights(model, "after the last step")
    part = job.scratch / "adapter"
    for folder in (part, job.adapter):
        shutil.rmtree(folder, ignore_errors=True)
    # the path of a work folder would be wrong after publishing, and would make the bytes differ between runs
    model.peft_config["default"].base_model_name_or_path = job.base_name
    model.save_pretrained(str(part), safe_serialization=True, save_embedding_layers=False)
    (part / "README.md").unlink(missing_ok=True)
    config = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # a set: another order in every process
    write_json(part / "adapter_config.json", config)
    part.rename(job.adapter)
