"""Draw ``docs/pipeline.svg``, the picture of the stages, from what the stages say they read.

``python -m docs.picture`` writes it; a test compares the file with what this module draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from statistics import fmean

from tripletune.config import RunConfig
from tripletune.pipeline.registry import STAGES

PICTURE = Path(__file__).parent / "pipeline.svg"
NOTES = {
    "ingest": "typed tables",
    "split": "labels, cutoffs",
    "knowledge": "film graph",
    "rgat": "hint 2: facts",
    "lightgcn": "hint 1: ranking",
    "text": "film texts",
    "sasrec": "order of likes",
    "sequence": "order of ratings",
    "ease": "baseline",
    "slist": "closed form",
    "fusion": "list weights",
    "selector": "choice of facts",
    "retrieve": "candidates, hints",
    "generate": "prompt shards",
    "quality": "drift, limits",
    "finetune": "LoRA adapter",
    "rank": "predictions",
    "probe": "what is relied on",
    "evaluate": "metrics, report",
    "promote": "champion alias",
}
BREAK = "generate"
"""The first line of the picture ends with this stage."""
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 124, 44, 38, 14, 16

Parents = Mapping[str, tuple[str, ...]]


def stage_parents() -> dict[str, tuple[str, ...]]:
    """Each stage of a run with the default settings, and the stages it reads."""
    config = RunConfig(dataset="picture")
    found = {stage.name: stage.parents_of(config) for stage in STAGES if stage.needed(config)}
    return {**found, "finetune": ("quality", *found["finetune"])}  # quality writes nothing for it, but may stop the run


def reduce(parents: Parents) -> dict[str, tuple[str, ...]]:
    """The same order with the fewest arrows: a parent that another parent already needs is dropped."""

    def above(stage: str) -> set[str]:
        return {stage, *(name for parent in parents[stage] for name in above(parent))}

    return {
        stage: tuple(one for one in reads if not any(one in above(other) for other in reads if other != one))
        for stage, reads in parents.items()
    }


def draw(parents: Parents) -> str:
    """The stages as SVG: a column for each step of the longest way to a stage, in two lines."""

    def depth(stage: str) -> int:
        return max((depth(parent) + 1 for parent in parents[stage]), default=0)

    last = depth(BREAK)
    columns: dict[int, list[str]] = {}
    for stage in parents:
        columns.setdefault(depth(stage), []).append(stage)
    for place in sorted(columns, reverse=True)[1:]:  # a stage stands at the height of those that read it
        below = columns[place + 1]
        heights = {stage: [row for row, one in enumerate(below) if stage in parents[one]] for stage in columns[place]}
        columns[place].sort(key=lambda stage: fmean(heights[stage] or [len(below)]))
    tallest = max(len(column) for place, column in columns.items() if place <= last)
    top_height = tallest * (HEIGHT + GAP_Y) - GAP_Y
    corners: dict[str, tuple[float, float]] = {}
    for place, column in columns.items():
        left = MARGIN + (place if place <= last else place - last - 1) * (WIDTH + GAP_X)
        own = len(column) * (HEIGHT + GAP_Y) - GAP_Y
        top = MARGIN + (top_height - own) / 2 if place <= last else MARGIN + top_height + 2.2 * GAP_Y + HEIGHT / 2
        for row, stage in enumerate(column):
            corners[stage] = (left, top + row * (HEIGHT + GAP_Y))
    width = max(x for x, _ in corners.values()) + WIDTH + MARGIN
    height = max(y for _, y in corners.values()) + HEIGHT + MARGIN
    arrows = [_arrow(corners[parent], corners[stage]) for stage in parents for parent in parents[stage]]
    boxes = [_box(stage, *corner) for stage, corner in corners.items()]
    return _HEAD.format(width=f"{width:g}", height=f"{height:g}") + "\n".join([*arrows, *boxes, "</svg>", ""])


_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>The stages, and which of them each one reads</title>
<style>
text {{ font-family: system-ui, "DejaVu Sans", sans-serif; text-anchor: middle; fill: #1b2433 }}
.name {{ font-size: 14px; font-weight: 600 }} .note {{ font-size: 11px; fill: #55617a }}
rect.stage {{ fill: #eef3fb; stroke: #4a6fb5 }} path {{ fill: none; stroke: #7c8aa5; stroke-width: 1.5 }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0,0 L8,4 L0,8 z" style="fill:#7c8aa5;stroke:none"/></marker></defs>
<rect width="{width}" height="{height}" rx="10" fill="#fff"/>
"""


def _box(stage: str, left: float, top: float) -> str:
    middle = left + WIDTH / 2
    return (
        f'<rect class="stage" x="{left:g}" y="{top:g}" width="{WIDTH}" height="{HEIGHT}" rx="7"/>'
        f'<text class="name" x="{middle:g}" y="{top + 19:g}">{escape(stage)}</text>'
        f'<text class="note" x="{middle:g}" y="{top + 35:g}">{escape(NOTES.get(stage, ""))}</text>'
    )


def _arrow(start: tuple[float, float], end: tuple[float, float]) -> str:
    left, top = start[0] + WIDTH, start[1] + HEIGHT / 2
    right, bottom = end[0], end[1] + HEIGHT / 2
    if right > left:
        bend = (right - left) / 2
        way = f"M{left:g},{top:g} C{left + bend:g},{top:g} {right - bend:g},{bottom:g} {right:g},{bottom:g}"
    else:  # to the next line: down, back to the left, down again
        x, y, target = start[0] + WIDTH / 2, end[1] - 1.2 * GAP_Y, end[0] + WIDTH / 2
        way = f"M{x:g},{start[1] + HEIGHT:g} L{x:g},{y:g} L{target:g},{y:g} L{target:g},{end[1]:g}"
    return f'<path d="{way}" marker-end="url(#tip)"/>'


def main() -> None:
    """Write the picture."""
    PICTURE.write_text(draw(reduce(stage_parents())), encoding="utf-8")


if __name__ == "__main__":
    main()
