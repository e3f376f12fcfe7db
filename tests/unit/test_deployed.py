"""A deployment run as a subflow is started again when it crashed, and not when it failed."""

from __future__ import annotations

import logging

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, Crashed, Failed, State

from tasks import deployed
from tripletune.errors import UserError


@pytest.mark.parametrize(
    ("ends", "starts", "completes"),
    [
        ([Completed()], 1, True),
        ([Crashed(), Crashed(), Completed()], 3, True),
        ([Crashed()] * 5, 3, False),
        ([Failed(), Completed()], 1, False),
        ([Crashed(), Failed(), Completed()], 2, False),
    ],
)
def test_a_crashed_deployment_is_started_again_twice(monkeypatch, ends: list[State], starts: int, completes: bool):
    started = []

    def run(name: str, parameters: dict[str, str]) -> FlowRun:
        started.append((name, parameters))
        return FlowRun.model_validate({"flow_id": "0" * 32, "name": "wise-owl", "state": ends[len(started) - 1]})

    monkeypatch.setattr(deployed, "run_deployment", run)
    monkeypatch.setattr(deployed, "get_run_logger", logging.getLogger)
    if completes:
        deployed.run_deployed("flow/one", run="films-1")
    else:
        with pytest.raises(UserError, match=r"flow/one ended (crashed|failed) \(flow run wise-owl"):
            deployed.run_deployed("flow/one", run="films-1")
    assert started == [("flow/one", {"run": "films-1"})] * starts
