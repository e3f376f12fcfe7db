"""Streams, settings, histories and trainers of the sequence model, for its tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch

from tripletune.config import SequenceConfig
from tripletune.models.sequence.events import read_streams
from tripletune.models.sequence.fit import SequenceTrainer, model_shape
from tripletune.models.serving.catalogue import Likes as ServedLikes
from tripletune.models.serving.catalogue import RatingEvents
from tripletune.models.serving.retriever import Histories
from tripletune.models.serving.topk import Ragged
from tripletune.models.training.interactions import Interactions, read_interactions
from tripletune.schemas.base import conform
from tripletune.schemas.split import SPLIT
from tripletune.store.catalogue import write_catalogue

ROWS = [
    # user, film, rating, time, position, label, unseen
    (1, 10, 4.0, 5, 0, "graph", False),
    (1, 11, 1.0, 6, 1, "other", False),
    (1, 12, 4.5, 7, 2, "graph", False),
    (1, 13, 2.0, 8, 3, "other", False),
    (1, 14, 5.0, 9, 4, "target", False),
    (1, 15, 3.0, 9, 5, "other", False),
    (1, 16, 4.0, 20, 6, "valid", False),
    (1, 17, 2.5, 21, 7, "other", False),
    (1, 18, 4.0, 22, 8, "test", False),
    (2, 10, 4.0, 1, 0, "graph", True),
    (3, 10, 1.0, 2, 0, "other", False),
    (3, 11, 4.0, 3, 1, "graph", False),
    (3, 12, 1.0, 4, 2, "other", False),
]


def streams_of(folder: Path, rows: list[tuple[object, ...]], *, only_likes: bool = False):
    part = folder / "shard=000" / "part.parquet"
    part.parent.mkdir(parents=True)
    conform(pl.DataFrame(rows, schema=SPLIT.names(), orient="row"), SPLIT).write_parquet(part)
    write_catalogue(folder, {row[1] for row in rows})
    interactions = read_interactions(folder)
    return interactions, read_streams(folder, interactions, only_likes=only_likes)


def settings(**changes: object) -> SequenceConfig:
    small = {
        "dim": 16,
        "max_length": 20,
        "max_steps": 60,
        "eval_every": 10,
        "batch_viewers": 64,
        "learning_rate": 0.01,
    }
    return SequenceConfig.model_validate(small | changes)


def some_content(num_films: int, width: int) -> torch.Tensor:
    content_MX = torch.randn(num_films, width, generator=torch.Generator().manual_seed(4))
    return torch.nn.functional.normalize(content_MX, dim=1)


def trainer_of(split: Path, *, content: bool = False, **changes: object) -> tuple[Interactions, SequenceTrainer]:
    interactions = read_interactions(split)
    streams, config = read_streams(split, interactions), settings(**changes)
    shape = model_shape(config, interactions.num_movies, len(streams.levels_R))
    content_MX = some_content(interactions.num_movies, 12) if content else None
    fit = streams.fits["b"], interactions.fits["b"]
    return interactions, SequenceTrainer(*fit, streams.valid, shape, config, 1, content_MX)


def given(rows: list[tuple[int, int, float, int, bool]], num_users: int) -> Histories:
    """Histories of user, film, rating, time and whether it is a like."""
    columns = [np.array([row[column] for row in rows]) for column in range(5)]
    user_E, movie_E, rating_E, time_E, like_E = columns
    nothing = np.zeros(0, dtype=np.int64)
    return Histories(
        likes=ServedLikes(nothing, nothing, nothing),
        events=RatingEvents(user_E, movie_E, rating_E.astype(np.float32), time_E, like_E.astype(bool)),
        seen=Ragged.from_pairs(nothing, nothing, num_users),
        lightgcn_UD=torch.zeros(num_users, 2),
    )
