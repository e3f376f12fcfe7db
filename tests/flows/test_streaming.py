"""The shards as `datasets` and TRL read them, with nothing in between."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from tests.unit import small_world
from tripletune.config import PromptConfig, RetrieveConfig, TinyLlamaConfig
from tripletune.finetune.tiny import write_tiny_llama
from tripletune.prompts.shards import generate_shards
from tripletune.retrieve.candidates import retrieve_all
from tripletune.schemas.generate import EXAMPLES

RETRIEVE = RetrieveConfig(retriever="lightgcn")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    world = small_world.make_world(folder / "stages")
    stages = (world.split, world.knowledge, world.specialists, world.retrieve)
    retrieve_all(*stages, RETRIEVE, num_liked_triples=5, seed=small_world.SEED)
    (folder / "shards").mkdir()
    generate_shards(
        *(world.ingest, world.split, world.retrieve, folder / "shards", PromptConfig(), RETRIEVE),
        dislike=3.0,
        specialists={"lightgcn": "l" * 32, "rgat": "r" * 32},
        seed=small_world.SEED,
    )
    return folder / "shards"


def stream(out: Path, cache: Path) -> datasets.IterableDataset:
    files = sorted(str(path) for path in (out / "train").glob("shard-*.parquet"))
    return datasets.load_dataset("parquet", data_files=files, streaming=True, split="train", cache_dir=str(cache))


def test_streamed_shards_keep_every_column_and_one_source_per_file(out, tmp_path):
    streamed = stream(out, tmp_path)
    assert streamed.num_shards == 2
    assert set(next(iter(streamed))) == set(EXAMPLES)


def test_streamed_shards_go_straight_into_the_trainer(out, tmp_path):
    train = sorted((out / "train").glob("shard-*.parquet"))
    shape = TinyLlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1
    )
    write_tiny_llama(train, tmp_path / "model", shape, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = model.model.embed_tokens.weight.detach().clone()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(tmp_path / "trained"),
            max_steps=1,
            per_device_train_batch_size=2,
            max_length=None,
            completion_only_loss=True,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=stream(out, tmp_path / "cache"),
        processing_class=AutoTokenizer.from_pretrained(tmp_path / "model"),
    )
    assert trainer.train().global_step == 1
    assert not torch.equal(model.model.embed_tokens.weight, before)
