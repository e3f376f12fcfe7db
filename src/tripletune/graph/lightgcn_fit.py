"""Train LightGCN's two fits and write their vectors: the stage ``lightgcn``.

Each step cuts every viewer of the batch at a random moment: the likes before it make the viewer's vector, those after
it are the targets, the next ones heaviest. That is what the night asks of the model, and the targets are never in the
vector, so that it cannot learn to answer with what it was given.
"""

# Shape letters in this file: M films, U viewers, E likes, D width, B viewers of a batch, R rows of a batch, V block
from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from tripletune.config import LightGCNConfig
from tripletune.graph.interactions import Batch, Likes, batches, newest_first_age, read_interactions
from tripletune.graph.lightgcn import POOL_POWER, LightGCN, LikeGraph
from tripletune.graph.lightgcn_loss import Targets, bpr_loss, softmax_loss
from tripletune.graph.training import Scorer, train_both, write_fits
from tripletune.paths import Facts
from tripletune.pooling import pool_viewers, recency_weights

TARGET_HALF_LIFE = 10.0


class LightGCNTrainer:
    """One fit: model, optimiser, batches. Implements ``training.Model``."""

    def __init__(self, likes: Likes, num_movies: int, settings: LightGCNConfig, seed: int) -> None:
        self._settings = settings
        self._generator = torch.Generator().manual_seed(seed)
        self._graph = LikeGraph.build(likes.viewer_E, likes.movie_E, likes.num_viewers, num_movies)
        self._batches = batches(likes, settings.batch_viewers, self._generator)
        self._model = LightGCN(num_movies, settings.dim, settings.layers, self._generator)
        count_M = torch.bincount(likes.movie_E, minlength=num_movies).float()
        # popularity from the start, so that the vectors need only learn what departs from it
        self._bias_M = nn.Parameter(torch.log1p(count_M))
        self._optimizer = torch.optim.Adam(
            [self._model.embedding_MD, self._bias_M], lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def _vectors(self) -> tuple[Tensor, Tensor]:
        movies_MD, pool_MD = self._model(self._graph)
        return movies_MD / self._settings.temperature, pool_MD

    def step(self) -> float:
        """One step over one batch of viewers, with one propagation over the whole graph."""
        batch = next(self._batches)
        movies_MD, pool_MD = self._vectors()
        is_past_R, targets = self._draw_targets(batch)
        viewer_K, movie_K = targets.known_viewer_K, targets.known_movie_K
        age_K = newest_first_age(viewer_K, batch.num_viewers)
        half_life = self._settings.recency_half_life
        viewers_BD = pool_viewers(pool_MD, viewer_K, movie_K, age_K, batch.num_viewers, half_life, POOL_POWER)
        if self._settings.loss == "softmax":
            loss = softmax_loss(viewers_BD, movies_MD, self._bias_M, targets)
        else:
            loss = bpr_loss(viewers_BD, movies_MD, self._bias_M, targets, self._generator)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss)
