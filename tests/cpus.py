"""Run the numerics and byte tests as on other processors, each with 1, 2 and 4 threads: ``make test-cpus``.

What is promised: on one processor, the same bytes for any number of threads. So every stage up to the shards is also
run once per number of threads, and its files are compared. Between settings bits may differ, as between processors:
each has its own kernels, with sums in an order of their own. No test compares with bytes that another processor made.

    python -m tests.cpus [arguments for pytest in place of TESTS]
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "ONEDNN_MAX_CPU_ISA=AVX2",
    "MKL_ENABLE_INSTRUCTIONS=AVX2",
    "ATEN_CPU_CAPABILITY=avx2",
    "ATEN_CPU_CAPABILITY=default",
)
THREADS = (1, 2, 4)
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS")
TESTS = ("tests/numerics", "tests/unit", "-m", "numerics or bytes")
"""Byte tests of what Polars alone computes are not marked: these settings mean nothing to it."""
STAGES = (
    *("ingest", "split", "knowledge", "text", "rgat", "lightgcn", "sasrec", "sequence", "ease", "slist"),
    *("fusion", "retrieve", "generate"),
)
CONFIG = """
dataset = "cpus"
seed = 3

[synthetic]
viewers = 400
movies = 500
mean_ratings = 60

[rgat]
layers = 2
max_steps = 4
eval_every = 2

[lightgcn]
max_steps = 8
eval_every = 4

[sasrec]
max_steps = 8
eval_every = 4

[retrieve]
fused_sasrec = 1.0
"""


def digest_of_stages(folder: Path) -> str:
    """Run the stages up to the shards in this process; a digest of all tables and tensors that they write."""
    from tripletune.config.presets import load_config
    from tripletune.pipeline.registry import BY_NAME
    from tripletune.pipeline.resolve import resolve

    preset = folder / "cpus.toml"
    preset.write_text(CONFIG, encoding="utf-8")
    config = load_config(preset)
    paths = resolve(config, folder)
    found = hashlib.sha256()
    for stage in STAGES:
        done = BY_NAME[stage].run(paths, config)
        for file in sorted(path for path in done.rglob("*") if path.suffix in (".parquet", ".safetensors")):
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()[:8]


def run(setting: str, threads: int, tests: tuple[str, ...]) -> tuple[str, str, str]:
    """Run tests and stages in processes of their own; outcome in a few words, digest of the stages, lines to print."""
    name, _, value = setting.partition("=")
    environment = {**os.environ, name: value, **dict.fromkeys(POOLS, str(threads))}
    start = time.perf_counter()
    call = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    tested = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = tested.stdout.strip().splitlines() or tested.stderr.strip().splitlines() or ["nothing was said"]
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, "-m", "tests.cpus", "--stages", folder]
        staged = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
    digest = staged.stdout.split()[-1] if staged.returncode == 0 else "failed"
    printed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if staged.returncode:
        printed += staged.stderr.strip().splitlines()[-1:]
    outcome = "passed" if tested.returncode == 0 else "failed"
    return f"{outcome} in {time.perf_counter() - start:.0f} s", digest, "\n".join([*printed, lines[-1]])


def main(tests: tuple[str, ...]) -> int:
    """Run all settings and print a table; 1 if a test failed or the number of threads changed a byte."""
    rows, failed = [], False
    for setting in SETTINGS:
        outcomes, digests = [], set()
        for threads in THREADS:
            outcome, digest, printed = run(setting, threads, tests)
            print(f"{setting} {threads} threads: {outcome}, stages {digest}\n{printed}", flush=True)
            outcomes.append(f"{outcome}, {digest}")
            digests.add(digest)
        same = len(digests) == 1 and "failed" not in digests
        failed |= not same or any(outcome.startswith("failed") for outcome in outcomes)
        rows.append((setting, *outcomes, "same" if same else "DIFFERENT"))
    print()
    for row in (("setting", *(f"{threads} threads" for threads in THREADS), "bytes"), *rows):
        print(" | ".join(f"{cell:{width}}" for cell, width in zip(row, (28, 24, 24, 24, 9), strict=True)))
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stages"]:
        print(digest_of_stages(Path(sys.argv[2])))
    else:
        sys.exit(main(tuple(sys.argv[1:]) or TESTS))
