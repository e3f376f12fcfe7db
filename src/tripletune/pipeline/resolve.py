"""Fingerprints of all stages of a run, computed before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from tripletune.config import RunConfig
from tripletune.errors import ConfigError, InputError
from tripletune.finetune.ranks import check_ranks, settings_sha256
from tripletune.models.registry import check_settings
from tripletune.pipeline.feed import feed_files, release_checksums
from tripletune.pipeline.feedback import from_log
from tripletune.pipeline.registry import reusable_stages
from tripletune.pipeline.specialists import pinned_specialists
from tripletune.pipeline.stage import Stage
from tripletune.pipeline.teacher import TEACHER_FILES, teacher_folder
from tripletune.pipeline.warm import from_champion
from tripletune.precision import has_bfloat16
from tripletune.quantization import check_quantization, require_bitsandbytes
from tripletune.schemas.answers import NUM_LETTERS
from tripletune.store.fingerprint import TOKENIZER_FILES, Ingredients, fingerprint, input_checksums
from tripletune.store.paths import RunPaths
from tripletune.store.runs import shared_store
from tripletune.store.sources import PACKAGE

PAGES = PACKAGE / "html" / "templates"
DUMPS = frozenset(f"{table}.tsv.gz" for table in ("title.basics", "title.crew", "title.principals", "name.basics"))
"""Files that are read in the IMDb folder."""
MODEL_FILES = TOKENIZER_FILES | {"config.json", "model.safetensors.index.json"}


def resolve(config: RunConfig, artifacts: Path, given: Mapping[str, str] = MappingProxyType({})) -> RunPaths:
    """Compute every stage's fingerprint.

    Args:
        config: of the run.
        artifacts: the artifact root.
        given: fingerprints of the first stages, where an earlier part of the run has computed them: the inputs of
            these stages need not be here, and what concerns them alone is not checked again.

    Raises:
        InputError: a file or folder named by the config does not exist.
        MissingArtifactError, ConfigError: ``specialists.pin`` names no usable run, there is no such template, the
            processes of a training cannot share ``finetune.global_batch``,
            ``finetune.objective`` or ``finetune.behaviour_tokens`` needs another, ``[finetune.trainer]`` cannot be
            handed to the trainer, ``retrieve.similar_people`` needs a table of users that the release lacks,
            ``selector.from_run`` names no run with a log, or the champion that ``finetune.start`` asks for is gone or
            of other settings.
        ContractError: ``finetune.teacher`` was trained on other prompts.
    """
    from tripletune.finetune.trainer_settings import check_trainer_settings

    # a wrong setting should not show after the specialists have trained
    check_settings(config)
    check_trainer_settings(config.finetune.trainer)
    check_quantization(config.finetune.quantization)
    if config.rank.quantized:
        require_bitsandbytes(f"rank.quantized = {list(config.rank.quantized)}", "set it to []")
    shared = shared_store(config.store)
    fingerprints: dict[str, str] = {}
    ingredients: dict[str, Ingredients] = {}
    pinned = {} if given else pinned_specialists(config, artifacts)
    # a wrong name should not show after the specialists have trained
    inputs = _Inputs(config, teacher_folder(config, artifacts))
    check_ranks(config.finetune)
    _check_objective(config)
    _check_behaviour(config)
    _check_topics(config)
    _check_forms(config)
    _check_worked(config)
    if not given:
        _check_people(config)
        _check_tokenizer(config)
    for stage in reusable_stages(config):
        if stage.name in given:
            fingerprints[stage.name] = given[stage.name]
            continue
        parts = stage.ingredients(config, fingerprints, inputs.of(stage))
        if stage.name == "finetune":
            parts = from_champion(parts, config, artifacts)
        if stage.name == "selector":
            parts = from_log(parts, config, artifacts)
        ingredients[stage.name] = parts
        fingerprints[stage.name] = pinned.get(stage.name) or fingerprint(stage.name, parts)
    return RunPaths(
        root=artifacts,
        dataset=config.dataset,
        fingerprints=fingerprints,
        ingredients=ingredients,
        shared=shared,
    )


def _check_objective(config: RunConfig) -> None:
    """Refuse an objective over labels where the prompts have none, or labels of more than one letter."""
    from tripletune.prompts.template import load_template

    if not config.finetune.scores_labels:
        return
    objective, answers = config.finetune.objective, load_template(config.prompt.template).answers
    if not answers.is_labelled:
        raise ConfigError(
            f"finetune.objective = {objective!r} reads the candidates' scores at their labels, and the template "
            f"{config.prompt.template!r} has none (answers: {answers.name}); set prompt.template to one whose answers "
            "are letters, or finetune.objective to 'sft'"
        )
    number = config.retrieve.num_candidates
    if config.retrieve.candidates == "retrieved" and number > NUM_LETTERS:
        raise ConfigError(
            f"finetune.objective = {objective!r} needs labels of one letter, and more than {NUM_LETTERS} candidates "
            f"have two; set retrieve.num_candidates = {number} to {NUM_LETTERS} or less"
        )


def _check_topics(config: RunConfig) -> None:
    """Refuse a template of topics where none are looked for."""
    from tripletune.prompts.template import load_template

    if load_template(config.prompt.template).topic and not config.retrieve.num_topics:
        raise ConfigError(
            f"prompt.template = {config.prompt.template!r} shows topics, and retrieve.num_topics = 0 looks for none; "
            "set retrieve.num_topics to 6 or so, or take another template"
        )


def _check_forms(config: RunConfig) -> None:
    """Refuse short forms of prompts whose template has no questions for them."""
    from tripletune.prompts.template import load_template

    if config.ensemble.forms:
        load_template(config.prompt.template).further_forms()


def _check_behaviour(config: RunConfig) -> None:
    """Refuse behaviour tokens where a line of data may be something else than one film."""
    from tripletune.prompts.template import load_template
    from tripletune.schemas.behaviour import SLOTS

    if not config.finetune.has_behaviour:
        return
    others = [slot for slot in load_template(config.prompt.template).slots if slot not in SLOTS]
    if others:
        raise ConfigError(
            f"finetune.behaviour_tokens = {config.finetune.behaviour_tokens!r} needs a template whose sections with "
            f"data are {', '.join(SLOTS)} alone, and {config.prompt.template!r} has {', '.join(others)} too; set "
            "prompt.template = 'compact', or behaviour_tokens to 'none'"
        )


def _check_worked(config: RunConfig) -> None:
    """Refuse worked examples that the template does not show, and film tokens in prompts with them."""
    from tripletune.prompts.template import load_template

    number = config.prompt.worked_examples
    if not number:
        return
    load_template(config.prompt.template).with_worked("")
    if config.finetune.has_behaviour:
        raise ConfigError(
            f"prompt.worked_examples = {number}, and finetune.behaviour_tokens = {config.finetune.behaviour_tokens!r} "
            "has tokens for the films of the query alone; set one to 0 or the other to 'none'"
        )


def _check_tokenizer(config: RunConfig) -> None:
    """Try the base model's tokenizer with the run's template, unless it is on the hub and not yet in the cache."""
    if config.finetune.is_shipped:
        from tripletune.finetune.shipped import find_weights

        find_weights()
        return
    if config.counted_with is None:
        return
    model, revision = config.counted_with
    if config.finetune.names_a_folder:
        _require("model", Path(model))
    elif not _is_cached(model, revision):
        return
    from tripletune.prompts.template import load_template
    from tripletune.prompts.tokens import load_counter

    load_counter(model, revision, load_template(config.prompt.template), cached=True)


def _is_cached(model: str, revision: str) -> bool:
    from huggingface_hub import try_to_load_from_cache  # a tenth of a second; transformers takes seconds

    return isinstance(try_to_load_from_cache(model, "tokenizer.json", revision=revision), str)


def _check_people(config: RunConfig) -> None:
    from tripletune.data.release.layouts import has_users

    release = Path(config.source.movielens) if config.source.movielens else None
    has_none = release is None or (release.exists() and not has_users(release))
    if config.retrieve.similar_people and has_none:
        raise ConfigError(
            f"retrieve.similar_people = {config.retrieve.similar_people} needs a release with ages, genders and "
            f"occupations (ml-100k, ml-1m); {release or 'the synthetic one'} has no table of users: set it to 0"
        )


class _Inputs:
    """Checksums of inputs from outside the store: data files, model folder, template.

    Raises:
        InputError: a named path does not exist. ConfigError: there is no such template.
    """

    def __init__(self, config: RunConfig, teacher: Path | None) -> None:
        from tripletune.prompts.template import load_template

        self._config = config
        self._template = load_template(config.prompt.template)
        source, finetune = config.source, config.finetune
        named = {
            "movielens": source.movielens,
            "imdb": source.imdb,
            **{f"extra_triples[{index}]": name for index, name in enumerate(source.extra_triples)},
            "frozen": config.split.frozen,
            "accelerate_config": finetune.accelerate_config,
            "model": finetune.model if finetune.names_a_folder else "",
            "tokenizer": finetune.model if finetune.names_a_folder else "",
            "text_model": config.text.model if config.text.names_a_folder else "",
            "teacher": str(teacher or ""),
        }
        self._paths = {key: Path(text) for key, text in named.items() if text}

    def of(self, stage: Stage) -> dict[str, str]:
        """Checksums of the outside inputs of one stage."""
        wanted = stage.outside_of(self._config)
        checksums: dict[str, str] = {}
        paths = {key: path for key, path in self._paths.items() if key.split("[")[0] in wanted}
        for key, path in paths.items():
            _require(key, path)
        if paths.pop("movielens", None):
            checksums |= release_checksums(self._config)
        launch = paths.pop("accelerate_config", None)
        if launch:
            checksums[f"accelerate_config/{launch.name}"] = settings_sha256(launch)
        checksums |= input_checksums(paths, read=_READ)
        if "feed" in wanted:
            checksums |= {f"feed/{file.name}": file.checksum for file in feed_files(self._config)}
        if "template" in wanted:
            checksums |= {f"template/{self._template.id}": self._template.sha256}
        if "processor" in wanted:
            checksums |= {"processor/bfloat16": "yes" if has_bfloat16() else "no"}
        if "page" in wanted:
            files = {
                "page": "report.html.j2",
                "style": "style.html.j2",
                "macros": "macros.html.j2",
                "section": "report",
            }
            checksums |= input_checksums({key: PAGES / name for key, name in files.items()})
        return dict(sorted(checksums.items()))


def _require(key: str, path: Path) -> None:
    if not path.exists():
        raise InputError(f"{key} = {str(path)!r}: no such file or folder; give a path that exists")
    if key in ("imdb", "model", "tokenizer", "text_model") and not path.is_dir():
        raise InputError(f"{key} = {str(path)!r}: this is a file; give the folder that holds it")


def _is_model_file(below: Path) -> bool:
    """Whether a file of a model folder shapes weights, tokens or the chat template.

    A README, ``original/*.pth``, the metadata that a download writes and ``generation_config.json`` do not: ranking
    sets all of decoding itself.
    """
    return len(below.parts) == 1 and (below.suffix == ".safetensors" or below.name in MODEL_FILES)


_READ: dict[str, Callable[[Path], bool]] = {
    "imdb": lambda below: below.name in DUMPS,
    "tokenizer": lambda below: len(below.parts) == 1 and below.name in TOKENIZER_FILES,
    "model": _is_model_file,
    "teacher": lambda below: below.as_posix() in TEACHER_FILES,
}
