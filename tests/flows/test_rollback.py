"""Rollback: an earlier version serves again, the one taken back says why, and the next gate compares accordingly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.flows.conftest import MicroRun
from tests.flows.test_promote import copied, decide, held, versions
from tripletune.config import RunConfig
from tripletune.errors import UserError
from tripletune.promote.rollback import Rollback, roll_back
from tripletune.store.champion import Standing, standing_champion
from tripletune.tracking import open_registry

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


@pytest.fixture(scope="module")
def three(micro: MicroRun) -> list[Any]:
    """Runs whose adapters are versions 1 to 3 of ``MODEL``; the third is called the best."""
    runs = [micro.paths, copied(micro, "finetune", "d1" * 16), copied(micro, "finetune", "d2" * 16)]
    for number, paths in enumerate(runs, start=1):
        assert decide(micro, paths, f"rolled-{number}", promote={"registered_model": MODEL})["promote"]
    client = open_registry(micro.record.settings().tracking, micro.root).client()
    client.set_registered_model_alias(MODEL, "best", "3")
    return runs


def test_a_champion_is_taken_back_and_what_was_is_compared_with_again(micro: MicroRun, three: list[Any]) -> None:
    assert holders(micro) == ("3", "3")
    done = back(micro)
    assert (done.before.number, done.to.number, done.best) == ("3", "2", "1")
    assert holders(micro) == ("2", "1")  # version 1 held the title when 3 was promoted
    third = next(one for one in versions(micro, MODEL) if str(one.version) == "3")
    assert third.tags["rolled_back.why"] == "one film for everybody"
    assert third.tags["rolled_back.to"] == "2"
    assert "@" in third.tags["rolled_back.by"]
    assert json.loads(done.record.read_text())["why"] == "one film for everybody"
    # what trainings start from is what serves, without asking the registry
    standing = standing_champion(micro.root, "micro", MODEL)
    assert standing is not None
    assert standing.fingerprint == "d1" * 16

    again = decide(micro, three[2], "rolled-4", promote={"registered_model": MODEL})
    assert not again["promote"]
    assert again["reason"].startswith("this adapter was rolled back as version 3; train another one, or serve it again")
    fourth = copied(micro, "finetune", "d3" * 16)
    decision = decide(micro, fourth, "rolled-5", promote={"registered_model": MODEL})
    compared = {one["name"]: one["version"] for one in decision["comparisons"]}
    assert (compared["champion"], compared["best"]) == ("2", "1")
    assert holders(micro) == ("4", "1")

    assert back(micro).to.number == "2", "3 was taken back before"
    assert back(micro).to.number == "1"
    with pytest.raises(
        UserError, match="no version of rolled before 1 is left to go back to; name one with --to: 2, 3, 4"
    ):
        back(micro)
    restored = back(micro, to="3")
    assert (restored.to.number, holders(micro)[0]) == ("3", "3")
    third = next(one for one in versions(micro, MODEL) if str(one.version) == "3")
    assert "rolled_back" not in third.tags


def test_the_title_stays_where_it_was_asked_to(micro: MicroRun) -> None:
    named = {"registered_model": "kept"}
    decide(micro, micro.paths, "kept-1", promote=named)
    decide(micro, copied(micro, "finetune", "d5" * 16), "kept-2", promote=named)
    open_registry(settings(micro).tracking, micro.root).client().set_registered_model_alias("kept", "best", "2")
    back(micro, model="kept", keep_best=True)
    assert holders(micro, "kept") == ("1", "2")


def test_what_cannot_be_rolled_back_is_refused(micro: MicroRun) -> None:
    named = {"registered_model": "single"}
    with pytest.raises(UserError, match="the registry has no champion of single"):
        back(micro, model="single")
    decide(micro, micro.paths, "single-1", promote=named)
    for options, reason in (
        ({}, "no version of single before 1 is left to go back to; name one with --to: there is none"),
        ({"to": "1"}, "version 1 of single is the champion already"),
        ({"to": "9"}, "single has no such version; there are 1"),
        ({"why": " "}, "--why is empty"),
    ):
        with pytest.raises(UserError, match=reason):
            back(micro, model="single", **options)
    assert holders(micro, "single") == ("1", "1")
    assert isinstance(standing_champion(micro.root, "micro", MODEL), Standing | None)


def test_a_version_that_was_taken_back_is_not_the_champion_of_a_week_ago(micro: MicroRun, monkeypatch: Any) -> None:
    import time

    named = {"registered_model": "old"}
    decide(micro, micro.paths, "old-1", promote=named)
    decide(micro, copied(micro, "finetune", "d6" * 16), "old-2", promote=named)
    back(micro, model="old")
    now = time.time
    monkeypatch.setattr("tripletune.promote.references.time.time", lambda: now() + 8 * 24 * 60 * 60)
    decision = decide(micro, copied(micro, "finetune", "d7" * 16), "old-3", promote=named)
    compared = {one["name"]: one["version"] for one in decision["comparisons"]}
    assert compared == {"champion": "1", "best": "1", "earlier": "1", "retriever": "", "untuned": ""}
