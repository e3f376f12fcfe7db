"""SASRec against a dense float64 transformer, its training, and its vectors as retrieval reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.graph_cases import plant_split
from tripletune.config import SasrecConfig
from tripletune.errors import InputError
from tripletune.models.sasrec.fit import SasrecTrainer, ask_next, train_sasrec
from tripletune.models.sasrec.model import SASRec, Shape
from tripletune.models.sasrec.serve import load_sasrec
from tripletune.models.serving.catalogue import Likes as ServedLikes
from tripletune.models.training.interactions import Batch, Likes, read_interactions
from tripletune.models.training.loop import judge
from tripletune.models.training.start import film_factors
from tripletune.models.training.windows import cut_windows, pack_newest

SHAPE = Shape(num_movies=30, dim=8, layers=2, heads=2, max_length=20)


def some_model() -> SASRec:
    generator = torch.Generator().manual_seed(3)
    model = SASRec(SHAPE, generator)
    with torch.no_grad():  # also what begins at zero or one
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(False)


def normalise(state: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    middle = state - state.mean()
    return middle / np.sqrt((middle**2).mean() + 1e-5) * gain + offset


def plain_vector(model: SASRec, history: list[int]) -> np.ndarray:
    """The output at the last like, place by place and head by head in float64 numpy."""
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    states = [weights["embedding_MD"][film] for film in history[-SHAPE.max_length :]]
    width = SHAPE.dim // SHAPE.heads
    for layer in range(SHAPE.layers):
        own = {name.split(".", 2)[2]: w for name, w in weights.items() if name.startswith(f"blocks.{layer}.")}
        normed = [normalise(state, own["norms.0.weight"], own["norms.0.bias"]) for state in states]
        read = np.stack([own["read.weight"] @ x + own["read.bias"] for x in normed])
        query, key, value = np.split(read, 3, axis=1)
        after = []
        for place, state in enumerate(states):
            heads = []
            for head in range(SHAPE.heads):
                mine = slice(head * width, (head + 1) * width)
                logits = np.array(
                    [
                        query[place, mine] @ key[other, mine] / np.sqrt(width) + own["distance_HL"][head, place - other]
                        for other in range(place + 1)
                    ]
                )
                share = np.exp(logits - logits.max())
                heads.append((share / share.sum()) @ value[: place + 1, mine])
            mixed = state + own["write.weight"] @ np.concatenate(heads) + own["write.bias"]
            wide = (
                own["widen.weight"] @ normalise(mixed, own["norms.1.weight"], own["norms.1.bias"]) + own["widen.bias"]
            )
            wide = wide * 0.5 * (1 + torch.erf(torch.from_numpy(wide) / 2**0.5).numpy())
            after.append(mixed + own["narrow.weight"] @ wide + own["narrow.bias"])
        states = after
    return normalise(states[-1], weights["norm.weight"], weights["norm.bias"])


def some_histories(num_viewers: int) -> list[list[int]]:
    rng = np.random.default_rng(8)
    lengths = [0, 1, 2, 20, 21, 60, *rng.integers(0, 40, num_viewers)]
    return [rng.integers(0, SHAPE.num_movies, length).tolist() for length in lengths[:num_viewers]]


def encode(model: SASRec, histories: list[list[int]]) -> torch.Tensor:
    user_E = torch.tensor([viewer for viewer, films in enumerate(histories) for _ in films], dtype=torch.int64)
    row_E = torch.tensor([film for films in histories for film in films], dtype=torch.int64)
    return model.encode(user_E, row_E, len(histories))


def test_a_viewer_is_the_dense_transformer_s_last_output():
    model, histories = some_model(), some_histories(12)
    got_UD = encode(model, histories)
    for vector_D, history in zip(got_UD, histories, strict=True):
        want_D = torch.from_numpy(plain_vector(model, history)) if history else torch.zeros(SHAPE.dim).double()
        # float32 through two blocks of sums over at most 20 likes
        torch.testing.assert_close(vector_D.double(), want_D, rtol=1e-4, atol=1e-5)


def test_a_viewer_is_the_same_to_the_byte_whoever_is_asked_about():
    model, histories = some_model(), some_histories(150)
    together_UD = encode(model, histories)
    for viewer in range(0, 150, 7):
        assert encode(model, [histories[viewer]])[0].tolist() == together_UD[viewer].tolist()
    assert encode(model, histories[::-1]).flip(0).tolist() == together_UD.tolist()


def test_only_the_newest_likes_count_and_later_ones_say_nothing_to_earlier_places():
    model = some_model()
    history = some_histories(6)[5]
    assert encode(model, [history])[0].tolist() == encode(model, [history[-20:]])[0].tolist()
    row_L = torch.tensor(history[:20])
    changed_L = torch.cat([row_L[:12], (row_L[12:] + 1) % SHAPE.num_movies])
    outputs = model(torch.stack([row_L, changed_L]))
    assert torch.equal(outputs[0, :12], outputs[1, :12])
    assert not torch.allclose(outputs[0, 12:], outputs[1, 12:])


def test_packing_keeps_the_newest_likes_oldest_first():
    user_E = torch.tensor([0, 0, 0, 2])
    row_UL, length_U = pack_newest(user_E, torch.tensor([5, 6, 7, 8]), 3, 2)
    assert row_UL.tolist() == [[6, 7], [0, 0], [8, 0]]
    assert length_U.tolist() == [2, 0, 1]
    with pytest.raises(ValueError, match="sorted by user"):
        pack_newest(user_E.flip(0), torch.tensor([5, 6, 7, 8]), 3, 2)


def test_windows_are_runs_of_the_history_and_end_anywhere():
    count_B = torch.tensor([3, 9, 1])
    user_R = torch.repeat_interleave(count_B)
    place_R = torch.cat([torch.arange(count) for count in count_B])
    movie_R = 10 * user_R + place_R
    batch = Batch(torch.arange(3), user_R, movie_R, place_R, count_B, torch.arange(13))
    generator, ends = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        window_BW, length_B = cut_windows(batch, movie_R, 5, generator)
        assert length_B.tolist() == [3, 5, 1]
        assert window_BW[0].tolist() == [0, 1, 2, 0, 0]
        assert window_BW[1].diff().tolist() == [1] * 4
        ends.add(int(window_BW[1, -1]))
    assert ends == {14, 15, 16, 17, 18}


def test_every_place_asks_for_what_follows_it_and_knows_only_what_came_before():
    window_BW = torch.tensor([[4, 5, 6, 7], [8, 9, 0, 0], [3, 0, 0, 0]])
    targets, asked_BL = ask_next(window_BW, torch.tensor([4, 2, 1]))
    assert asked_BL.tolist() == [[True, True, True], [True, False, False], [False, False, False]]
    assert targets.user_R.tolist() == [0, 1, 2, 3]
    assert targets.movie_R.tolist() == [5, 6, 7, 9]
    assert targets.weight_R.tolist() == [0.25] * 4
    known = list(zip(targets.known_user_K.tolist(), targets.known_movie_K.tolist(), strict=True))
    assert known == [(0, 4), (1, 4), (1, 5), (2, 4), (2, 5), (2, 6), (3, 8)]


def test_film_vectors_begin_as_singular_vectors_of_the_likes():
    generator = torch.Generator().manual_seed(4)
    # three groups of films with tastes of different strength, so that the first directions stand apart
    group_M, group_U = torch.arange(40) % 3, torch.arange(90) % 3
    chance_UM = torch.where(group_U.unsqueeze(1) == group_M, torch.tensor([0.9, 0.6, 0.4])[group_M], 0.05)
    liked_UM = torch.rand(90, 40, generator=generator) < chance_UM
    user_E, movie_E = liked_UM.nonzero(as_tuple=True)
    got_MD = film_factors(Likes(np.arange(90, dtype=np.int32), user_E, movie_E), 40, 3, generator).double()
    weighted_UM = liked_UM.double() / (liked_UM.sum(1, keepdim=True) * liked_UM.sum(0)).sqrt()
    _, size_D, right_DM = torch.linalg.svd(weighted_UM)
    want_MD = right_DM[:3].T * size_D[:3].sqrt()
    # what the films have in common with each other is theirs, but for noise of .3 of their own spread
    like_MM = [vectors @ vectors.T / (vectors @ vectors.T).norm() for vectors in (got_MD, want_MD)]
    assert float((like_MM[0] * like_MM[1]).sum()) > 0.9
    assert float(got_MD.pow(2).mean().sqrt()) == pytest.approx(0.1, rel=0.2)


def settings(**changes: object) -> SasrecConfig:
    small = {"dim": 16, "max_steps": 60, "eval_every": 10, "batch_viewers": 64, "learning_rate": 0.01}
    return SasrecConfig.model_validate(small | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sasrec")
    plant_split(folder / "split")
    (folder / "out").mkdir()
    train_sasrec(folder / "split", folder / "out", settings(), 7)
    return folder / "split", folder / "out"


def test_planted_tastes_are_found(trained):
    curve = pl.read_parquet(trained[1] / "curve.parquet").filter(pl.col("fit") == "b")
    # an answer has a random place among the 20 films of the user's half that are left: .23 on average, .09 without
    # any taste
    assert curve["valid_ndcg_at_10"].max() > 0.16


def test_what_retrieval_reads_scores_like_what_was_trained(trained):
    split, out = trained
    interactions = read_interactions(split)
    likes, trainer = interactions.fits["b"], SasrecTrainer(interactions.fits["b"], 60, settings(), 1)
    stored = load_file(out / "fit_b.safetensors")
    stored["embedding_MD"], stored["bias_M"] = stored.pop("movie_vectors"), stored.pop("movie_bias")
    trainer._model.load_state_dict(stored)
    want_UM = trainer.scorer(likes, torch.zeros(0))(torch.arange(likes.num_viewers))
    fit = load_sasrec(out, seed=5)["b"]
    age_E = (likes.counts().cumsum(0)[likes.user_E] - 1 - torch.arange(likes.user_E.numel())).numpy()
    shuffled = np.random.default_rng(0).permutation(len(age_E))
    read = ServedLikes(
        likes.user_E.numpy()[shuffled],
        interactions.movie_ids_M[likes.movie_E.numpy()][shuffled].astype(np.int64),
        age_E[shuffled].astype(np.int64),
    )
    got_UM = fit.users(read, likes.num_viewers) @ fit.movie_vectors_MD.T + fit.bias_M
    column_M = fit.catalogue.columns(interactions.movie_ids_M)
    torch.testing.assert_close(got_UM[:, torch.from_numpy(column_M)], want_UM, rtol=1e-5, atol=1e-5)


def test_films_that_the_fit_does_not_know_are_passed_over(trained):
    fit = load_sasrec(trained[1], seed=5, fits=("b",))["b"]
    known = ServedLikes(np.array([0, 0]), np.array([100, 101]), np.array([2, 0]))
    more = ServedLikes(np.array([0, 0, 0, 1]), np.array([100, 9999, 101, 9999]), np.array([2, 1, 0, 0]))
    users_UD = fit.users(more, 3)
    assert users_UD[0].tolist() == fit.users(known, 1)[0].tolist()
    assert users_UD[1:].tolist() == torch.zeros(2, 16).tolist()


def test_rows_that_must_not_train_change_no_byte_of_fit_a(tmp_path):
    tensors = []
    for shift in (0, 1):
        split, out = tmp_path / f"split{shift}", tmp_path / f"out{shift}"
        plant_split(split, hidden_shift=shift)
        out.mkdir()
        train_sasrec(split, out, settings(max_steps=4, eval_every=4), 7)
        tensors.append((out / "fit_a.safetensors").read_bytes())
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize("viewers", [128, 129])
def test_the_number_of_threads_changes_no_bit(viewers):
    generator = torch.Generator().manual_seed(6)
    user_E = torch.arange(viewers).repeat_interleave(50)  # 6,272 places: products over so many are shared by threads
    movie_E = torch.rand(viewers, 800, generator=generator).argsort(dim=1)[:, :50].flatten()
    likes, threads, found = Likes(np.arange(viewers, dtype=np.int32), user_E, movie_E), torch.get_num_threads(), []
    for num_threads in (1, 2, 4):
        torch.set_num_threads(num_threads)
        trainer = SasrecTrainer(likes, 800, settings(dim=64, batch_viewers=viewers, sampled_films=100), 3)
        losses = [trainer.step() for _ in range(2)]
        scores_VM = trainer.scorer(likes, torch.zeros(0))(torch.arange(9))
        found.append((losses, scores_VM, trainer.export()))
    torch.set_num_threads(threads)
    for many in found[1:]:
        assert found[0][0] == many[0]
        assert torch.equal(found[0][1], many[1])
        assert all(torch.equal(tensor, many[2][name]) for name, tensor in found[0][2].items())


@pytest.mark.parametrize("sampled", [0, 20])
def test_a_training_that_goes_on_from_its_state_makes_the_steps_of_one_that_was_never_stopped(trained, sampled):
    interactions = read_interactions(trained[0])
    fits = [
        SasrecTrainer(interactions.fits["b"], 60, settings(batch_viewers=20, sampled_films=sampled), 1)
        for _ in range(2)
    ]
    for _ in range(4):
        fits[0].step()
    fits[1].load_state({name: tensor.clone() for name, tensor in fits[0].state().items()})
    assert [fits[0].step() for _ in range(5)] == [fits[1].step() for _ in range(5)]
    assert judge(fits[0], interactions.valid) == judge(fits[1], interactions.valid)


def test_damaged_files_are_refused_in_one_line(trained, tmp_path):
    out = trained[1]
    for path in out.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.json").write_text(json.dumps({"dim": 8, "layers": 2, "heads": 2, "max_length": 50}))
    with pytest.raises(InputError, match=r"'movie_vectors' has shape \(60, 16\), by model.json next to it \(60, 8\)"):
        load_sasrec(tmp_path, 5)
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="must hold whole numbers dim, layers, heads, max_length"):
        load_sasrec(tmp_path, 5)
    (tmp_path / "model.json").write_bytes((out / "model.json").read_bytes())
    tensors = load_file(out / "fit_a.safetensors")
    tensors.pop("norm.weight")
    save_file(tensors, tmp_path / "fit_a.safetensors")
    with pytest.raises(InputError, match=r"no tensor 'norm\.weight'"):
        load_sasrec(tmp_path, 5)


def test_a_viewer_with_one_like_trains_nothing_and_breaks_nothing():
    likes = Likes(np.array([1, 2], dtype=np.int32), torch.tensor([0, 1]), torch.tensor([3, 4]))
    trainer = SasrecTrainer(likes, 6, settings(), 0)
    assert trainer.step() == 0.0
