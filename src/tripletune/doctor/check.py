"""A check's outcome: ok, a warning, or what would lose the run, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]
Part = Literal["shards", "finetune", "rank"]
"""Part of a run, as in ``pipeline.stage``."""
PARTS: tuple[Part, ...] = ("shards", "finetune", "rank")
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``tripletune doctor``."""

    name: str
    status: Status
    found: str
    """What is there."""
    advice: str = ""
    """What to do; empty where nothing needs to be done."""

    def __str__(self) -> str:
        return f"{self.name}: {self.found}" + (f"; {self.advice}" if self.advice else "")


def worst(statuses: Iterable[Status]) -> Status:
    """The worst of some outcomes; ok for none."""
    order: tuple[Status, ...] = ("ok", "warn", "fail")
    return max(statuses, key=order.index, default="ok")
