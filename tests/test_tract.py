"""Which nodes of the file the pieces in tract's profile stand for (without the engine)."""

from pathlib import Path

import pytest

pytest.importorskip("torch")
from torch import Tensor, nn

from latmod.export import export_model
from latmod.graph import Graph, read_graph
from latmod.runtimes.tract import nodes_of

DATASETS = Path(__file__).parents[1] / "datasets"


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
    assert nodes_of([("OptMatMul", last)], graph, places) == [(products[1], last)]
    both = [("OptMatMul", products[0]), ("OptMatMul", last)]
    assert nodes_of(both, graph, places) == [(products[0],), (products[1], last)]


def test_a_shortcut_is_no_way_to_the_product_of_the_block_before() -> None:
    """Windows are put together again before they are added: the block before is nearer."""
    graph = read_graph(DATASETS / "kernels-engines-zen5" / "graphs" / "windowed-62068-w144-d7-s224.onnx")
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    pieces = [("OptMatMul", name) for name in ("layers.8.mlp.2_2", "layers.9.attention.qkv_2", "layers.9.add")]
    assert nodes_of(pieces, graph, places)[-1] == ("layers.9.attention.proj_2", "layers.9.add")


def test_other_pieces_are_what_they_are_named_after(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    places = {node.name: place for place, node in enumerate(graph.nodes)}
    last = graph.nodes[-1].name
    assert nodes_of([("OptBinByScalar", last)], graph, places) == [(last,)]
    assert nodes_of([("OptMatMul", "nowhere")], graph, places) == [("nowhere",)]
