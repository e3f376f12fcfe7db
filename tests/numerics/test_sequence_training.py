"""The sequence model's streams and training, and its vectors in retrieval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.benchmark_scripts import benchmark_script
from tests.graph_cases import FIRST_MOVIE, plant_split
from tests.sequence_cases import ROWS, given, settings, some_content, streams_of, trainer_of
from tripletune.errors import InputError
from tripletune.models.sequence.encode import ask_next
from tripletune.models.sequence.events import Events, find_levels, to_level
from tripletune.models.sequence.fit import SequenceTrainer, find_targets, model_shape, train_sequence
from tripletune.models.sequence.serve import load_sequence
from tripletune.models.training.interactions import Interactions, Likes
from tripletune.models.training.loop import judge
from tripletune.schemas.query import PURPOSES

with benchmark_script("headroom") as headroom:
    pass


def test_levels_are_the_ratings_there_are_and_a_rating_gets_the_nearest():
    levels_R = find_levels(np.array([4.0, 0.5, 3.0, 4.0], dtype=np.float32))
    assert levels_R.tolist() == [0.5, 3.0, 4.0]
    given = np.array([0.5, 1.0, 3.2, 4.0, 5.0, np.nan], dtype=np.float32)
    assert to_level(given, levels_R).tolist() == [1, 1, 2, 3, 3, 0]
    many = find_levels(np.linspace(0, 100, 5001, dtype=np.float32))
    assert len(many) == 20
    assert (many[0], many[-1]) == (0.0, 100.0)


def films(interactions: Interactions, events: Events) -> list[list[int]]:
    ids = [interactions.movie_ids_M[part.numpy()].tolist() for part in events.movie_E.split(events.count_U.tolist())]
    return [list(map(int, one)) for one in ids]


def test_a_fit_s_stream_ends_with_its_last_like_and_holds_no_other_like(tmp_path):
    interactions, streams = streams_of(tmp_path, ROWS)
    assert films(interactions, streams.fits["a"]) == [[10, 11, 12], [10, 11]]
    assert films(interactions, streams.fits["b"]) == [[10, 11, 12, 13, 14], [10, 11]]
    assert streams.fits["b"].like_E.tolist() == [True, False, True, False, True, False, True]
    assert streams.levels_R[streams.fits["b"].level_E[:5].long() - 1].tolist() == [4.0, 1.0, 4.5, 2.0, 5.0]
    assert films(interactions, streams.valid) == [[10, 11, 12, 13, 14, 15]]


def test_the_stream_of_likes_alone(tmp_path):
    interactions, streams = streams_of(tmp_path, ROWS, only_likes=True)
    assert films(interactions, streams.fits["b"]) == [[10, 12, 14], [11]]
    assert films(interactions, streams.valid) == [[10, 12, 14]]


def test_places_before_a_like_are_predicted_and_know_what_came_before(tmp_path):
    _, streams = streams_of(tmp_path, ROWS)
    events = streams.fits["b"]
    row_BW, length_B = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 0, 0, 0]]), torch.tensor([5, 2])
    targets, asked_BL = find_targets(events, row_BW, length_B, 0.0)
    assert asked_BL.tolist() == [[False, True, False, True], [True, False, False, False]]
    film = events.movie_E.long()
    assert targets.movie_R.tolist() == film[[2, 4, 6]].tolist()
    assert targets.weight_R.tolist() == pytest.approx([1 / 3] * 3)
    assert targets.known_user_K.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert targets.known_movie_K.tolist() == film[[0, 1, 0, 1, 2, 3, 5]].tolist()
    targets, asked_BL = find_targets(events, row_BW, length_B, 0.5)
    assert asked_BL.tolist() == [[True] * 4, [True, False, False, False]]
    assert targets.weight_R.tolist() == pytest.approx([0.125, 0.25, 0.125, 0.25, 0.25])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sequence")
    plant_split(folder / "split")
    (folder / "out").mkdir()
    train_sequence(folder / "split", folder / "out", settings(), 7)
    return folder / "split", folder / "out"


def test_planted_tastes_are_found(trained):
    curve = pl.read_parquet(trained[1] / "curve.parquet").filter(pl.col("fit") == "b")
    # an answer has a random place among the 20 films of the user's half that are left: .23 on average, .09 without
    # any taste
    assert curve["valid_ndcg_at_10"].max() > 0.16


def test_what_retrieval_reads_scores_like_what_was_trained(trained):
    split, out = trained
    interactions, trainer = trainer_of(split)
    trainer._model.load_state_dict(load_file(out / "fit_b.safetensors"))
    want_UM = trainer.scorer(interactions.valid.likes, torch.zeros(0))(
        torch.arange(interactions.valid.likes.num_viewers)
    )
    fit = load_sequence(out, seed=5)["b"]
    asked = {user: number for number, user in enumerate(interactions.valid.likes.user_ids_U.tolist())}
    rows = pl.read_parquet(split / "shard=*" / "part.parquet", hive_partitioning=False).sort("user_id", "position")
    before = [
        (asked[user], movie, rating, time, label != "other")
        for user, movie, rating, time, position, label, _ in rows.iter_rows()
        if user in asked and label in ("graph", "target")
    ]
    got_UM = fit.users(given(before, len(asked))) @ fit.movie_vectors_MD.T + fit.model.bias_M
    column_M = fit.catalogue.columns(interactions.movie_ids_M)
    torch.testing.assert_close(got_UM[:, torch.from_numpy(column_M)], want_UM, rtol=1e-5, atol=1e-5)


def test_the_benchmark_of_headroom_scores_candidates_by_the_rows_before_the_cutoff(trained):
    split, out = trained
    fit = load_sequence(out, seed=5, fits=("b",))["b"]
    parts = pl.read_parquet(split / "shard=*" / "part.parquet", hive_partitioning=False).sort("user_id", "position")
    asked = parts.filter(pl.col("label") == "valid").head(3).reverse().select("user_id", cutoff="position")
    queries = asked.with_columns(purpose=pl.lit("valid", dtype=PURPOSES))
    shown = fit.catalogue.ids_M[:6].tolist()
    found = headroom.own_scores(queries.with_columns(candidates=pl.lit(shown)), split, fit)
    for (user, cutoff), own in zip(asked.iter_rows(), found, strict=True):
        rows = parts.filter(pl.col("user_id") == user, pl.col("position") < cutoff)
        before = [
            (0, movie, rating, time, label != "other") for _, movie, rating, time, _, label, _ in rows.iter_rows()
        ]
        want_M = fit.users(given(before, 1))[0] @ fit.movie_vectors_MD.T + fit.model.bias_M
        assert list(own.values()) == pytest.approx(want_M[fit.catalogue.columns(np.array(shown))].tolist(), abs=1e-5)


def test_films_that_the_fit_does_not_know_are_passed_over(trained):
    fit = load_sequence(trained[1], seed=5, fits=("b",))["b"]
    known = given([(0, FIRST_MOVIE, 5.0, 3, True), (0, FIRST_MOVIE + 1, 4.0, 9, True)], 1)
    more = [(0, FIRST_MOVIE, 5.0, 3, True), (0, 9999, 5.0, 4, True), (0, FIRST_MOVIE + 1, 4.0, 9, True)]
    users_UD = fit.users(given([*more, (1, 9999, 5.0, 4, True)], 3))
    assert users_UD[0].tolist() == fit.users(known)[0].tolist()
    assert users_UD[1:].tolist() == torch.zeros(2, 16).tolist()


def test_stars_and_times_of_a_fresh_rating_count_at_once(trained):
    fit = load_sequence(trained[1], seed=5, fits=("b",))["b"]
    before = [(0, FIRST_MOVIE, 5.0, 3, True), (0, FIRST_MOVIE + 1, 5.0, 9, True)]
    vectors = [
        fit.users(given([before[0], last], 1))[0]
        for last in (before[1], (0, FIRST_MOVIE + 1, 1.0, 9, False), (0, FIRST_MOVIE + 1, 5.0, 10**6, True))
    ]
    assert not torch.allclose(vectors[0], vectors[1])
    assert not torch.allclose(vectors[0], vectors[2])


def test_places_know_when_the_next_event_was_and_valid_when_its_answer_was(tmp_path):
    _, streams = streams_of(tmp_path, ROWS)
    assert streams.valid.asked_U.tolist() == [20]
    assert streams.fits["b"].asked_U is None
    time_BL, length_B = torch.tensor([[5, 6, 7], [3, 9, 9]]), torch.tensor([3, 2])
    assert ask_next(time_BL, length_B, torch.tensor([40, 50])).tolist() == [[6, 7, 40], [9, 50, 50]]


def test_a_request_time_without_times_is_refused():
    with pytest.raises(ValueError, match="request_time = true needs time = true"):
        settings(request_time=True, time=False)


def test_rows_that_must_not_train_change_no_byte_of_fit_a(tmp_path):
    tensors = []
    for shift in (0, 1):
        split, out = tmp_path / f"split{shift}", tmp_path / f"out{shift}"
        plant_split(split, hidden_shift=shift)
        out.mkdir()
        train_sequence(split, out, settings(max_steps=4, eval_every=4), 7)
        tensors.append((out / "fit_a.safetensors").read_bytes())
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("viewers", [128, 129])
def test_the_number_of_threads_changes_no_bit(viewers, content):
    generator = torch.Generator().manual_seed(6)
    movie_UL = torch.rand(viewers, 800, generator=generator).argsort(dim=1)[:, :50]
    likes = Likes(np.arange(viewers, dtype=np.int32), torch.arange(viewers).repeat_interleave(50), movie_UL.flatten())
    events = Events(
        count_U=torch.full((viewers,), 50),
        movie_E=movie_UL.flatten().int(),
        level_E=torch.randint(1, 6, (viewers * 50,), generator=generator).to(torch.uint8),
        time_E=torch.randint(0, 10**6, (viewers, 50), generator=generator).cumsum(1).flatten(),
        like_E=torch.rand(viewers * 50, generator=generator) < 0.7,
    )
    content_MX = some_content(800, 90) if content else None
    found, threads = [], torch.get_num_threads()
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        config = settings(dim=64, max_length=48, batch_viewers=viewers, sampled_films=100)
        trainer = SequenceTrainer(events, likes, None, model_shape(config, 800, 5), config, 3, content_MX)
        losses = [trainer.step() for _ in range(2)]
        found.append((losses, trainer.export()))
    torch.set_num_threads(threads)
    for many in found[1:]:
        assert found[0][0] == many[0]
        assert all(torch.equal(tensor, many[1][name]) for name, tensor in found[0][1].items())


@pytest.mark.parametrize(
    "changes",
    [
        {"sampled_films": 0},
        {"sampled_films": 20, "temperature": 0.1, "tied": False},
        {"sampled_films": 20, "tied": False, "content": True},
    ],
)
def test_a_training_that_goes_on_from_its_state_makes_the_steps_of_one_that_was_never_stopped(trained, changes):
    fits = [trainer_of(trained[0], batch_viewers=20, **changes) for _ in range(2)]
    (interactions, first), (_, second) = fits
    for _ in range(4):
        first.step()
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    assert [first.step() for _ in range(5)] == [second.step() for _ in range(5)]
    assert judge(first, interactions.valid) == judge(second, interactions.valid)


def test_gradients_of_the_chunks_are_those_of_one_graph(trained):
    _, trainer = trainer_of(trained[0], dropout=0.0, sampled_films=0, other_weight=0.3)
    model, before = trainer._model, {}
    row_BW, length_B = trainer._cut()
    targets, asked_BL = find_targets(trainer._events, row_BW, length_B, 0.3)
    read_C, window = trainer._window(row_BW, length_B)
    films_CD = model.embedding_MD.index_select(0, read_C)
    users_PD = model(films_CD, window)[asked_BL]
    scores_PM = users_PD @ model.targets(model.scored_MD).T + model.bias_M
    scores_PM = scores_PM.index_put((targets.known_user_K, targets.known_movie_K), torch.tensor(-torch.inf))
    loss = (torch.nn.functional.cross_entropy(scores_PM, targets.movie_R, reduction="none") * targets.weight_R).sum()
    loss.backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    got = trainer._step(row_BW, length_B, targets, asked_BL)
    assert float(got.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, before[name], rtol=1e-3, atol=1e-6)


def test_damaged_files_are_refused_in_one_line(trained, tmp_path):
    out = trained[1]
    for path in out.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    described = json.loads((out / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(described | {"dim": 8}))
    with pytest.raises(InputError, match=r"'embedding_MD' has shape \(60, 16\), by model.json next to it \(60, 8\)"):
        load_sequence(tmp_path, 5)
    for broken in ({}, described | {"ratings": [1.0]}, described | {"heads": "two"}):
        (tmp_path / "model.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match="must describe the sequence model"):
            load_sequence(tmp_path, 5)
    (tmp_path / "model.json").write_text(json.dumps(described))
    tensors = load_file(out / "fit_a.safetensors")
    tensors.pop("norm.weight")
    save_file(tensors, tmp_path / "fit_a.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'norm\.weight'"):
        load_sequence(tmp_path, 5)


def test_a_user_with_one_like_trains_nothing_and_breaks_nothing(tmp_path):
    split = tmp_path / "split"
    streams_of(split, [ROWS[11], ROWS[9]])
    assert trainer_of(split)[1].step() == 0.0
