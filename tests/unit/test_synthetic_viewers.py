"""Parts of the generator against plain probability: sequential film draws, and the walk of taste."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tripletune.config import SyntheticConfig
from tripletune.synthetic.channels import MOODS, STYLES, TASTES, Channels, build_channels
from tripletune.synthetic.draw import FilmDraw
from tripletune.synthetic.sizes import configured_size
from tripletune.synthetic.users import STEP, draw_users, walk_tastes
from tripletune.synthetic.world import Entity, draw_catalogue

TASTE, TALK, ENTITY = ([6, 2, 1, 1], [0, 0, 5, 5], [0, 7, 3, 0])
SLOTS = 10
SHARE = 0.4


def made_channels(released: tuple[int, ...]) -> Channels:
    table = np.zeros((TASTES + 2, SLOTS), dtype=np.int32)
    for row, counts in ((3, TASTE), (TASTES + 1, TALK)):
        table[row] = np.repeat(np.arange(4), counts)
    table = np.vstack([table, np.repeat(np.arange(4), ENTITY).astype(np.int32)])
    carries = np.array([[count > 0 for count in ENTITY]])
    return Channels(table, [Entity("genre", 0)], carries, np.array([SHARE]), np.array(released), 2)


@pytest.mark.parametrize("entity", [0, -1])
@pytest.mark.parametrize("released", [(0, 0, 0, 0), (0, 0, 2, 0)])
def test_films_are_found_one_after_the_other_among_those_that_are_left(entity, released):
    num_viewers, length = 60_000, 3
    viewer = np.repeat(np.arange(num_viewers, dtype=np.int32), length)
    films = (
        FilmDraw(
            made_channels(released),
            viewer,
            np.full(len(viewer), 3),
            np.full(len(viewer), 1),
            np.full(num_viewers, entity),
            np.random.default_rng(0),
        )
        .films()
        .reshape(num_viewers, length)
    )
    share = SHARE if entity >= 0 else 0.0
    out = [film for film in range(4) if released[film] <= 1]
    weight = {
        film: (share * ENTITY[film] + (1 - share) * (0.02 * SLOTS / 4 + 0.15 * TALK[film] + 0.83 * TASTE[film])) / SLOTS
        for film in out
    }
    for order in itertools.permutations(out, length):
        chance, left = 1.0, sum(weight.values())
        for film in order:
            chance *= weight[film] / left
            left -= weight[film]
        found = (films == order).all(axis=1).mean()
        assert abs(found - chance) < 4 * np.sqrt(chance * (1 - chance) / num_viewers), order


def test_taste_starts_anywhere_and_then_walks_both_circles_step_by_step():
    first = np.zeros(200_000, dtype=bool)
    first[::10] = True
    taste = walk_tastes(first, np.random.default_rng(1)).reshape(-1, 10)
    assert np.bincount(taste[:, 0], minlength=MOODS * STYLES).min() > 120  # 208 expected
    for place, size in ((taste // STYLES, MOODS), (taste % STYLES, STYLES)):
        moved = np.diff(place, axis=1) % size
        assert set(np.unique(moved)) == {0, 1, size - 1}
        for step in (1, size - 1):
            assert abs((moved == step).mean() - STEP) < 0.003
    last = (taste[:, -1] // STYLES - taste[:, 0] // STYLES) % MOODS
    assert 0.3 < (last == 0).mean() < 0.5  # after nine walks many are elsewhere


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("viewers", [1, 7, 3_000])
@pytest.mark.parametrize("mean", [20, 21, 150, 100_000])
def test_lengths_have_the_exact_total_for_any_mean(viewers, mean, seed):
    size = configured_size(SyntheticConfig(viewers=viewers, movies=300, mean_ratings=mean))
    rng = np.random.default_rng(seed)
    channels = build_channels(draw_catalogue(size, rng), size, rng)
    lengths = draw_users(size, channels, rng).ratings_U
    assert lengths.sum() == size.ratings == viewers * min(mean, 100)
    assert lengths.min() >= 20
    assert lengths.max() <= 180
