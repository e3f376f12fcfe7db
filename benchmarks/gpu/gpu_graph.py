"""Both specialists on a GPU: checks against dense float64, then seconds, bytes per second and memory at full size.

    python benchmarks/gpu/gpu_graph.py prepare --out DATA                     # on any machine; minutes, no GPU
    python benchmarks/gpu/gpu_graph.py measure --data DATA --out FILE.json    # on the GPU machine; ends by a deadline
    python benchmarks/gpu/gpu_graph.py report FILE.json                       # writes benchmarks/gpu/gpu_graph.md
    python benchmarks/gpu/gpu_graph.py measure --tiny --device cpu --out FILE.json    # seconds: does it run?

``prepare`` takes a release on disk, or makes one (`tripletune synth --size ml-32m`), and keeps what the training of
fit B reads: its likes and the knowledge graph. Without a GPU ``measure`` says so and ends. It records, in this order:

1. A copy and a bfloat16 product on the device (``session.py``).
2. The torch back end's three operations on the device, values and gradients, in float32 and bfloat16, against float64
   on the CPU by plain indexing; then one training step of both specialists on the device against the same on the CPU,
   on small random data (recorded, not judged: Adam's first step is the gradient's sign, so where that is rounding it
   may differ by the rate).
3. LightGCN on the likes, and R-GAT on the knowledge graph: seconds per step (median of ``--steps``) and per epoch (all
   users once), peak memory on the device, and the bytes that message passing must move, over the seconds of the whole
   step, next to the copy. Counted are, 4 bytes a number: for LightGCN, two sums per two layers and their gradients,
   each a row of features and an index per like; for R-GAT, per edge 12 rows and 12 numbers a head (scores read 2 rows
   and write 4 in their gradients, messages read 1 and 3; softmax and weights the rest).
"""

from __future__ import annotations

import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import torch
import typer
from report_command import add_report
from rich.console import Console
from session import DEFAULT_MINUTES, MAX_MINUTES, Session, spread
from torch import Tensor

from tripletune.config import LightGCNConfig, RgatConfig
from tripletune.models.lightgcn.fit import LightGCNTrainer
from tripletune.models.message_passing.graph import message_graph
from tripletune.models.rgat.fit import RgatTrainer
from tripletune.models.rgat.knowledge import Knowledge, read_knowledge
from tripletune.models.rgat.model import RelationalGraph
from tripletune.models.training.interactions import Likes, read_interactions
from tripletune.models.training.loop import Model

REPORT = Path(__file__).with_name("gpu_graph.md")
STAGES = ("ingest", "split", "knowledge")
KNOWLEDGE_FILES = ("entities.parquet", "relations.parquet", "triples.parquet")
LIKES_FILE = "likes.parquet"
SAMPLED_FILMS = 4096
"""LightGCN's softmax samples this many films per step, plus the batch's targets; a smaller catalogue is taken whole."""
TINY_USERS, TINY_FILMS, TINY_LIKES = 40, 30, 6
SEED = 7
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}

Operations = tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor]]
"""Sum, softmax, weighted sum."""


@dataclass(frozen=True)
class Data:
    """What the training of fit B reads."""

    facts: Knowledge
    likes: Likes

    @property
    def num_movies(self) -> int:
        return len(self.facts.movie_ids_M)


def check_operations(device: torch.device) -> list[dict[str, Any]]:
    """The torch back end against float64 on the CPU: the error of each operation, gradient and dtype.

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
    rows = []
    for dtype, tolerance in TOLERANCE.items():
        rounded = [leaf.to(dtype) for leaf in leaves]
        mine = (graph.sum_neighbours, graph.softmax_incoming, graph.weighted_sum)
        got = _operate(mine, [x.to(device) for x in rounded])
        want = _operate(_by_indexing(src_E, dst_E, num_dst), [x.double() for x in rounded])
        for name, value in got.items():
            error = float((value.cpu().double() - want[name]).abs().max() / want[name].abs().max())
            rows.append({"check": name, "dtype": str(dtype).removeprefix("torch."), "error": error})
            if not error <= tolerance:
                raise SystemExit(
                    f"{name} in {dtype} is off by {error:.1e} of its largest value, beyond {tolerance:.1e}"
                )
    return rows


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


def run_stages(release: Path, work: Path) -> dict[str, Path]:
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


def keep_data(folders: dict[str, Path], out: Path) -> None:
    """Copy the knowledge graph, and write fit B's likes as numbers of users and films, sorted as the fit has them."""
    out.mkdir(parents=True, exist_ok=True)
    for name in KNOWLEDGE_FILES:
        shutil.copyfile(folders["knowledge"] / name, out / name)
    likes = read_interactions(folders["split"], read_knowledge(out).movie_ids_M).fits["b"]
    columns = {"user": likes.user_E.int().numpy(), "film": likes.movie_E.int().numpy()}
    pl.DataFrame(columns).write_parquet(out / LIKES_FILE, compression_level=9)


def read_data(folder: Path) -> Data:
    """Read what ``keep_data`` wrote."""
    user_E, film_E = (
        torch.from_numpy(column.to_numpy().astype("int64")) for column in pl.read_parquet(folder / LIKES_FILE)
    )
    return Data(read_knowledge(folder), Likes(torch.arange(int(user_E.max()) + 1).int().numpy(), user_E, film_E))


def draw_data(num_users: int, num_films: int, likes_per_user: int) -> Data:
    """Random likes and a random knowledge graph of two relations, three facts a film."""
    generator = torch.Generator().manual_seed(SEED)
    film_UL = torch.stack([torch.randperm(num_films, generator=generator)[:likes_per_user] for _ in range(num_users)])
    user_E = torch.arange(num_users).repeat_interleave(likes_per_user)
    keys = [f"movie:{film}" for film in range(num_films)] + [f"fact:{fact}" for fact in range(10)]
    movie_T = torch.arange(num_films).repeat_interleave(3)
    fact_T = torch.stack([torch.randperm(10, generator=generator)[:3] for _ in range(num_films)]).flatten()
    count_M = torch.full((num_films,), 3)
    facts = Knowledge(
        entities=pl.DataFrame({"row": range(len(keys)), "key": keys, "name": keys}),
        relation_names=["genre", "tag"],
        movie_ids_M=torch.arange(num_films, dtype=torch.int32).numpy(),
        movie_entity_M=torch.arange(num_films),
        movie_T=movie_T,
        relation_T=fact_T % 2,
        entity_T=num_films + fact_T,
        offset_M=count_M.cumsum(0) - count_M,
        count_M=count_M,
    )
    return Data(facts, Likes(torch.arange(num_users).int().numpy(), user_E, film_UL.flatten()))


def lightgcn_trainer(data: Data, device: torch.device) -> LightGCNTrainer:
    """Fit B's trainer."""
    settings = LightGCNConfig.model_validate(
        {"device": device.type, "message_passing": "torch", "sampled_films": SAMPLED_FILMS}
    )
    return LightGCNTrainer(data.likes, data.num_movies, settings, SEED)


def rgat_trainer(data: Data, device: torch.device) -> tuple[RgatTrainer, int]:
    """Fit B's trainer, and the number of edges."""
    facts = data.facts.to(device)
    graph = RelationalGraph.build(
        facts.movie_entity_M[facts.movie_T],
        facts.relation_T,
        facts.entity_T,
        facts.num_entities,
        len(facts.relation_names),
        "torch",
    )
    return RgatTrainer(facts, graph, data.likes, RgatConfig(), SEED), graph.edges.num_edges


def check_step(name: str, make: Callable[[torch.device], Model], device: torch.device) -> dict[str, Any]:
    """One step on the device and one on the CPU from the same seed: how far their tensors are apart."""
    exported = []
    for place in (device, torch.device("cpu")):
        model = make(place)
        model.step()
        exported.append(model.export())
    far = max(float((exported[0][key] - exported[1][key]).abs().max()) for key in exported[0])
    check = f"{name}, one step on the device and on the CPU, largest difference"
    return {"check": check, "dtype": "float32", "error": far}


def time_training(
    size: str, make: Callable[[], tuple[Model, int, int]], device: torch.device, steps: int
) -> dict[str, Any]:
    """Train some steps after two that do not count; ``make`` gives the model, the steps of an epoch and the bytes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model, steps_per_epoch, counted = make()
    model.step(), model.step()
    seconds = []
    for _ in range(steps):
        _wait(device)
        start = time.perf_counter()
        model.step()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_bytes()
    facts = {"size": size, "seconds_per_step": spread(seconds), "steps": steps, "steps_per_epoch": steps_per_epoch}
    return facts | {"counted_bytes": counted, "peak_gib": peak / 2**30}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check_both(device: torch.device) -> list[dict[str, Any]]:
    """One step of each specialist on small random data, on the device and on the CPU."""
    data = draw_data(TINY_USERS, TINY_FILMS, TINY_LIKES)
    return [
        check_step("LightGCN", lambda place: lightgcn_trainer(data, place), device),
        check_step("R-GAT", lambda place: rgat_trainer(data, place)[0], device),
    ]


def time_lightgcn(data: Data, device: torch.device, steps: int) -> dict[str, Any]:
    """Seconds, memory and counted bytes of LightGCN's steps."""
    settings, num_likes, num_users = LightGCNConfig(), data.likes.user_E.numel(), data.likes.num_viewers
    counted = 4 * (settings.layers // 2) * num_likes * (4 * settings.dim + 4)
    steps_per_epoch = math.ceil(num_users / settings.batch_viewers)
    size = f"{num_likes:,} likes, {num_users:,} users"
    return time_training(size, lambda: (lightgcn_trainer(data, device), steps_per_epoch, counted), device, steps)


def time_rgat(data: Data, device: torch.device, steps: int) -> dict[str, Any]:
    """Seconds, memory and counted bytes of R-GAT's steps."""
    settings = RgatConfig()

    def make() -> tuple[Model, int, int]:
        model, num_edges = rgat_trainer(data, device)
        counted = settings.layers * num_edges * 4 * 12 * (settings.dim + settings.heads)
        return model, math.ceil(data.likes.num_viewers / settings.batch_viewers), counted

    size = f"{data.facts.movie_T.numel():,} triples, {data.facts.num_entities:,} entities"
    return time_training(size, make, device, steps)


def format_report(page: dict[str, Any]) -> str:
    """The Markdown page of a JSON file, also of one that was cut: what is missing is left out."""
    where, found = page["environment"], page["results"]
    card = where["card"] or f"{where['machine']} CPU, {where['threads']} threads"
    versions = f"torch {where['torch']}, CUDA {where['cuda']}, driver {where['driver']}, Python {where['python']}"
    lines = [
        "# The specialists on a GPU",
        "",
        "What is checked, measured and counted: the head of `gpu_graph.py`.",
        "",
        f"{card}; {versions}; commit {where['commit']}; {page['started']}; ended: {page['ended']}",
        f"`{page['command']}`",
    ]
    if "bf16_product" in found:
        copied, product = found["copy"]["gb_per_s"]["median"], found["bf16_product"]["tflop_per_s"]["median"]
        lines.append(f"A copy on the device moves {copied:.0f} GB/s, a bfloat16 product does {product:.3g} TFLOP/s.")
    lines += [
        "",
        "| | size | s/step (range) | steps/epoch | s/epoch | counted GB/step | GB/s | of the copy | peak GiB |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name in ("LightGCN", "R-GAT"):
        if result := found.get(name):
            step, counted = result["seconds_per_step"], result["counted_bytes"] / 1e9
            rate = counted / step["median"]
            lines.append(
                f"| {name} | {result['size']} | {step['median']:.4f} ({step['min']:.4f} to {step['max']:.4f}) "
                f"| {result['steps_per_epoch']} | {step['median'] * result['steps_per_epoch']:.2f} | {counted:.2f} "
                f"| {rate:.1f} | {rate / copied:.0%} | {result['peak_gib']:.2f} |"
            )
    lines += ["", "| check | dtype | error, of the largest value |", "|---|---|--:|"]
    checks = found.get("operations", []) + found.get("steps", [])
    lines += [f"| {check['check']} | {check['dtype']} | {check['error']:.1e} |" for check in checks]
    return "\n".join([*lines, ""])


HELP = "\n\n".join(f"\b\n{paragraph}" for paragraph in str(__doc__).split("\n\n"))
"""Typer keeps the lines of a paragraph that starts with a \\b."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=HELP)


@app.command()
def prepare(
    out: Annotated[Path, typer.Option(help="Folder for the data.")],
    release: Annotated[str, typer.Option(help="Release on disk; empty: a synthetic one is made.")] = "",
    size: Annotated[str, typer.Option(help="Of the release that is made: small, ml-1m, ml-25m, ml-32m.")] = "ml-32m",
) -> None:
    """Write the data that ``measure`` reads; needs no GPU."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        folder = Path(release) if release else work / "release"
        if not release:
            synth = [sys.executable, "-m", "tripletune.cli.main", "synth", "--size", size, "--out", str(folder)]
            subprocess.run(synth, check=True, stdout=subprocess.DEVNULL)
        keep_data(run_stages(folder, work), out)


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="Results, as JSON.")],
    data: Annotated[Path | None, typer.Option(help="Folder that prepare wrote.")] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    steps: Annotated[int, typer.Option(help="Steps that are timed.")] = 20,
    minutes: Annotated[float, typer.Option(help=f"Ends by then, at most {MAX_MINUTES:g}.")] = DEFAULT_MINUTES,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="Small ceilings, and small random data where no --data is given: does it run?"),
    ] = False,
) -> None:
    """Check and measure on the device, and write the results."""
    if device == "cuda" and not torch.cuda.is_available():
        print("gpu_graph: torch sees no GPU here, so nothing was measured")
        return
    if data is None and not tiny:
        raise SystemExit("gpu_graph: give --data, a folder that prepare wrote, or --tiny")
    place = torch.device(device)
    with Session("gpu_graph", place, out, minutes, tiny) as session:
        session.measure_ceilings()
        session.record("operations", check_operations(place))
        session.record("steps", check_both(place))
        trained = read_data(data) if data else draw_data(TINY_USERS, TINY_FILMS, TINY_LIKES)
        session.record("LightGCN", time_lightgcn(trained, place, steps))
        session.record("R-GAT", time_rgat(trained, place, steps))
    Console().print(format_report(session.page), markup=False, soft_wrap=True)


report = add_report(app, format_report, REPORT)

if __name__ == "__main__":
    app()
