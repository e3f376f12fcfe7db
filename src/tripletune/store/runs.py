"""Run records, ``artifacts/runs/<run>.json``: which outputs a run used, and how it ended.

With a shared store a record is pushed there when a flow begins and ends, so that another machine can go on with the run
by its name; of a run that is named, the record there is the newest.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from tripletune.config import RunConfig, StoreConfig, TrackingConfig
from tripletune.config.presets import explain
from tripletune.errors import ConfigError, InputError, MissingArtifactError
from tripletune.store.files import make_folder, write_json
from tripletune.store.objects import PROTOCOLS, holds_secret
from tripletune.store.paths import RunPaths

ASIDE = ("quality", "promote")
"""Stages that a run does not have that stands aside: they compare it with the last run and with the champion."""
SHAPE_NO_OUTPUT = ("promote", "quality", "tracking", "store", "workers")
"""Sections whose settings shape no output that a later command reads."""


class RunRecord(BaseModel):
    """One run: its settings, the fingerprints of its stages and how it went."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    dataset: str
    status: Literal["running", "completed", "failed", "killed"]
    """``killed``: stopped by a signal, or found without a process."""
    started: str
    """UTC, ISO 8601."""
    finished: str = ""
    error: str = ""
    config: dict[str, Any]
    overrides: tuple[str, ...] = ()
    """Settings that were given in place of the preset's, as ``section.key=value``; ``config`` has them."""
    tags: dict[str, str] = {}
    """What the run belongs to, such as ``ablation.set`` and ``ablation.member``."""
    fingerprints: dict[str, str]
    stages: dict[str, str] = {}
    """``made``, ``reused`` or ``failed``, for each stage that this run has reached."""
    commit: str = ""
    """Of the checkout that ran it; empty where that is not known."""
    dirty: bool = False
    """Whether files of the checkout were not committed as they were."""
    mlflow_run_id: str = ""
    mlflow_experiment_id: str = ""

    @property
    def is_aside(self) -> bool:
        """Whether it is a member of an ablation set, or as of a day: no run's predecessor, and taken for the latest run
        only where it is named."""
        return "ablation.set" in self.tags or bool(self.as_of)

    @property
    def as_of(self) -> str:
        """The day (ISO 8601) from which on its ratings and tags do not count; empty: all count."""
        return self.config.get("ingest", {}).get("as_of") or ""

    def settings(self) -> RunConfig:
        """The config the run was started with.

        Of ``SHAPE_NO_OUTPUT`` settings that this version of the package does not have are skipped: what they decided is
        done.

        Raises:
            ConfigError: another version started the run, with a value or a further setting that this one does not have.
        """
        config = dict(self.config)
        for name in SHAPE_NO_OUTPUT:
            if isinstance(section := config.get(name), dict):
                known = type(RunConfig.model_fields[name].default).model_fields
                config[name] = {key: value for key, value in section.items() if key in known}
        try:
            return RunConfig.model_validate(config)
        except ValidationError as error:
            raise ConfigError(
                f"run {self.name} has settings of another version of tripletune: {explain(error, RunConfig)}; use that "
                "version for it, name another run, or run it again with this one"
            ) from None

    def paths(self, root: Path) -> RunPaths:
        """Where the run's outputs are."""
        shared = shared_store(StoreConfig(shared=self.config.get("store", {}).get("shared", "")))
        return RunPaths(root=root, dataset=self.dataset, fingerprints=self.fingerprints, shared=shared)


def tracking_uri(settings: TrackingConfig, root: Path) -> str:
    """The configured MLflow store, the one that ``MLFLOW_TRACKING_URI`` names, or a SQLite file under the root."""
    return settings.uri or os.environ.get("MLFLOW_TRACKING_URI", "") or _sqlite_uri((root / "mlflow.db").resolve())


def _sqlite_uri(path: Path) -> str:
    """Address of an SQLite file. A ? in its path would begin the address's options, so such a path is given in SQLite's
    own, escaped form of an address."""
    return f"sqlite:///file:{quote(str(path))}?uri=true" if "?" in str(path) else f"sqlite:///{path}"


def shared_store(settings: StoreConfig) -> str:
    """Address of the configured shared store, or of the one that ``TRIPLETUNE_SHARED_STORE`` names; empty: none.

    Raises:
        ConfigError: it is no address of object storage, or may hold credentials, and then is not repeated.
    """
    address = settings.shared or os.environ.get("TRIPLETUNE_SHARED_STORE", "")
    where = "store.shared" if settings.shared else "TRIPLETUNE_SHARED_STORE"
    if holds_secret(address):
        raise ConfigError(
            f"{where} has an @, or a ? and later a =, as a password or a signature brings, and settings are logged; "
            "set credentials in the environment or in a profile"
        )
    if address and not re.fullmatch(r"(s3|gs|abfs)://[^/*?\[\s]+(/[^*?\[\s]+)*/?", address):
        raise ConfigError(f"{where} = {address!r}: give a bucket and a folder in it, with one of {PROTOCOLS}")
    return address.rstrip("/")


def run_page(root: Path, record: RunRecord) -> Path:
    """The run's own report, which ``summary`` writes."""
    return root / record.dataset / "report" / record.name / "report.html"


def quality_folder(root: Path, dataset: str, run: str) -> Path:
    """Where a run's ``quality.PAGE`` and ``quality.FIGURES`` are, whether or not they are there."""
    return root / dataset / "quality" / run


def utc_now() -> str:
    """The present second, UTC, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_run_name(root: Path, dataset: str, *, is_shared: bool = False) -> str:
    """Reserve ``<dataset>-<UTC time>``, with a number behind it when two runs start in one second; with a shared store
    also four random digits, as runs of other machines may start in that second."""
    make_folder(root / "runs", "--artifacts")
    base = f"{dataset}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}"
    base += f"-{secrets.token_hex(2)}" if is_shared else ""
    for name in (base, *(f"{base}-{number}" for number in range(2, 1000))):
        try:
            (root / "runs" / f"{name}.json").touch(exist_ok=False)
        except FileExistsError:
            continue
        return name
    raise RuntimeError(f"a thousand runs of {dataset} in one second")


def write_run(root: Path, record: RunRecord) -> None:
    """Write or replace a run's file."""
    make_folder(root / "runs", "--artifacts")
    write_json(root / "runs" / f"{record.name}.json", record.model_dump(mode="json"))


def update_run(root: Path, name: str, *, stage: tuple[str, str] | None = None, **changes: str) -> None:
    """Change fields of a run's file; ``stage`` adds how one stage ended. Parallel stages take turns."""
    with FileLock(root / "runs" / f".{name}.lock"):
        record = local_run(root, name)
        stages = record.stages | (dict([stage]) if stage else {})
        write_run(root, RunRecord.model_validate(record.model_dump() | changes | {"stages": stages}))


def local_run(root: Path, name: str) -> RunRecord:
    """A run of this artifact root as it is recorded here, which is newer than the shared store's while it runs.

    Raises:
        MissingArtifactError: there is no such run.
    """
    return _find(list_runs(root), root, name)


def share_run(root: Path, name: str, address: str) -> None:
    """Push a run's file to the shared store; without an address, do nothing.

    Raises:
        InputError: the store cannot be written.
    """
    if address:
        from tripletune.store.shared import push_run  # imports what only a shared store needs

        push_run(address, root / "runs" / f"{name}.json")


def _fetch_run(address: str, name: str) -> RunRecord | None:
    """The record of a run in the shared store. Its names become paths, so they are checked: it is data from elsewhere.

    Raises:
        InputError: the store cannot be read, or what it holds is no record of this run.
    """
    from tripletune.store.shared import fetch_run

    content = fetch_run(address, name)
    if content is None:
        return None
    try:
        record = RunRecord.model_validate_json(content)
        RunConfig.model_validate({"dataset": record.dataset})  # a name, and no path
        is_plain = all(
            re.fullmatch(r"[a-z][a-z0-9_]*", stage) and re.fullmatch(r"[0-9a-f]{32}", value)
            for stage, value in record.fingerprints.items()
        )
        if record.name != name or not is_plain:
            raise ValueError("its name, a stage or a fingerprint is none")
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{address}/runs/{name}.json is no file of run {name!r} ({reason}); delete it there") from None
    return record


def list_runs(root: Path) -> list[RunRecord]:
    """All runs, oldest first; files that are no run record are skipped."""
    records = []
    for path in (root / "runs").glob("*.json"):
        try:
            records.append(RunRecord.model_validate(json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, ValidationError):
            continue
    return sorted(records, key=lambda record: (record.started, record.name))


def earlier_run(paths: RunPaths, stage: str, *, but: str = "") -> RunRecord | None:
    """The newest other completed run of the same dataset with a finished, different output of a stage.

    Args:
        paths: of the present run.
        stage: whose outputs are compared.
        but: name of the present run.
    """
    for record in reversed(list_runs(paths.root)):
        is_other = record.name != but and record.dataset == paths.dataset and record.status == "completed"
        is_other &= not record.is_aside  # no predecessor of a usual run
        is_other &= stage in record.stages  # a run of another part has the fingerprint, but did not run it
        made_another = record.fingerprints.get(stage, paths.fingerprints[stage]) != paths.fingerprints[stage]
        if is_other and made_another and record.paths(paths.root).is_here(stage):
            return record
    return None


def read_run(root: Path, name: str = "", *, needs: str = "", store: StoreConfig | None = None) -> RunRecord:
    """A run by name, from the shared store where that has it; or the latest one of this artifact root.

    Args:
        root: the artifact root.
        name: of the run; empty takes the latest that is no member of an ablation set.
        needs: a stage whose output must be here for a run to count as the latest.
        store: settings of the shared store; None: those of the environment alone.

    Raises:
        MissingArtifactError: there is no such run; the message names those of a similar name, or the latest.
        InputError, ConfigError: the shared store cannot be read, or its address is wrong.
    """
    address = shared_store(store or StoreConfig()) if name else ""
    if address and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        found = _fetch_run(address, name)
        if found is not None:
            return found
    return _find(list_runs(root), root, name, needs, address)


def _find(records: list[RunRecord], root: Path, name: str, needs: str = "", address: str = "") -> RunRecord:
    """One of these records, oldest first, as ``read_run`` says."""
    for record in reversed(records):
        is_latest = not name and not record.is_aside and (not needs or record.paths(root).is_here(needs))
        if record.name == name or is_latest:
            return record
    places = f"{root} or {address}" if address else root
    advice = f"make one with: tripletune run --artifacts {root}"
    if not records and address:
        raise MissingArtifactError(f"no run {name!r} in {places}; give the name that the machine that began it printed")
    if not records:
        raise MissingArtifactError(f"no run in {places} yet (outputs of single stages are not a run); {advice}")
    near = difflib.get_close_matches(name, [record.name for record in reversed(records)], n=3) if name else []
    if near:
        raise MissingArtifactError(f"no run {name!r} in {places}; did you mean {', '.join(near)}?")
    known = ", ".join(record.name for record in records[-5:])
    wanted = f"run {name!r}" if name else f"run with a finished '{needs}'"
    raise MissingArtifactError(f"no {wanted} in {places}; runs there: {known}; or {advice}")
