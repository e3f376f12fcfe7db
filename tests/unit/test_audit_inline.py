"""Inline hints: what stands after a candidate's title must be what the columns say of this film, and is searched for
forged hints."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import small_world
from prompt_frames import build

from tests.unit.test_engine import examples, generate, retrieve
from tripletune.audit.audit import audit_shards
from tripletune.audit.lines import named_films
from tripletune.audit.text import text_findings
from tripletune.config import PromptConfig, RetrieveConfig
from tripletune.prompts.template import load_template
from tripletune.schemas.answers import LETTERS
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.inline import NO_INLINE, Inline

Row = dict[str, Any]
Found = list[tuple[int, str, str]]

OF_ANSWER = (3, "inline hints of an answer differ from the columns")
OF_CANDIDATE = (2, "inline hints of a candidate differ from the columns")
UNSHOWN = (2, "inline column names a film that no line shows")


@functools.cache
def clean(form: str) -> pl.DataFrame:
    return build("compact", form=form)


def findings(prompts: pl.DataFrame, form: str = "arrow", inline: Inline | None = None) -> Found:
    words = load_template("compact").inline_in(form) if inline is None else inline  # type: ignore[arg-type]
    found = text_findings(prompts, named_films(prompts), "test", LETTERS, words)
    return [(one.rule, one.kind, row["detail"]) for one in found for row in one.rows.to_dicts()]


PLANTED = 10
"""Row of an example in which candidates have facts, two ranks and the mark of similar users."""


def plant(change: Callable[[Row], object]) -> tuple[Row, Found]:
    """Damage one example; returns it and what is found."""
    rows = clean("arrow").to_dicts()
    change(rows[PLANTED])
    return rows[PLANTED], findings(pl.DataFrame(rows, schema=EXAMPLES))


def lines_of(row: Row) -> list[str]:
    return row["prompt"][1]["content"].split("\n")


def write(row: Row, lines: list[str]) -> None:
    row["prompt"][1]["content"] = "\n".join(lines)


def line_of(row: Row, film: int) -> int:
    """Number of a candidate's line."""
    place = row["candidates"].index(film)
    begins = f"{row['candidate_letters'][place]}. {row['candidate_titles'][place]}"
    (number,) = [n for n, line in enumerate(lines_of(row)) if line.split(" > ")[0] == begins]
    return number


def edit(row: Row, film: int, change: Callable[[str], str]) -> None:
    lines = lines_of(row)
    number = line_of(row, film)
    changed = change(lines[number])
    assert changed != lines[number]
    write(row, [*lines[:number], changed, *lines[number + 1 :]])


def without_answer(row: Row, films: list[int]) -> list[int]:
    """The films that are candidates and no answer."""
    return [film for film in films if film in row["candidates"] and film not in row["answers"]]


@pytest.mark.parametrize("form", ["arrow", "sentence"])
def test_prompts_as_they_are_written_have_no_leak_in_their_own_words_alone(form: str) -> None:
    assert findings(clean(form), form) == []
    kinds = {kind for _, kind, _ in findings(clean(form), "sentence" if form == "arrow" else "arrow")}
    assert kinds == {OF_CANDIDATE[1], OF_ANSWER[1]}
    assert "label does not stand before its title" in {kind for _, kind, _ in findings(clean(form), form, NO_INLINE)}


def test_prompts_without_inline_hints_lack_those_that_a_run_states() -> None:
    rules = {found[:2] for found in findings(build("letters"))}
    assert rules >= {OF_CANDIDATE, OF_ANSWER, UNSHOWN}


def test_a_relation_with_a_strange_name_is_known_by_what_follows_it() -> None:
    strange = build("compact", relations=["> graph", "shot_in", "\u200b"], names=["#1", "<Rome>"])
    assert findings(strange) == []
    text = strange["prompt"].list.last().struct.field("content").str.join("")[0]
    assert " > › graph: #1" in text
    assert " > shot in: ‹Rome›" in text
    for old, new in ((" > shot in: ", " > seen in: "), ("› graph: #1", "› graph: #2")):
        rows = strange.to_dicts()
        for row in rows:
            write(row, [line.replace(old, new) for line in lines_of(row)])
        kinds = {one[:2] for one in findings(pl.DataFrame(rows, schema=EXAMPLES))}
        assert kinds <= {OF_CANDIDATE, OF_ANSWER}
        assert OF_CANDIDATE in kinds


def test_another_films_fact_on_a_line_is_found() -> None:
    def exchange(row: Row) -> None:
        first, second = without_answer(row, list(dict.fromkeys(fact["movie_id"] for fact in row["triples"])))[:2]
        lines = lines_of(row)
        one, two = line_of(row, first), line_of(row, second)
        lines[one], lines[two] = (
            " > ".join([lines[mine].rsplit(" > ", 1)[0], lines[other].rsplit(" > ", 1)[1]])
            for mine, other in ((one, two), (two, one))
        )
        write(row, lines)

    _, found = plant(exchange)
    assert [one[:2] for one in found] == [OF_CANDIDATE]


def test_an_exchanged_name_or_relation_of_a_fact_is_found() -> None:
    row = clean("arrow").row(PLANTED, named=True)
    fact = next(one for one in row["triples"] if one["relation"] != "shot_in")
    film, name = fact["movie_id"], fact["entity_name"]
    for old, new in ((name, "Buy Now"), (name, f"{name}. Answer A"), (f" {name}", f", as all know, {name}")):
        _, found = plant(lambda row, old=old, new=new: edit(row, film, lambda line: line.replace(old, new)))
        assert [one[1].split(" of ")[0] for one in found] == ["inline hints"]
        assert new in found[0][2]


@pytest.mark.parametrize(("old", "column"), [("#", "retrieved"), ("graph #", "ranking")])
def test_an_exchanged_rank_is_found(old: str, column: str) -> None:
    def exchange(row: Row) -> None:
        first, second = without_answer(row, row[column])[:2]
        places = {film: row[column].index(film) + 1 for film in (first, second)}
        for mine, other in ((first, second), (second, first)):
            edit(
                row,
                mine,
                lambda line, a=mine, b=other: line.replace(f"> {old}{places[a]}", f"> {old}{places[b]}", 1),
            )

    row, found = plant(exchange)
    assert [one[:2] for one in found] == [OF_CANDIDATE]
    assert found[0][2] in [line for line in lines_of(row) if " > " in line]


def test_a_mark_added_at_the_answer_is_a_leak_of_the_answer() -> None:
    def mark(row: Row) -> None:
        (film,) = row["answers"]
        assert film not in row["similar"]
        edit(row, film, lambda line: line + " > similar viewers liked it")

    _, found = plant(mark)
    assert [one[:2] for one in found] == [OF_ANSWER]


@pytest.mark.parametrize("forged", [" > best answer", " > #1", " > graph #1", " >  > ", " > "])
def test_any_hint_that_is_added_to_a_line_is_found(forged: str) -> None:
    _, found = plant(lambda row: edit(row, without_answer(row, row["candidates"])[-1], lambda line: line + forged))
    assert [one[:2] for one in found] == [OF_CANDIDATE]


def test_a_hint_that_a_line_leaves_out_is_found() -> None:
    for column in ("retrieved", "ranking", "similar"):

        def leave_out(row: Row, column: str = column) -> None:
            film = (without_answer(row, row[column]) or row[column])[0]
            hint = {"retrieved": f" > #{row[column].index(film) + 1}", "similar": " > similar viewers liked it"}
            gone = hint.get(column, f" > graph #{row[column].index(film) + 1}")
            edit(row, film, lambda line: line.replace(gone, "", 1))

        _, found = plant(leave_out)
        assert [one[1].split(" of ")[0] for one in found] == ["inline hints"]


def test_a_line_of_the_answer_that_was_added_is_found() -> None:
    """With hints and without; as a candidate, and among the likes."""
    row = clean("arrow").row(PLANTED, named=True)
    (answer,) = row["answers"]
    line = lines_of(row)[line_of(row, answer)]
    for forged in (line, line.split(" > ")[0], f"U. {line[3:]}", f"- {line[3:]}", f"- {line[3:].split(' > ')[0]}"):
        _, found = plant(lambda row, forged=forged: write(row, [forged, *lines_of(row)]))
        rules = {one[:2] for one in found}
        assert (3, "answer stands in the prompt beyond candidates and hints") in rules
        assert rules & {OF_CANDIDATE, OF_ANSWER} or " > " not in forged


def test_a_hint_that_moved_to_a_line_of_another_section_is_found() -> None:
    def move(row: Row) -> None:
        lines = lines_of(row)
        write(row, [lines[0], lines[1] + " > similar viewers liked it", *lines[2:]])

    row, found = plant(move)
    assert found == [(*OF_CANDIDATE, lines_of(row)[1])]


def test_a_film_or_fact_of_an_inline_column_without_a_line_is_found() -> None:
    liked = clean("arrow").row(PLANTED, named=True)["liked"][0]
    fact = {"movie_id": liked, "relation": "genre", "entity": "genre:1", "entity_name": "War"}
    for column, item in (("similar", liked), ("triples", fact)):
        _, found = plant(lambda row, column=column, item=item: row[column].append(item))
        assert found == [(*UNSHOWN, f"{column} {liked}")]


def test_two_candidates_that_changed_places_are_found() -> None:
    def exchange(row: Row) -> None:
        lines = lines_of(row)
        one, two = (line_of(row, film) for film in without_answer(row, row["candidates"])[:2])
        lines[one], lines[two] = lines[two], lines[one]
        write(row, lines)

    _, found = plant(exchange)
    assert [one[:2] for one in found] == [(2, "section of the prompt differs from its column")]


def test_a_label_before_another_candidate_is_found() -> None:
    def exchange(row: Row) -> None:
        lines = lines_of(row)
        one, two = (line_of(row, film) for film in without_answer(row, row["candidates"])[:2])
        lines[one], lines[two] = lines[one][0] + lines[two][1:], lines[two][0] + lines[one][1:]
        write(row, lines)

    _, found = plant(exchange)
    assert (0, "label does not stand before its title") in {one[:2] for one in found}


@pytest.mark.parametrize("order", ["shuffled", "retrieved"])
def test_shards_of_a_run_are_audited_with_the_inline_hints_that_they_state(tmp_path, order: Any) -> None:
    world = small_world.make_world(tmp_path)
    small_world.write_trained_on(world)
    retrieve(world, RetrieveConfig(retriever="lightgcn"))
    facts = generate(world, world.generate, PromptConfig(template="compact", candidate_order=order))
    inline = Inline.from_json(json.loads(json.dumps(facts["inline"])))
    assert inline == load_template("compact").inline_in("arrow")
    shown = examples(world.generate)
    assert all(row["candidates"] == row["retrieved"] for row in shown.to_dicts()) == (order == "retrieved")

    trained = {"lightgcn": world.specialists["lightgcn"]}

    def audit() -> set[tuple[int, str]]:
        leaks = audit_shards(world.generate, world.split, world.retrieve, trained, style=LETTERS, inline=inline)
        return {(leak.rule, leak.kind) for leak in leaks}

    assert audit() == set()
    path = world.generate / "train" / "shard-000.parquet"
    rows = pl.read_parquet(path).to_dicts()
    film = rows[0]["answers"][0]
    edit(rows[0], film, lambda line: line + " > similar viewers liked it")
    pl.DataFrame(rows, schema=EXAMPLES).write_parquet(path)
    assert audit() == {OF_ANSWER}
