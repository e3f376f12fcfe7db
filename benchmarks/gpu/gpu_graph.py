"""Both specialists on a GPU: checks against dense float64, then seconds, bytes per second and memory at full size.

    python benchmarks/gpu/gpu_graph.py --release FOLDER              # writes benchmarks/gpu_graph.md
    python benchmarks/gpu/gpu_graph.py --device cpu --size small     # the same on a CPU with small data: does it run?

``--release`` is a release on disk; without it one is made (`tripletune synth --size ml-32m`, some minutes). Without a
GPU it says so and ends. What is measured:

1. The torch back end's three operations on the device, values and gradients, in float32 and bfloat16, against float64
   on the CPU by plain indexing; then one training step of both specialists on the device against the same on the CPU
   (told, not judged: Adam's first step is the gradient's sign, so where that is rounding it may differ by the rate).
2. LightGCN on the release's likes, and R-GAT on its knowledge graph: seconds per step and per epoch (all viewers once),
   peak memory on the device, and the bytes that message passing must move, over the seconds of the whole step. They
   stand beside a copy on the same device. Counted are, 4 bytes a number: for LightGCN, two sums per two layers and
   their gradients, each a row of features and an index per like; for R-GAT, per edge 12 rows and 12 numbers a head
   (scores read 2 rows and write 4 in their gradients, messages read 1 and 3; softmax and weights the rest).
"""

from __future__ import annotations

import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import Tensor

from tripletune.config import LightGCNConfig, RgatConfig
from tripletune.models.lightgcn.fit import LightGCNTrainer
from tripletune.models.message_passing.graph import message_graph
from tripletune.models.rgat.fit import RgatTrainer
from tripletune.models.rgat.knowledge import Knowledge, read_knowledge
from tripletune.models.rgat.model import RelationalGraph
from tripletune.models.training.interactions import Interactions, read_interactions
from tripletune.models.training.loop import Model

REPORT = Path(__file__).with_name("gpu_graph.md")
STAGES = ("ingest", "split", "knowledge")
SAMPLED_FILMS = 4096
"""LightGCN's softmax at full size: films drawn in a step beside the batch's targets."""
COPY_BYTES = 1 << 30
SEED = 7
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}

Operations = tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]
"""Sum, softmax, weighted sum."""


@dataclass(frozen=True)
class Result:
    """One specialist's training on the device."""

    name: str
    size: str
    seconds: float
    steps_per_epoch: int
    counted_bytes: int
    peak_gib: float


def check_operations(device: torch.device) -> list[str]:
    """The torch back end against float64 on the CPU: a line for each operation, gradient and dtype.

    Raises:
        SystemExit: one of them is wrong.
    """
    num_src, num_dst, num_edges, heads, width = 900, 700, 60_000, 4, 8
    generator = torch.Generator().manual_seed(SEED)
    src_E = torch.randint(num_src - 1, (num_edges,), generator=generator)  # the last nodes stay without an edge
    dst_E = (torch.rand(num_edges, generator=generator) ** 3 * (num_dst - 1)).long()
    src_E[1::50], dst_E[1::50] = src_E[::50], dst_E[::50]  # repeated edges
    shapes = ((num_src, heads, width), (num_edges, heads), (num_dst, heads, width), (num_edges, heads))
    leaves = [torch.randn(shape, generator=generator) for shape in shapes]
    graph = message_graph(src_E.to(device), dst_E.to(device), num_src, num_dst, "torch")
    lines = []
    for dtype, tolerance in TOLERANCE.items():
        rounded = [leaf.to(dtype) for leaf in leaves]
        mine = (graph.sum_neighbours, graph.softmax_incoming, graph.weighted_sum)
        got = _operate(mine, [x.to(device) for x in rounded])
        want = _operate(_by_indexing(src_E, dst_E, num_dst), [x.double() for x in rounded])
        for name, value in got.items():
            error = float((value.cpu().double() - want[name]).abs().max() / want[name].abs().max())
            lines.append(f"| {name} | {str(dtype).removeprefix('torch.')} | {error:.1e} |")
            if not error <= tolerance:
                raise SystemExit(
                    f"{name} in {dtype} is off by {error:.1e} of its largest value, beyond {tolerance:.1e}"
                )
    return lines


def _operate(operations: Operations, leaves: list[Tensor]) -> dict[str, Tensor]:
    add, softmax, weigh = operations
    source, edge, target, share = (leaf.clone() for leaf in leaves)
    source.requires_grad_(), edge.requires_grad_()
    found: dict[str, Tensor] = {}
    for name, operate, inputs, against in (
        ("sum", add, [source], target),
        ("softmax", softmax, [edge], share),
        ("weighted sum", weigh, [source, edge], target),
    ):
        found[name] = operate(*inputs)
        grads = torch.autograd.grad(found[name], inputs, against)
        found |= {f"{name}, gradient {place}": grad for place, grad in enumerate(grads)}
    return {name: value.detach() for name, value in found.items()}


def _by_indexing(src_E: Tensor, dst_E: Tensor, num_dst: int) -> Operations:
    def total(value: Tensor) -> Tensor:
        return value.new_zeros(num_dst, *value.shape[1:]).index_add(0, dst_E, value)

    def softmax(score_EH: Tensor) -> Tensor:
        return score_EH.exp() / total(score_EH.exp())[dst_E]

    return (
        lambda source: total(source[src_E]),
        softmax,
        lambda source, weight: total(source[src_E] * weight.unsqueeze(-1)),
    )


def prepare(release: Path, work: Path) -> dict[str, Path]:
    """Ingest, split and knowledge of a release; their folders."""
    config = work / "run.toml"
    imdb = release.resolve() / "imdb"
    source = f'movielens = "{release.resolve()}"\n' + (f'imdb = "{imdb}"\n' if imdb.is_dir() else "")
    config.write_text(f'dataset = "release"\nseed = {SEED}\n[source]\n{source}')
    folders = {}
    for stage in STAGES:
        where = ["--config", str(config), "--artifacts", str(work)]
        subprocess.run(
            [sys.executable, "-m", "tripletune.cli.main", stage, *where], check=True, stdout=subprocess.DEVNULL
        )
        (folders[stage],) = (path.parent for path in (work / "release" / stage).glob("*/manifest.json"))
    return folders


def lightgcn_trainer(interactions: Interactions, device: torch.device, sampled: int) -> LightGCNTrainer:
    """Fit B's trainer."""
    settings = LightGCNConfig.model_validate(
        {"device": device.type, "message_passing": "torch", "sampled_films": sampled}
    )
    return LightGCNTrainer(interactions.fits["b"], interactions.num_movies, settings, SEED)


def rgat_trainer(facts: Knowledge, interactions: Interactions, device: torch.device) -> tuple[RgatTrainer, int]:
    """Fit B's trainer, and the number of edges."""
    facts = facts.to(device)
    graph = RelationalGraph.build(
        facts.movie_entity_M[facts.movie_T],
        facts.relation_T,
        facts.entity_T,
        facts.num_entities,
        len(facts.relation_names),
        "torch",
    )
    return RgatTrainer(facts, graph, interactions.fits["b"], RgatConfig(), SEED), graph.edges.num_edges


def check_step(name: str, make: Callable[[torch.device], Model], device: torch.device) -> str:
    """One step on the device and one on the CPU from the same seed: how far their tensors are apart."""
    exported = []
    for place in (device, torch.device("cpu")):
        model = make(place)
        model.step()
        exported.append(model.export())
    far = max(float((exported[0][key] - exported[1][key]).abs().max()) for key in exported[0])
    return f"| {name}, one step on the device and on the CPU, largest difference | float32 | {far:.1e} |"


def measure(
    name: str, size: str, make: Callable[[], tuple[Model, int, int]], device: torch.device, steps: int
) -> Result:
    """Train some steps; ``make`` gives the model, the steps of an epoch and the bytes counted per step."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model, steps_per_epoch, counted = make()
    model.step(), model.step()
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        model.step()
    _wait(device)
    seconds = (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_bytes()
    return Result(name, size, seconds, steps_per_epoch, counted, peak / 2**30)


def copy_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes per second of a copy on the device, read and written bytes counted."""
    source, target = (torch.zeros(num_bytes // 4, device=device) for _ in range(2))
    best = math.inf
    for _ in range(5):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * num_bytes / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_both(
    folders: dict[str, Path], device: torch.device, sampled: int, steps: int
) -> tuple[list[str], list[Result]]:
    """Check a step of each specialist, then time it."""
    facts = read_knowledge(folders["knowledge"])
    interactions = read_interactions(folders["split"], facts.movie_ids_M)
    likes = interactions.fits["b"]
    num_likes = likes.viewer_E.numel()

    def lightgcn() -> tuple[Model, int, int]:
        settings = LightGCNConfig()
        counted = 4 * (settings.layers // 2) * num_likes * (4 * settings.dim + 4)
        model = lightgcn_trainer(interactions, device, sampled)
        return model, math.ceil(likes.num_viewers / settings.batch_viewers), counted

    def rgat() -> tuple[Model, int, int]:
        settings = RgatConfig()
        model, num_edges = rgat_trainer(facts, interactions, device)
        counted = settings.layers * num_edges * 4 * 12 * (settings.dim + settings.heads)
        return model, math.ceil(likes.num_viewers / settings.batch_viewers), counted

    checks = [
        check_step("LightGCN", lambda place: lightgcn_trainer(interactions, place, sampled), device),
        check_step("R-GAT", lambda place: rgat_trainer(facts, interactions, place)[0], device),
    ]
    results = [
        measure("LightGCN", f"{num_likes:,} likes, {likes.num_viewers:,} viewers", lightgcn, device, steps),
        measure("R-GAT", f"{facts.movie_T.numel():,} triples, {facts.num_entities:,} entities", rgat, device, steps),
    ]
    return checks, results


def report(checks: list[str], results: list[Result], copied: float, device: torch.device, command: str) -> str:
    """The page."""
    what = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    lines = [
        "# The specialists on a GPU",
        "",
        "What is checked, measured and counted: the head of `gpu_graph.py`.",
        "",
        f"{what}; Python {platform.python_version()}, torch {metadata.version('torch')}; `{command}`",
        f"A copy on the device moves {copied / 1e9:.0f} GB/s.",
        "",
        "| | size | s/step | steps/epoch | s/epoch | counted GB/step | GB/s | of the copy | peak GiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for result in results:
        rate = result.counted_bytes / result.seconds
        lines.append(
            f"| {result.name} | {result.size} | {result.seconds:.4f} | {result.steps_per_epoch} "
            f"| {result.seconds * result.steps_per_epoch:.2f} | {result.counted_bytes / 1e9:.2f} | {rate / 1e9:.1f} "
            f"| {rate / copied:.0%} | {result.peak_gib:.2f} |"
        )
    lines += ["", "| check | dtype | error, of the largest value |", "|---|---|--:|", *checks, ""]
    return "\n".join(lines)


def main(
    release: Annotated[str, typer.Option(help="Release on disk; empty: a synthetic one is made.")] = "",
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    size: Annotated[str, typer.Option(help="Of the release that is made: small, ml-1m, ml-25m, ml-32m.")] = "ml-32m",
    steps: Annotated[int, typer.Option(help="Steps that are timed.")] = 20,
    out: Annotated[Path, typer.Option(help="Report.")] = REPORT,
) -> None:
    """Check, measure, and write the report."""
    if device == "cuda" and not torch.cuda.is_available():
        print("gpu_graph: torch sees no GPU here, so nothing was measured")
        return
    place = torch.device(device)
    checks = check_operations(place)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        folder = Path(release) if release else work / "release"
        if not release:
            synth = [sys.executable, "-m", "tripletune.cli.main", "synth", "--size", size, "--out", str(folder)]
            subprocess.run(synth, check=True, stdout=subprocess.DEVNULL)
        sampled = SAMPLED_FILMS if size == "ml-32m" else 0
        more, results = train_both(prepare(folder, work), place, sampled, steps)
    copied = copy_rate(place, COPY_BYTES if device == "cuda" else COPY_BYTES >> 3)
    shown = " ".join(["python benchmarks/gpu/gpu_graph.py", f"--device {device} --size {size}"])
    out.write_text(report(checks + more, results, copied, place, shown), encoding="utf-8")
    Console(width=200).print(out.read_text(encoding="utf-8"), markup=False)


if __name__ == "__main__":
    typer.run(main)
