"""Train LightGCN's two fits and write their vectors: the stage ``lightgcn``.

Each step cuts the history of every user of the batch at a random place: the likes before it make the user's vector,
those after it are the targets, the next ones heaviest. That is the task at retrieval; and since no target is in the
vector, the model cannot learn to return its input.
"""

# Shape letters in this file: M films, U users, E likes, D width, B users of a batch, R rows of a batch, V block
from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tripletune.config import LightGCNConfig
from tripletune.models.lightgcn.loss import FilmSample, Targets, bpr_loss, draw_negatives, softmax_loss
from tripletune.models.lightgcn.memory import state_memory
from tripletune.models.lightgcn.model import POOL_POWER, LightGCN, LikeGraph
from tripletune.models.message_passing.device import choose_device
from tripletune.models.message_passing.fixed_order import product
from tripletune.models.message_passing.graph import Backend, Choice, Kernel, choose_backend
from tripletune.models.serving.pooling import pool_users, recency_weights
from tripletune.models.training.checkpoints import Checkpoints, load_training_state, training_state
from tripletune.models.training.interactions import Batch, Likes, batches, newest_first_age, read_interactions
from tripletune.models.training.loop import Scorer, train_both, write_fits
from tripletune.store.paths import Facts
from tripletune.threads import one_thread

log = logging.getLogger(__name__)


class LightGCNTrainer:
    """One fit: model, optimiser, batches. Implements ``training.Model``.

    Parameters and graph are on ``device``; batches and all random draws are made on the CPU.
    """

    def __init__(self, likes: Likes, num_movies: int, settings: LightGCNConfig, seed: int) -> None:
        self._settings, self._num_movies = settings, num_movies
        self._device = choose_device(settings.device, settings.message_passing, "lightgcn")
        self._generator = torch.Generator().manual_seed(seed)
        backend = choose_message_passing(likes, settings, self._device).backend
        self._graph = _like_graph(likes, num_movies, settings, self._device, backend)
        self._batches = batches(likes, settings.batch_viewers, self._generator)
        self._model = LightGCN(num_movies, settings.dim, settings.layers, self._generator).to(self._device)
        groups = [{"params": [self._model.embedding_MD], "weight_decay": settings.weight_decay}]
        self._parameters = {"embedding": self._model.embedding_MD}
        self._bias_M = torch.zeros(num_movies, device=self._device)
        if settings.loss == "softmax":
            # initial popularity bias, so that the vectors need only learn the difference
            count_M = torch.bincount(likes.movie_E, minlength=num_movies).float()
            self._bias_M = self._parameters["bias"] = nn.Parameter(count_M.log1p().to(self._device))
            groups.append({"params": [self._bias_M], "weight_decay": 0.0})
        self._optimizer = torch.optim.Adam(groups, lr=settings.learning_rate)

    def step(self) -> float:
        """One step over one batch of users, with one propagation over the whole graph."""
        batch = next(self._batches)
        loss = self._softmax_loss(batch) if self._settings.loss == "softmax" else self._bpr_loss(batch)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def scorer(self, likes: Likes, age_E: Tensor) -> Scorer:
        """Score all films for users with these likes."""
        movies_MD, pool_MD = self._vectors()
        users_UD = self._pool(pool_MD, likes.user_E, likes.movie_E, age_E, likes.num_viewers)
        bias_M = self._bias_M.detach()
        return lambda user_V: product(users_UD[user_V.to(self._device)], movies_MD.T) + bias_M

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """Film, pool and bias tensors; the temperature is folded into the films."""
        movies_MD, pool_MD = self._vectors()
        tensors = {"movie_vectors": movies_MD, "pool_vectors": pool_MD, "movie_bias": self._bias_M.detach().clone()}
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        return training_state(self._parameters, self._optimizer, self._generator, self._batches)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Resume from that state."""
        load_training_state(state, self._parameters, self._optimizer, self._generator, self._batches)

    def _softmax_loss(self, batch: Batch) -> Tensor:
        targets, sample = cut_histories(batch, self._settings.recency_half_life, self._generator), None
        known_age_K = newest_first_age(targets.known_user_K, batch.num_viewers)
        movies_MD, pool_MD = self._vectors()
        users_BD = self._pool(pool_MD, targets.known_user_K, targets.known_movie_K, known_age_K, batch.num_viewers)
        if self._settings.sampled_films:
            sample = FilmSample.draw(targets.movie_R, self._num_movies, self._settings.sampled_films, self._generator)
            targets, sample = sample.columns(targets, self._num_movies), sample.to(self._device)
        return softmax_loss(users_BD, movies_MD, self._bias_M, targets.to(self._device), sample)

    def _bpr_loss(self, batch: Batch) -> Tensor:
        targets = whole_histories(batch)
        negative_R = draw_negatives(targets, self._num_movies, self._generator)
        age_R = newest_first_age(batch.user_R, batch.num_viewers)
        movies_MD, pool_MD = self._vectors()
        users_BD = self._pool(pool_MD, batch.user_R, batch.movie_R, age_R, batch.num_viewers)
        return bpr_loss(users_BD, movies_MD, targets.to(self._device), negative_R.to(self._device))

    def _vectors(self) -> tuple[Tensor, Tensor]:
        movies_MD, pool_MD = self._model(self._graph)
        return movies_MD / self._settings.temperature, pool_MD

    def _pool(self, pool_MD: Tensor, user_R: Tensor, movie_R: Tensor, age_R: Tensor, num_viewers: int) -> Tensor:
        user_R, movie_R, age_R = (rows.to(self._device) for rows in (user_R, movie_R, age_R))
        half_life = self._settings.recency_half_life
        return pool_users(pool_MD, user_R, movie_R, age_R, num_viewers, half_life, POOL_POWER)


def choose_message_passing(likes: Likes, settings: LightGCNConfig, device: torch.device) -> Choice:
    """The back end for the graph of these likes."""
    kernel: Kernel = "weighted sum" if settings.edge_half_life else "sum"
    return choose_backend(settings.message_passing, device, kernel, likes.user_E.numel(), settings.dim)


def _like_graph(
    likes: Likes, num_movies: int, settings: LightGCNConfig, device: torch.device, backend: Backend
) -> LikeGraph:
    weight_E = None
    if settings.edge_half_life:
        age_E = newest_first_age(likes.user_E, likes.num_viewers)
        weight_E = recency_weights(age_E, settings.edge_half_life).to(device)
    return LikeGraph.build(
        likes.user_E.to(device),
        likes.movie_E.to(device),
        likes.num_viewers,
        num_movies,
        backend,
        weight_E,
    )


def cut_histories(batch: Batch, half_life: float, generator: torch.Generator) -> Targets:
    """Cut each user's likes at a random place: those before it are the input, those from it on the targets.

    A user keeps at least the oldest like; one with a single like has no target. The target ``t`` likes after the cut
    weighs ``2 ** (-t / half_life)``. Each user's weights are divided by the square root of their sum, and all by one
    total so that they sum to one: longer histories count more, but not in proportion.
    """
    cut_B = 1 + (torch.rand(batch.num_viewers, generator=generator) * (batch.count_B - 1)).long()
    behind_R = batch.place_R - cut_B[batch.user_R]
    is_target_R = behind_R >= 0
    user_R = batch.user_R[is_target_R]
    weight_R = recency_weights(behind_R[is_target_R], half_life)
    total_B = weight_R.new_zeros(batch.num_viewers).index_add_(0, user_R, weight_R)
    with one_thread():  # a sum over everything
        whole = total_B.sqrt().sum()
    weight_R = weight_R / total_B[user_R].sqrt() / whole
    return Targets(
        user_R, batch.movie_R[is_target_R], weight_R, batch.user_R[~is_target_R], batch.movie_R[~is_target_R]
    )


def whole_histories(batch: Batch) -> Targets:
    """Targets of the published loss: every like, equally weighted; none is input only."""
    weight_R = torch.full(batch.movie_R.shape, 1 / batch.movie_R.numel())
    none = batch.movie_R[:0]
    return Targets(batch.user_R, batch.movie_R, weight_R, none, none)


def train_lightgcn(split: Path, out: Path, settings: LightGCNConfig, seed: int) -> Facts:
    """Train both fits on a split and write the stage's files.

    Args:
        split: output of the split stage.
        out: work folder; a killed call in it is resumed. Gets ``fit_a.safetensors`` and ``fit_b.safetensors``
            (``movie_vectors`` (M, D), ``pool_vectors`` (M, D), ``movie_bias`` (M,)), ``movies.parquet``,
            ``pooling.json``, ``trained_on.parquet``, ``curve.parquet``.
        settings: section ``[lightgcn]``.
        seed: of the run; each fit draws from a generator of its own.

    Raises:
        InputError: the split holds nothing to train on, or memory does not suffice. ConfigError: the device does not
            exist. UserError: the loss is not finite.
    """
    interactions = read_interactions(split)
    device = choose_device(settings.device, settings.message_passing, "lightgcn")
    choice = choose_message_passing(interactions.fits["b"], settings, device)
    log.info("LightGCN: message passing by %s: %s", *choice)
    settings = settings.model_copy(update={"message_passing": choice.backend})  # one for both fits

    def make(fit: str) -> LightGCNTrainer:
        return LightGCNTrainer(interactions.fits[fit], interactions.num_movies, settings, 2 * seed + (fit == "b"))

    state_memory(interactions.fits["b"], interactions.num_movies, settings, device)
    checkpoints = Checkpoints(out, settings.checkpoint_minutes)
    runs = train_both(make, interactions.valid, settings, checkpoints, "LightGCN")
    facts = write_fits(out, runs, interactions, {"half_life": settings.recency_half_life, "power": POOL_POWER})
    checkpoints.remove()
    parameters = interactions.num_movies * (settings.dim + (settings.loss == "softmax"))
    return facts | choice.facts() | {"edges": 2 * interactions.fits["b"].user_E.numel(), "parameters": parameters}
