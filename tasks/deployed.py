"""Run a deployment, which a worker of another work pool serves, and wait for its end."""

from __future__ import annotations

from prefect import get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound

from tasks.automations import RERUNS
from tripletune.errors import UserError


def run_deployed(deployment: str, **parameters: str) -> None:
    """Start a deployment as a subflow, and wait until it has completed; without a worker, until one starts.

    One that crashed, as when its worker was killed, is started again, at most twice: it resumes.

    Args:
        deployment: ``<flow>/<deployment>``.
        parameters: of its flow, in place of the deployment's own.

    Raises:
        UserError: there is no such deployment, or it did not complete; the message names its flow run.
    """
    for _ in range(RERUNS + 1):
        done = _run_once(deployment, parameters)
        if done.state is None or not done.state.is_crashed():
            break
        get_run_logger().warning("%s crashed (flow run %s)", deployment, done.name)
    if done.state is None or not done.state.is_completed():
        how = done.state.name.lower() if done.state else "without a state"
        raise UserError(
            f"{deployment} ended {how} (flow run {done.name}, {done.id}); its log says why, and the same run can be "
            "gone on with"
        )


def _run_once(deployment: str, parameters: dict[str, str]) -> FlowRun:
    try:
        return run_deployment(deployment, parameters=parameters)
    except ObjectNotFound:
        raise UserError(
            f"no deployment {deployment!r} on this Prefect server; register it with `make deploy`"
        ) from None
