from pathlib import Path

import pytest

from latmod.errors import GraphError, LatmodError
from latmod.measuring import measure


@pytest.fixture
def models(exported_graphs: Path) -> list[Path]:
    return sorted(exported_graphs.glob("*.onnx"))[:2]


def test_every_model_is_measured_in_every_runtime(models: list[Path]) -> None:
    found = measure(models, ["fake", "onnxruntime"], rounds=2, burst_seconds=0.01)
    assert [(one.model, one.runtime) for one in found] == [
        (path.stem, name) for path in models for name in ("fake", "onnxruntime")
    ]
    for one in found:
        assert one.status == "ok"
        assert one.inputs == "images"
        assert one.latency_ms is not None
        assert one.min_ms is not None
        assert 0 < one.min_ms <= one.latency_ms
        assert one.samples >= 4


def test_what_a_runtime_cannot_run_is_a_row(
    models: list[Path], monkeypatch: pytest.MonkeyPatch, exported_graphs: Path
) -> None:
    monkeypatch.setenv("LATMOD_FAKE", "unsupported:.onnx")
    told: list[str] = []
    found = measure(models[:1], ["fake", "onnxruntime"], rounds=1, burst_seconds=0.01, notify=told.append)
    assert [one.status for one in found] == ["failed: fake cannot run it: no operator Conv", "ok"]
    assert "no operator Conv" in told[0]


def test_a_file_that_cannot_be_read_stops_before_anything_is_timed(models: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no protobuf")
    with pytest.raises(GraphError, match=r"bad\.onnx"):
        measure([*models, bad], ["fake"])


def test_an_unknown_runtime_stops_before_anything_is_timed(models: list[Path]) -> None:
    with pytest.raises(LatmodError, match="unknown runtime"):
        measure(models, ["nonsense"])


def test_a_shape_sets_batch_and_side(models: list[Path]) -> None:
    small = measure(models[:1], ["fake"], rounds=1, burst_seconds=0.01)
    large = measure(models[:1], ["fake"], rounds=1, burst_seconds=0.01, shapes={"input": (2, 3, 64, 64)})
    assert small[0].latency_ms is not None
    assert large[0].latency_ms is not None
    assert large[0].latency_ms > small[0].latency_ms


def test_a_graph_that_is_fixed_to_another_batch_stops_before_anything_is_timed(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    shape = helper.make_tensor("shape", TensorProto.INT64, [3], [1, 3, 64])
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], name="flat")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 64])],
        [shape],
    )
    path = tmp_path / "fixed.onnx"
    save(helper.make_model(graph), path)
    with pytest.raises(GraphError, match=r"fixed\.onnx: node flat .* fixed to another input shape"):
        measure([path], ["fake"], rounds=1, shapes={"x": (4, 3, 8, 8)})


def test_a_network_whose_shapes_hang_on_the_data_is_measured_at_any_shape(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["places"]), helper.make_node("Cast", ["places"], ["y"], to=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "places.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (found,) = measure([path], ["onnxruntime"], rounds=1, burst_seconds=0.01, shapes={"batch": (2,)})
    assert found.status == "ok"


def test_random_inputs_serve_where_the_input_is_no_image(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    value = [helper.make_tensor_value_info(v, TensorProto.FLOAT, [4, 16]) for v in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", value[:1], value[1:])
    path = tmp_path / "relu.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    (found,) = measure([path], ["onnxruntime"], rounds=1, burst_seconds=0.01)
    assert (found.status, found.inputs) == ("ok", "random")
