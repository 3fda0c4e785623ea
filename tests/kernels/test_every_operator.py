"""Every operator of the ONNX standard, in the forms that the standard's own test cases have, is priced or refused."""

import importlib
import pkgutil
from pathlib import Path

import numpy as np
import onnx.backend.test.case.node as cases
import pytest

from latmod.additive import PRIOR
from latmod.errors import GraphError
from latmod.graph import Graph, read_graph
from latmod.kernels import adjusted, kernels

# Their expected outputs take 20 s to compute; every generated family pools.
_SLOW = frozenset({"averagepool", "lppool", "maxpool"})
# Control flow, sequences, optional inputs, and shapes that hang on values.
_REFUSED_SHARE = 0.06


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graph | GraphError]:
    """Read all cases; what is refused is its error."""
    for module in pkgutil.iter_modules(cases.__path__):
        if module.name not in _SLOW:
            importlib.import_module(f"{cases.__name__}.{module.name}")
    path = tmp_path_factory.mktemp("standard") / "case.onnx"
    return {case.name: _read(case.model.SerializeToString(), path) for case in cases._NodeTestCases}


def _read(model: bytes, path: Path) -> Graph | GraphError:
    path.write_bytes(model)
    try:
        return read_graph(path)
    except GraphError as error:
        return error


def test_what_is_refused_is_refused_in_one_line(graphs: dict[str, Graph | GraphError]) -> None:
    refused = {name: str(found) for name, found in graphs.items() if isinstance(found, GraphError)}
    assert len(graphs) > 1500
    assert 0 < len(refused) < _REFUSED_SHARE * len(graphs)
    for name, line in refused.items():
        assert "case.onnx: " in line, name
        assert "\n" not in line, name


def test_all_others_are_priced(graphs: dict[str, Graph | GraphError]) -> None:
    for name, graph in graphs.items():
        if not isinstance(graph, Graph):
            continue
        near = kernels(graph, "onnxruntime", isa=("avx2",))
        others = [adjusted(graph, rules, near) for rules in ("openvino", "mnn", "ncnn", "tract")]
        different = [found for found in others if found is not near]
        for found in (kernels(graph, "torch", isa=("avx2",)), near, *different):
            assert {node for kernel in found for node in kernel.nodes} <= {node.name for node in graph.nodes}, name
            prices = PRIOR.kernel_ns(found)
            assert np.all(np.isfinite(prices)), name
            assert np.all(prices > 0.0), name
