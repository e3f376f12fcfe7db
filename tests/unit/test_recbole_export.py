"""The comparison with RecBole: both sides train on the same rows and rank for the same queries under the same mask.

RecBole itself is not installed here; its models are played by tables of scores.
"""

from __future__ import annotations

import importlib
import sys
import types

import numpy as np
import polars as pl
import pytest
import small_world
import torch

from tests.benchmark_scripts import benchmark_script
from tripletune.models.serving.catalogue import Catalogue
from tripletune.models.serving.topk import Ragged, top_columns
from tripletune.models.training.interactions import read_interactions
from tripletune.models.training.loop import judge

SEED = 7


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small_world.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def rows(world):
    return small_world.read_split(world)


@pytest.fixture(scope="module")
def export():
    with benchmark_script("recbole_export") as module:
        yield module


@pytest.fixture(scope="module")
def job(world, export, tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    export.write_job(world.split, folder, SEED, sequences=False)
    return folder


@pytest.fixture(scope="module")
def sequence_job(world, export, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sequences")
    export.write_job(world.split, folder, SEED, sequences=True)
    return folder


@pytest.fixture(scope="module")
def side(export):
    """recbole_side with RecBole's names in place, so that it can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        names = {
            "recbole.config": ("Config",),
            "recbole.data": ("create_dataset", "data_preparation"),
            "recbole.data.interaction": ("Interaction",),
            "recbole.utils": ("get_model", "get_trainer", "init_logger", "init_seed"),
        }
        yield import_with(patch, "recbole_side", {"recbole": (), **names})


@pytest.fixture(scope="module")
def rectools_side(export):
    """rectools_side with RecTools' names in place; pandas is not installed here either."""
    with pytest.MonkeyPatch.context() as patch:
        names = {
            "pandas": ("DataFrame",),
            "pytorch_lightning": (),
            "pytorch_lightning.callbacks": ("Callback",),
            "rectools": (),
            "rectools.dataset": ("Dataset",),
            "rectools.models": ("HSTUModel", "SASRecModel"),
            "rectools.models.nn": (),
            "rectools.models.nn.transformers": (),
            "rectools.models.nn.transformers.ligr": ("LiGRLayers",),
        }
        yield import_with(patch, "rectools_side", names)


def import_with(patch, module, names):
    for name, wanted in names.items():
        fake = types.ModuleType(name)
        fake.__dict__.update(dict.fromkeys(wanted, dict))
        patch.setitem(sys.modules, name, fake)
    patch.delitem(sys.modules, module, raising=False)
    return importlib.import_module(module)


@pytest.fixture(scope="module")
def judge_of(export):
    return importlib.import_module("outside_ranking").Judge


class Dataset:
    """RecBole's numbering: 0 is padding; it numbers only the films that stand in its files."""

    uid_field, iid_field = "user_id", "item_id"

    def __init__(self, job):
        parts = [read(job / "likes" / f"likes.{part}.inter") for part in ("train", "valid", "test")]
        films = pl.concat(parts)["movie_id"].unique().sort(descending=True)
        self.films = films.to_list()
        self.field2token_id = {"item_id": {str(film): place for place, film in enumerate(self.films, start=1)}}

    def token2id(self, field, token):
        return int(token) if field == "user_id" else self.field2token_id[field][token]


class Table:
    """A model that is a score per user and film id."""

    def __init__(self, scores, dataset):
        self._scores, self._films, self.batches = scores, dataset.films, []

    def eval(self):
        pass

    def full_sort_predict(self, batch):
        self.batches.append(batch)
        scores = self._scores[batch["user_id"].numpy()][:, self._films]
        return torch.from_numpy(np.pad(scores, ((0, 0), (1, 0)), constant_values=99.0)).reshape(-1)


def coarse_scores():
    """Whole numbers from 0 to 3, so that ties are everywhere."""
    size = (small_world.NUM_VIEWERS + 1, small_world.NUM_FILMS + 1)
    return np.random.default_rng(3).integers(0, 4, size).astype(np.float32)


def recbole_scores(side, judge, model, dataset, config=None):
    return side.Scores(model, judge.film_ids_M, dataset, config or {"model": "LightGCN"})


def read(path):
    names = {"user_id:token": "user_id", "item_id:token": "movie_id", "item_id_list:token_seq": "before"}
    frame = pl.read_csv(path, separator="\t", schema_overrides={"item_id_list:token_seq": pl.String})
    return frame.rename({name: short for name, short in names.items() if name in frame.columns})


def pairs(frame):
    return set(frame.select("user_id", "movie_id").iter_rows())


def test_recbole_trains_on_the_likes_of_fit_b_and_on_no_other_row(job, rows):
    warm = rows.filter(~pl.col("unseen"))
    train = read(job / "likes" / "likes.train.inter")
    assert pairs(train) == pairs(warm.filter(pl.col("label").is_in(["graph", "target"])))
    assert len(train) == len(pairs(train))
    for purpose in ("valid", "test"):
        held_out = read(job / "likes" / f"likes.{purpose}.inter")
        assert pairs(held_out) == pairs(warm.filter(pl.col("label") == purpose))


def test_sequences_are_prefixes_of_a_users_likes_oldest_first_and_end_before_the_answer(sequence_job, rows):
    likes = rows.filter(pl.col("label") != "other")
    for part, labels in (("train", ["graph", "target"]), ("valid", ["valid"]), ("test", ["test"])):
        told = {
            (user, film): [int(one) for one in before.split()]
            for user, film, before in read(sequence_job / "sequences" / f"sequences.{part}.inter").iter_rows()
        }
        expected = {}
        for (user,), own in likes.group_by("user_id"):
            films = own.sort("position")["movie_id"].to_list()
            for place, label in enumerate(own.sort("position")["label"]):
                if place and label in labels and not (part == "train" and own["unseen"][0]):
                    expected[user, films[place]] = films[:place]
        assert told == expected


def test_sequences_keep_the_newest_fifty_likes_and_never_reach_into_another_viewer(export):
    users = [1] * 53 + [2] * 2
    likes = pl.DataFrame({"user_id": users, "movie_id": range(100, 155)})
    told = export.prefixes(likes)
    assert told["movie_id"].to_list() == [*range(101, 153), 154]
    assert told["item_id_list"].to_list()[-2:] == [list(range(102, 152)), [153]]


def test_the_mask_is_everything_rated_before_the_answer_liked_or_not(export, world, rows):
    for purpose in ("valid", "test"):
        asked = export.read_only_users(world.split, purpose)
        cutoffs = rows.filter(~pl.col("unseen"), pl.col("label") == purpose).select("user_id", cutoff="position")
        before = rows.join(cutoffs, on="user_id").filter(pl.col("position") < pl.col("cutoff"))
        assert pairs(asked.seen) == pairs(before)
        assert pairs(asked.history) == pairs(before.filter(pl.col("label") != "other"))
        assert not pairs(asked.seen) & pairs(asked.answers)


def test_both_sides_ask_the_same_valid_questions(export, world):
    interactions = read_interactions(world.split)
    asked, ours = export.read_only_users(world.split, "valid"), interactions.valid
    assert asked.users["user_id"].to_list() == ours.likes.user_ids_U.tolist()
    assert asked.answers["movie_id"].to_list() == interactions.movie_ids_M[ours.answer_U.numpy()].tolist()


def test_equal_scores_get_the_same_valid_ndcg_on_both_sides(side, judge_of, job, world):
    interactions, dataset, scores = read_interactions(world.split), Dataset(job), coarse_scores()
    unknown = set(range(1, small_world.NUM_FILMS + 1)) - set(dataset.films)
    scores[:, sorted(unknown)] = -np.inf  # RecBole has no score for them, so ours may have none
    users, films = interactions.valid.likes.user_ids_U, interactions.movie_ids_M

    class Ours:
        def scorer(self, likes, age_E):
            return lambda user_V: torch.from_numpy(scores[users[user_V.numpy()]][:, films])

    told = judge_of(job).ndcg(recbole_scores(side, judge_of(job), Table(scores, dataset), dataset))
    assert told == pytest.approx(judge(Ours(), interactions.valid), abs=1e-7)
    assert told > 0


def test_equal_scores_get_the_same_lists_on_both_sides_ties_included(side, judge_of, export, job, world):
    dataset, scores = Dataset(job), coarse_scores()
    asked = export.read_only_users(world.split, "test")
    catalogue = Catalogue(read_interactions(world.split).movie_ids_M, SEED)
    known = np.where(np.isin(catalogue.ids_M, dataset.films), 0.0, -np.inf).astype(np.float32)
    ours = torch.from_numpy(scores[asked.users["user_id"].to_numpy()][:, catalogue.ids_M] + known)
    masked = Ragged.from_pairs(
        asked.seen["row"].to_numpy().astype(np.int64),
        catalogue.columns(asked.seen["movie_id"].to_numpy()),
        len(asked.users),
    )
    top = catalogue.movie_ids(top_columns(lambda start, stop: ours[start:stop].clone(), len(ours), masked, 20)[0])
    told = judge_of(job).top(recbole_scores(side, judge_of(job), Table(scores, dataset), dataset), "test")
    assert told.tolist() == top.tolist()


def test_knowledge_aware_models_read_the_graph_and_each_sequence_model_its_own_rows(side, tmp_path):
    columns = {
        name: side.settings_for(tmp_path, tmp_path, name, SEED, {})["load_col"]
        for name in ("LightGCN", "KGAT", "CKE", "BERT4Rec")
    }
    assert columns["KGAT"] == columns["CKE"]
    assert columns["KGAT"]["kg"] == ["head_id", "relation_id", "tail_id"]
    assert columns["KGAT"]["link"] == ["item_id", "entity_id"]
    assert set(columns["LightGCN"]) == set(columns["BERT4Rec"]) == {"inter"}
    assert columns["BERT4Rec"]["inter"] == ["user_id", "item_id", "item_id_list"]
    assert side.SEQUENTIAL == {"SASRec": "sequences", "BERT4Rec": "windows"}


@pytest.mark.parametrize("name", ["SASRec", "BERT4Rec"])
def test_a_sequence_model_reads_the_newest_likes_the_valid_one_included(
    side, judge_of, export, job, sequence_job, world, name
):
    dataset = Dataset(job)
    model = Table(coarse_scores(), dataset)
    names = {"MAX_ITEM_LIST_LENGTH": 3, "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list"}
    config = {"model": name, "ITEM_LIST_LENGTH_FIELD": "item_length"} | names
    judge_of(sequence_job).top(recbole_scores(side, judge_of(sequence_job), model, dataset, config), "test")
    (batch,) = model.batches
    history = export.read_only_users(world.split, "test", unseen=True).history
    newest = history.filter(pl.col("row") == 5)["movie_id"].to_list()[-3:]
    assert [dataset.films[item - 1] for item in batch["item_id_list"][5].tolist()] == newest
    assert batch["item_length"][5] == 3


class Newest:
    """RecTools' network, played by one that scores film by film how near its number is to the newest one's."""

    def __init__(self):
        self.batches, self.item_model, self.similarity_module = [], self, self.score

    def eval(self):
        return self

    def train(self):
        pass

    def get_all_embeddings(self):
        return torch.arange(small_world.NUM_FILMS + 2, dtype=torch.float32)

    def encode_sessions(self, batch, vectors_I):
        self.batches.append(batch)
        return vectors_I[batch["x"]].unsqueeze(-1)

    def score(self, session_V, vectors_I):
        return -(session_V - vectors_I).abs()


@pytest.mark.parametrize(("request_time", "length"), [(False, 4), (True, 4), (True, 64)])
def test_rectools_reads_the_newest_likes_and_the_time_of_the_request_only_where_it_says_so(
    rectools_side, export, judge_of, sequence_job, world, request_time, length
):
    net = Newest()
    known = [film for film in range(1, small_world.NUM_FILMS + 1) if film != 7]
    ids = types.SimpleNamespace(external_ids=["PAD", *known])
    model = types.SimpleNamespace(
        torch_model=net, session_max_len=length, data_preparator=types.SimpleNamespace(item_id_map=ids)
    )
    judge = judge_of(sequence_job)
    top = judge.top(rectools_side.Scores(model, judge.film_ids_M, request_time=request_time), "test")
    asked = export.read_only_users(world.split, "test", unseen=True)
    (batch,) = net.batches
    for row, (answer_time, listed) in enumerate(zip(asked.answers["timestamp"], top.tolist(), strict=True)):
        likes = asked.history.filter(pl.col("row") == row, pl.col("movie_id") != 7).tail(length)
        films, times = likes["movie_id"].to_list(), likes["timestamp"].to_list()
        items = [known.index(film) + 1 for film in films]
        padding = length - len(films)
        assert batch["x"][row].tolist() == [0] * padding + items
        asked_at = answer_time if request_time else times[-1]
        assert batch["unix_ts"][row].tolist() == [times[0]] * padding + times + [asked_at]
        seen = set(asked.seen.filter(pl.col("row") == row)["movie_id"])
        assert 7 not in listed
        assert not seen & set(listed)
        near = {film: abs(known.index(film) + 1 - items[-1]) for film in known if film not in seen}
        assert near[listed[0]] == min(near.values())


def test_unseen_users_are_asked_of_sequence_models_and_in_no_training_row(sequence_job, job, rows):
    unseen = set(rows.filter("unseen")["user_id"])
    assert unseen
    for folder, expected in ((sequence_job, unseen), (job, set())):
        stored = np.load(folder / "questions.npz")
        assert set(stored["test_user"].tolist()) & unseen == expected
        assert not set(stored["train_user"].tolist()) & unseen


def test_training_rows_come_with_their_times_oldest_first(sequence_job, rows):
    stored = np.load(sequence_job / "questions.npz")
    told = pl.DataFrame({name: stored[f"train_{name}"] for name in ("user", "movie", "time")})
    kept = rows.filter(~pl.col("unseen"), pl.col("label").is_in(["graph", "target"])).sort("user_id", "position")
    assert told.rows() == kept.select("user_id", "movie_id", "timestamp").rows()
