"""Prompts built again from a run's outputs are those of its shards, whatever its config has them show.

Stages of a small world are published as outputs of a run; ``retrieve``, ``generate`` and ``probe`` are the real ones.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_world
from polars.testing import assert_frame_equal

from tests.adapters import write_adapter
from tripletune.cli.recommend import recommend_to_user
from tripletune.config import RunConfig
from tripletune.contract import read_contract
from tripletune.errors import ContractError, MissingArtifactError
from tripletune.models.ease.fit import train_ease
from tripletune.pipeline.answering import _fitting_run, answering
from tripletune.pipeline.stages import run_generate, run_probe, run_retrieve
from tripletune.promote.own_prompts import own_examples
from tripletune.prompts.engine import prompt_contract
from tripletune.rank.answerer import Answerer
from tripletune.retrieve.learned import NAME
from tripletune.retrieve.triple_features import FEATURES, RELATION
from tripletune.schemas.base import conform
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.ingest import USERS
from tripletune.schemas.probe import STABILITY_NAME
from tripletune.serve.batch import Batch
from tripletune.serve.layout import VersionFiles
from tripletune.serve.prompting import Prompter, rows_of
from tripletune.store.parquet import write_parquet
from tripletune.store.paths import RunPaths
from tripletune.store.runs import RunRecord, write_run
from tripletune.store.shards import shard_files, split_files
from tripletune.versions import Version

SETTINGS: dict[str, Any] = {
    "retrieve": {"retriever": "lightgcn", "num_candidates": 12, "similar_films": 3},
    "evaluate": {"bootstrap_resamples": 50},
    "probe": {"users": 2, "facts": 1, "purposes": ["train", "test"], "perturbations": ["like-removed"]},
}
SHOWN: dict[str, dict[str, dict[str, Any]]] = {
    "topics": {"retrieve": {"num_topics": 6}, "prompt": {"template": "topics"}},
    "learned and worked": {
        "retrieve": {"triple_choice": "learned", "explore_triples": 0.2},
        "prompt": {"worked_examples": 1, "template": "hint-2-only"},
    },
    "behaviour": {
        "prompt": {"template": "compact"},
        "finetune": {"objective": "listwise", "behaviour_tokens": "lightgcn"},
    },
    "people": {"retrieve": {"similar_people": 0.5}},
    "personal": {},
    "learned": {"retrieve": {"triple_choice": "learned"}},
    "worked": {"prompt": {"worked_examples": 2}},
}
ALL = "learned and worked"
QUICK = ("topics", ALL)
READ = ("ingest", "split", "knowledge", "rgat", "lightgcn", "ease")


def config_of(shown: str) -> RunConfig:
    given = SHOWN[shown]
    sections = {name: {**SETTINGS.get(name, {}), **given.get(name, {})} for name in {*SETTINGS, *given}}
    return RunConfig.model_validate({"dataset": "d", "seed": small_world.SEED, **sections})


def write_selector(folder: Path) -> dict[str, Any]:
    """A choice that prefers directors."""
    weights = dict.fromkeys(FEATURES, 0.0) | {f"{RELATION}director": 1.0, "log attention": 1e-3}
    (folder / NAME).write_text(json.dumps({"refused": "", "weights": weights}))
    return {"refused": ""}


def publish(root: Path, world: small_world.World, config: RunConfig) -> RunPaths:
    """A run with every stage up to ``generate``."""
    stages = (*READ, "selector", "retrieve", "generate", "finetune", "probe")
    paths = RunPaths(root=root, dataset="d", fingerprints={stage: f"{stage:0<32}" for stage in stages})
    for stage in READ:
        paths.build(stage, lambda work, stage=stage: copy(world.root / stage, work))
    if config.retrieve.learns_triples:
        paths.build("selector", write_selector)
    run_retrieve(paths, config)
    run_generate(paths, config)
    return paths


def finetune(paths: RunPaths, config: RunConfig) -> Path:
    """An adapter with random weights."""
    contract = prompt_contract(config.prompt, config.retrieve)
    return paths.build("finetune", lambda work: {"made": write_adapter(work, paths.folder("generate"), contract).name})


def copy(source: Path, work: Path) -> dict[str, Any]:
    shutil.copytree(source, work, dirs_exist_ok=True)
    return {}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small_world.World:
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    shutil.copy(world.lightgcn / "trained_on.parquet", world.rgat / "trained_on.parquet")
    world.ease.mkdir()
    train_ease(world.split, world.ease, config_of("personal").retrieve, small_world.SEED)
    users = range(1, small_world.NUM_VIEWERS + 1)
    ages = {"user_id": users, "gender": ["F", "M"] * (len(users) // 2), "age": [18 + user % 40 for user in users]}
    rows = pl.DataFrame(ages).with_columns(occupation=pl.lit("other"), zip=pl.lit(""))
    write_parquet(world.ingest / "users.parquet", conform(rows, USERS))
    return world


Run = tuple[RunPaths, RunConfig]


@pytest.fixture(scope="module")
def made(world: small_world.World, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """The run of a config, made when it is first asked for."""

    @functools.cache
    def make(shown: str) -> Run:
        config = config_of(shown)
        return publish(tmp_path_factory.mktemp("run"), world, config), config

    return make


def slow_but(*quick: str) -> pytest.MarkDecorator:
    """All configs; those that are not ``quick`` as slow tests."""
    cases = [pytest.param(shown, marks=() if shown in quick else pytest.mark.slow) for shown in SHOWN]
    return pytest.mark.parametrize("shown", cases)


@pytest.fixture
def recorded(made: Callable[[str], Run], tmp_path: Path) -> Run:
    """A copy to damage, of a run that reads all that a prompt can be made of, with its record."""
    paths, config = made(ALL)
    finetune(paths, config)
    shutil.copytree(paths.root, tmp_path / "store")
    copied = replace(paths, root=tmp_path / "store")
    write_record(copied, config, "whole", "2026-01-01")
    return copied, config


def write_record(paths: RunPaths, config: RunConfig, name: str, started: str) -> None:
    settings, prints = config.model_dump(mode="json"), dict(paths.fingerprints)
    record = RunRecord(
        name=name, dataset="d", status="completed", started=started, config=settings, fingerprints=prints
    )
    write_run(paths.root, record)


@slow_but(*QUICK)
def test_prompts_built_again_are_those_of_the_shards(made: Callable[[str], Run], shown: str) -> None:
    paths, config = made(shown)
    prompter = Prompter.load(paths, config, None)
    for purpose in ("valid", "test"):
        shards = pl.read_parquet(shard_files(paths.folder("generate") / purpose)).sort("user_id", "cutoff")
        queries = shards.select("user_id", "purpose", "cutoff", "unseen")
        rows = rows_of(list(split_files(paths.folder("split")).values()), queries["user_id"])
        made = prompter.prompts(rows, queries)
        assert made.height > 30
        assert_frame_equal(made.sort("user_id", "cutoff"), shards)
    if config.retrieve.learns_triples:  # else the choice shows in nothing
        relations = shards.explode("triples").unnest("triples")["relation"].value_counts(normalize=True)
        assert dict(relations.iter_rows())["director"] > 0.9


@slow_but(ALL)
def test_prompts_of_any_kind_are_probed(made: Callable[[str], Run], shown: str) -> None:
    paths, config = made(shown)
    finetune(paths, config)
    run_probe(paths, config)
    assert pl.read_parquet(paths.folder("probe") / STABILITY_NAME).height


@pytest.mark.parametrize("stage", ["selector", "generate"])
def test_a_run_that_lacks_what_its_prompts_are_made_of_does_not_answer_and_the_message_names_it(
    recorded: Run, stage: str
) -> None:
    paths, _ = recorded
    shutil.rmtree(paths.folder(stage))
    reason = f"no finished '{stage}' output .*; produce it with: tripletune {stage}, with"
    with pytest.raises(MissingArtifactError, match=reason) as found, answering(paths.root, "whole"):
        pass
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("stage", ["selector", "generate"])
def test_the_champion_is_asked_on_an_older_run_where_the_newest_lacks_what_its_prompts_are_made_of(
    recorded: Run, stage: str
) -> None:
    paths, config = recorded
    newer = replace(paths, fingerprints={**paths.fingerprints, stage: "f" * 32})
    write_record(newer, config, "newer", "2026-01-02")
    contract = read_contract(paths.folder("finetune"))
    version = Version(number="1", fingerprint="", run="", source="")
    assert _fitting_run(paths.root, "d", contract, version).name == "whole"
    shutil.rmtree(paths.folder(stage))
    with pytest.raises(ContractError, match=rf"no run here makes its prompts \(newer: no finished '{stage}' output"):
        _fitting_run(paths.root, "d", contract, version)


@pytest.mark.parametrize("stage", ["selector", "generate"])
def test_pieces_of_a_killed_batch_count_for_prompts_made_of_the_same_outputs_alone(recorded: Run, stage: str) -> None:
    paths, config = recorded
    batch = Batch(
        paths=paths, config=config, adapter=paths.folder("finetune"), answered_by={}, tokenizer=None, users=None
    )
    other = replace(paths, fingerprints={**paths.fingerprints, stage: "f" * 32})
    assert replace(batch).job() == batch.job()
    assert replace(batch, paths=other).job() != batch.job()


def test_of_another_contract_worked_examples_are_refused(recorded: Run) -> None:
    paths, config = recorded
    contract = read_contract(paths.folder("finetune"))
    now = config.model_copy(update={"prompt": config.prompt.model_copy(update={"max_liked": 3})})
    version, examples = Version(number="1", fingerprint="", run="whole", source=""), EXAMPLES.to_frame()
    files = VersionFiles(paths.folder("finetune"))
    with pytest.raises(ContractError, match="its prompts show 1 worked examples, and this run has none"):
        own_examples(paths, now, examples, version, files, contract)


def test_a_recommendation_is_explained_by_the_model_that_gave_it(
    recorded: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = recorded
    loaded: list[Path] = []
    load = Answerer.load

    def counted(finetuned: Path, *arguments: Any, **options: Any) -> Answerer:
        loaded.append(finetuned)
        return load(finetuned, *arguments, **options)

    monkeypatch.setattr(Answerer, "load", counted)
    with answering(paths.root, "whole") as who:
        first, *others = recommend_to_user(who, 3, why=True)
    assert loaded == [paths.folder("finetune")]
    assert first.relied
    assert first.relied.title == first.title
    assert {"likes", "hint 2"} <= {part.part for part in first.relied.parts}
    assert not any(other.relied for other in others)
