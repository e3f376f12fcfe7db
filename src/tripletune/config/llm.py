"""Settings of finetune, rank, evaluate and promote."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tripletune.config.base import Name, Positive, PositiveFloat, Section, Share
from tripletune.config.prompts import LISTED_FILMS


class TinyLlamaConfig(Section):
    """Shape of the local Llama that ``model = "tiny"`` builds and initialises."""

    vocab_size: Annotated[int, Field(ge=300)] = 2000
    hidden_size: Positive = 96
    intermediate_size: Positive = 192
    num_layers: Positive = 2
    num_heads: Positive = 4
    num_kv_heads: Positive = 2


class FinetuneConfig(Section):
    """The language model and its LoRA training."""

    model: str = "tiny"
    """``tiny``, a Hugging Face id, or a local folder."""
    revision: str = ""
    """Commit of the model on the hub; required for a Hugging Face id."""
    tiny: TinyLlamaConfig = TinyLlamaConfig()
    accelerate_config: str = "configs/accelerate/single.yaml"
    """File for ``accelerate launch``; says how many processes run."""
    lora_r: Positive = 16
    lora_alpha: Positive = 32
    lora_dropout: Share = 0.0
    learning_rate: PositiveFloat = 5e-3
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    num_train_epochs: PositiveFloat = 3.0
    per_device_train_batch_size: Positive = 8
    gradient_accumulation_steps: Positive = 1
    gradient_checkpointing: bool = False
    max_length: Positive = 2048
    save_steps: Positive = 20
    eval_steps: Positive = 40
    logging_steps: Positive = 5
    max_eval_examples: Positive = 64
    timeout_minutes: PositiveFloat = 600.0

    @model_validator(mode="after")
    def _resumes_between_logs(self) -> FinetuneConfig:
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps = {self.save_steps} must be a multiple of logging_steps = {self.logging_steps}, so that a "
                "resumed run logs the same losses"
            )
        return self

    @property
    def names_a_folder(self) -> bool:
        """Whether ``model`` is a local folder and not a Hugging Face id."""
        return self.model.startswith((".", "/")) or Path(self.model).is_dir()

    @model_validator(mode="after")
    def _pinned(self) -> FinetuneConfig:
        if self.model == "tiny" or self.names_a_folder or self.revision:
            return self
        raise ValueError(f"revision must pin a commit of {self.model}, so that a night can be repeated")


class RankConfig(Section):
    """Answering the prompts."""

    batch_size: Positive = 32
    max_viewers: Annotated[int, Field(ge=0)] = 0
    """Viewers ranked per purpose (the first by hash of user); 0 ranks all."""
    unconstrained_viewers: Annotated[int, Field(ge=0)] = 100
    """Test viewers also answered without constrained decoding, to measure the share of valid answers."""


class EvaluateConfig(Section):
    """Metrics and their intervals."""

    retrieval_cutoffs: tuple[Annotated[int, Field(ge=1, le=LISTED_FILMS)], ...] = (3, 5, 10)
    """At most 20, the length of the first stage's lists."""
    rerank_cutoffs: tuple[Annotated[int, Field(ge=1, le=5)], ...] = (3, 5)
    """At most 5, the films of an answer."""
    bootstrap_resamples: Positive = 2000
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95


class PromoteConfig(Section):
    """When tonight's adapter takes the champion's place."""

    registered_model: Name | Literal[""] = ""
    """Name in the MLflow registry. Empty: ``tripletune-<dataset>``; adapters of two datasets never compete."""
    margin: Annotated[float, Field(ge=0.0)] = 0.01
    """How much worse than the champion tonight's ndcg_at_5 may be, at the one-sided bound."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
