"""The champion alias moves when the adapter is not worse; it stays, with a reason, when it is or can't be compared."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

from tests.flows.conftest import MicroRun
from tripletune.config import RunConfig
from tripletune.judges import judges
from tripletune.pipeline.stages import run_promote
from tripletune.promote import champion as promotion
from tripletune.store.files import write_json
from tripletune.store.paths import MANIFEST, RunPaths
from tripletune.tracking import StageRun, recorded_run, stage_run

ANOTHER = "f" * 32
MODEL = "contest"


@pytest.fixture(scope="module")
def twin(micro: MicroRun) -> RunPaths:
    """The same adapter under another fingerprint: as good as the champion to the last bit, and not the champion."""
    paths = micro.paths
    fingerprints = {**paths.fingerprints, "finetune": ANOTHER}
    other = RunPaths(root=paths.root, dataset=paths.dataset, fingerprints=fingerprints)
    shutil.copytree(paths.folder("finetune"), other.folder("finetune"))
    return other


@contextmanager
def child_run(micro: MicroRun, config: RunConfig) -> Iterator[StageRun]:
    with recorded_run(config, micro.paths, {}) as (_, tracker), stage_run(tracker, "promote", {}) as child:
        yield child


def decide(micro: MicroRun, paths: RunPaths, run: str, **changes: Any) -> dict[str, Any]:
    config = micro.record.settings()
    promote = config.promote.model_copy(update={"registered_model": MODEL, **changes.pop("promote", {})})
    config = config.model_copy(update={"promote": promote, **changes})
    with child_run(micro, config) as child:
        folder = run_promote(paths, config, run=run, child=child)
    decision: dict[str, Any] = json.loads((folder / "decision.json").read_text())
    return decision


def champion_run(micro: MicroRun) -> str:
    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    return str(client.get_model_version_by_alias(MODEL, "champion").run_id)


def champion(micro: MicroRun) -> tuple[str, str]:
    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    version = client.get_model_version_by_alias(MODEL, "champion")
    return str(version.version), version.tags["fingerprint"]


def test_the_alias_moves_only_to_an_adapter_that_is_not_worse(micro, twin):
    first = decide(micro, micro.paths, "contest-1")
    assert first["reason"] == "there is no champion yet"
    assert champion(micro) == ("1", micro.record.fingerprints["finetune"])

    # equal on every user: the bound is 0, which is not above -0
    strict = decide(micro, twin, "contest-2", promote={"margin": 0.0})
    assert not strict["promote"]
    assert strict["difference"] == strict["lower_bound"] == 0.0
    assert champion(micro)[0] == "1"

    prompt = micro.record.settings().prompt.model_copy(update={"template": "published"})
    foreign = decide(micro, twin, "contest-3", prompt=prompt)
    assert not foreign["promote"]
    assert "version 1 is kept: its contract no longer fits this run's prompts" in foreign["reason"]
    assert "template" in foreign["reason"]
    assert champion(micro)[0] == "1"

    gone = micro.root / "micro" / "finetune" / "gone"
    files = next((micro.root / "mlflow").glob(f"{champion_run(micro)}/artifacts/model"))
    files.rename(gone)
    lost = decide(micro, twin, "contest-lost")
    gone.rename(files)
    assert "version 1 is kept: it could not be ranked" in lost["reason"]
    assert not list((micro.root / "micro" / "promote").glob("*/_scratch"))

    within_margin = decide(micro, twin, "contest-4", promote={"margin": 0.01})
    assert within_margin["promote"]
    assert within_margin["num_viewers"] > 2
    assert champion(micro) == ("2", ANOTHER)


def sizes_of_today(folder: Path) -> None:
    """Write the sizes of a copied and edited output into its manifest, so that it counts as whole."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, file in manifest["files"].items():
        file["bytes"] = (folder / name).stat().st_size
    write_json(folder / MANIFEST, manifest)


def copied(micro: MicroRun, stage: str, fingerprint: str) -> RunPaths:
    """The run with its own copy of one stage's output."""
    paths = micro.paths
    other = RunPaths(root=paths.root, dataset=paths.dataset, fingerprints={**paths.fingerprints, stage: fingerprint})
    shutil.copytree(paths.folder(stage), other.folder(stage))
    return other


def versions(micro: MicroRun, model: str) -> list[Any]:
    return list(MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}").search_model_versions(f"name = '{model}'"))


def judged_so(micro: MicroRun, fingerprint: str, perfect: str) -> RunPaths:
    """The run with its own copy of evaluate, in which one system finds every held-out film first and no other any."""
    paths = copied(micro, "evaluate", fingerprint)
    scores = pl.read_parquet(paths.folder("evaluate") / "per_viewer.parquet")
    value = pl.when(row=perfect).then(1.0).otherwise(0.0)
    scores.with_columns(ndcg_at_5=value).write_parquet(paths.folder("evaluate") / "per_viewer.parquet")
    sizes_of_today(paths.folder("evaluate"))
    return paths


def test_a_first_adapter_that_is_worse_than_the_retrievers_order_is_not_promoted(micro, caplog):
    paths = judged_so(micro, "1" * 32, "retriever")
    with caplog.at_level(logging.INFO, logger="tripletune"):
        decision = decide(micro, paths, "first-1", promote={"registered_model": "first", "confidence": 0.95})
    assert not decision["promote"]
    assert "there is no champion yet, and this adapter is worse than the retriever's order" in decision["reason"]
    assert decision["version"] == ""
    assert decision["champion_before"] is None
    assert not versions(micro, "first")
    assert f"not promoted: {decision['reason']}" in caplog.text
    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    tagged = [run.data.tags.get("promotion") for run in client.search_runs([micro.record.mlflow_experiment_id])]
    assert tagged.count(decision["reason"]) == 2  # the child and its parent


def test_a_first_adapter_that_is_worse_than_the_untuned_model_is_not_promoted(micro):
    paths = judged_so(micro, "2" * 32, "untuned")
    promote = {"registered_model": "first", "confidence": 0.999}
    decision = decide(micro, paths, "first-2", promote=promote)
    scores = pl.read_parquet(micro.paths.folder("evaluate") / "per_viewer.parquet")
    users = scores.filter(row="tuned", purpose="valid")["user_id"]
    judging = int(judges(users, micro.record.settings().seed).sum())
    assert 0 < judging < 24
    assert not decision["promote"]
    assert f"worse than the untuned model: ndcg_at_5 differs by -1.0000 over {judging} users" in decision["reason"]
    assert not versions(micro, "first")


def test_the_untuned_model_ranks_the_valid_users_that_the_tuned_one_ranks(micro):
    scores = pl.read_parquet(micro.paths.folder("evaluate") / "per_viewer.parquet").filter(purpose="valid")
    users = {system: set(scores.filter(row=system)["user_id"]) for system in ("tuned", "untuned", "retriever")}
    assert users["tuned"] == users["untuned"] == users["retriever"] != set()


def test_a_champion_with_broken_weights_counts_as_none(micro, caplog):
    broken = copied(micro, "finetune", "3" * 32)
    file = broken.folder("finetune") / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    save_file({name: torch.full_like(values, torch.nan) for name, values in weights.items()}, file)
    sizes_of_today(broken.folder("finetune"))
    config = micro.record.settings()
    with child_run(micro, config) as child:
        promotion.promote_adapter(
            child.tracker, child, "broken", broken.folder("finetune"), {"fingerprint": broken.fingerprints["finetune"]}
        )
    with caplog.at_level(logging.INFO, logger="tripletune"):
        decision = decide(micro, micro.paths, "after-broken", promote={"registered_model": "broken"})
    assert decision["promote"]
    assert decision["version"] == "2"
    assert decision["champion_before"] == "3" * 32
    assert "version 1 can answer nothing" in caplog.text


def say_of(folder: Path, **facts: Any) -> None:
    """Change facts of a finished output."""
    manifest = json.loads((folder / MANIFEST).read_text())
    write_json(folder / MANIFEST, manifest | {"facts": manifest["facts"] | facts})


def test_a_champion_that_started_warm_and_is_no_better_gives_way_to_a_fresh_adapter(micro):
    """The same weights twice, and no margin: the usual rule refuses, but who started warm has to be the better one."""
    warm = copied(micro, "finetune", "5" * 32)
    say_of(warm.folder("finetune"), start="champion", ancestors=[{"fingerprint": "4" * 32, "run": "r"}])
    fresh = copied(micro, "finetune", "6" * 32)
    say_of(fresh.folder("finetune"), start="base", ancestors=[])
    named = {"registered_model": "chain", "margin": 0.0}
    assert decide(micro, warm, "chain-1", promote=named)["promote"]
    other = copied(micro, "finetune", "7" * 32)
    say_of(other.folder("finetune"), start="champion", ancestors=[{"fingerprint": "4" * 32, "run": "r"}])
    assert not decide(micro, other, "chain-2", promote=named)["promote"]
    ended = decide(micro, fresh, "chain-3", promote=named)
    assert ended["promote"]
    assert "the champion of 1 warm trainings is better by +0.0000" in ended["reason"]
    assert ended["reason"].endswith("is not above 0, so the chain ends")
    assert not ended["kept_against_fresh"]

    say_of(other.folder("finetune"), same_as="6" * 32)
    assert decide(micro, other, "chain-4", promote=named)["reason"] == "this adapter is the champion already"


def test_a_store_that_fails_never_looks_like_a_first_night(micro, monkeypatch):
    from mlflow.exceptions import MlflowException

    from tripletune.tracking import Tracker, find_champion

    class Broken:
        def get_model_version_by_alias(self, name: str, alias: str) -> None:
            raise MlflowException("the database is locked")

    monkeypatch.setattr(Tracker, "client", lambda self: Broken())
    with pytest.raises(MlflowException, match="locked"):
        find_champion(Tracker("sqlite://", "0", "0"), MODEL)
