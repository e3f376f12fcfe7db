"""What a run puts on its page in Prefect besides its log: names, progress, links and the promotion's verdict."""

from __future__ import annotations

import contextvars
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.runtime import flow_run

from tripletune.config.presets import load_config
from tripletune.errors import UserError
from tripletune.progress import Reached, watched_by
from tripletune.promote.pages import NUMBERS, decision_rows
from tripletune.promote.pages import headline as verdict
from tripletune.tracking import Tracker, without_password

log = logging.getLogger("tripletune.tasks")


def name_flow_run() -> str:
    """Name of a flow run: the run it goes on with, or the dataset and the time at which it was to start."""
    given = flow_run.parameters or {}
    if given.get("run"):
        return f"{given['run']} {str(flow_run.flow_name).removeprefix('tripletune-')}"
    config = given.get("config") or ""
    try:
        dataset = load_config(Path(config), given.get("set") or ()).dataset
    except UserError:  # the run itself says what is wrong
        dataset = Path(config).stem
    return f"{dataset} {flow_run.scheduled_start_time:%Y-%m-%d %H:%M}"


@contextmanager
def progress_on_page() -> Iterator[None]:
    """Show the progress of the work inside the block as artifacts of the task run."""
    page = _ProgressPage()
    try:
        with watched_by(page.note):
            yield
    finally:
        page.close()


class _ProgressPage:
    """Hands the newest progress of each piece of work to the server from a thread of its own: a server that is slow or
    down must not hold up the work, and what it misses is soon out of date."""

    def __init__(self) -> None:
        self._waiting: dict[str, Reached] = {}
        self._artifacts: dict[str, UUID] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None

    def note(self, reached: Reached) -> None:
        """Keep what is to be shown, and return at once."""
        with self._changed:
            self._waiting[reached.what] = reached
            if self._thread is None:
                context = contextvars.copy_context()  # says which task run the artifacts belong to
                self._thread = threading.Thread(
                    target=context.run, args=(self._deliver,), daemon=True, name="tripletune-progress"
                )
                self._thread.start()
            self._changed.notify()

    def close(self, patience: float = 5.0) -> None:
        """Deliver what is left, for at most ``patience`` seconds."""
        if self._thread is None:
            return
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(patience)

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                _, reached = self._waiting.popitem()
            try:
                self._show(reached)
            except Exception as error:
                log.debug("progress is not on Prefect's page: %s", error)

    def _show(self, reached: Reached) -> None:
        known = self._artifacts.get(reached.what)
        if known is None:
            self._artifacts[reached.what] = create_progress_artifact(reached.percent, description=str(reached))
        else:
            update_progress_artifact(known, reached.percent, description=str(reached))


def link_run(tracker: Tracker, text: str, pages: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Put what the run was and showed on the page, with where its pages are.

    Args:
        tracker: of the run.
        text: Markdown.
        pages: artifacts of the run in MLflow, by what they are called.
        files: the same pages on the disk of the machine that ran, by what they are called.
    """
    lines = [text, ""]
    if tracker.uri.startswith("http"):
        links = {"MLflow run": tracker.url(), **{label: tracker.url(path) for label, path in pages.items()}}
        lines += [f"- [{label}]({url})" for label, url in links.items()]
        for label, url in links.items():
            create_link_artifact(url, link_text=label, key=_key(label), description=label)
    else:
        lines += [f"- MLflow run `{tracker.parent_run_id}` in `{without_password(tracker.uri)}`"]
    lines += [f"- {label}: `{path.resolve()}`" for label, path in files.items()]
    create_markdown_artifact("\n".join(lines), key="tripletune-run", description="What the run is, and its pages")


def show_verdict(decision: Mapping[str, Any], run: str) -> None:
    """Put the promotion's verdict on the page, with every comparison.

    Args:
        decision: as ``decision.json`` has it.
        run: name of the run.
    """
    head = ["compared with", "version", *NUMBERS, "users", "verdict", "why skipped"]
    rows = [
        [
            *(row.name, row.version),
            *(getattr(row, name) for name in NUMBERS),
            *(row.users, row.verdict, "" if row.difference else row.reason),
        ]
        for row in decision_rows(decision)
    ]
    table = [head, ["---"] * len(head), *rows] if rows else []
    lines = [f"**{verdict(decision)}**", "", *(f"| {' | '.join(cells)} |" for cells in table)]
    create_markdown_artifact("\n".join(lines), key="tripletune-promotion", description=run)


def _key(label: str) -> str:
    """Prefect takes small letters, digits and dashes."""
    return f"tripletune-{re.sub(r'[^a-z0-9]+', '-', label.lower())}"
