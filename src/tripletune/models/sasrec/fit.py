"""Train SASRec's two fits and write their weights: the stage ``sasrec``.

Each step reads a window of every user of the batch and predicts the next film at every place of it. The window's films
up to that place are masked in the softmax.
"""

# Shape letters in this file: M films, D width, B users of a batch, W likes of a window, L = W - 1 predicting places, P
#   predicting places in the whole batch, K rows of known likes (up to the place)
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tripletune.config import SasrecConfig
from tripletune.models.lightgcn.loss import FilmSample, Targets, softmax_loss
from tripletune.models.message_passing.fixed_order import product
from tripletune.models.sasrec.model import SASRec, Shape
from tripletune.models.training.checkpoints import Checkpoints, load_training_state, training_state
from tripletune.models.training.interactions import Likes, batches, read_interactions
from tripletune.models.training.loop import Scorer, train_both, write_fits
from tripletune.models.training.start import film_factors
from tripletune.models.training.windows import cut_windows
from tripletune.store.files import write_json
from tripletune.store.paths import Facts
from tripletune.threads import one_thread


class SasrecTrainer:
    """One fit: model, optimiser, batches. Implements ``training.Model``."""

    def __init__(self, likes: Likes, num_movies: int, settings: SasrecConfig, seed: int) -> None:
        self._settings = settings
        self._generator = torch.Generator().manual_seed(seed)
        self._batches = batches(likes, settings.batch_viewers, self._generator)
        shape = Shape(num_movies, settings.dim, settings.layers, settings.heads, settings.max_length)
        self._model = SASRec(shape, self._generator)
        count_M = torch.bincount(likes.movie_E, minlength=num_movies).float()
        with torch.no_grad():
            self._model.embedding_MD.copy_(film_factors(likes, num_movies, settings.dim, self._generator))
            # initial popularity bias, so that the vectors need only learn the difference
            self._model.bias_M.copy_(count_M.log1p())
        self._parameters = dict(self._model.named_parameters())
        self._optimizer = torch.optim.Adam(self._parameters.values(), lr=settings.learning_rate)
        self._steps = 0

    def step(self) -> float:
        """One step over one batch of users; the softmax, about half of the work, runs on all threads."""
        settings, model = self._settings, self._model
        batch = next(self._batches)
        window_BW, length_B = cut_windows(batch, batch.movie_R, settings.max_length + 1, self._generator)
        targets, asked_BL = ask_next(window_BW, length_B)
        with one_thread():
            users_PD = model(window_BW[:, :-1], settings.dropout, self._generator)[asked_BL]
        sample, num_movies = None, model.shape.num_movies
        if 0 < settings.sampled_films < num_movies:
            sample = FilmSample.draw(targets.movie_R, num_movies, settings.sampled_films, self._generator)
            targets = sample.columns(targets, num_movies)
        loss = softmax_loss(users_PD, model.embedding_MD, model.bias_M, targets, sample)
        self._steps += 1
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, self._steps / settings.warmup_steps)
        self._optimizer.zero_grad()
        with one_thread():
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return float(loss.detach())

    def scorer(self, likes: Likes, age_E: Tensor) -> Scorer:
        """Score all films for users with these likes."""
        model = self._model
        users_UD = model.encode(likes.user_E, likes.movie_E, likes.num_viewers)
        movies_MD, bias_M = model.embedding_MD.detach(), model.bias_M.detach()
        return lambda user_V: product(users_UD[user_V], movies_MD.T) + bias_M

    def export(self) -> dict[str, Tensor]:
        """The model's tensors; embedding and bias under the names used by retrieval."""
        tensors = {name: tensor.detach().clone() for name, tensor in self._model.state_dict().items()}
        tensors["movie_vectors"], tensors["movie_bias"] = tensors.pop("embedding_MD"), tensors.pop("bias_M")
        return tensors

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        state = training_state(self._parameters, self._optimizer, self._generator, self._batches)
        return state | {"steps": torch.tensor(self._steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Resume from that state."""
        load_training_state(state, self._parameters, self._optimizer, self._generator, self._batches)
        self._steps = int(state["steps"])


def ask_next(window_BW: Tensor, length_B: Tensor) -> tuple[Targets, Tensor]:
    """Next-film targets at every place of the windows except each one's last, equally weighted, with sum one.

    Returns:
        The targets, in which a "user" is one predicting place; and the mask of these places, (B, L) with L = W - 1.
    """
    place_L = torch.arange(window_BW.shape[1] - 1)
    asked_BL = place_L < (length_B - 1).unsqueeze(1)
    user_P, place_P = asked_BL.nonzero(as_tuple=True)
    known_P, known_L = (place_L <= place_P.unsqueeze(1)).nonzero(as_tuple=True)
    num_asked = user_P.numel()
    targets = Targets(
        torch.arange(num_asked),
        window_BW[user_P, place_P + 1],
        torch.full((num_asked,), 1 / max(1, num_asked)),
        known_P,
        window_BW[user_P[known_P], known_L],
    )
    return targets, asked_BL


def train_sasrec(split: Path, out: Path, settings: SasrecConfig, seed: int) -> Facts:
    """Train both fits on a split and write the stage's files.

    Args:
        split: output of the split stage.
        out: work folder; gets ``fit_a.safetensors`` and ``fit_b.safetensors`` (the model's tensors; ``movie_vectors``
            (M, D) and ``movie_bias`` (M,) score), ``model.json``, ``movies.parquet``, ``trained_on.parquet``,
            ``curve.parquet``.
        settings: section ``[sasrec]``.
        seed: of the run; each fit draws from a generator of its own.

    Raises:
        InputError: the split holds nothing to train on. UserError: the loss is not finite.
    """
    interactions = read_interactions(split)

    def make(fit: str) -> SasrecTrainer:
        return SasrecTrainer(interactions.fits[fit], interactions.num_movies, settings, 2 * seed + (fit == "b"))

    checkpoints = Checkpoints(out, settings.checkpoint_minutes)
    runs = train_both(make, interactions.valid, settings, checkpoints, "SASRec")
    facts = write_fits(out, runs, interactions)
    names = ("dim", "layers", "heads", "max_length")
    write_json(out / "model.json", {name: getattr(settings, name) for name in names})
    checkpoints.remove()
    return facts
