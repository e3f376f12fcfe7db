"""Planted models are found out: what each relies on is known beforehand."""

from __future__ import annotations

import math

import polars as pl
import pytest
from scipy.stats import binomtest

from tests.probe_cases import (
    all_but_hint_2,
    always_a,
    examples_of,
    frame_of,
    hint_2_alone,
    planted,
    probe,
)
from tripletune.config import ProbeConfig
from tripletune.errors import InputError
from tripletune.probe.inputs import Inputs, rendered_as_published
from tripletune.probe.summary import say_places, say_reliance, summarise_logs
from tripletune.schemas.probe import (
    FACT_CHANGES,
    FACT_CHANGES_NAME,
    PROBED,
    RELIANCE,
    RELIANCE_NAME,
    STABILITY,
    STABILITY_NAME,
)

ALL = ["dislikes", "hint 1", "hint 2", "likes", "nothing", "other films' facts"]


def summary(logs: dict[str, pl.DataFrame]) -> pl.DataFrame:
    return summarise_logs(logs, confidence=0.95, resamples=100, seed=1)


def moved(logs: dict[str, pl.DataFrame]) -> set[str]:
    """Parts without which some distribution is another."""
    rows = logs[RELIANCE_NAME]
    assert sorted(rows["part"].unique()) == ALL
    assert (rows["change"].abs() > 1e-9).any() == (rows["distance"] > 1e-9).any()
    return set(rows.filter(pl.col("distance") > 1e-9)["part"])


def test_a_model_that_ignores_hint_2_shows_no_change_without_it_and_is_named() -> None:
    logs = probe(planted(all_but_hint_2))
    assert moved(logs) == {"likes", "dislikes", "hint 1"}
    about_hint_2 = logs[RELIANCE_NAME].filter(pl.col("part").is_in(["hint 2", "other films' facts"]))
    assert about_hint_2.height > 15
    assert about_hint_2.select((pl.col("change", "distance") == 0).all(), ~pl.col("first_changed").any()).row(0) == (
        True,
        True,
        True,
    )
    assert (logs[FACT_CHANGES_NAME]["change"] == 0).all()
    assert say_reliance(summary(logs)) == [
        "tuned on test: its answers change with dislikes, hint 1 and likes, not with hint 2 and other films' facts"
    ]


def test_a_model_that_always_answers_a_relies_on_nothing_and_orders_the_places() -> None:
    logs = probe(planted(always_a), settings=ProbeConfig(users=99, facts=0))
    assert moved(logs) == set()
    assert say_reliance(summary(logs)) == ["tuned on test: nothing in the prompt changes its answers"]
    steady = logs[STABILITY_NAME]
    reshuffled = steady.filter(pl.col("perturbation") == "candidates-reshuffled")
    assert (reshuffled["tau_by_place"] == 1.0).all()
    assert abs(reshuffled["tau"].mean()) < 0.2  # type: ignore[arg-type, operator]  # a mean of numbers
    assert reshuffled["first_changed"].mean() > 0.8  # type: ignore[operator]
    assert (steady.filter(pl.col("perturbation") != "candidates-reshuffled")["tau"] == 1.0).all()
    assert say_places(summary(logs))[0].startswith(
        "tuned on test: its order follows the places shown and not the films (tau "
    )


def test_a_model_that_relies_on_hint_2_alone_is_found() -> None:
    logs = probe(planted(hint_2_alone))
    assert moved(logs) == {"hint 2", "other films' facts"}
    assert say_reliance(summary(logs)) == [
        "tuned on test: its answers change with hint 2 and other films' facts, not with dislikes, hint 1 and likes"
    ]
    facts = logs[FACT_CHANGES_NAME]
    about_candidates = facts.join(
        examples_of("letters").select("example_id", movie_id="candidates").explode("movie_id"),
        on=["example_id", "movie_id"],
        how="semi",
    )
    assert about_candidates.height > 5
    assert (about_candidates["distance"] > 0).all()
    about_likes = facts.join(about_candidates, on=["example_id", "movie_id"], how="anti")
    assert about_likes.height > 3
    assert (about_likes["change"] == 0).all()
    steady = logs[STABILITY_NAME].filter(pl.col("perturbation") == "candidates-reshuffled")
    assert (steady["tau"] > 0.99).all()
    assert say_places(summary(logs)) == []


def test_a_part_that_moves_no_more_than_the_control_changes_nothing() -> None:
    """As with bfloat16: another batch moves the distribution too."""
    lines = [("nothing", 0.004), ("hint 1", 0.007), ("hint 2", 0.009)]
    rows = [("test", "tuned", "part", name, "distance", value, None, None, 9, 9) for name, value in lines]
    said = say_reliance(pl.DataFrame(rows, schema=PROBED, orient="row"))
    assert said == ["tuned on test: its answers change with hint 2, not with hint 1"]


def test_the_share_of_changed_first_answers_has_an_exact_interval_with_one_prompt_of_each_user() -> None:
    """One user of seven changes the answer to one of two prompts: that is no share of users."""
    key = {"purpose": "test", "system": "tuned", "cutoff": 1, "tau": 0.5, "tau_by_place": None, "kept": 1.0}
    rows = [
        key | {"example_id": f"{user}:{part}", "user_id": user, "perturbation": part, "first_changed": user == changed}
        for part, changed, users in (("never", 9, range(7)), ("once", 3, range(7)), ("half", 3, (*range(7), 3)))
        for user in users
    ]
    rows[-1]["first_changed"] = False
    logs = {RELIANCE_NAME: RELIANCE.to_frame(), FACT_CHANGES_NAME: FACT_CHANGES.to_frame()}
    found = summarise_logs(
        {**logs, STABILITY_NAME: pl.DataFrame(rows, schema=STABILITY)}, confidence=0.95, resamples=500, seed=1
    ).filter(measure="first_changed")
    lines = {line["name"]: line for line in found.to_dicts()}
    for name, hits in (("never", 0), ("once", 1)):
        exact = binomtest(hits, 7).proportion_ci(0.95, method="exact")
        assert (lines[name]["low"], lines[name]["high"]) == pytest.approx((exact.low, exact.high))
    assert lines["half"]["value"] == pytest.approx(1 / 14)
    assert lines["half"]["high"] < 0.4


def test_the_change_is_that_of_the_right_answers_log_probability() -> None:
    """A model to which a fact about a film is worth one: softmax by hand, against the even one without facts."""

    def told(text: str, title: str, place: int) -> float:
        return float(f"- {title} - " in text)

    logs = probe(planted(told), settings=ProbeConfig(users=99, facts=0, perturbations=()))
    examples = {row["example_id"]: row for row in examples_of("letters").to_dicts()}
    rows = logs[RELIANCE_NAME].filter(pl.col("part") == "hint 2")
    assert rows.height > 10
    for row in rows.to_dicts():
        example = examples[row["example_id"]]
        about = {fact["movie_id"] for fact in example["triples"]} & {*example["candidates"]}
        right = float(example["answers"][0] in about)
        total = sum(math.exp(film in about) for film in example["candidates"])
        want = right - math.log(total) + math.log(len(example["candidates"]))
        assert row["change"] == pytest.approx(want, abs=1e-6)
        assert row["before"] == pytest.approx(right - math.log(total), abs=1e-6)


@pytest.mark.parametrize("template", ["letters", "compact", "hints-first", "japanese", "published", "likes-only"])
def test_prompts_are_rendered_again_from_what_they_show(template: str) -> None:
    examples = examples_of(template)
    made = rendered_as_published(Inputs.of(examples, frame_of(template)), examples)
    assert made.drop("shortened", "num_tokens").equals(examples.drop("shortened", "num_tokens"))


def test_a_prompt_that_is_not_rendered_again_is_refused() -> None:
    examples = examples_of("letters")
    with pytest.raises(InputError, match=r"the prompt of example 1:test is not rendered again as it was published"):
        rendered_as_published(Inputs.of(examples, frame_of("hints-first")), examples)
