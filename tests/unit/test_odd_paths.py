"""Paths with any character a file system takes, and ~ where the shell left it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tripletune.cli.main import main
from tripletune.config import TrackingConfig
from tripletune.config.presets import load_config
from tripletune.store.runs import tracking_uri
from tripletune.tracking import open_registry, start_run


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", ["what? #1 é%41", "a?mode=ro&cache=x"])
def test_mlflow_keeps_runs_and_artifacts_under_a_root_with_any_name(name, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / name
    tracker = start_run(TrackingConfig(), root, "run", params={"seed": 3}, tags={})
    file = tmp_path / "file.txt"
    file.write_text("content")
    client = tracker.client()
    client.log_artifact(tracker.parent_run_id, str(file), "folder")
    assert [one.path for one in client.list_artifacts(tracker.parent_run_id, "folder")] == ["folder/file.txt"]
    assert open_registry(TrackingConfig(), root).client().get_run(tracker.parent_run_id).data.params == {"seed": "3"}
    assert (root / "mlflow.db").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "file.txt"])


def test_the_address_of_a_usual_root_is_as_before(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_settings_take_the_home_folder(home):
    preset = home / "preset.toml"
    preset.write_text('dataset = "toy"\n[source]\nmovielens = "~/ml"\nextra_triples = ["~/more.csv", "a~/b"]\n')
    config = load_config(preset, imdb="~/imdb")
    assert (config.source.movielens, config.source.imdb) == (f"{home}/ml", f"{home}/imdb")
    assert config.source.extra_triples == (f"{home}/more.csv", "a~/b")


@pytest.mark.parametrize("words", [["--artifacts=~/made"], ["--artifacts", "~/made"]])
def test_options_take_the_home_folder_that_the_shell_left(words, home, capsys):
    assert main(["show", *words]) == 2
    assert f"no run in {home}/made yet" in capsys.readouterr().err
