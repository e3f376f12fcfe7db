"""Rollback: serve an earlier version again, and say on the version that was taken back who did it and why."""

from __future__ import annotations

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from tripletune.config import RunConfig
from tripletune.errors import UserError
from tripletune.store.champion import PROMOTE, model_name, write_rollback
from tripletune.store.runs import utc_now
from tripletune.tracking import Tracker
from tripletune.versions import BEST, ROLLED_BACK, Version, find_version, list_versions, move_champion


@dataclass(frozen=True, slots=True)
class Rollback:
    """What was done."""

    model: str
    before: Version
    to: Version
    best: str
    """Number of the version that later adapters are held to."""
    record: Path


def roll_back(
    root: Path, config: RunConfig, tracker: Tracker, *, why: str, to: str = "", keep_best: bool = False
) -> Rollback:
    """Move the champion alias back, and mark the version that held it.

    The version that is taken back can't be the best one any more, nor the champion of a week ago: what later adapters
    are held to must not be what was found wanting.

    Args:
        root: the artifact root; the step is written there for trainings that start from the champion.
        config: names the model.
        tracker: the store with the registry.
        why: reason, a sentence for whoever reads the registry.
        to: number of the version; empty: the newest one before the champion that was not rolled back.
        keep_best: leave the title of best version where it is, even if the version that is taken back holds it.

    Raises:
        UserError: there is no champion, no such version, or nothing before it; or no reason is given.
    """
    if not why.strip():
        raise UserError("--why is empty; say in a sentence why the champion is taken back")
    model = model_name(config)
    before = find_version(tracker, model)
    if before is None:
        raise UserError(f"the registry has no champion of {model}; promote one with: tripletune promote")
    target = _target(list_versions(tracker, model), before, to, model)
    best = find_version(tracker, model, BEST)
    number = target.number if best is None else best.number
    if best and best.number == before.number and not keep_best:
        number = _best_without(before, target, list_versions(tracker, model))
    when, who = utc_now(), _who()
    tags = {
        ROLLED_BACK: when,
        f"{ROLLED_BACK}.by": who,
        f"{ROLLED_BACK}.why": why.strip(),
        f"{ROLLED_BACK}.to": target.number,
    }
    move_champion(tracker, model, before, target, number, tags)
    step = {
        "model": model,
        "from": before.number,
        "to": target.number,
        "adapter": target.fingerprint,
        "champion_before": before.fingerprint,
        "run": target.run,
        "best": number,
        "by": who,
        "why": why.strip(),
        "decided": when,
    }
    record = write_rollback(root / config.dataset / PROMOTE, step)
    return Rollback(model, before, target, number, record)


def _who() -> str:
    """User and machine; the number of a user that has no name, as in a container."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # KeyError up to Python 3.12
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _target(versions: list[Version], before: Version, to: str, model: str) -> Version:
    by_number = {one.number: one for one in versions}
    if to:
        if to == before.number:
            raise UserError(f"--to {to}: version {to} of {model} is the champion already")
        if to not in by_number:
            raise UserError(f"--to {to!r}: {model} has no such version; there are {', '.join(by_number)}")
        return by_number[to]
    earlier = [one for one in versions if int(one.number) < int(before.number) and not one.is_rolled_back]
    if not earlier:
        raise UserError(
            f"no version of {model} before {before.number} is left to go back to; name one with --to: "
            f"{', '.join(number for number in by_number if number != before.number) or 'there is none'}"
        )
    return earlier[-1]


def _best_without(before: Version, target: Version, versions: list[Version]) -> str:
    """The version that held the title before the one that is taken back, if it still may; else the new champion."""
    kept = {one.number for one in versions if not one.is_rolled_back}
    return before.best_before if before.best_before in kept - {before.number} else target.number
