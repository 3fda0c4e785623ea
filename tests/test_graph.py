import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from exports import export_ways
from onnx import TensorProto, helper, numpy_helper

from latmod.graph import WEIGHTS_FILE, canonical, read_graph, read_inputs, strip_weights
from latmod.kernels import kernels

ONNX_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


@pytest.fixture(scope="module")
def exported() -> Path:
    return export_ways()


def run(model: bytes, weights: dict[str, np.ndarray], image: np.ndarray) -> np.ndarray:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
    options.add_external_initializers(list(weights), values)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: image})[0]


@pytest.mark.parametrize("way", ["script", "script-norms", "dynamo", "dynamo-norms"])
def test_both_exporters_read_alike(exported, way):
    graph = read_graph(exported / f"{way}.onnx")
    assert [tensor.shape for tensor in graph.inputs] == [(1, 3, 64, 64)]
    assert [tensor.shape for tensor in graph.outputs] == [(1, 10)]
    convs = [graph.tensors[node.outputs[0]].shape for node in graph.nodes if node.op == "Conv"]
    assert len(convs) == 12
    assert convs[0] == (1, 64, 32, 32)
    assert convs[-1] == (1, 512, 2, 2)
    assert not graph.shapeless
    nodes = canonical(graph).nodes
    assert sorted(node.op for node in nodes if node.op not in ("Flatten", "Reshape")) == sorted(
        ["Conv"] * 12 + ["Relu"] * 9 + ["Add"] * 4 + ["MaxPool", "GlobalAveragePool", "Gemm"]
    )


def test_canonical_twice_is_canonical_once(exported):
    once = canonical(read_graph(exported / "dynamo-norms.onnx"))
    assert canonical(once).nodes == once.nodes


@pytest.mark.parametrize("way", ["script-dynamic", "dynamo-dynamic"])
def test_shape_sets_a_symbolic_batch(exported, way):
    path = exported / f"{way}.onnx"
    graph = read_graph(path, {"x": (4, 3, 96, 64)})
    assert graph.outputs[0].shape == (4, 10)
    assert next(graph.tensors[n.outputs[0]].shape for n in graph.nodes if n.op == "Conv") == (4, 64, 48, 32)


def test_shape_overrides_a_static_batch_and_stale_shapes(exported):
    graph = read_graph(exported / "script.onnx", {"input.1": (5, 3, 96, 96)})
    assert graph.outputs[0].shape == (5, 10)


@pytest.mark.parametrize("way", ["script", "script-norms", "dynamo"])
def test_weight_free_file_is_the_same_model(exported, tmp_path, way):
    path = exported / f"{way}.onnx"
    stripped = strip_weights(path)
    assert len(stripped) < 60_000
    copy = tmp_path / path.name
    copy.write_bytes(stripped)
    assert strip_weights(copy) == stripped
    assert read_graph(copy) == msgspec.structs.replace(read_graph(path), constants=read_graph(copy).constants)
    image = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    external = {t.name for t in onnx.load(copy, load_external_data=False).graph.initializer if t.data_location}
    given = {name: value for name, value in weights.items() if name in external}
    np.testing.assert_allclose(run(stripped, given, image), run(path.read_bytes(), {}, image), rtol=1e-4, atol=1e-5)


def test_weight_free_tensors_have_places_of_their_own(exported, tmp_path):
    model = onnx.load_model_from_string(strip_weights(exported / "script-norms.onnx"))
    end = 0
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            assert place["location"] == WEIGHTS_FILE
            assert int(place["offset"]) % 64 == 0
            assert int(place["offset"]) >= end
            assert int(place["length"]) == 4 * np.prod(tensor.dims)
            end = int(place["offset"]) + int(place["length"])
    assert end > 19_000_000


def test_weight_free_file_names_no_source(exported):
    assert b"site-packages" in (exported / "dynamo.onnx").read_bytes()
    assert b"site-packages" not in strip_weights(exported / "dynamo.onnx")


def test_reading_touches_neither_weights_nor_torch(exported):
    code = (
        "import sys, resource; from pathlib import Path; from latmod.graph import read_graph\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"read_graph(Path({str(exported / 'script.onnx')!r}))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        "assert not {'torch', 'torchvision', 'sklearn', 'pandas', 'onnxruntime'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 12_000, "kilobytes; the weights alone are 20,000"


def build(nodes, initializers=(), *, inputs, outputs, ir=10, opset=20, **more) -> bytes:
    def values(shapes):
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    graph = helper.make_graph(nodes, "g", values(inputs), values(outputs), list(initializers))
    opsets = [helper.make_opsetid("", opset), *more.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, **more).SerializeToString()


def weight(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def test_initializers_among_the_inputs_are_no_inputs(tmp_path):
    path = tmp_path / "old.onnx"
    inputs = {"x": [2, 100], "w": [100, 50]}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    path.write_bytes(build(nodes, [weight("w", 100, 50)], inputs=inputs, outputs={"y": [2, 50]}, ir=3, opset=9))
    graph = read_graph(path)
    assert [tensor.name for tensor in graph.inputs] == ["x"]
    assert graph.static == {"w"}
    assert [tensor.name for tensor in read_inputs(path)] == ["x"]
    stripped = strip_weights(path)
    x = np.ones((2, 100), np.float32)
    np.testing.assert_allclose(run(stripped, {"w": np.full((100, 50), 2, np.float32)}, x), np.full((2, 50), 200.0))


def test_large_constants_become_initializers_and_indices_stay(tmp_path):
    table = numpy_helper.from_array(np.ones((300, 20), np.float32), "t")
    indices = numpy_helper.from_array(np.arange(299, -1, -1), "i")
    nodes = [
        helper.make_node("Constant", [], ["t"], value=table),
        helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(np.float32(3), "s")),
        helper.make_node("Mul", ["x", "s"], ["a"]),
        helper.make_node("MatMul", ["a", "t"], ["b"]),
        helper.make_node("Gather", ["a", "i"], ["c"], axis=1),
        helper.make_node("MatMul", ["c", "t"], ["y"]),
    ]
    path = tmp_path / "c.onnx"
    path.write_bytes(build(nodes, [indices], inputs={"x": [1, 300]}, outputs={"y": [1, 20]}))
    stripped = onnx.load_model_from_string(strip_weights(path))
    assert [node.op_type for node in stripped.graph.node] == ["Constant", "Mul", "MatMul", "Gather", "MatMul"]
    places = {tensor.name: tensor.data_location for tensor in stripped.graph.initializer}
    assert places == {"i": TensorProto.DEFAULT, "t": TensorProto.EXTERNAL}
    assert read_graph(path).constants["s"] == (3.0,)


@pytest.mark.parametrize("network", ["squeezenet", "shufflenet"])
def test_parameters_that_a_constant_stands_in_for_become_weights(network, tmp_path):
    path = ONNX_DATA / "light" / f"light_{network}.onnx"
    copy = tmp_path / path.name
    copy.write_bytes(strip_weights(path))
    stripped = onnx.load(copy, load_external_data=False).graph
    assert "ConstantOfShape" not in {node.op_type for node in stripped.node}
    weights = {tensor.name for tensor in stripped.initializer if tensor.data_location == TensorProto.EXTERNAL}
    parametric = [node for node in stripped.node if node.op_type in ("Conv", "Gemm", "BatchNormalization")]
    assert weights == {name for node in parametric for name in node.input[1:]}
    assert kernels(read_graph(copy), "torch") == kernels(read_graph(path), "torch")


def test_local_functions_are_inlined(tmp_path):
    opsets = [helper.make_opsetid("", 20)]
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "a"], ["b"])]
    function = helper.make_function("local", "ReluAdd", ["a"], ["b"], body, opsets)
    nodes = [helper.make_node("ReluAdd", ["x"], ["y"], domain="local")]
    path = tmp_path / "f.onnx"
    local = [helper.make_opsetid("local", 1)]
    path.write_bytes(build(nodes, inputs={"x": [1, 4]}, outputs={"y": [1, 4]}, functions=[function], opsets=local))
    graph = read_graph(path)
    assert [node.op for node in graph.nodes] == ["Relu", "Add"]
    assert graph.outputs[0].shape == (1, 4)


def test_shapes_that_hang_on_shape_arithmetic(tmp_path):
    """ONNX's own inference gives up on Expand of a computed shape."""
    nodes = [
        helper.make_node("Shape", ["w"], ["s"], start=0, end=1),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Expand", ["s", "one"], ["t"]),
        helper.make_node("Expand", ["zero", "t"], ["bias"]),
        helper.make_node("Add", ["x", "bias"], ["y"]),
    ]
    path = tmp_path / "e.onnx"
    zero = numpy_helper.from_array(np.float32(0), "zero")
    path.write_bytes(build(nodes, [zero, weight("w", 7, 3)], inputs={"x": [2, 7]}, outputs={"y": None}))
    graph = read_graph(path)
    assert graph.tensors["bias"].shape == (7,)
    assert "bias" in graph.static
    assert "y" not in graph.static


def test_padding_that_is_computed_and_clipped(tmp_path):
    """As exporters write TensorFlow's own way to pad, where the side is not told to them as a number."""
    nodes = [
        helper.make_node("Clip", ["wanted", "least"], ["clipped"]),
        helper.make_node("Cast", ["clipped"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Concat", ["noughts", "whole"], ["pads"], axis=0),
        helper.make_node("Pad", ["x", "pads"], ["y"]),
    ]
    given = [
        numpy_helper.from_array(np.array([-1.0, 3.0], np.float32), "wanted"),
        numpy_helper.from_array(np.float32(0), "least"),
        numpy_helper.from_array(np.zeros(2, np.int64), "noughts"),
    ]
    path = tmp_path / "p.onnx"
    path.write_bytes(build(nodes, given, inputs={"x": [2, 7]}, outputs={"y": None}))
    assert read_graph(path).outputs[0].shape == (2, 10)


def test_stale_intermediate_shapes_are_inferred_again(tmp_path):
    model = onnx.load_model_from_string(
        build(
            [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])],
            inputs={"x": [2, 3]},
            outputs={"y": [9, 9]},
        )
    )
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [9, 9]))
    onnx.save(model, tmp_path / "s.onnx")
    assert read_graph(tmp_path / "s.onnx").outputs[0].shape == (2, 3)


def test_producers_and_consumers(exported):
    graph = read_graph(exported / "script.onnx")
    assert graph.producer(graph.inputs[0].name) is None
    for node in graph.nodes:
        for name in node.outputs:
            assert graph.producer(name) is node
        for name in node.inputs:
            assert node in graph.consumers(name)


def test_reading_changes_no_file(exported):
    def digest():
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(exported.iterdir())}

    before = digest()
    for path in exported.glob("*.onnx"):
        strip_weights(path)
    assert digest() == before
