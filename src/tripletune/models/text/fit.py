"""Embed the films' texts: the stage ``text``. Nothing is trained: both fits use the same vectors."""

# Shape letters in this file: M films, X columns
from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.torch import save_file

from tripletune.config import TextConfig
from tripletune.errors import InputError
from tripletune.models.text.directions import centre
from tripletune.models.text.embed import load_embedder
from tripletune.models.text.texts import film_texts
from tripletune.models.training.loop import write_table
from tripletune.schemas.base import conform
from tripletune.schemas.text import TEXTS
from tripletune.schemas.training import TRAINED_ON
from tripletune.store.catalogue import read_catalogue
from tripletune.store.files import write_atomically
from tripletune.store.paths import Facts


def embed_films(knowledge: Path, split: Path, out: Path, settings: TextConfig) -> Facts:
    """Write ``films.safetensors`` (``text`` (M, X)), ``movies.parquet``, ``texts.parquet`` and an empty
    ``trained_on.parquet``: no like shapes these vectors.

    Args:
        knowledge, split: outputs of those stages; the catalogue is the split's.
        out: work folder.
        settings: section ``[text]``.

    Raises:
        InputError, ConfigError: as documented by ``film_texts`` and ``load_embedder``; or a vector is not finite.
    """
    movie_ids_M = read_catalogue(split)
    films = pl.DataFrame({"movie_id": movie_ids_M}).join(
        film_texts(knowledge, settings.relations), on="movie_id", how="left", maintain_order="left"
    )
    films = films.with_columns(pl.col("text").fill_null(""))
    text_MX = centre(load_embedder(settings.model)(films["text"].to_list()))
    if not bool(text_MX.isfinite().all()):
        raise InputError(f"text.model = {settings.model!r} gives vectors that are not finite; use another model")
    write_atomically(out / "films.safetensors", functools.partial(save_file, {"text": text_MX}))
    rows = pl.DataFrame({"row": np.arange(len(films), dtype=np.int32), "movie_id": movie_ids_M})
    write_table(rows, out / "movies.parquet")
    write_table(conform(films, TEXTS), out / "texts.parquet")
    write_table(TRAINED_ON.to_frame(), out / "trained_on.parquet")
    return {"movies": len(films), "columns": text_MX.shape[1], "without_text": int((films["text"] == "").sum())}
