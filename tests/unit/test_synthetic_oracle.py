"""Oracle of the generator: its likelihood against plain enumeration, its posterior against the planted preferences."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.synthetic_oracle import Oracle
from tripletune.config import SyntheticConfig
from tripletune.errors import InputError
from tripletune.synthetic.release import write_world
from tripletune.synthetic.sizes import configured_size

HOUR = 3600
DAY = 24 * HOUR
NEW_YEAR = 1_262_304_000  # 2010
SLOTS = 20
FILMS = (10, 20, 30, 40, 50)
TASTES = ([8, 6, 4, 2, 0], [1, 2, 3, 4, 10], [4, 4, 4, 4, 4])
TALK = ([5, 5, 10, 0, 0], [2, 3, 5, 10, 0])
ENTITIES = ([0, 12, 0, 8, 0], [0, 0, 20, 0, 0])
CARRIED = ({20, 40}, {30, 50})
EPOCH = (0, 0, 0, 1, 0)
QUALITY = (0.3, -0.2, 0.0, 0.5, -0.7)
PRIOR, SHARE = (0.3, 0.2), (0.4, 0.1)
MODEL = {
    **{"first_year": 2010, "epochs": 2, "moods": 3, "styles": 1, "slots": SLOTS, "stray": 0.1, "trend": 0.2},
    **{"step": 0.15, "generosities": [-1.0, 0.0, 1.0], "strength": 1.2},
}


@pytest.fixture
def release(tmp_path) -> Path:
    pl.DataFrame({"movie_id": FILMS, "watch": [0.0] * 5, "like": QUALITY, "epoch": EPOCH}).write_parquet(
        tmp_path / "truth_movies.parquet"
    )
    entities = {"kind": ["director", "genre"], "key": ["person:nm1", "genre:Crime"], "prior": PRIOR, "share": SHARE}
    pl.DataFrame(entities).write_parquet(tmp_path / "truth_entities.parquet")
    rows = [
        (channel, number, film, count)
        for channel, tables in (("taste", TASTES), ("epoch", TALK), ("entity", ENTITIES))
        for number, table in enumerate(tables)
        for film, count in zip(FILMS, table, strict=True)
        if count or (channel == "entity" and film in CARRIED[number])
    ]
    pl.DataFrame(rows, schema=["channel", "number", "movie_id", "count"], orient="row").write_parquet(
        tmp_path / "truth_channels.parquet"
    )
    (tmp_path / "truth_model.json").write_text(json.dumps(MODEL))
    return tmp_path


HISTORY = [  # film, stars, seconds: three evenings, the last in the second half-year
    (20, 4.5, NEW_YEAR),
    (10, 3.0, NEW_YEAR + 5),
    (30, 4.0, NEW_YEAR + 2 * DAY),
    (40, 5.0, NEW_YEAR + 300 * DAY),
]
EVENINGS, HALF_YEARS = (0, 0, 1, 2), (0, 0, 0, 1)


def enumerated(history: list[tuple[int, float, int]]) -> list[float]:
    """Bayes' rule by summing over all combinations of tastes and generosity, with chances renormalised film by film."""

    def chance(entity: int | None, taste: int, half_year: int, film: int) -> float:
        """Chances before unreleased and watched films are excluded."""
        place = FILMS.index(film)
        talk, liking = TALK[half_year][place] / SLOTS, TASTES[taste][place] / SLOTS
        other = 0.1 / len(FILMS) + 0.2 * talk + 0.7 * liking
        if entity is None:
            return other
        return SHARE[entity] * ENTITIES[entity][place] / SLOTS + (1 - SHARE[entity]) * other

    def watching(entity: int | None, tastes: tuple[int, ...]) -> float:
        total = 1 / 3
        for before, after in itertools.pairwise(tastes):
            total *= 0.7 if before == after else 0.15
        seen: set[int] = set()
        for (film, _, _), evening, half_year in zip(history, EVENINGS, HALF_YEARS, strict=False):
            left = [f for f in FILMS if f not in seen and EPOCH[FILMS.index(f)] <= half_year]
            weights = {f: chance(entity, tastes[evening], half_year, f) for f in left}
            total *= weights[film] / sum(weights.values())
            seen.add(film)
        return total

    def liking(entity: int | None, generosity: float) -> float:
        total = 1 / 3
        for film, stars, _ in history:
            carries = entity is not None and film in CARRIED[entity]
            like = 1 / (1 + math.exp(-(QUALITY[FILMS.index(film)] + generosity + 1.2 * carries)))
            total *= like if stars >= 4 else 1 - like
        return total

    evenings = EVENINGS[len(history) - 1] + 1
    weights = [
        prior
        * sum(watching(entity, tastes) for tastes in itertools.product(range(3), repeat=evenings))
        * sum(liking(entity, generosity) for generosity in (-1.0, 0.0, 1.0))
        for entity, prior in ((0, 0.3), (1, 0.2), (None, 0.5))
    ]
    return [weight / sum(weights) for weight in weights]


def ratings_of(*histories: list[tuple[int, float, int]]) -> pl.DataFrame:
    rows = [(user, *row) for user, history in enumerate(histories, start=1) for row in history]
    schema = {"user_id": pl.Int32, "movie_id": pl.Int32, "rating": pl.Float32, "timestamp": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_the_posterior_is_that_of_adding_up_every_hidden_course(release):
    beginnings = [HISTORY[:length] for length in range(1, len(HISTORY) + 1)]
    found = Oracle(release).posterior(ratings_of(*beginnings))
    want = [probability for history in beginnings for probability in enumerated(history)]
    np.testing.assert_allclose(found["probability"], want, rtol=1e-6)  # shares are held in single precision
    assert found["key"].to_list()[:3] == ["person:nm1", "genre:Crime", None]
    assert found["kind"].to_list()[:3] == ["director", "genre", "none"]
    assert found["user_id"].to_list() == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


def test_the_order_of_rows_does_not_matter_where_times_differ(release):
    ratings = ratings_of(HISTORY, HISTORY[:3])
    oracle = Oracle(release)
    assert oracle.posterior(ratings.reverse()).equals(oracle.posterior(ratings))


def test_no_ratings_give_no_rows(release):
    assert Oracle(release).posterior(ratings_of()).height == 0


@pytest.mark.parametrize("film", [11, 60])
def test_a_film_of_another_release_is_refused(release, film):
    with pytest.raises(InputError, match=f"movie {film} is not a film of this synthetic release"):
        Oracle(release).posterior(ratings_of([(film, 4.0, NEW_YEAR)]))


def test_a_folder_without_the_truth_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match=r"has no truth_movies\.parquet; name a folder that `tripletune synth` wrote$"):
        Oracle(tmp_path)


@pytest.fixture(scope="module")
def judged(tmp_path_factory) -> pl.DataFrame:
    """Posterior rows of users with a weak preference and films released meanwhile; ``is_true``: the planted one."""
    folder = tmp_path_factory.mktemp("weak")
    size = configured_size(SyntheticConfig(viewers=600, movies=800, mean_ratings=40, preference_strength=1.2))
    write_world(folder, replace(size, as_published=True, entities=3), seed=11)
    truth = pl.read_parquet(folder / "truth.parquet").select("user_id", true_kind="kind", true_key="key")
    names = {"userId": "user_id", "movieId": "movie_id"}
    ratings = pl.read_csv(folder / "ratings.csv", schema_overrides={"rating": pl.Float32}).rename(names)
    rows = Oracle(folder).posterior(ratings).join(truth, on="user_id")
    is_true = (pl.col("kind") == pl.col("true_kind")) & pl.col("key").eq_missing(pl.col("true_key"))
    liked = ratings.filter(pl.col("rating") >= 4).select("user_id", "movie_id")
    channels = pl.read_parquet(folder / "truth_channels.parquet").filter(pl.col("channel") == "entity")
    keys = pl.read_parquet(folder / "truth_entities.parquet").select("key").with_row_index("number")
    carried = channels.join(keys.cast({"number": pl.Int16}), on="number").select("movie_id", "key")
    counted = liked.join(carried, on="movie_id").group_by("user_id", "key").len("likes")
    return rows.with_columns(is_true=is_true).join(counted, on=["user_id", "key"], how="left")


def test_of_preferences_given_p_about_a_share_p_is_there(judged):
    viewers = judged["user_id"].n_unique()
    assert judged["is_true"].sum() == viewers
    for low, high in ((0.0, 0.05), (0.05, 0.25), (0.25, 0.6), (0.6, 0.9), (0.9, 1.1)):
        chosen = judged.filter(pl.col("probability").is_between(low, high, closed="left"))
        expected, found = chosen["probability"].sum(), chosen["is_true"].sum()
        spread = math.sqrt((chosen["probability"] * (1 - chosen["probability"])).sum())
        assert chosen.height > 30
        assert abs(found - expected) < 3.5 * spread + 0.5, (low, high, expected, found)


def test_the_oracle_finds_more_preferences_than_counting_likes(judged):
    def hits(score: pl.Expr) -> float:
        best = judged.drop_nulls("true_key").drop_nulls("key").sort("user_id", score, descending=[False, True])
        return best.unique("user_id", keep="first", maintain_order=True)["is_true"].mean()

    by_count = hits(pl.col("likes").fill_null(0))
    # relative to the average user: the better count
    by_lift = hits(pl.col("likes").fill_null(0) / pl.col("likes").fill_null(0).mean().over("key"))
    assert hits(pl.col("probability")) > 1.15 * max(by_count, by_lift)
