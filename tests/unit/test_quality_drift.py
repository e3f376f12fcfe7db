"""Drift between two runs, against values worked out by hand and scipy."""

from __future__ import annotations

from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats
from written_run import write_run

from tripletune.quality.drift import Shift, find_shifts, in_bins, stability_index
from tripletune.quality.measures import Measures, measure_shards
from tripletune.store.popularity import film_popularity


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Measures:
    run = write_run(tmp_path_factory.mktemp("night"))
    return measure_shards(run.generate, film_popularity(run.split), read_text=False)


def shift_of(shifts: list[Shift], name: str) -> Shift:
    return next(shift for shift in shifts if shift.name == name)


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        ([50, 50], [1, 3], -0.25 * log(0.5) + 0.25 * log(1.5)),
        ([1, 2, 1], [10, 20, 10], 0.0),
        # a share of 0 is replaced by 0.0001
        ([100, 0], [50, 50], (0.5 - 1) * log(0.5) + (0.5 - 1e-4) * log(0.5 / 1e-4)),
    ],
)
def test_the_stability_index_worked_by_hand(before: list[int], now: list[int], expected: float) -> None:
    found = stability_index(np.array(before, float), np.array(now, float))
    assert found == pytest.approx(expected, abs=1e-12)
    assert stability_index(np.array(now, float), np.array(before, float)) == pytest.approx(expected, abs=1e-12)


def test_the_index_is_both_relative_entropies() -> None:
    rng = np.random.default_rng(1)
    before, now = rng.integers(1, 1000, 12).astype(float), rng.integers(1, 1000, 12).astype(float)
    entropies = stats.entropy(before, now) + stats.entropy(now, before)
    assert stability_index(before, now) == pytest.approx(entropies)


def test_a_night_has_not_moved_from_itself(night: Measures) -> None:
    shifts = find_shifts(night, night)
    assert {shift.name for shift in shifts} == {
        *(f"psi_{name}" for name in ("popularity", "answer_popularity", "answer_position", "relation", "liked")),
        *("psi_purpose", "psi_template", "ks_chars", "ks_liked", "ks_history"),
    }
    assert {shift.value for shift in shifts} == {0.0}
    assert {shift.words for shift in shifts} == {"no shift"}


def test_likes_shown_fall_into_bins(night: Measures) -> None:
    likes = [0, 1, 2, 3, 5, 6, 10, 11, 15, 16, 40]
    examples = night.examples.head(len(likes)).with_columns(liked=pl.Series(likes, dtype=pl.UInt32))
    assert in_bins(replace(night, examples=examples))["liked"].rows() == [
        ("0", 1), ("1-2", 2), ("3-5", 2), ("6-10", 2), ("11-15", 2), ("16 and more", 2)
    ]  # fmt: skip


def test_the_distance_of_numbers_worked_by_hand_and_by_scipy(night: Measures) -> None:
    def with_history(*values: int) -> Measures:
        return replace(night, examples=night.examples.head(len(values)).with_columns(history=pl.Series(values)))

    shift = shift_of(find_shifts(with_history(1, 2, 3, 4), with_history(3, 4, 5, 6)), "ks_history")
    # at 2 one cumulative share is half and the other is 0
    assert (shift.value, shift.words) == (0.5, "major")
    rng = np.random.default_rng(2)
    before, now = rng.poisson(9, 40).tolist(), rng.poisson(10, 30).tolist()
    shift = shift_of(find_shifts(with_history(*before), with_history(*now)), "ks_history")
    judge = stats.ks_2samp(before, now, method="asymp")
    assert (shift.value, shift.p_value) == pytest.approx((judge.statistic, judge.pvalue))


def test_a_template_that_changed_and_a_relation_that_vanished_are_major(night: Measures) -> None:
    other = night.examples.with_columns(template=pl.lit("letters 12345678"))
    relations = pl.DataFrame({"relation": ["genre", "director"], "count": [50, 50]})
    now = replace(night, examples=other, relations=night.relations)
    shifts = find_shifts(replace(night, relations=relations), now)
    for name, before, after in (
        ("psi_template", "hints-first 00000000: 100.0%", "letters 12345678: 100.0%"),
        ("psi_relation", "director: 50.0%", "genre: 100.0%"),
    ):
        shift = shift_of(shifts, name)
        assert (shift.words, shift.before, shift.now) == ("major", before, after)


def test_tokens_count_where_both_nights_counted_them(night: Measures) -> None:
    tokens = night.examples.with_columns(num_tokens=pl.int_range(pl.len()) + 100)
    counted = replace(night, examples=tokens)
    assert "ks_num_tokens" not in {shift.name for shift in find_shifts(night, counted)}
    assert "ks_num_tokens" in {shift.name for shift in find_shifts(counted, counted)}


def test_a_template_without_triples_has_no_relations_to_compare(night: Measures) -> None:
    without = replace(night, relations=night.relations.clear())
    assert "psi_relation" not in {shift.name for shift in find_shifts(night, without)}


def test_popularity_of_two_nights_is_measured_by_one_nights_likes(tmp_path: Path) -> None:
    """The same prompts after the ratings have doubled: no drift."""
    run = write_run(tmp_path)
    popularity = film_popularity(run.split)
    doubled = {purpose: films.with_columns(pl.col("likes") * 2) for purpose, films in popularity.items()}
    before, now = (measure_shards(run.generate, films, read_text=False) for films in (popularity, doubled))
    assert shift_of(find_shifts(before, now), "psi_popularity").value == 0.0


def test_everything_that_falls_into_bins_is_counted_by_its_own_bin(night: Measures) -> None:
    popularity = pl.DataFrame(
        {
            "role": ["candidates", "candidates", "candidates", "answers", "answers"],
            "tenth": [0, 9, 9, 4, 0],
            "count": [3, 4, 5, 6, 7],
        }
    )
    found = in_bins(
        replace(
            night,
            popularity=popularity,
            places=pl.DataFrame({"place": [0, 19, 0], "count": [1, 2, 3]}),
            relations=pl.DataFrame({"relation": ["genre", "director", "genre"], "count": [5, 1, 2]}),
            examples=night.examples.head(4).with_columns(
                purpose=pl.Series(["train", "valid", "train", "train"]), template=pl.Series(["b", "a", "b", "b"])
            ),
        )
    )
    del found["liked"]
    assert {name: rows.rows() for name, rows in found.items()} == {
        "popularity": [("1", 3), ("10", 9)],
        "answer_popularity": [("1", 7), ("5", 6)],
        "answer_position": [("1", 4), ("20", 2)],
        "relation": [("director", 1), ("genre", 7)],
        "purpose": [("train", 3), ("valid", 1)],
        "template": [("a", 1), ("b", 3)],
    }


@pytest.mark.parametrize(
    ("moved", "of", "words"), [(0, 20, "no shift"), (1, 25, "no shift"), (1, 20, "moderate"), (1, 10, "moderate"),
                               (3, 25, "major")]
)  # fmt: skip
def test_a_distance_gets_words_from_a_twentieth_and_above_a_tenth(
    night: Measures, moved: int, of: int, words: str
) -> None:
    """``moved`` of ``of`` examples have a longer history than any had before."""
    samples = [[5] * of, [5] * (of - moved) + [9] * moved]
    nights = [
        replace(night, examples=pl.concat([night.examples.head(1)] * of).with_columns(history=pl.Series(sample)))
        for sample in samples
    ]
    shift = shift_of(find_shifts(*nights), "ks_history")
    assert (shift.value, shift.words) == (pytest.approx(moved / of), words)


@pytest.mark.parametrize(("now", "words"), [([60, 40], "no shift"), ([66, 34], "moderate"), ([75, 25], "major")])
def test_an_index_gets_words_from_a_tenth_and_above_a_quarter(night: Measures, now: list[int], words: str) -> None:
    # from half and half: 0.1 ln (60/40) = 0.04, 0.16 ln (66/34) = 0.11, 0.25 ln 3 = 0.27
    before, after = (pl.DataFrame({"relation": ["a", "b"], "count": counts}) for counts in ([50, 50], now))
    shift = shift_of(find_shifts(replace(night, relations=before), replace(night, relations=after)), "psi_relation")
    share = now[0] / 100
    assert shift.value == pytest.approx((share - 0.5) * log(share / (1 - share)))
    assert shift.words == words
    assert (shift.before, shift.now) == ("a: 50.0%", f"a: {share:.1%}")  # of bins alike the first
    assert shift.p_value is None


def test_numbers_are_shown_by_their_medians(night: Measures) -> None:
    nights = [
        replace(night, examples=night.examples.head(len(chars)).with_columns(chars=pl.Series(chars)))
        for chars in ([1000, 2000, 9000], [100, 1400, 1500, 8000])
    ]
    shift = shift_of(find_shifts(*nights), "ks_chars")
    assert (shift.before, shift.now) == ("median 2,000", "median 1,450")
