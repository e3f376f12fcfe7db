"""LightGCN against the published model as dense float64 matrices, its losses against plain torch, and its training."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.graph_cases import plant_split
from tests.resuming import check_resumes
from tripletune.config import LightGCNConfig
from tripletune.errors import ConfigError, InputError, UserError
from tripletune.models.lightgcn.fit import LightGCNTrainer, cut_histories, train_lightgcn
from tripletune.models.lightgcn.loss import FilmSample, Targets, bpr_loss, draw_negatives, draw_unliked, softmax_loss
from tripletune.models.lightgcn.model import POOL_POWER, LightGCN, LikeGraph
from tripletune.models.message_passing import dgl_backend, graph
from tripletune.models.message_passing.dgl_backend import DglRows
from tripletune.models.message_passing.torch_backend import TorchRows
from tripletune.models.serving.pooling import pool_users
from tripletune.models.training.interactions import Batch, Likes, batches, newest_first_age, read_interactions

NUM_VIEWERS, NUM_MOVIES, DIM = 7, 5, 4
BETWEEN = 0.16
"""Users like half of 60 films evenly: an answer has a random place among the 20 films of that half that are
left, 0.23 on average, or among all 50 that are left, 0.09, when taste is not found."""


def likes(isolated: bool) -> torch.Tensor:
    liked_UM = torch.rand(NUM_VIEWERS, NUM_MOVIES, generator=torch.Generator().manual_seed(0)) < 0.5
    if isolated:  # the last film and the last user
        liked_UM[:, -1], liked_UM[-1] = False, False
    return liked_UM


def dense_lightgcn(base_ND: torch.Tensor, liked_UM: torch.Tensor, layers: int) -> torch.Tensor:
    """Mean over k = 0..K of (D^-1/2 A D^-1/2)^k E0 over users and films together, in float64; likes or weights."""
    num_nodes = sum(liked_UM.shape)
    a = torch.zeros(num_nodes, num_nodes, dtype=torch.float64)
    a[: len(liked_UM), len(liked_UM) :] = liked_UM.double()
    a = a + a.T
    scale = torch.diag(torch.tensor([d**-0.5 if d else 0.0 for d in a.sum(1).tolist()], dtype=torch.float64))
    powers = [torch.linalg.matrix_power(scale @ a @ scale, k) @ base_ND for k in range(layers + 1)]
    return torch.stack(powers).mean(0)


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("backend", ["dgl", "torch"])
def test_films_and_viewers_are_those_of_the_dense_model_with_zero_users(layers, isolated, backend):
    liked_UM = likes(isolated)
    user_E, movie_E = liked_UM.nonzero(as_tuple=True)
    model = LightGCN(NUM_MOVIES, DIM, layers, torch.Generator().manual_seed(1))
    movies_MD, pool_MD = model(LikeGraph.build(user_E, movie_E, NUM_VIEWERS, NUM_MOVIES, backend))
    users_UD = pool_users(pool_MD, user_E, movie_E, newest_first_age(user_E, NUM_VIEWERS), NUM_VIEWERS, 0.0, POOL_POWER)
    base_ND = torch.cat([torch.zeros(NUM_VIEWERS, DIM), model.embedding_MD.detach()]).double()
    want_ND = dense_lightgcn(base_ND, liked_UM, layers)
    got_ND = torch.cat([users_UD, movies_MD]).double()
    # float32 sums over at most seven neighbours and four layers
    torch.testing.assert_close(got_ND, want_ND, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["dgl", "torch"])
def test_weighted_likes_are_those_of_the_dense_weighted_model(backend):
    liked_UM = likes(True)
    user_E, movie_E = liked_UM.nonzero(as_tuple=True)
    weight_E = torch.rand(len(user_E), generator=torch.Generator().manual_seed(3)) + 0.1
    weight_UM = liked_UM.double()
    weight_UM[user_E, movie_E] = weight_E.double()
    model = LightGCN(NUM_MOVIES, DIM, 4, torch.Generator().manual_seed(1))
    graph = LikeGraph.build(user_E, movie_E, NUM_VIEWERS, NUM_MOVIES, backend, weight_E)
    base_ND = torch.cat([torch.zeros(NUM_VIEWERS, DIM), model.embedding_MD.detach()]).double()
    want_MD = dense_lightgcn(base_ND, weight_UM, 4)[NUM_VIEWERS:]
    torch.testing.assert_close(model(graph)[0].double(), want_MD, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backend", ["dgl", "torch"])
def test_gradient_of_the_propagation_is_that_of_finite_differences(weighted, backend):
    user_E, movie_E = likes(True).nonzero(as_tuple=True)
    weight_E = torch.rand(len(user_E), generator=torch.Generator().manual_seed(3)) if weighted else None
    graph = LikeGraph.build(user_E, movie_E, NUM_VIEWERS, NUM_MOVIES, backend, weight_E)
    model = LightGCN(NUM_MOVIES, DIM, 3, torch.Generator().manual_seed(1)).double()

    def propagate(embedding_MD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.functional_call(model, {"embedding_MD": embedding_MD}, (graph,))

    assert torch.autograd.gradcheck(propagate, (model.embedding_MD.detach().clone().requires_grad_(),))


def softmax_case(num_viewers: int) -> tuple[list[torch.Tensor], Targets]:
    generator = torch.Generator().manual_seed(2)
    inputs = [
        torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
        for shape in ((num_viewers, 3), (6, 3), (6,))
    ]
    user_R = torch.arange(num_viewers).repeat_interleave(2)
    movie_R = torch.tensor([0, 2]).repeat(num_viewers)
    known = torch.arange(0, num_viewers, 2)
    weight_R = torch.rand(2 * num_viewers, dtype=torch.float64, generator=generator)
    return inputs, Targets(user_R, movie_R, weight_R, known, torch.full_like(known, 4))


@pytest.mark.parametrize("num_viewers", [3, 300])  # less and more than a block
def test_softmax_loss_and_gradients_are_those_of_plain_log_softmax(num_viewers):
    inputs, targets = softmax_case(num_viewers)
    loss = softmax_loss(*inputs, targets)
    got = torch.autograd.grad(loss, inputs)
    users_BD, movies_MD, bias_M = inputs
    scores_BM = users_BD @ movies_MD.T + bias_M
    known = torch.zeros_like(scores_BM, dtype=torch.bool)
    known[targets.known_user_K, targets.known_movie_K] = True
    log_share_BM = scores_BM.masked_fill(known, -torch.inf).log_softmax(dim=1)
    want_loss = -(targets.weight_R * log_share_BM[targets.user_R, targets.movie_R]).sum()
    torch.testing.assert_close(loss, want_loss)
    for mine, theirs in zip(got, torch.autograd.grad(want_loss, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("size", [2, 100])  # some of the other films, and more than there are
def test_sampled_softmax_is_plain_log_softmax_over_the_sample_with_log_q(size):
    inputs, targets = softmax_case(300)  # the targets are films 0 and 2, film 4 is a known like of half the users
    sample = FilmSample.draw(targets.movie_R, 6, size, torch.Generator().manual_seed(4))
    loss = softmax_loss(*inputs, sample.columns(targets, 6), sample)
    got = torch.autograd.grad(loss, inputs)
    users_BD, movies_MD, bias_M = inputs
    drawn = sorted(set(sample.movie_C.tolist()) - {0, 2})
    assert len(drawn) == min(size, 4)
    correction_M = torch.full((6,), -torch.inf, dtype=torch.float64)
    correction_M[[0, 2]] = 0.0
    correction_M[drawn] = np.log(4 / len(drawn))
    scores_BM = users_BD @ movies_MD.T + bias_M + correction_M
    scores_BM[targets.known_user_K, targets.known_movie_K] = -torch.inf
    want_loss = -(targets.weight_R * scores_BM.log_softmax(dim=1)[targets.user_R, targets.movie_R]).sum()
    torch.testing.assert_close(loss, want_loss)
    for mine, theirs in zip(got, torch.autograd.grad(want_loss, inputs), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_sum_over_a_sample_is_on_average_the_sum_over_all_films():
    mass_M = torch.tensor([5.0, 1.0, 0.5, 3.0, 7.0, 0.1])
    generator = torch.Generator().manual_seed(0)
    samples = [FilmSample.draw(torch.tensor([0, 2, 2]), 6, 2, generator) for _ in range(600)]
    times = Counter(tuple(sample.movie_C.tolist()) for sample in samples)
    assert len(times) == 6  # every pair of the four films that are no target
    assert min(times.values()) > 100 - 5 * 10  # 600 draws over six pairs: five standard deviations
    by_films = {tuple(sample.movie_C.tolist()): sample for sample in samples}
    sums = [float((mass_M[one.movie_C] * one.correction_C.exp()).sum()) for one in by_films.values()]
    assert np.mean(sums) == pytest.approx(float(mass_M.sum()))


@pytest.mark.parametrize("sampled", [False, True])
def test_what_a_viewer_is_known_to_like_is_no_negative_in_the_softmax(sampled):
    inputs, targets = softmax_case(1)  # one user, who likes films 0, 2 and 4
    sample = FilmSample.draw(targets.movie_R, 6, 4, torch.Generator()) if sampled else None
    columns = sample.columns(targets, 6) if sample else targets
    push_MD = torch.autograd.grad(softmax_loss(*inputs, columns, sample), inputs[1])[0]
    assert push_MD[4].eq(0).all()
    assert push_MD[[1, 3, 5]].ne(0).any(dim=1).all()


def test_bpr_negatives_are_uniform_over_the_films_nobody_knows_as_likes():
    liked_UM = likes(False)
    liked = liked_UM.flatten().nonzero().squeeze(1)
    user_R = torch.arange(NUM_VIEWERS)[~liked_UM.all(dim=1)].repeat_interleave(4000)
    drawn_R = draw_unliked(user_R, liked, NUM_MOVIES, torch.Generator().manual_seed(0))
    counts_UM = torch.zeros(NUM_VIEWERS, NUM_MOVIES).index_put_(
        (user_R, drawn_R), torch.ones(len(user_R)), accumulate=True
    )
    assert counts_UM[liked_UM].eq(0).all()
    for viewer in user_R.unique().tolist():
        free = counts_UM[viewer][~liked_UM[viewer]]
        # 4,000 draws over k films: five standard deviations are below 5 * sqrt(4000 / k)
        assert (free - 4000 / len(free)).abs().max() < 5 * (4000 / len(free)) ** 0.5


def test_bpr_loss_is_the_published_formula():
    generator = torch.Generator().manual_seed(0)
    users_BD, movies_MD = torch.randn(1, 3, generator=generator), torch.randn(3, 3, generator=generator)
    targets = Targets(
        torch.tensor([0]), torch.tensor([1]), torch.tensor([1.0]), torch.tensor([0]), torch.tensor([0])
    )  # film 2 is the only possible negative
    margin = float(users_BD[0] @ (movies_MD[1] - movies_MD[2]))
    negative_R = draw_negatives(targets, 3, generator)
    assert float(bpr_loss(users_BD, movies_MD, targets, negative_R)) == pytest.approx(np.log1p(np.exp(-margin)))


def test_a_cut_history_never_has_its_targets_among_what_makes_the_viewer():
    user_E = torch.tensor([0] * 6 + [1] + [2] * 3)
    movie_E = torch.tensor([5, 3, 1, 0, 2, 4, 0, 1, 2, 3])
    source = batches(Likes(np.array([10, 11, 12], dtype=np.int32), user_E, movie_E), 8, torch.Generator())
    for seed in range(20):
        batch: Batch = next(source)
        targets = cut_histories(batch, 2.0, torch.Generator().manual_seed(seed))
        assert float(targets.weight_R.sum()) == pytest.approx(1.0)
        for number, viewer in enumerate(batch.users_B.tolist()):
            history = movie_E[user_E == viewer].tolist()
            known = targets.known_movie_K[targets.known_user_K == number].tolist()
            asked = targets.movie_R[targets.user_R == number].tolist()
            assert known + asked == history
            assert known
            weights = targets.weight_R[targets.user_R == number].tolist()
            for earlier, later in itertools.pairwise(weights):
                assert later / earlier == pytest.approx(0.5**0.5)


def settings(**changes: object) -> LightGCNConfig:
    return LightGCNConfig.model_validate({"dim": 16, "max_steps": 40, "eval_every": 10, "batch_viewers": 64} | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, object]]:
    root = tmp_path_factory.mktemp("lightgcn")
    plant_split(root / "split")
    (root / "out").mkdir()
    return root / "split", root / "out", train_lightgcn(root / "split", root / "out", settings(), seed=3)


def test_training_finds_planted_taste_and_beats_popularity(trained):
    assert trained[2]["best_valid_ndcg_at_10"] > BETWEEN


def test_exported_vectors_score_as_the_model_does(trained):
    split = trained[0]
    interactions = read_interactions(split)
    trainer = LightGCNTrainer(interactions.fits["b"], interactions.num_movies, settings(), 7)
    run_steps = [trainer.step() for _ in range(3)]
    assert all(np.isfinite(run_steps))
    exported = trainer.export()
    likes_b = interactions.fits["b"]
    age_E = newest_first_age(likes_b.user_E, likes_b.num_viewers)
    pooled = pool_users(
        exported["pool_vectors"],
        likes_b.user_E,
        likes_b.movie_E,
        age_E,
        likes_b.num_viewers,
        settings().recency_half_life,
        POOL_POWER,
    )
    want = trainer.scorer(likes_b, age_E)(torch.arange(likes_b.num_viewers))
    torch.testing.assert_close(pooled @ exported["movie_vectors"].T + exported["movie_bias"], want)


def test_a_fit_is_trained_on_its_own_labels_and_never_on_an_unseen_viewer(trained):
    split, out, _ = trained
    rows = pl.read_parquet(split / "*/part.parquet")
    trained_on = pl.read_parquet(out / "trained_on.parquet")
    for fit, labels in (("a", ["graph"]), ("b", ["graph", "target"])):
        want = rows.filter(pl.col("label").is_in(labels), ~pl.col("unseen")).select("user_id", "movie_id")
        got = trained_on.filter(pl.col("fit") == fit).select("user_id", "movie_id")
        assert got.sort("user_id", "movie_id").equals(want.sort("user_id", "movie_id"))


def test_fit_a_runs_the_steps_fit_b_needed_without_looking(trained):
    curve = pl.read_parquet(trained[1] / "curve.parquet")
    best = curve.filter(pl.col("fit") == "b").sort("valid_ndcg_at_10", "step", descending=[True, False])["step"][0]
    fit_a = curve.filter(pl.col("fit") == "a")
    assert fit_a["step"].max() == best == trained[2]["steps"]
    assert fit_a["valid_ndcg_at_10"].is_null().all()


def test_same_seed_same_bytes_and_another_seed_other_bytes(trained, tmp_path):
    for name, seed in (("same", 3), ("other", 4)):
        (tmp_path / name).mkdir()
        train_lightgcn(trained[0], tmp_path / name, settings(), seed=seed)
    for fit in ("fit_a", "fit_b"):
        first = (trained[1] / f"{fit}.safetensors").read_bytes()
        assert first == (tmp_path / "same" / f"{fit}.safetensors").read_bytes()
        assert first != (tmp_path / "other" / f"{fit}.safetensors").read_bytes()


KINDS = ({}, {"sampled_films": 15}, {"edge_half_life": 4.0}, {"loss": "bpr"})


@pytest.mark.parametrize("changes", [*KINDS, {"message_passing": "torch"}], ids=str)
def test_any_number_of_threads_writes_the_same_bytes(trained, tmp_path, monkeypatch, changes):
    monkeypatch.setattr(dgl_backend, "BLOCK_EDGES", 64)
    before = torch.get_num_threads()
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        try:
            (tmp_path / str(threads)).mkdir()
            train_lightgcn(trained[0], tmp_path / str(threads), settings(max_steps=6, **changes), seed=3)
        finally:
            torch.set_num_threads(before)
    for fit in ("fit_a", "fit_b"):
        alone, *others = ((tmp_path / str(threads) / f"{fit}.safetensors").read_bytes() for threads in (1, 2, 4))
        assert others == [alone, alone]


@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_losses_scores_and_vectors_of_a_wide_batch_do_not_depend_on_the_number_of_threads(loss):
    generator = torch.Generator().manual_seed(0)
    user_E = torch.arange(300).repeat_interleave(120)  # 36,000 rows: a sum over so many is shared by threads
    movie_E = torch.rand(300, 800, generator=generator).argsort(dim=1)[:, :120].flatten()
    likes, before, found = Likes(np.arange(300, dtype=np.int32), user_E, movie_E), torch.get_num_threads(), []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        trainer = LightGCNTrainer(likes, 800, settings(dim=64, batch_viewers=300, loss=loss), 3)
        losses = [trainer.step() for _ in range(2)]
        scores_VM = trainer.scorer(likes, newest_first_age(user_E, 300))(torch.arange(9))
        found.append([torch.tensor(losses), scores_VM, *trainer.export().values()])
    torch.set_num_threads(before)
    for many in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], many, strict=True))


@pytest.mark.parametrize("viewers", [1, 129, 150])
def test_the_softmax_over_a_long_catalogue_has_the_same_bytes_with_any_number_of_threads(viewers):
    # sums so long that the library would share them out among threads; a product of one row it takes another way
    generator = torch.Generator().manual_seed(0)
    shapes = ((viewers, 16), (3000, 16), (3000,))
    inputs = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    user_R = torch.arange(viewers).repeat_interleave(10)
    movie_R = torch.randint(2000, user_R.shape, generator=generator)
    none = user_R[:0]
    targets = Targets(user_R, movie_R, torch.rand(user_R.shape, generator=generator), none, none)

    def gradients(threads: int) -> list[torch.Tensor]:
        torch.set_num_threads(threads)
        loss = softmax_loss(*inputs, targets)
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    before = torch.get_num_threads()
    try:
        one, *others = [gradients(threads) for threads in (1, 2, 4)]
    finally:
        torch.set_num_threads(before)
    for other in others:
        assert all(mine.equal(theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_killed_training_goes_on_to_the_bytes_of_one_that_was_not(trained, tmp_path, monkeypatch, changes):
    wanted = settings(max_steps=8, eval_every=3, checkpoint_minutes=0, **changes)
    check_resumes(
        lambda out: train_lightgcn(trained[0], out, wanted, seed=3), LightGCNTrainer, 8, tmp_path, monkeypatch
    )


def test_memory_is_stated_before_the_first_step_and_refused_in_one_line(trained, tmp_path, monkeypatch, caplog):
    with caplog.at_level("INFO"):
        train_lightgcn(trained[0], tmp_path, settings(max_steps=1), seed=3)
    assert "LightGCN on 54 users, 60 films and 540 likes (GiB: graph 0.00, " in caplog.messages[1]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20})())
    monkeypatch.setattr(LightGCNTrainer, "step", lambda self: pytest.fail("it started"))
    with pytest.raises(InputError, match=r"needs 7\.\d GiB of memory and 0\.0 GiB are free; lower lightgcn\.dim"):
        train_lightgcn(trained[0], tmp_path, settings(dim=2_000_000), seed=3)


@pytest.mark.parametrize(
    ("changes", "backend", "reason"),
    [
        ({}, "dgl", "540 edges x 16 is at most 134,217,728 values on a CPU"),
        ({"edge_half_life": 5.0}, "torch", "DGL's weighted sums of wide features are three to six times slower"),
        ({"message_passing": "torch"}, "torch", "as configured"),
    ],
)
def test_log_and_manifest_say_which_back_end_ran_and_why(
    trained, tmp_path, monkeypatch, caplog, changes, backend, reason
):
    monkeypatch.setattr(graph, "HAS_AVX2", True)
    with caplog.at_level("INFO"):
        facts = train_lightgcn(trained[0], tmp_path, settings(max_steps=1, device="cpu", **changes), seed=3)
    assert (facts["message_passing"], facts["message_passing_reason"]) == (backend, reason)
    assert caplog.messages[0] == f"LightGCN: message passing by {backend}: {reason}"


def test_both_fits_have_the_back_end_of_the_larger(trained, tmp_path, monkeypatch):
    built: list[str] = []
    build = LikeGraph.build
    monkeypatch.setattr(LikeGraph, "build", lambda *args: built.append(args[4]) or build(*args))
    likes = {fit: part.user_E.numel() for fit, part in read_interactions(trained[0]).fits.items()}
    assert likes["a"] < likes["b"]
    monkeypatch.setattr(graph, "SUM_VALUES", likes["a"] * 16)  # between the two
    train_lightgcn(trained[0], tmp_path, settings(max_steps=1), seed=3)
    assert built == ["torch", "torch"]


def test_a_gpu_that_is_not_there_is_one_line(trained, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="torch sees no GPU here"):
        train_lightgcn(trained[0], tmp_path, settings(device="cuda"), seed=3)


def test_the_back_ends_learn_the_same(trained, tmp_path, monkeypatch):
    calls: list[str] = []
    for backend, rows in (("dgl", DglRows), ("torch", TorchRows)):
        compute = rows.sum
        monkeypatch.setattr(rows, "sum", lambda *a, name=backend, to=compute: calls.append(name) or to(*a))
        (tmp_path / backend).mkdir()
        train_lightgcn(trained[0], tmp_path / backend, settings(max_steps=3, message_passing=backend), seed=3)
        assert set(calls) == {backend}  # two programs, not one under two names; their bits may well be equal
        calls.clear()
    dgl, other = (load_file(tmp_path / backend / "fit_b.safetensors") for backend in ("dgl", "torch"))
    for name in dgl:
        torch.testing.assert_close(dgl[name], other[name], rtol=1e-3, atol=1e-4)


def test_hidden_rows_do_not_change_what_is_trained(trained, tmp_path):
    # the test like, the valid like of fit a, and unseen users are no training data: replace their films
    plant_split(tmp_path / "split", hidden_shift=1)
    (tmp_path / "out").mkdir()
    train_lightgcn(tmp_path / "split", tmp_path / "out", settings(max_steps=10), seed=3)
    (tmp_path / "first").mkdir()
    train_lightgcn(trained[0], tmp_path / "first", settings(max_steps=10), seed=3)
    one, two = (load_file(tmp_path / name / "fit_a.safetensors") for name in ("out", "first"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_published_loss_trains_too(trained, tmp_path):
    # without the recency and popularity that the default adds
    published = settings(loss="bpr", recency_half_life=0.0, temperature=1.0, max_steps=60)
    facts = train_lightgcn(trained[0], tmp_path, published, seed=3)
    assert facts["best_valid_ndcg_at_10"] > BETWEEN
    assert load_file(tmp_path / "fit_b.safetensors")["movie_bias"].eq(0).all()


def test_a_loss_that_runs_away_is_one_line(trained, tmp_path):
    with pytest.raises(UserError, match="lower learning_rate"):
        train_lightgcn(trained[0], tmp_path, settings(learning_rate=1e30), seed=3)


def test_a_split_without_shards_is_refused(tmp_path):
    with pytest.raises(InputError, match="run the split stage"):
        train_lightgcn(tmp_path, tmp_path, settings(), seed=3)
