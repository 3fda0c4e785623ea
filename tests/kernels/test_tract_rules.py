"""What tract does otherwise than onnxruntime, whose rules it shares, by what it said itself when it was measured."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from latmod.dataset import DatasetFolder, KernelTime
from latmod.graph import read_graph
from latmod.kernels import Kernel, kernels

FOLDER = DatasetFolder(Path(__file__).parents[2] / "datasets" / "kernels-engines-zen4")
ALONG_ROWS = "Conv along rows"


def _nodes(pieces: Iterable[Kernel | KernelTime], among: frozenset[str]) -> set[str]:
    return {name for piece in pieces for name in piece.nodes if name in among}


def test_the_convolutions_along_rows_are_those_that_tract_told() -> None:
    """Networks with some, and as many without any: rows shorter than 128, or more than 576 multiply-adds."""
    told = [one for one in FOLDER.read_kernels() if one.runtime == "tract" and one.status == "ok"]
    some = [one for one in told if any(kernel.op == "DirectSpatialConv" for kernel in one.kernels)][:12]
    none = [one for one in told if one not in some and ("plain" in one.model or "early" in one.model)][:12]
    count = 0
    for one in (*some, *none):
        graph = read_graph(FOLDER.graph_path(one.model))
        convolutions = frozenset(node.name for node in graph.nodes if node.op == "Conv")
        expected = _nodes([piece for piece in one.kernels if piece.op == "DirectSpatialConv"], convolutions)
        found = [kernel for kernel in kernels(graph, "tract") if kernel.kind == ALONG_ROWS]
        assert _nodes(found, convolutions) == expected, one.model
        count += len(expected)
    assert count >= 12


@pytest.mark.parametrize(
    ("family", "norms"),
    [("plain", set()), ("windowed", {"LayerNormalization"}), ("transformer", {"LayerNormalization/turned"})],
)
def test_all_else_is_as_in_onnxruntime_but_norms_and_softmax(family: str, norms: set[str]) -> None:
    """A softmax walks row by row, a layer norm calls a sum for each channel but where windows are cut."""
    name = next(one.model for one in FOLDER.read_kernels() if one.runtime == "tract" and one.model.startswith(family))
    graph = read_graph(FOLDER.graph_path(name))
    own = kernels(graph, "tract")
    like = [kernel for kernel in kernels(graph, "onnxruntime") if kernel.nodes]
    changes = {"LayerNormalization/turned": "products", "Softmax": "inner"}
    for one, other in zip(own, like, strict=True):
        expected = {changes[one.kind]: other.number("last_dim")} if one.kind in changes else {}
        assert one.numbers == other.with_numbers(**expected).numbers
        assert one.kind in (other.kind, f"{other.kind}/turned", ALONG_ROWS)
    assert {one.kind for one in own if one.kind.startswith("LayerNormalization")} == norms
