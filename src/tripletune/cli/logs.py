"""Our own log on stderr: plain lines, above the live lines of a terminal's screen."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.theme import Theme

from tripletune import progress

FLOW_FORMAT = "%(asctime)s.%(msecs)03d | %(levelname)-7s | %(message)s"
"""As Prefect's own lines, among which ours stand in a run."""


class OwnLines(logging.Handler):
    """Print through the console of the live lines; progress has no lines while it has live ones."""

    def emit(self, record: logging.LogRecord) -> None:
        screen = progress.screen()
        if record.name == progress.__name__ and screen.is_live:
            return
        try:
            screen.console.print(self.format(record), markup=False, highlight=False, emoji=False, soft_wrap=True)
        except Exception:
            self.handleError(record)


def show_own_lines(level: int) -> None:
    """Show our own log from a level on, and leave the root logger alone: Prefect brings its own, libraries stay at
    warnings. Prefect's page has lines from INFO on whatever is shown here."""
    ours = logging.getLogger("tripletune")
    if not any(isinstance(handler, OwnLines) for handler in ours.handlers):
        ours.addHandler(OwnLines())
    for handler in _own_handlers():
        handler.setLevel(level)
    ours.setLevel(min(level, logging.INFO))
    ours.propagate = False
    progress.screen().is_quiet = level > logging.INFO


def _own_handlers() -> list[OwnLines]:
    return [one for one in logging.getLogger("tripletune").handlers if isinstance(one, OwnLines)]


def share_screen_with_prefect() -> None:
    """Print Prefect's lines and ours through one console, from one level on and with the time of day, so that neither
    breaks the other's live lines. To be called when Prefect has set up its logging."""
    for handler in _own_handlers():
        handler.setFormatter(logging.Formatter(FLOW_FORMAT, datefmt="%H:%M:%S"))
        for theirs in logging.getLogger().handlers:
            console = getattr(theirs, "console", None)
            if isinstance(console, Console):
                console.push_theme(Theme())  # Prefect's has no styles for live lines
                progress.screen().console = console
                theirs.setLevel(handler.level)
                theirs.addFilter(_is_not_said_by_us)


def _is_not_said_by_us(line: logging.LogRecord) -> bool:
    """How a flow failed is the last line of the command."""
    return not line.getMessage().startswith("Finished in state Failed")
