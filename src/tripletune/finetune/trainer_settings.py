"""Check ``[finetune.trainer]``: settings that go to TRL's ``SFTConfig`` as they are.

Names are compared with the fields of the installed ``SFTConfig`` and values with the types of those fields, before
anything is trained. What the project itself fixes is refused: the reason stands next to each name.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import types
import typing
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from tripletune.config import FinetuneConfig
from tripletune.errors import ConfigError

_OURS = {
    "warmup_steps": "finetune.warmup_ratio",
    "max_steps": "finetune.num_train_epochs",
    "activation_checkpointing": "finetune.gradient_checkpointing",
    "gradient_accumulation_steps": "finetune.global_batch",
    "ddp_timeout": "finetune.ddp_timeout_minutes",
    "seed": "the run's seed, at the top of the file",
    "data_seed": "the run's seed, at the top of the file",
    "model_init_kwargs": "finetune.model and finetune.revision",
}
"""Fields whose value comes from a setting of ours with another name."""

_FIXED = {
    **dict.fromkeys(
        ("output_dir", "save_strategy", "save_total_limit", "save_only_model", "save_on_each_node"),
        "a killed training resumes from checkpoints in the run's own folder; finetune.save_steps says how often",
    ),
    **dict.fromkeys(
        ("resume_from_checkpoint", "ignore_data_skip", "restore_callback_states_from_checkpoint"),
        "a killed training resumes by itself, to the same weights",
    ),
    "enable_jit_checkpoint": "a killed training resumes from the last of its own checkpoints",
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        "finetune.keep says which step's adapter is published",
    ),
    **dict.fromkeys(
        ("do_train", "do_eval", "do_predict", "eval_strategy", "eval_on_start"),
        "each training is evaluated before, during and after; finetune.eval_steps says how often",
    ),
    "logging_strategy": "the loss is watched while it trains; finetune.logging_steps says how often",
    "logging_nan_inf_filter": "a loss that is NaN or infinite must show, as it stops the training",
    **dict.fromkeys(
        ("report_to", "run_name", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        "the curve is logged to the run in MLflow; [tracking] says where that is",
    ),
    "disable_tqdm": "the output is a log of lines, which a progress bar would fill",
    **dict.fromkeys(
        (
            *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
            "hub_revision",
        ),
        "an adapter goes to the registry of MLflow, when it is promoted, and nowhere else",
    ),
    **dict.fromkeys(
        ("bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "use_cpu"),
        "device and precision are chosen by what the machine has: bfloat16 where it can, else float32",
    ),
    **dict.fromkeys(
        ("fsdp", "fsdp_config", "deepspeed", "parallelism_config", "accelerator_config", "local_rank"),
        "finetune.accelerate_config says how processes share the work",
    ),
    "auto_find_batch_size": "finetune.per_device_train_batch_size is part of what a training is known by",
    **dict.fromkeys(
        ("completion_only_loss", "assistant_only_loss"),
        "the loss is taken over the completion alone, which is what ranking asks for",
    ),
    **dict.fromkeys(
        ("packing", "packing_strategy", "eval_packing", "padding_free", "truncation_mode"),
        "nothing is packed and nothing is cut: an example that exceeds finetune.max_length is refused by name",
    ),
    **dict.fromkeys(
        ("chat_template_path", "eos_token", "pad_token"),
        "training must use the tokens that ranking sends, which are those of finetune.model",
    ),
    **dict.fromkeys(
        (
            *("dataset_text_field", "dataset_kwargs", "dataset_num_proc", "shuffle_dataset"),
            *("remove_unused_columns", "label_names", "length_column_name"),
        ),
        "the examples are those of the generate stage, whose columns are known",
    ),
    "trust_remote_code": "code that comes with a model is never run",
}
"""Fields that no setting changes, and why."""


def check_trainer_settings(trainer: Mapping[str, Any]) -> None:
    """Refuse settings that cannot be handed to ``SFTConfig``.

    TRL is imported, which takes seconds, only when the table holds something that is not refused by its name alone.

    Args:
        trainer: the table ``[finetune.trainer]``.

    Raises:
        ConfigError: a name is unknown (the nearest ones are given), set elsewhere or fixed; or a value has another type
            than the field, or is none of its choices.
    """
    for name in trainer:
        _refuse_ours(name)
    if not trainer:
        return
    from trl import SFTConfig

    fields = {field.name: field for field in dataclasses.fields(SFTConfig)}
    hints = typing.get_type_hints(SFTConfig)
    for name, value in trainer.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields.keys() - _OURS.keys() - _FIXED.keys(), n=3)
            raise ConfigError(
                f"unknown key '{name}' in [finetune.trainer]; SFTConfig of trl {metadata.version('trl')} has no such "
                f"setting; " + (f"did you mean {', '.join(near)}?" if near else "see its documentation")
            )
        _check_value(name, value, hints[name], fields[name].metadata.get("choices"))


def _refuse_ours(name: str) -> None:
    setting = _OURS.get(name) or (f"finetune.{name}" if name in FinetuneConfig.model_fields else None)
    if setting:
        raise ConfigError(f"[finetune.trainer] {name} cannot be set here; set {setting}")
    if name in _FIXED:
        raise ConfigError(f"[finetune.trainer] {name} cannot be set: {_FIXED[name]}; remove it")


def _check_value(name: str, value: Any, hint: Any, choices: Any) -> None:
    where = f"finetune.trainer.{name} = {value!r}"
    if not all(math.isfinite(number) for number in _numbers(value)):
        raise ConfigError(f"{where}: must be a finite number")
    try:
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError:
        raise ConfigError(f"{where}: SFTConfig takes {_describe(hint)} there") from None
    allowed = [*(choices or ()), *(member.value for kind in _enums(hint) for member in kind)]
    if allowed and isinstance(value, str) and value not in allowed:
        near = difflib.get_close_matches(value, allowed, n=3)
        meant = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(map(str, allowed))}"
        raise ConfigError(f"{where}: no such choice; {meant}")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def _enums(hint: Any) -> list[type[enum.Enum]]:
    kinds = typing.get_args(hint) or (hint,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, enum.Enum)]


def _describe(hint: Any) -> str:
    """A type in the words of TOML; several with "or" between them."""
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a table"}
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    named = [words.get(kind) or words.get(typing.get_origin(kind), "") for kind in kinds]
    if any(typing.get_origin(kind) is list for kind in kinds):
        named.append("a list")
    return " or ".join(dict.fromkeys(filter(None, named))) or str(hint)
