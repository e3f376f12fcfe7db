"""A pretrained model, tuned on a few dozen prompts by the stage itself: it learns what its retriever does not know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.flows.test_finetune import ROOT
from tripletune.config import FinetuneConfig
from tripletune.contract import read_contract
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.shipped import write_shipped
from tripletune.rank.predict import rank_examples
from tripletune.schemas.answers import candidate_letters
from tripletune.schemas.generate import EXAMPLES

CANDIDATES = 5
CONTRACT = {"template": "test", "answer_style": "letters", "num_candidates": CANDIDATES}
SERIES = [
    *("Silver River", "The Long Winter", "Crimson Harbor", "Night Train", "The Glass Garden", "Iron Valley"),
    *("Broken Arrow Road", "The Last Orchard", "Paper Moonlight", "Desert Station", "The Quiet Empire", "Wild Signal"),
]
SETTINGS = FinetuneConfig(
    model="smollm2-135m",
    objective="listwise",
    accelerate_config=str(ROOT / "configs/accelerate/single.yaml"),
    learning_rate=1e-3,
    warmup_ratio=0.0,
    num_train_epochs=3.0,
    global_batch=4,
    per_device_train_batch_size=4,
    max_length=256,
    eval_steps=100,
    save_steps=100,
    logging_steps=4,
    timeout_minutes=8,
)


def example(user: int, purpose: str) -> dict[str, Any]:
    """The viewer liked a film and will like its sequel, which the retriever may rank anywhere."""
    random = np.random.default_rng([user, len(purpose)])
    films = [int(film) for film in random.choice(len(SERIES), CANDIDATES, replace=False)]
    answer, retrieved = films[int(random.integers(CANDIDATES))], [int(film) for film in random.permutation(films)]
    letters, titles = candidate_letters(CANDIDATES), [f"{SERIES[film]} II" for film in films]
    shown = [f"{letter}. {title}" for letter, title in zip(letters, titles, strict=True)]
    lines = ["The viewer liked:", f"- {SERIES[answer]}", "", "Which will the viewer like next?", *shown]
    return {
        "example_id": f"{user}:{purpose}",
        "user_id": user,
        "purpose": purpose,
        "cutoff": 9,
        "prompt": [
            {"role": "system", "content": "Answer with the letter of one film."},
            {"role": "user", "content": "\n".join(lines)},
        ],
        "completion": [{"role": "assistant", "content": letters[films.index(answer)]}],
        "answers": [answer],
        "candidates": films,
        "candidate_titles": titles,
        "candidate_letters": letters,
        "retrieved": retrieved,
        "liked": [len(SERIES) + answer],  # the first film of the series
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for purpose, number in (("train", 32), ("valid", 16), ("test", 8)):
        (folder / purpose).mkdir()
        rows = [example(user, purpose) for user in range(1, number + 1)]
        pl.DataFrame(rows, schema_overrides={k: v for k, v in EXAMPLES.items() if k in rows[0]}).write_parquet(
            folder / purpose / "shard-000.parquet"
        )
    return folder


@pytest.mark.slow
def test_a_few_dozen_prompts_teach_a_pretrained_model_what_its_retriever_does_not_know(shards, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    for folder in (base, out):
        folder.mkdir()
    write_shipped(base)
    facts = finetune_adapter(shards, out, SETTINGS, CONTRACT, {}, 0, base=base)
    assert facts["eval_loss"] < facts["eval_loss_before"]
    assert facts["select_loss"] < facts["select_loss_retriever"]
    residual = read_contract(out).residual
    assert residual is not None
    assert residual.weight > 0
    asked = pl.read_parquet(shards / "test" / "*.parquet")
    free = rank_examples(asked, out, tuned=True, constrained=False, batch_size=8)
    assert free["valid"].all()
