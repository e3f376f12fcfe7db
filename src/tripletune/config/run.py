"""Top-level config: all settings of a run."""

from __future__ import annotations

import json
from datetime import date
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from tripletune.config.base import Name, Section
from tripletune.config.data import IngestConfig, KnowledgeConfig, SourceConfig, SplitConfig, SyntheticConfig
from tripletune.config.ensemble import EnsembleConfig
from tripletune.config.llm import EvaluateConfig, FinetuneConfig, PromoteConfig, RankConfig
from tripletune.config.models import (
    BASELINES,
    RETRIEVERS,
    LightGCNConfig,
    RgatConfig,
    SasrecConfig,
    SequenceConfig,
    SlistConfig,
    SpecialistsConfig,
    TextConfig,
)
from tripletune.config.probe import ProbeConfig
from tripletune.config.prompts import PromptConfig, QualityConfig, RetrieveConfig, SampleConfig, WorkersConfig
from tripletune.config.selector import SelectorConfig
from tripletune.flatten import flatten


class TrackingConfig(Section):
    """MLflow tracking."""

    uri: str = ""
    """MLflow tracking store. Empty: ``MLFLOW_TRACKING_URI`` if set, else ``sqlite:///<artifacts>/mlflow.db``."""
    experiment: Name = "tripletune"
    """Name of the MLflow experiment."""

    @model_validator(mode="after")
    def _no_password(self) -> TrackingConfig:
        if urlsplit(self.uri).password:
            raise ValueError("uri holds a password, and settings are logged; name the store in MLFLOW_TRACKING_URI")
        return self


class StoreConfig(Section):
    """Artifact store."""

    shared: str = ""
    """Object storage that machines share in place of a disk, such as ``s3://bucket/prefix``: finished outputs and run
    files are pushed there, and fetched where a run needs them. Empty: ``TRIPLETUNE_SHARED_STORE`` if set, else none."""


class RunConfig(Section):
    """All settings of a run."""

    dataset: Name
    """Folder under the artifact root; runs of one dataset share stage outputs."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of every draw: synthetic release, split, training, samples, bootstrap."""
    source: SourceConfig = SourceConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    ingest: IngestConfig = IngestConfig()
    split: SplitConfig = SplitConfig()
    knowledge: KnowledgeConfig = KnowledgeConfig()
    rgat: RgatConfig = RgatConfig()
    lightgcn: LightGCNConfig = LightGCNConfig()
    slist: SlistConfig = SlistConfig()
    sasrec: SasrecConfig = SasrecConfig()
    sequence: SequenceConfig = SequenceConfig()
    text: TextConfig = TextConfig()
    models: dict[str, dict[str, Any]] = Field(default={})
    """Settings of further retrievers by name; what keys there are, the ``Settings`` of ``models/<name>/fit.py`` say."""
    retrieve: RetrieveConfig = RetrieveConfig()
    selector: SelectorConfig = SelectorConfig()
    sample: SampleConfig = SampleConfig()
    prompt: PromptConfig = PromptConfig()
    quality: QualityConfig = QualityConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    rank: RankConfig = RankConfig()
    probe: ProbeConfig = ProbeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    promote: PromoteConfig = PromoteConfig()
    tracking: TrackingConfig = TrackingConfig()
    store: StoreConfig = StoreConfig()
    specialists: SpecialistsConfig = SpecialistsConfig()
    workers: WorkersConfig = WorkersConfig()

    @model_validator(mode="after")
    def _a_feed_has_no_order(self) -> RunConfig:
        if self.split.tie_order == "file" and self.source.feed.ratings:
            raise ValueError(
                "split.tie_order = 'file' is the order of a release's file, and a feed has none; set 'hash'"
            )
        return self

    @model_validator(mode="after")
    def _budget_can_be_kept(self) -> RunConfig:
        budget, longest = self.prompt.max_tokens, self.finetune.max_length
        if budget and self.counted_with is None:
            raise ValueError(
                f"prompt.max_tokens = {budget} needs a tokenizer before the prompts, and that of finetune.model = "
                "'tiny' is trained on them; set it to 0, or finetune.model to a local folder or a Hugging Face id"
            )
        if budget > longest:
            raise ValueError(f"prompt.max_tokens = {budget} must not exceed finetune.max_length = {longest}")
        return self

    @model_validator(mode="after")
    def _likes_have_gains(self) -> RunConfig:
        if self.finetune.targets == "rating" and self.split.like <= 0:
            raise ValueError(
                f"finetune.targets = 'rating' needs likes rated above 0, for the gain 2**rating - 1, and split.like = "
                f"{self.split.like:g}; set it above 0, or finetune.targets to 'even'"
            )
        return self

    @model_validator(mode="after")
    def _trains_the_film_vectors(self) -> RunConfig:
        for stage in self.behaviour_stages:
            if stage not in self.trained_stages:
                raise ValueError(
                    f"finetune.behaviour_tokens = {stage!r}, but this run trains no {stage} model; give "
                    f"retrieve.fused_{stage} a weight above 0, or name a model that the run trains"
                )
        return self

    @model_validator(mode="after")
    def _ranks_what_it_trains(self) -> RunConfig:
        if self.rank.backend == "vllm" and self.finetune.has_behaviour:
            raise ValueError(
                f"rank.backend = 'vllm' reads text alone, and finetune.behaviour_tokens = "
                f"{self.finetune.behaviour_tokens!r}; set rank.backend to 'transformers', or behaviour_tokens to 'none'"
            )
        return self

    @model_validator(mode="after")
    def _lists_are_asked_alone(self) -> RunConfig:
        """What is made for the list's prompt alone is refused next to short forms of it."""
        if not self.ensemble.forms:
            return self
        for name, value, needed in (
            ("finetune.residual", self.finetune.scores_labels and self.finetune.residual, False),
            ("finetune.start", self.finetune.start, "base"),
            ("finetune.teacher", self.finetune.teacher, ""),
            ("finetune.behaviour_tokens", self.finetune.behaviour_tokens, "none"),
            ("prompt.worked_examples", self.prompt.worked_examples, 0),
            ("rank.backend", self.rank.backend, "transformers"),
        ):
            if value != needed:
                shown, wanted = json.dumps(value), json.dumps(needed)
                raise ValueError(
                    f"ensemble.forms = {list(self.ensemble.forms)} does not go with {name} = {shown}; set {name} to "
                    f"{wanted}, or forms to []"
                )
        return self

    @property
    def counted_with(self) -> tuple[str, str] | None:
        """Model and revision whose tokenizer counts the prompts' tokens; None for ``tiny``, trained on the prompts."""
        return None if self.finetune.model == "tiny" else (self.finetune.model, self.finetune.revision)

    @model_validator(mode="after")
    def _knows_no_later_run(self) -> RunConfig:
        if self.ingest.as_of is None:
            return self
        learned = {
            "finetune.start": self.finetune.start if self.finetune.start != "base" else "",
            "finetune.teacher": self.finetune.teacher if self.finetune.has_teacher else "",
            "retrieve.triple_choice": "learned" if self.retrieve.learns_triples else "",
            "specialists.pin": self.specialists.pin,
        }
        for name, value in learned.items():
            if value:
                raise ValueError(
                    f"ingest.as_of = {self.ingest.as_of}, and {name} = {value!r} takes what another run learned, which "
                    f"may have read later ratings; leave {name} at its default"
                )
        return self

    @property
    def trained_stages(self) -> tuple[str, ...]:
        """Stages that fit models on likes: both specialists, the retrievers of the candidates, and the baselines."""
        always = {"rgat", "lightgcn", *BASELINES}
        wanted = {*self.retrieve.lists, *self.content_stages}
        chosen = (name for name in RETRIEVERS if name in wanted and name not in always)
        return ("rgat", "lightgcn", *chosen, *BASELINES)

    @property
    def content_stages(self) -> tuple[str, ...]:
        """Stages whose film vectors the sequence model reads, where there is one."""
        stages = {"text": "text", "graph": "rgat"}
        return tuple(stages[name] for name in self.sequence.content) if "sequence" in self.retrieve.lists else ()

    @property
    def probe_stages(self) -> tuple[str, ...]:
        """The stage that says what the language model relies on, where there is one."""
        return ("probe",) if self.probe.users else ()

    @property
    def behaviour_stages(self) -> tuple[str, ...]:
        """The stage whose film vectors the language model reads, where it has behaviour tokens."""
        return (self.finetune.behaviour_tokens,) if self.finetune.has_behaviour else ()

    @property
    def listed_stages(self) -> tuple[str, ...]:
        """Stages whose models make lists of candidates, and LightGCN, whose catalogue they share."""
        return tuple(dict.fromkeys(("lightgcn", *self.retrieve.lists)))

    @property
    def specialist_stages(self) -> tuple[str, ...]:
        """Stages that ``specialists.pin`` takes from an earlier run: trained models, the weights of their lists, and
        the learned choice of triples."""
        return (*self.trained_stages, *(stage for stage in self.retrieve.optional_stages if stage != "ingest"))

    @property
    def tags_before(self) -> date | None:
        """Day (UTC) from which on tags are ignored: under global_time, later ones would leak the future."""
        return self.split.valid_from if self.split.protocol == "global_time" else None

    def field(self, dotted: str) -> Any:
        """The value under a dotted name such as ``split.like``, as plain JSON data; ``{}`` for a ``models.<name>``
        that sets nothing."""
        section, _, name = dotted.partition(".")
        if section == "models" and name not in self.models:
            return {}
        value: Any = self.model_dump(mode="json")
        for part in dotted.split("."):
            value = value[part]
        return value

    def flat(self) -> dict[str, Any]:
        """All settings by dotted name, as logged to MLflow."""
        return flatten(self.model_dump(mode="json"))
