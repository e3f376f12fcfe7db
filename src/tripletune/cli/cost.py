"""The command that says what a training will take, before anything starts: ``estimate``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tripletune.cli.app import (
    ARTIFACTS,
    CONFIG,
    ArtifactsOption,
    ConfigOption,
    ImdbOption,
    Inputs,
    MovielensOption,
    SetOption,
    app,
    console,
    say,
)
from tripletune.config import RunConfig
from tripletune.errors import ConfigError, InputError, MissingArtifactError

if TYPE_CHECKING:
    from tripletune.estimate.machine import Machine, Rates
    from tripletune.estimate.model_size import ModelSize
    from tripletune.estimate.plan import Estimate
    from tripletune.estimate.tokens import Tokens


@app.command(rich_help_panel="Run")
def estimate(
    config: ConfigOption = CONFIG,
    movielens: MovielensOption = "",
    imdb: ImdbOption = "",
    artifacts: ArtifactsOption = ARTIFACTS,
    gpu: Annotated[
        str, typer.Option("--gpu", help="A card such as H100-80GB, A100-40GB, L4 or RTX-4090; empty: this machine.")
    ] = "",
    memory_gib: Annotated[
        float | None, typer.Option("--memory-gib", min=0.1, help="Of a card that is not in the table, with --tflops.")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=0.1, help="Its dense peak in bfloat16, from its data sheet.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, help="Processes, each with a card; empty: the accelerate config's (auto: 1)."),
    ] = None,
    mfu: Annotated[float, typer.Option("--mfu", min=0.01, max=1.0, help="Share of the peak that is reached.")] = 0.4,
    examples: Annotated[
        int | None, typer.Option("--examples", min=1, help="Training examples, where the shards are not made yet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with all figures.")] = False,
    set: SetOption = None,
) -> None:
    """Say what fine-tuning will take before it starts: parameters, memory of a process, steps, hours and disk.

    Nothing is trained, downloaded or written. Lengths and number of the examples are those of the shards, where
    [bold]tripletune generate[/] has finished for this config, its input and --artifacts; else the settings' bounds,
    and the assumptions are listed. On a CPU two seconds of products are timed; a GPU's hours are its data sheet's peak
    times --mfu (.3 to .5 is usual; training logs what it reached as [bold]mfu[/]).

    What needs more memory than there is ends with exit code 2 and one line that says which settings would fit.

    For example: [bold]tripletune estimate --config configs/ml-32m.toml --gpu H100-80GB --gpus 2 --examples 200000[/].
    """
    from tripletune.estimate.model_size import size_of
    from tripletune.estimate.models import find_config
    from tripletune.estimate.plan import estimate as make_estimate
    from tripletune.estimate.tokens import assume_tokens, read_tokens, with_short_forms

    settings, shards, base = _find(
        Inputs(config=config, movielens=movielens, imdb=imdb, artifacts=artifacts, set=set or ())
    )
    finetune = settings.finetune
    size = size_of(find_config(finetune, base))
    lists = read_tokens(shards, settings) if shards else assume_tokens(settings, examples)
    tokens = with_short_forms(lists, settings)
    machine = _machine(settings, gpu, memory_gib, tflops, gpus)

    found = make_estimate(finetune, size, tokens, machine, mfu=mfu, rates=_measured(settings, size, tokens, machine))
    if as_json:
        say(json.dumps(found.plain(), indent=2))
        return
    console().print(_table(found))
    for assumption in found.assumptions:
        say(f"assumed: {assumption}")


def _find(inputs: Inputs) -> tuple[RunConfig, Path | None, Path | None]:
    """Settings, and the folders of the finished stages generate and base, where they are.

    Input that is not there yet is no mistake here: without it there can be no shards.
    """
    settings = inputs.load()
    try:
        _, paths = inputs.resolve()
    except (InputError, MissingArtifactError):
        return settings, None, None
    done = {
        stage: paths.folder(stage) if stage in paths.fingerprints and paths.is_here(stage) else None
        for stage in ("generate", "base")
    }
    return settings, done["generate"], done["base"]


def _machine(
    settings: RunConfig, gpu: str, memory_gib: float | None, tflops: float | None, gpus: int | None
) -> Machine:
    from tripletune.estimate.cards import Card, find_card
    from tripletune.estimate.machine import gpu_machine, this_machine
    from tripletune.finetune.ranks import accumulated_batches, asked_ranks, read_ranks
    from tripletune.precision import choose_dtype

    described = (memory_gib is not None, tflops is not None)
    if gpu and any(described):
        raise ConfigError("give either --gpu, or --memory-gib and --tflops")
    if any(described) and not all(described):
        raise ConfigError("--memory-gib and --tflops describe a card together; give both")
    file = Path(settings.finetune.accelerate_config)
    asked = asked_ranks(file)
    elsewhere, shared = gpus or asked.number, asked.share_weights
    accumulated_batches(settings.finetune, elsewhere)  # refuses what the processes cannot share
    if gpu:
        return gpu_machine(find_card(gpu), elsewhere, shares_weights=shared)
    if memory_gib is not None and tflops is not None:
        return gpu_machine(Card("the GPU described", "", memory_gib, tflops), elsewhere, shares_weights=shared)
    ranks = gpus or read_ranks(file).number
    dtype = choose_dtype(settings.finetune.model)
    return this_machine(ranks, dtype, keep_to_cpu=asked.use_cpu, shares_weights=shared)


def _measured(settings: RunConfig, size: ModelSize, tokens: Tokens, machine: Machine) -> Rates | None:
    """The speed of this machine's processor, by two seconds of products; None of a GPU, which has a data sheet."""
    from tripletune.estimate.machine import measure_rates

    if machine.device != "cpu":
        return None
    threads = max(1, len(os.sched_getaffinity(0)) // machine.ranks)
    places = settings.finetune.per_device_train_batch_size * max(1, round(tokens.mean))
    return measure_rates(size, places, machine.dtype, threads)


def _table(found: Estimate) -> Table:
    gib = 2**30
    size, memory, tokens, machine = found.size, found.memory, found.tokens, found.machine
    parts = {
        "weights": memory.weights,
        "LoRA and AdamW": memory.adapter,
        "activations": memory.activations,
        "allocator": memory.allocator,
        "logits": memory.logits,
        "overhead": memory.overhead,
    }
    rows = [
        ("model", f"{found.model}, {machine.dtype}"),
        (
            "parameters",
            f"{size.parameters:,} ({size.embedding_parameters:,} in embeddings), "
            f"{found.trainable_parameters:,} trained",
        ),
        ("machine", f"{machine.ranks} x {machine.name}, {machine.memory_bytes / gib:.1f} GiB a process"),
        (
            "memory a process",
            f"{memory.total / gib:.2f} GiB: " + ", ".join(f"{name} {value / gib:.2f}" for name, value in parts.items()),
        ),
        ("examples", f"{tokens.examples:,} of {tokens.mean:,.0f} tokens, the longest {tokens.longest:,}"),
        ("steps", f"{found.steps:,}, {found.model_flops:.2e} model FLOPs"),
        ("time", f"{_duration(found.training_seconds)} and {_duration(found.evaluation_seconds)} for evaluations"),
        (
            "disk",
            f"{sum(found.disk.values()) / gib:.2f} GiB: "
            + ", ".join(f"{name} {value / gib:.2f}" for name, value in found.disk.items()),
        ),
    ]
    table = Table(box=None, pad_edge=False, show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
