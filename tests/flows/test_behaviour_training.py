"""Training and ranking with behaviour tokens: the projector is part of the adapter, and reads one space only."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from tests.film_vectors import write_lightgcn
from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tests.flows.test_trainer import keep_on_the_cpu
from tripletune.behaviour import space
from tripletune.config import FinetuneConfig
from tripletune.contract import read_contract, write_contract
from tripletune.errors import ContractError, MissingArtifactError
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.prepare import FilmSource
from tripletune.finetune.token_files import write_token_files
from tripletune.finetune.training import train
from tripletune.rank.answerer import Answerer
from tripletune.rank.predict import rank_examples
from tripletune.serve.answers import ServedModel
from tripletune.serve.layout import copy_film_vectors
from tripletune.serve.package import signature
from tripletune.store.paths import SCRATCH

WIDTH, NUM_FILMS = 8, 150
COLUMNS = ("liked", "candidates")
ACCELERATE = Path(__file__).parents[2] / "configs" / "accelerate"
SETTINGS = LAUNCHED.model_copy(
    update={
        "objective": "listwise",
        "behaviour_tokens": "lightgcn",
        "learning_rate": 0.01,
        "global_batch": 6,
        "per_device_train_batch_size": 6,
        "save_steps": 5,
        "logging_steps": 5,
        "max_length": 1024,
    }
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts whose lines of data are three likes and the candidates."""
    folder = write_shards(
        tmp_path_factory.mktemp("behaviour"), train=30, valid=8, test=8, long=False, letters=True, files=1
    )
    for path in folder.glob("*/*.parquet"):
        pl.read_parquet(path).with_columns(pl.col("liked").list.head(3)).write_parquet(path)
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fits of one night: b is another fit of the same films, turned."""
    folder = tmp_path_factory.mktemp("films")
    return write_lightgcn(
        folder, fits={"a": 0, "b": 0}, num_films=NUM_FILMS, width=WIDTH, noise={"b": 0.2}, turned={"b": 3}
    )


def tuned(
    shards: Path, films: Path, out: Path, settings: FinetuneConfig = SETTINGS
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    out.mkdir()
    source = FilmSource("lightgcn", films, COLUMNS)
    facts = finetune_adapter(shards, out, settings, LETTERS_CONTRACT, {}, 0, behaviour=source)
    return facts, load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def adapter(shards: Path, films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("tuned") / "adapter"
    facts, _ = tuned(shards, films, out)
    return out, facts


def scores(shards: Path, adapter: Path, films: Path, *, tuned: bool = True, batch_size: int = 3) -> np.ndarray:
    """Each test user's scores by candidate, in the order shown."""
    examples = pl.read_parquet(shards / "test" / "*.parquet").sort("user_id")
    folder_of = {"lightgcn": films}.__getitem__
    answered = rank_examples(
        examples, adapter, tuned=tuned, constrained=True, batch_size=batch_size, folder_of=folder_of
    ).sort("user_id")
    return np.array(
        [
            [dict(zip(row["answers"], row["scores"], strict=True))[film] for film in shown]
            for row, shown in zip(answered.iter_rows(named=True), examples["candidates"].to_list(), strict=True)
        ]
    )


def test_a_registered_version_answers_with_the_vectors_that_it_holds_as_rank_with_the_runs(
    shards, films, adapter, tmp_path
):
    out, _ = adapter
    copy_film_vectors(films, tmp_path / "films")
    assert not (tmp_path / "films" / "fit_a.safetensors").exists()
    system = pl.read_parquet(shards / "test" / "*.parquet")["prompt"][0][0]["content"]
    template = SimpleNamespace(system=system, texts=(), id="test", sha256="0" * 64)  # these prompts have none
    model = ServedModel(Answerer.load(out, lambda stage: tmp_path / "films"), template, batch_size=3)
    wanted = signature(read_contract(out)).inputs.input_names()
    assert wanted[:3] == ["prompt", "candidates", "liked"]
    rows = pl.read_parquet(shards / "test" / "*.parquet").sort("user_id").drop("template_sha256")
    answers = model.answer(rows.select(set(wanted) & set(rows.columns)).to_dicts())
    found = [
        [dict(zip(answer["answers"], answer["scores"], strict=True))[film] for film in shown]
        for answer, shown in zip(answers, rows["candidates"].to_list(), strict=True)
    ]
    assert np.array(found) == pytest.approx(scores(shards, out, films), abs=1e-5)


def test_the_projector_is_trained_with_the_adapter_and_stands_in_its_contract(shards, films, adapter):
    out, facts = adapter
    weights = load_file(out / "adapter" / "adapter_model.safetensors")
    projector = {name.rsplit(".", 1)[1]: tensor for name, tensor in weights.items() if "film_projector" in name}
    assert set(projector) == {"inner_HD", "inner_bias_H", "outer_HH", "outer_bias_H"}
    assert projector["inner_bias_H"].any()
    assert not any("film_projector" in name and "lora" in name for name in weights)
    stated = read_contract(out).behaviour
    assert stated is not None
    assert (stated.source, stated.columns) == ("lightgcn", COLUMNS)
    assert stated.space == space.read_vectors(films, "lightgcn", "a").space
    assert facts["examples"] == 30
    assert facts["behaviour_films"] == NUM_FILMS
    assert facts["behaviour_cosine"] > 0.9
    assert facts["steps"] == 20


def test_another_fit_is_turned_into_the_adapters_space_and_ranks_the_same(shards, films, adapter, tmp_path):
    """Tomorrow's fit b is today's, turned and mirrored otherwise: the projector must see the same vectors."""
    out, _ = adapter
    again = write_lightgcn(
        tmp_path, fits={"a": 5, "b": 0}, num_films=NUM_FILMS, width=WIDTH, noise={"b": 0.2}, turned={"b": 8}
    )
    np.testing.assert_allclose(scores(shards, out, again), scores(shards, out, films), atol=1e-4)
    other = write_lightgcn(tmp_path, fits={"b": 0}, num_films=NUM_FILMS, width=WIDTH, noise={"b": 0.4}, turned={"b": 8})
    assert np.abs(scores(shards, out, other) - scores(shards, out, films)).max() > 1e-3


def test_without_the_map_another_fit_is_refused(shards, films, adapter, monkeypatch):
    out, _ = adapter
    monkeypatch.setattr(space, "align", lambda vectors, reference: space.Aligned(vectors, 1.0, NUM_FILMS))
    with pytest.raises(ContractError, match=r"film vectors are of the space \w{12}, and the adapter's .* turn them"):
        scores(shards, out, films)


def test_an_adapter_of_another_space_or_without_its_vectors_is_refused(shards, films, adapter, tmp_path):
    out, _ = adapter
    other = shutil.copytree(out, tmp_path / "other", ignore=shutil.ignore_patterns(SCRATCH))
    contract = read_contract(other)
    assert contract.behaviour is not None
    moved = contract.behaviour.model_copy(update={"space": "0" * 64})
    write_contract(other, contract.model_copy(update={"behaviour": moved}))
    with pytest.raises(ContractError, match="trained in 000000000000"):
        scores(shards, other, films)
    write_contract(other, contract)
    (other / space.SPACE).unlink()
    with pytest.raises(MissingArtifactError, match=r"behaviour_space\.safetensors is missing"):
        scores(shards, other, films)
    examples = pl.read_parquet(shards / "test" / "*.parquet")
    with pytest.raises(ContractError, match="the adapter reads film vectors, and no run that has them is given"):
        rank_examples(examples, out, tuned=True, constrained=True, batch_size=4)


def test_a_prompt_is_ranked_alone_as_among_others_and_the_untuned_model_reads_text(shards, films, adapter):
    out, _ = adapter
    np.testing.assert_allclose(
        scores(shards, out, films, batch_size=1), scores(shards, out, films, batch_size=8), atol=1e-4
    )
    plain = scores(shards, out, films, tuned=False)
    assert np.isfinite(plain).all()
    assert np.abs(plain - scores(shards, out, films)).max() > 1e-2


def test_the_loss_that_selects_is_that_of_the_ranked_scores(shards, films, adapter):
    """Training reads valid examples with fit b, as ranking does; with fit a the loss would be another."""
    out, facts = adapter
    residual = read_contract(out).residual
    assert residual is not None
    select = pl.read_parquet(out / SCRATCH / "select.parquet").select("example_id")
    rows = pl.read_parquet(shards / "valid" / "*.parquet").join(select, on="example_id", how="semi")
    answered = rank_examples(
        rows, out, tuned=True, constrained=True, batch_size=4, folder_of={"lightgcn": films}.__getitem__
    )
    losses = []
    for row, answer in zip(answered.iter_rows(named=True), rows["answers"].to_list(), strict=True):
        found = np.array(row["scores"])
        losses.append(np.logaddexp.reduce(found) - found[row["answers"].index(answer[0])])
    assert np.mean(losses) == pytest.approx(facts["select_loss"], abs=1e-4)


def test_a_killed_training_goes_on_to_the_same_weights(shards, films, adapter, tmp_path, monkeypatch):
    keep_on_the_cpu(monkeypatch)
    out, _ = adapter
    job = TrainingJob.model_validate_json((out / SCRATCH / "job.json").read_bytes())
    resumed = job.model_copy(update={"out": tmp_path})
    shutil.copytree(job.checkpoints, resumed.checkpoints)
    shutil.rmtree(resumed.checkpoints / "checkpoint-20")
    write_token_files(resumed)
    train(resumed)
    assert json.loads(resumed.result.read_text())["facts"]["resumed_from_step"] == 15
    ours, theirs = (load_file(one.adapter / "adapter_model.safetensors") for one in (resumed, job))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow  # test_sharded.py compares two processes with one as well
def test_two_processes_learn_what_one_learns_from_batches_of_twice_the_size(shards, films, adapter, tmp_path):
    changes = {"accelerate_config": str(ACCELERATE / "cpu-2.yaml"), "per_device_train_batch_size": 3}
    facts, weights = tuned(shards, films, tmp_path / "two", SETTINGS.model_copy(update=changes))
    out, one = adapter
    assert facts["world_size"] == 2
    assert facts["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-4)
    for name, tensor in load_file(out / "adapter" / "adapter_model.safetensors").items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)
