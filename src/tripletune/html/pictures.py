"""Pictures of the report as inline SVG: the same bytes every time, and colours that follow the page's light or dark.

Matplotlib writes fixed colours into its SVG; stand-ins are drawn and then replaced by CSS variables of the page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, FAINT = "#010101", "#020202"
SERIES = ("#030301", "#030302", "#030303", "#030304")
COLOURS = {INK: "var(--ink)", FAINT: "var(--line)"} | {hexa: f"var(--c{n})" for n, hexa in enumerate(SERIES, 1)}
MAX_TICKS = 10
STYLE = {
    "svg.hashsalt": "tripletune",
    "svg.fonttype": "none",  # real text: small, selectable, in the page's font
    "text.parse_math": False,  # a relation may be called $x$
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
}
_styled = matplotlib.style.context(["default", STYLE])  # "default": a user's matplotlibrc must not change the bytes


class Dot(NamedTuple):
    """A mean with its interval; no interval with fewer than two users."""

    row: str
    series: str
    value: float
    low: float | None
    high: float | None


@_styled
def draw_dots(dots: Sequence[Dot], *, title: str, xlabel: str, limit: float | None = None) -> str:
    """One line per row from top to bottom, one colour per series; ``limit`` is drawn as a dashed line.

    Returns:
        An ``<svg>`` element.
    """
    rows, series = _in_order(dot.row for dot in dots), _in_order(dot.series for dot in dots)
    figure = _figure(4.6, 1.0 + 0.42 * len(rows))
    axes = figure.subplots()
    axes.grid(visible=False, axis="y")
    for number, name in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * 0.26
        chosen = [dot for dot in dots if dot.series == name]
        for dot in chosen:
            y = rows.index(dot.row) + shift
            if dot.low is not None and dot.high is not None:
                axes.plot([dot.low, dot.high], [y, y], color=SERIES[number], linewidth=2, solid_capstyle="round")
        heights = [rows.index(dot.row) + shift for dot in chosen]
        axes.scatter(
            [dot.value for dot in chosen], heights, s=34, color=SERIES[number], label=name, zorder=3, clip_on=False
        )
    if limit is not None:
        axes.axvline(limit, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    if all(dot.value >= 0 and (dot.low or 0) >= 0 for dot in dots):  # shares, not differences
        axes.set_xlim(left=0)
    # labels such as -0.005 touch where there are more
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel(xlabel)
    _legend(axes, len(series))
    return _svg(figure, title)


@_styled
def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str, ylabel: str) -> str:
    """Values over steps, one line per name.

    Returns:
        An ``<svg>`` element.
    """
    figure = _figure(4.6, 2.7)
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 40 else None
        colour = SERIES[number % len(SERIES)]
        axes.plot(steps, values, color=colour, label=name, linewidth=1.8, marker=marker, markersize=3.5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    _legend(axes, len(curves))
    return _svg(figure, title)


@_styled
def draw_bars(rows: Sequence[str], shares: Mapping[str, Sequence[float]], *, title: str, xlabel: str) -> str:
    """Shares by row as horizontal bars, one colour per name.

    Returns:
        An ``<svg>`` element.
    """
    figure = _figure(6.4, 1.0 + 0.5 * len(rows))
    axes = figure.subplots()
    axes.grid(visible=False, axis="y")
    _draw_side_by_side(axes.barh, shares, room=0.8, filled=0.9)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    _legend(axes, len(shares))
    return _svg(figure, title)


@_styled
def draw_columns(
    bins: Sequence[str], shares: Mapping[str, Sequence[float]], *, title: str, xlabel: str, even: float | None = None
) -> str:
    """Shares by bin as upright columns from left to right, one colour per name; ``even`` is drawn as a dashed line.

    Returns:
        An ``<svg>`` element.
    """
    figure = _figure(4.6, 2.7)
    axes = figure.subplots()
    axes.grid(visible=False, axis="x")
    _draw_side_by_side(axes.bar, shares, room=0.86, filled=0.94)
    if even is not None:
        axes.axhline(even, color=INK, linestyle=(0, (4, 3)), linewidth=1)
    every = -(-len(bins) // MAX_TICKS)
    axes.set_xticks(range(0, len(bins), every), bins[::every])
    axes.set_xlabel(xlabel)
    axes.set_ylabel("share")
    _legend(axes, len(shares))
    return _svg(figure, title)


def _draw_side_by_side(draw: Any, shares: Mapping[str, Sequence[float]], *, room: float, filled: float) -> None:
    """Bars of every name around each place, by ``Axes.bar`` or ``Axes.barh``; together they take ``room`` of it."""
    width = room / max(1, len(shares))
    for number, (name, values) in enumerate(shares.items()):
        shift = (number - (len(shares) - 1) / 2) * width
        places = [place + shift for place in range(len(values))]
        draw(places, values, width * filled, color=SERIES[number % len(SERIES)], label=name)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0.0)
    return figure


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _legend(axes: Any, num_series: int) -> None:
    axes.patch.set_alpha(0.0)
    if num_series > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=num_series, borderaxespad=0.2)


def _svg(figure: Figure, title: str) -> str:
    stream = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    text = stream.getvalue().decode("utf-8")
    body = text[text.index("<defs>") :]
    for stand_in, variable in COLOURS.items():
        body = body.replace(stand_in, variable)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = re.sub(r' id="(?!m[0-9a-f]{8,}|p[0-9a-f]{8,})[^"]*"', "", body)  # names that every picture would repeat
    width, height = (72 * float(inches) for inches in figure.get_size_inches())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {width:g} {height:g}" style="max-width:{1.5 * width:g}px"><title>{escape(title)}</title>{body}'
    )
