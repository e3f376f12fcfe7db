"""Files of token ids: what they hold, what is kept of them, and what is refused; tokenised in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from trl import SFTConfig, SFTTrainer

from tests.film_vectors import write_lightgcn
from tests.finetune_shards import write_shards
from tripletune.behaviour.space import read_vectors
from tripletune.behaviour.tables import FILMS, write_film_tables
from tripletune.chat import load_tokenizer
from tripletune.config import FinetuneConfig, TinyLlamaConfig
from tripletune.errors import TrainingError
from tripletune.finetune import token_files
from tripletune.finetune.job import TrainingJob
from tripletune.finetune.length_batches import LengthBatches
from tripletune.finetune.tiny import write_tiny_llama
from tripletune.finetune.token_files import (
    EVALUATION,
    MADE_OF,
    TRAIN,
    TRAIN_TEXT,
    read_token_files,
    token_lengths,
    write_token_files,
)
from tripletune.store.fingerprint import sha256_file

TINY = TinyLlamaConfig(vocab_size=400, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TrainingJob:
    """A job with 12 examples in two files of two row groups each, and three to evaluate on."""
    folder = tmp_path_factory.mktemp("world")
    shards = write_shards(folder / "shards", train=12, valid=3, test=1, long=False, letters=True)
    files = tuple(sorted((shards / "train").glob("*.parquet")))
    for file in files:
        pl.read_parquet(file).with_columns(pl.col("liked").list.head(3)).write_parquet(file, row_group_size=4)
    valid = pl.read_parquet(shards / "valid" / "*.parquet").with_columns(pl.col("liked").list.head(3))
    valid.write_parquet(folder / "evaluation.parquet")
    write_tiny_llama(files, folder / "base", TINY, seed=1)
    return TrainingJob(
        out=folder,
        train=files,
        evaluation=folder / "evaluation.parquet",
        answer_style="letters",
        base=str(folder / "base"),
        hub_revision=None,
        base_name="tiny",
        settings=FinetuneConfig(),
        seed=5,
    )


def changed(job: TrainingJob, out: Path, settings: dict[str, object] | None = None, **changes: object) -> TrainingJob:
    return job.model_copy(update={"out": out, "settings": job.settings.model_copy(update=settings or {}), **changes})


def hashes(job: TrainingJob) -> dict[str, str]:
    files = job.tokens.rglob("*.arrow")
    return {path.relative_to(job.tokens).as_posix(): sha256_file(path) for path in sorted(files)}


def test_chats_have_the_ids_and_labels_that_trl_gives_them(world: TrainingJob, tmp_path: Path) -> None:
    from datasets import Dataset

    job = changed(world, tmp_path)
    write_token_files(job)
    made = read_token_files(job, TRAIN)
    frame = pl.concat(pl.read_parquet(file) for file in job.train).select("prompt", "completion")
    trainer = SFTTrainer(
        model=job.base,
        args=SFTConfig(output_dir=str(tmp_path), max_length=None, report_to="none", use_cpu=True, bf16=False),
        train_dataset=Dataset.from_list(frame.to_dicts()),
        processing_class=load_tokenizer(job.base),
    )
    assert made["input_ids"][:] == trainer.train_dataset["input_ids"][:]
    assert made["labels"][:] == trainer.train_dataset["labels"][:]
    assert set(made.column_names) == {"input_ids", "labels"}


def test_labels_keep_their_columns_and_the_order_of_the_files(world: TrainingJob, tmp_path: Path) -> None:
    job = changed(world, tmp_path, {"objective": "listwise"})
    write_token_files(job)
    made = read_token_files(job, TRAIN)
    rows = pl.concat(pl.read_parquet(file) for file in job.train)
    assert set(made.column_names) == {"input_ids", "label_ids", "targets", "places"}
    tokenizer = load_tokenizer(job.base)
    for row, ids, places in zip(rows.iter_rows(named=True), made["input_ids"], made["places"], strict=True):
        whole = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)
        assert ids == list(whole["input_ids"])
        assert [row["retrieved"][place] for place in places] == row["candidates"]
    assert sum(made["targets"][0]) == pytest.approx(1.0)
    assert [len(ids) for ids in made["input_ids"]] == token_lengths(made)


def test_with_behaviour_tokens_the_examples_are_there_as_text_alone_too(world: TrainingJob, tmp_path: Path) -> None:
    films = write_lightgcn(tmp_path / "films", fits={"a": 0, "b": 0}, num_films=150, width=8)
    first, second = (read_vectors(films, "lightgcn", fit) for fit in ("a", "b"))
    write_film_tables(tmp_path / FILMS, first, second)
    settings = {"objective": "listwise", "behaviour_tokens": "lightgcn"}
    named = {"films": tmp_path / FILMS, "film_columns": ("liked", "candidates")}
    job, plain = changed(world, tmp_path / "films", settings, **named), changed(world, tmp_path / "text", settings)
    for one in (job, plain):
        write_token_files(one)
    text, marked, valid = (read_token_files(job, name)["input_ids"][:] for name in (TRAIN_TEXT, TRAIN, EVALUATION))
    assert text == read_token_files(plain, TRAIN)["input_ids"][:]
    assert not (plain.tokens / TRAIN_TEXT).exists()
    films_of = [[token - (1 << 30) for token in ids if token >= 1 << 30] for ids in marked + valid]
    assert {len(found) for found in films_of} == {23}
    assert {row <= 150 for found in films_of[:12] for row in found} == {True}, "training reads fit a"
    assert {row > 150 for found in films_of[12:] for row in found} == {True}, "valid reads fit b"


def test_a_resumed_run_keeps_whole_files_that_agree_and_rewrites_the_others(
    world: TrainingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_files, "_ROW_GROUPS", 1)
    job = changed(world, tmp_path)
    write_token_files(job)
    before = hashes(job)
    assert len(before) == 5, "two row groups in each training file, one to evaluate on"
    times = {name: (job.tokens / name).stat().st_mtime_ns for name in before}
    (job.tokens / TRAIN / "piece-00001.arrow").unlink()  # where a kill came
    write_token_files(job)
    assert hashes(job) == before
    rewritten = [name for name in before if (job.tokens / name).stat().st_mtime_ns != times[name]]
    assert rewritten == ["train/piece-00001.arrow"]


@pytest.mark.parametrize("change", ["examples", "tokenizer", "objective", "damage"])
def test_files_made_from_something_else_are_made_anew(world: TrainingJob, tmp_path: Path, change: str) -> None:
    job = changed(world, tmp_path)
    write_token_files(job)
    before, kept = hashes(job), (job.tokens / EVALUATION / MADE_OF).read_text()
    if change == "examples":
        pl.read_parquet(job.train[0]).head(3).write_parquet(tmp_path / "fewer.parquet")
        job = changed(job, tmp_path, train=(tmp_path / "fewer.parquet",))
    elif change == "tokenizer":
        write_tiny_llama(job.train, tmp_path / "base", TINY.model_copy(update={"vocab_size": 350}), seed=1)
        job = changed(job, tmp_path, base=str(tmp_path / "base"))
    elif change == "objective":
        job = changed(job, tmp_path, {"objective": "listwise"})
    else:
        (job.tokens / TRAIN / MADE_OF).write_text("{")
        (job.tokens / TRAIN / "piece-00000.arrow").write_bytes(b"left over")
    write_token_files(job)
    assert (hashes(job) == before) == (change == "damage")
    assert ((job.tokens / EVALUATION / MADE_OF).read_text() == kept) == (change in ("examples", "damage"))


def test_an_example_longer_than_the_limit_is_refused_by_name(world: TrainingJob, tmp_path: Path) -> None:
    job = changed(world, tmp_path)
    write_token_files(job)
    lengths = token_lengths(read_token_files(job, TRAIN))
    names = pl.concat(pl.read_parquet(file) for file in job.train)["example_id"].to_list()
    limit = sorted(lengths)[-3]
    num_longer = sum(length > limit for length in lengths)
    with pytest.raises(TrainingError) as caught:
        write_token_files(changed(job, tmp_path, {"max_length": limit}))
    assert str(caught.value).startswith(
        f"{num_longer} of 12 examples are longer than finetune.max_length = {limit} tokens, the longest, "
        f"{names[int(np.argmax(lengths))]}, has {max(lengths)}; set finetune.max_length to {max(lengths)} or more"
    )
    assert "\n" not in str(caught.value)
    write_token_files(changed(job, tmp_path, {"max_length": max(lengths)}))


def test_ids_take_four_bytes_and_what_they_were_made_from_is_told(world: TrainingJob, tmp_path: Path) -> None:
    job = changed(world, tmp_path, {"objective": "ranknet"})
    write_token_files(job)
    assert str(read_token_files(job, TRAIN).data.schema.field("input_ids").type) == "list<item: int32>"
    told = json.loads((job.tokens / TRAIN / MADE_OF).read_text())
    assert told["examples"] == [[path.name, sha256_file(path)] for path in job.train]
    assert "tokenizer/tokenizer.json" in told["tokenizer"]
    assert (told["date"], told["objective"]) == ("26 Jul 2024", "ranknet")


def test_the_order_of_examples_is_that_of_their_lengths(world: TrainingJob, tmp_path: Path) -> None:
    job = changed(world, tmp_path)
    write_token_files(job)
    made = read_token_files(job, TRAIN)
    by_ids = list(LengthBatches([len(ids) for ids in made["input_ids"]], 2, 3))
    assert list(LengthBatches(token_lengths(made), 2, 3)) == by_ids
    assert by_ids != list(range(12))
