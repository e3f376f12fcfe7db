"""The champion alias moves when the adapter is not worse; it stays, with a reason, when it is or can't be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.flows.conftest import MicroRun
from tripletune.config import RunConfig
from tripletune.pipeline.stages import run_promote
from tripletune.store.paths import RunPaths
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
    assert "version 1 is kept: its contract no longer fits tonight's prompts" in foreign["reason"]
    assert "template" in foreign["reason"]
    assert champion(micro)[0] == "1"

    gone = micro.root / "micro" / "finetune" / "gone"
    files = next((micro.root / "mlflow").glob(f"{champion_run(micro)}/artifacts/model"))
    files.rename(gone)
    lost = decide(micro, twin, "contest-lost")
    gone.rename(files)
    assert "version 1 is kept: it could not be ranked tonight" in lost["reason"]
    assert not list((micro.root / "micro" / "promote").glob("*/_scratch"))

    within_margin = decide(micro, twin, "contest-4", promote={"margin": 0.01})
    assert within_margin["promote"]
    assert within_margin["num_viewers"] > 2
    assert champion(micro) == ("2", ANOTHER)


def test_a_store_that_fails_never_looks_like_a_first_night(micro, monkeypatch):
    from mlflow.exceptions import MlflowException

    from tripletune.tracking import Tracker, find_champion

    class Broken:
        def get_model_version_by_alias(self, name: str, alias: str) -> None:
            raise MlflowException("the database is locked")

    monkeypatch.setattr(Tracker, "client", lambda self: Broken())
    with pytest.raises(MlflowException, match="locked"):
        find_champion(Tracker("sqlite://", "0", "0"), MODEL)
