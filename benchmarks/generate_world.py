"""Made-up files of specialists, without training, for a benchmark of the stages that read them.

Retrieval's cost depends on the sizes of these files, not on what they have learned. They are not noise either: a
film's vector is a random projection of the users who liked it, so films that are liked together lie together and
similar users exist; a user's likes decide which triples are chosen.
"""

# Shape letters in this file: M films, V users, E likes, N entities, D width, F films of EASE, X triples
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from safetensors.torch import save_file
from scipy import sparse
from torch import Tensor
from torch.nn.functional import normalize

from tripletune.config import RunConfig
from tripletune.models.sequence.fit import model_shape
from tripletune.models.sequence.model import EventModel
from tripletune.schemas.base import conform
from tripletune.schemas.ease import EASE_FILMS
from tripletune.schemas.knowledge import RELATION_NAMES
from tripletune.schemas.rgat import ATTENTION
from tripletune.schemas.training import TRAINED_ON
from tripletune.stable_hash import tie_order
from tripletune.store.shards import split_files

FIT, LABELS = "b", ("graph", "target")
"""Test queries read fit b alone."""
STARS = [half / 2 for half in range(1, 11)]

Ints = npt.NDArray[np.int64]


def make_specialists(split: Path, knowledge: Path, out: Path, config: RunConfig) -> None:
    """Write ``lightgcn``, ``sequence``, ``slist``, ``rgat`` and ``ease``, each a folder under ``out``, for fit b."""
    rows = pl.scan_parquet(list(split_files(split).values()), hive_partitioning=False)
    films_M = rows.select(pl.col("movie_id").unique().sort()).collect(engine="streaming")["movie_id"].to_numpy()
    fitted = rows.filter(pl.col("label").is_in(LABELS), ~pl.col("unseen"))
    likes = fitted.select("user_id", "movie_id", "position").collect(engine="streaming")
    likes = likes.sort("user_id", "position").drop("position")
    vectors_MD = _project(likes, films_M, config.lightgcn.dim)
    bias_M = torch.from_numpy(np.log1p(_counts(likes, films_M)).astype(np.float32))
    for stage in ("lightgcn", "sequence", "slist", "rgat", "ease"):
        (out / stage).mkdir(parents=True, exist_ok=True)
        movies = pl.DataFrame({"row": np.arange(len(films_M), dtype=np.int32), "movie_id": films_M})
        movies.write_parquet(out / stage / "movies.parquet")
    conform(likes.with_columns(fit=pl.lit(FIT)), TRAINED_ON).write_parquet(out / "lightgcn" / "trained_on.parquet")
    tensors = {"movie_vectors": vectors_MD, "pool_vectors": vectors_MD.clone(), "movie_bias": 0.1 * bias_M}
    save_file(tensors, out / "lightgcn" / f"fit_{FIT}.safetensors")
    _write_pooling(out / "lightgcn", config.lightgcn.recency_half_life)
    _write_sequence(out / "sequence", vectors_MD, bias_M, config)
    _write_rgat(out / "rgat", knowledge, films_M, bias_M, config)
    _write_ease(out / "ease", films_M, vectors_MD, likes, config, {})
    history_age = {"history_age": torch.tensor(config.slist.history_age)}
    _write_ease(out / "slist", films_M, vectors_MD, likes, config, history_age)


def _project(likes: pl.DataFrame, films_M: Ints, dim: int) -> Tensor:
    """(M, D) of length one: the sum of the random vectors of who liked the film, and a little noise of its own."""
    random = torch.Generator().manual_seed(1)
    matrix_VM = _matrix(likes, films_M)
    users_VD = torch.randn(matrix_VM.shape[0], dim, generator=random)
    liked_MD = normalize(torch.from_numpy(matrix_VM.T @ users_VD.numpy()), dim=1)
    # one more step over the graph, so that films of one user's taste draw together
    tastes_VD = normalize(torch.from_numpy(matrix_VM @ liked_MD.numpy()), dim=1)
    smooth_MD = normalize(torch.from_numpy(matrix_VM.T @ tastes_VD.numpy()), dim=1)
    return normalize(liked_MD + smooth_MD + 0.1 * torch.randn(len(films_M), dim, generator=random), dim=1)


def _matrix(likes: pl.DataFrame, films_M: Ints) -> sparse.csr_array:
    row_E = likes["user_id"].rle_id().to_numpy()
    column_E = np.searchsorted(films_M, likes["movie_id"].to_numpy())
    ones_E = np.ones(len(likes), dtype=np.float32)
    return sparse.csr_array((ones_E, (row_E, column_E)), shape=(int(row_E[-1]) + 1, len(films_M)))


def _counts(likes: pl.DataFrame, films_M: Ints) -> Ints:
    places_E = np.searchsorted(films_M, likes["movie_id"].to_numpy())
    return np.bincount(places_E, minlength=len(films_M)).astype(np.int64)


def _write_pooling(folder: Path, half_life: float) -> None:
    (folder / "pooling.json").write_text(json.dumps({"half_life": half_life, "power": 0.5}), encoding="utf-8")


def _write_sequence(folder: Path, vectors_MD: Tensor, bias_M: Tensor, config: RunConfig) -> None:
    settings = config.sequence.model_copy(update={"dim": vectors_MD.shape[1]})
    shape = model_shape(settings, len(bias_M), len(STARS))
    model = EventModel(shape, torch.Generator().manual_seed(2))
    tensors = {name: value.detach().clone() for name, value in model.state_dict().items()}
    tensors |= {"embedding_MD": vectors_MD.clone(), "bias_M": 0.1 * bias_M}
    save_file(tensors, folder / f"fit_{FIT}.safetensors")
    described = dataclasses.asdict(shape) | {"ratings": STARS, "events": settings.events}
    (folder / "model.json").write_text(json.dumps(described), encoding="utf-8")


def _write_rgat(folder: Path, knowledge: Path, films_M: Ints, bias_M: Tensor, config: RunConfig) -> None:
    entities = pl.read_parquet(knowledge / "entities.parquet")
    triples = pl.read_parquet(knowledge / "triples.parquet")
    random = torch.Generator().manual_seed(3)
    vectors_ND = torch.randn(len(entities), config.rgat.dim, generator=random)
    heads = dict(zip(entities["key"], entities["entity_id"], strict=True))
    head_M = np.array([heads[f"movie:{film}"] for film in films_M])
    tail_NN = sparse.csr_array(
        (np.ones(len(triples), dtype=np.float32), (triples["head"].to_numpy(), triples["tail"].to_numpy())),
        shape=(len(entities), len(entities)),
    )
    pool_MD = normalize(torch.from_numpy(tail_NN[head_M] @ vectors_ND.numpy()), dim=1)
    tensors = {
        "entity_vectors": vectors_ND / vectors_ND.shape[1] ** 0.25,
        "pool_vectors": pool_MD,
        "movie_bias": bias_M,
        "beta": torch.tensor([2.0]),
    }
    save_file(tensors, folder / f"fit_{FIT}.safetensors")
    rows = entities.select(row=pl.int_range(pl.len(), dtype=pl.Int32), key="key", name="name")
    rows.write_parquet(folder / "entities.parquet")
    keys, relations = entities["key"], pl.Series(RELATION_NAMES)
    attention = pl.DataFrame(
        {
            "fit": FIT,
            "movie_id": keys.gather(triples["head"]).str.strip_prefix("movie:").cast(pl.Int32),
            "relation": relations.gather(triples["relation"]),
            "entity": keys.gather(triples["tail"]),
            "alpha": torch.rand(len(triples), generator=random).numpy(),
        }
    ).filter(pl.col("movie_id").is_in(pl.Series(films_M).implode()))
    share = attention.with_columns(pl.col("alpha") / pl.col("alpha").sum().over("movie_id"))
    conform(share, ATTENTION).write_parquet(folder / "attention.parquet")
    _write_pooling(folder, config.rgat.recency_half_life)


def _write_ease(
    folder: Path, films_M: Ints, vectors_MD: Tensor, likes: pl.DataFrame, config: RunConfig, more: dict[str, Tensor]
) -> None:
    count_M = _counts(likes, films_M)
    order_M = tie_order(films_M, config.seed)
    ranked = order_M[np.argsort(-count_M[order_M], kind="stable")[: config.retrieve.ease_max_films]]
    kept_F = ranked[np.argsort(np.argsort(order_M)[ranked])]  # in the order of ties, as the stage writes them
    vectors_FD = vectors_MD[torch.from_numpy(kept_F)]
    weights_FF = (vectors_FD @ vectors_FD.T).pow_(3).fill_diagonal_(0.0)
    tensors = {"weights": weights_FF, "likes": torch.from_numpy(count_M[kept_F].astype(np.float32))}
    save_file(tensors | more, folder / f"fit_{FIT}.safetensors")
    rows = pl.DataFrame({"fit": FIT, "row": np.arange(len(kept_F)), "movie_id": films_M[kept_F]})
    conform(rows, EASE_FILMS).write_parquet(folder / "movies.parquet")
