"""Early stopping, the judge, and what each fit may read, on hand-made cases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.graph_cases import FIRST_MOVIE, LIKES, NUM_MOVIES, plant_split
from tripletune.config import LightGCNConfig
from tripletune.errors import InputError, UserError
from tripletune.graph.interactions import Likes, ValidQuestions, batches, newest_first_age, read_interactions
from tripletune.graph.training import Scorer, judge, train_both

LIMITS = LightGCNConfig(max_steps=70, eval_every=10, patience=2)


class Scripted:
    """Ranks the one answer so that ndcg_at_10 follows a script."""

    def __init__(self, places: Iterator[int], losses: float = 1.0) -> None:
        self.places, self.loss, self.steps = places, losses, 0

    def step(self) -> float:
        self.steps += 1
        return self.loss

    def scorer(self, likes: Likes, age_E: torch.Tensor) -> Scorer:
        place = next(self.places)
        scores_M = torch.arange(-1.0, -21.0, -1.0)
        scores_M[19] = -0.5 - place  # film 19 is the answer, the film with the place-th best score
        return lambda viewer_V: scores_M.repeat(len(viewer_V), 1)

    def export(self) -> dict[str, torch.Tensor]:
        return {"steps": torch.tensor(self.steps)}


def ask(answer: int = 19, seen: list[int] | None = None) -> ValidQuestions:
    seen_S = torch.tensor(seen or [], dtype=torch.int64)
    likes = Likes(np.array([1], dtype=np.int32), torch.tensor([0]), torch.tensor([3]))
    return ValidQuestions(likes, torch.tensor([answer]), torch.zeros_like(seen_S), seen_S)


@pytest.mark.parametrize(
    ("place", "seen", "want"),
    [
        (0, [], 1.0),
        (1, [], 1 / math.log2(3)),
        (9, [], 1 / math.log2(11)),
        (10, [], 0.0),
        (2, [0, 1], 1.0),  # what the viewer had rated before is out of the ranking
        (10, [12], 0.0),
    ],
)
def test_judge_is_ndcg_of_one_answer_among_the_films_not_rated_before(place, seen, want):
    assert judge(Scripted(iter([place])), ask(seen=seen)) == pytest.approx(want)


def test_a_model_that_scores_all_films_alike_is_worth_nothing():
    class Flat(Scripted):
        def scorer(self, likes: Likes, age_E: torch.Tensor) -> Scorer:
            return lambda viewer_V: torch.zeros(len(viewer_V), 20)

    assert judge(Flat(iter([])), ask()) == 0.0


def test_fit_b_stops_after_patience_keeps_its_best_and_fit_a_runs_as_far():
    made: dict[str, Scripted] = {}

    def make(fit: str) -> Scripted:
        made[fit] = Scripted(iter([3, 1, 2, 5]))
        return made[fit]

    runs = train_both(make, ask(), LIMITS)
    assert made["b"].steps == 40  # two evaluations after the best one
    assert int(runs["b"].tensors["steps"]) == runs["b"].best_step == 20
    assert int(runs["a"].tensors["steps"]) == made["a"].steps == 20
    assert [row["step"] for row in runs["a"].curve] == [10, 20]


def test_without_a_question_both_fits_run_all_steps():
    none = torch.zeros(0, dtype=torch.int64)
    nothing = ValidQuestions(Likes(np.zeros(0, dtype=np.int32), none, none), none, none, none)
    runs = train_both(lambda fit: Scripted(iter([])), nothing, LIMITS)
    assert (runs["a"].best_step, runs["b"].best_step) == (70, 70)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_one_line(loss):
    with pytest.raises(UserError, match="lower learning_rate"):
        train_both(lambda fit: Scripted(iter([0]), loss), ask(), LIMITS)


def test_questions_hold_only_what_came_before_the_answer(tmp_path: Path):
    plant_split(tmp_path)
    interactions = read_interactions(tmp_path)
    rows = pl.read_parquet(tmp_path / "*/part.parquet")
    valid = interactions.valid
    for viewer, user in enumerate(valid.likes.user_ids_U.tolist()):
        mine = rows.filter(pl.col("user_id") == user).sort("position")
        answer = mine.filter(pl.col("label") == "valid")
        before = mine.filter(pl.col("position") < answer["position"][0])["movie_id"].to_list()
        ids = interactions.movie_ids_M
        assert ids[valid.answer_U[viewer]] == answer["movie_id"][0]
        assert ids[valid.likes.movie_E[valid.likes.viewer_E == viewer]].tolist() == before
        assert ids[valid.seen_movie_S[valid.seen_viewer_S == viewer]].tolist() == before
        assert not mine["unseen"].any()
    assert valid.likes.num_viewers == 54


def test_a_catalogue_leaves_rows_of_other_films_out(tmp_path: Path):
    plant_split(tmp_path)
    some = np.arange(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES // 2, dtype=np.int32)
    interactions = read_interactions(tmp_path, some)
    assert interactions.num_movies == len(some)
    assert int(interactions.fits["b"].movie_E.max()) < len(some)
    with pytest.raises(InputError, match="no 'graph' like"):
        read_interactions(tmp_path, np.array([1], dtype=np.int32))


def test_a_split_without_a_column_is_one_line(tmp_path: Path):
    (tmp_path / "shard=000").mkdir()
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "shard=000" / "part.parquet")
    with pytest.raises(InputError, match="does not hold the columns"):
        read_interactions(tmp_path)


def test_a_pass_of_batches_takes_every_viewer_once_with_all_likes(tmp_path: Path):
    plant_split(tmp_path)
    likes = read_interactions(tmp_path).fits["b"]
    source = batches(likes, 20, torch.Generator().manual_seed(0))
    taken = [next(source) for _ in range(3)]
    assert torch.cat([batch.viewers_B for batch in taken]).sort().values.equal(torch.arange(54))
    for batch in taken:
        for number, viewer in enumerate(batch.viewers_B.tolist()):
            rows = batch.viewer_R == number
            assert batch.movie_R[rows].equal(likes.movie_E[likes.viewer_E == viewer])
            assert batch.place_R[rows].equal(torch.arange(LIKES - 2))


def test_age_is_zero_for_each_viewers_newest_row():
    age = newest_first_age(torch.tensor([0, 0, 0, 2, 3, 3]), 4)
    assert age.tolist() == [2, 1, 0, 0, 1, 0]
