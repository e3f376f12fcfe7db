"""Rollback: an earlier version serves again, the one taken back says why, and the next gate compares accordingly."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from tests.flows.conftest import MicroRun
from tests.flows.test_promote import child_run, copied, decide, held, versions
from tripletune.config import RunConfig
from tripletune.errors import UserError
from tripletune.promote.rollback import Rollback, roll_back
from tripletune.store.champion import Standing, standing_champion
from tripletune.tracking import open_registry
from tripletune.versions import Entry, find_version_before, register_version

MODEL = "rolled"


def settings(micro: MicroRun, model: str = MODEL) -> RunConfig:
    config = micro.record.settings()
    return config.model_copy(update={"promote": config.promote.model_copy(update={"registered_model": model})})


def back(micro: MicroRun, why: str = "one film for everybody", model: str = MODEL, **options: Any) -> Rollback:
    config = settings(micro, model)
    return roll_back(micro.root, config, open_registry(config.tracking, micro.root), why=why, **options)


def holders(micro: MicroRun, model: str = MODEL) -> tuple[str, str]:
    """Numbers of the champion and of the best version."""
    return str(held(micro, model).version), str(held(micro, model, "best").version)


def register(micro: MicroRun, model: str, *adapters: str, best: str = "") -> None:
    """Make versions, as promotions do; each is a copy of the run's adapter and nothing else, under a name of its own.

    Args:
        best: number of the version that has held the title since it was made; the first one held it before.
    """
    with child_run(micro, settings(micro, model)) as child:
        for number, adapter in enumerate(adapters, start=1):
            keeps = "" if number == 1 or str(number) == best else "1"
            entry = Entry(
                model=model, description="", tags={"fingerprint": adapter, "run": f"run-{number}"}, metrics={}
            )
            register_version(child, entry, micro.paths.folder("finetune"), best=keeps)


def test_a_champion_is_taken_back_and_what_was_is_compared_with_again(micro: MicroRun) -> None:
    adapters = [letter * 32 for letter in "cde"]
    register(micro, MODEL, *adapters, best="3")
    assert holders(micro) == ("3", "3")
    done = back(micro)
    assert (done.before.number, done.to.number, done.best) == ("3", "2", "1")
    assert holders(micro) == ("2", "1")  # version 1 held the title when 3 was made
    third = next(one for one in versions(micro, MODEL) if str(one.version) == "3")
    assert third.tags["rolled_back.why"] == "one film for everybody"
    assert third.tags["rolled_back.to"] == "2"
    assert "@" in third.tags["rolled_back.by"]
    assert json.loads(done.record.read_text())["why"] == "one film for everybody"
    # what trainings start from is what serves, without asking the registry
    assert standing_champion(micro.root, "micro", MODEL) == Standing(adapters[1], "run-2", False)

    again = decide(micro, copied(micro, "finetune", adapters[2]), "rolled-4", promote={"registered_model": MODEL})
    assert not again["promote"]
    assert again["reason"].startswith("this adapter was rolled back as version 3; train another one, or serve it again")
    decision = decide(micro, micro.paths, "rolled-5", promote={"registered_model": MODEL})
    compared = {one["name"]: one["version"] for one in decision["comparisons"]}
    assert (compared["champion"], compared["best"]) == ("2", "1")
    assert holders(micro) == ("4", "1")

    assert back(micro).to.number == "2", "3 was taken back before"
    assert back(micro).to.number == "1"
    reason = "no version of rolled before 1 is left to go back to; name one with --to: 2, 3, 4"
    with pytest.raises(UserError, match=reason):
        back(micro)
    restored = back(micro, to="3")
    assert (restored.to.number, holders(micro)[0]) == ("3", "3")
    third = next(one for one in versions(micro, MODEL) if str(one.version) == "3")
    assert "rolled_back" not in third.tags


def test_the_title_stays_where_it_was_asked_to(micro: MicroRun) -> None:
    register(micro, "kept", "1" * 32, "2" * 32, best="2")
    back(micro, model="kept", keep_best=True)
    assert holders(micro, "kept") == ("1", "2")


def test_what_cannot_be_rolled_back_is_refused(micro: MicroRun) -> None:
    with pytest.raises(UserError, match="the registry has no champion of single"):
        back(micro, model="single")
    register(micro, "single", "1" * 32)
    for options, reason in (
        ({}, "no version of single before 1 is left to go back to; name one with --to: there is none"),
        ({"to": "1"}, "version 1 of single is the champion already"),
        ({"to": "9"}, "single has no such version; there are 1"),
        ({"why": " "}, "--why is empty"),
    ):
        with pytest.raises(UserError, match=reason):
            back(micro, model="single", **options)
    assert holders(micro, "single") == ("1", "1")
    assert standing_champion(micro.root, "micro", "single") is None


def test_a_version_that_was_taken_back_is_not_the_champion_of_a_week_ago(micro: MicroRun) -> None:
    register(micro, "old", "1" * 32, "2" * 32)
    tracker, tomorrow = open_registry(settings(micro).tracking, micro.root), int(time.time() * 1000) + 10**8
    before = find_version_before(tracker, "old", tomorrow)
    back(micro, model="old")
    after = find_version_before(tracker, "old", tomorrow)
    assert before is not None
    assert after is not None
    assert (before.number, after.number) == ("2", "1")
