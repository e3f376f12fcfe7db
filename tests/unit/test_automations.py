"""Which events each automation acts on, by the matching of Prefect's server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import BlockDocument
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent, Resource

from tasks import promote
from tasks.automations import alert_automations, mark_dead_runs, rerun_crashed
from tripletune.store.paths import RunPaths

BLOCK = BlockDocument.model_validate(
    {
        "id": uuid4(),
        "name": "tripletune-alerts",
        "block_schema_id": uuid4(),
        "block_type_id": uuid4(),
        "block_type": {"name": "Webhook", "slug": "webhook"},
    }
)
ALERTS = {one.name.removeprefix("tripletune alert: "): one for one in alert_automations(BLOCK, timedelta(hours=6))}


def event(
    state: str, count: int = 1, message: str = "", tags: tuple[str, ...] = ("tripletune", "nightly"),
    flow: str = "tripletune-nightly",
) -> ReceivedEvent:  # fmt: skip
    """What the server emits when a flow run gets a state, or the run as a heartbeat."""
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{uuid4()}",
        "prefect.resource.name": "wise-owl",
        "prefect.run-count": str(count),
        "prefect.state-message": message,
        "prefect.state-type": {"AwaitingRetry": "SCHEDULED", "TimedOut": "FAILED"}.get(state, state.upper()),
    }
    if state == "heartbeat":
        resource = {name: resource[name] for name in ("prefect.resource.id", "prefect.resource.name")}
    related = [
        {"prefect.resource.id": f"prefect.flow.{uuid4()}", "prefect.resource.role": "flow",
         "prefect.resource.name": flow},
        *({"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in tags),
    ]  # fmt: skip
    return ReceivedEvent.model_validate(
        {"occurred": datetime.now(UTC), "event": f"prefect.flow-run.{state}", "id": uuid4(),
         "resource": resource, "related": related, "received": datetime.now(UTC)}
    )  # fmt: skip


def acts_on(automation: AutomationCore, happened: ReceivedEvent) -> bool:
    trigger = EventTrigger.model_validate(automation.trigger.model_dump(mode="json"))
    return trigger.covers(happened) and trigger.expects(happened.event)


def alerts(happened: ReceivedEvent) -> set[str]:
    """Names of the alerts that react to an event."""
    reactive = {name for name in ALERTS if ALERTS[name].trigger.posture.value == "Reactive"}
    return {name for name in reactive if acts_on(ALERTS[name], happened)}


@pytest.mark.parametrize(("count", "again"), [(0, False), (1, True), (2, True), (3, False), (4, False)])
def test_a_crashed_nightly_run_is_run_again_twice(count, again):
    assert acts_on(rerun_crashed(), event("Crashed", count)) == again


@pytest.mark.parametrize("state", ["Failed", "Cancelled", "Completed", "AwaitingRetry"])
def test_no_other_end_is_run_again(state):
    assert not acts_on(rerun_crashed(), event(state))


def test_another_deployment_is_not_run_again():
    assert not acts_on(rerun_crashed(), event("Crashed", tags=("tripletune", "ci")))


def test_each_end_has_one_alert():
    drift = "Flow run encountered an exception: DriftError: year: PSI .4 is above quality.max_psi = .25"
    assert alerts(event("Crashed")) == {"crashed"}
    assert alerts(event("Failed", message="Flow run encountered an exception: ValueError: x")) == {"failed"}
    assert alerts(event("Failed")) == {"failed"}
    assert alerts(event("TimedOut", message="Flow run exceeded timeout of 3600.0 second(s)")) == {"failed"}
    assert alerts(event("heartbeat")) == set()
    assert alerts(event("Failed", message=drift)) == {"the shards drifted"}
    collision = event("Cancelled", message="Deployment concurrency limit reached.")
    assert alerts(collision) == {"cancelled, the last run is still going"}
    assert alerts(event("Cancelled", message="Cancelled by user")) == set()
    assert alerts(event("Completed")) == set()
    assert alerts(event("Failed", tags=("of another team",))) == set()


@pytest.mark.parametrize("promoted", [True, False])
def test_an_adapter_that_is_not_promoted_is_an_alert_with_the_reason(tmp_path, monkeypatch, promoted):
    folder = tmp_path / "films" / "promote" / "films-1"
    folder.mkdir(parents=True)
    decision = {"promote": promoted, "reason": "too low", "adapter": "a", "champion_before": None}
    (folder / "decision.json").write_text(json.dumps(decision))
    session = SimpleNamespace(paths=RunPaths(root=tmp_path, dataset="films", fingerprints={}), run="films-1")
    emitted = []
    monkeypatch.setattr(promote, "logged_stage", lambda *_: folder)
    monkeypatch.setattr(promote, "emit_event", lambda name, resource: emitted.append((name, resource)))
    assert promote.run_and_publish(session) == folder
    assert len(emitted) == (0 if promoted else 1)
    for name, resource in emitted:
        happened = event("Completed").model_copy(update={"event": name, "resource": Resource.model_validate(resource)})
        assert alerts(happened) == {"the adapter was not promoted"}
        assert happened.resource["tripletune.reason"] == "too low"


def test_a_dead_run_or_subflow_is_one_of_our_flows_without_a_sign_of_life():
    dead = mark_dead_runs(timedelta(seconds=200))
    trigger = EventTrigger.model_validate(dead.trigger.model_dump(mode="json"))
    assert trigger.starts_after("prefect.flow-run.heartbeat")
    assert not trigger.starts_after("prefect.flow-run.Running")  # of a run that sends no heartbeats
    for state in ("heartbeat", "Completed", "Failed", "TimedOut", "Crashed", "Cancelled"):
        assert acts_on(dead, event(state, tags=())), state
    assert not acts_on(dead, event("heartbeat", flow="of another team"))


def test_the_time_to_finish_runs_on_from_the_first_start_through_a_crash():
    trigger = EventTrigger.model_validate(ALERTS["not finished"].trigger.model_dump(mode="json"))
    assert trigger.within == timedelta(hours=6)
    assert all(trigger.starts_after(f"prefect.flow-run.{state}") for state in ("Late", "Pending", "Running"))
    assert not trigger.expects("prefect.flow-run.Crashed")
    assert trigger.expects("prefect.flow-run.Completed")
