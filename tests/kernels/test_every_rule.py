"""What holds of the kernels of any network by any runtime's rules."""

from pathlib import Path

import pytest

from latmod.graph import Graph, read_graph
from latmod.kernels import kernels

GRAPHS = Path(__file__).parents[2] / "datasets" / "kernels-spr" / "graphs"
_OF_EACH = 3


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    """Return the smallest graphs of every generated family."""
    families: dict[str, list[Path]] = {}
    for path in sorted(GRAPHS.glob("*.onnx"), key=lambda path: path.stat().st_size):
        families.setdefault(path.name.partition("-")[0], []).append(path)
    assert len(families) == 17
    return {path.stem: read_graph(path) for own in families.values() for path in own[:_OF_EACH]}


@pytest.mark.parametrize("rules", ["torch", "onnxruntime", "openvino", "mnn", "ncnn", "tract"])
@pytest.mark.parametrize("isa", [("avx2",), ("avx512f",)], ids=["avx2", "avx512"])
def test_every_node_is_done_once_at_most(graphs: dict[str, Graph], rules: str, isa: tuple[str, ...]) -> None:
    for name, graph in graphs.items():
        found = kernels(graph, rules, isa=isa)
        done = [node for kernel in found for node in kernel.nodes]
        assert len(done) == len({*done}), name
        assert {*done} <= {node.name for node in graph.nodes}, name
        assert all(number >= 0.0 for kernel in found for number in kernel.numbers), name


@pytest.mark.parametrize("rules", ["torch", "openvino", "mnn", "ncnn", "tract"])
def test_only_convolutions_are_convolutions(graphs: dict[str, Graph], rules: str) -> None:
    """Where nothing keeps to blocks of channels: onnxruntime makes convolutions of norms to stay in its own."""
    norms = 0
    for graph in graphs.values():
        ops = {node.name: node.op for node in graph.nodes}
        for kernel in kernels(graph, rules, isa=("avx512f",)):
            if "Conv" in kernel.kind:
                assert any("Conv" in ops[node] for node in kernel.nodes), kernel.label
            elif kernel.kind == "BatchNormalization":
                norms += 1
                assert kernel.number("steps") >= 2.0 * kernel.number("numel_out") > 0.0
                assert kernel.number("macs") == 0.0
    assert norms


@pytest.mark.parametrize("rules", ["openvino", "mnn", "ncnn", "tract"])
def test_resizes_are_of_one_kind_whatever_stands_in_blocks_in_onnxruntime(graphs: dict[str, Graph], rules: str) -> None:
    """OpenVINO told 173 by one name and 32 by the other; SegFormer was priced 31 % too long by the other alone."""
    resizes = 0
    for name, graph in graphs.items():
        blocked, plain = (
            [(kernel.kind, kernel.numbers, kernel.outputs) for kernel in kernels(graph, rules, isa=isa) if kernel.nodes]
            for isa in (("avx512f",), ())
        )
        resized = [one for one in blocked if one[0].startswith("Resize")]
        assert resized == [one for one in plain if one[0].startswith("Resize")], name
        assert not [kind for kind, *_ in blocked if "Upsample" in kind], name
        resizes += len(resized)
    assert resizes
