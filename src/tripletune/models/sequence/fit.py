"""Train the sequence model's two fits and write their weights: the stage ``sequence``.

Each step reads a window of every user of the batch and predicts the next film at every place whose next event is a
like. The films of the window up to that place are masked in the softmax.
"""

# Shape letters in this file: M films, D width, B users of a batch, W events of a window, L = W - 1 predicting places, P
#   predicting places in the whole batch, K rows of events up to a place, C films of a step
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import torch
from torch import Tensor

from tripletune.config import SequenceConfig
from tripletune.models.lightgcn.loss import FilmSample, Targets, softmax_loss
from tripletune.models.message_passing.device import choose_device
from tripletune.models.message_passing.fixed_order import product
from tripletune.models.message_passing.gather import take_rows
from tripletune.models.sequence.content import FilmContent, read_content
from tripletune.models.sequence.encode import encode, gather_window
from tripletune.models.sequence.events import Events, Streams, read_streams
from tripletune.models.sequence.memory import state_memory
from tripletune.models.sequence.model import EventModel, Shape, Window
from tripletune.models.training.checkpoints import Checkpoints, load_training_state, training_state
from tripletune.models.training.interactions import Interactions, Likes, batches, read_interactions
from tripletune.models.training.loop import Scorer, train_both, write_fits, write_table
from tripletune.models.training.start import film_factors
from tripletune.models.training.windows import cut_windows
from tripletune.schemas.base import conform
from tripletune.schemas.training import READ_BY, READ_BY_NAME
from tripletune.store.catalogue import read_catalogue
from tripletune.store.files import write_json
from tripletune.store.paths import Facts
from tripletune.threads import map_in_threads, one_thread

Part = TypeVar("Part")
CHUNK_USERS = 16
"""Users that a thread computes at a time: the same for any number of threads, so that sums have one order."""
MOST_THREADS = 16


class SequenceTrainer:
    """One fit: model, optimiser, batches. Implements ``training.Model``.

    Parameters are on ``device``; batches and windows are made on the CPU.
    """

    def __init__(
        self,
        events: Events,
        likes: Likes,
        valid: Events | None,
        shape: Shape,
        settings: SequenceConfig,
        seed: int,
        content_MX: Tensor | None = None,
    ) -> None:
        """Build the model of one fit.

        Args:
            events: of the fit.
            likes: of the fit; film vectors start from them.
            valid: streams before the valid likes; None where nothing is evaluated.
            shape: by ``model_shape``.
            settings: section ``[sequence]``.
            seed: of the fit.
            content_MX: of the films; see ``content.py``. None: films have vectors of their own alone.
        """
        self._settings, self._events, self._valid = settings, events, valid
        self._device = choose_device(settings.device, "torch", "sequence")
        self._generator = torch.Generator().manual_seed(seed)
        self._batches = batches(events, settings.batch_viewers, self._generator)
        model = EventModel(shape, self._generator)
        with torch.no_grad():
            # initial popularity bias, so that the vectors need only learn the difference
            count_M = torch.bincount(likes.movie_E, minlength=shape.num_movies).float()
            model.bias_M.copy_(count_M.log1p())
            start_MD = film_factors(likes, shape.num_movies, shape.dim, self._generator)
            self._content = None
            if content_MX is not None:
                rated_M = torch.bincount(events.movie_E, minlength=shape.num_movies).float()
                self._content = FilmContent(content_MX, rated_M, shape.dim, tied=shape.tied)
                start_MD = self._content.start(start_MD, model.bias_M, rated_M)
                self._content.to(self._device)
            model.embedding_MD.copy_(start_MD)
            if model.output_MD is not None:
                model.output_MD.copy_(start_MD)
        self._model = model.to(self._device)
        self._parameters = dict(model.named_parameters())
        if self._content is not None:
            self._parameters |= {f"content.{name}": one for name, one in self._content.named_parameters()}
        decayed = [parameter for parameter in self._parameters.values() if parameter.dim() > 1]
        others = [parameter for parameter in self._parameters.values() if parameter.dim() == 1]
        groups = [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.98))
        self._steps = 0

    def step(self) -> float:
        """One step over one batch of users."""
        row_BW, length_B = self._cut()
        targets, asked_BL = find_targets(self._events, row_BW, length_B, self._settings.other_weight)
        loss = self._step(row_BW, length_B, targets, asked_BL) if targets.movie_R.numel() else torch.zeros(())
        return float(loss.detach())

    def _cut(self) -> tuple[Tensor, Tensor]:
        batch = next(self._batches)
        return cut_windows(batch, batch.row_R, self._settings.max_length + 1, self._generator)

    def _step(self, row_BW: Tensor, length_B: Tensor, targets: Targets, asked_BL: Tensor) -> Tensor:
        read_C, window = self._window(row_BW, length_B)
        if self._content is not None:
            self._content.drop(self._settings.content_dropout, self._generator)
        with one_thread():
            films_CD = self._rows(read_C.to(self._device), scored=False)
        leaf_CD = films_CD.detach().requires_grad_()
        outputs = self._in_chunks(leaf_CD, window, asked_BL)
        users_PD = torch.cat([output.detach() for output in outputs]).requires_grad_()
        loss = self._loss(users_PD, targets)
        self._optimizer.zero_grad()
        with one_thread():
            loss.backward()  # type: ignore[no-untyped-call]
        assert users_PD.grad is not None
        self._backward(outputs, users_PD.grad, films_CD, leaf_CD)
        self._steps += 1
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.learning_rate * min(1.0, self._steps / self._settings.warmup_steps)
        self._optimizer.step()
        return loss

    def _rows(self, movie_C: Tensor, *, scored: bool) -> Tensor:
        """Vectors of some films, as they are scored or as they are read."""
        model, content = self._model, self._content
        own_CD = take_rows(model.scored_MD if scored else model.embedding_MD, movie_C)
        return own_CD if content is None else content.vectors(own_CD, movie_C, scored=scored)

    def _biases(self, movie_C: Tensor) -> Tensor:
        own_C = take_rows(self._model.bias_M, movie_C)
        return own_C if self._content is None else self._content.biases(own_C, movie_C)

    def _window(self, row_BW: Tensor, length_B: Tensor) -> tuple[Tensor, Window]:
        """The films of the windows, and the events with films as places among them."""
        window = gather_window(self._events, row_BW, length_B)
        read_C, movie_BW = torch.unique(window.movie_BL[:, :-1], return_inverse=True)
        asked_BL = window.time_BL[:, 1:] if self._settings.request_time else None
        return read_C, Window(movie_BW, window.level_BL[:, :-1], window.time_BL[:, :-1], asked_BL)

    def _in_chunks(self, films_CD: Tensor, window: Window, asked_BL: Tensor) -> list[Tensor]:
        """The outputs at the predicting places of each chunk of users, with gradients."""
        size = CHUNK_USERS if self._device.type == "cpu" else len(asked_BL)
        starts = range(0, len(asked_BL), size)
        seeds = torch.randint(1 << 62, (len(starts),), generator=self._generator).tolist()

        def compute(chunk: int) -> Tensor:
            part = slice(starts[chunk], starts[chunk] + size)
            generator = torch.Generator(self._device).manual_seed(seeds[chunk])
            here = window.apply(lambda values: values[part])
            is_half = self._settings.precision == "bfloat16"
            with torch.autocast(self._device.type, torch.bfloat16, enabled=is_half):
                output_BLD = self._model(films_CD, here.to(self._device), None, self._settings.dropout, generator)
            asked: Tensor = output_BLD.float()[asked_BL[part].to(self._device)]
            return asked

        return self._map(compute, len(starts))

    def _backward(self, outputs: list[Tensor], grad_PD: Tensor, films_CD: Tensor, leaf_CD: Tensor) -> None:
        """Add the gradients of the chunks, in their order, to those of the loss."""
        inputs = [leaf_CD, *(one for name, one in self._model.named_parameters() if name not in _BY_FILM)]
        grads = torch.split(grad_PD, [len(output) for output in outputs])

        def compute(chunk: int) -> tuple[Tensor | None, ...]:
            if not len(outputs[chunk]):
                return (None,) * len(inputs)
            return torch.autograd.grad(outputs[chunk], inputs, grads[chunk], allow_unused=True)

        sums: list[Tensor | None] = [None] * len(inputs)
        for parts in self._map(compute, len(outputs)):
            sums = [_add(before, part) for before, part in zip(sums, parts, strict=True)]
        for parameter, grad in zip(inputs[1:], sums[1:], strict=True):
            parameter.grad = grad
        with one_thread():
            films_CD.backward(sums[0])  # type: ignore[no-untyped-call]

    def _map(self, function: Callable[[int], Part], num: int) -> list[Part]:
        if self._device.type == "cpu":
            return map_in_threads(function, range(num), MOST_THREADS)
        return [function(chunk) for chunk in range(num)]

    def _loss(self, users_PD: Tensor, targets: Targets) -> Tensor:
        model, num_movies = self._model, self._model.shape.num_movies
        with one_thread():
            if not 0 < self._settings.sampled_films < num_movies:
                movie_C = torch.arange(num_movies, device=self._device)
                movies_CD = model.targets(self._rows(movie_C, scored=True))
                return softmax_loss(users_PD, movies_CD, self._biases(movie_C), targets.to(self._device))
            sample = FilmSample.draw(targets.movie_R, num_movies, self._settings.sampled_films, self._generator)
            movie_C = sample.movie_C.to(self._device)
            movies_CD = model.targets(self._rows(movie_C, scored=True))
            bias_C = self._biases(movie_C) + sample.correction_C.to(self._device)
            targets = sample.columns(targets, num_movies).to(self._device)
        return softmax_loss(users_PD, movies_CD, bias_C, targets)

    def scorer(self, likes: Likes, age_E: Tensor) -> Scorer:
        """Score all films for the users of the valid likes, by their streams."""
        model, valid = self._model, self._valid
        assert valid is not None
        assert valid.num_viewers == likes.num_viewers
        read_MD, scored_MD, bias_M = self._tables()
        users_UD = encode(model, read_MD, valid)
        with torch.no_grad(), one_thread():
            movies_MD = model.targets(scored_MD)
        return lambda user_V: product(users_UD[user_V.to(self._device)], movies_MD.T) + bias_M

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors of all films as they are read and as they are scored, and their biases, outside training."""
        model, content = self._model, self._content
        read_MD, scored_MD, bias_M = model.embedding_MD.detach(), model.scored_MD.detach(), model.bias_M.detach()
        if content is None:
            return read_MD, scored_MD, bias_M
        return (
            content.whole(read_MD, scored=False),
            content.whole(scored_MD, scored=True),
            content.whole_bias(bias_M),
        )

    def export(self) -> dict[str, Tensor]:
        """The model's tensors, the content of the films in their vectors and biases."""
        read_MD, scored_MD, bias_M = self._tables()
        tensors = self._model.state_dict() | {"embedding_MD": read_MD, "bias_M": bias_M}
        if self._model.output_MD is not None:
            tensors["output_MD"] = scored_MD
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on."""
        state = training_state(self._parameters, self._optimizer, self._generator, self._batches)
        return state | {"steps": torch.tensor(self._steps)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Resume from that state."""
        load_training_state(state, self._parameters, self._optimizer, self._generator, self._batches)
        self._steps = int(state["steps"])


def _add(before: Tensor | None, part: Tensor | None) -> Tensor | None:
    if before is None or part is None:
        return part if before is None else before
    return before + part


_BY_FILM = ("embedding_MD", "output_MD", "bias_M")
"""Parameters with a row per film, whose gradients come from the films of a step."""


def model_shape(config: SequenceConfig, num_movies: int, num_levels: int) -> Shape:
    """The model that the settings describe."""
    of_data: dict[str, Any] = {"num_movies": num_movies, "num_levels": num_levels}
    settings = {field.name for field in dataclasses.fields(Shape)} - of_data.keys()
    return Shape(**of_data, **{name: getattr(config, name) for name in settings})


def find_targets(events: Events, row_BW: Tensor, length_B: Tensor, other_weight: float) -> tuple[Targets, Tensor]:
    """Next-event targets at the places of the windows; weights sum to one.

    Args:
        events: the table that ``row_BW`` points into.
        row_BW, length_B: of ``cut_windows``.
        other_weight: weight of a next event that is no like, next to 1 of a like; 0 makes it no target.

    Returns:
        The targets, in which a "user" is one predicting place; and the mask of these places, (B, L) with L = W - 1.
    """
    place_L = torch.arange(row_BW.shape[1] - 1)
    weight_BL = torch.where(events.like_E[row_BW[:, 1:]], 1.0, other_weight)
    asked_BL = (place_L < (length_B - 1).unsqueeze(1)) & (weight_BL > 0)
    user_P, place_P = asked_BL.nonzero(as_tuple=True)
    known_P, known_L = (place_L <= place_P.unsqueeze(1)).nonzero(as_tuple=True)
    weight_P = weight_BL[user_P, place_P]
    with one_thread():
        weight_P = weight_P / weight_P.sum()
    targets = Targets(
        torch.arange(user_P.numel()),
        events.movie_E[row_BW[user_P, place_P + 1]].long(),
        weight_P,
        known_P,
        events.movie_E[row_BW[user_P[known_P], known_L]].long(),
    )
    return targets, asked_BL


def _read_in_training(streams: Streams, interactions: Interactions) -> pl.DataFrame:
    """``schemas.READ_BY``: the events of both fits that are no likes."""
    parts = [READ_BY.to_frame()]
    for fit, events in streams.fits.items():
        user_E = torch.repeat_interleave(events.count_U)[~events.like_E].numpy()
        movie_E = events.movie_E[~events.like_E].numpy()
        columns = {"user_id": interactions.fits[fit].user_ids_U[user_E], "movie_id": interactions.movie_ids_M[movie_E]}
        parts.append(conform(pl.DataFrame(columns).with_columns(fit=pl.lit(fit)), READ_BY))
    return pl.concat(parts)


def train_sequence(
    split: Path, out: Path, settings: SequenceConfig, seed: int, content: Mapping[str, Path] | None = None
) -> Facts:
    """Train both fits on a split and write the stage's files.

    Args:
        split: output of the split stage.
        out: work folder; a killed call in it is resumed. Gets ``fit_a.safetensors`` and ``fit_b.safetensors`` (the
            model's tensors), ``model.json``, ``movies.parquet``, ``trained_on.parquet``, ``curve.parquet``.
        settings: section ``[sequence]``.
        seed: of the run; each fit draws from a generator of its own.
        content: folders of film vectors, see ``read_content``.

    Raises:
        InputError: the split holds nothing to train on, memory does not suffice, or the content cannot be read.
            ConfigError: the device does not exist. UserError: the loss is not finite.
    """
    movie_ids_M = read_catalogue(split)
    state_memory(split, len(movie_ids_M), settings)
    interactions = read_interactions(split, movie_ids_M)
    streams = read_streams(split, interactions, only_likes=settings.events == "likes")
    shape = model_shape(settings, interactions.num_movies, len(streams.levels_R))

    def make(fit: str) -> SequenceTrainer:
        events, likes = streams.fits[fit], interactions.fits[fit]
        content_MX = read_content(content or {}, interactions.movie_ids_M, fit)
        return SequenceTrainer(events, likes, streams.valid, shape, settings, 2 * seed + (fit == "b"), content_MX)

    checkpoints = Checkpoints(out, settings.checkpoint_minutes)
    runs = train_both(make, interactions.valid, settings, checkpoints, "Sequence model")
    facts = write_fits(out, runs, interactions)
    write_table(_read_in_training(streams, interactions), out / READ_BY_NAME)
    described = dataclasses.asdict(shape) | {
        "ratings": streams.levels_R.tolist(),
        "events": settings.events,
    }
    write_json(out / "model.json", described)
    checkpoints.remove()
    counts = {f"events_{fit}": events.movie_E.numel() for fit, events in streams.fits.items()}
    return facts | counts
