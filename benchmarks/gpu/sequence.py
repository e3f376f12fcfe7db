"""The sequence model on a GPU: one step against the CPU's, then users per second and the share of the card's peak.

    python benchmarks/gpu/sequence.py measure --out FILE.json                  # on the GPU machine; ends by a deadline
    python benchmarks/gpu/sequence.py report FILE.json                         # writes benchmarks/gpu/sequence.md
    python benchmarks/gpu/sequence.py measure --tiny --device cpu --out FILE.json    # seconds: does it run?

The streams are drawn on the machine at ml-32m's size (200,000 users of 160 ratings, 87,585 films by a power law, half
of the ratings likes), so nothing but the code travels. Only the work of a step is measured, not what is learned: the
time to the best valid score needs real ratings. Counted are the multiplications and additions of a step: per place and
block of the LiGR kind 24 D^2 for its layers and 4 L D for attention, and 2 C D per predicted place for the softmax over
the C films of the step; three times that with the gradients.
"""

from __future__ import annotations

import functools
import itertools
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from gpu_graph import time_training
from report_command import add_report
from session import DEFAULT_MINUTES, Session

from tripletune.config import SequenceConfig
from tripletune.models.sequence.events import Events
from tripletune.models.sequence.fit import SequenceTrainer, model_shape
from tripletune.models.training.interactions import Likes

REPORT = Path(__file__).with_name("sequence.md")
USERS, LENGTH, FILMS = 200_000, 160, 87_585
TINY_USERS, TINY_LENGTH, TINY_FILMS = 60, 20, 50
BATCHES = (64, 512, 2048)
PRECISIONS = ("float32", "bfloat16")
SEED = 7
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def draw_streams(users: int, length: int, films: int) -> tuple[Events, Likes]:
    """Random streams; film ``m`` is drawn with a chance of ``1 / (m + 30)``, times rise by a log-uniform number.

    Nobody rates a film twice: of equal draws of a user the second and later move to the films after it.
    """
    generator = torch.Generator().manual_seed(SEED)
    chance_M = 1 / (torch.arange(films) + 30.0)
    bounds_M = (chance_M / chance_M.sum()).cumsum(0)
    num = users * length
    place_L = torch.arange(length)
    movie_UL = torch.searchsorted(bounds_M, torch.rand(users, length, generator=generator)).sort(dim=1).values
    movie_UL = (movie_UL - place_L).cummax(dim=1).values + place_L
    movie_UL = torch.minimum(movie_UL, films - length + place_L)
    order_UL = torch.rand(users, length, generator=generator).argsort(dim=1)
    movie_E = movie_UL.gather(1, order_UL).flatten()
    gap_UL = torch.exp2(24 * torch.rand(users, length, generator=generator)).long()
    like_E = torch.rand(num, generator=generator) < 0.5
    user_E = torch.arange(users).repeat_interleave(length)
    events = Events(
        count_U=torch.full((users,), length),
        movie_E=movie_E.int(),
        level_E=torch.randint(1, 11, (num,), generator=generator).to(torch.uint8),
        time_E=gap_UL.cumsum(1).flatten(),
        like_E=like_E,
    )
    return events, Likes(np.arange(users, dtype=np.int32), user_E[like_E], movie_E[like_E])


def trainer(streams: tuple[Events, Likes], films: int, settings: SequenceConfig) -> SequenceTrainer:
    """A fit's trainer without content and without valid likes."""
    return SequenceTrainer(*streams, None, model_shape(settings, films, 10), settings, SEED)


def _with_steps(
    streams: tuple[Events, Likes], films: int, settings: SequenceConfig
) -> tuple[SequenceTrainer, int, int]:
    return trainer(streams, films, settings), -(-streams[0].num_viewers // settings.batch_viewers), 0


def check_step(device: str) -> dict[str, Any]:
    """One step without dropout on the device and on the CPU: how far losses and tensors are apart."""
    streams, settings = draw_streams(TINY_USERS, TINY_LENGTH, TINY_FILMS), SequenceConfig(dim=16, dropout=0.0)
    losses, exported = [], []
    for place in (device, "cpu"):
        model = trainer(streams, TINY_FILMS, settings.model_copy(update={"device": place}))
        losses.append(model.step())
        exported.append(model.export())
    far = max(float((exported[0][key] - exported[1][key]).abs().max()) for key in exported[0])
    return {"losses": losses, "tensors": far}


def operations(settings: SequenceConfig, films: int) -> float:
    """Multiplications and additions of a step, as counted at the head of this file."""
    places = settings.batch_viewers * settings.max_length
    blocks = settings.layers * (24 * settings.dim**2 + 4 * settings.max_length * settings.dim)
    sampled = min(films, settings.sampled_films + places // 2)
    return 3.0 * places * (blocks + 0.5 * 2 * sampled * settings.dim)


@app.command()
def measure(
    out: Annotated[Path, typer.Option(help="JSON file of the results")],
    device: Annotated[str, typer.Option(help="cuda, or cpu to see that it runs")] = "cuda",
    tiny: Annotated[bool, typer.Option(help="sizes that take seconds")] = False,
    steps: Annotated[int, typer.Option(help="steps that are timed, for each batch size")] = 20,
    minutes: Annotated[float, typer.Option(help="deadline")] = DEFAULT_MINUTES,
) -> None:
    """Measure on this machine."""
    if device == "cuda" and not torch.cuda.is_available():
        print("sequence: torch sees no GPU here, so nothing was measured")
        return
    users, length, films = (TINY_USERS, TINY_LENGTH, TINY_FILMS) if tiny else (USERS, LENGTH, FILMS)
    with Session("sequence", torch.device(device), out, minutes, tiny) as session:
        session.measure_ceilings()
        session.record("check", check_step(device))
        streams = draw_streams(users, length, films)
        settings = SequenceConfig.model_validate({"device": device} | ({"dim": 16} if tiny else {}))
        for batch, precision in itertools.product((16,) if tiny else BATCHES, PRECISIONS):
            of_batch = settings.model_copy(update={"batch_viewers": batch, "precision": precision})
            found = time_training(
                f"{batch} users, {precision}",
                functools.partial(_with_steps, streams, films, of_batch),
                torch.device(device),
                steps,
            )
            facts = {"operations": operations(of_batch, films), "users": batch, "precision": precision}
            session.record(f"batch {batch}, {precision}", found | facts)


def format_report(page: dict[str, Any]) -> str:
    """The Markdown page of a JSON file."""
    where, found = page["environment"], page["results"]
    card = where["card"] or f"{where['machine']} CPU, {where['threads']} threads"
    lines = ["# The sequence model on a GPU", "", "What is measured and counted: the head of `sequence.py`.", ""]
    lines += [
        f"{card}; torch {where['torch']}; commit {where['commit']}; ended: {page['ended']}",
        f"`{page['command']}`",
    ]
    peak = found["bf16_product"]["tflop_per_s"]["median"] if "bf16_product" in found else None
    lines += ["", "| batch | precision | s/step | users/s | TFLOP/s | of the bfloat16 product | s/epoch | peak GiB |"]
    lines += ["|--:|---|--:|--:|--:|--:|--:|--:|"]
    for result in (value for name, value in found.items() if name.startswith("batch ")):
        seconds = result["seconds_per_step"]["median"]
        rate = result["operations"] / seconds / 1e12
        share = f"{rate / peak:.1%}" if peak else ""
        lines.append(
            f"| {result['users']} | {result['precision']} | {seconds:.4f} | {result['users'] / seconds:,.0f} | "
            f"{rate:.2f} | {share} | {seconds * result['steps_per_epoch']:.0f} | {result['peak_gib']:.2f} |"
        )
    if check := found.get("check"):
        lines += [
            "",
            f"One step on the device and on the CPU: losses {check['losses']}, tensors {check['tensors']:.1e} apart.",
        ]
    return "\n".join([*lines, ""])


report = add_report(app, format_report, REPORT)

if __name__ == "__main__":
    sys.exit(app())
