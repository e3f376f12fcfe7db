"""Early stopping, the judge, and what each fit may read, on hand-made cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from tests.graph_cases import FIRST_MOVIE, LIKES, NUM_MOVIES, plant_split
from tripletune.config import LightGCNConfig, RunConfig
from tripletune.errors import InputError, UserError
from tripletune.models.training.checkpoints import Checkpoints
from tripletune.models.training.interactions import Likes, ValidQuestions, batches, newest_first_age, read_interactions
from tripletune.models.training.loop import Run, Scorer, judge, train_both
from tripletune.pipeline.registry import BY_NAME
from tripletune.store.catalogue import write_catalogue

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
        return lambda user_V: scores_M.repeat(len(user_V), 1)

    def export(self) -> dict[str, torch.Tensor]:
        return {"steps": torch.tensor(self.steps)}

    def state(self) -> dict[str, torch.Tensor]:
        return {"steps": torch.tensor(self.steps)}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        self.steps = int(state["steps"])


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
        (2, [0, 1], 1.0),  # what the user had rated before is out of the ranking
        (10, [12], 0.0),
    ],
)
def test_judge_is_ndcg_of_one_answer_among_the_films_not_rated_before(place, seen, want):
    assert judge(Scripted(iter([place])), ask(seen=seen)) == pytest.approx(want)


def test_a_model_that_scores_all_films_alike_is_worth_nothing():
    class Flat(Scripted):
        def scorer(self, likes: Likes, age_E: torch.Tensor) -> Scorer:
            return lambda user_V: torch.zeros(len(user_V), 20)

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


def test_with_a_patience_of_one_the_first_evaluation_that_is_not_better_is_the_last():
    made: list[Scripted] = []

    def make(fit: str) -> Scripted:
        made.append(Scripted(iter([3, 1, 2, 0])))
        return made[-1]

    runs = train_both(make, ask(), LightGCNConfig(max_steps=70, eval_every=10, patience=1))
    assert [model.steps for model in made] == [30, 20]
    assert runs["b"].best_step == 20


def test_without_a_question_both_fits_run_all_steps():
    none = torch.zeros(0, dtype=torch.int64)
    nothing = ValidQuestions(Likes(np.zeros(0, dtype=np.int32), none, none), none, none, none)
    runs = train_both(lambda fit: Scripted(iter([])), nothing, LIMITS)
    assert (runs["a"].best_step, runs["b"].best_step) == (70, 70)


class Killed(BaseException):
    """What no except clause catches."""


@pytest.mark.parametrize("killed_at", [1, 11, 30, 41, 55, 60])
def test_a_killed_training_repeats_no_step_but_the_one_it_was_killed_in(tmp_path, killed_at):
    # 40 steps of fit b, then 20 of fit a
    taken = 0

    class Mortal(Scripted):
        def step(self) -> float:
            nonlocal taken
            taken += 1
            if taken == killed_at:
                raise Killed
            return super().step()

        def scorer(self, likes: Likes, age_E: torch.Tensor) -> Scorer:
            self.places = iter([[3, 1, 2, 5][self.steps // 10 - 1]])
            return super().scorer(likes, age_E)

    def train() -> dict[str, Run]:
        return train_both(lambda fit: Mortal(iter([])), ask(), LIMITS, Checkpoints(tmp_path, minutes=0))

    with pytest.raises(Killed):
        train()
    runs = train()
    assert taken == 60 + 1
    assert [row["step"] for row in runs["b"].curve] == [10, 20, 30, 40]
    assert [row["step"] for row in runs["a"].curve] == [10, 20]
    assert int(runs["b"].tensors["steps"]) == int(runs["a"].tensors["steps"]) == 20


def test_checkpoints_are_as_far_apart_as_they_are_told(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    checkpoints = Checkpoints(tmp_path, minutes=2)
    now += 119
    assert not checkpoints.is_due()
    now += 1
    assert checkpoints.is_due()
    checkpoints.save("b", {"x": torch.ones(2)}, {"step": 3})
    assert not checkpoints.is_due()
    tensors, facts = checkpoints.load("b") or ({}, {})
    assert tensors["x"].equal(torch.ones(2))
    assert facts == {"step": 3}
    assert checkpoints.load("a") is None


@pytest.mark.parametrize("stage", ["rgat", "lightgcn", "sasrec"])
def test_how_often_checkpoints_are_written_does_not_change_what_an_output_is_known_by(stage):
    settings = RunConfig(dataset="x")
    fields = BY_NAME[stage].ingredients(settings, {"split": "", "knowledge": ""}, {})["fields"]
    assert f"{stage}.dim" in fields
    assert f"{stage}.checkpoint_minutes" not in fields


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
        assert ids[valid.likes.movie_E[valid.likes.user_E == viewer]].tolist() == before
        assert ids[valid.seen_movie_S[valid.seen_user_S == viewer]].tolist() == before
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
    write_catalogue(tmp_path, [1, 2])
    (tmp_path / "shard=000").mkdir()
    pl.DataFrame({"user_id": [1]}).write_parquet(tmp_path / "shard=000" / "part.parquet")
    with pytest.raises(InputError, match="does not hold the columns"):
        read_interactions(tmp_path)


def test_a_pass_of_batches_takes_every_viewer_once_with_all_likes(tmp_path: Path):
    plant_split(tmp_path)
    likes = read_interactions(tmp_path).fits["b"]
    source = batches(likes, 20, torch.Generator().manual_seed(0))
    taken = [next(source) for _ in range(3)]
    assert torch.cat([batch.users_B for batch in taken]).sort().values.equal(torch.arange(54))
    for batch in taken:
        for number, viewer in enumerate(batch.users_B.tolist()):
            rows = batch.user_R == number
            assert batch.movie_R[rows].equal(likes.movie_E[likes.user_E == viewer])
            assert batch.place_R[rows].equal(torch.arange(LIKES - 2))


def test_batches_go_on_where_they_were(tmp_path: Path):
    plant_split(tmp_path)
    likes = read_interactions(tmp_path).fits["b"]
    source = batches(likes, 20, torch.Generator().manual_seed(0))
    next(source)
    generator = torch.Generator()
    resumed = batches(likes, 20, generator)
    resumed.load_state(source.state())
    want = [next(source).users_B for _ in range(2)]  # the rest of the pass; the next one draws a new order
    assert [next(resumed).users_B.tolist() for _ in range(2)] == [users_B.tolist() for users_B in want]


def test_the_order_of_rows_and_shards_does_not_matter(tmp_path: Path):
    plant_split(tmp_path / "one")
    rows = pl.read_parquet(tmp_path / "one" / "*/part.parquet", hive_partitioning=False)
    (tmp_path / "other" / "shard=000").mkdir(parents=True)
    write_catalogue(tmp_path / "other", range(FIRST_MOVIE, FIRST_MOVIE + NUM_MOVIES))
    rows.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(tmp_path / "other" / "shard=000" / "part.parquet")
    one, other = (read_interactions(tmp_path / name) for name in ("one", "other"))
    for mine, theirs in ((one.fits["a"], other.fits["a"]), (one.valid.likes, other.valid.likes)):
        assert mine.user_ids_U.tolist() == theirs.user_ids_U.tolist()
        assert mine.user_E.equal(theirs.user_E)
        assert mine.movie_E.equal(theirs.movie_E)
    assert one.valid.answer_U.equal(other.valid.answer_U)
    assert one.valid.seen_movie_S.equal(other.valid.seen_movie_S)


def test_age_is_zero_for_each_viewers_newest_row():
    age = newest_first_age(torch.tensor([0, 0, 0, 2, 3, 3]), 4)
    assert age.tolist() == [2, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("num_users", [1, 3, 64, 65, 130])
def test_every_users_answer_is_ranked_among_the_films_that_this_user_had_not_rated(num_users):
    random = np.random.default_rng(num_users)
    scores_UM = random.permuted(np.tile(np.arange(40.0), (num_users, 1)), axis=1)
    seen_UM = random.random((num_users, 40)) < 0.5
    answer_U = np.array([random.choice(np.flatnonzero(~seen_M)) for seen_M in seen_UM])
    gains = []
    for scores_M, seen_M, answer in zip(scores_UM, seen_UM, answer_U, strict=True):
        rank = 1 + sum(scores_M[film] > scores_M[answer] and not seen_M[film] for film in range(40))
        gains.append(1 / math.log2(rank + 1) if rank <= 10 else 0.0)
    seen_user_S, seen_movie_S = (torch.from_numpy(ints) for ints in np.nonzero(seen_UM))
    likes = Likes(np.arange(num_users, dtype=np.int32), torch.arange(num_users), torch.zeros(num_users).long())
    valid = ValidQuestions(likes, torch.from_numpy(answer_U), seen_user_S, seen_movie_S)

    class Table(Scripted):
        def scorer(self, likes: Likes, age_E: torch.Tensor) -> Scorer:
            return lambda user_V: torch.from_numpy(scores_UM)[user_V]

    assert judge(Table(iter([])), valid) == pytest.approx(sum(gains) / num_users)


def test_a_long_training_ends_with_its_last_step_and_an_evaluation_there():
    none = torch.zeros(0, dtype=torch.int64)
    nothing = ValidQuestions(Likes(np.zeros(0, dtype=np.int32), none, none), none, none, none)
    limits = LightGCNConfig(max_steps=301, eval_every=100, patience=2)
    runs = train_both(lambda fit: Scripted(iter([])), nothing, limits)
    for run in runs.values():
        assert [row["step"] for row in run.curve] == [100, 200, 300, 301]
        assert (run.step, run.best_step, run.best_ndcg) == (301, 301, -1.0)
