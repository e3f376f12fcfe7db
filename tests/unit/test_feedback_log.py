"""Which earlier run's log the selector learns from, and that a rerun rebuilds nothing."""

from __future__ import annotations

import pytest

from tripletune.config import RunConfig
from tripletune.errors import ConfigError, MissingArtifactError
from tripletune.pipeline.feedback import LOG, resolved_log
from tripletune.pipeline.resolve import resolve
from tripletune.store.files import write_json
from tripletune.store.paths import MANIFEST
from tripletune.store.runs import RunRecord, write_run

PROBED = {"users": 5, "purposes": ["train", "test"]}


def config(**changes) -> RunConfig:
    settings = {"dataset": "toy", "retrieve": {"triple_choice": "learned"}, "probe": PROBED}
    return RunConfig.model_validate(settings | changes)


def finish(root, settings: RunConfig, name: str, started: str, *, status: str = "completed") -> RunRecord:
    """A run as if it had been completed: manifests without files."""
    paths = resolve(settings, root)
    for stage in ("split", "retrieve", "generate", "probe", "selector"):
        if stage in paths.fingerprints:
            folder = paths.folder(stage)
            folder.mkdir(parents=True, exist_ok=True)
            ingredients = paths.ingredients[stage]
            manifest = {"files": {}, "parents": ingredients["parents"], "ingredients": ingredients, "facts": {}}
            write_json(folder / MANIFEST, manifest)
    record = RunRecord(
        name=name,
        dataset="toy",
        status=status,
        started=started,
        config=settings.model_dump(mode="json"),
        fingerprints=paths.fingerprints,
        stages=dict.fromkeys(paths.fingerprints, "made"),
    )
    write_run(root, record)
    return record


def test_a_run_has_no_selector_unless_the_choice_is_learned(tmp_path):
    assert "selector" not in resolve(RunConfig(dataset="toy"), tmp_path).fingerprints
    assert "selector" in resolve(config(), tmp_path).fingerprints


def test_the_first_run_has_no_log_and_a_rerun_of_it_rebuilds_nothing(tmp_path):
    first = finish(tmp_path, config(), "first", "2026-01-01")
    again = resolve(config(), tmp_path)
    assert resolved_log(again) is None
    assert again.fingerprints == first.fingerprints


def test_with_new_data_the_newest_log_is_learned_from_and_again_a_rerun_rebuilds_nothing(tmp_path):
    runs = [finish(tmp_path, config(seed=seed), f"run-{seed}", f"2026-01-0{seed}") for seed in (1, 2)]
    now = resolve(config(seed=3), tmp_path)
    assert now.ingredients["selector"]["inputs"] == {LOG: runs[1].fingerprints["probe"]}
    log = resolved_log(now)
    for stage in ("probe", "generate", "retrieve", "split"):
        assert getattr(log, stage).name == runs[1].fingerprints[stage]
    third = finish(tmp_path, config(seed=3), "run-3", "2026-01-03")
    assert resolve(config(seed=3), tmp_path).fingerprints == third.fingerprints
    # settings behind the selector do not make it learn again
    other = resolve(config(seed=3, finetune={"lora_r": 4}), tmp_path).fingerprints
    assert other["selector"] == third.fingerprints["selector"]
    assert other["finetune"] != third.fingerprints["finetune"]
    # another log is another choice
    assert (
        third.fingerprints["selector"]
        != resolve(config(seed=3, selector={"from_run": "run-1"}), tmp_path).fingerprints["selector"]
    )


@pytest.mark.parametrize(
    "changes",
    [{"dataset": "other"}, {"probe": {"users": 5, "purposes": ["test"]}}, {"probe": {"users": 0}}],
    ids=["another dataset", "no training prompts", "no probe"],
)
def test_other_runs_are_no_log(tmp_path, changes):
    finish(
        tmp_path,
        config(seed=1, **{name: value for name, value in changes.items() if name == "probe"}),
        "run-1",
        "2026-01-01",
    )
    now = resolve(config(**{name: value for name, value in changes.items() if name == "dataset"}), tmp_path)
    assert LOG not in now.ingredients["selector"]["inputs"]


def test_a_run_that_failed_or_whose_files_are_gone_is_no_log(tmp_path):
    finish(tmp_path, config(seed=1), "failed", "2026-01-01", status="failed")
    gone = finish(tmp_path, config(seed=2), "gone", "2026-01-02")
    (gone.paths(tmp_path).folder("retrieve") / MANIFEST).unlink()
    assert LOG not in resolve(config(seed=3), tmp_path).ingredients["selector"]["inputs"]
    with pytest.raises(MissingArtifactError, match=r"needs the retrieve output .* which is gone"):
        resolve(config(seed=3, selector={"from_run": "gone"}), tmp_path)


def test_a_named_run_must_have_a_log_of_this_dataset(tmp_path):
    finish(tmp_path, config(probe={"users": 0}), "blind", "2026-01-01")
    finish(tmp_path, config(), "seeing", "2026-01-02")
    with pytest.raises(ConfigError, match="'blind' has not probed training prompts"):
        resolve(config(selector={"from_run": "blind"}), tmp_path)
    with pytest.raises(ConfigError, match="is a run of dataset 'toy', not of 'other'"):
        resolve(config(dataset="other", selector={"from_run": "seeing"}), tmp_path)
    with pytest.raises(MissingArtifactError, match="no run 'seeng'"):
        resolve(config(selector={"from_run": "seeng"}), tmp_path)


def test_a_pinned_selector_stays_whatever_has_been_logged_since(tmp_path):
    first = finish(tmp_path, config(seed=1), "first", "2026-01-01")
    for stage in config().specialist_stages:
        folder = first.paths(tmp_path).folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).exists():
            write_json(folder / MANIFEST, {"files": {}, "parents": {}, "ingredients": {}, "facts": {}})
    finish(tmp_path, config(seed=2), "second", "2026-01-02")
    pinned = resolve(config(seed=3, specialists={"pin": "first"}), tmp_path)
    assert pinned.fingerprints["selector"] == first.fingerprints["selector"]
