"""What is changed in a prompt, and that nothing else is."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from tests.probe_cases import SEED, examples_of, frame_of, pool
from tripletune.config import ProbeConfig
from tripletune.probe.counterfactual import FactPool
from tripletune.probe.inputs import Inputs
from tripletune.probe.paraphrase import paraphrase
from tripletune.probe.parts import draw_facts, parts_of
from tripletune.probe.perturb import _moved, perturbations_of
from tripletune.prompts.template import load_template, shipped
from tripletune.schemas.query import QUERY_KEY

EVERY = ProbeConfig().perturbations
KEPT = ("answers", "candidates", "retrieved", "liked", "disliked", "ranking", "similar", "triples")


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs.of(examples_of("letters"), frame_of("letters"))


@pytest.fixture(scope="module")
def whole(inputs: Inputs) -> pl.DataFrame:
    return inputs.render()


def changed(whole: pl.DataFrame, other: pl.DataFrame) -> set[str]:
    return {name for name in KEPT if not whole[name].equals(other[name])}


@pytest.mark.parametrize(
    ("title", "other"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Trial, The (Procès, Le) (1962)", "The Trial (Procès, Le) (1962)"),
        ("Good, the Bad and the Ugly, The (1966)", "The Good, the Bad and the Ugly (1966)"),
        ("Heat (1995)", "Heat (1995)"),
        ("Theory of Everything (2014)", "Theory of Everything (2014)"),
        ("Beautiful Mind, A", "A Beautiful Mind"),
    ],
)
def test_an_article_is_moved_to_the_other_end_of_the_title_and_back(title: str, other: str) -> None:
    assert _moved(title) == other
    assert _moved(other) == title


def test_titles_without_their_year_stay_distinct(inputs: Inputs) -> None:
    titles = pl.DataFrame({"movie_id": [1, 2, 3], "display": ["Heat (1986)", "Heat (1995)", "Alien"]})
    given = inputs.with_changed(frame=replace(inputs.frame, titles=titles.cast({"movie_id": pl.Int32})))
    without = perturbations_of(("years-missing",), given)["years-missing"](given)
    assert without.frame.titles["display"].to_list() == ["Heat [1]", "Heat [2]", "Alien"]


def test_one_like_goes_with_its_facts_and_nothing_else(inputs: Inputs, whole: pl.DataFrame) -> None:
    other = perturbations_of(EVERY, inputs)["like-removed"](inputs).render()
    assert changed(whole, other) == {"liked", "triples"}
    for before, after in zip(whole.to_dicts(), other.to_dicts(), strict=True):
        gone = {*before["liked"]} - {*after["liked"]}
        assert len(gone) == min(1, len(before["liked"]))
        assert after["liked"] == [film for film in before["liked"] if film not in gone]
        assert after["triples"] == [fact for fact in before["triples"] if fact["movie_id"] not in gone]


def test_a_shuffled_history_has_the_same_films_and_facts(inputs: Inputs, whole: pl.DataFrame) -> None:
    other = perturbations_of(EVERY, inputs)["history-shuffled"](inputs).render()
    assert changed(whole, other) == {"liked", "disliked", "triples"}
    for name in ("liked", "disliked"):
        assert other[name].list.sort().equals(whole[name].list.sort())
    for before, after in zip(whole["triples"].to_list(), other["triples"].to_list(), strict=True):
        assert sorted(map(str, before)) == sorted(map(str, after))


def test_reshuffled_candidates_are_the_same_films_under_the_same_labels(inputs: Inputs, whole: pl.DataFrame) -> None:
    other = perturbations_of(EVERY, inputs)["candidates-reshuffled"](inputs).render()
    assert changed(whole, other) == {"candidates", "triples"}  # facts follow the order of the candidates
    assert other["candidates"].list.sort().equals(whole["candidates"].list.sort())
    assert other["candidate_letters"].equals(whole["candidate_letters"])


def test_candidates_in_the_retrievers_order_are_not_reshuffled(inputs: Inputs) -> None:
    settings = inputs.frame.settings.model_copy(update={"candidate_order": "retrieved"})
    ordered = inputs.with_changed(frame=replace(inputs.frame, settings=settings))
    assert set(perturbations_of(EVERY, ordered)) == {*EVERY} - {"candidates-reshuffled"}


@pytest.mark.parametrize("name", shipped())
def test_each_english_template_has_a_paraphrase_with_the_same_slots_and_format(name: str) -> None:
    template = load_template(name)
    other = paraphrase(template)
    if template.language != "en":
        assert other is None
        return
    assert other is not None
    assert (other.slots, other.inline, other.wording) == (template.slots, template.inline, template.wording)
    assert other.system != template.system
    assert sum(a != b for a, b in zip(template.texts, other.texts, strict=True)) >= 2
    assert "viewer liked" not in other.system + "".join(other.texts).replace("similar viewers liked", "")
    assert other.texts[-1].split("Answer with")[1] == template.texts[-1].split("Answer with")[1]


def test_a_foreign_fact_has_the_same_relation_and_is_not_the_films_own(inputs: Inputs, whole: pl.DataFrame) -> None:
    facts = pool()
    other = facts.swap(inputs).render()
    assert changed(whole, other) == {"triples"}
    own = {tuple(row) for row in facts.owned.iter_rows()}
    swapped = 0
    for before, after in zip(whole["triples"].to_list(), other["triples"].to_list(), strict=True):
        assert [(fact["movie_id"], fact["relation"]) for fact in before] == [
            (fact["movie_id"], fact["relation"]) for fact in after
        ]
        for old, new in zip(before, after, strict=True):
            swapped += old != new
            assert old == new or (new["movie_id"], new["relation"], new["entity"]) not in own
    assert swapped > 25
    assert facts.swap(inputs).choices.equals(facts.swap(inputs).choices)


def test_a_fact_stays_where_no_other_film_has_one_of_its_relation(inputs: Inputs) -> None:
    alone = FactPool.of(
        pl.DataFrame({"movie_id": [1], "relation": ["genre"], "entity": ["x"], "entity_name": ["X"]}), 1
    )
    assert (
        alone.swap(inputs)
        .choices.filter(pl.col("relation") != "genre")
        .equals(inputs.choices.filter(pl.col("relation") != "genre"))
    )


def test_draws_of_facts_are_nested_and_say_how_likely_they_were(inputs: Inputs) -> None:
    few, many = (pl.concat(draw.facts for draw in draw_facts(inputs, most, SEED)) for most in (2, 5))
    key = [*QUERY_KEY, "movie_id", "rank"]
    assert few.join(many, on=key, how="anti").is_empty()
    assert few.select(key).is_unique().all()
    shown = inputs.choices.group_by(QUERY_KEY).len()
    for row in few.join(shown, on=QUERY_KEY).to_dicts():
        assert row["share"] == pytest.approx(min(1.0, 2 / row["len"]))


def test_a_hint_in_candidates_lines_is_a_part_and_so_are_the_retrievers_places() -> None:
    compact = Inputs.of(examples_of("compact"), frame_of("compact"))
    parts = parts_of(compact.frame.template.columns, None)
    assert list(parts) == ["likes", "dislikes", "hint 1", "hint 2", "retriever's places"]
    text = "\n".join(
        prompt[1]["content"] for prompt in parts["retriever's places"](compact).render()["prompt"].to_list()
    )
    assert " > #" not in text
    assert " > graph #" in text
    assert list(parts_of(load_template("likes-only").columns, pool())) == ["likes"]
