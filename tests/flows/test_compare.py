"""The flow that compares runs: its page is logged with the compared runs, in MLflow and on Prefect's page."""

from __future__ import annotations

import pytest
from mlflow import MlflowClient
from prefect.testing.utilities import prefect_test_harness

from flows.compare import compare
from tests.unit.compared_runs import values_of, write_compared
from tripletune.compare.pages import FILES
from tripletune.config import TrackingConfig
from tripletune.errors import MissingArtifactError
from tripletune.store.runs import tracking_uri, write_run
from tripletune.tracking import start_run

pytestmark = [pytest.mark.flow, pytest.mark.slow]


def test_the_comparison_is_logged_on_every_run_but_the_baseline(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    parents = {}
    for name, gain in (("a", 0.0), ("b", 0.2)):
        record = write_compared(tmp_path, name, {"test": values_of(100, 1, gain)})
        tracker = start_run(TrackingConfig(), tmp_path, name, params={}, tags={})
        parents[name] = tracker.parent_run_id
        write_run(tmp_path, record.model_copy(update={"mlflow_run_id": tracker.parent_run_id}))
    write_compared(tmp_path, "unlogged", {"test": values_of(100, 2)})
    client = MlflowClient(tracking_uri(TrackingConfig(), tmp_path))
    with prefect_test_harness(server_startup_timeout=120):
        said = compare(runs=["a", "b"], out=str(tmp_path / "out"), artifacts=str(tmp_path), resamples=500)
        with pytest.raises(MissingArtifactError, match="has no run '' of unlogged; set MLFLOW_TRACKING_URI"):
            compare(runs=["a", "unlogged"], out=str(tmp_path / "out2"), artifacts=str(tmp_path), resamples=500)
    assert [line.split(":")[0] for line in said] == ["b against a"]
    logged = [one.path for one in client.list_artifacts(parents["b"], "compared/a")]
    assert sorted(logged) == [f"compared/a/{name}" for name in sorted(FILES)]
    assert client.list_artifacts(parents["a"]) == []
