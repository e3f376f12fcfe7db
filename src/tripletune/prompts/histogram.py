"""Histogram of example lengths for the data card: a PNG with the same bytes every time."""

from __future__ import annotations

import io

import matplotlib.style
import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_BINS = 60
_COLOURS = {"train": "#4477aa", "valid": "#ee6677", "test": "#228833"}


@matplotlib.style.context("default")  # a user's matplotlibrc must not change the bytes
def draw_histogram(lengths: pl.DataFrame, *, unit: str) -> bytes:
    """Examples by length, one line for each purpose.

    Args:
        lengths: ``purpose, length, examples``.
        unit: unit of the lengths.
    """
    figure = Figure(figsize=(6.4, 3.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    if len(lengths):
        first, last = int(lengths["length"].min()), int(lengths["length"].max())  # type: ignore[arg-type]
        width = -(-(last - first + 1) // _BINS)  # whole numbers fill whole bins evenly
        edges = np.arange(first, last + width + 1, width)
        for purpose, colour in _COLOURS.items():
            mine = lengths.filter(purpose=purpose)
            if len(mine):
                counts, _ = np.histogram(mine["length"], edges, weights=mine["examples"])
                axes.stairs(counts, edges, color=colour, label=f"{purpose} ({mine['examples'].sum():,})", linewidth=1.6)
        axes.legend(frameon=False)
    axes.set_xlabel(unit)
    axes.set_ylabel("examples")
    axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # it would name matplotlib's version
    return stream.getvalue()
