"""Which nodes of the file the pieces in tract's profile stand for (without the engine)."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
from torch import Tensor, nn

from latmod.export import export_model
from latmod.graph import Graph, read_graph
from latmod.runtimes.tract import nodes_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


def graph_of(folder: Path) -> Graph:
    path = folder / "block.onnx"
    export_model(Block(), (2, 3, 8), path)
    return read_graph(path)


def test_a_product_is_named_after_what_is_fused_into_it(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    products = [node.name for node in graph.nodes if node.op == "MatMul"]
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    last = graph.nodes[-1].name
    assert nodes_of("OptMatMul", last, graph, places) == (products[1], last)
    assert nodes_of("OptMatMul", products[0], graph, places) == (products[0],)


def test_other_pieces_are_what_they_are_named_after(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    last = graph.nodes[-1].name
    assert nodes_of("OptBinByScalar", last, graph, places) == (last,)
    assert nodes_of("OptMatMul", "nowhere", graph, places) == ("nowhere",)


class Chained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.norm(self.conv(x.relu())) + x) * 2.0


def test_a_chain_is_the_nodes_before_it_that_have_its_operations(tmp_path: Path) -> None:
    path = tmp_path / "chained.onnx"
    export_model(Chained(), (1, 3, 8, 8), path)
    graph = read_graph(path)
    names = {node.op: node.name for node in graph.nodes}
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    norm, add, last = names["BatchNormalization"], names["Add"], names["Mul"]
    relu = graph.nodes[places[add] + 1].name
    assert nodes_of("OptBinChain(Mul+Add)", norm, graph, places) == (norm,)
    assert nodes_of("OptBinChain(Add+Max)", relu, graph, places) == (add, relu)
    assert nodes_of("OptBinChain(Mul+Add+Add+Max+Mul)", last, graph, places) == (norm, add, relu, last)
    assert nodes_of("OptBinChain(Mul+Add+Add+Max+Mul+Add)", last, graph, places)[0] == norm
