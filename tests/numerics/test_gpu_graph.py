"""What the GPU benchmark checks on a device, on the CPU and on a GPU; and that it steps aside where there is no GPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from tests.benchmark_scripts import benchmark_script
from tests.graph_cases import plant_knowledge, plant_split
from tripletune.models.message_passing.torch_backend import TorchGraph

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def gpu_graph() -> Iterator[ModuleType]:
    with benchmark_script("gpu/gpu_graph") as module:
        yield module


def trainers(gpu_graph, device):
    data = gpu_graph.draw_data(40, 30, 6)
    place = torch.device(device)
    return {
        "LightGCN": lambda: gpu_graph.lightgcn_trainer(data, place),
        "R-GAT": lambda: gpu_graph.rgat_trainer(data, place)[0],
    }


def test_without_a_gpu_it_says_so_and_writes_nothing(gpu_graph, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_graph.measure(out=tmp_path / "report.json")
    assert capsys.readouterr().out == "gpu_graph: torch sees no GPU here, so nothing was measured\n"
    assert not list(tmp_path.iterdir())


def test_its_checks_pass_where_the_operations_are_right_and_name_the_one_that_is_not(gpu_graph, monkeypatch):
    assert len(gpu_graph.check_operations(torch.device("cpu"))) == 2 * 7  # three values and four gradients
    right = TorchGraph._softmax
    monkeypatch.setattr(TorchGraph, "_softmax", lambda graph, score: right(graph, score) * 1.001)
    with pytest.raises(SystemExit, match=r"softmax in torch\.float32 is off by 1\.0e-03"):
        gpu_graph.check_operations(torch.device("cpu"))


@pytest.mark.gpu
def test_the_operations_on_a_gpu_are_those_of_dense_float64(gpu_graph):
    assert len(gpu_graph.check_operations(torch.device("cuda"))) == 2 * 7


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["LightGCN", "R-GAT"])
def test_a_specialist_starts_as_on_a_cpu_and_learns(gpu_graph, name, device):
    model, on_cpu = trainers(gpu_graph, device)[name](), trainers(gpu_graph, "cpu")[name]()
    losses = [model.step() for _ in range(30)]
    # same weights and same draws, sums in another order
    assert losses[0] == pytest.approx(on_cpu.step(), rel=1e-4)
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])  # random likes: there is little to learn (R-GAT: .92 on a CPU)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["LightGCN", "R-GAT"])
def test_a_checkpoint_resumes_on_its_device(gpu_graph, name, device):
    make = trainers(gpu_graph, device)[name]
    model, resumed = make(), make()
    model.step(), model.step()
    resumed.load_state({key: value.cpu().clone() for key, value in model.state().items()})  # as a file gives them
    # on a GPU some gradients are added in an order that changes from call to call
    assert [resumed.step(), resumed.step()] == pytest.approx([model.step(), model.step()], rel=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_tiny_run_writes_every_result_and_its_page(gpu_graph, tmp_path, capsys, device):
    out = tmp_path / "results.json"
    gpu_graph.measure(out=out, device=device, steps=2, tiny=True)
    page = json.loads(out.read_text())
    assert page["ended"] == "complete"
    assert list(page["results"]) == ["copy", "bf16_product", "operations", "steps", "LightGCN", "R-GAT"]
    assert page["results"]["LightGCN"]["seconds_per_step"]["median"] > 0
    assert page["environment"]["torch"] == torch.__version__
    gpu_graph.report(out, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text() in capsys.readouterr().out
    assert "| LightGCN | 240 likes, 40 users |" in (tmp_path / "page.md").read_text()


def test_data_from_the_stages_are_the_likes_of_fit_b(gpu_graph, tmp_path):
    plant_split(tmp_path / "split", num_viewers=60)
    plant_knowledge(tmp_path / "knowledge")
    gpu_graph.keep_data({"split": tmp_path / "split", "knowledge": tmp_path / "knowledge"}, tmp_path / "data")
    data = gpu_graph.read_data(tmp_path / "data")
    want = gpu_graph.read_interactions(tmp_path / "split", data.facts.movie_ids_M).fits["b"]
    assert data.likes.num_viewers == want.num_viewers == 54  # every tenth of 60 users is unseen
    assert data.likes.user_E.tolist() == want.user_E.tolist()
    assert data.likes.movie_E.tolist() == want.movie_E.tolist()
    gpu_graph.measure(out=tmp_path / "results.json", data=tmp_path / "data", device="cpu", steps=1, tiny=True)
    assert json.loads((tmp_path / "results.json").read_text())["results"]["LightGCN"]["size"] == "540 likes, 54 users"


def test_without_data_and_without_tiny_it_says_what_to_give(gpu_graph, tmp_path):
    with pytest.raises(SystemExit, match="give --data, a folder that prepare wrote, or --tiny"):
        gpu_graph.measure(out=tmp_path / "results.json", device="cpu")
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_cut_still_gives_a_page(gpu_graph, tmp_path):
    out = tmp_path / "results.json"
    gpu_graph.measure(out=out, device="cpu", steps=1, tiny=True)
    page = json.loads(out.read_text())
    for known in (["copy", "bf16_product", "operations", "steps", "LightGCN"], ["copy"], []):
        page |= {"ended": "deadline", "results": {name: page["results"][name] for name in known}}
        text = gpu_graph.format_report(page)
        assert "ended: deadline" in text
        assert ("| LightGCN |" in text) == ("LightGCN" in known)
        assert "| R-GAT |" not in text
