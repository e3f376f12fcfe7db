"""Train R-GAT's two fits and write vectors, weights and popularity: the stage ``rgat``.

Each step hides a random share of the likes of the batch's users, pools each user from the rest, and ranks the
hidden ones against films drawn by popularity. With such negatives the best score is log p(film | user) / p(film)
(Rendle, "Item recommendation from implicit feedback", 2021): triples need not explain popularity, and log popularity is
added as a fixed bias when films are ranked. Link prediction on the triples is an auxiliary loss.
"""

# Shape letters in this file: M films, N entities, T triples, D width, U users, E likes, B users of a batch,
#   R likes of a batch, K negatives, L triples of the link batch, V users of a block
from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import polars as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from tripletune.config import RgatConfig
from tripletune.models.message_passing.device import choose_device
from tripletune.models.message_passing.fixed_order import on_one_thread, total
from tripletune.models.message_passing.gather import take_rows
from tripletune.models.message_passing.graph import choose_backend
from tripletune.models.rgat.knowledge import Knowledge, read_knowledge
from tripletune.models.rgat.model import RelationalGraph, Rgat
from tripletune.models.rgat.scores import FilmScores, renormalise
from tripletune.models.serving.pooling import pool_users
from tripletune.models.training.checkpoints import Checkpoints, load_training_state, training_state
from tripletune.models.training.interactions import Likes, batches, newest_first_age, read_interactions
from tripletune.models.training.loop import Run, Scorer, train_both, write_fits, write_table
from tripletune.schemas.base import conform
from tripletune.schemas.rgat import ATTENTION
from tripletune.store.paths import Facts
from tripletune.threads import one_thread

log = logging.getLogger(__name__)

NO_TRIPLES_BIAS = -100.0
"""Added to the bias of a film without triples: R-GAT has no input for it and must not rank it by accident."""
LINK_BATCH = 4096
POOL_POWER = 0.5


class RgatTrainer:
    """One fit: model, optimiser, batches. Implements ``training.Model``.

    Parameters and knowledge are on the graph's device; batches and all random draws are made on the CPU.
    """

    def __init__(
        self, knowledge: Knowledge, graph: RelationalGraph, likes: Likes, settings: RgatConfig, seed: int
    ) -> None:
        self._device = graph.source_E.device
        self._knowledge, self._graph, self._settings = knowledge.to(self._device), graph, settings
        self._generator = torch.Generator().manual_seed(seed)
        self._batches = batches(likes, settings.batch_viewers, self._generator)
        self._num_movies = len(knowledge.movie_ids_M)
        self._count_M = torch.bincount(likes.movie_E, minlength=self._num_movies).double()
        self._model = Rgat(
            knowledge.num_entities,
            graph.num_relations,
            dim=settings.dim,
            heads=settings.heads,
            layers=settings.layers,
            bases=settings.bases,
            generator=self._generator,
        ).to(self._device)
        self._log_beta = nn.Parameter(torch.ones((), device=self._device))  # beta > 0: a preference can't change sign
        self._link_RD = nn.Parameter(torch.ones(len(knowledge.relation_names), settings.dim, device=self._device))
        self._parameters = {**dict(self._model.named_parameters()), "log_beta": self._log_beta, "link": self._link_RD}
        self._optimizer = torch.optim.Adam(
            self._parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, without those of the link prediction."""
        return sum(parameter.numel() for parameter in self._model.parameters()) + 1

    def step(self) -> float:
        """One step: attention over the whole graph, one batch of users, one batch of triples."""
        scores, pool_MD = self._forward()
        ranking, links = self._settings.ranking_weight, self._settings.link_weight
        terms = [ranking * self._ranking_loss(scores, pool_MD)] if ranking else []
        terms += [links * self._link_loss(scores.entities_ND)] if links else []
        loss = torch.stack(terms).sum()
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def scorer(self, likes: Likes, age_E: Tensor) -> Scorer:
        """Score all films for users with these likes."""
        scores, pool_MD = self._forward()
        users_UD = self._pool(pool_MD, likes.user_E, likes.movie_E, age_E, likes.num_viewers)
        bias_M1, all_M = self._bias().unsqueeze(1), torch.arange(self._num_movies, device=self._device)
        return lambda user_V: (scores.block(users_UD[user_V.to(self._device)], all_M) + bias_M1).T.contiguous()

    @torch.no_grad()
    def export(self) -> dict[str, Tensor]:
        """The tensors of ``fit_<name>.safetensors``, and ``alpha`` (T,) for attention.parquet."""
        scores, pool_MD = self._forward()
        tensors = {
            "entity_vectors": scores.entities_ND,
            "pool_vectors": pool_MD,
            "movie_bias": self._bias(),
            "beta": scores.beta.reshape(1),
            "alpha": scores.log_alpha_T.exp(),
        }
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        return training_state(self._parameters, self._optimizer, self._generator, self._batches)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Resume from that state."""
        load_training_state(state, self._parameters, self._optimizer, self._generator, self._batches)

    def _forward(self) -> tuple[FilmScores, Tensor]:
        entities_ND, attention_T = self._model(self._graph)
        alpha_T = renormalise(attention_T, self._knowledge.movie_T, self._num_movies)
        scores = FilmScores(self._knowledge, entities_ND, alpha_T.log(), self._log_beta.exp())
        return scores, take_rows(entities_ND, self._knowledge.movie_entity_M)

    def _bias(self) -> Tensor:
        bias_M = self._count_M.log1p().float().to(self._device)
        return torch.where(self._knowledge.count_M > 0, bias_M, bias_M + NO_TRIPLES_BIAS)

    def _pool(self, pool_MD: Tensor, viewer: Tensor, movie: Tensor, age: Tensor, num_viewers: int) -> Tensor:
        viewer, movie, age = (rows.to(self._device) for rows in (viewer, movie, age))
        half_life = self._settings.recency_half_life
        return pool_users(pool_MD, viewer, movie, age, num_viewers, half_life, POOL_POWER)

    def _ranking_loss(self, scores: FilmScores, pool_MD: Tensor) -> Tensor:
        batch = next(self._batches)
        hidden_R = torch.rand(batch.user_R.shape, generator=self._generator) < self._settings.holdout_share
        hidden_R &= batch.place_R > 0  # a user keeps at least one like to be pooled from
        kept_R = ~hidden_R
        viewer, movie = batch.user_R[kept_R], batch.movie_R[kept_R]
        age = newest_first_age(viewer, batch.num_viewers)
        users_BD = self._pool(pool_MD, viewer, movie, age, batch.num_viewers)
        liked_user_R, liked_movie_R = batch.user_R.to(self._device), batch.movie_R.to(self._device)
        asked_R = hidden_R.to(self._device) & (self._knowledge.count_M[liked_movie_R] > 0)
        user_R, movie_R = liked_user_R[asked_R], liked_movie_R[asked_R]

        drawn = torch.multinomial(self._count_M, self._settings.negatives, replacement=True, generator=self._generator)
        times_M = torch.bincount(drawn, minlength=self._num_movies).to(self._device)
        drawn_K = times_M.nonzero().squeeze(1)  # a film drawn twice is scored once and counts twice
        is_like_BM = torch.zeros(batch.num_viewers, self._num_movies, dtype=torch.bool, device=self._device)
        is_like_BM[liked_user_R, liked_movie_R] = True
        negative_KB = scores.block(users_BD, drawn_K) + times_M[drawn_K].log().unsqueeze(1)
        negative_KB = negative_KB.masked_fill(is_like_BM[:, drawn_K].T, -torch.inf)
        against_B = negative_KB.logsumexp(dim=0)
        positive_R = scores.pairs(users_BD, user_R, movie_R)
        loss_R = on_one_thread(functional.softplus, take_rows(against_B, user_R) - positive_R)
        asked_B = torch.bincount(user_R, minlength=batch.num_viewers).float()
        weight_R = asked_B.rsqrt()[user_R]  # longer histories count more, but not in proportion
        with one_thread():  # a sum over everything, as below
            whole = asked_B.sqrt().sum().clamp(min=1.0)
        return total(weight_R * loss_R) / whole

    def _link_loss(self, entities_ND: Tensor) -> Tensor:
        """``max(0, margin - pos + neg)``; DistMult scores (Yang et al., ICLR 2015)."""
        knowledge = self._knowledge
        chosen_L = torch.randint(knowledge.movie_T.numel(), (LINK_BATCH,), generator=self._generator)
        place_L = torch.rand(LINK_BATCH, generator=self._generator).to(self._device)
        chosen_L = chosen_L.to(self._device)
        chosen_L = chosen_L[knowledge.relation_T[chosen_L].argsort(stable=True)]
        relation_L = knowledge.relation_T[chosen_L]
        # a wrong tail of the same relation: the tail of another triple of the batch's block of that relation
        count_R = torch.bincount(relation_L, minlength=len(knowledge.relation_names))
        start_L = (count_R.cumsum(0) - count_R)[relation_L]
        shift_L = (place_L * count_R[relation_L]).long()
        head_L = knowledge.movie_entity_M[knowledge.movie_T[chosen_L]]
        heads_LD = take_rows(entities_ND, head_L) * take_rows(self._link_RD, relation_L)
        right_LD = take_rows(entities_ND, knowledge.entity_T[chosen_L])
        wrong_LD = take_rows(entities_ND, knowledge.entity_T[chosen_L[start_L + shift_L]])
        return functional.relu(self._settings.link_margin - (heads_LD * (right_LD - wrong_LD)).sum(dim=1)).mean()


def train_rgat(knowledge: Path, split: Path, out: Path, settings: RgatConfig, seed: int) -> Facts:
    """Train both fits on the knowledge graph and a split, and write the stage's files.

    Args:
        knowledge, split: outputs of those stages.
        out: work folder; gets ``fit_a.safetensors``, ``fit_b.safetensors`` (``entity_vectors`` (N, D), ``pool_vectors``
            (M, D), ``movie_bias`` (M,), ``beta`` (1,)), ``entities.parquet``, ``movies.parquet``, ``pooling.json``,
            ``attention.parquet``, ``relations.parquet``, ``trained_on.parquet``, ``curve.parquet``.
        settings: section ``[rgat]``.
        seed: of the run; each fit draws from a generator of its own.

    Raises:
        InputError: knowledge or split hold nothing to train on. ConfigError: a GPU is requested and torch finds none.
            UserError: the loss is not finite.
    """
    facts = read_knowledge(knowledge)
    interactions = read_interactions(split, facts.movie_ids_M)
    device = choose_device(settings.device, settings.message_passing, "rgat")
    num_edges = 2 * facts.movie_T.numel() + facts.num_entities
    choice = choose_backend(settings.message_passing, device, "attention", num_edges, settings.dim)
    log.info("R-GAT: message passing by %s: %s", *choice)
    on_device = facts.to(device)
    graph = RelationalGraph.build(
        on_device.movie_entity_M[on_device.movie_T],
        on_device.relation_T,
        on_device.entity_T,
        facts.num_entities,
        len(facts.relation_names),
        choice.backend,
    )
    trainers: dict[str, RgatTrainer] = {}

    def make(fit: str) -> RgatTrainer:
        trainers[fit] = RgatTrainer(facts, graph, interactions.fits[fit], settings, 2 * seed + (fit == "b"))
        return trainers[fit]

    checkpoints = Checkpoints(out, settings.checkpoint_minutes)
    runs = train_both(make, interactions.valid, settings, checkpoints, "R-GAT")
    write_attention(out, facts, runs)
    write_table(facts.entities, out / "entities.parquet")
    written = write_fits(out, runs, interactions, {"half_life": settings.recency_half_life, "power": POOL_POWER})
    checkpoints.remove()
    return (
        written
        | choice.facts()
        | {
            "entities": facts.num_entities,
            "triples": facts.movie_T.numel(),
            "edges": graph.edges.num_edges,
            "parameters": trainers["b"].num_parameters,
            "beta": float(runs["b"].tensors["beta"]),
        }
    )


def write_attention(out: Path, knowledge: Knowledge, runs: dict[str, Run]) -> None:
    """Write ``attention.parquet`` (both fits) and ``relations.parquet``: mean weight by fit and relation.

    ``alpha`` is removed from the runs' tensors: it belongs to triples, by keys, not into the file of vectors.
    """
    keys = knowledge.entities["key"].gather(knowledge.entity_T.numpy())
    relations = pl.Series(knowledge.relation_names, dtype=pl.String).gather(knowledge.relation_T.numpy())
    weights = pl.concat(
        pl.DataFrame(
            {
                "fit": [fit] * len(keys),
                "movie_id": knowledge.movie_ids_M[knowledge.movie_T.numpy()],
                "relation": relations,
                "entity": keys,
                "alpha": run.tensors.pop("alpha").numpy(),
            }
        )
        for fit, run in sorted(runs.items())
    )
    write_table(conform(weights, ATTENTION), out / "attention.parquet")
    means = weights.group_by("fit", "relation", maintain_order=True).agg(
        pl.col("alpha").mean().alias("mean_alpha"), pl.len().cast(pl.Int64).alias("num_triples")
    )
    write_table(means.sort("fit", "relation"), out / "relations.parquet")
