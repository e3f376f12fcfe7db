"""Which back end passes the messages: a rule of kernel, size and device, and what DGL needs of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tripletune.models.message_passing import device as processor
from tripletune.models.message_passing import dgl_backend, graph


def test_dgl_has_torchs_openmp_so_that_one_thread_is_one_of_dgls():
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the system does not list the libraries of a process")
    lines = (line.split() for line in maps.read_text().splitlines())
    assert len({line[-1] for line in lines if "gomp" in line[-1] or "iomp" in line[-1]}) == 1


CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("setting", "device", "kernel", "edges", "backend"),
    [
        ("auto", CPU, "sum", graph.SUM_VALUES // 64, "dgl"),
        ("auto", CPU, "sum", graph.SUM_VALUES // 64 + 1, "torch"),
        ("auto", CPU, "weighted sum", 10, "torch"),
        ("auto", CPU, "attention", 10**8, "dgl"),
        ("auto", GPU, "sum", 10, "torch"),
        ("auto", GPU, "attention", 10, "torch"),
        ("dgl", CPU, "weighted sum", 10**8, "dgl"),
        ("torch", CPU, "attention", 10, "torch"),
    ],
)
def test_the_back_end_follows_from_kernel_size_and_device(setting, device, kernel, edges, backend, monkeypatch):
    monkeypatch.setattr(graph, "HAS_AVX2", True)
    choice = graph.choose_backend(setting, device, kernel, edges, 64)
    assert choice.backend == backend
    assert choice.reason
    assert choice.facts() == {"message_passing": backend, "message_passing_reason": choice.reason}


def test_without_avx2_sums_are_torchs_and_dgl_keeps_to_its_plain_ones(monkeypatch):
    assert dgl_backend.dgl.is_libxsmm_enabled() == processor.HAS_AVX2
    monkeypatch.setattr(graph, "HAS_AVX2", False)
    assert graph.choose_backend("auto", CPU, "sum", 10, 64) == ("torch", "DGL's fast sums need a processor with AVX2")
    assert graph.choose_backend("auto", CPU, "attention", 10, 64).backend == "dgl"
