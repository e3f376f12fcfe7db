"""The retrieve stage against a dense reference, and rows that must not change its output."""

from __future__ import annotations

import json
import shutil

import numpy as np
import polars as pl
import pytest
import small_world
import torch
from safetensors.torch import load_file, save_file

from tripletune.config import RetrieveConfig
from tripletune.errors import InputError
from tripletune.models.lightgcn.serve import load_lightgcn
from tripletune.models.rgat.serve import load_rgat
from tripletune.models.serving.catalogue import Catalogue
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.kerag import best_answers
from tripletune.retrieve.rankings import FilmEvidence, film_scores
from tripletune.retrieve.retriever import Retriever
from tripletune.schemas.query import PURPOSES, QUERY_KEY
from tripletune.schemas.retrieve import CHOICES, RANKED_ALWAYS, RANKINGS, RETRIEVED

SEED = 7
FIT = {"train": "a", "valid": "b", "test": "b"}
DEFAULT = RetrieveConfig(retriever="lightgcn", num_candidates=12, hint_films=6, similar_viewers=5, similar_films=3)


def retrieve(world, out, settings=DEFAULT):
    out.mkdir()
    facts = retrieve_all(world.split, world.knowledge, world.specialists, out, settings, num_liked_triples=4, seed=SEED)
    return facts


def read(out, name):
    shards = pl.concat(pl.read_parquet(path) for path in sorted((out / name).glob("shard-*.parquet")))
    return shards.sort("user_id", "purpose", maintain_order=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def out(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "retrieve"
    retrieve(world, folder)
    return folder


@pytest.fixture(scope="module")
def rows(world):
    return small_world.read_split(world)


def scores_by_hand(folder, fit, liked_oldest_first):
    """LightGCN in float64: weighted sum of pool vectors over (sum of weights) ** power, times film vectors."""
    vectors = {name: tensor.double().numpy() for name, tensor in load_file(folder / f"fit_{fit}.safetensors").items()}
    pooling = json.loads((folder / "pooling.json").read_text())
    ages = np.arange(len(liked_oldest_first))[::-1]
    weights = 2.0 ** (-ages / pooling["half_life"])
    user = (weights[:, None] * vectors["pool_vectors"][np.array(liked_oldest_first) - 1]).sum(0)
    user /= weights.sum() ** pooling["power"]
    return vectors, user


def history(rows, question):
    before = rows.filter((pl.col("user_id") == question["user_id"]) & (pl.col("position") < question["cutoff"]))
    return before["movie_id"].to_list(), before.filter(pl.col("rating") >= 4)["movie_id"].to_list()


def test_candidates_are_the_top_of_a_dense_reference(world, out, rows):
    found = read(out, "retrieved")
    assert len(found) > 100
    for question in found.iter_rows(named=True):
        seen, liked = history(rows, question)
        vectors, user = scores_by_hand(world.lightgcn, FIT[question["purpose"]], liked)
        scores = vectors["movie_vectors"] @ user + vectors["movie_bias"]
        scores[np.array(seen) - 1] = -np.inf
        assert question["candidates"] == (np.argsort(-scores)[:12] + 1).tolist()
        assert question["ranking"] == question["candidates"][:6]
        assert len(question["similar"]) == 3
        assert not set(question["similar"]) & set(seen)


def test_the_cutoff_is_the_position_of_the_first_answer(out, rows):
    label = {"train": "target", "valid": "valid", "test": "test"}
    for question in read(out, "retrieved").iter_rows(named=True):
        mine = rows.filter((pl.col("user_id") == question["user_id"]) & (pl.col("label") == label[question["purpose"]]))
        assert question["cutoff"] == mine["position"].min()


def test_unseen_viewers_are_asked_about_but_never_in_training(out):
    found = read(out, "retrieved").filter("unseen")
    assert found["purpose"].to_list() == ["valid", "test"]
    assert found["user_id"].unique().to_list() == [small_world.NUM_VIEWERS]


def test_viewers_with_too_few_likes_are_not_asked_about(out):
    assert 39 not in read(out, "retrieved")["user_id"]


def test_rankings_agree_with_dense_references(world, out, rows):
    rankings = pl.read_parquet(out / "rankings.parquet")
    assert rankings.schema == RANKINGS
    counts = rows.filter(pl.col("label").is_in(["graph", "target"]) & ~pl.col("unseen"))["movie_id"].value_counts()
    popularity = np.zeros(small_world.NUM_FILMS)
    popularity[counts["movie_id"].to_numpy() - 1] = counts["count"].to_numpy()
    retrieved = {(row["user_id"], row["purpose"]): row for row in read(out, "retrieved").iter_rows(named=True)}
    attention = pl.read_parquet(world.rgat / "attention.parquet").filter(pl.col("fit") == "b")
    entity_rows = dict(pl.read_parquet(world.rgat / "entities.parquet").select("key", "row").iter_rows())
    assert set(RANKED_ALWAYS) <= set(rankings["retriever"])
    # test_ease.py has the reference of the others
    for ranking in rankings.filter(pl.col("retriever").is_in(RANKED_ALWAYS)).iter_rows(named=True):
        question = retrieved[ranking["user_id"], ranking["purpose"]]
        seen, liked = history(rows, question)
        if ranking["retriever"] == "lightgcn":
            assert ranking["top"][:12] == question["candidates"]
            continue
        if ranking["retriever"] == "popularity":
            assert (
                popularity[np.array(ranking["top"]) - 1].tolist()
                == sorted(np.delete(popularity, np.array(seen) - 1), reverse=True)[:20]
            )
            continue
        vectors, user = scores_by_hand(world.rgat, "b", liked)
        scores = np.full(small_world.NUM_FILMS, -np.inf)
        for (movie,), film in attention.group_by("movie_id"):
            dots = vectors["entity_vectors"][[entity_rows[key] for key in film["entity"]]] @ user
            terms = np.log(film["alpha"].to_numpy().astype(np.float64)) + 1.5 * dots / np.sqrt(6)
            scores[movie - 1] = vectors["movie_bias"][movie - 1] + np.logaddexp.reduce(terms)
        scores[np.array(seen) - 1] = -np.inf
        assert ranking["top"] == (np.argsort(-scores)[:20] + 1).tolist()
        assert ranking["answer"] not in seen


@pytest.mark.bytes
def test_the_ceiling_is_the_share_of_answers_among_candidates(world, out, rows, tmp_path):
    facts = retrieve(world, tmp_path / "again")
    found = read(out, "retrieved").filter(purpose="test")
    answers = dict(rows.filter(pl.col("label") == "test").select("user_id", "movie_id").iter_rows())
    hits = [answers[row["user_id"]] in row["candidates"] for row in found.iter_rows(named=True)]
    assert 0 < np.mean(hits) < 1
    assert facts["ceiling"]["test"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert facts["viewers"] == {"train": 38, "valid": 39, "test": 39}
    assert 0 < facts["pairs_without_triple"] < 0.1
    for name in ("retrieved/shard-000.parquet", "choices/shard-001.parquet", "rankings.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_choices_cover_candidates_and_the_newest_liked_films(out, rows):
    choices = read(out, "choices")
    assert choices.schema == CHOICES
    for question in read(out, "retrieved").iter_rows(named=True):
        _, liked = history(rows, question)
        told = choices.filter(user_id=question["user_id"], purpose=question["purpose"])["movie_id"].to_list()
        assert set(told) == (set(question["candidates"]) | set(liked[-4:])) - {small_world.NUM_FILMS}


def moved(rows, at):
    """The rows with another film and the lowest rating wherever ``at`` holds."""
    film = (pl.col("movie_id") + 13) % small_world.NUM_FILMS + 1
    return rows.with_columns(
        movie_id=pl.when(at).then(film.cast(pl.Int32)).otherwise("movie_id"),
        rating=pl.when(at).then(pl.lit(0.5, dtype=pl.Float32)).otherwise("rating"),
    )


def with_rows(world, folder, rows):
    changed = small_world.World(folder)
    for stage in ("ingest", "knowledge", "lightgcn", "rgat"):
        shutil.copytree(getattr(world, stage), folder / stage)
    changed.split.mkdir()
    small_world.write_split(changed, rows)
    return changed


def test_rows_from_the_cutoff_on_change_nothing_in_a_hint(world, out, rows, tmp_path):
    # everything after fit a's rows moves: other ratings after the first target, valid and test likes, and the targets
    first = pl.col("position").filter(pl.col("label") == "target").min().over("user_id")
    world = with_rows(world, tmp_path / "w", moved(rows, pl.col("position") >= first.fill_null(99)))
    retrieve(world, tmp_path / "out")
    for name in ("retrieved", "choices"):
        before, after = (read(folder, name).filter(purpose="train") for folder in (out, tmp_path / "out"))
        # a query whose answer moved to a film of fit a is dropped
        assert after["user_id"].n_unique() > 20
        assert before.join(after, on=["user_id", "purpose"], how="semi").equals(after)
        assert not read(out, name).equals(read(tmp_path / "out", name))


@pytest.mark.bytes
def test_rows_after_the_test_like_change_no_byte(world, out, rows, tmp_path):
    last = pl.col("position").filter(pl.col("label") == "test").min().over("user_id")
    changed = moved(rows, pl.col("position") > last.fill_null(99))
    assert not changed.equals(rows)
    retrieve(with_rows(world, tmp_path / "w", changed), tmp_path / "out")
    for path in sorted(path for path in out.rglob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(out)).read_bytes()


def test_kerag_shows_ten_films_that_hold_the_answers(world, rows, tmp_path):
    facts = retrieve(world, tmp_path / "kerag", RetrieveConfig(retriever="lightgcn", candidates="kerag", hint_films=6))
    assert facts["ceiling"] == {"valid": 1.0, "test": 1.0}
    plain = RetrieveConfig(retriever="lightgcn", num_candidates=20)
    retrieve(world, tmp_path / "plain", plain)
    tops = {
        (r["user_id"], r["purpose"]): r["candidates"]
        for r in read(tmp_path / "plain", "retrieved").iter_rows(named=True)
    }
    label = {"train": "target", "valid": "valid", "test": "test"}
    for question in read(tmp_path / "kerag", "retrieved").iter_rows(named=True):
        mine = rows.filter((pl.col("user_id") == question["user_id"]) & (pl.col("label") == label[question["purpose"]]))
        answers = mine["movie_id"].to_list()
        fill = [film for film in tops[question["user_id"], question["purpose"]] if film not in answers]
        assert len(question["candidates"]) == 10
        assert set(question["candidates"]) == {*answers, *fill[: 10 - len(answers)]}
        _, liked = history(rows, question)
        vectors, user = scores_by_hand(world.lightgcn, FIT[question["purpose"]], liked)
        scores = vectors["movie_vectors"] @ user + vectors["movie_bias"]
        assert question["candidates"] == sorted(question["candidates"], key=lambda film: -scores[film - 1])
        assert question["ranking"] == question["candidates"][:6]


def test_kerag_takes_the_five_best_rated_answers(world):
    fit = load_lightgcn(world.lightgcn, SEED)["a"]
    key = {"user_id": pl.Int32, "purpose": PURPOSES, "cutoff": pl.Int32}
    asked = {"user_id": [2, 3], "purpose": ["train"] * 2, "cutoff": [9] * 2}
    queries = pl.DataFrame(asked, schema_overrides=key)
    answers = pl.DataFrame(
        {
            "user_id": [2] * 7 + [3],
            "purpose": ["train"] * 8,
            "cutoff": [9] * 8,
            "movie_id": [11, 12, 13, 14, 15, 16, 17, 18],
            "rating": [4.0, 5.0, 4.5, 4.0, 5.0, 4.5, 3.5, 4.0],
        },
        schema_overrides=key | {"movie_id": pl.Int32},
    )
    films_UA = fit.catalogue.movie_ids(best_answers(answers, queries, fit))
    assert set(films_UA[0, :2]) == {12, 15}
    assert set(films_UA[0, 2:4]) == {13, 16}
    assert films_UA[0, 4] in (11, 14)
    assert films_UA[1].tolist() == [18, -1, -1, -1, -1]


def test_a_film_score_is_bias_plus_logsumexp_over_its_triples(world):
    rgat = load_rgat(world.rgat, SEED)["b"]
    users_UD = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * 5
    scores_UM = film_scores(FilmEvidence.build(rgat), users_UD)(0, 3).double().numpy()
    rows = dict(rgat.entity_rows.select("entity", "row").iter_rows())
    for (movie,), film in rgat.attention.group_by("movie_id"):
        column = rgat.catalogue.columns([movie])[0]
        vectors = rgat.entity_vectors_ND[[rows[key] for key in film["entity"]]].double()
        dots = (users_UD.double() @ vectors.T).numpy() * 1.5 / np.sqrt(6)
        evidence = np.logaddexp.reduce(np.log(film["alpha"].to_numpy().astype(np.float64)) + dots, axis=1)
        want = float(rgat.bias_M[column]) + evidence
        # float32 sums of a few exponentials and a logarithm
        np.testing.assert_allclose(scores_UM[:, column], want, rtol=1e-5, atol=1e-5)
    untold = rgat.catalogue.columns([small_world.NUM_FILMS])[0]
    assert (scores_UM[:, untold] < np.delete(scores_UM, untold, axis=1).min(axis=1)).all()


def test_a_film_that_a_pinned_specialist_does_not_know_is_no_candidate(world, rows, tmp_path):
    pinned = with_rows(world, tmp_path / "w", rows)
    movies = pl.read_parquet(pinned.lightgcn / "movies.parquet")
    movies.head(40).write_parquet(pinned.lightgcn / "movies.parquet")
    for fit in "ab":
        path = pinned.lightgcn / f"fit_{fit}.safetensors"
        save_file({name: tensor[:40].contiguous() for name, tensor in load_file(path).items()}, path)
    retrieve(pinned, tmp_path / "out")
    found = read(tmp_path / "out", "retrieved")
    assert found.select(pl.col("candidates", "similar").list.explode().max()).row(0) <= (40, 40)
    retrieve(pinned, tmp_path / "kerag", RetrieveConfig(retriever="lightgcn", candidates="kerag"))
    assert read(tmp_path / "kerag", "retrieved")["candidates"].list.explode().max() <= 40


def test_an_ad_hoc_viewer_gets_what_a_viewer_of_the_split_gets(world, out, rows):
    retriever = Retriever.load(world.knowledge, world.specialists, DEFAULT, num_liked_triples=4, seed=SEED, fits=("b",))
    question = read(out, "retrieved").filter(unseen=True, purpose="test").row(0, named=True)
    seen, liked = history(rows, question)
    asked = RETRIEVED.to_frame().select(*QUERY_KEY, "unseen")
    asked = asked.vstack(pl.DataFrame([(-1, "test", question["cutoff"], True)], asked.schema, orient="row"))
    stranger = asked.select(QUERY_KEY)
    films = pl.Series("movie_id", liked[::-1], pl.Int32).to_frame()
    given = stranger.join(films, how="cross").with_row_index("age")
    events = {"rating": pl.lit(4.0, pl.Float32), "timestamp": pl.lit(0, pl.Int64), "like": pl.lit(value=True)}
    mask = stranger.join(pl.Series("movie_id", seen, pl.Int32).to_frame(), how="cross").with_columns(**events)
    no_answers = mask.clear().select(*QUERY_KEY, "movie_id", "rating")
    retrieved, choices = retriever.retrieve_users(asked, given, mask, no_answers)
    got = retrieved.row(0, named=True)
    assert {name: got[name] for name in ("candidates", "ranking", "similar")} == {
        name: question[name] for name in ("candidates", "ranking", "similar")
    }
    want = read(out, "choices").filter(user_id=question["user_id"], purpose="test").drop("user_id")
    assert choices.drop("user_id").equals(want)


def test_the_order_of_ties_is_stable_and_not_the_order_of_ids():
    ids = np.arange(1, 200)
    assert Catalogue(ids, 0).ids_M.tolist() == Catalogue(ids[::-1], 0).ids_M.tolist()
    assert Catalogue(ids, 0).ids_M.tolist() != Catalogue(ids, 1).ids_M.tolist()
    assert abs(np.corrcoef(np.arange(199), Catalogue(ids, 0).ids_M)[0, 1]) < 0.2
    catalogue = Catalogue([30, 10, 20], 0)
    assert catalogue.movie_ids(catalogue.columns([10, 20, 30, 15, 99])).tolist() == [10, 20, 30, -1, -1]


@pytest.mark.parametrize("fault", ["short", "nan", "truncated", "pooling"])
def test_a_damaged_specialist_is_refused_by_name(world, rows, tmp_path, fault):
    broken = with_rows(world, tmp_path / "w", rows)
    path = broken.lightgcn / "fit_a.safetensors"
    tensors = load_file(path)
    if fault == "short":
        save_file(tensors | {"movie_bias": tensors["movie_bias"][:5].clone()}, path)
    if fault == "nan":
        save_file(tensors | {"movie_bias": tensors["movie_bias"] * float("nan")}, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    if fault == "pooling":
        (broken.lightgcn / "pooling.json").write_text("{}")
    with pytest.raises(InputError, match="pooling.json" if fault == "pooling" else "fit_a.safetensors") as error:
        retrieve(broken, tmp_path / "out")
    assert "\n" not in str(error.value)
