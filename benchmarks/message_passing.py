"""Message passing against the memory of the machine: edges per second of every back end, and what memory allows.

    python benchmarks/message_passing.py compare    # writes benchmarks/message_passing.md; two to three minutes

A sum over neighbours computes next to nothing: it fetches one row of features per edge, from a place that the graph
decides. Two bounds are measured in the same run. *Copy*: the bytes per second of copying an array far larger than the
caches, read and written bytes counted. *Gather*: rows per second of `index_select` at random places of a table of the
same size and width, which is what a sum over neighbours must do at least, when no row is still in a cache.

Bytes per edge, counted as if no cache held a row (4 bytes a float or index; H heads of width W; a row is H W floats):

    sum                forward: row + index                backward: the same
    softmax            forward: 2 H + index                backward: 3 H + index
    weighted sum       forward: row + H + index            backward: 3 rows + 2 H + 3 indices

So a share of the copy above 100 % means that caches held rows. Each case is a process of its own, with data of its own;
its peak memory is the kernel's. Seconds are the best of several, CPU seconds those of the same round.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from tripletune.models.message_passing.graph import message_graph

REPORT = Path(__file__).with_name("message_passing.md")
COPY_BYTES = 1 << 29
FLOAT = INDEX = 4


@dataclass(frozen=True)
class Shape:
    """A random graph; sources are drawn with a long tail, as films and entities are."""

    what: str
    num_src: int
    num_dst: int
    num_edges: int
    heads: int
    width: int

    @property
    def row(self) -> int:
        return self.heads * self.width * FLOAT

    def bytes_per_edge(self, operation: str, is_training: bool) -> int:
        head = self.heads * FLOAT
        forward, backward = {
            "sum": (self.row + INDEX, self.row + INDEX),
            "softmax": (2 * head + INDEX, 3 * head + INDEX),
            "weighted sum": (self.row + head + INDEX, 3 * self.row + 2 * head + 3 * INDEX),
        }[operation]
        return forward + backward if is_training else forward


SHAPES = {
    "lightgcn": Shape("LightGCN, 20 M likes to viewers, 64 wide", 80_000, 200_000, 20_000_000, 1, 64),
    "rgat": Shape("R-GAT, 1 M edges, 4 heads of 8", 150_000, 60_000, 1_000_000, 4, 8),
    "tiny": Shape("trial, 20 k edges", 3_000, 2_000, 20_000, 4, 8),
}
OPERATIONS = {
    "lightgcn": ["sum"],
    "rgat": ["sum", "softmax", "weighted sum"],
    "tiny": ["sum", "softmax", "weighted sum"],
}


def draw(shape: Shape) -> tuple[Tensor, Tensor]:
    """Source and destination of each edge, sorted by destination, as likes are."""
    generator = torch.Generator().manual_seed(1)
    src_E = (torch.rand(shape.num_edges, generator=generator) ** 3 * shape.num_src).long()
    dst_E = torch.randint(shape.num_dst, (shape.num_edges,), generator=generator)
    return src_E, dst_E.sort().values if shape.heads == 1 else dst_E


def operation(shape: Shape, backend: str, name: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The operation on a graph that is built, and its inputs."""
    src_E, dst_E = draw(shape)
    source, edge = torch.randn(shape.num_src, shape.heads, shape.width), torch.randn(shape.num_edges, shape.heads)
    graph = message_graph(src_E, dst_E, shape.num_src, shape.num_dst, "dgl" if backend == "dgl" else "torch")
    if name == "sum":
        return graph.sum_neighbours, [source.flatten(1)]
    if name == "softmax":
        return graph.softmax_incoming, [edge]
    return graph.weighted_sum, [source, edge]


def best(work: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds of the quickest round, after one to warm up."""
    work()
    rounds = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        rounds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(rounds)


def measure(key: str, backend: str, name: str, repeats: int) -> list[dict[str, Any]]:
    """One case, forward alone and with its gradients."""
    shape = SHAPES[key]
    start = time.perf_counter()
    apply, inputs = operation(shape, backend, name)
    built = time.perf_counter() - start
    rows = []
    for is_training in (False, True):
        inputs = [tensor.detach().requires_grad_(is_training) for tensor in inputs]
        target = torch.randn_like(apply(*inputs))

        def work(inputs: list[Tensor] = inputs, target: Tensor = target, is_training: bool = is_training) -> None:
            out = apply(*inputs)
            if is_training:
                torch.autograd.grad(out, inputs, target)

        wall, cpu = best(work, repeats)
        rows.append({"key": key, "backend": backend, "operation": name, "is_training": is_training, "built": built})
        rows[-1] |= {"wall": wall, "cpu": cpu, "peak_gib": _peak_gib()}
    return rows


def limits(key: str, repeats: int) -> dict[str, float]:
    """Bytes per second of a copy and of a random gather (rows read, indices read; the written chunk stays cached)."""
    shape = SHAPES[key]
    source, target = torch.ones(COPY_BYTES // FLOAT), torch.zeros(COPY_BYTES // FLOAT)
    copy, _ = best(lambda: target.copy_(source), repeats)
    table = torch.randn(shape.num_src, shape.heads * shape.width)
    row_E = torch.randint(shape.num_src, (min(shape.num_edges, 4_000_000),), dtype=torch.int32)
    chunk = 1 << 12
    out = torch.empty(chunk, table.shape[1])

    def gather() -> None:
        for rows in torch.split(row_E, chunk):
            torch.index_select(table, 0, rows, out=out[: len(rows)])

    seconds, _ = best(gather, repeats)
    return {"copy": 2 * COPY_BYTES / copy, "gather": row_E.numel() * (shape.row + INDEX) / seconds}


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def _child(*arguments: str) -> Any:
    command = [sys.executable, __file__, "one", *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(bounds: dict[str, dict[str, float]], rows: list[dict[str, Any]], command: str) -> str:
    """The page."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "dgl"))
    lines = [
        "# Message passing: edges per second, and what memory allows",
        "",
        "What is counted and how: the head of `message_passing.py`. float32. With its gradients: forward and backward",
        "together.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {platform.python_version()}"
        f" Python, {libraries}; `{command}`",
    ]
    for key, bound in bounds.items():
        shape = SHAPES[key]
        lines += [
            "",
            f"## {shape.what}",
            "",
            f"{shape.num_src:,} sources, {shape.num_dst:,} destinations. Copy: {bound['copy'] / 1e9:.1f} GB/s. Random "
            f"gather of rows of {shape.row} bytes: {bound['gather'] / 1e9:.1f} GB/s, "
            f"{bound['gather'] / (shape.row + INDEX) / 1e6:.0f} M rows/s.",
            "",
            "| operation | | back end | wall s | CPU s | M edges/s | bytes/edge | GB/s | of copy | of gather "
            "| build s | peak GiB |",
            "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for row in (row for row in rows if row["key"] == key):
            counted = shape.bytes_per_edge(row["operation"], row["is_training"])
            rate = shape.num_edges * counted / row["wall"]
            lines.append(
                f"| {row['operation']} | {'with gradients' if row['is_training'] else 'forward'} | {row['backend']} "
                f"| {row['wall']:.3f} | {row['cpu']:.3f} | {shape.num_edges / row['wall'] / 1e6:.0f} | {counted} "
                f"| {rate / 1e9:.1f} | {rate / bound['copy']:.0%} | {rate / bound['gather']:.0%} "
                f"| {row['built']:.1f} | {row['peak_gib']:.2f} |"
            )
    return "\n".join([*lines, ""])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def compare(
    shapes: Annotated[str, typer.Option(help=f"Of {', '.join(SHAPES)}, with commas.")] = "lightgcn,rgat",
    repeats: Annotated[int, typer.Option(help="Rounds of each case, the best counts.")] = 3,
    out: Annotated[Path, typer.Option(help="Report.")] = REPORT,
) -> None:
    """Measure every case in a process of its own, and write the report."""
    bounds: dict[str, dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    for key in shapes.split(","):
        bounds[key] = _child("limits", key, "", str(repeats))
        for name in OPERATIONS[key]:
            for backend in ("dgl", "torch"):
                rows += _child(backend, key, name, str(repeats))
    out.write_text(report(bounds, rows, "python benchmarks/message_passing.py compare"), encoding="utf-8")
    Console(width=200).print(out.read_text(encoding="utf-8"), markup=False)


@app.command(hidden=True)
def one(backend: str, key: str, name: str, repeats: int) -> None:
    """One case, in this process, as JSON."""
    print(json.dumps(limits(key, repeats) if backend == "limits" else measure(key, backend, name, repeats)))


if __name__ == "__main__":
    app()
