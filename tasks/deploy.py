"""Register the deployments of ``prefect.yaml`` without surprises: ``make deploy``.

``prefect deploy`` does the registering. Before it, this makes the work pools and the limit on tasks with the tag
``gpu``, and reads what is paused on the server, because ``prefect deploy`` alone starts a paused deployment again, and
replaces all schedules where one was made by hand. What people set on the server stays: pauses, schedules of their own,
the limit. A schedule that is new starts active only if the pre-flight of its runs passes here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_URL

from tasks.automations import FINISH_WITHIN, ensure_automations
from tasks.preflight import find_problems
from tasks.session import CHECKOUT
from tripletune.config.presets import load_config
from tripletune.doctor.check import PARTS, Part
from tripletune.errors import ConfigError, UserError

GPU_LIMIT = "tag:gpu"
"""Name of Prefect's limit on the task runs with the tag ``gpu``."""
TIMEOUT = "TRIPLETUNE_TIMEOUT_HOURS"
BY_HAND = "by-hand-"
"""Start of the slug that a schedule made by hand gets: where all have one, Prefect leaves alone those not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Values in place of ``prefect.yaml``'s; an empty one keeps the file's."""

    config: str = ""
    """Of all deployments that name one."""
    cron: str = ""
    timezone: str = ""
    pools: Mapping[str, str] = field(default_factory=dict)
    """By the name in the file."""
    timeout_hours: str = ""
    finish_hours: str = ""
    """A nightly run that takes longer is an alert; empty: ``automations.FINISH_WITHIN``."""
    gpu_limit: int = 0
    """Tasks with the tag ``gpu`` at once; 0: what the server has, or 1."""
    only: tuple[str, ...] = ()
    """Names of the deployments to register; empty: all."""


def describe(chosen: Chosen, file: Path = CHECKOUT / "prefect.yaml") -> dict[str, Any]:
    """The content of ``prefect.yaml`` with the chosen values.

    Raises:
        ConfigError: no such deployment or preset, or Prefect or the flows cannot read the schedule or the hours.
    """
    # through JSON: what the file says once and repeats by an alias must not change twice
    found: dict[str, Any] = json.loads(json.dumps(yaml.safe_load(file.read_text(encoding="utf-8"))))
    names = [one["name"] for one in found["deployments"]]
    for name in chosen.only:
        if name not in names:
            raise ConfigError(f"no deployment {name!r} in {file}; there are {', '.join(names)}")
    found["deployments"] = [one for one in found["deployments"] if not chosen.only or one["name"] in chosen.only]
    if chosen.config:
        load_config(CHECKOUT / chosen.config)  # the folder that the deployments run in
    for one in found["deployments"]:
        pool = one["work_pool"]
        pool["name"] = chosen.pools.get(pool["name"]) or pool["name"]
        if "config" in one.get("parameters", {}):
            one["parameters"]["config"] = chosen.config or one["parameters"]["config"]
        if "parameters" in one:  # not smoke, which is always the same
            environment = pool["job_variables"]["env"]
            environment[TIMEOUT] = _checked_hours("TIMEOUT_HOURS", chosen.timeout_hours or environment[TIMEOUT])
        for schedule in one.get("schedules", []):
            schedule["cron"] = chosen.cron or schedule["cron"]
            schedule["timezone"] = chosen.timezone or schedule["timezone"]
            _check_schedule(schedule["cron"], schedule["timezone"])
    return found


def _checked_hours(variable: str, given: str) -> str:
    try:
        if float(given) > 0:
            return given
    except ValueError:
        pass
    raise ConfigError(f"{variable} = {given!r}: a number of hours above 0, such as 23")


def _check_schedule(cron: str, timezone: str) -> None:
    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValueError:
        raise ConfigError(
            f"CRON = {cron!r} with TZ = {timezone!r} is no schedule; such as CRON='15 4 * * *' TZ=Europe/London"
        ) from None


def ensure_pools(client: SyncPrefectClient, names: Sequence[str]) -> Iterator[str]:
    """Make the work pools that are missing, of type process; a line about each that is made."""
    for name in names:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
            yield f"work pool {name}: made, of type process"


def ensure_gpu_limit(client: SyncPrefectClient, wanted: int) -> str:
    """Create the limit, or set it to the wanted number; 0 keeps that of the server. Returns a line about it."""
    try:
        there = client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit
    except ObjectNotFound:
        there = 0
    limit = wanted or there or 1
    if limit != there:
        client.upsert_global_concurrency_limit_by_name(GPU_LIMIT, limit)
    how = "kept" if limit == there else f"was {there}" if there else "made"
    return f"tag gpu: {limit} task{'' if limit == 1 else 's'} at once ({how})"


def keep_pauses(client: SyncPrefectClient, one: dict[str, Any], before: DeploymentResponse, *, start: bool) -> None:
    """Put into a deployment's description what is paused on the server, and save schedules made by hand.

    Args:
        client: of the server.
        one: entry of ``deployments``, which is changed.
        before: the deployment as the server has it.
        start: whether a schedule that the server does not have is active.
    """
    one["paused"] = before.paused
    with_slug = [schedule for schedule in before.schedules if schedule.slug]
    for schedule in one.get("schedules", []):
        # without any slug the schedule is from before prefect.yaml had slugs, and is replaced
        same = [there for there in with_slug if there.slug == schedule["slug"]] if with_slug else before.schedules
        schedule["active"] = all(there.active for there in same) if same else start
    if with_slug:
        for there in before.schedules:
            if not there.slug:
                client.update_deployment_schedule(before.id, there.id, slug=f"{BY_HAND}{there.id}")


def register(description: Mapping[str, Any]) -> None:
    """Run ``prefect deploy`` on a description.

    Raises:
        UserError: it failed; with its last lines.
    """
    with tempfile.TemporaryDirectory(prefix="tripletune-deploy-") as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(dict(description), sort_keys=False), encoding="utf-8")
        command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        # prefect.yaml's folder of the runs: another one where the workers have the checkout elsewhere
        environment = {"TRIPLETUNE_HOME": str(CHECKOUT), **os.environ}
        done = subprocess.run(
            command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, errors="replace", check=False
        )
    if done.returncode:
        last = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip(" │╭╮╰╯─")][-6:]
        raise UserError(f"prefect deploy failed: {' '.join(last)}")


def deploy(chosen: Chosen) -> Iterator[str]:
    """Register the deployments; lines about what was made, and about each deployment, come as it goes on.

    Raises:
        UserError: a choice is wrong, the server does not answer, or Prefect refuses a deployment.
    """
    description = describe(chosen)
    deployments = description["deployments"]
    full_names = [f"{load_flow_from_entrypoint(one['entrypoint']).name}/{one['name']}" for one in deployments]
    problems = [_problems(one) for one in deployments]
    finish_within = FINISH_WITHIN
    if chosen.finish_hours:
        finish_within = timedelta(hours=float(_checked_hours("FINISH_HOURS", chosen.finish_hours)))
    with _server() as client:
        yield from ensure_pools(client, list(dict.fromkeys(one["work_pool"]["name"] for one in deployments)))
        yield ensure_gpu_limit(client, chosen.gpu_limit)
        befores = [_read(client, name) for name in full_names]
        for one, before, problem in zip(deployments, befores, problems, strict=True):
            if before:
                keep_pauses(client, one, before, start=not problem)
            else:
                for schedule in one.get("schedules", []):
                    schedule["active"] = not problem
        register(description)
        for one, name, before, problem in zip(deployments, full_names, befores, problems, strict=True):
            now = _read(client, name)
            assert now is not None, name
            yield from _say(one, name, before, now, problem)
        # they name deployments, so they come after them
        yield from ensure_automations(finish_within)


def _problems(one: Mapping[str, Any]) -> str:
    """Why runs of a deployment with a schedule would fail their pre-flight here; empty: they pass, or have none."""
    if not one.get("schedules"):
        return ""
    parts: tuple[Part, ...] = ("shards",) if one["entrypoint"].startswith("flows.nightly_pools.") else PARTS
    return find_problems(**one.get("parameters", {}), parts=parts)


def _read(client: SyncPrefectClient, name: str) -> DeploymentResponse | None:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None


def _say(
    one: Mapping[str, Any], name: str, before: DeploymentResponse | None, now: DeploymentResponse, problem: str
) -> Iterator[str]:
    config = now.parameters.get("config")
    was = before.parameters.get("config") if before else config
    changed = f" (was {was})" if was != config else ""
    yield f"{name}: {f'{config}{changed}, ' if config else ''}pool {now.work_pool_name}" + (
        ", paused as before" if now.paused else ""
    )
    wanted = {schedule["slug"] for schedule in one.get("schedules", [])}
    known = {schedule.slug for schedule in before.schedules} if before else set()
    for schedule in now.schedules:
        yield f"  {_when(schedule)}: {_state(schedule, name, schedule.slug in known, problem)}"
        if schedule.slug not in wanted:
            yield (
                "    prefect.yaml does not name this schedule; if it should not run: "
                f"prefect deployment schedule delete {name} {schedule.id}"
            )


def _when(schedule: DeploymentSchedule) -> str:
    given = schedule.schedule
    return f"{given.cron} {given.timezone or 'UTC'}" if isinstance(given, CronSchedule) else str(given)


def _state(schedule: DeploymentSchedule, name: str, is_known: bool, problem: str) -> str:
    resume = f"prefect deployment schedule resume {name} {schedule.id}"
    if schedule.active:
        return f"active, but a run here would fail now: {problem}" if problem else "active"
    if is_known or not problem:
        return f"paused as before; to start it: {resume}"
    return f"paused, because a run here would fail now: {problem}; to start it when that is mended: {resume}"


@contextmanager
def _server() -> Iterator[SyncPrefectClient]:
    try:
        with get_client(sync_client=True) as client:
            yield client
    except httpx.TransportError as error:
        raise UserError(
            f"no Prefect server answers at {PREFECT_API_URL.value()} ({error}); start one (docs/nightly.md), or set "
            "PREFECT_API_URL to its address"
        ) from None
    except httpx.HTTPStatusError as error:
        said = str(error).splitlines()[0]
        raise UserError(f"the Prefect server at {PREFECT_API_URL.value()} refuses ({said}); look at its log") from None


def _read_choices(arguments: Sequence[str] | None) -> Chosen:
    parser = argparse.ArgumentParser(
        prog="make deploy",
        description="Register the deployments of prefect.yaml with the server that PREFECT_API_URL names. Pauses, "
        "schedules made by hand and the limit of the tag gpu stay as they are on the server.",
        epilog="An empty value keeps that of prefect.yaml.",
    )
    parser.add_argument("--config", default="", help="preset of all deployments but smoke (CONFIG=)")
    parser.add_argument("--cron", default="", help="when the nightly run starts, such as '15 4 * * *' (CRON=)")
    parser.add_argument("--timezone", default="", help="of the schedule, such as Europe/London (TZ=)")
    for pool, option in (("tripletune", "--pool"), ("cpu", "--cpu-pool"), ("gpu", "--gpu-pool")):
        parser.add_argument(option, default="", help=f"work pool in place of {pool}; made where it is missing")
    parser.add_argument("--timeout-hours", default="", help="a flow run fails after so long (TIMEOUT_HOURS=)")
    parser.add_argument(
        "--finish-hours", default="", help="a nightly run that takes longer is an alert (FINISH_HOURS=)"
    )
    parser.add_argument("--gpu-limit", default="", help="tasks with the tag gpu at once (GPU_LIMIT=); first: 1")
    parser.add_argument("--only", default="", help="names of some deployments, with spaces between (ONLY=)")
    given = parser.parse_args(arguments)
    if given.gpu_limit and not (given.gpu_limit.isascii() and given.gpu_limit.isdigit() and int(given.gpu_limit)):
        raise ConfigError(f"GPU_LIMIT = {given.gpu_limit!r}: a whole number from 1")
    return Chosen(
        config=given.config,
        cron=given.cron,
        timezone=given.timezone,
        pools={"tripletune": given.pool, "cpu": given.cpu_pool, "gpu": given.gpu_pool},
        timeout_hours=given.timeout_hours,
        finish_hours=given.finish_hours,
        gpu_limit=int(given.gpu_limit or 0),
        only=tuple(given.only.split()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``make deploy``; returns the exit code."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a folder's name may have letters that the locale lacks
    try:
        for line in deploy(_read_choices(arguments)):
            print(line, flush=True)
    except UserError as error:
        print(f"make deploy: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
