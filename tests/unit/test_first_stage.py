"""SASRec and the fused list as retrievers of the stage, compared with their own files and lists."""

from __future__ import annotations

import json
import math
from pathlib import Path

import polars as pl
import pytest
import small_world
import torch
from safetensors.torch import load_file, save_file

from tripletune.config import RetrieveConfig, RunConfig, SasrecConfig
from tripletune.errors import ConfigError, InputError
from tripletune.models.ease.fit import train_ease
from tripletune.models.sasrec.fit import train_sasrec
from tripletune.models.sasrec.model import SASRec, Shape
from tripletune.pipeline.registry import reusable_stages
from tripletune.pipeline.resolve import resolve
from tripletune.pipeline.stages import run_sasrec
from tripletune.prompts.engine import prompt_contract
from tripletune.retrieve.candidates import retrieve_all
from tripletune.retrieve.fusion import learn_fusion, read_fusion
from tripletune.store.runs import RunRecord, write_run

SEED = 7
WEIGHTS = {"lightgcn": 1.0, "ease": 2.0, "sasrec": 0.5}
FUSED = RetrieveConfig(
    fusion="fixed",
    fused_slist=0.0,
    fused_sequence=0.0,
    retriever="fused",
    **{f"fused_{name}": weight for name, weight in WEIGHTS.items()},
    fused_k=3.0,
    fused_films=20,
    ease_lambda=3.0,
    num_candidates=12,
    hint_films=6,
    similar_films=0,
)
SMALL = SasrecConfig(dim=8, max_length=6, max_steps=40, eval_every=20, batch_viewers=16)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> small_world.World:
    world = small_world.make_world(tmp_path_factory.mktemp("world"))
    world.sasrec.mkdir()
    train_sasrec(world.split, world.sasrec, SMALL, SEED)
    world.ease.mkdir()
    train_ease(world.split, world.ease, FUSED, SEED)
    return world


def retrieve(
    world, out: Path, settings: RetrieveConfig, sasrec: Path | None = None, fusion: Path | None = None
) -> Path:
    out.mkdir(parents=True)
    retrieve_all(
        world.split,
        world.knowledge,
        {**world.specialists, "sasrec": sasrec or world.sasrec, "ease": world.ease},
        out,
        settings,
        num_liked_triples=4,
        seed=SEED,
        fusion=fusion,
    )
    return out


@pytest.fixture(scope="module")
def learned(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fusion")
    trained = {"lightgcn": world.lightgcn, "sasrec": world.sasrec, "ease": world.ease}
    learn_fusion(world.split, trained, out, FUSED, SEED)
    return out


@pytest.fixture(scope="module")
def fused(world, tmp_path_factory) -> Path:
    return retrieve(world, tmp_path_factory.mktemp("out") / "fused", FUSED)


def candidates(out: Path) -> dict[tuple[int, str], list[int]]:
    rows = pl.concat(pl.read_parquet(path) for path in sorted((out / "retrieved").glob("shard-*.parquet")))
    return {(row["user_id"], row["purpose"]): row["candidates"] for row in rows.iter_rows(named=True)}


def lists(out: Path) -> dict[tuple[int, str], dict[str, list[int]]]:
    found: dict[tuple[int, str], dict[str, list[int]]] = {}
    for row in pl.read_parquet(out / "rankings.parquet").iter_rows(named=True):
        found.setdefault((row["user_id"], row["purpose"]), {})[row["retriever"]] = row["top"]
    return found


def test_the_fused_candidates_are_those_of_reciprocal_ranks_added_by_hand(fused):
    shown = candidates(fused)
    for question, by_retriever in lists(fused).items():
        score: dict[int, float] = {}
        for name, weight in WEIGHTS.items():
            for place, film in enumerate(by_retriever[name], start=1):
                score[film] = score.get(film, 0.0) + weight / (3.0 + place)
        worth = [round(score[film], 9) for film in by_retriever["fused"]]
        assert worth == sorted(worth, reverse=True)
        assert min(worth) >= max(value for film, value in score.items() if film not in by_retriever["fused"]) - 1e-9
        assert shown[question] == by_retriever["fused"][:12]


def test_the_stage_ranks_the_valid_likes_as_retrieve_does(world, learned, fused):
    facts = json.loads((learned / "fusion.json").read_text())
    warm = [
        row
        for row in pl.read_parquet(fused / "rankings.parquet").iter_rows(named=True)
        if row["purpose"] == "valid" and not row["unseen"]
    ]
    for name in WEIGHTS:
        mine = [row["top"][:10] for row in warm if row["retriever"] == name]
        answers = [row["answer"] for row in warm if row["retriever"] == name]
        gains = [
            1 / math.log2(top.index(answer) + 2) if answer in top else 0.0
            for top, answer in zip(mine, answers, strict=True)
        ]
        assert facts["valid"]["queries"] == len(gains)
        assert facts["valid"]["ndcg_at_10"][name] == pytest.approx(sum(gains) / len(gains), abs=1e-6)
    singles = [facts["valid"]["ndcg_at_10"][name] for name in WEIGHTS]
    assert facts["valid"]["ndcg_at_10"]["fused"] >= min(singles)
    # every target like of a warm user is ranked, from the rows before it
    rows = small_world.read_split(world)
    targets = rows.filter(pl.col("label") == "target", ~pl.col("unseen"))
    assert facts["target"]["queries"] == len(targets)


def test_the_learned_weights_make_the_fused_list(world, learned, tmp_path):
    weights = json.loads((learned / "fusion.json").read_text())["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    got = candidates(retrieve(world, tmp_path / "learned", FUSED, fusion=learned))
    fixed = FUSED.model_copy(update={f"fused_{name}": weight for name, weight in weights.items()})
    assert got == candidates(retrieve(world, tmp_path / "fixed", fixed))


def test_weights_of_other_lists_and_a_damaged_file_are_refused_in_one_line(learned, tmp_path):
    with pytest.raises(
        InputError, match=r"fuses lightgcn, ease, sasrec, and this config ease, sasrec; run fusion again"
    ):
        read_fusion(learned, FUSED.model_copy(update={"fused_lightgcn": 0.0}))
    (tmp_path / "fusion.json").write_text('{"weights": [1]}')
    with pytest.raises(InputError, match=r"must hold 'weights' by list .*; run fusion again"):
        read_fusion(tmp_path, FUSED)


def test_every_retriever_is_measured_beside_the_fused_one(fused):
    names = {"popularity", "rgat", "lightgcn", "ease-plain", "ease", "sasrec", "fused"}
    assert all(set(by_retriever) == names for by_retriever in lists(fused).values())


def test_sasrec_ranks_what_was_not_rated_by_its_own_files(world, fused, tmp_path):
    alone = retrieve(world, tmp_path / "sasrec", RetrieveConfig(retriever="sasrec", num_candidates=12))
    rows = small_world.read_split(world)
    tensors = {name: value.double() for name, value in load_file(world.sasrec / "fit_b.safetensors").items()}
    vectors_MD, bias_M = tensors.pop("movie_vectors"), tensors.pop("movie_bias")
    model = SASRec(Shape(len(bias_M), 8, 2, 2, 6), torch.Generator()).double()
    model.load_state_dict({"embedding_MD": vectors_MD, "bias_M": bias_M, **tensors})
    shown = candidates(alone)
    assert shown.keys() == candidates(fused).keys()
    for (user, purpose), films in shown.items():
        if purpose == "train":
            continue
        mine = rows.filter(user_id=user).sort("position")
        asked = mine.filter(label=purpose)["position"].min()
        seen = mine.filter(pl.col("position") < asked)
        liked = seen.filter(pl.col("rating") >= 4)["movie_id"].to_torch().long() - 1
        scores_M = vectors_MD @ model(liked[-6:].unsqueeze(0))[0, -1] + bias_M
        scores_M[seen["movie_id"].to_torch().long() - 1] = -float("inf")
        assert films == (scores_M.argsort(descending=True)[:12] + 1).tolist()
        assert films == lists(alone)[user, purpose]["sasrec"][:12]


def test_other_films_than_lightgcns_are_refused(world, tmp_path):
    other = tmp_path / "sasrec"
    other.mkdir()
    for path in world.sasrec.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    movies = pl.read_parquet(other / "movies.parquet")
    movies.with_columns(pl.col("movie_id") + 1).write_parquet(other / "movies.parquet")
    with pytest.raises(InputError, match="trained on different films; pin both to one run"):
        retrieve(world, tmp_path / "out", FUSED, other)
    for fit in "ab":
        tensors = load_file(other / f"fit_{fit}.safetensors")
        save_file({**tensors, "movie_bias": tensors["movie_bias"][:-1].clone()}, other / f"fit_{fit}.safetensors")
    with pytest.raises(InputError, match="'movie_bias' has"):
        retrieve(world, tmp_path / "again", FUSED, other)


def config(**retrieve: object) -> RunConfig:
    return RunConfig.model_validate({"dataset": "x", "retrieve": retrieve})


def test_sasrec_is_a_stage_only_where_the_candidates_need_it():
    def stages(**retrieve: object) -> list[str]:
        return [stage.name for stage in reusable_stages(config(**retrieve))]

    assert "sasrec" in stages(retriever="sasrec")
    assert "sasrec" in stages(retriever="fused", fused_sasrec=0.1)
    assert "sasrec" not in stages(retriever="fused")
    assert "sasrec" not in stages(retriever="ease")
    with pytest.raises(ConfigError, match="'ease' needs no SASRec; set it to 'sasrec', or to 'fused' with"):
        run_sasrec(None, config(retriever="ease"))  # type: ignore[arg-type]


def test_a_pinned_run_that_has_no_sasrec_is_refused_by_name(tmp_path):
    pinned = {"name": "x-1", "dataset": "x", "status": "completed", "started": "2026-01-01T00:00:00Z", "config": {}}
    write_run(tmp_path, RunRecord.model_validate({**pinned, "fingerprints": {"rgat": "r", "lightgcn": "l"}}))
    night = RunConfig.model_validate({"dataset": "x", "specialists": {"pin": "x-1"}})
    with pytest.raises(ConfigError, match=r"that run has no slist, which this run reads; pin a run that has, set"):
        resolve(night, tmp_path)
    night = RunConfig.model_validate({**night.model_dump(), "retrieve": {"retriever": "ease"}})
    with pytest.raises(ConfigError, match=r"that run has no ease, which this .*; pin a run that has, or remove"):
        resolve(night, tmp_path)


@pytest.mark.parametrize("weight", [1e9, float("inf"), -1.0])
def test_a_weight_that_would_overflow_is_refused(weight):
    with pytest.raises(ValueError, match="fused_ease"):
        config(fused_ease=weight)


def test_a_fused_list_of_one_list_is_refused():
    with pytest.raises(ValueError, match="'fused' needs two lists at least"):
        config(retriever="fused", fused_slist=0.0)


def test_the_contract_names_the_settings_of_the_lists_that_are_shown():
    def settings(**retrieve: object) -> dict[str, object]:
        of_run = config(**retrieve)
        return prompt_contract(of_run.prompt, of_run.retrieve)["retriever_settings"]

    assert settings(retriever="lightgcn") == {}
    assert settings(retriever="ease", ease_lambda=9) == {
        "ease_lambda": 9.0,
        "ease_history_age": 5.0,
        "ease_max_films": 10_000,
    }
    assert settings(retriever="fused").keys() == {
        *(f"fused_{name}" for name in ("lightgcn", "ease", "slist", "sasrec", "sequence", "text", "k", "films")),
    }
