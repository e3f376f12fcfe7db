"""Topics: which facts sum up a user's likes, how a prompt says them, and that the audit finds forged ones."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import small_world
from prompt_frames import build

from tripletune.audit.lines import named_films
from tripletune.audit.rules import column_findings
from tripletune.audit.text import text_findings
from tripletune.config import RunConfig
from tripletune.errors import ConfigError
from tripletune.models.rgat.serve import load_rgat
from tripletune.pipeline.resolve import resolve
from tripletune.prompts.explain import explain_lines
from tripletune.prompts.template import FOLDER, load_template, parse_template
from tripletune.retrieve.topics import MIN_FILMS, MIN_RATIO, TopicTable
from tripletune.retrieve.triples import TripleTable, read_triples
from tripletune.schemas.answers import TITLES
from tripletune.schemas.generate import EXAMPLES
from tripletune.schemas.hint import NEWEST_LIKES, TOPICS
from tripletune.schemas.query import QUERY_KEY

Row = dict[str, Any]
SEED = 7


def table_of(facts: dict[int, str], likes: dict[int, int]) -> TopicTable:
    """Films with facts of one letter, ``a`` is ``genre:a``; and how many users liked each."""
    rows = [(film, letter) for film, letters in sorted(facts.items()) for letter in letters]
    films = np.array(sorted(facts))
    counts = Counter(film for film, _ in rows)
    triples = TripleTable.__new__(TripleTable)
    text = {"relation": "genre", "entity": [f"genre:{x}" for _, x in rows], "entity_name": [x.upper() for _, x in rows]}
    for name, value in {
        "films": films,
        "offsets": np.cumsum([0, *(counts[film] for film in films.tolist())]),
        "text": pl.DataFrame(text),
    }.items():
        object.__setattr__(triples, name, value)
    return TopicTable.build(triples, films, np.array([likes[film] for film in films.tolist()]))


def asked(likes: dict[int, list[int]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A test query of each user, and the likes, newest first."""
    key = {name: EXAMPLES[name] for name in QUERY_KEY}
    queries = pl.DataFrame({"user_id": list(likes), "purpose": "test", "cutoff": 90}, schema=key)
    rows = [(user, "test", 90, film, age) for user, films in likes.items() for age, film in enumerate(films)]
    return queries, pl.DataFrame(rows, schema=key | {"movie_id": pl.Int32, "age": pl.Int32}, orient="row")


def told(topics: list[Row]) -> list[tuple[str, int, int]]:
    return [(topic["entity_name"], topic["films"], topic["recent"]) for topic in topics]


def test_a_small_case_by_hand() -> None:
    """Of 999 likes 99 are of films with a, 49 with b, 849 with d and e: shares .1, .05, .85 and .85.

    User 1 likes 1-10. a: 6 ln(6 / 1) - 5 = 5.75 and b: 3 ln(3 / .5) - 2.5 = 2.88: a, which covers 1-6. Of 7-10 three
    have b: 3 ln(3 / .2) - 2.8 = 5.32. Then 10 is left.
    """
    facts = {
        1: "a",
        2: "a",
        3: "a",
        4: "a",
        5: "a",
        6: "a",
        7: "b",
        8: "b",
        9: "b",
        10: "c",
        11: "de",
        12: "de",
        13: "de",
    }
    likes = {**dict.fromkeys(range(2, 7), 10), 1: 49, 7: 16, 8: 16, 9: 17, 10: 2, 11: 283, 12: 283, 13: 283}
    table = table_of(facts, likes)
    assert table.facts["share"].to_list() == [0.1, 0.05, 0.003, 0.85, 0.85]
    queries, history = asked({1: [9, 1, 2, 10, 8, 3, 4, 5, 7, 6], 2: [11, 12, 13], 3: [], 4: [1, 2], 5: [7, 8, 9]})
    first, *others = table.find(queries, history, 5).to_list()
    assert told(first) == [("A", 6, 6), ("B", 3, 3)]
    assert first[0] == {"relation": "genre", "entity": "genre:a", "entity_name": "A", "films": 6, "recent": 6}
    # 2: all users like such films, 3: nothing liked, 4: too few for a topic, 5: 3 ln(3 / .15) - 2.85 = 6.14
    assert [told(topics) for topics in others] == [[], [], [], [("B", 3, 3)]]
    one = [told(topics) for topics in table.find(queries, history, 1)]
    assert one == [[("A", 6, 6)], [], [], [], [("B", 3, 3)]]


def test_a_topic_counts_films_that_an_earlier_topic_covers_and_recent_ones_among_the_newest() -> None:
    """b has 3 of the 4 likes that a leaves, and two that a covers; fifteen newer likes have neither."""
    facts = {
        1: "ab",
        2: "ab",
        3: "a",
        4: "a",
        5: "a",
        6: "a",
        7: "b",
        8: "b",
        9: "b",
        **dict.fromkeys(range(20, 35), "e"),
    }
    likes = {film: 500 if film >= 20 else 1 for film in facts}
    queries, history = asked({1: [*range(20, 26), 1, 2, 7, 3, 4, 5, 6, 8, 9, *range(26, 29)]})
    (topics,) = table_of(facts, likes).find(queries, history, 2)
    assert told(topics) == [("A", 6, 3), ("B", 5, 3)]


def naive(table: TopicTable, films: list[int], num_topics: int) -> list[tuple[str, str, int, int]]:
    """The same in plain Python."""
    facts = list(table.facts.iter_rows(named=True))
    has = {film: [] for film in films} | {
        film: part["fact"].to_list() for (film,), part in table.films.group_by("movie_id") if film in films
    }
    left, found = {film for film in films if has[film]}, []
    while len(found) < num_topics:
        counts = Counter(fact for film in left for fact in has[film])
        expected = {fact: len(left) * facts[fact]["share"] for fact in counts}
        scored = [
            (-round(count * math.log(count / expected[fact]) - (count - expected[fact]), 9), fact)
            for fact, count in counts.items()
            if count >= MIN_FILMS and count > expected[fact]
        ]
        scored = [(score, fact) for score, fact in scored if -score >= MIN_RATIO]
        if not scored:
            break
        fact = min(scored)[1]
        mine = [age for age, film in enumerate(films) if fact in has[film]]
        entry = facts[fact]
        found.append((entry["relation"], entry["entity"], len(mine), sum(age < NEWEST_LIKES for age in mine)))
        left -= {film for film in left if fact in has[film]}
    return found


def test_many_users_at_once_get_what_a_plain_loop_finds(tmp_path) -> None:
    world = small_world.make_world(tmp_path / "world")
    triples = TripleTable.build(load_rgat(world.rgat, SEED)["b"], read_triples(world.knowledge), SEED)
    rng = np.random.default_rng(2)
    movies = np.arange(1, small_world.NUM_FILMS + 1)
    table = TopicTable.build(triples, movies, rng.integers(1, 30, len(movies)))
    films_of = {fact: part["movie_id"].to_list() for (fact,), part in table.films.group_by("fact", maintain_order=True)}
    likes = {}
    for user in rng.permutation(60).tolist():  # all films of some facts, and others
        facts = rng.choice(list(films_of), user % 4, replace=False).tolist()
        films = {film for fact in facts for film in films_of[fact]} | set(rng.permutation(movies)[:user].tolist())
        likes[user] = rng.permutation(sorted(films)).astype(int).tolist()
    queries, history = asked(likes)
    found = table.find(queries, history.sample(fraction=1, shuffle=True, seed=1), 4)
    got = [[(t["relation"], t["entity"], t["films"], t["recent"]) for t in topics] for topics in found]
    assert got == [naive(table, films, 4) for films in likes.values()]
    assert max(map(len, got)) >= 2
    assert min(map(len, got)) == 0


@functools.cache
def prompts() -> pl.DataFrame:
    return build("topics")


PLANTED = 10
"""Row of an example with topics."""


def lines_of(row: Row) -> list[str]:
    return row["prompt"][1]["content"].split("\n")


def test_a_prompt_says_the_topics_of_its_column_and_explains_them() -> None:
    rows = prompts().to_dicts()
    row = rows[PLANTED]
    lines = lines_of(row)
    assert lines[0] == "What many films that the viewer liked have in common, most striking first:"
    assert len(row["topics"]) == 5
    assert lines[1:6] == [
        "- genre Night Person 0: 9 liked films, 0 of the newest 10",
        "- decade Ruë Person 1: 8 liked films, 1 of the newest 10",
        "- tagged of Person 2: 7 liked films, 2 of the newest 10",
        "- directed by the Person 3: 6 liked films, 3 of the newest 10",
        "- written by 7 Person 4: 5 liked films, 4 of the newest 10",
    ]
    origins = explain_lines(row, load_template("topics"))
    assert origins[1] == (lines[1], "hint 3: genre e:0, 9 liked films")
    (empty,) = {lines_of(row)[1] for row in rows if not row["topics"]}
    assert empty == "(none)"
    assert {len(topics) for topics in build("hints-first")["topics"]} == {0}


def findings(rows: list[Row]) -> list[tuple[int, str, str]]:
    examples = pl.DataFrame(rows, schema=EXAMPLES)
    found = text_findings(examples, named_films(examples), "test", TITLES)
    return [(one.rule, one.kind, row["detail"]) for one in found for row in one.rows.to_dicts()]


def test_prompts_as_they_are_written_have_no_leak() -> None:
    assert findings(prompts().to_dicts()) == []


def forge(change: Callable[[list[str]], list[str]]) -> list[tuple[int, str, str]]:
    rows = prompts().to_dicts()
    lines = lines_of(rows[PLANTED])
    changed = change(lines)
    assert changed != lines
    rows[PLANTED]["prompt"][1]["content"] = "\n".join(changed)
    return findings(rows)


DIFFERS = "section of the prompt differs from its column"


@pytest.mark.parametrize(
    ("old", "new"),
    [(": 9 liked", ": 19 liked"), (", 0 of", ", 3 of"), ("Night Person 0", "Night Person 6")],
    ids=["films", "recent", "entity"],
)
def test_a_forged_count_or_name_is_found(old: str, new: str) -> None:
    ((rule, kind, detail),) = forge(lambda lines: [lines[0], lines[1].replace(old, new), *lines[2:]])
    assert (rule, kind) == (2, DIFFERS)
    assert detail.startswith("no column: genre Night Person")


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines[:6], "- starring Nobody: 3 liked films, 0 of the newest 10", *lines[6:]],
        lambda lines: [*lines[:5], *lines[6:]],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    ],
    ids=["one more", "one less", "exchanged"],
)
def test_a_forged_line_is_found(change: Callable[[list[str]], list[str]]) -> None:
    assert [(rule, kind) for rule, kind, _ in forge(change)] == [(2, DIFFERS)]


COUNTS = "topics that the likes before the cutoff cannot have"


@pytest.mark.parametrize(
    ("films", "recent", "is_found"), [(2, 2, False), (3, 2, False), (4, 2, True), (0, 0, True), (2, 3, True)]
)
def test_counts_that_the_likes_cannot_have_are_found(films: int, recent: int, is_found: bool) -> None:
    """User 11 liked three films before the cutoff, and one at it."""
    row = prompts().filter(user_id=11).to_dicts()[0]
    row["topics"] = [{**row["topics"][0], "films": films, "recent": recent}]
    rows = pl.DataFrame(
        {
            "movie_id": [1, 2, 3, row["answers"][0], 5],
            "position": [1, 2, 3, 50, 4],
            "label": ["graph"] * 3 + ["test", "other"],
        },
        schema_overrides={"movie_id": pl.Int32},
    ).with_columns(user_id=pl.lit(11, pl.Int32), rating=pl.lit(4.5, pl.Float32), unseen=False)
    films_of = {"lightgcn": {"test": pl.DataFrame({"movie_id": row["similar"]}, schema={"movie_id": pl.Int32})}}
    examples = pl.DataFrame([row], schema=EXAMPLES)
    kinds = [one.kind for one in column_findings(examples, rows, films_of, "test") if one.rows.height]
    assert (COUNTS in kinds) == is_found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{fact}: {films}", "{films}", "must be one line that begins with {fact}"),
        ("{recent} of", "some of", "must be one line that begins with {fact}"),
        ("{recent} of", "{recent} {newest} of", "must be one line that begins with {fact}"),
        ("[topic]", "[topix]", r"the part \[topix\] is unknown"),
        ("\n[topic]\n{fact}: {films} liked films, {recent} of the newest 10", "", r"no part \[topic\]"),
    ],
)
def test_words_of_a_topic_that_lack_something_are_refused(old: str, new: str, said: str) -> None:
    text = (FOLDER / "topics.txt").read_text("utf-8")
    assert old in text
    with pytest.raises(ConfigError, match=said):
        parse_template(text.replace(old, new).encode(), "topics.txt")


def test_a_template_of_topics_needs_some(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"dataset": "x", "prompt": {"template": "topics"}})
    with pytest.raises(ConfigError, match=r"shows topics, and retrieve.num_topics = 0 looks for none; set"):
        resolve(config, tmp_path)
    resolve(config.model_copy(update={"retrieve": config.retrieve.model_copy(update={"num_topics": 6})}), tmp_path)


def test_an_empty_column_has_the_type_of_topics() -> None:
    queries, history = asked({})
    found = table_of({1: "a"}, {1: 1}).find(queries, history, 3)
    assert (found.dtype, len(found)) == (TOPICS, 0)
