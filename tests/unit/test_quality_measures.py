"""Counts of the quality report against plain loops over the same rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import polars as pl
import pytest
from scipy import stats
from written_run import NUM_RATED, Run, rewrite, write_run

from tripletune.quality.figures import figures_of, headline, positions
from tripletune.quality.measures import Measures, measure_shards
from tripletune.store.popularity import film_popularity

Row = dict[str, Any]
LEARNED = {"train": ("graph",), "valid": ("graph", "target"), "test": ("graph", "target")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = write_run(tmp_path_factory.mktemp("measured"))

    def shorten(rows: list[Row]) -> None:
        rows[0]["triples"] = rows[0]["triples"][4:]
        rows[1] |= {
            "liked": rows[1]["liked"][:2],
            "shortened": {"liked": 6, "disliked": 1, "similar": 0, "triples": 0, "topics": 0},
        }

    rewrite(run.generate / "test" / "shard-000.parquet", shorten)
    return run


@pytest.fixture(scope="module")
def rows(run: Run) -> list[Row]:
    paths = [path for purpose in LEARNED for path in sorted((run.generate / purpose).glob("*.parquet"))]
    return [row for path in paths for row in pl.read_parquet(path).to_dicts()]


@pytest.fixture(scope="module")
def measures(run: Run) -> Measures:
    return measure_shards(run.generate, film_popularity(run.split), read_text=True)


def likes_of(run: Run, purpose: str) -> Counter[int]:
    return Counter(
        film
        for user, films in run.order.items()
        if user not in (5, 17)
        for position, film in enumerate(films[:NUM_RATED])
        if run.label(position) in LEARNED[purpose]
    )


@pytest.mark.parametrize("purpose", ["train", "test"])
def test_popularity_is_the_share_of_likes_that_fall_to_less_liked_films(run: Run, purpose: str) -> None:
    likes = likes_of(run, purpose)
    total = sum(likes.values())
    found = film_popularity(run.split)[purpose]
    assert dict(found.select("movie_id", "likes").iter_rows()) == likes
    for film, quantile in found.select("movie_id", "quantile").iter_rows():
        below = sum(number for number in likes.values() if number < likes[film])
        alike = sum(number for number in likes.values() if number == likes[film])
        assert quantile == pytest.approx((below + alike / 2) / total)


def test_every_example_is_counted_once(measures: Measures, rows: list[Row]) -> None:
    assert measures.examples["example_id"].to_list() == [row["example_id"] for row in rows]
    figures = figures_of(measures)
    assert figures["examples"] == len(rows)
    assert figures["audience"] == [
        {"purpose": "train", "warm": 22, "unseen": 0},
        {"purpose": "valid", "warm": 22, "unseen": 2},
        {"purpose": "test", "warm": 22, "unseen": 2},
        {"purpose": "all", "warm": 66, "unseen": 4},
    ]
    assert figures["templates"] == [{"template": "hints-first 00000000", "examples": len(rows)}]


def test_places_of_answers_are_tested_against_an_even_spread(measures: Measures, rows: list[Row]) -> None:
    counts = Counter(
        row["candidates"].index(film) for row in rows for film in row["answers"] if film in row["candidates"]
    )
    observed = [counts[place] for place in range(20)]
    everyone = positions(measures.places)[-1]
    assert everyone["answers"] == sum(observed)
    assert everyone["p_value"] == pytest.approx(stats.chisquare(observed).pvalue, rel=1e-5)
    assert everyone["favoured"] == observed.index(max(observed)) + 1
    assert everyone["even_share"] == 0.05


def places(*rows: tuple[int, int, int]) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=["num_candidates", "place", "count"], orient="row")
    return frame.with_columns(purpose=pl.lit("test"))


def test_a_favoured_place_has_a_small_p_value_and_an_even_spread_a_large_one() -> None:
    even = positions(places(*((10, place, 100) for place in range(10))))[-1]
    assert even["p_value"] == 1.0
    first = positions(places((10, 0, 190), *((10, place, 90) for place in range(1, 10))))[-1]
    assert first["p_value"] < 1e-9
    assert (first["favoured"], first["favoured_share"], first["even_share"]) == (1, 0.19, 0.1)


def test_examples_of_fewer_candidates_weigh_on_their_own_places_alone() -> None:
    # 40 answers over 2 places and 40 over 4: evenly that is 30, 30, 10, 10
    found = positions(places((2, 0, 20), (2, 1, 20), (4, 0, 10), (4, 1, 10), (4, 2, 10), (4, 3, 10)))[-1]
    assert (found["places"], found["chi_square"], found["p_value"]) == (4, 0.0, 1.0)


def test_no_answer_among_the_candidates_is_no_test(measures: Measures) -> None:
    assert positions(measures.places.clear())[-1]["p_value"] is None


def test_popularity_of_answers_is_compared_within_the_example(run: Run, measures: Measures, rows: list[Row]) -> None:
    for purpose in LEARNED:
        likes, auc = likes_of(run, purpose), []
        of_one = [row for row in rows if row["purpose"] == purpose]
        for row in of_one:
            shown = [film for film in row["answers"] if film in row["candidates"]]
            wins = [
                (likes[film] > likes[other]) + (likes[film] == likes[other]) / 2
                for film in shown
                for other in row["candidates"]
                if other != film
            ]
            auc += [mean(wins)] if wins else []
        figures = next(line for line in figures_of(measures)["popularity"] if line["purpose"] == purpose)
        assert figures["auc"] == pytest.approx(mean(auc), abs=1e-6)
        candidates = [likes[film] for row in of_one for film in row["candidates"]]
        answers = [likes[film] for row in of_one for film in row["answers"]]
        assert figures["likes_of_candidates"] == pytest.approx(mean(candidates), abs=1e-6)
        assert figures["likes_of_answers"] == pytest.approx(mean(answers), abs=1e-6)


def test_the_share_of_retrieved_answers_is_the_ceiling(measures: Measures, rows: list[Row]) -> None:
    asked = [row for row in rows if row["purpose"] == "test"]
    retrieved = [row for row in asked if row["answers"][0] in row["candidates"]]
    assert headline(figures_of(measures))["share_answers_retrieved"] == pytest.approx(len(retrieved) / len(asked))


def test_triples_lengths_and_what_was_left_out(measures: Measures, rows: list[Row]) -> None:
    figures = figures_of(measures)
    total = sum(len(row["triples"]) for row in rows)
    assert figures["triples"]["relations"] == [{"relation": "genre", "count": total, "share": 1.0}]
    assert figures["triples"]["candidates_without"] == pytest.approx(4 / (20 * len(rows)), abs=1e-6)
    assert figures["shortened"] == {
        "examples": 1,
        **{f"left_out_{name}": number for name, number in zip(SLOTS, (6, 1, 0, 0, 0), strict=True)},
    }
    chars = sorted(sum(len(message["content"]) for message in row["prompt"] + row["completion"]) for row in rows)
    length = next(line for line in figures["lengths"] if line["purpose"] == "all")
    assert length["measure"] == "chars"  # tokens were not counted
    assert (length["q0"], length["q100"]) == (chars[0], chars[-1])
    assert length["q50"] in chars[len(chars) // 2 - 1 : len(chars) // 2 + 1]


SLOTS = ("liked", "disliked", "similar", "triples", "topics")


def test_prompts_that_say_the_same_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path)

    def repeat(rows: list[Row]) -> None:
        rows[3]["prompt"] = rows[1]["prompt"]

    rewrite(run.generate / "valid" / "shard-000.parquet", repeat)
    found = figures_of(measure_shards(run.generate, film_popularity(run.split), read_text=False))["repeated_prompts"]
    assert found == {"examples": 2, "groups": [{"examples": 2, "example_ids": ["4:valid", "8:valid"]}]}
