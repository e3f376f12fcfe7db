"""Folders like those of the stage lightgcn, with film vectors drawn from seeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file


def rotation(width: int, seed: int) -> np.ndarray:
    """A random orthogonal map; every second one mirrors."""
    turned, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))
    return turned


def write_lightgcn(
    folder: Path,
    *,
    fits: Mapping[str, int],
    num_films: int,
    width: int,
    noise: Mapping[str, float] | None = None,
    turned: Mapping[str, int] | None = None,
) -> Path:
    """Films 1 to ``num_films`` in each fit, drawn from its seed, with some noise of its own, then turned by a map."""
    folder.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"row": range(num_films), "movie_id": range(1, num_films + 1)}).write_parquet(
        folder / "movies.parquet"
    )
    (folder / "pooling.json").write_text(json.dumps({"half_life": 10.0, "power": 0.5}))
    for fit, seed in fits.items():
        vectors = np.random.default_rng(seed).normal(size=(num_films, width))
        vectors += (noise or {}).get(fit, 0.0) * np.random.default_rng(77).normal(size=vectors.shape)
        if turned and fit in turned:
            vectors = vectors @ rotation(width, turned[fit])
        films = torch.tensor(vectors, dtype=torch.float32)
        tensors = {"movie_vectors": films, "pool_vectors": films.clone(), "movie_bias": torch.zeros(num_films)}
        save_file(tensors, folder / f"fit_{fit}.safetensors")
    return folder
