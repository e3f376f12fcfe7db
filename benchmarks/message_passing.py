"""Message passing against the memory of the machine: edges per second of every back end, and what memory allows.

    python benchmarks/message_passing.py compare    # writes benchmarks/message_passing.md; some ten minutes

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

Then whole training steps of LightGCN and R-GAT at their default settings, on random likes and facts as many as a
release has: both back ends in one process, turn by turn, and which of them ``auto`` takes. The rule in ``graph.py`` is
to keep DGL within 1.5 times torch's CPU seconds there.

Bytes: a digest of results and gradients with 1, 2 and 4 threads; of steps, of all parameters after two of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import torch
import typer
from rich.console import Console
from torch import Tensor

from tripletune.config import LightGCNConfig, RgatConfig
from tripletune.models.lightgcn.fit import LightGCNTrainer, choose_message_passing
from tripletune.models.message_passing.graph import Backend, choose_backend, message_graph
from tripletune.models.rgat.fit import RgatTrainer
from tripletune.models.rgat.knowledge import Knowledge
from tripletune.models.rgat.model import RelationalGraph
from tripletune.models.training.interactions import Likes

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
    "small": Shape("LightGCN as on ml-latest-small, 64 wide", 9_742, 585, 44_375, 1, 64),
    "100k": Shape("LightGCN as on ml-100k, 64 wide", 1_682, 943, 55_375, 1, 64),
    "lightgcn": Shape("LightGCN, 20 M likes to users, 64 wide", 80_000, 200_000, 20_000_000, 1, 64),
    "rgat": Shape("R-GAT, 1 M edges, 4 heads of 8", 150_000, 60_000, 1_000_000, 4, 8),
    "tiny": Shape("trial, 20 k edges", 3_000, 2_000, 20_000, 4, 8),
}
OPERATIONS = {
    "small": ["sum", "weighted sum"],
    "100k": ["sum", "weighted sum"],
    "lightgcn": ["sum", "weighted sum"],
    "rgat": ["sum", "softmax", "weighted sum"],
    "tiny": ["sum", "softmax", "weighted sum"],
}


@dataclass(frozen=True)
class Release:
    """Sizes of what a training step reads."""

    what: str
    num_users: int
    num_films: int
    num_likes: int
    num_entities: int
    num_triples: int
    """0: R-GAT is not measured."""


RELEASES = {
    "small": Release("ml-latest-small", 585, 9_742, 44_375, 38_512, 106_396),
    "100k": Release("ml-100k", 943, 1_682, 55_375, 9_000, 20_000),
    "1m": Release("ml-1m", 6_000, 3_700, 570_000, 20_000, 60_000),
    "2m": Release("2 M likes, the rule's limit", 70_000, 10_600, 2_000_000, 0, 0),
    "10m": Release("ml-10m", 70_000, 10_600, 4_000_000, 0, 0),
    "32m": Release("ml-32m", 199_000, 85_000, 15_300_000, 0, 0),
}
THREADS = (1, 2, 4)


def draw(shape: Shape) -> tuple[Tensor, Tensor]:
    """Source and destination of each edge, sorted by destination, as likes are."""
    generator = torch.Generator().manual_seed(1)
    src_E = (torch.rand(shape.num_edges, generator=generator) ** 3 * shape.num_src).long()
    dst_E = torch.randint(shape.num_dst, (shape.num_edges,), generator=generator)
    return src_E, dst_E.sort().values if shape.heads == 1 else dst_E


def operation(shape: Shape, backend: str, name: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The operation on a graph that is built, and its inputs."""
    src_E, dst_E = draw(shape)
    torch.manual_seed(1)  # the same values for both back ends
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
    rows[0]["bytes"] = rows[1]["bytes"] = _bytes_by_threads(lambda: _results(apply, inputs, target))
    return rows


def _results(apply: Callable[..., Tensor], inputs: list[Tensor], target: Tensor) -> list[Tensor]:
    out = apply(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, target)]


def _bytes_by_threads(compute: Callable[[], Iterable[Tensor]]) -> str:
    """One digest if the tensors have the same bytes with any number of threads, else one for each."""
    before, found = torch.get_num_threads(), []
    for threads in THREADS:
        torch.set_num_threads(threads)
        digest = hashlib.sha256()
        for tensor in compute():
            digest.update(tensor.contiguous().numpy())
        found.append(digest.hexdigest()[:6])
    torch.set_num_threads(before)
    return found[0] if len(set(found)) == 1 else " / ".join(found)


def measure_steps(key: str, model: str, repeats: int) -> dict[str, Any]:
    """Seconds of a training step with both back ends, which of them ``auto`` is, and their bytes."""
    release = RELEASES[key]
    generator = torch.Generator().manual_seed(1)
    user_E = torch.randint(release.num_users, (release.num_likes,), generator=generator).sort().values
    movie_E = (torch.rand(release.num_likes, generator=generator) ** 3 * release.num_films).long()
    likes = Likes(torch.arange(release.num_users).int().numpy(), user_E, movie_E)
    make: Callable[[Backend], LightGCNTrainer | RgatTrainer]
    if model == "LightGCN":
        choice = choose_message_passing(likes, LightGCNConfig(), torch.device("cpu"))

        def make(backend: Backend) -> LightGCNTrainer:
            return LightGCNTrainer(likes, release.num_films, LightGCNConfig(message_passing=backend, device="cpu"), 1)

    else:
        facts = _draw_facts(release, generator)
        ends = facts.movie_entity_M[facts.movie_T], facts.relation_T, facts.entity_T
        size = 2 * release.num_triples + release.num_entities, RgatConfig().dim
        choice = choose_backend("auto", torch.device("cpu"), "attention", *size)

        def make(backend: Backend) -> RgatTrainer:
            graph = RelationalGraph.build(*ends, facts.num_entities, len(facts.relation_names), backend)
            return RgatTrainer(facts, graph, likes, RgatConfig(), 1)

    backends: tuple[Backend, ...] = ("dgl", "torch")
    seconds: dict[str, list[tuple[float, float]]] = {backend: [] for backend in backends}
    trainers = {backend: make(backend) for backend in backends}
    for repeat in range(repeats + 1):
        for backend, trainer in trainers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            trainer.step()
            if repeat:  # the first one builds what is kept
                seconds[backend].append((time.process_time() - cpu, time.perf_counter() - wall))
    trainers.clear()

    def train(backend: Backend) -> Iterable[Tensor]:
        trainer = make(backend)
        trainer.step(), trainer.step()
        return trainer.export().values()

    return {
        "key": key,
        "model": model,
        "auto": choice.backend,
        "reason": choice.reason,
        "seconds": {backend: min(of) for backend, of in seconds.items()},
        "bytes": {backend: _bytes_by_threads(partial(train, backend)) for backend in backends},
        "peak_gib": _peak_gib(),
    }


def _draw_facts(release: Release, generator: torch.Generator) -> Knowledge:
    """Random facts of ten relations; entities are drawn with a long tail."""
    films, entities, size = release.num_films, release.num_entities, (release.num_triples,)
    movie_T = torch.randint(films, size, generator=generator).sort().values
    count_M = torch.bincount(movie_T, minlength=films)
    return Knowledge(
        entities=pl.DataFrame({"row": range(entities)}),
        relation_names=[f"relation {number}" for number in range(10)],
        movie_ids_M=torch.arange(films).int().numpy(),
        movie_entity_M=torch.arange(films),
        movie_T=movie_T,
        relation_T=torch.randint(10, size, generator=generator),
        entity_T=films + (torch.rand(size, generator=generator) ** 3 * (entities - films)).long(),
        offset_M=count_M.cumsum(0) - count_M,
        count_M=count_M,
    )


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


def report(
    bounds: dict[str, dict[str, float]], rows: list[dict[str, Any]], steps: list[dict[str, Any]], command: str
) -> str:
    """The page."""
    libraries = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "dgl"))
    lines = [
        "# Message passing: edges per second, and what memory allows",
        "",
        "What is counted and how: the head of `message_passing.py`. float32. With its gradients: forward and backward",
        "together.",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {platform.python_version()}"
        f" Python, {libraries}; `{command}`;",
        f"load after the run {os.getloadavg()[0]:.1f}: above the cores, wall seconds are those of a shared machine",
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
            "| build s | peak GiB | bytes with 1, 2, 4 threads |",
            "|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
        ]
        for row in (row for row in rows if row["key"] == key):
            counted = shape.bytes_per_edge(row["operation"], row["is_training"])
            rate = shape.num_edges * counted / row["wall"]
            lines.append(
                f"| {row['operation']} | {'with gradients' if row['is_training'] else 'forward'} | {row['backend']} "
                f"| {row['wall']:.4f} | {row['cpu']:.4f} | {shape.num_edges / row['wall'] / 1e6:.0f} | {counted} "
                f"| {rate / 1e9:.1f} | {rate / bound['copy']:.0%} | {rate / bound['gather']:.0%} "
                f"| {row['built']:.1f} | {row['peak_gib']:.2f} | {row['bytes']} |"
            )
    lines += ["", "## Training steps", ""]
    lines += [
        "| | | likes, films, facts | DGL CPU s (wall) | torch CPU s (wall) | DGL / torch | `auto` | why "
        "| bytes with 1, 2, 4 threads: DGL; torch | peak GiB |",
        "|---|---|---|--:|--:|--:|---|---|---|--:|",
    ]
    for row in steps:
        release, (dgl, other) = RELEASES[row["key"]], (row["seconds"][backend] for backend in ("dgl", "torch"))
        facts = f", {release.num_triples:,}" if row["model"] == "R-GAT" else ""
        lines.append(
            f"| {row['model']} | {release.what} | {release.num_likes:,}, {release.num_films:,}{facts} "
            f"| {dgl[0]:.3f} ({dgl[1]:.3f}) | {other[0]:.3f} ({other[1]:.3f}) | {dgl[0] / other[0]:.2f} "
            f"| {row['auto']} | {row['reason']} | {row['bytes']['dgl']}; {row['bytes']['torch']} "
            f"| {row['peak_gib']:.2f} |"
        )
    return "\n".join([*lines, ""])


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def compare(
    shapes: Annotated[str, typer.Option(help=f"Of {', '.join(SHAPES)}, with commas.")] = "small,100k,lightgcn,rgat",
    releases: Annotated[str, typer.Option(help=f"Of {', '.join(RELEASES)}, with commas.")] = ",".join(RELEASES),
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
    steps = [
        _child("steps", key, model, str(repeats))
        for key in releases.split(",")
        for model in ("LightGCN", "R-GAT")
        if model == "LightGCN" or RELEASES[key].num_triples
    ]
    out.write_text(report(bounds, rows, steps, "python benchmarks/message_passing.py compare"), encoding="utf-8")
    Console(width=200).print(out.read_text(encoding="utf-8"), markup=False)


@app.command(hidden=True)
def one(backend: str, key: str, name: str, repeats: int) -> None:
    """One case, in this process, as JSON."""
    if backend == "steps":
        print(json.dumps(measure_steps(key, name, repeats)))
    else:
        print(json.dumps(limits(key, repeats) if backend == "limits" else measure(key, backend, name, repeats)))


if __name__ == "__main__":
    app()
