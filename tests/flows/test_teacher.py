"""Scores of a teacher for every training example, and a training that learns from them."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.adapters import write_adapter
from tests.finetune_shards import LETTERS_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tests.flows.test_label_training import label_job
from tests.flows.test_trainer import changed, keep_on_the_cpu, run
from tripletune.chat import load_tokenizer
from tripletune.config import RankConfig, RunConfig
from tripletune.contract import BehaviourSpace, Residual, read_contract, write_contract
from tripletune.errors import ContractError, MissingArtifactError, UserError
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.token_files import TRAIN, TRAIN_TEXT, read_token_files, write_token_files
from tripletune.finetune.training import train
from tripletune.pipeline.garbage import kept_runs
from tripletune.pipeline.resolve import resolve
from tripletune.pipeline.stages import run_finetune, run_teach
from tripletune.pipeline.teacher import teacher_folder
from tripletune.prompts.engine import prompt_contract
from tripletune.rank.predict import rank_examples
from tripletune.rank.teach import score_training
from tripletune.schemas.teach import TAUGHT
from tripletune.store import runs
from tripletune.store.runs import RunRecord

RESIDUAL = Residual(prior=tuple(-0.3 * place for place in range(20)), weight=0.7)
RANK = RankConfig(batch_size=5, workers=1)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_on_the_cpu(monkeypatch)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A training on the labels of 12 prompts."""
    return label_job(tmp_path_factory.mktemp("student"), valid=4)


@pytest.fixture(scope="module")
def shards(world: TrainingJob) -> Path:
    return world.train[0].parents[1]


@pytest.fixture(scope="module")
def teacher(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_adapter(tmp_path_factory.mktemp("teacher"), shards, LETTERS_CONTRACT, residual=RESIDUAL)


@pytest.fixture(scope="module")
def taught(shards: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teach stage's folder."""
    out = tmp_path_factory.mktemp("teach")
    with pytest.MonkeyPatch.context() as patch:
        keep_on_the_cpu(patch)
        patch.setattr("tripletune.rank.pieces._EXAMPLES", 4)
        facts = score_training(shards, teacher, out, RANK, LETTERS_CONTRACT)
    assert facts["examples"] == 12
    assert facts["teacher"] == "tiny"
    return out


@cache
def loaded(folder: Path) -> tuple[Any, Any]:
    """An adapter next to its base's weights, and the tokenizer."""
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder / "adapter")).eval()
    return model, load_tokenizer(str(folder / "base"), None)


def served_by_hand(folder: Path, row: dict[str, Any]) -> np.ndarray:
    """The sum that an adapter's folder serves, by candidate in the order shown: LoRA next to the base's weights."""
    model, tokenizer = loaded(folder)
    ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    scores = logits[tokenizer.convert_tokens_to_ids(row["candidate_letters"])].double().numpy()
    residual = read_contract(folder).residual
    assert residual is not None
    places = [row["retrieved"].index(film) for film in row["candidates"]]
    return np.asarray(residual.weight * (scores - scores.mean()) + np.array(residual.prior)[places])


def test_the_teachers_scores_are_those_that_it_serves(shards: Path, teacher: Path, taught: Path) -> None:
    right = 0
    for shard in sorted((shards / "train").glob("*.parquet")):
        examples, scored = pl.read_parquet(shard), pl.read_parquet(taught / "train" / shard.name)
        assert scored.schema == TAUGHT
        assert scored["example_id"].to_list() == examples["example_id"].to_list()
        for row, films, scores in zip(
            examples.iter_rows(named=True), scored["films"].to_list(), scored["scores"].to_list(), strict=True
        ):
            assert scores == sorted(scores, reverse=True)
            score = dict(zip(films, scores, strict=True))
            want = served_by_hand(teacher, row)
            np.testing.assert_allclose([score[film] for film in row["candidates"]], want, atol=1e-4)
            right += films[0] in row["answers"]
    assert right > 0


def test_the_token_files_hold_the_scores_in_the_order_shown(world: TrainingJob, taught: Path, tmp_path: Path) -> None:
    job = changed(world, tmp_path, teacher=taught / "train")
    job.scratch.mkdir(parents=True)
    write_token_files(job)
    found = read_token_files(job, TRAIN)["taught"]
    rows = pl.concat(pl.read_parquet(file) for file in world.train)
    scored = pl.concat(pl.read_parquet(taught / "train" / file.name) for file in world.train)
    for shown, films, scores, got in zip(rows["candidates"], scored["films"], scored["scores"], found, strict=True):
        score = dict(zip(films, scores, strict=True))
        assert got == [score[film] for film in shown]
    assert "taught" not in read_token_files(job, "evaluation").column_names
    assert TRAIN_TEXT not in {path.name for path in job.tokens.iterdir()}


@pytest.mark.parametrize(("weight", "temperature"), [(0.4, 3.0)])
def test_the_loss_of_the_first_step_is_that_of_the_formula(
    world: TrainingJob, taught: Path, tmp_path: Path, capsys: Any, weight: float, temperature: float
) -> None:
    """Of all examples at once, over the student's sum with the retriever's scores and the teacher's own."""
    settings = {"global_batch": 12, "per_device_train_batch_size": 12, "num_train_epochs": 1, "logging_steps": 1}
    settings |= {"teacher_weight": weight, "teacher_temperature": temperature, "save_steps": 1}
    found = run(changed(world, tmp_path, settings, teacher=taught / "train"), capsys)
    model = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(world.base, None)
    scored = pl.concat(pl.read_parquet(path) for path in sorted((taught / "train").glob("*.parquet")))
    of_example = {row["example_id"]: dict(zip(row["films"], row["scores"], strict=True)) for row in scored.to_dicts()}
    losses = []
    for row in pl.concat(pl.read_parquet(file) for file in world.train).iter_rows(named=True):
        ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
        labels = logits[tokenizer.convert_tokens_to_ids(row["candidate_letters"])]
        places = [row["retrieved"].index(film) for film in row["candidates"]]
        student = labels - labels.mean() + np.array(world.prior)[places]
        teacher = np.array([of_example[row["example_id"]][film] for film in row["candidates"]])
        target = np.array([film in row["answers"] for film in row["candidates"]]) / len(row["answers"])

        def log_softmax(values: np.ndarray) -> np.ndarray:
            return np.asarray(values - np.logaddexp.reduce(values))

        soft = -(np.exp(log_softmax(teacher / temperature)) * log_softmax(student / temperature)).sum()
        hard = -(target * log_softmax(student)).sum()
        any_label = np.logaddexp.reduce(logits) - np.logaddexp.reduce(labels)
        losses.append((1 - weight) * hard + weight * temperature**2 * soft + any_label)
    assert found.logged("loss")[0][1] == pytest.approx(np.mean(losses), rel=1e-4)  # logged with four digits


def test_a_teacher_of_no_weight_changes_no_byte(world: TrainingJob, taught: Path, tmp_path: Path, capsys: Any) -> None:
    settings = {"num_train_epochs": 1, "teacher_weight": 0.0}
    adapters = [
        (
            run(changed(world, tmp_path / name, settings, teacher=folder), capsys).job.adapter
            / "adapter_model.safetensors"
        )
        for name, folder in (("without", None), ("with", taught / "train"))
    ]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def a_config(**finetune: Any) -> RunConfig:
    settings = {"objective": "listwise", **LAUNCHED.model_dump(exclude={"objective", "teacher"}), **finetune}
    return RunConfig.model_validate(
        {"dataset": "toy", "prompt": {"template": "letters"}, "retrieve": {"num_candidates": 20}, "finetune": settings}
    )


def stored(root: Path, shards: Path, config: RunConfig) -> RunRecord:
    """A run in the store whose finetune stage holds an adapter for the config's prompts."""
    record = RunRecord(
        name="big-1",
        dataset="toy",
        status="completed",
        started=runs.utc_now(),
        config=config.model_dump(mode="json"),
        fingerprints={"finetune": "f" * 32},
    )
    runs.write_run(root, record)

    def make(work: Path) -> dict[str, Any]:
        write_adapter(work, shards, prompt_contract(config.prompt, config.retrieve))
        return {}

    record.paths(root).build("finetune", make)
    return record


def test_the_stages_find_a_teacher_by_its_runs_name_and_learn_from_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teaching = stored(tmp_path, shards, a_config())
    config = a_config(teacher="big-1", num_train_epochs=1.0)
    folder = teaching.paths(tmp_path).folder("finetune")
    by_path = a_config(teacher=str(folder), num_train_epochs=1.0)
    assert teacher_folder(config, tmp_path) == teacher_folder(by_path, tmp_path) == folder
    paths = resolve(config, tmp_path)
    assert paths.fingerprints == resolve(by_path, tmp_path).fingerprints

    def copied(work: Path) -> dict[str, Any]:
        write_shards(work, train=12, valid=4, test=1, long=False, letters=True)
        return {}

    paths.build("generate", copied)
    scored = run_teach(paths, config)
    assert paths.manifest("teach")["facts"]["examples"] == 12
    monkeypatch.setattr("tripletune.finetune.launch._launch", lambda job, on_log, machine: train(job))
    adapter = run_finetune(paths, config)
    assert read_contract(adapter).lineage["teach"] == scored.name
    learning = teaching.model_copy(update={"name": "small-1", "started": "2099-01-01T00:00:00Z"})
    runs.write_run(tmp_path, learning.model_copy(update={"config": config.model_dump(mode="json")}))
    assert {run.name for run in kept_runs(tmp_path, newest=1, named=())} == {"big-1", "small-1"}


def test_what_shapes_a_teachers_scores_counts_and_where_it_lies_does_not(shards: Path, tmp_path: Path) -> None:
    def fingerprints(**finetune: Any) -> dict[str, str]:
        return dict(resolve(a_config(**finetune), tmp_path).fingerprints)

    prompts = prompt_contract(a_config().prompt, a_config().retrieve)
    first, same = (write_adapter(tmp_path / name, shards, prompts, seed=1) for name in ("first", "same"))
    other = Path(shutil.copytree(first, tmp_path / "other"))
    weights = load_file(other / "adapter" / "adapter_model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, other / "adapter" / "adapter_model.safetensors")
    one = fingerprints(teacher=str(first))
    assert fingerprints(teacher=str(same)) == one
    another = fingerprints(teacher=str(other))
    assert another["teach"] != one["teach"]
    assert another["finetune"] != one["finetune"]
    lighter = fingerprints(teacher=str(first), teacher_weight=0.1)
    assert lighter["teach"] == one["teach"]
    assert lighter["finetune"] != one["finetune"]
    without = fingerprints(teacher=str(first), teacher_weight=0.0)
    assert "teach" not in without


def test_a_teacher_that_cannot_teach_is_refused_before_anything_runs(shards: Path, tmp_path: Path) -> None:
    prompts = prompt_contract(a_config().prompt, a_config().retrieve)
    folder = write_adapter(tmp_path / "teacher", shards, prompts | {"num_candidates": 10, "template": "mine"})
    with pytest.raises(
        ContractError, match=r"finetune\.teacher = .*num_candidates: the adapter has 10, .* 20"
    ) as caught:
        resolve(a_config(teacher=str(folder)), tmp_path)
    assert "\n" not in str(caught.value)
    space = BehaviourSpace(source="sequence", space="0" * 64, columns=("liked",))
    write_contract(folder, read_contract(folder).model_copy(update={"prompt": prompts, "behaviour": space}))
    with pytest.raises(ContractError, match="reads behaviour tokens made of the vectors of sequence"):
        resolve(a_config(teacher=str(folder)), tmp_path)
    with pytest.raises(MissingArtifactError, match=r"contract\.json is missing"):
        resolve(a_config(teacher=str(tmp_path)), tmp_path)
    with pytest.raises(MissingArtifactError, match="no run"):
        resolve(a_config(teacher="nobody"), tmp_path)
    with pytest.raises(UserError, match=r"finetune\.teacher names no model"):
        run_teach(resolve(a_config(), tmp_path), a_config())


@pytest.mark.slow
def test_a_student_learns_a_teachers_order_that_no_answer_tells_it(tmp_path: Path) -> None:
    """The teacher's weights are random, so its order of the training prompts' candidates is known from it alone."""
    shards = write_shards(tmp_path / "shards", train=16, valid=4, test=1, long=False, letters=True)
    teacher = write_adapter(tmp_path / "teacher", shards, LETTERS_CONTRACT, seed=7)
    folders = {name: tmp_path / name for name in ("teach", "alone", "taught")}
    for folder in folders.values():
        folder.mkdir()
    score_training(shards, teacher, folders["teach"], RANK, LETTERS_CONTRACT)
    label_training = {"objective": "listwise", "residual": False, "num_train_epochs": 40.0, "learning_rate": 0.02}
    settings = LAUNCHED.model_copy(
        update={**label_training, "tiny": LAUNCHED.tiny.model_copy(update={"hidden_size": 32}), "teacher_weight": 1.0}
    )
    finetune_adapter(shards, folders["alone"], settings, LETTERS_CONTRACT, {}, 1)
    finetune_adapter(shards, folders["taught"], settings, LETTERS_CONTRACT, {}, 1, teacher=folders["teach"])
    examples = pl.read_parquet(shards / "train" / "*.parquet")

    def log_shares(folder: Path) -> torch.Tensor:
        """Of the candidates in the order shown, by the language model's own scores."""
        write_contract(folder, read_contract(folder).model_copy(update={"residual": None}))
        rows = rank_examples(examples, folder, tuned=True, constrained=True, batch_size=8)
        scores = [
            [dict(zip(films, found, strict=True))[film] for film in shown]
            for films, found, shown in zip(rows["answers"], rows["scores"], examples["candidates"], strict=True)
        ]
        return torch.log_softmax(torch.tensor(scores, dtype=torch.float64), dim=1)

    wanted = log_shares(teacher)
    divergence = {
        name: (wanted.exp() * (wanted - log_shares(folders[name]))).sum(1).mean().item() for name in ("alone", "taught")
    }
    assert divergence["taught"] < 0.5 * divergence["alone"], divergence
