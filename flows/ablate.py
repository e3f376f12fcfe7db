"""Run an ablation set: its base and members from shared outputs, each a run of its own, and one table at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.task_runners import ThreadPoolTaskRunner

from flows import TIMEOUT_SECONDS
from tasks.session import open_session
from tasks.stages import run_part
from tripletune.ablate.plan import Planned, plan_set
from tripletune.ablate.results import collect, counted, difference_metrics, said, write_results
from tripletune.ablate.run import ID, SET, begun_run, refuse_failures, run_set
from tripletune.ablate.sets import find_config, load_set
from tripletune.store.runs import ASIDE
from tripletune.tracked_results import ablation_run, log_ablation
from tripletune.tracking import PARENT


@flow(
    name="tripletune-ablation-member",
    flow_run_name="{member}",
    task_runner=ThreadPoolTaskRunner(max_workers=2),
)
def ablation_member(
    member: str,
    config: str,
    movielens: str,
    imdb: str,
    artifacts: str,
    set: list[str],
    belongs: dict[str, str],
) -> str:
    """Run the stages of one member, none of which is promoted or measured against the last run; returns its name."""
    with open_session(
        config, movielens=movielens, imdb=imdb, artifacts=artifacts, overrides=set, belongs=belongs
    ) as session:
        for part in ("shards", "finetune", "rank"):
            run_part(session, part, skip=ASIDE)
        return session.run


@flow(name="tripletune-ablate", timeout_seconds=TIMEOUT_SECONDS)
def ablate(
    set_file: str,
    config: str = "",
    movielens: str = "",
    imdb: str = "",
    artifacts: str = "artifacts",
    set: list[str] | None = None,
    members: list[str] | None = None,
) -> str:
    """Run every member of a set that has not finished, compare them with the base, and return the results' folder.

    Args:
        set_file: the set, a TOML file.
        config: the base preset; empty: the one that the set names.
        movielens, imdb, artifacts: as in ``nightly``.
        set: settings of the base and all members, each as ``section.key=value``.
        members: names of the members to run; None: all.

    Raises:
        UserError: the set, a setting or an input is wrong: nothing was started. MemberFailed: members failed; the
            others were run and compared.
    """
    found, log = load_set(Path(set_file)), get_run_logger()
    preset = find_config(found, Path(set_file), config)
    plan = plan_set(
        found,
        Path(set_file).stem,
        preset,
        Path(artifacts),
        movielens=movielens,
        imdb=imdb,
        overrides=set or (),
        only=members or (),
    )

    def run_member(one: Planned, belongs: Mapping[str, str]) -> str:
        return ablation_member(one.name, str(preset), movielens, imdb, artifacts, list(one.overrides), dict(belongs))

    tags = {SET: plan.name, ID: plan.id}
    with ablation_run(plan.base.settings, Path(artifacts), plan.id, tags, begun_run(plan)) as tracker:
        outcomes = run_set(plan, run_member, {PARENT: tracker.parent_run_id})
        results = collect(plan, outcomes)
        files = write_results(plan.folder, results)
        log_ablation(tracker, files, difference_metrics(results))
        create_markdown_artifact(files[1].read_text(encoding="utf-8"), key="tripletune-ablation", description=plan.id)
        for sentence in (*said(results), counted(outcomes)):
            log.info("%s", sentence)
        refuse_failures(outcomes, plan.folder)
    return str(plan.folder)
