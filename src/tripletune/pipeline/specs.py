"""What each stage is made of, for its fingerprint: source, libraries, settings, parents and inputs."""

from __future__ import annotations

from datetime import date

from tripletune.config import (
    FinetuneConfig,
    LightGCNConfig,
    RgatConfig,
    RunConfig,
    SasrecConfig,
    Section,
    SplitConfig,
)
from tripletune.store.fingerprint import StageSpec

_TRAINING = ("models.training", "models.message_passing")

PARSED = StageSpec(
    name="parsed",
    source=(
        "data.feed.parse",
        *(f"data.release.{name}" for name in ("ratings", "rating_rows", "ratings_text", "ratings_parquet")),
        *("data.release.rules", "data.release.tables", "schemas"),
    ),
    libraries=("polars", "pyarrow"),
    fields=("source.feed.columns", "ingest.rating_min", "ingest.rating_max", "ingest.earliest", "ingest.latest"),
)
"""One file of a feed, parsed: an artifact of its own, so that a later night need not parse it again."""


def stage_specs(config: RunConfig) -> tuple[StageSpec, ...]:
    """What each reusable stage is made of, in an order in which they can run. ``quality`` and ``promote`` are never
    reused."""
    return (*_data_specs(config), *_hint_specs(config), *_model_specs(config))


def _data_specs(config: RunConfig) -> tuple[StageSpec, ...]:
    synthetic, feed = not config.source.movielens, bool(config.source.feed.ratings)
    return (
        StageSpec(
            name="ingest",
            source=(
                *("data.release", "data.feed.parse"),
                *(("synthetic",) if synthetic else ()),
                "stable_hash",
                "schemas",
            ),
            libraries=("polars", *(("numpy",) if synthetic else ()), *(("pyarrow",) if feed else ())),
            fields=(
                "ingest",
                *(("synthetic", "seed") if synthetic else ()),
                *(("source.feed.columns",) if feed else ()),
            ),
            outside=("movielens", "feed"),
        ),
        StageSpec(
            name="split",
            parents=("ingest",),
            source=("data.split", "stable_hash", "schemas"),
            libraries=("polars", "pyarrow", "numpy"),
            fields=(*_shaping("split", SplitConfig), "seed"),
            outside=("frozen",),
        ),
        StageSpec(
            name="knowledge",
            parents=("ingest",),
            source=("knowledge", "schemas"),
            libraries=("polars",),
            # the cut of tags; the other protocols have none
            fields=("knowledge", *(("split.protocol", "split.valid_from") if tags_before(config) else ())),
            outside=("imdb", "extra_triples"),
        ),
    )


def _hint_specs(config: RunConfig) -> tuple[StageSpec, ...]:
    return (
        StageSpec(
            name="rgat",
            parents=("knowledge", "split"),
            source=("models.rgat", *_TRAINING, "models.serving.pooling", "schemas"),
            libraries=("torch", "dgl", "polars", "numpy"),
            fields=(*_shaping("rgat", RgatConfig), "seed"),
        ),
        StageSpec(
            name="lightgcn",
            parents=("split",),
            source=("models.lightgcn", *_TRAINING, "models.serving.pooling", "schemas"),
            libraries=("torch", "dgl", "polars", "numpy"),
            fields=(*_shaping("lightgcn", LightGCNConfig), "seed"),
        ),
        *(
            (
                StageSpec(
                    name="sasrec",
                    parents=("split",),
                    source=(
                        *("models.sasrec", "models.lightgcn.loss", *_TRAINING),
                        "schemas",
                    ),
                    libraries=("torch", "polars", "numpy", "scipy"),
                    fields=(*_shaping("sasrec", SasrecConfig), "seed"),
                ),
            )
            if "sasrec" in config.trained_stages
            else ()
        ),
        StageSpec(
            name="ease",
            parents=("split",),
            source=("models.ease.fit", "models.training", "stable_hash", "schemas"),
            libraries=("torch", "polars", "numpy", "scipy"),
            fields=(
                *("retrieve.ease_lambda", "retrieve.ease_max_films", "seed"),
                # as a baseline it may leave out what a retriever may not
                *(() if "ease" in config.retrieve.lists else ("retrieve.retriever",)),
            ),
        ),
        StageSpec(
            name="retrieve",
            parents=("knowledge", "split", *config.trained_stages),
            source=("retrieve", "store.increments", "models", "stable_hash", "schemas"),
            libraries=("torch", "polars", "numpy", "scipy", "pyarrow"),
            fields=("retrieve", "sample", "prompt.triples_for_liked", "split.dislike", "seed"),
        ),
        _generate_spec(config),
    )


def _generate_spec(config: RunConfig) -> StageSpec:
    # a tokenizer on the hub is known by its commit, one in a folder by its content and not by where it lies
    on_hub = config.counted_with is not None and not config.finetune.names_a_folder
    in_folder = config.counted_with is not None and config.finetune.names_a_folder
    return StageSpec(
        name="generate",
        parents=("ingest", "split", "retrieve", *config.trained_stages),
        # what is published passed this audit, and a later night takes its proofs over
        source=("prompts", "store.increments", "audit", "store.parquet", "stable_hash", "schemas"),
        libraries=(
            *("polars", "pyarrow", "numpy", "matplotlib"),
            *(("tokenizers", "transformers") if config.counted_with else ()),
        ),
        fields=(
            "prompt",
            "retrieve",
            "split.dislike",
            "seed",
            *(("finetune.model", "finetune.revision") if on_hub else ()),
        ),
        outside=("tokenizer",) if in_folder else (),
    )


def _model_specs(config: RunConfig) -> tuple[StageSpec, ...]:
    return (
        StageSpec(
            name="finetune",
            parents=("generate",),
            source=("finetune", "contract", "stable_hash", "schemas"),
            libraries=("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers"),
            fields=(*_shaping("finetune", FinetuneConfig), "seed"),
            outside=("accelerate_config", "model"),
        ),
        StageSpec(
            name="rank",
            parents=("generate", "finetune"),
            source=(
                "rank.answerer",
                "rank.decoding",
                "rank.predict",
                "store.parquet",
                "contract",
                "stable_hash",
                "schemas",
            ),
            libraries=("torch", "transformers", "peft", "polars"),
            fields=("rank", "seed"),
        ),
        StageSpec(
            name="evaluate",
            parents=("rank", "generate", "retrieve", *config.trained_stages, "finetune"),
            source=(
                *("evaluate", "html", "store.parquet"),
                "schemas",
            ),
            libraries=("polars", "numpy", "matplotlib", "jinja2"),
            fields=("evaluate", "seed"),
        ),
    )


_SHAPES_NO_BYTES = ("timeout_minutes", "checkpoint_minutes", "accelerate_config", "frozen")
"""Settings that a fingerprint leaves out; of the accelerate config and of frozen questions the content counts, not
where they lie."""


def _shaping(section: str, settings: type[Section]) -> tuple[str, ...]:
    """A section's fields but those that shape no byte of what its stage writes."""
    return tuple(f"{section}.{name}" for name in settings.model_fields if name not in _SHAPES_NO_BYTES)


def tags_before(config: RunConfig) -> date | None:
    """Under global_time, tags from the day on that is no longer learned from would tell of the future."""
    return config.split.valid_from if config.split.protocol == "global_time" else None
