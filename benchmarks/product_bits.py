"""Count the products whose bits depend on the number of threads: the library's own, and ours in blocks.

    python benchmarks/product_bits.py --seconds 40

Shapes are drawn log-uniformly from 1..300 x 1..1,100 x 1..4,000 and computed on 1, 2, 3 and 4 threads. Then the CPU
time of ``fixed_order.product`` over that of ``left @ right`` on one thread, least of 15, for shapes of training and
top-k.
``MKL_ENABLE_INSTRUCTIONS``, ``MKL_CBWR``, ``ATEN_CPU_CAPABILITY`` in the environment show other kernels.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from tripletune.models.message_passing.fixed_order import product

THREADS = (1, 2, 3, 4)
TOPS = (300, 1100, 4000)
TIMED = (
    *((64, 64, 87_585), (64, 64, 9000), (1024, 64, 9000), (9000, 1024, 64)),
    *((30_000, 64, 64), (64, 30_000, 64), (9000, 512, 64), (300, 64, 64)),
)
KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "left @ right": torch.mm,
    "addmm": lambda left, right: torch.addmm(right[0], left, right),
    "bmm of 1": lambda left, right: torch.bmm(left.unsqueeze(0), right.unsqueeze(0)),
    "linear": lambda left, right: functional.linear(left, right.T),
    "fixed_order": product,
}


def differs(compute: Callable[[], Tensor]) -> bool:
    """Whether some number of threads gives other bits than one."""
    results = [(torch.set_num_threads(threads), compute())[1] for threads in THREADS]
    return not all(torch.equal(results[0], other) for other in results[1:])


def count(seconds: float) -> None:
    """Print how many of the products drawn differ, by kind."""
    draw, end, drawn, found = random.Random(1), time.monotonic() + seconds, 0, dict.fromkeys(KINDS, 0)
    while time.monotonic() < end:
        rows, inner, columns = (int(math.exp(draw.uniform(0, math.log(top)))) for top in TOPS)
        left = torch.randn(inner, rows).T if draw.random() < 0.5 else torch.randn(rows, inner)
        right = torch.randn(columns, inner).T if draw.random() < 0.5 else torch.randn(inner, columns)
        drawn += 1
        for kind, compute in KINDS.items():
            found[kind] += differs(lambda compute=compute, left=left, right=right: compute(left, right))
    for kind, number in found.items():
        print(f"{kind:14} {number:5} of {drawn} products differ, {number / drawn:.1%}")


def cpu_seconds(compute: Callable[[Tensor, Tensor], Tensor], left: Tensor, right: Tensor) -> float:
    """Least CPU time of 15 calls."""
    times = []
    for _ in range(15):
        start = time.process_time()
        compute(left, right)
        times.append(time.process_time() - start)
    return min(times)


def main() -> None:
    """Count, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0, help="for counting")
    count(parser.parse_args().seconds)
    torch.set_num_threads(1)
    for rows, inner, columns in TIMED:
        left, right = torch.randn(rows, inner), torch.randn(inner, columns)
        ours, plain = (cpu_seconds(call, left, right) for call in (product, torch.mm))
        print(f"{rows:6} x {inner:6} x {columns:6}: {1e3 * plain:7.3f} ms, ratio {ours / plain:.2f}")


if __name__ == "__main__":
    main()
