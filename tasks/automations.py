"""Automations that come with the deployments, kept on the Prefect server.

A dead run is noticed by its missing heartbeats, a crashed nightly run is started again, and alerts go to the block
``tripletune-alerts``. They are looked up by name: the first call creates them, later ones change what differs. One that
somebody paused stays paused, as a paused schedule does.

The number of re-runs is kept by Prefect itself: a crashed flow run is scheduled once more, as the Retry button does,
and its run count, which each of its events carries, says how often it was started. A user's mistake ends as Failed,
not as Crashed, and is never run again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import BlockDocument, StateType
from prefect.events.actions import ActionTypes, CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_URL

from tripletune.errors import ConfigError

ALERTS = "tripletune-alerts"
"""Name of the block that alerts go to: a webhook, or any block that can notify (Slack, Teams, e-mail, ...)."""
MISSED = timedelta(seconds=200)
"""Time without a heartbeat, of which a deployed run sends one each 30 s (prefect.yaml), after which it is dead."""
RERUNS = 2
"""Automatic re-runs of one scheduled run."""
FINISH_WITHIN = timedelta(hours=6)
"""Default time from the start of a nightly run, or from when it was due, to the alert that it has not finished."""
REFUSED = "tripletune.promotion.refused"
"""Event of a run whose adapter was not promoted; ``tasks.promote`` emits it."""

_OUR_FLOWS = {"prefect.resource.role": "flow", "prefect.resource.name": "tripletune-*"}
_FINISHED = frozenset(f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "TimedOut", "Cancelled"))
_PAGE = 200


def ensure_automations(
    finish_within: timedelta = FINISH_WITHIN, *, missed: timedelta = MISSED, alerts: str = ALERTS
) -> list[str]:
    """Create or update the automations on the server that ``PREFECT_API_URL`` names.

    Args:
        finish_within: time from the start of a nightly run to the alert that it has not finished.
        missed: time without a heartbeat after which a run is dead.
        alerts: name of the block that alerts go to.

    Returns:
        A line for each automation, and one when no such block is there.

    Raises:
        ConfigError: nothing answers there, the block can neither notify nor call a webhook, or there are two of it.
    """
    with get_client(sync_client=True) as client:
        try:
            block = _find_block(client, alerts)
            wanted = [mark_dead_runs(missed), rerun_crashed()]
            wanted += [] if block is None else alert_automations(block, finish_within)
            lines = [_ensure(client, one) for one in wanted]
        except httpx.ConnectError:
            raise ConfigError(
                f"no Prefect server answers at PREFECT_API_URL = {PREFECT_API_URL.value()!r}; "
                "start one with `prefect server start`"
            ) from None
    if block is None:
        lines.append(f"no block named {alerts!r} on this server: no alerts; docs/nightly.md says how to make one")
    return lines


def mark_dead_runs(missed: timedelta) -> AutomationCore:
    """Crash a run, or a subflow, whose heartbeats stopped: its process cannot say so any more."""
    return AutomationCore(
        name="tripletune: crash dead runs",
        description=f"Marks a run as crashed {missed.seconds} s after its last heartbeat; that frees its slots.",
        trigger=_trigger(
            {"prefect.flow-run.heartbeat", "prefect.flow-run.Crashed", *_FINISHED},
            related=_OUR_FLOWS,
            after={"prefect.flow-run.heartbeat"},
            posture=Posture.Proactive,
            within=missed,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=f"No heartbeat for {missed.seconds} s.")],
    )


def rerun_crashed() -> AutomationCore:
    """Schedule a crashed nightly run once more, unless it was started three times; it resumes at what is finished."""
    starts = [str(count) for count in range(1, RERUNS + 1)]
    return AutomationCore(
        name="tripletune: run a crashed nightly run again",
        description=f"At most {RERUNS} times; a run that failed, as by a mistake in its config, is not run again.",
        trigger=_trigger({"prefect.flow-run.Crashed"}, {"prefect.run-count": starts}, related=_tag("nightly")),
        actions=[
            ChangeFlowRunState(state=StateType.SCHEDULED, name="AwaitingRetry", message="It crashed; automatic re-run.")
        ],
    )


def alert_automations(block: BlockDocument, finish_within: timedelta) -> list[AutomationCore]:
    """What somebody has to know, each with an action for this block.

    Args:
        block: a webhook, or one that can notify.
        finish_within: as in ``ensure_automations``.
    """
    label = "{{ event.resource['%s'] }}"
    run = f"{{{{ deployment.name }}}} {label % 'prefect.resource.name'}"
    link = "{{ flow_run|ui_url }}"
    why = "{{ event.resource['prefect.state-message']|truncate(500) }}"
    hours = f"{finish_within.total_seconds() / 3600:g} h"
    begun = {f"prefect.flow-run.{state}" for state in ("Late", "Pending", "Running")}
    message = "prefect.state-message"
    # a crash does not end it: the re-run is to finish in the time that began with the first start
    deadline = _trigger(
        set(_FINISHED), related=_tag("nightly"), after=begun, posture=Posture.Proactive, within=finish_within
    )
    alerts = [
        ("crashed", f"{run} (start {label % 'prefect.run-count'}): {why} {link}", _ended("CRASHED")),
        ("failed", f"{run}: {why} {link}", _ended("FAILED", {message: "!*DriftError*"})),
        ("the shards drifted", f"{run}: {why} {link}", _ended("FAILED", {message: "*DriftError*"})),
        (
            "cancelled, the last run is still going",
            f"{run}: {why} {link}",
            _ended("CANCELLED", {message: "Deployment concurrency limit reached*"}),
        ),
        (f"not finished after {hours}", f"{{{{ deployment.name }}}} {{{{ flow_run.name }}}} {link}", deadline),
        (
            "the adapter was not promoted",
            f"{label % 'prefect.resource.name'}: {label % 'tripletune.reason'} {link}",
            EventTrigger(expect={REFUSED}, match={"prefect.resource.id": "tripletune.run.*"}, threshold=1),
        ),
    ]
    return [
        AutomationCore(
            name=f"tripletune alert: {what}" if trigger is not deadline else "tripletune alert: not finished",
            description=f"Goes to the block {block.name}.",
            trigger=trigger,
            actions=[_alert(block, f"tripletune: {what}", body)],
        )
        for what, body, trigger in alerts
    ]


def _ended(state: str, labels: dict[str, str] | None = None) -> EventTrigger:
    """A trigger on a type of state, whatever its name: ``FAILED`` is also ``TimedOut``."""
    labels = {"prefect.state-type": state, **(labels or {})}
    return _trigger({"prefect.flow-run.*"}, labels, related=_tag("tripletune"))


def _trigger(
    expect: set[str], labels: dict[str, Any] | None = None, *, related: dict[str, str], **options: Any
) -> EventTrigger:
    """A trigger on events of flow runs, each by itself."""
    return EventTrigger(
        expect=expect,
        match={"prefect.resource.id": "prefect.flow-run.*", **(labels or {})},
        match_related=related,
        for_each={"prefect.resource.id"},
        threshold=1,
        **options,
    )


def _tag(name: str) -> dict[str, str]:
    return {"prefect.resource.id": f"prefect.tag.{name}"}


def _alert(block: BlockDocument, subject: str, body: str) -> ActionTypes:
    """Call a webhook with ``{"text": ...}``, which Slack and Mattermost take as it is; or notify."""
    assert block.id is not None
    if _kind(block) == "webhook":
        text = f"{{% set text %}}{subject}: {body}{{% endset %}}"
        return CallWebhook(block_document_id=block.id, payload=f'{text}{{"text": {{{{ text|tojson }}}}}}')
    return SendNotification(block_document_id=block.id, subject=subject, body=body)


def _kind(block: BlockDocument) -> str:
    return block.block_type.slug if block.block_type else ""


def _find_block(client: SyncPrefectClient, name: str) -> BlockDocument | None:
    """The block of that name, of whichever type."""
    found: list[BlockDocument] = []
    for offset in range(0, 50 * _PAGE, _PAGE):
        page = client.read_block_documents(offset=offset, limit=_PAGE, include_secrets=False)
        found += [block for block in page if block.name == name]
        if len(page) < _PAGE:
            break
    if len(found) > 1:
        kinds = " and ".join(sorted(_kind(block) for block in found))
        raise ConfigError(f"two blocks are named {name!r}, of types {kinds}; delete one with `prefect block delete`")
    for block in found:
        can_notify = block.block_schema is not None and "notify" in block.block_schema.capabilities
        if _kind(block) != "webhook" and not can_notify:
            raise ConfigError(
                f"the block {name!r} is of type {_kind(block)!r}, which cannot notify; make it a webhook or one of the "
                "notification blocks"
            )
    return found[0] if found else None


def _ensure(client: SyncPrefectClient, wanted: AutomationCore) -> str:
    """Create one automation, or change what differs: a change starts its counts afresh, in mid-run too."""
    # an update sends the fields that were set: all but the owner, which it may not name
    wanted = AutomationCore.model_validate(wanted.model_dump(mode="json", exclude={"owner_resource"}))
    there = client.read_automations_by_name(wanted.name)
    if not there:
        client.create_automation(wanted)
        return f"created: {wanted.name}"
    wanted.enabled = there[0].enabled
    fields = set(AutomationCore.model_fields) - {"owner_resource"}
    if wanted.model_dump(include=fields) == there[0].model_dump(include=fields):
        return f"unchanged: {wanted.name}"
    client.update_automation(there[0].id, wanted)
    return f"updated: {wanted.name}"
