"""Shared training loop for R-GAT, LightGCN and SASRec.

Fit b stops early on ``valid``; fit a trains for as many steps as fit b's best one, without evaluation. Each model
implements ``Model``; this module trains the two fits, ranks each held-out like against the whole catalogue, and writes
the files in one layout.
"""

# Shape letters in this file: M films, U users, E likes, S rated rows, V users of a block
from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from tripletune.errors import UserError
from tripletune.models.training.checkpoints import Checkpoints
from tripletune.models.training.interactions import Interactions, Likes, ValidQuestions, newest_first_age
from tripletune.progress import Progress
from tripletune.schemas.base import conform
from tripletune.schemas.training import CURVE, TRAINED_ON
from tripletune.store.files import write_atomically, write_json
from tripletune.store.parquet import write_parquet

log = logging.getLogger(__name__)

VALID_TOP = 10
BLOCK_USERS = 64
"""Users whose scores of all films are held at once by ``judge``."""
ROW_GROUP = 1 << 20

Scorer = Callable[[Tensor], Tensor]
"""Scores of all films (V, M), on any device, for the users with the given numbers (V,), on the CPU."""


class Model(Protocol):
    """One fit of one specialist while it trains."""

    def step(self) -> float:
        """Take one optimiser step; returns the loss."""

    def scorer(self, likes: Likes, age_E: Tensor) -> Scorer:
        """Scorer of users with these likes, by the current weights."""

    def export(self) -> dict[str, Tensor]:
        """The tensors of ``fit_<name>.safetensors`` by the current weights, on the CPU."""

    def state(self) -> dict[str, Tensor]:
        """State that the next step depends on, as gathered by ``checkpoints.training_state``."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state made by ``state`` in a newly built model."""


class Limits(Protocol):
    """Settings for the length of a training; the section of every trained model has them."""

    @property
    def max_steps(self) -> int:
        """Steps at most."""

    @property
    def eval_every(self) -> int:
        """Steps between evaluations."""

    @property
    def patience(self) -> int:
        """Evaluations without a better one after which the training ends."""


@dataclass(slots=True)
class Run:
    """Progress or result of one fit: its tensors at the best step, and the curve."""

    fit: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    best_step: int = 0
    best_ndcg: float = -1.0
    worse: int = 0
    """Number of evaluations since the best one."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, step: int, loss: float, ndcg: float | None) -> None:
        """Add a row to the curve."""
        self.curve.append({"fit": self.fit, "step": step, "loss": loss, "valid_ndcg_at_10": ndcg})


def train_both(
    make: Callable[[str], Model],
    valid: ValidQuestions,
    limits: Limits,
    checkpoints: Checkpoints | None = None,
    name: str = "training",
) -> dict[str, Run]:
    """Train fit b with early stopping, then fit a for as many steps as fit b's best one.

    Args:
        make: builds the model of fit ``"a"`` or ``"b"``.
        valid: decides when B stops. Without an example (nobody has a ``valid`` like) B runs ``max_steps``.
        limits: steps at most, steps between evaluations, evaluations without a better one before B stops.
        checkpoints: resumed from when there are any. None: always train from the start.
        name: of the model, for the log.

    Raises:
        UserError: a loss is not a finite number.
    """

    def train(fit: str, num_steps: int, asked: ValidQuestions | None) -> Run:
        model, run = make(fit), Run(fit)
        if checkpoints is not None:
            _resume(model, run, checkpoints, name)
        return _train(model, run, num_steps, limits, asked, checkpoints, name)

    run_b = train("b", limits.max_steps, valid)
    return {"a": train("a", run_b.best_step, None), "b": run_b}


def _train(
    model: Model,
    run: Run,
    num_steps: int,
    limits: Limits,
    valid: ValidQuestions | None,
    checkpoints: Checkpoints | None,
    name: str,
) -> Run:
    what = f"{name}, fit {run.fit}"
    # only fit b is evaluated, and may stop early
    with Progress(what, num_steps, done=run.step, at_most=valid is not None) as progress:
        while run.step < num_steps and run.worse < limits.patience:
            start = time.perf_counter()
            loss = model.step()
            run.seconds += time.perf_counter() - start
            run.step += 1
            if not math.isfinite(loss):
                raise UserError(f"fit {run.fit}: the loss is {loss} at step {run.step}; lower learning_rate")
            if run.step % limits.eval_every == 0 or run.step == num_steps:
                _evaluate(model, run, loss, valid)
            best = f", best valid ndcg@10 {run.best_ndcg:.4f}" if run.best_ndcg >= 0 else ""
            progress.reach(run.step, f"loss {loss:.4f}{best}")
            if checkpoints is not None and checkpoints.is_due():
                _save(model, run, checkpoints)
    if checkpoints is not None:
        _save(model, run, checkpoints)
    return run


def _evaluate(model: Model, run: Run, loss: float, valid: ValidQuestions | None) -> None:
    ndcg = judge(model, valid) if valid is not None and valid.answer_U.numel() else None
    run.note(run.step, loss, ndcg)
    if ndcg is None or ndcg > run.best_ndcg:
        run.best_step, run.best_ndcg, run.worse = run.step, ndcg if ndcg is not None else -1.0, 0
        run.tensors = model.export()
    else:
        run.worse += 1


def _save(model: Model, run: Run, checkpoints: Checkpoints) -> None:
    tensors = {f"state/{name}": tensor for name, tensor in model.state().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in run.tensors.items()}
    checkpoints.save(run.fit, tensors, {name: getattr(run, name) for name in _RESUMED})


def _resume(model: Model, run: Run, checkpoints: Checkpoints, name: str) -> None:
    found = checkpoints.load(run.fit)
    if found is None:
        return
    tensors, facts = found
    model.load_state({key.removeprefix("state/"): value for key, value in tensors.items() if key.startswith("state/")})
    run.tensors = {key.removeprefix("best/"): value for key, value in tensors.items() if key.startswith("best/")}
    for key in _RESUMED:
        setattr(run, key, facts[key])
    log.info("%s, fit %s: resumes after step %d", name, run.fit, run.step)


_RESUMED = ("step", "best_step", "best_ndcg", "worse", "curve", "seconds")
"""Fields of a ``Run`` stored as facts of a checkpoint; its tensors are stored apart."""


@torch.no_grad()
def judge(model: Model, valid: ValidQuestions) -> float:
    """Mean ndcg_at_10 of the held-out likes, each ranked against every film its user had not rated before it.

    One relevant film each, so a user's value is ``1 / log2(rank + 1)`` or 0. A tie counts as a loss, so that a model
    with equal scores for all films gets 0.
    """
    likes = valid.likes
    score = model.scorer(likes, newest_first_age(likes.user_E, likes.num_viewers))
    gain = 0.0
    for user_V in torch.split(torch.arange(likes.num_viewers), BLOCK_USERS):
        first, last = int(user_V[0]), int(user_V[-1])
        scores_VM = score(user_V)
        device = scores_VM.device
        wanted_V1 = scores_VM.gather(1, valid.answer_U[user_V].unsqueeze(1).to(device))
        rows = slice(
            int(torch.searchsorted(valid.seen_user_S, first)),
            int(torch.searchsorted(valid.seen_user_S, last, right=True)),
        )
        seen = ((valid.seen_user_S[rows] - first).to(device), valid.seen_movie_S[rows].to(device))
        scores_VM.index_put_(seen, scores_VM.new_tensor(-torch.inf))
        rank_V = (scores_VM >= wanted_V1).sum(dim=1)  # counts the wanted film itself, so the best rank is 1
        gain += float(torch.where(rank_V <= VALID_TOP, 1 / torch.log2(rank_V + 1.0), 0.0).double().sum())
    return gain / likes.num_viewers


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a file of a training stage."""
    write_parquet(path, frame, row_group_size=ROW_GROUP)


def write_interactions(out: Path, interactions: Interactions) -> None:
    """Write ``movies.parquet`` (the film of each row of a fit) and ``trained_on.parquet`` (read by the audit)."""
    movies = pl.DataFrame({"movie_id": pl.Series(interactions.movie_ids_M, dtype=pl.Int32)})
    write_table(movies.select(pl.int_range(pl.len(), dtype=pl.Int32).alias("row"), "movie_id"), out / "movies.parquet")
    trained_on = [
        pl.DataFrame(
            {
                "user_id": likes.user_ids_U[likes.user_E.numpy()],
                "movie_id": interactions.movie_ids_M[likes.movie_E.numpy()],
                "fit": [fit] * likes.user_E.numel(),
            }
        )
        for fit, likes in interactions.fits.items()
    ]
    write_table(conform(pl.concat(trained_on), TRAINED_ON), out / "trained_on.parquet")


def write_fits(
    out: Path, runs: Mapping[str, Run], interactions: Interactions, pooling: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Write the files common to all trained models: fits, movies, trained_on and curve.

    Args:
        pooling: ``half_life`` and ``power`` of the user pooling, for ``pooling.json``; None: no such file.

    Returns:
        Facts: steps, best ndcg, seconds per step, likes of each fit.
    """
    for fit, run in runs.items():
        tensors = {name: tensor.detach().float().contiguous() for name, tensor in sorted(run.tensors.items())}
        write_atomically(out / f"fit_{fit}.safetensors", functools.partial(save_file, tensors))
    write_interactions(out, interactions)
    if pooling is not None:
        write_json(out / "pooling.json", pooling)
    rows = [row for run in runs.values() for row in run.curve]
    write_table(pl.DataFrame(rows, schema=CURVE), out / "curve.parquet")
    steps = sum(run.curve[-1]["step"] for run in runs.values())
    best = runs["b"].best_ndcg
    return {
        "steps": runs["b"].best_step,
        "best_valid_ndcg_at_10": best if best >= 0 else None,
        "seconds_per_step": round(sum(run.seconds for run in runs.values()) / steps, 4),
        "movies": interactions.num_movies,
        **{f"viewers_{fit}": likes.num_viewers for fit, likes in interactions.fits.items()},
        **{f"likes_{fit}": likes.user_E.numel() for fit, likes in interactions.fits.items()},
    }
