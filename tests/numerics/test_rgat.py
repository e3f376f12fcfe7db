"""R-GAT against plain loops in float64, its scores against sums by hand, and its training against planted tastes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from tests.graph_cases import FIRST_MOVIE, NUM_MOVIES, director_of, plant_knowledge, plant_split
from tests.resuming import check_resumes
from tripletune.config import RgatConfig
from tripletune.errors import InputError
from tripletune.models.rgat.fit import NO_TRIPLES_BIAS, RgatTrainer, train_rgat
from tripletune.models.rgat.knowledge import Knowledge, read_knowledge
from tripletune.models.rgat.model import NEGATIVE_SLOPE, RelationalGraph, Rgat
from tripletune.models.rgat.scores import FilmScores, renormalise, segment_logsumexp
from tripletune.models.serving.pooling import pool_users
from tripletune.models.training.interactions import Likes, newest_first_age, read_interactions

# seven nodes: films 0..2, facts 3..5, and 6 that nothing touches; two relations between 0 and 3
TRIPLES = [(0, 0, 3), (0, 1, 3), (0, 1, 4), (1, 0, 3), (1, 1, 5), (2, 0, 4)]
NUM_NODES, NUM_RELATIONS = 7, 2


def build_graph(triples: list[tuple[int, int, int]] = TRIPLES) -> RelationalGraph:
    head_T, relation_T, tail_T = torch.tensor(triples).T
    return RelationalGraph.build(head_T, relation_T, tail_T, NUM_NODES, NUM_RELATIONS, "dgl")


def build_model(**changes: int) -> Rgat:
    shape = {"dim": 6, "heads": 2, "layers": 1, "bases": 0} | changes
    model = Rgat(NUM_NODES, 2 * NUM_RELATIONS + 1, **shape, generator=torch.Generator().manual_seed(1)).double()
    for layer in model.layers:  # starts at zero, where a reference could forget it
        torch.nn.init.normal_(layer.relation_CHW, generator=torch.Generator().manual_seed(2))
    return model


def incoming(node: int) -> list[tuple[int, int, int]]:
    """(relation, source, number of the triple or -1) of everything a node hears."""
    heard = [(r, t, number) for number, (h, r, t) in enumerate(TRIPLES) if h == node]
    heard += [(NUM_RELATIONS + r, h, -1) for h, r, t in TRIPLES if t == node]
    return [*heard, (2 * NUM_RELATIONS, node, -1)]


def matrices(part: torch.nn.Module) -> np.ndarray:
    blocks = part.matrices_BDD.detach().numpy()
    if part.mixture_CB is None:
        return blocks
    return np.stack([sum(c * b for c, b in zip(row, blocks, strict=True)) for row in part.mixture_CB.detach().numpy()])


def by_loops(model: Rgat) -> tuple[np.ndarray, np.ndarray]:
    """Node by node, head by head, edge by edge, as the formula reads."""
    h = model.embedding_ND.detach().numpy()
    alphas = np.zeros(len(TRIPLES))
    for depth, layer in enumerate(model.layers):
        before = h
        if depth:
            h = np.where(h > 0, h, np.exp(h) - 1)
        w_all, v_all = matrices(layer.destination), matrices(layer.source)
        a_all, g_all = layer.attention_CHW.detach().numpy(), layer.relation_CHW.detach().numpy()
        heads, width = a_all.shape[1:]
        out, alphas = np.zeros_like(h), np.zeros(len(TRIPLES))
        for node in range(NUM_NODES):
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores, messages = [], []
                for r, source, _ in incoming(node):
                    message = (h[source] @ v_all[r])[part]
                    inner = (h[node] @ w_all[r])[part] + message + g_all[r, head]
                    scores.append(float(a_all[r, head] @ np.where(inner > 0, inner, NEGATIVE_SLOPE * inner)))
                    messages.append(message)
                shares = np.exp(scores) / np.exp(scores).sum()
                out[node, part] = shares @ np.stack(messages)
                for share, (_, _, number) in zip(shares, incoming(node), strict=True):
                    alphas[number] += share / heads if number >= 0 else 0.0
        h = before + out
    return h, alphas


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("bases", [0, 2])
def test_forward_is_the_formula_node_by_node(layers, heads, bases):
    model = build_model(layers=layers, heads=heads, bases=bases)
    got_ND, got_T = model(build_graph())
    want_ND, want_T = by_loops(model)
    torch.testing.assert_close(got_ND, torch.from_numpy(want_ND), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(got_T, torch.from_numpy(want_T), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bases", [0, 2])
def test_a_film_and_a_fact_of_it_are_alike_from_the_start(bases):
    generator = torch.Generator().manual_seed(1)
    model = Rgat(NUM_NODES, 2 * NUM_RELATIONS + 1, dim=600, heads=2, layers=1, bases=bases, generator=generator)
    nodes_ND = torch.nn.functional.normalize(model(build_graph())[0].detach())
    alike_NN = nodes_ND @ nodes_ND.T
    of_film = {(head, tail) for head, _, tail in TRIPLES}
    for film, fact in itertools.product(range(3), range(3, 6)):
        if (film, fact) in of_film:
            assert float(alike_NN[film, fact]) > 0.3
        else:
            assert float(alike_NN[film, fact]) < 0.15


def test_float32_agrees_with_float64():
    model = build_model(layers=2)
    want_ND, want_T = model(build_graph())
    got_ND, got_T = model.float()(build_graph())
    torch.testing.assert_close(got_ND.double(), want_ND, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_T.double(), want_T, rtol=1e-5, atol=1e-5)


def receivers(graph: RelationalGraph) -> torch.Tensor:
    """Node at which each edge arrives, by the pairs that the scores read."""
    pairs = graph.destination_node_Q.split(graph.destination_blocks)
    return torch.cat([pair[q] for pair, q in zip(pairs, graph.destination_E.split(graph.edge_blocks), strict=True)])


def test_attention_of_every_node_sums_to_one_in_every_head():
    graph, model = build_graph(), build_model()
    _, alpha_EH = model.layers[0](model.embedding_ND, graph)
    receiver_E = receivers(graph)
    for node in range(NUM_NODES):
        mine_EH = alpha_EH[receiver_E == node]
        assert len(mine_EH) == len(incoming(node))
        torch.testing.assert_close(mine_EH.sum(dim=0), torch.ones(2).double())


def test_the_graph_and_the_model_stay_on_the_device_of_the_triples():
    head_T, relation_T, tail_T = torch.tensor(TRIPLES).T
    model = build_model(layers=2, bases=2)
    with torch.device("meta"):  # whatever is made without a device lands there, and cannot meet the CPU's tensors
        graph = RelationalGraph.build(head_T, relation_T, tail_T, NUM_NODES, NUM_RELATIONS, "torch")
        nodes_ND, alpha_T = model(graph)
        (nodes_ND.sum() + alpha_T.sum()).backward()
    want_ND, want_T = by_loops(model)
    torch.testing.assert_close(nodes_ND, torch.from_numpy(want_ND), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(alpha_T, torch.from_numpy(want_T), rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_finite_differences():
    graph, model = build_graph(), build_model(bases=2)
    names = [name for name, _ in model.named_parameters()]
    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())

    def forward(*parameters: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (graph,))

    assert torch.autograd.gradcheck(forward, values)


def test_a_fact_hears_of_its_films_through_the_inverse_relation():
    graph, model = build_graph(), build_model()
    model.embedding_ND.grad = None
    entities_ND, _ = model(graph)
    entities_ND[5].square().sum().backward()
    heard = model.embedding_ND.grad.abs().sum(dim=1) > 0
    assert heard.tolist() == [False, True, False, False, False, True, False]  # film 1, and itself


def test_a_relation_without_triples_changes_nothing_for_the_others():
    only_the_second = [triple for triple in TRIPLES if triple[1] == 1]
    model = build_model()
    nodes_ND, alpha_T = model(build_graph(only_the_second))
    nodes_ND.sum().backward()
    assert torch.isfinite(nodes_ND).all()
    assert alpha_T.shape == (len(only_the_second),)
    assert float(model.layers[0].source.matrices_BDD.grad[0].abs().sum()) == 0.0


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="divisible by heads"):
        build_model(heads=4)
    with pytest.raises(ValidationError, match="dim = 64 must be a multiple of heads = 3"):
        RgatConfig(heads=3)


def test_segment_logsumexp_is_logsumexp_of_each_segment_and_zero_of_an_empty_one():
    generator = torch.Generator().manual_seed(0)
    values_XU = (torch.randn(7, 3, dtype=torch.float64, generator=generator) * 100).requires_grad_()
    segment_X = torch.tensor([1, 1, 1, 2, 4, 4, 4])
    got = segment_logsumexp(values_XU, segment_X, 6)
    for segment in range(6):
        mine = values_XU[segment_X == segment]
        want = mine.logsumexp(dim=0) if len(mine) else torch.zeros(3, dtype=torch.float64)
        torch.testing.assert_close(got[segment], want)
    torch.testing.assert_close(segment_logsumexp(values_XU[:, 0], segment_X, 6), got[:, 0])
    assert torch.autograd.gradcheck(lambda values: segment_logsumexp(values / 100, segment_X, 6), (values_XU,))


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Knowledge]:
    folder = tmp_path_factory.mktemp("rgat") / "knowledge"
    plant_knowledge(folder)
    return folder, read_knowledge(folder)


def test_scores_are_the_sum_over_triples_by_hand(knowledge):
    facts = knowledge[1]
    generator = torch.Generator().manual_seed(0)
    entities_ND = torch.randn(facts.num_entities, 4, dtype=torch.float64, generator=generator)
    users_UD = torch.randn(3, 4, dtype=torch.float64, generator=generator)
    weight_T = torch.rand(len(facts.movie_T), dtype=torch.float64, generator=generator)
    alpha_T = renormalise(weight_T, facts.movie_T, NUM_MOVIES)
    beta = torch.tensor(1.5, dtype=torch.float64)
    scores = FilmScores(facts, entities_ND, alpha_T.log(), beta)
    asked_P = torch.tensor([7, 0, 3, 7])
    block_PU = scores.block(users_UD, asked_P)
    for place, movie in enumerate(asked_P.tolist()):
        mine = [number for number, head in enumerate(facts.movie_T.tolist()) if head == movie]
        total = sum(float(weight_T[number]) for number in mine)
        for viewer in range(3):
            terms = [
                float(weight_T[number])
                / total
                * math.exp(1.5 * float(users_UD[viewer] @ entities_ND[facts.entity_T[number]]) / 2.0)
                for number in mine
            ]
            want = math.log(sum(terms)) if terms else 0.0
            assert float(block_PU[place, viewer]) == pytest.approx(want, abs=1e-9)
    user_P = torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(scores.pairs(users_UD, user_P, asked_P), block_PU[torch.arange(4), user_P])


def settings(**changes: object) -> RgatConfig:
    small = {"dim": 16, "max_steps": 60, "eval_every": 10, "patience": 6, "negatives": 64, "learning_rate": 0.02}
    return RgatConfig.model_validate(small | changes)


@pytest.fixture(scope="module")
def trained(knowledge, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, object]]:
    root = tmp_path_factory.mktemp("fit")
    plant_split(root / "split")
    (root / "out").mkdir()
    return root / "split", root / "out", train_rgat(knowledge[0], root / "split", root / "out", settings(), seed=3)


def test_the_manifest_says_which_back_end_ran_and_why(trained):
    on_gpu = torch.cuda.is_available()
    assert trained[2]["message_passing"] == ("torch" if on_gpu else "dgl")
    assert trained[2]["message_passing_reason"] == (
        "DGL here is for the CPU" if on_gpu else "as fast as torch in attention on a CPU"
    )


def test_a_killed_training_goes_on_to_the_bytes_of_one_that_was_not(knowledge, trained, tmp_path, monkeypatch):
    wanted = settings(max_steps=8, eval_every=3, checkpoint_minutes=0)
    check_resumes(
        lambda out: train_rgat(knowledge[0], trained[0], out, wanted, seed=3), RgatTrainer, 8, tmp_path, monkeypatch
    )


@pytest.mark.parametrize(("ranking_weight", "is_same"), [(0.0, True), (1.0, False)])
def test_link_prediction_alone_learns_from_triples_and_from_no_like(knowledge, ranking_weight, is_same):
    facts = knowledge[1]
    heads = facts.movie_entity_M[facts.movie_T]
    names = len(facts.relation_names)
    graph = RelationalGraph.build(heads, facts.relation_T, facts.entity_T, facts.num_entities, names, "torch")
    user_E, movie_E = torch.arange(8).repeat_interleave(4), torch.arange(32) % len(facts.movie_ids_M)
    found = []
    for liked_E in (movie_E, movie_E.flip(0)):
        likes = Likes(np.arange(8, dtype=np.int32), user_E, liked_E)
        trainer = RgatTrainer(facts, graph, likes, settings(ranking_weight=ranking_weight), 5)
        start_ND = trainer.export()["entity_vectors"]
        trainer.step(), trainer.step()
        found.append(trainer.export()["entity_vectors"])
        assert not torch.equal(start_ND, found[-1])
    assert torch.equal(*found) is is_same


def test_a_graph_attention_without_any_loss_is_refused():
    with pytest.raises(ValueError, match="ranking_weight and link_weight are both 0"):
        RgatConfig(ranking_weight=0.0, link_weight=0.0)


def posterior(trained: tuple[Path, Path, dict[str, object]], fit: str = "b") -> pl.DataFrame:
    """For each warm user and film, every triple's score from the written files alone."""
    split, out, _ = trained
    tensors = load_file(out / f"fit_{fit}.safetensors")
    keys = pl.read_parquet(out / "entities.parquet")["key"].to_list()
    movies = pl.read_parquet(out / "movies.parquet")["movie_id"].to_numpy()
    likes = read_interactions(split, movies).fits[fit]
    age_E = newest_first_age(likes.user_E, likes.num_viewers)
    pooling = pl.read_json(out / "pooling.json").row(0, named=True)
    users_UD = pool_users(tensors["pool_vectors"], likes.user_E, likes.movie_E, age_E, likes.num_viewers, **pooling)
    dots_UN = (
        float(tensors["beta"]) * users_UD @ tensors["entity_vectors"].T / tensors["entity_vectors"].shape[1] ** 0.5
    )
    attention = pl.read_parquet(out / "attention.parquet").filter(pl.col("fit") == fit)
    row = [keys.index(key) for key in attention["entity"]]
    return pl.concat(
        attention.with_columns(
            user_id=pl.lit(int(user)), score=attention["alpha"].log() + pl.Series(dots_U[row].numpy())
        )
        for user, dots_U in zip(likes.user_ids_U, dots_UN, strict=True)
    )


def test_a_directors_fans_are_told_the_director(trained):
    best = posterior(trained).sort("score").group_by("user_id", "movie_id").last()
    number = {FIRST_MOVIE + movie: director_of(movie) for movie in range(NUM_MOVIES)}
    liked_kind = best.filter(
        pl.col("movie_id").replace_strict(number, return_dtype=pl.Int64) % 2 == pl.col("user_id") % 2
    )
    share = liked_kind.select((pl.col("relation") == "director").mean()).item()
    assert share > 0.9  # one triple in three


def test_training_ranks_better_than_chance(trained):
    # random among the 20 films of the user's directors that are left: 0.23; among all 50 that are left: 0.09
    assert trained[2]["best_valid_ndcg_at_10"] > 0.16


def test_written_weights_of_every_film_sum_to_one_and_say_which_triple(trained, knowledge):
    attention = pl.read_parquet(trained[1] / "attention.parquet")
    sums = attention.group_by("fit", "movie_id").agg(pl.col("alpha").sum())
    assert sums.select((pl.col("alpha") - 1).abs().max()).item() < 1e-5
    assert len(sums) == 2 * (NUM_MOVIES - 1)
    directors = attention.filter(pl.col("relation") == "director")
    for movie, key in directors.select("movie_id", "entity").iter_rows():
        assert key == f"person:nm{director_of(movie - FIRST_MOVIE)}"


def test_a_film_without_triples_is_never_ranked_by_accident(trained):
    tensors = load_file(trained[1] / "fit_b.safetensors")
    bias_M = tensors["movie_bias"]
    assert int(bias_M.argmin()) == 0
    assert float(bias_M[0]) < float(bias_M[1:].min()) + NO_TRIPLES_BIAS / 2


def test_fits_use_their_own_rows_and_fit_a_never_looks(trained):
    split, out, facts = trained
    rows = pl.read_parquet(split / "*/part.parquet")
    trained_on = pl.read_parquet(out / "trained_on.parquet")
    for fit, labels in (("a", ["graph"]), ("b", ["graph", "target"])):
        want = rows.filter(pl.col("label").is_in(labels), ~pl.col("unseen")).select("user_id", "movie_id")
        got = trained_on.filter(pl.col("fit") == fit).select("user_id", "movie_id")
        assert got.sort("user_id", "movie_id").equals(want.sort("user_id", "movie_id"))
    fit_a = pl.read_parquet(out / "curve.parquet").filter(pl.col("fit") == "a")
    assert fit_a["valid_ndcg_at_10"].is_null().all()
    assert fit_a["step"].max() == facts["steps"]


def test_same_seed_same_bytes(trained, knowledge, tmp_path):
    train_rgat(knowledge[0], trained[0], tmp_path, settings(), seed=3)
    for name in (
        "fit_a.safetensors",
        "fit_b.safetensors",
        "attention.parquet",
        "relations.parquet",
        "entities.parquet",
    ):
        assert (trained[1] / name).read_bytes() == (tmp_path / name).read_bytes()


def test_triples_that_do_not_start_at_a_movie_are_refused(knowledge, tmp_path):
    for name in ("entities", "relations", "triples"):
        frame = pl.read_parquet(knowledge[0] / f"{name}.parquet")
        if name == "triples":
            frame = pl.concat([frame, pl.DataFrame({"head": [61], "relation": [0], "tail": [1]}, schema=frame.schema)])
        frame.write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(InputError, match="1 of 178 triples have a head that is no movie"):
        read_knowledge(tmp_path)
    with pytest.raises(InputError, match="run knowledge"):
        read_knowledge(tmp_path / "nowhere")


def many_triples(generator: torch.Generator) -> Knowledge:
    """As many facts as ml-latest-small has, where sums are long enough for threads to share them."""
    num_movies, num_entities, num_triples = 3000, 9001, 40_000  # a third of 9,001 rows fills no whole registers
    movie_T = torch.randint(num_movies, (num_triples,), generator=generator).sort().values
    count_M = torch.bincount(movie_T, minlength=num_movies)
    return Knowledge(
        entities=pl.DataFrame({"row": range(num_entities)}),
        relation_names=["director", "genre"],
        movie_ids_M=np.arange(num_movies, dtype=np.int32),
        movie_entity_M=torch.arange(num_movies),
        movie_T=movie_T,
        relation_T=(torch.rand(num_triples, generator=generator) < 0.3).long(),
        entity_T=torch.randint(num_movies, num_entities, (num_triples,), generator=generator),
        offset_M=count_M.cumsum(0) - count_M,
        count_M=count_M,
    )


@pytest.mark.parametrize("settings", [{}, {"layers": 2, "bases": 2}], ids=str)
@pytest.mark.parametrize("backend", ["dgl", "torch"])
def test_bytes_do_not_depend_on_the_number_of_threads(backend, settings):
    generator = torch.Generator().manual_seed(0)
    facts = many_triples(generator)
    graph = RelationalGraph.build(
        facts.movie_T, facts.relation_T, facts.entity_T, facts.num_entities, len(facts.relation_names), backend
    )
    # 34,560 hidden likes a step: functions of so many values are shared by threads
    user_E = torch.arange(1200).repeat_interleave(96)
    movie_E = torch.randint(len(facts.movie_ids_M), user_E.shape, generator=generator)
    likes = Likes(np.arange(1200, dtype=np.int32), user_E, movie_E)
    before, exported = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            trainer = RgatTrainer(facts, graph, likes, RgatConfig(batch_viewers=1200, **settings), 5)
            trainer.step(), trainer.step()  # Adam's first step is the gradient's sign alone
            scores_VM = trainer.scorer(likes, newest_first_age(user_E, 1200))(torch.arange(9))
            exported.append(trainer.export() | {"scores": scores_VM})
    finally:
        torch.set_num_threads(before)
    alone, *others = exported
    for many in others:
        assert all(torch.equal(alone[name], many[name]) for name in alone)
