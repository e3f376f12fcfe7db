"""The films that stand for all in a step of LightGCN, and the blocks of its softmax, on hand-made cases."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tripletune.models.lightgcn.loss import BLOCK_USERS, FilmSample, Targets, _bounds, draw_negatives, softmax_loss


def targets_of(wanted: list[tuple[int, int]], known: list[tuple[int, int]]) -> Targets:
    """Rows of (user, film), each of weight 1."""
    (user_R, movie_R), (user_K, movie_K) = (
        torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T for pairs in (wanted, known)
    )
    return Targets(user_R, movie_R, torch.ones(len(wanted)), user_K, movie_K)


def test_films_become_places_in_the_sample_and_known_likes_outside_it_are_dropped() -> None:
    sample = FilmSample(torch.tensor([2, 5, 7]), torch.zeros(3))
    rows = targets_of([(0, 5), (1, 7), (1, 5)], known=[(0, 2), (0, 3), (1, 2), (1, 9), (2, 0)])
    got = sample.columns(rows, 10)
    assert got.movie_R.tolist() == [1, 2, 1]
    assert (got.known_user_K.tolist(), got.known_movie_K.tolist()) == ([0, 1], [0, 0])
    assert (got.user_R.tolist(), got.weight_R.tolist()) == ([0, 1, 1], [1.0, 1.0, 1.0])


def test_a_known_like_outside_the_sample_hides_no_film_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    users_BD, movies_MD = torch.randn(1, 4, generator=generator), torch.randn(6, 4, generator=generator)
    sample = FilmSample(torch.tensor([1, 3, 4]), torch.tensor([0.0, 0.5, 0.5]))
    columns = sample.columns(targets_of([(0, 1)], known=[(0, 5)]), 6)
    scores_C = movies_MD[[1, 3, 4]] @ users_BD[0] + torch.tensor([0.0, 0.5, 0.5])
    loss = softmax_loss(users_BD, movies_MD, torch.zeros(6), columns, sample)
    torch.testing.assert_close(loss, scores_C.logsumexp(0) - scores_C[0])


@pytest.mark.parametrize(("size", "chance"), [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (9, 1.0)])
def test_targets_stand_for_themselves_and_drawn_films_for_one_over_their_chance(size: int, chance: float) -> None:
    sample = FilmSample.draw(torch.tensor([4, 1, 4]), 5, size, torch.Generator().manual_seed(1))
    corrections = dict(zip(sample.movie_C.tolist(), sample.correction_C.tolist(), strict=True))
    assert list(corrections) == sorted(corrections)
    assert corrections.pop(1) == corrections.pop(4) == 0.0
    assert len(corrections) == min(size, 3)
    assert corrections.keys() <= {0, 2, 3}
    assert list(corrections.values()) == pytest.approx([-math.log(chance)] * len(corrections))


@pytest.mark.parametrize("size", [0, 3])
def test_without_another_film_or_a_draw_the_targets_are_the_sample(size: int) -> None:
    every = FilmSample.draw(torch.tensor([2, 0, 1]), 3, size, torch.Generator())
    assert (every.movie_C.tolist(), every.correction_C.tolist()) == ([0, 1, 2], [0.0, 0.0, 0.0])
    some = FilmSample.draw(torch.tensor([2]), 3, 0, torch.Generator())
    assert (some.movie_C.tolist(), some.correction_C.tolist()) == ([2], [0.0])


@pytest.mark.parametrize("num_users", [2, 127, 128, 129, 130, 256, 257, 258, 385, 1000])
def test_blocks_hold_every_user_once_and_never_one_alone(num_users: int) -> None:
    bounds = _bounds(num_users, BLOCK_USERS)
    sizes = [stop - start for start, stop in itertools.pairwise(bounds)]
    assert (bounds[0], sum(sizes)) == (0, num_users)
    assert min(sizes) > 1
    assert max(sizes) <= BLOCK_USERS + 1
    assert len(sizes) == math.ceil(num_users / BLOCK_USERS) - (num_users % BLOCK_USERS == 1)


def test_one_user_is_one_block() -> None:
    assert _bounds(1, BLOCK_USERS) == [0, 1]


def test_the_one_film_that_nobody_knows_is_the_negative_of_each_row() -> None:
    # users 0, 1 and 2 miss films 3, 0 and 2 of four
    wanted, known = [(0, 0), (0, 2), (1, 3), (2, 1)], [(0, 1), (1, 1), (1, 2), (2, 0), (2, 3)]
    for seed in range(5):
        negative_R = draw_negatives(targets_of(wanted, known), 4, torch.Generator().manual_seed(seed))
        assert negative_R.tolist() == [3, 3, 0, 2]
    with pytest.raises(ValueError, match="likes every film"):
        draw_negatives(targets_of([*wanted, (3, 0)], [*known, (3, 1), (3, 2), (3, 3)]), 4, torch.Generator())
