"""Ranking by vLLM's API gives the predictions of transformers, and refuses what it can't rank before weights are read.

vLLM itself is not installed here: ``tests/vllm_api`` computes what its documentation says, on a CPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from safetensors.torch import load_file, save_file

from tests.finetune_shards import LETTERS_CONTRACT, PROMPT_CONTRACT, write_shards
from tests.flows.test_finetune import SETTINGS
from tripletune.config import RankConfig
from tripletune.contract import BehaviourSpace, Residual, read_contract, write_contract
from tripletune.errors import ConfigError, NonFiniteError
from tripletune.finetune.launch import finetune_adapter
from tripletune.rank.merge import merge_adapter
from tripletune.rank.predict import rank_shards
from tripletune.store.paths import SCRATCH

API = Path(__file__).parents[1] / "vllm_api"
RANK = RankConfig(batch_size=5, unconstrained_viewers=5, untuned_viewers=12, workers=1)
PLACES = ["purpose", "user_id", "cutoff", "system", "constrained"]


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(API))
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    yield importlib.import_module("vllm")
    sys.modules.pop("vllm", None)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Shards and an adapter whose scores are added to the retriever's."""
    folder = tmp_path_factory.mktemp("world")
    shards = write_shards(folder / "shards", train=12, valid=24, test=24, long=False, letters=True)
    (folder / "adapter").mkdir()
    changes = {"objective": "listwise", "num_train_epochs": 1.0, "max_eval_examples": 4, "max_select_examples": 8}
    finetune_adapter(shards, folder / "adapter", SETTINGS.model_copy(update=changes), LETTERS_CONTRACT, {}, 0)
    prior = np.log(np.arange(20, 0, -1) / 210).tolist()
    change(folder / "adapter", residual=Residual(prior=tuple(prior), weight=2.0))
    return shards, folder / "adapter"


def change(finetuned: Path, **fields: Any) -> None:
    write_contract(finetuned, read_contract(finetuned).model_copy(update=fields))


@pytest.fixture
def adapter(world: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the adapter, to change."""
    return Path(shutil.copytree(world[1], tmp_path / "adapter"))


def rank(
    shards: Path, finetuned: Path, out: Path, prompts: dict[str, Any] = LETTERS_CONTRACT, **changes: Any
) -> pl.DataFrame:
    out.mkdir(exist_ok=True)
    rank_shards(shards, finetuned, out, RANK.model_copy(update=changes), prompts, 0)
    return pl.read_parquet(out / "predictions.parquet")


def centred(predictions: pl.DataFrame) -> pl.DataFrame:
    """Scores of the language model minus their mean; what is added to the retriever's counts as it is."""
    own = pl.col("system").is_in(["tuned", "untuned"])
    mean = pl.when(own).then(pl.col("scores").list.mean()).otherwise(0.0)
    return predictions.with_columns(pl.col("scores").cast(pl.List(pl.Float64)) - mean)


def test_predictions_are_those_of_transformers(world: tuple[Path, Path], vllm: ModuleType, tmp_path: Path) -> None:
    theirs = rank(*world, tmp_path / "transformers")
    ours = rank(*world, tmp_path / "vllm", backend="vllm")
    assert_frame_equal(ours.drop("scores"), theirs.drop("scores"))
    scores = [
        centred(frame).select(*PLACES, "scores").explode("scores", empty_as_null=True) for frame in (ours, theirs)
    ]
    assert_frame_equal(*scores, rel_tol=0, abs_tol=1e-4)
    by_system = ours.group_by("system", "constrained").agg(pl.col("scores").is_not_null().all(), pl.len())
    found = {(system, constrained): (scored, rows) for system, constrained, scored, rows in by_system.iter_rows()}
    assert found["tuned", True] == found["tuned+retriever", True] == (True, 48)
    assert found["untuned", True] == (True, 24)
    assert found["tuned", False] == found["untuned", False] == (False, 5)


def test_each_model_has_an_engine_of_its_own_which_ends_before_the_next_begins(
    world: tuple[Path, Path], vllm: ModuleType, tmp_path: Path
) -> None:
    """The API's second engine finds no memory while the first one runs."""
    rank(*world, tmp_path / "out", backend="vllm")
    tuned, untuned = (engine.args for engine in vllm.STARTED)
    base = str(world[1] / "base")
    assert (Path(tuned.model).name, untuned.model) == ("merged", base)
    assert not Path(tuned.model).exists()  # removed as ranking ended
    for args in (tuned, untuned):
        assert (args.tokenizer, args.load_format, args.generation_config) == (base, "safetensors", "vllm")
        assert (args.dtype, args.logprobs_mode, args.max_logprobs) == ("float32", "processed_logprobs", 20)
        assert args.hf_overrides == {"head_dtype": "float32"}  # or labels with logits near 28 share them
        assert args.enable_prefix_caching
        assert not args.trust_remote_code
    assert not vllm.RUNNING


def test_a_prompt_budget_bounds_the_engines_context(
    world: tuple[Path, Path], adapter: Path, vllm: ModuleType, tmp_path: Path
) -> None:
    prompts = LETTERS_CONTRACT | {"max_tokens": 4096}
    change(adapter, prompt=prompts)
    rank(world[0], adapter, tmp_path / "out", prompts, backend="vllm", untuned_viewers=1, max_viewers=2)
    assert {engine.args.max_model_len for engine in vllm.STARTED} == {4096}


def test_a_run_that_was_stopped_merges_once_and_not_at_all_when_the_tuned_passes_are_done(
    world: tuple[Path, Path], vllm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merges: list[Path] = []
    monkeypatch.setattr(
        "tripletune.rank.vllm_backend.merge_adapter",
        lambda model, folder: merges.append(folder) or merge_adapter(model, folder),
    )
    generate = vllm.LLM.generate
    whole = rank(*world, tmp_path / "whole", backend="vllm")
    assert len(merges) == 1

    def stop_at(call: int) -> Callable[..., Any]:
        calls = iter(range(100))

        def generating(self: Any, *args: Any, **named: Any) -> Any:
            if next(calls) == call:
                raise KeyboardInterrupt
            return generate(self, *args, **named)

        return generating

    out = tmp_path / "stopped"
    for call, kept in ((1, True), (3, True)):  # in the second pass of the tuned model, then in the untuned one's
        monkeypatch.setattr(vllm.LLM, "generate", stop_at(call))
        with pytest.raises(KeyboardInterrupt):
            rank(*world, out, backend="vllm")
        assert not vllm.RUNNING
        assert (out / SCRATCH / "merged").is_dir() is kept
    assert len(merges) == 2
    monkeypatch.setattr(vllm.LLM, "generate", generate)
    assert_frame_equal(rank(*world, out, backend="vllm"), whole)
    assert len(merges) == 2
    assert not (out / SCRATCH / "merged").exists()


def test_processes_write_the_predictions_of_one(
    world: tuple[Path, Path], vllm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = rank(*world, tmp_path / "alone", backend="vllm")
    monkeypatch.setenv("PYTHONPATH", f"{API}:{':'.join(sys.path)}")
    assert_frame_equal(rank(*world, tmp_path / "two", backend="vllm", workers=2), alone)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("untuned", [False, True])
def test_logits_that_are_no_numbers_end_the_ranking(
    world: tuple[Path, Path], adapter: Path, vllm: ModuleType, tmp_path: Path, value: float, untuned: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    start = vllm.LLM.__init__

    def broken(self: Any, model: str, **named: Any) -> None:
        start(self, model, **named)
        if (Path(model).name == "base") is untuned:
            self._model.lm_head.weight.data[:] = value

    monkeypatch.setattr(vllm.LLM, "__init__", broken)
    with pytest.raises(NonFiniteError, match=f"the {'untuned' if untuned else 'tuned'} model's logits"):
        rank(world[0], adapter, tmp_path / "out", backend="vllm")
    assert not vllm.RUNNING


def test_an_adapter_that_is_no_numbers_is_refused(
    world: tuple[Path, Path], adapter: Path, vllm: ModuleType, tmp_path: Path
) -> None:
    weights = load_file(adapter / "adapter/adapter_model.safetensors")
    next(iter(weights.values()))[:] = torch.nan
    save_file(weights, adapter / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="is NaN or infinite, so its answers mean nothing"):
        rank(world[0], adapter, tmp_path / "out", backend="vllm")
    assert not list((tmp_path / "out" / SCRATCH).glob("*merged*"))


def test_what_it_cannot_answer_is_refused_before_weights_are_read(
    world: tuple[Path, Path], adapter: Path, vllm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(*args: Any) -> None:
        raise AssertionError("read weights")

    monkeypatch.setattr("tripletune.rank.vllm_backend.load_base", no_weights)
    films = BehaviourSpace(source="sequence", space="", columns=("liked",))
    hundred = LETTERS_CONTRACT | {"num_candidates": 100}
    for fields, message in (
        ({"behaviour": films}, "behaviour tokens made of the vectors of sequence, which rank.backend = 'vllm'"),
        ({"quantization": "nf4"}, "trained on weights in nf4, and rank.backend = 'vllm' would rank the untuned model"),
        ({"prompt": PROMPT_CONTRACT}, "answers with titles, and rank.backend = 'vllm' reads scores of labels"),
        ({"prompt": hundred}, "cuts one of the labels AA to DV, and rank.backend = 'vllm' reads labels of one token"),
    ):
        change(adapter, **{"behaviour": None, "quantization": "none", **fields})
        with pytest.raises(ConfigError, match=message) as raised:
            rank(world[0], adapter, tmp_path / "out", fields.get("prompt", LETTERS_CONTRACT), backend="vllm")
        assert "set rank.backend to 'transformers'" in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not vllm.STARTED


def test_without_vllm_the_error_says_how_to_install_it(
    world: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else find(name))
    with pytest.raises(ConfigError, match=r"^rank\.backend = 'vllm' needs vLLM, .* pip install 'vllm>=0\.28,<0\.31'"):
        rank(*world, tmp_path / "out", backend="vllm")


def test_the_recorded_api_knows_no_other_parameter(vllm: ModuleType) -> None:
    with pytest.raises(TypeError):
        vllm.SamplingParams(allowed_tokens=[1])
    with pytest.raises(TypeError):
        vllm.LLM(model="anywhere", logprob_mode="processed_logprobs")
