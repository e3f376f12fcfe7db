"""Compare ``tripletune estimate`` with trainings on this CPU: peak memory and seconds of a step.

Each case trains five steps in a process of its own, by the code of the finetune stage, on made-up prompts of about 900
tokens. Memory is the process's largest resident size. Seconds are the median of all but the first step, which warms
up: wall time, or with ``--process-time`` the process's own time on one core, which other load changes less.

    python -m benchmarks.estimate [--process-time] [--cases tiny-sft smollm2-sft ...] [--out benchmarks/estimate.md]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
STEPS = 5


@dataclass(frozen=True)
class Case:
    """One training."""

    model: str
    objective: str
    batch: int
    checkpointing: bool = False
    dtype: str = ""
    """Empty: as the processor computes best."""


CASES = {
    "tiny-sft": Case("tiny", "sft", 8),
    "tiny-listwise": Case("tiny", "listwise", 8),
    "smollm2-listwise": Case("smollm2-135m", "listwise", 2),
    "smollm2-listwise-float32": Case("smollm2-135m", "listwise", 2, dtype="float32"),
    "smollm2-listwise-checkpointing": Case("smollm2-135m", "listwise", 2, checkpointing=True),
    "smollm2-listwise-of-4": Case("smollm2-135m", "listwise", 4),
    "smollm2-sft": Case("smollm2-135m", "sft", 2),
}


def train(name: str, folder: Path, base: Path, process_time: bool) -> dict[str, Any]:
    """Train a case in this process; what was measured and what was estimated."""
    import tripletune.finetune.training as training
    from tests.finetune_shards import write_shards
    from tripletune.config import FinetuneConfig
    from tripletune.finetune.job import TrainingJob
    from tripletune.finetune.meter import peak_of_process
    from tripletune.finetune.tiny import write_tiny_llama
    from tripletune.finetune.token_files import write_token_files
    from tripletune.precision import choose_dtype

    case, clock = CASES[name], time.process_time if process_time else time.perf_counter
    letters = case.objective != "sft"
    shards = write_shards(folder / "shards", train=STEPS * case.batch, valid=1, test=1, letters=letters)
    files = tuple(sorted((shards / "train").glob("*.parquet")))
    settings = FinetuneConfig(
        model=case.model,
        objective=case.objective,
        num_train_epochs=1,
        global_batch=case.batch,
        per_device_train_batch_size=case.batch,
        gradient_checkpointing=case.checkpointing,
        logging_steps=1,
    )
    if case.model == "tiny":
        base = folder / "base"
        write_tiny_llama(files, base, settings.tiny, 1)
    job = TrainingJob(
        out=folder,
        train=files,
        evaluation=None,
        prior=tuple(-0.1 * place for place in range(20)),
        answer_style="letters" if letters else "titles",
        base=str(base),
        hub_revision=None,
        base_name=case.model,
        settings=settings,
        seed=1,
    )
    job.scratch.mkdir(parents=True)
    dtype = case.dtype or choose_dtype(case.model)
    training.choose_dtype = lambda model: dtype
    marks: list[float] = []
    training._Messenger.on_step_begin = lambda *_, **__: marks.append(clock())
    training._Messenger.on_step_end = lambda *_, **__: marks.append(clock())
    write_token_files(job, workers=1)
    training.train(job)
    seconds = statistics.median(end - begin for begin, end in zip(marks[2::2], marks[3::2], strict=True))
    peak = peak_of_process()
    facts = json.loads(job.result.read_text())["facts"]
    return {"peak": peak, "seconds": seconds, "dtype": dtype} | _estimated(settings, base, facts, dtype, clock)


def _estimated(settings: Any, base: Path, facts: dict[str, Any], dtype: str, clock: Any) -> dict[str, Any]:
    from tripletune.estimate.machine import Machine, measure_rates
    from tripletune.estimate.model_size import size_of
    from tripletune.estimate.plan import estimate
    from tripletune.estimate.tokens import Tokens

    size = size_of(json.loads((base / "config.json").read_text()))
    mean, batch = facts["tokens"] / facts["examples"], settings.per_device_train_batch_size
    predicted = 1.0 if settings.scores_labels else mean  # on a CPU every place's logits are computed
    tokens = Tokens(batch, mean, facts["longest_tokens"], predicted, 0, ())
    threads = len(os.sched_getaffinity(0)) if clock is time.perf_counter else 1
    rates = measure_rates(size, round(batch * mean), dtype, threads, clock)
    machine = Machine("CPU", "cpu", 1, float("inf"), dtype)
    found = estimate(settings, size, tokens, machine, mfu=1.0, rates=rates)
    return {
        "tokens": round(mean),
        "longest": facts["longest_tokens"],
        "estimated_peak": found.memory.total,
        "estimated_seconds": found.training_seconds,
        "gflops": rates.products / 1e9,
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """All cases as a Markdown table."""
    lines = [
        "| training | format | tokens, longest | GiB measured | estimated | | s a step measured | estimated | |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in found.items():
        case = CASES[name]
        what = f"{case.model}, {case.objective}, {case.batch} examples" + (
            ", checkpointing" if case.checkpointing else ""
        )
        peak, guess = one["peak"] / 2**30, one["estimated_peak"] / 2**30
        seconds, think = one["seconds"], one["estimated_seconds"]
        lines.append(
            f"| {what} | {one['dtype']} | {one['tokens']}, {one['longest']} | {peak:.2f} | {guess:.2f} | "
            f"{guess / peak - 1:+.0%} | {seconds:.2f} | {think:.2f} | {think / seconds - 1:+.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Train the cases one after the other, each in its own process, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--process-time", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=3, metavar=("CASE", "FOLDER", "BASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, folder, base = options.one
        print("@" + json.dumps(train(name, Path(folder), Path(base), options.process_time)))
        return
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        if any(CASES[name].model != "tiny" for name in options.cases):
            from tripletune.finetune.shipped import write_shipped

            base.mkdir()
            write_shipped(base)
        load = psutil.getloadavg()[0]
        for name in options.cases:
            call = [sys.executable, "-m", "benchmarks.estimate", "--one", name, f"{scratch}/{name}", str(base)]
            call += ["--process-time"] if options.process_time else []
            environment = os.environ | ({"OMP_NUM_THREADS": "1"} if options.process_time else {})
            done = subprocess.run(call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads([line for line in done.stdout.splitlines() if line.startswith('@{"peak')][-1][1:])
            print(table({name: found[name]}).splitlines()[-1], flush=True)
    clock = "the process's own time on one core" if options.process_time else "wall time on all cores"
    text = f"{table(found)}\n\nSeconds are {clock}; load average when it began: {load:.1f}.\n"
    print(text)
    if options.out:
        before = options.out.read_text(encoding="utf-8") if options.out.is_file() else "# Estimates\n\n"
        head = before.split("| training |")[0]
        options.out.write_text(head + text, encoding="utf-8")


if __name__ == "__main__":
    main()
