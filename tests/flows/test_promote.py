"""The champion alias moves when the adapter is not worse; it stays, with a reason, when it is or can't be compared."""

from __future__ import annotations

import json
import logging
import re
import shutil
import time
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
from tripletune.tracking import StageRun, open_registry, recorded_run, stage_run
from tripletune.versions import Entry, register_version

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


def held(micro: MicroRun, model: str = MODEL, alias: str = "champion") -> Any:
    """The version that holds an alias."""
    return MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}").get_model_version_by_alias(model, alias)


def files_of(version: Any) -> Path:
    """Folder of a version's files in the store."""
    return Path(version.source.removeprefix("file://"))


def champion(micro: MicroRun, alias: str = "champion") -> tuple[str, str]:
    version = held(micro, alias=alias)
    return str(version.version), version.tags["fingerprint"]


def verdicts(decision: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["verdict"] for one in decision["comparisons"]}


def test_the_alias_moves_only_to_an_adapter_that_is_not_worse(micro, twin):
    first = decide(micro, micro.paths, "contest-1")
    skipped = "; skipped champion: there is no champion yet; skipped best: there is no version yet; skipped earlier: "
    assert first["reason"] == f"not worse than retriever, untuned{skipped}no version is 7 days old yet"
    assert champion(micro) == champion(micro, "best") == ("1", micro.record.fingerprints["finetune"])

    few = decide(micro, twin, "contest-2", promote={"min_users": 10_000})
    assert not few["promote"]
    assert "users of valid judge, and promote.min_users is 10000" in few["reason"]
    gone = micro.root / "micro" / "finetune" / "gone"
    files = files_of(held(micro))
    files.rename(gone)
    lost = decide(micro, twin, "contest-lost")
    gone.rename(files)
    assert "version 1 is kept: it could not be ranked" in lost["reason"]
    assert verdicts(lost)["best"] == "failed"
    assert not list((micro.root / "micro" / "promote").glob("*/_scratch"))

    before = sorted((micro.root / "micro" / "promote").glob("*/*"))
    preview = dry_run(micro, twin)
    assert preview["promote"]
    assert champion(micro)[0] == "1"
    assert sorted((micro.root / "micro" / "promote").glob("*/*")) == before

    within_margin = decide(micro, twin, "contest-4")
    assert within_margin == preview | {"version": "2", "run": "contest-4", "decided": within_margin["decided"]}
    assert verdicts(within_margin)["earlier"] == "skipped"
    assert within_margin["num_viewers"] > 2
    assert within_margin["difference"] == within_margin["lower_bound"] == 0.0
    assert champion(micro) == ("2", ANOTHER)
    assert champion(micro, "best") == ("1", micro.record.fingerprints["finetune"])  # as good is not better


def test_after_a_change_of_the_contract_each_side_ranks_prompts_of_its_own(micro, twin):
    """The challenger's values are the champion's own, measured by evaluate: asked in its own way, the champion must
    have the same value for every user."""
    named = {"registered_model": "contracts"}
    decide(micro, micro.paths, "contracts-1", promote=named)
    prompt = micro.record.settings().prompt.model_copy(update={"template": "letters", "max_liked": 3})
    decision = decide(micro, twin, "contracts-2", prompt=prompt, promote={**named, "relative_margin": 0.0})
    made = {one["name"]: one for one in decision["comparisons"]}
    assert made["champion"]["own_contract"]
    assert made["best"]["own_contract"]
    assert (made["champion"]["difference"], made["champion"]["upper_bound"]) == (0.0, 0.0)
    assert made["champion"]["value"] == made["best"]["value"] == decision["value"]
    assert made["champion"]["num_viewers"] == decision["num_viewers"]
    assert "(version 1), each on prompts of its own contract, by +0.0000" in made["champion"]["reason"]
    assert not made["retriever"]["own_contract"]
    assert "on prompts of its own" in (micro.root / "micro" / "promote" / "contracts-2" / "decision.html").read_text()


@pytest.mark.parametrize("fault", ["template", "models", "settings", "kerag"])
def test_a_champion_whose_own_prompts_cannot_be_made_is_kept_and_the_best_is_skipped(micro, twin, tmp_path, fault):
    name = f"kept-{fault}"
    decide(micro, micro.paths, f"{name}-1", promote={"registered_model": name})
    prompts = files_of(held(micro, name)) / "artifacts" / "prompts"
    settings = json.loads((prompts / "settings.json").read_text())
    config: dict[str, Any] = {}
    if fault == "template":
        (file,) = prompts.glob("*.txt")
        file.write_text(file.read_text().replace("You recommend", "You suggest"))
        reason = "its own cannot be made any more (the adapter was trained on other prompts: template_sha256"
    elif fault == "models":
        write_json(prompts / "settings.json", settings | {"retrieve": settings["retrieve"] | {"retriever": "sasrec"}})
        reason = "retriever: the adapter has"
    elif fault == "settings":
        write_json(prompts / "settings.json", settings | {"dataset": 7})
        reason = "is none of this package's settings"
    else:
        config["retrieve"] = micro.record.settings().retrieve.model_copy(update={"candidates": "kerag"})
        reason = "one of them puts the answers among the candidates"
    prompt = micro.record.settings().prompt.model_copy(update={"template": "letters"})
    decision = decide(micro, twin, f"{name}-2", prompt=prompt, promote={"registered_model": name}, **config)
    assert not decision["promote"]
    assert "the contract of version 1 no longer fits this run's prompts" in decision["reason"]
    assert reason in decision["reason"]
    assert (verdicts(decision)["champion"], verdicts(decision)["best"]) == ("failed", "skipped")
    assert champion_number(micro, name) == "1"


def champion_number(micro: MicroRun, model: str) -> str:
    return str(held(micro, model).version)


def dry_run(micro: MicroRun, paths: RunPaths) -> dict[str, Any]:
    config = micro.record.settings()
    promote = config.promote.model_copy(update={"registered_model": MODEL})
    config = config.model_copy(update={"promote": promote})
    preview: dict[str, Any] = json.loads(
        json.dumps(promotion.preview(paths, config, open_registry(config.tracking, micro.root)))
    )
    return preview


def test_a_dry_run_prints_the_decision_and_records_no_run(micro, tmp_path):
    config = tmp_path / "other.toml"
    config.write_text(micro.config.read_text().replace("[promote]", '[promote]\nregistered_model = "nobody"'))
    runs = sorted((micro.root / "runs").iterdir())
    done = micro.call("promote", "--dry-run", "--config", str(config))
    assert done.returncode == 0, done.stderr
    decision = json.loads(done.stdout)
    assert (decision["promote"], decision["is_best"], decision["version"]) == (True, True, "")
    assert [one["name"] for one in decision["comparisons"]] == ["champion", "best", "earlier", "retriever", "untuned"]
    assert sorted((micro.root / "runs").iterdir()) == runs
    assert not versions(micro, "nobody")


def test_a_decision_stands_with_all_its_numbers_in_tags_metrics_file_and_show(micro, monkeypatch):
    decision = decide(micro, micro.paths, "recorded-1", promote={"registered_model": "recorded"})
    tags = held(micro, "recorded").tags
    assert tags["decision"] == decision["reason"]
    assert float(tags["valid_ndcg_at_5"]) == pytest.approx(decision["value"], abs=1e-4)
    for one in decision["comparisons"]:
        assert tags[f"gate.{one['name']}"] == f"{one['verdict']}: {one['reason']}"
    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    run = client.get_run(held(micro, "recorded").run_id)
    (retriever,) = [one for one in decision["comparisons"] if one["name"] == "retriever"]
    assert run.data.metrics["retriever_difference"] == retriever["difference"]
    assert run.data.metrics["retriever_lower_bound"] == retriever["lower_bound"]
    assert "champion_difference" not in run.data.metrics
    logged = [file.path for file in client.list_artifacts(run.info.run_id)]
    assert {"decision.json", "decision.html"} <= set(logged)

    shown = micro.call("show", micro.record.name, "--full").stdout
    assert "promoted as version 1, the best version: not worse than retriever, untuned" in shown
    assert re.search(r"retriever +│ +│ 0\.\d{4} │ [+-]0\.\d{4} +│", shown), shown
    assert re.search(r"champion +│.*skipped │ there is no champion yet", shown), shown


def test_the_champion_of_a_week_ago_is_compared_with_and_the_best_keeps_its_title(micro, twin, monkeypatch):
    named = {"registered_model": "weeks"}
    decide(micro, micro.paths, "weeks-1", promote=named)
    decide(micro, twin, "weeks-2", promote=named)
    third = copied(micro, "finetune", "8" * 32)
    days = 8 * 24 * 60 * 60
    now = time.time
    monkeypatch.setattr("tripletune.promote.references.time.time", lambda: now() + days)
    decision = decide(micro, third, "weeks-3", promote=named)
    versions = {one["name"]: one["version"] for one in decision["comparisons"]}
    assert versions == {"champion": "2", "best": "1", "earlier": "2", "retriever": "", "untuned": ""}
    assert verdicts(decision)["earlier"] == "passed"
    assert (held(micro, "weeks").version, held(micro, "weeks", "best").version) == (3, 1)


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


@pytest.mark.parametrize("floor", ["retriever", "untuned"])
def test_a_first_adapter_that_is_worse_than_a_floor_is_not_promoted(micro, caplog, floor):
    paths = judged_so(micro, ("1" if floor == "retriever" else "2") * 32, floor)
    named = {"registered_model": "first", "relative_margin": 0.1}
    with caplog.at_level(logging.INFO, logger="tripletune"):
        decision = decide(micro, paths, f"first-{floor}", promote=named)
    scores = pl.read_parquet(micro.paths.folder("evaluate") / "per_viewer.parquet")
    users = scores.filter(row="tuned", purpose="valid")["user_id"]
    judging = int(judges(users, micro.record.settings().seed).sum())
    assert 0 < judging < 24
    assert not decision["promote"]
    (failed,) = [one for one in decision["comparisons"] if one["verdict"] == "failed"]
    assert (failed["name"], failed["difference"], failed["num_viewers"]) == (floor, -1.0, judging)
    assert (decision["version"], decision["champion_before"]) == ("", None)
    assert not versions(micro, "first")
    assert f"not promoted: {decision['reason']}" in caplog.text
    client = MlflowClient(f"sqlite:///{micro.root / 'mlflow.db'}")
    tagged = [run.data.tags.get("promotion") for run in client.search_runs([micro.record.mlflow_experiment_id])]
    assert tagged.count(decision["reason"]) == 2  # the child and its parent


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
        tags = {"fingerprint": broken.fingerprints["finetune"]}
        entry = Entry(model="broken", description="", tags=tags, metrics={})
        register_version(child, entry, broken.folder("finetune"))  # the adapter alone, as older packages did
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


def unsure(micro: MicroRun, paths: RunPaths, fingerprint: str) -> RunPaths:
    """The run with an evaluate in which every second user likes the adapter more, every other one less, and the floors
    are far below."""
    copied(micro, "evaluate", fingerprint)
    other = RunPaths(
        root=paths.root, dataset=paths.dataset, fingerprints={**paths.fingerprints, "evaluate": fingerprint}
    )
    file = other.folder("evaluate") / "per_viewer.parquet"
    scores = pl.read_parquet(file).sort("row", "purpose", "user_id")
    noise = pl.int_range(pl.len()).over("row", "purpose") % 2 - 0.5
    value = pl.when(pl.col("row") == "tuned").then(pl.col("ndcg_at_5") + noise).otherwise(-9.0)
    scores.with_columns(ndcg_at_5=value).write_parquet(file)
    sizes_of_today(other.folder("evaluate"))
    return other


def test_a_champion_that_started_warm_and_is_no_better_gives_way_to_a_fresh_adapter(micro):
    """The same weights, measured with noise, and no margin: the usual rule refuses, but who started warm has to be the
    better one."""
    warm = copied(micro, "finetune", "5" * 32)
    say_of(warm.folder("finetune"), start="champion", ancestors=[{"fingerprint": "4" * 32, "run": "r"}])
    fresh = copied(micro, "finetune", "6" * 32)
    say_of(fresh.folder("finetune"), start="base", ancestors=[])
    named = {"registered_model": "chain"}
    assert decide(micro, warm, "chain-1", promote=named)["promote"]
    other = copied(micro, "finetune", "7" * 32)
    say_of(other.folder("finetune"), start="champion", ancestors=[{"fingerprint": "4" * 32, "run": "r"}])
    strict = named | {"relative_margin": 0.0}
    refused = decide(micro, unsure(micro, other, "a" * 32), "chain-2", promote=strict)
    assert verdicts(refused) | {"earlier": "skipped"} == {
        "champion": "failed",
        "best": "failed",
        "earlier": "skipped",
        "retriever": "passed",
        "untuned": "passed",
    }
    ended = decide(micro, unsure(micro, fresh, "b" * 32), "chain-3", promote=strict)
    assert ended["promote"]
    assert "the champion has 1 warm trainings behind it" in ended["comparisons"][0]["reason"]
    assert ended["comparisons"][0]["reason"].endswith("is not below 0, so the chain ends")
    assert not ended["kept_against_fresh"]

    say_of(other.folder("finetune"), same_as="6" * 32)
    assert decide(micro, other, "chain-4", promote=named)["reason"] == "this adapter is the champion already"


def test_a_store_that_fails_never_looks_like_a_first_night(micro, monkeypatch):
    from mlflow.exceptions import MlflowException

    from tripletune.tracking import Tracker
    from tripletune.versions import find_version

    class Broken:
        def get_model_version_by_alias(self, name: str, alias: str) -> None:
            raise MlflowException("the database is locked")

    monkeypatch.setattr(Tracker, "client", lambda self: Broken())
    with pytest.raises(MlflowException, match="locked"):
        find_version(Tracker("sqlite://", "0", "0"), MODEL)
