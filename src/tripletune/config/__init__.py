"""All settings, as frozen pydantic models.

One section per stage, so that a stage's fingerprint can name the fields it reads and Prefect can show the config as a
form. Frozen: a config that was logged cannot change afterwards. Values are checked where they are defined.
"""

from __future__ import annotations

from tripletune.config.base import Name, Section
from tripletune.config.data import (
    Credit,
    FeedColumns,
    FeedConfig,
    IngestConfig,
    KnowledgeConfig,
    SourceConfig,
    SplitConfig,
    SyntheticConfig,
)
from tripletune.config.ensemble import EnsembleConfig
from tripletune.config.llm import (
    SHIPPED,
    EvaluateConfig,
    FinetuneConfig,
    PromoteConfig,
    RankConfig,
    TinyLlamaConfig,
)
from tripletune.config.models import (
    BASELINES,
    RETRIEVERS,
    SHIPPED_RETRIEVERS,
    LightGCNConfig,
    RgatConfig,
    SasrecConfig,
    SequenceConfig,
    SlistConfig,
    SpecialistsConfig,
    TextConfig,
)
from tripletune.config.probe import Perturbation, ProbeConfig
from tripletune.config.prompts import (
    LISTED_FILMS,
    PromptConfig,
    QualityConfig,
    RetrieveConfig,
    RetrieverName,
    SampleConfig,
    WorkersConfig,
)
from tripletune.config.run import RunConfig, StoreConfig, TrackingConfig
from tripletune.config.selector import SelectorConfig

__all__ = [
    "BASELINES",
    "LISTED_FILMS",
    "RETRIEVERS",
    "SHIPPED",
    "SHIPPED_RETRIEVERS",
    "Credit",
    "EnsembleConfig",
    "EvaluateConfig",
    "FeedColumns",
    "FeedConfig",
    "FinetuneConfig",
    "IngestConfig",
    "KnowledgeConfig",
    "LightGCNConfig",
    "Name",
    "Perturbation",
    "ProbeConfig",
    "PromoteConfig",
    "PromptConfig",
    "QualityConfig",
    "RankConfig",
    "RetrieveConfig",
    "RetrieverName",
    "RgatConfig",
    "RunConfig",
    "SampleConfig",
    "SasrecConfig",
    "Section",
    "SelectorConfig",
    "SequenceConfig",
    "SlistConfig",
    "SourceConfig",
    "SpecialistsConfig",
    "SplitConfig",
    "StoreConfig",
    "SyntheticConfig",
    "TextConfig",
    "TinyLlamaConfig",
    "TrackingConfig",
    "WorkersConfig",
]
