"""Layers without names: what they write says which nodes they are."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from latmod.graph import Graph, read_graph
from latmod.runtimes.recognising import Figures, Layer, Recognised, figures, file_figures, recognise

TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,4,6,6] x) => (float[6,6,4] rows)
<float[4,4,3,3] w, float[4] b>
{
    [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    [act] a = Relu (c)
    [sum] s = Add (a, x)
    [turn] t = Transpose <perm = [0, 2, 3, 1]> (s)
    [flat] rows = Squeeze (t)
}
"""


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> tuple[Graph, dict[str, Figures], np.ndarray]:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(TEXT)
    del model.graph.initializer[:]
    for name, shape in (("w", (4, 4, 3, 3)), ("b", (4,))):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        )
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save_model(model, str(path))
    graph = read_graph(path)
    x = rng.standard_normal((1, 4, 6, 6)).astype(np.float32)
    known = file_figures(Path(path), graph, {"x": x})
    assert not path.with_name("marked.onnx").exists()
    return graph, known, x


def test_figures_are_those_that_numpy_gives_and_the_order_is_nothing_to_them() -> None:
    value = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    found = figures(value)
    assert (found.dims, found.numel) == ((2, 3, 4), 24)
    assert found.spread == pytest.approx((np.sqrt((value**2).mean()), 11.5, 0.0, 23.0))
    assert figures(value.transpose(0, 3, 1, 2)).spread == pytest.approx(found.spread)


def test_the_file_is_run_node_by_node(case: tuple[Graph, dict[str, Figures], np.ndarray]) -> None:
    _, known, _ = case
    assert list(known) == ["c", "a", "s", "t", "rows"]
    assert known["a"].spread[2] == 0.0 > known["c"].spread[2]
    assert known["t"].dims == (6, 6, 4)


def test_a_layer_stands_for_all_nodes_between_what_it_reads_and_what_it_writes(
    case: tuple[Graph, dict[str, Figures], np.ndarray],
) -> None:
    graph, known, _ = case
    layers = [
        Layer(reads=(0,), writes={1: known["a"]}),
        Layer(reads=(1, 0), writes={2: known["s"]}),
        Layer(reads=(2,), writes={3: known["rows"]}),
    ]
    found = recognise(graph, known, layers, [0])
    assert [sorted(one.nodes) for one in found] == [["act", "conv"], ["sum"], ["turn"]]


def test_what_only_changes_form_moves_its_input_and_what_no_node_writes_belongs_to_its_reader(
    case: tuple[Graph, dict[str, Figures], np.ndarray],
) -> None:
    graph, known, _ = case
    flat = Figures(dims=(36, 4), spread=known["a"].spread)
    strange = Figures(dims=(4, 6, 6), spread=(1.0, 9.0, 9.0, 9.0))
    layers = [
        Layer(reads=(0,), writes={1: strange}),
        Layer(reads=(1,), writes={2: known["a"]}),
        Layer(reads=(2,), writes={3: flat}),
    ]
    found = recognise(graph, known, layers, [0])
    assert found[0] == Recognised(nodes=())
    assert sorted(found[1].nodes) == ["act", "conv"]
    assert found[2] == Recognised(nodes=(), moved="a")


def test_a_value_is_not_taken_for_one_that_needs_what_was_not_read(
    case: tuple[Graph, dict[str, Figures], np.ndarray],
) -> None:
    graph, known, _ = case
    layers = [Layer(reads=(), writes={1: known["s"]})]
    assert recognise(graph, known, layers, [0]) == [Recognised(nodes=())]
