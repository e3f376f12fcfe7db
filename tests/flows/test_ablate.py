"""An ablation set under Prefect, from the command line: stages shared with an earlier run, nothing promoted, MLflow."""

from __future__ import annotations

import json

import pytest
from mlflow import MlflowClient

from tests.flows.conftest import MicroRun
from tripletune.store.runs import list_runs, tracking_uri

SET = """
why = "Does the form of the facts matter?"
row = "tuned"
metrics = ["ndcg_at_10"]

[[member]]
name = "no-tuning"
why = "untuned"
row = "untuned"

[[member]]
name = "sentence"
why = "facts as sentences"
set = ["prompt.triple_form=sentence"]
"""


@pytest.mark.slow
def test_a_set_shares_the_stages_of_an_earlier_run_and_is_logged_and_not_promoted(micro: MicroRun, tmp_path):
    path = tmp_path / "form.toml"
    path.write_text(SET)
    command = ("ablate", str(path), "--config", str(micro.config), "--set", "rank.batch_size=16")
    client = MlflowClient(tracking_uri(micro.record.settings().tracking, micro.root))
    versions = len(client.search_model_versions("name = 'tripletune-micro'"))

    done = micro.call(*command)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    base, member = (run for run in list_runs(micro.root) if run.tags.get("ablation.set") == "form")
    made = {
        run.tags["ablation.member"]: [s for s, how in run.stages.items() if how == "made"] for run in (base, member)
    }
    assert made == {"base": ["rank", "evaluate"], "sentence": ["generate", "finetune", "rank", "evaluate"]}
    assert base.overrides == ("rank.batch_size=16",)
    assert member.overrides == ("rank.batch_size=16", "prompt.triple_form=sentence")
    assert "quality" not in member.stages
    assert "promote" not in member.stages
    assert len(client.search_model_versions("name = 'tripletune-micro'")) == versions

    (folder,) = (micro.root / "micro" / "ablations").iterdir()
    found = json.loads((folder / "ablation.json").read_text())
    assert [one["state"] for one in found["members"]] == ["ran", "same run", "ran"]
    assert found["comparison"]["family"]["num_tests"] == 4
    assert "Stages: 6 made" in done.stdout
    parent = client.get_run(base.tags["mlflow.parentRunId"])
    assert parent.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"ablation.md", "ablation.html"}
    assert "sentence.test_ndcg_at_10" in parent.data.metrics
    assert client.get_run(member.mlflow_run_id).data.tags["config.set"] == "; ".join(member.overrides)

    again = micro.call(*command)
    assert again.returncode == 0, again.stderr[-4000:]
    assert len([run for run in list_runs(micro.root) if run.tags.get("ablation.set") == "form"]) == 2
    assert "Stages: 0 made" in again.stdout
