"""A user's result has the same bits whatever the other users: nightly increments compute only changed users."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl
import pytest
import small_world
import torch

from tripletune.config import RetrieveConfig, SasrecConfig
from tripletune.models.ease.fit import train_ease
from tripletune.models.ease.serve import EaseFit
from tripletune.models.lightgcn.serve import LightGCNFit
from tripletune.models.rgat.serve import RgatFit
from tripletune.models.sasrec.fit import train_sasrec
from tripletune.models.sasrec.model import SASRec, Shape
from tripletune.models.sasrec.serve import SasrecFit
from tripletune.models.serving.catalogue import Catalogue, Likes
from tripletune.models.serving.pooling import pool_users
from tripletune.models.serving.topk import Ragged, product_blocks, top_columns
from tripletune.retrieve.histories import find_answers, find_history, find_questions, find_seen
from tripletune.retrieve.profiles import RelationTable, build_profiles, find_profiles
from tripletune.retrieve.rankings import FilmEvidence, film_scores
from tripletune.retrieve.retriever import Retriever
from tripletune.retrieve.similar import Neighbours
from tripletune.retrieve.triples import TripleTable, choose_triples, score_personally
from tripletune.schemas.query import QUERY_KEY

SEED, NUM, FILMS, ENTITIES, DIM = 7, 150, 700, 400, 64
LISTS = {"fused_lightgcn": 0.5, "fused_ease": 1.0, "fused_slist": 0.0, "fused_sequence": 0.0}
SETTINGS = RetrieveConfig(ease_lambda=3.0, num_candidates=8, hint_films=5, triples_per_film=2, **LISTS)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A retriever of everything there is, and a bucket's queries, histories, masks and answers."""
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    world.sasrec.mkdir()
    train_sasrec(world.split, world.sasrec, SasrecConfig(dim=8, max_length=6, max_steps=10, eval_every=10), SEED)
    world.ease.mkdir()
    train_ease(world.split, world.ease, SETTINGS, SEED)
    trained = {**world.specialists, "sasrec": world.sasrec, "ease": world.ease}
    retriever = Retriever.load(world.knowledge, trained, SETTINGS, num_liked_triples=4, seed=SEED)
    rows = small_world.read_split(world)
    queries = find_questions(rows)
    parts = find_history(rows, queries), find_seen(rows, queries), find_answers(rows, queries)
    return retriever, queries, parts


def ask(retriever: Retriever, queries: pl.DataFrame, parts: tuple[pl.DataFrame, ...]) -> list[pl.DataFrame]:
    """retrieved, choices, rankings and profiles of some queries."""
    mine = [part.join(queries.select(QUERY_KEY), on=QUERY_KEY, how="semi") for part in parts]
    profiles = find_profiles(retriever.rgat, retriever.relations, queries, mine[0])
    return [*retriever.retrieve_and_rank(queries, *mine), profiles]


def together(answers: list[list[pl.DataFrame]]) -> list[pl.DataFrame]:
    orders = (QUERY_KEY, (*QUERY_KEY, "movie_id", "rank"), (*QUERY_KEY, "retriever"), (*QUERY_KEY, "relation"))
    return [pl.concat(parts).sort(by) for parts, by in zip(zip(*answers, strict=True), orders, strict=True)]


def bits(frame: pl.DataFrame) -> pl.DataFrame:
    floats = pl.col(pl.Float32)
    return frame.with_columns(floats.map_batches(lambda column: pl.Series(column.to_numpy().view(np.int32))))


@pytest.mark.bytes
@pytest.mark.parametrize("parts", [2, 1000], ids=["halves", "one by one"])
def test_the_stage_writes_the_same_for_a_viewer_asked_alone_and_in_a_crowd(asked, parts):
    retriever, queries, known = asked
    want = together([ask(retriever, queries, known)])
    users = queries["user_id"].unique().shuffle(seed=3)
    some = [users.gather_every(parts, start) for start in range(min(parts, len(users)))]
    shuffled = [part.sample(fraction=1.0, shuffle=True, seed=1) for part in known]
    got = together([ask(retriever, queries.filter(pl.col("user_id").is_in(one.implode())), shuffled) for one in some])
    assert len(want[1]) > 1000
    for wanted, found in zip(want, got, strict=True):
        assert bits(found).equals(bits(wanted))


@dataclasses.dataclass
class Crowd:
    """Users with histories of all lengths, and models of the sizes that are really used."""

    likes: Likes
    seen: Ragged
    users_U: np.ndarray

    def only(self, user_S: np.ndarray) -> Crowd:
        number_U = np.full(len(self.users_U), -1)
        number_U[user_S] = np.arange(len(user_S))
        user_E = number_U[self.likes.user_E]
        kept = np.flatnonzero(user_E >= 0)
        kept = kept[np.argsort(user_E[kept], kind="stable")]
        likes = Likes(user_E[kept], self.likes.movie_E[kept], self.likes.age_E[kept])
        return Crowd(likes, self.seen.rows(user_S), self.users_U[user_S])


@pytest.fixture(scope="module")
def crowd() -> Crowd:
    rng = np.random.default_rng(5)
    counts_U = rng.integers(1, 120, NUM)
    user_E = np.repeat(np.arange(NUM), counts_U)
    movie_E = np.concatenate([rng.permutation(FILMS)[:count] for count in counts_U])
    age_E = np.concatenate([np.arange(count) for count in counts_U])
    likes = Likes(user_E, movie_E, age_E)
    return Crowd(likes, Ragged.from_pairs(user_E, movie_E, NUM), np.arange(1, NUM + 1))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lightgcn() -> LightGCNFit:
    return LightGCNFit(
        catalogue=Catalogue(np.arange(FILMS), SEED),
        pool_vectors_MD=random(FILMS, DIM),
        bias_M=random(FILMS),
        half_life=3.0,
        power=0.5,
        movie_vectors_MD=random(FILMS, DIM),
    )


def rgat() -> tuple[RgatFit, TripleTable]:
    rng = np.random.default_rng(2)
    facts = pl.DataFrame(
        {
            "movie_id": np.repeat(np.arange(FILMS), 9),
            "relation": np.tile(["genre", "director", "actor"], FILMS * 3),
            "entity": [f"e{n}" for n in rng.integers(0, ENTITIES, FILMS * 9)],
        }
    ).unique(maintain_order=True)
    facts = facts.with_columns(alpha=pl.Series(rng.random(len(facts)), dtype=pl.Float32))
    fit = RgatFit(
        catalogue=Catalogue(np.arange(FILMS), SEED),
        pool_vectors_MD=random(FILMS, DIM) / 8,
        bias_M=random(FILMS),
        half_life=0.0,
        power=0.5,
        entity_vectors_ND=random(ENTITIES, DIM),
        entity_rows=pl.DataFrame({"row": range(ENTITIES), "entity": [f"e{n}" for n in range(ENTITIES)]}),
        attention=facts,
        beta=1.5,
    )
    triples = facts.drop("alpha").with_columns(entity_name="entity")
    return fit, TripleTable.build(fit, triples, SEED)


def pooled(crowd: Crowd) -> torch.Tensor:
    vectors = [lightgcn().pool(crowd.likes, len(crowd.users_U)), rgat()[0].pool(crowd.likes, len(crowd.users_U))]
    return torch.cat(vectors, dim=1)


def pooled_with_a_crooked_half_life(crowd: Crowd) -> torch.Tensor:
    rows = (torch.from_numpy(ints) for ints in (crowd.likes.user_E, crowd.likes.movie_E, crowd.likes.age_E))
    return pool_users(random(FILMS, DIM), *rows, len(crowd.users_U), 7.3, 0.5)


def products(crowd: Crowd) -> torch.Tensor:
    fit, num = lightgcn(), len(crowd.users_U)
    blocks = product_blocks(fit.pool(crowd.likes, num), fit.movie_vectors_MD, fit.bias_M)
    return torch.from_numpy(top_columns(blocks, num, crowd.seen, 101)[1])


def cosines(crowd: Crowd) -> torch.Tensor:
    rng = np.random.default_rng(9)
    history = pl.DataFrame({"user_id": np.repeat(np.arange(1, 3001), 5), "age": np.tile(np.arange(5), 3000)})
    fit = lightgcn()
    near = Neighbours.build(fit, history.with_columns(movie_id=pl.Series(rng.integers(0, FILMS, 15000))), SEED)
    return near.nearest(fit.pool(crowd.likes, len(crowd.users_U)), crowd.users_U, 20)[1]


def ease_scores(crowd: Crowd) -> torch.Tensor:
    catalogue = Catalogue(np.arange(FILMS), SEED)
    ids_F = catalogue.ids_M[:500]
    ease = EaseFit.build(catalogue, ids_F, np.ones(500, np.float32), random(500, 500).numpy())
    num = len(crowd.users_U)
    scores = ease._scores(ease._histories(crowd.likes, num, 5.0))
    return torch.cat([scores(start, min(start + 64, num)) for start in range(0, num, 64)])


def sasrec_vectors(crowd: Crowd) -> torch.Tensor:
    model = SASRec(Shape(FILMS, DIM, 2, 2, 50), torch.Generator().manual_seed(4)).requires_grad_(False)
    model.embedding_MD.copy_(random(FILMS, DIM))
    return SasrecFit(catalogue=Catalogue(np.arange(FILMS), SEED), model=model).users(crowd.likes, len(crowd.users_U))


def triple_scores(crowd: Crowd) -> torch.Tensor:
    """One row per user: the scores of some films' triples, and of those chosen."""
    fit, table = rgat()
    num = len(crowd.users_U)
    user_P, movie_P = np.repeat(np.arange(num), 7), np.tile(np.arange(0, FILMS, 100), num)
    pair_T, triple_T = table.expand(movie_P)
    scores_T = score_personally(table, fit, fit.pool(crowd.likes, num), user_P[pair_T], triple_T)
    chosen = choose_triples(table, fit, crowd.likes, crowd.users_U, user_P, movie_P, mode="personal", num=1, seed=SEED)
    chosen_UP = torch.from_numpy(chosen["score"].to_numpy().reshape(num, -1).copy())
    return torch.cat([torch.from_numpy(scores_T.reshape(num, -1)), chosen_UP.double()], dim=1)


def profile_masses(crowd: Crowd) -> torch.Tensor:
    """In float64, before they are stored in float32."""
    fit, table = rgat()
    profiles = build_profiles(RelationTable.build(table, fit), fit, crowd.likes, len(crowd.users_U))
    masses = profiles.select("viewer", "mass", "attention").with_columns(place=pl.int_range(pl.len()).over("viewer"))
    found_URS = torch.zeros(len(crowd.users_U), 3, 2, dtype=torch.float64)
    places = masses["viewer"].to_numpy(writable=True), masses["place"].to_numpy(writable=True)
    found_URS[places] = masses.select("mass", "attention").to_torch()
    return found_URS


def rgat_film_scores(crowd: Crowd) -> torch.Tensor:
    fit, num = rgat()[0], len(crowd.users_U)
    scores = film_scores(FilmEvidence.build(fit), fit.pool(crowd.likes, num))
    return torch.cat([scores(start, min(start + 64, num)) for start in range(0, num, 64)])


STEPS = (
    *(pooled, pooled_with_a_crooked_half_life, products, cosines, ease_scores),
    *(sasrec_vectors, triple_scores, profile_masses, rgat_film_scores),
)


@pytest.mark.bytes
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_every_step_gives_a_viewer_the_same_bits_alone_and_in_a_crowd(crowd, step, monkeypatch):
    monkeypatch.setattr("tripletune.retrieve.profiles.LIKES_AT_ONCE", 1000)
    everybody = step(crowd)
    assert everybody.shape[0] == NUM
    assert everybody.isfinite().any(dim=tuple(range(1, everybody.ndim))).all()
    backwards = np.arange(NUM)[::-1]
    for user_S in (backwards[:80], backwards[80:], *(np.array([one]) for one in (0, 1, 63, 64, 77, NUM - 1))):
        some = step(crowd.only(user_S))
        assert some.numpy().tobytes() == everybody[torch.from_numpy(user_S.copy())].numpy().tobytes()
