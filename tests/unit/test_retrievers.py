"""The registry of retrievers, and the guide's own, item-kNN, added to it."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import small_world
import torch

import tripletune.models
from tripletune.config import BASELINES, RETRIEVERS, RunConfig
from tripletune.config import prompts as config_of_prompts
from tripletune.config import run as config_of_run
from tripletune.config.presets import parse_config
from tripletune.errors import ConfigError, InputError
from tripletune.evaluate.tables import retrieval_rows
from tripletune.models import registry
from tripletune.models.registry import check_settings, load_retriever, model_settings, train_further
from tripletune.models.serving.catalogue import Likes, RatingEvents
from tripletune.models.serving.retriever import Histories, RetrieverSpec
from tripletune.models.serving.topk import Ragged
from tripletune.pipeline.registry import BY_NAME
from tripletune.prompts.engine import prompt_contract
from tripletune.retrieve import first_stage
from tripletune.retrieve.candidates import retrieve_all
from tripletune.schemas.rank import SYSTEMS
from tripletune.schemas.retrieve import RANKED_ALWAYS
from tripletune.schemas.training import TRAINED_ON

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "retriever" / "src" / "tripletune" / "models"
SEED = 7


@pytest.fixture
def itemknn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the example as its one line in ``config/models.py`` does; the shipped package stays as it is."""
    monkeypatch.setattr(tripletune.models, "__path__", [*tripletune.models.__path__, str(EXAMPLE)])
    for module in (config_of_prompts, config_of_run, first_stage):
        monkeypatch.setattr(module, "RETRIEVERS", (*RETRIEVERS, "itemknn"))
    monkeypatch.setattr(registry, "FURTHER_RETRIEVERS", ("itemknn",))
    yield
    for name in [name for name in sys.modules if name.startswith("tripletune.models.itemknn")]:
        del sys.modules[name]


def config(models: dict | None = None, retriever: str = "itemknn", **retrieve: object) -> RunConfig:
    """Settings of a run with the retriever, which the preset's own check accepts only where the line is in the file."""
    found = RunConfig.model_validate({"dataset": "x", "retrieve": retrieve, "models": models or {}})
    return found.model_copy(update={"retrieve": found.retrieve.model_copy(update={"retriever": retriever})})


@pytest.mark.parametrize("name", RETRIEVERS)
def test_every_registered_folder_declares_a_retriever_of_its_name(name):
    spec = load_retriever(name)
    assert spec.name == name
    assert name in spec.lists


def test_no_retriever_has_the_name_of_another_stage_or_row():
    others = BY_NAME.keys() - set(RETRIEVERS)
    assert not set(RETRIEVERS) & (others | {*SYSTEMS, "popularity", "rgat", "fused", "retrieval"})
    assert set(BASELINES) <= set(RETRIEVERS)


def test_a_folder_without_a_declaration_is_no_retriever():
    with pytest.raises(TypeError, match=r"models/rgat/serve\.py must declare RETRIEVER, a RetrieverSpec named 'rgat'"):
        load_retriever("rgat")


def test_a_declaration_under_another_name_is_refused(itemknn, monkeypatch):
    spec = load_retriever("itemknn")
    other = dataclasses.replace(spec, name="other", lists=("other",))
    monkeypatch.setattr(sys.modules["tripletune.models.itemknn.serve"], "RETRIEVER", other)
    with pytest.raises(TypeError, match=r"models/itemknn/serve\.py must declare RETRIEVER, .* named 'itemknn'"):
        load_retriever("itemknn")


@pytest.mark.parametrize("lists", [(), ("mine-plain",), ("mine", "other"), ("mine", "mine2")])
def test_lists_say_whose_they_are_and_one_makes_candidates(lists):
    with pytest.raises(ValueError, match="one must be named 'mine', any other 'mine-<variant>'"):
        RetrieverSpec(name="mine", lists=lists, load=lambda folder, serving: {})
    RetrieverSpec(name="mine", lists=("mine-plain", "mine"), load=lambda folder, serving: {})


def test_some_users_histories_are_those_of_each_alone():
    likes = Likes(np.array([0, 0, 1, 2, 2]), np.array([5, 6, 7, 8, 9]), np.array([0, 1, 0, 0, 1]))
    seen = Ragged.from_pairs(np.array([0, 1, 1, 2]), np.array([3, 4, 5, 6]), 3)
    vectors_UD = torch.arange(6.0).view(3, 2)
    events = RatingEvents(
        *(np.array([0, 0, 1, 2, 2]), np.array([6, 5, 7, 9, 8])),
        *(np.array([3.0, 4.0, 5.0, 1.0, 2.0], dtype=np.float32), np.array([10, 20, 30, 40, 50])),
        np.array([False, True, True, False, False]),
    )
    part = Histories(likes=likes, events=events, seen=seen, lightgcn_UD=vectors_UD).of(np.array([2, 0]))
    assert part.num_users == 2
    of_part = (part.events.user_E, part.events.movie_E, part.events.rating_E, part.events.time_E, part.events.like_E)
    assert list(zip(*(column.tolist() for column in of_part), strict=True)) == [
        *[(0, 9, 1.0, 40, False), (0, 8, 2.0, 50, False)],
        *[(1, 6, 3.0, 10, False), (1, 5, 4.0, 20, True)],
    ]
    assert sorted(zip(part.likes.user_E, part.likes.movie_E, part.likes.age_E, strict=True)) == [
        *[(0, 8, 0), (0, 9, 1)],
        *[(1, 5, 0), (1, 6, 1)],
    ]
    assert part.seen.values.tolist() == [6, 3]
    assert part.lightgcn_UD.tolist() == [[4.0, 5.0], [0.0, 1.0]]


def test_tables_list_retrievers_in_one_order():
    names = ["sasrec", "fused", "ease", "lightgcn", "rgat", "popularity", "ease-plain"]
    todays = ("popularity", "lightgcn", "rgat", "ease-plain", "ease", "sasrec", "fused")
    assert retrieval_rows(names) == todays
    assert retrieval_rows(iter([*names, *SYSTEMS, "retrieval"])) == todays
    assert retrieval_rows(["zebra", "sasrec", "ape-b", "fused", "ape"]) == (
        *RANKED_ALWAYS,
        *("sasrec", "ape-b", "ape", "zebra", "fused"),
    )
    assert retrieval_rows([]) == RANKED_ALWAYS


def test_a_run_without_further_retrievers_has_the_settings_and_the_contract_it_had():
    plain = RunConfig(dataset="x")
    assert plain.trained_stages == ("rgat", "lightgcn", "slist", "sequence", "text", "ease")
    assert not [name for name in plain.flat() if name.startswith("models") or "fused_more" in name]
    assert "fused_more" not in prompt_contract(plain.prompt, plain.retrieve)["retriever_settings"]
    check_settings(plain)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"retriever": "eas"},
            "'eas': input should be 'lightgcn', 'ease', 'slist', 'sasrec', 'sequence', 'text' or 'fused'",
        ),
        ({"fused_more": {"ease": 1}}, "ease has a key of its own; set retrieve.fused_ease instead"),
        ({"fused_more": {"itemknn": 1}}, "'itemknn' is no further retriever; config/models.py registers none"),
        ({"fused_more": {"itemknn": -1}}, "retrieve.fused_more.itemknn = -1: input should be greater than or equal"),
    ],
)
def test_an_unknown_retriever_is_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError) as error:
        parse_config({"dataset": "x", "retrieve": settings}, "mine.toml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"ease": {}}, r"\[models.ease\]: the settings of ease are in \[retrieve\]; move them there"),
        ({"sasrec": {"dim": 8}}, r"the settings of sasrec are in \[sasrec\]; move them there"),
        ({"itemkn": {}}, r"\[models.itemkn\]: 'itemkn' is no further retriever; did you mean itemknn\?"),
        ({"itemknn": {"neighbors": 3}}, r"unknown key 'neighbors' in \[models.itemknn\]; .*: neighbours, shrinkage$"),
        ({"itemknn": {"neighbours": 0}}, r"^models.itemknn.neighbours = 0: input should be greater than or equal to 1"),
    ],
)
def test_settings_of_a_further_retriever_are_checked_by_its_own_class(itemknn, models, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(config(models))


def test_a_setting_without_a_default_must_be_given_where_the_retriever_is_trained(itemknn, monkeypatch):
    load_retriever("itemknn")
    fit = importlib.import_module("tripletune.models.itemknn.fit")

    class Settings(fit.Settings):
        window: int

    monkeypatch.setattr(fit, "Settings", Settings)
    check_settings(config(retriever="ease"))
    with pytest.raises(ConfigError, match=r"^'models.itemknn.window' is missing; add it"):
        check_settings(config())


def test_a_further_retriever_is_trained_where_candidates_need_it(itemknn):
    assert config().trained_stages == ("rgat", "lightgcn", "itemknn", "ease")
    assert config(retriever="ease").trained_stages == ("rgat", "lightgcn", "ease")
    mixed = config(retriever="fused", fused_more={"itemknn": 0.5})
    assert mixed.trained_stages == ("rgat", "lightgcn", "slist", "sequence", "text", "itemknn", "ease")
    assert mixed.retrieve.fused_weights == {"slist": 1.0, "sequence": 1.0, "itemknn": 0.5}
    assert prompt_contract(mixed.prompt, mixed.retrieve)["retriever_settings"]["fused_more"] == {"itemknn": 0.5}
    assert config(retriever="fused", fused_more={"itemknn": 0.0}).retrieve.lists == ("slist", "sequence")
    with pytest.raises(ValueError, match=r"'itemkn' is no further retriever; did you mean itemknn\?"):
        config(retriever="fused", fused_more={"itemkn": 0.5})


def test_what_a_fit_reads_is_under_its_dotted_name(itemknn):
    assert config({"itemknn": {"neighbours": 3}}).field("models.itemknn") == {"neighbours": 3}
    assert config().field("models.itemknn") == {}
    assert config({"itemknn": {"neighbours": 3}}).flat()["models.itemknn.neighbours"] == 3
    assert model_settings("itemknn", config({"itemknn": {"neighbours": 3}})).neighbours == 3


NEIGHBOURS, SHRINKAGE = 5, 2.0
SETTINGS = {"itemknn": {"neighbours": NEIGHBOURS, "shrinkage": SHRINKAGE}}


def fit_and_retrieve(world: small_world.World, out: Path, **retrieve: object) -> tuple[dict, Path]:
    run = config(SETTINGS, num_candidates=12, hint_films=6, similar_films=0, **retrieve)
    (out / "itemknn").mkdir(parents=True)
    (out / "retrieve").mkdir()
    facts = train_further("itemknn", world.split, out / "itemknn", run)
    trained = {**world.specialists, "itemknn": out / "itemknn"}
    retrieve_all(
        *(world.split, world.knowledge, trained, out / "retrieve", run.retrieve), num_liked_triples=4, seed=SEED
    )
    return facts, out / "retrieve"


def dense_scores(rows: pl.DataFrame, labels: tuple[str, ...], liked: list[int]) -> dict[int, float]:
    """Score of every film for a user with these likes, film by film in plain Python."""
    fans: dict[int, set[int]] = {film: set() for film in range(1, small_world.NUM_FILMS + 1)}
    for user, film in rows.filter(pl.col("label").is_in(labels), ~pl.col("unseen"))["user_id", "movie_id"].iter_rows():
        fans[film].add(user)
    known = sorted(rows["movie_id"].unique())
    scores = {}
    for film in known:
        similarity = {
            other: len(fans[film] & fans[other]) / ((len(fans[film]) * len(fans[other])) ** 0.5 + SHRINKAGE)
            for other in known
            if other != film
        }
        nearest = sorted(similarity, key=lambda other: (-similarity[other], other))[:NEIGHBOURS]
        total = sum(similarity[other] for other in nearest if other in liked)
        scores[film] = total or len(fans[film]) / (sum(map(len, fans.values())) + 1) - 1
    return scores


def test_item_knn_ranks_as_plain_python_does_and_makes_the_candidates(itemknn, tmp_path):
    world = small_world.make_world(tmp_path / "world")
    facts, out = fit_and_retrieve(world, tmp_path / "out")
    assert facts["movies"] == small_world.NUM_FILMS
    rows = small_world.read_split(world)
    rankings = pl.read_parquet(out / "rankings.parquet").filter(retriever="itemknn")
    shown = pl.read_parquet(out / "retrieved" / "shard-*.parquet")
    assert len(rankings) == shown.filter(pl.col("purpose") != "train").height
    fits = {"train": ("graph",), "valid": ("graph", "target"), "test": ("graph", "target")}
    for question in shown.filter(pl.col("user_id").is_in([1, 7, 20, small_world.NUM_VIEWERS])).iter_rows(named=True):
        before = rows.filter(user_id=question["user_id"]).filter(pl.col("position") < question["cutoff"])
        liked = before.filter(pl.col("label") != "other")["movie_id"].to_list()
        scores = dense_scores(rows, fits[question["purpose"]], liked)
        films = question["candidates"]
        assert len(films) == 12
        assert not set(films) & set(before["movie_id"])
        worth = [scores[film] for film in films]
        np.testing.assert_allclose(worth, sorted(worth, reverse=True), atol=1e-6)
        rest = max(score for film, score in scores.items() if film not in {*films, *before["movie_id"]})
        assert min(worth) >= rest - 1e-6
        if question["purpose"] != "train":
            mine = rankings.filter(user_id=question["user_id"], purpose=question["purpose"]).row(0, named=True)
            assert mine["top"][:12] == films
    assert retrieval_rows(pl.read_parquet(out / "rankings.parquet")["retriever"]) == (*RANKED_ALWAYS, "itemknn")


def test_a_further_list_is_fused_with_the_others(itemknn, tmp_path):
    world = small_world.make_world(tmp_path / "world")
    none = dict.fromkeys(("fused_slist", "fused_sequence"), 0.0)
    weights = {"fused_lightgcn": 1.0, **none, "fused_more": {"itemknn": 2.0}}
    _, out = fit_and_retrieve(world, tmp_path / "out", **weights)  # itemknn is the retriever here; the next one fuses
    run = config(SETTINGS, "fused", num_candidates=12, similar_films=0, fused_k=3.0, fused_films=20, **weights)
    (tmp_path / "fused").mkdir()
    trained = {**world.specialists, "itemknn": out.parent / "itemknn"}
    retrieve_all(
        *(world.split, world.knowledge, trained, tmp_path / "fused", run.retrieve), num_liked_triples=4, seed=SEED
    )
    by_question = pl.read_parquet(tmp_path / "fused" / "rankings.parquet").group_by("user_id", "purpose")
    for _, lists in by_question:
        tops = dict(lists["retriever", "top"].iter_rows())
        score: dict[int, float] = {}
        for name, weight in (("lightgcn", 1.0), ("itemknn", 2.0)):
            for place, film in enumerate(tops[name], start=1):
                score[film] = score.get(film, 0.0) + weight / (3.0 + place)
        worth = [round(score[film], 9) for film in tops["fused"]]
        assert worth == sorted(worth, reverse=True)
        assert min(worth) >= max(value for film, value in score.items() if film not in tops["fused"]) - 1e-9


def test_item_knn_of_other_films_than_lightgcns_is_refused(itemknn, tmp_path):
    world = small_world.make_world(tmp_path / "world")
    run = config(SETTINGS)
    (tmp_path / "itemknn").mkdir()
    train_further("itemknn", world.split, tmp_path / "itemknn", run)
    assert pl.read_parquet(tmp_path / "itemknn" / "trained_on.parquet").schema == TRAINED_ON
    movies = pl.read_parquet(tmp_path / "itemknn" / "movies.parquet")
    movies.with_columns(pl.col("movie_id") + 1000).write_parquet(tmp_path / "itemknn" / "movies.parquet")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="itemknn and lightgcn were trained on different films; pin both"):
        retrieve_all(
            *(world.split, world.knowledge, {**world.specialists, "itemknn": tmp_path / "itemknn"}),
            *(tmp_path / "out", run.retrieve),
            num_liked_triples=4,
            seed=SEED,
        )
