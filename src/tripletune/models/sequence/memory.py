"""Memory estimate of the sequence model's training: logged before the split is read, and refused when too large."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from tripletune.config import SequenceConfig
from tripletune.store.meter import claim_memory
from tripletune.store.shards import split_files

BYTES_PER_RATING = 160
"""At the peak of reading, when the rows are sorted and cut into the streams of both fits; about 30 remain."""
BYTES_PER_PARAMETER = 40
"""Value, gradient, Adam's two averages, the best step's copy, and a checkpoint on its way to the disk, in float32."""
CONTENT_COLUMNS = 320
"""Columns of film content at most: text and R-GAT's vectors at their defaults."""
BYTES_PER_PAIR = 64
"""Of each pair of places of a window, head and block: biases, their mask, scores and weights, with gradients."""
BYTES_PER_VALUE = 160
"""Of each place, block and column: the results of its layers, with gradients."""


def state_memory(split: Path, num_movies: int, settings: SequenceConfig) -> None:
    """Log the memory that training on this split needs, and the free memory.

    Raises:
        InputError: less memory is free.
    """
    num_ratings = sum(pq.read_metadata(path).num_rows for path in split_files(split).values())
    tables = num_movies * (settings.dim * (1 if settings.tied else 2) * BYTES_PER_PARAMETER + CONTENT_COLUMNS * 4)
    places = settings.batch_viewers * settings.max_length
    per_place = settings.max_length * settings.heads * BYTES_PER_PAIR + settings.dim * BYTES_PER_VALUE
    states = places * settings.layers * per_place
    claim_memory(
        f"The sequence model on {num_ratings:,} ratings and {num_movies:,} films",
        num_ratings * BYTES_PER_RATING + tables + states,
        "train on fewer ratings, or lower sequence.batch_viewers or sequence.max_length",
    )
