"""Message passing against dense float64 matrices and plain loops, and its gradients against finite differences."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import dgl
import pytest
import torch

from tripletune.models.message_passing import dgl_backend, graph
from tripletune.models.message_passing.gather import inverse_sqrt_degree
from tripletune.models.message_passing.interface import MessageGraph

# name: (sources, destinations, number of sources, number of destinations)
GRAPHS = {
    "one node with a loop": ([0], [0], 1, 1),
    "one node without edges": ([], [], 1, 1),
    "isolated nodes on both sides": ([0, 3, 3, 0], [2, 2, 0, 4], 5, 6),
    "repeated edges": ([1, 1, 1, 0, 2], [0, 0, 0, 0, 1], 3, 2),
    "two sets of different size": ([0, 1, 2, 3, 4, 5, 6, 0], [0, 0, 0, 0, 1, 1, 1, 1], 7, 2),
    "edges in no order": ([4, 0, 2, 4, 1, 3], [1, 2, 0, 0, 2, 1], 5, 3),
}
HEADS, WIDTH = 2, 3


BACKENDS = ["dgl", "dgl in many blocks", "torch"]
chosen: list[graph.Backend] = []
"""The back end of the test that runs."""


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = request.param.split()[0]
    if name != request.param:
        monkeypatch.setattr(dgl_backend, "BLOCK_EDGES", 2)
    chosen[:] = [name]
    return name


def message_graph(src_E: torch.Tensor, dst_E: torch.Tensor, num_src: int, num_dst: int) -> MessageGraph:
    return graph.message_graph(src_E, dst_E, num_src, num_dst, chosen[0])


@pytest.fixture(params=GRAPHS)
def case(request: pytest.FixtureRequest) -> tuple[torch.Tensor, torch.Tensor, int, int]:
    src, dst, num_src, num_dst = GRAPHS[request.param]
    return torch.tensor(src, dtype=torch.int64), torch.tensor(dst, dtype=torch.int64), num_src, num_dst


def build(case: tuple[torch.Tensor, torch.Tensor, int, int]) -> MessageGraph:
    return message_graph(*case)


def dense(case: tuple[torch.Tensor, torch.Tensor, int, int], weight_E: torch.Tensor | None = None) -> torch.Tensor:
    """Matrix (D, S) whose entry is the sum of the weights of the edges between two nodes."""
    src_E, dst_E, num_src, num_dst = case
    matrix = torch.zeros(num_dst, num_src, dtype=torch.float64)
    for edge, (src, dst) in enumerate(zip(src_E.tolist(), dst_E.tolist(), strict=True)):
        matrix[dst, src] += 1.0 if weight_E is None else weight_E[edge]
    return matrix


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_sum_over_neighbours_is_a_product_with_the_adjacency_matrix(case):
    source_SW = randn(case[2], WIDTH)
    torch.testing.assert_close(build(case).sum_neighbours(source_SW), dense(case) @ source_SW)


def test_the_reversed_graph_sums_and_weighs_along_the_same_edges_turned_round(case):
    backward = build(case).reversed()
    source_DHW, weight_EH = randn(case[3], HEADS, WIDTH), randn(len(case[0]), HEADS)
    torch.testing.assert_close(backward.sum_neighbours(source_DHW[:, 0]), dense(case).T @ source_DHW[:, 0])
    got_SHW = backward.weighted_sum(source_DHW, weight_EH)
    for head in range(HEADS):
        torch.testing.assert_close(got_SHW[:, head], dense(case, weight_EH[:, head]).T @ source_DHW[:, head])


def test_softmax_is_over_the_incoming_edges_of_each_destination_and_head(case):
    dst_E = case[1]
    score_EH = randn(len(dst_E), HEADS) * 5
    got_EH = build(case).softmax_incoming(score_EH)
    for node in range(case[3]):
        mine = dst_E == node
        torch.testing.assert_close(got_EH[mine], score_EH[mine].softmax(dim=0))


def test_softmax_of_very_large_scores_is_finite():
    graph = message_graph(torch.tensor([0, 1]), torch.tensor([0, 0]), 2, 1)
    got = graph.softmax_incoming(torch.tensor([[1e4], [1e4 + 1]]))
    torch.testing.assert_close(got, torch.tensor([[0.26894142], [0.73105858]]))


def test_weighted_sum_is_a_product_with_the_weighted_adjacency_matrix_of_each_head(case):
    source_SHW, weight_EH = randn(case[2], HEADS, WIDTH), randn(len(case[0]), HEADS)
    got_DHW = build(case).weighted_sum(source_SHW, weight_EH)
    for head in range(HEADS):
        torch.testing.assert_close(got_DHW[:, head], dense(case, weight_EH[:, head]) @ source_SHW[:, head])


def test_gradients_are_those_of_finite_differences(case):
    graph = build(case)
    source_SHW = randn(case[2], HEADS, WIDTH).requires_grad_()
    edge_EH = randn(len(case[0]), HEADS).requires_grad_()
    assert torch.autograd.gradcheck(graph.sum_neighbours, (source_SHW,))
    if len(case[0]):
        assert torch.autograd.gradcheck(graph.softmax_incoming, (edge_EH,))
        assert torch.autograd.gradcheck(graph.weighted_sum, (source_SHW, edge_EH))


def test_float32_agrees_with_dense_float64_in_values_and_gradients(case):
    graph = build(case)
    leaves = [randn(case[2], HEADS, WIDTH), randn(len(case[0]), HEADS), randn(case[3], HEADS, WIDTH)]

    def compute(dtype: torch.dtype, by_matrix: bool) -> list[torch.Tensor]:
        source, score, target = (leaf.to(dtype) for leaf in leaves)
        source.requires_grad_(), score.requires_grad_()
        if by_matrix:
            member_ED = torch.nn.functional.one_hot(case[1], case[3]).to(dtype)
            share = score.exp() / (member_ED @ (member_ED.T @ score.exp()))
            out = torch.einsum("ed,eh,ehw->dhw", member_ED, share + 1, source[case[0]])
        else:
            out = graph.weighted_sum(source, graph.softmax_incoming(score)) + graph.sum_neighbours(source)
        loss = (out * target).sum() + 0 * (source.sum() + score.sum())  # without edges nothing else has a gradient
        loss.backward()
        return [out, source.grad, score.grad]

    for got, want in zip(compute(torch.float32, False), compute(torch.float64, True), strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_sixteen_bits_sum_in_thirty_two_and_round_once():
    # 200 edges arrive at each of 20 nodes: a sum in bfloat16 would be off by percents
    generator = torch.Generator().manual_seed(0)
    src_E, dst_E = torch.randint(20, (4000,), generator=generator), torch.arange(4000) % 20
    graph = message_graph(src_E, dst_E, 20, 20)
    leaves = [
        torch.randn(*shape, generator=generator).bfloat16()
        for shape in ((20, HEADS, WIDTH), (4000, HEADS), (20, HEADS, WIDTH), (4000, HEADS))
    ]

    def compute(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        source, edge, target, share = (leaf.to(dtype) for leaf in leaves)
        source.requires_grad_(), edge.requires_grad_()
        got = {
            "sum": graph.sum_neighbours(source),
            "softmax": graph.softmax_incoming(edge),
            "weighted sum": graph.weighted_sum(source, edge),
        }
        for name, inputs in (("sum", [source]), ("softmax", [edge]), ("weighted sum", [source, edge])):
            grads = torch.autograd.grad(got[name], inputs, share if name == "softmax" else target)
            got |= {f"gradient {place} of {name}": grad for place, grad in enumerate(grads)}
        return got

    want = compute(torch.float64)  # float64 is held against dense matrices above
    for name, tensor in compute(torch.bfloat16).items():
        assert tensor.dtype == torch.bfloat16, name
        # half a unit in the last of 8 bits, and sums of float32 that cancel
        torch.testing.assert_close(
            tensor.double(), want[name], rtol=2**-8, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_graph_stays_on_the_device_of_its_edges(backend):
    if backend == "dgl":
        pytest.skip("DGL is for the CPU")
    with torch.device("meta"):  # whatever is made without a device lands there, and cannot meet the CPU's tensors
        graph = message_graph(*(torch.tensor(end, device="cpu") for end in ([0, 2, 2], [1, 0, 1])), 3, 2)
        source = torch.ones(3, HEADS, WIDTH, device="cpu", requires_grad=True)
        edge = torch.ones(3, HEADS, device="cpu", requires_grad=True)
        out = graph.weighted_sum(source, graph.softmax_incoming(edge)) + graph.sum_neighbours(source)
        grads = torch.autograd.grad(out, (source, edge), torch.ones_like(out))
    assert {tensor.device.type for tensor in (out, *grads)} == {"cpu"}


def test_degree_scale_is_zero_without_edges():
    got = inverse_sqrt_degree(torch.tensor([0, 0, 0, 0, 2]), 3)
    torch.testing.assert_close(got, torch.tensor([0.5, 0.0, 1.0]))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match=r"dst must be within 0\.\.1, got 0\.\.2"):
        message_graph(torch.tensor([0, 0]), torch.tensor([0, 2]), 1, 2)
    with pytest.raises(ValueError, match="one length"):
        message_graph(torch.tensor([0, 0]), torch.tensor([0]), 1, 2)
    with pytest.raises(ValueError, match="3 sources, got 2"):
        message_graph(torch.tensor([0]), torch.tensor([0]), 3, 2).sum_neighbours(torch.zeros(2, 1))


THREADS = (1, 2, 3, 4, 8)


@pytest.fixture
def by_threads():
    before = torch.get_num_threads()
    yield lambda compute: [(torch.set_num_threads(number), compute())[1] for number in THREADS]
    torch.set_num_threads(before)


@pytest.mark.parametrize("block_edges", [1 << 10, dgl_backend.BLOCK_EDGES])
def test_bytes_do_not_depend_on_the_number_of_threads(block_edges, by_threads, monkeypatch):
    monkeypatch.setattr(dgl_backend, "BLOCK_EDGES", block_edges)
    generator = torch.Generator().manual_seed(0)
    src_E, dst_E = (torch.randint(500, (20_000,), generator=generator) for _ in range(2))
    graph = message_graph(src_E, dst_E, 500, 500)
    source_SHW, edge_EH = torch.randn(500, 2, 32, generator=generator), torch.randn(20_000, 2, generator=generator)

    def compute() -> list[torch.Tensor]:
        source, edge = source_SHW.clone().requires_grad_(), edge_EH.clone().requires_grad_()
        out = graph.weighted_sum(source, graph.softmax_incoming(edge)) + graph.sum_neighbours(source)
        out.square().sum().backward()
        return [out, source.grad, edge.grad]

    alone, *others = by_threads(compute)
    for many in others:
        assert all(torch.equal(one, other) for one, other in zip(alone, many, strict=True))


def test_the_graph_alone_says_where_blocks_begin_and_each_has_one_thread(backend, by_threads, monkeypatch):
    # the bytes cannot show this on every processor: with AVX2, libxsmm adds in the order of the edges anyway
    if backend != "dgl":
        pytest.skip("torch's kernels are not called by block")
    monkeypatch.setattr(dgl_backend, "BLOCK_EDGES", 1 << 10)
    generator = torch.Generator().manual_seed(0)
    src_E, dst_E = (torch.randint(500, (20_000,), generator=generator) for _ in range(2))
    features = torch.randn(500, 2, 8, generator=generator).requires_grad_()
    edge = torch.randn(20_000, 2, generator=generator).requires_grad_()
    seen: list[tuple[str, int, int, int]] = []
    for name in ("copy_u_sum", "copy_e_sum", "u_mul_e_sum", "u_dot_v", "edge_softmax"):

        def record(name, compute, block, *args):
            seen.append((name, block.num_nodes("row"), block.num_edges(), torch.get_num_threads()))
            return compute(block, *args)

        monkeypatch.setattr(dgl.ops, name, partial(record, name, getattr(dgl.ops, name)))

    def calls() -> list[tuple[str, int, int, int]]:
        seen.clear()
        graph = message_graph(src_E, dst_E, 500, 500)  # built anew: with this number of threads
        out = graph.weighted_sum(features, graph.softmax_incoming(edge)) + graph.sum_neighbours(features)
        torch.autograd.grad(out.sum(), (features, edge))
        return sorted(seen)

    alone, *others = by_threads(calls)
    assert all(many == alone for many in others)
    assert {name: sum(call[0] == name for call in alone) for name, *_ in alone} == {
        "copy_u_sum": 2 * 20,  # forward and backward
        "copy_e_sum": 20,
        "u_mul_e_sum": 2 * 20,
        "u_dot_v": 20,
        "edge_softmax": 20,
    }
    assert {threads for *_, threads in alone} == {1}
    assert max(edges for _, _, edges, _ in alone) < 2 * (1 << 10)


def test_import_is_silent():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import tripletune.models.message_passing.dgl_backend, tripletune.models.message_passing.torch_backend",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
