"""What the GPU benchmark checks on a device, on this one; and that it steps aside where there is no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tripletune.models.message_passing.torch_backend import TorchGraph

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "gpu_graph.py"


@pytest.fixture(scope="module")
def gpu_graph() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_graph", SCRIPT)
    module = sys.modules["gpu_graph"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_writes_nothing(gpu_graph, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_graph.main(out=tmp_path / "report.md")
    assert capsys.readouterr().out == "gpu_graph: torch sees no GPU here, so nothing was measured\n"
    assert not list(tmp_path.iterdir())


def test_its_checks_pass_where_the_operations_are_right_and_name_the_one_that_is_not(gpu_graph, monkeypatch):
    assert len(gpu_graph.check_operations(torch.device("cpu"))) == 2 * 7  # three values and four gradients
    right = TorchGraph._softmax
    monkeypatch.setattr(TorchGraph, "_softmax", lambda graph, score: right(graph, score) * 1.001)
    with pytest.raises(SystemExit, match=r"softmax in torch\.float32 is off by 1\.0e-03"):
        gpu_graph.check_operations(torch.device("cpu"))
