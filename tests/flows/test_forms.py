"""A model that is tuned on all forms of its prompts, and ranks by their ensemble."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
import pytest

from tests.finetune_shards import LETTERS_CONTRACT, PROMPT_CONTRACT
from tests.flows.test_finetune import LINEAGE
from tests.flows.test_finetune import SETTINGS as LAUNCHED
from tripletune.config import RankConfig
from tripletune.contract import Ensemble, read_contract
from tripletune.finetune.launch import finetune_adapter
from tripletune.finetune.shards import FurtherForms
from tripletune.prompts.forms import write_forms
from tripletune.prompts.template import load_template
from tripletune.rank.predict import rank_examples, rank_shards
from tripletune.schemas.base import conform
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.rank import ALONE, ALWAYS

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from prompt_frames import build

TEXTS = load_template("recranker").further_forms()
ENSEMBLE = Ensemble(weights={"listwise": 1.0, "pointwise": 1.0, "pairwise": 1.0}, texts=TEXTS)
RANK = RankConfig(batch_size=16, max_viewers=3, unconstrained_viewers=2, untuned_viewers=2)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    rows = build("recranker", num_viewers=36)
    for purpose, part in (("train", rows.head(24)), ("valid", rows.slice(24, 6)), ("test", rows.tail(6))):
        named = part.with_columns(purpose=pl.lit(purpose), example_id=pl.format(f"{{}}:{purpose}:50", "user_id"))
        (folder / purpose).mkdir()
        conform(named, EXAMPLES).write_parquet(folder / purpose / "shard-000.parquet")
    return folder


@pytest.mark.slow  # minutes of one core; the parts are in tests/unit/test_forms.py and test_ensemble.py
@pytest.mark.parametrize("objective", ["sft", "listwise"])
def test_one_model_is_tuned_on_all_forms_and_ranks_by_them(shards: Path, tmp_path: Path, objective: str) -> None:
    forms = tmp_path / "forms"
    write_forms(shards, forms, ("pointwise", "pairwise"), TEXTS, seed=1)
    tiny = LAUNCHED.tiny.model_copy(update={"vocab_size": 700})
    settings = LAUNCHED.model_copy(update={"objective": objective, "residual": False, "tiny": tiny})
    contract = PROMPT_CONTRACT | LETTERS_CONTRACT
    out = tmp_path / "finetuned"
    facts = finetune_adapter(shards, out, settings, contract, LINEAGE, 0, forms=FurtherForms(forms, ENSEMBLE))
    assert facts["examples"] == 3 * 24
    assert facts["steps"] == 18 * settings.num_train_epochs
    assert "weight" not in facts
    assert read_contract(out).ensemble == ENSEMBLE
    assert read_contract(out).residual is None
    assert pl.read_parquet(out / "trained_examples.parquet").height == 24

    rank_shards(shards, out, tmp_path, RANK, contract, seed=1)
    predictions = pl.read_parquet(tmp_path / "predictions.parquet").filter("constrained")
    assert set(predictions["system"]) == {*ALWAYS, *ALONE.values()}
    tuned = predictions.filter(pl.col("system") == "tuned", pl.col("purpose") == "test").sort("user_id")
    key = ["user_id", "cutoff"]
    alone = [
        predictions.filter(purpose="test", system=name).select(*key, "answers", "scores") for name in ALONE.values()
    ]
    summed = (
        pl.concat(alone)
        .explode("answers", "scores")
        .group_by(*key, "answers")
        .agg(pl.col("scores").cast(pl.Float64).sum())
        .sort(*key, "scores", descending=[False, False, True])
    )
    scores = tuned.explode("answers", "scores").sort(*key, "scores", descending=[False, False, True])["scores"]
    assert summed["scores"].to_list() == pytest.approx(scores.to_list(), abs=1e-5)

    asked = pl.read_parquet(shards / "test" / "shard-000.parquet").join(
        tuned.select("user_id"), on="user_id", how="semi"
    )
    served = rank_examples(asked, out, tuned=True, constrained=True, batch_size=16).sort("user_id")
    assert served["answers"].to_list() == tuned["answers"].to_list()
