"""Whatever a file holds, reading it gives a graph or one line."""

import math
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latmod.errors import GraphError, LatmodError
from latmod.features import graph_features
from latmod.graph import read_graph, strip_weights
from latmod.inspection import inspect_graph
from latmod.predicting import predict

ONNX_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"


def save(
    path: Path, nodes: list, *, inputs: dict | None = None, output: str = "y", initializers: list | None = None, **model
):
    values = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (inputs or {"x": [1, 3, 8, 8]}).items()
    ]
    graph = helper.make_graph(
        nodes, "g", values, [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], initializers or []
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10, **model), path)
    return path


def refusal(path: Path, **kwargs) -> str:
    with pytest.raises(GraphError) as caught:
        read_graph(path, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def outcome(path: Path) -> str:
    """Put a file through everything that reads it; give the message of the refusal, if any."""
    try:
        graph = read_graph(path)
        graph_features(graph)
        inspect_graph(graph)
        strip_weights(path)
    except GraphError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"this is not a protobuf at all, it is just text", "not an ONNX model"),
        (bytes(1000), "not an ONNX model"),
        (os.urandom(10), ""),
        (b"\x08\x07", "without a graph"),
        (b"\x3a\x00", "without a graph"),
        (b"\xff" * 100, "malformed"),
        (b"\x3a\xff\xff\xff\xff\x07", "truncated"),
    ],
)
def test_not_a_model(tmp_path, content, words):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    assert words in refusal(path)


def test_truncated_model(tmp_path):
    whole = save(tmp_path / "whole.onnx", [helper.make_node("Relu", ["x"], ["y"])]).read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(whole)):
        path.write_bytes(whole[:size])
        assert "\n" not in outcome(path)


def test_folder_missing_and_huge(tmp_path):
    assert "folder" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "none.onnx")
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate(2**31 + 1)
    assert "over 2 GB" in refusal(huge)


def test_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "regular file" in refusal(tmp_path / "pipe.onnx")


def external(location: str, length: int = 8) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[length // 4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_external_data_outside_the_folder_is_refused_and_never_read(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"\0" * 8)
    (folder / "link.bin").symlink_to(secret)
    before = secret.stat().st_atime_ns
    for location in (str(secret), "../secret.bin", "sub/../../secret.bin", "link.bin", ""):
        node = helper.make_node("Add", ["x", "w"], ["y"])
        path = save(folder / "m.onnx", [node], inputs={"x": [1, 2]}, initializers=[external(location)])
        assert "outside the model's folder" in refusal(path)
        with pytest.raises(GraphError, match="refused"):
            strip_weights(path)
    assert secret.stat().st_atime_ns == before


def test_external_data_in_an_attribute_that_says_it_holds_a_number_is_refused_too(tmp_path):
    node = helper.make_node("Own", ["x"], ["y"], domain="mine")
    node.attribute.add(name="value", type=onnx.AttributeProto.INT, t=external("../secret.bin"))
    assert "outside the model's folder" in refusal(save(tmp_path / "m.onnx", [node]))


def test_an_impossible_shape_that_a_file_states_is_refused(tmp_path):
    path = save(tmp_path / "m.onnx", [helper.make_node("Own", ["x"], ["y"], domain="mine")])
    model = onnx.load(path)
    model.graph.value_info.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [2**50]))
    onnx.save(model, path)
    assert "impossible shape" in refusal(path)


def test_missing_external_file_is_fine(tmp_path):
    node = helper.make_node("Add", ["x", "w"], ["y"])
    for length in (8, 8 << 20):
        inputs = {"x": [1, length // 4]}
        path = save(tmp_path / "m.onnx", [node], inputs=inputs, initializers=[external("gone.bin", length)])
        assert read_graph(path).outputs[0].shape == (1, length // 4)


def test_control_flow_gives_one_line(tmp_path):
    branch = helper.make_graph([], "b", [], [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    assert "subgraph" in refusal(save(tmp_path / "if.onnx", [node], inputs={"c": [1]}))


def test_dynamic_shape_names_the_input_and_the_option(tmp_path):
    path = save(tmp_path / "d.onnx", [helper.make_node("Relu", ["x"], ["y"])], inputs={"x": ["n", 3]})
    message = refusal(path)
    assert "'x'" in message
    assert "--shape" in message
    assert read_graph(path, shapes={"x": (4, 3)}).outputs[0].shape == (4, 3)
    assert "'z'" in refusal(path, shapes={"z": (4, 3)})
    assert "2 dims" in refusal(path, shapes={"x": (4, 3, 2)})
    assert "at least 1" in refusal(path, shapes={"x": (0, 3)})


def test_free_dims_are_set_by_their_names_in_every_input(tmp_path):
    """As in what Hugging Face exports: three inputs of (batch, sequence)."""
    inputs = {"ids": ["batch", "sequence"], "mask": ["batch", "sequence"]}
    path = save(tmp_path / "named.onnx", [helper.make_node("Add", ["ids", "mask"], ["y"])], inputs=inputs)
    message = refusal(path)
    assert "'ids'" in message
    assert "'mask'" in message
    options = re.findall(r"--shape (\w+)=(\d+)", message)
    assert [name for name, _ in options] == ["batch", "sequence"]
    told = {name: (int(size),) for name, size in options}
    assert read_graph(path, shapes=told).outputs[0].shape == (1, 128)
    assert read_graph(path, shapes=told | {"ids": (1, 128)}).outputs[0].shape == (1, 128)
    assert "'mask'" in refusal(path, shapes={"ids": (1, 64)})
    assert "free dims: batch, sequence" in refusal(path, shapes={"length": (1,)})
    assert "one number" in refusal(path, shapes={"batch": (1, 128)})
    assert "one number" in refusal(path, shapes={"batch": (0,)})


def test_what_is_proposed_for_a_free_shape_keeps_what_is_known(tmp_path):
    node = [helper.make_node("Relu", ["x"], ["y"])]
    for dims, proposed in ((["n", 1, None, 40], "1x1x224x40"), ([None, None], "1x128")):
        path = save(tmp_path / "kept.onnx", node, inputs={"x": dims})
        assert f"--shape x={proposed}" in refusal(path)


def test_data_dependent_shape_names_the_node(tmp_path):
    nodes = [helper.make_node("NonZero", ["x"], ["n"], name="find"), helper.make_node("Cast", ["n"], ["y"], to=1)]
    message = refusal(save(tmp_path / "n.onnx", nodes))
    assert "find" in message
    assert "NonZero" in message


def test_order_and_duplicates(tmp_path):
    relu = helper.make_node("Relu", ["a"], ["y"])
    assert "nothing computed before" in refusal(
        save(tmp_path / "o.onnx", [relu, helper.make_node("Relu", ["x"], ["a"])])
    )
    twice = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["y"])]
    refusal(save(tmp_path / "t.onnx", twice))


def test_shapes_that_contradict_the_operator(tmp_path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 5, 3, 3], bytes(4 * 5 * 9 * 4), raw=True)
    path = save(tmp_path / "c.onnx", [helper.make_node("Conv", ["x", "w"], ["y"], name="c1")], initializers=[weight])
    with pytest.raises(GraphError, match="c1"):
        graph_features(read_graph(path))


def test_a_baked_in_batch_is_refused_not_ignored(tmp_path):
    target = numpy_helper.from_array(np.array([1, 192]), "t")
    path = save(
        tmp_path / "r.onnx", [helper.make_node("Reshape", ["x", "t"], ["y"], name="flat")], initializers=[target]
    )
    assert read_graph(path).outputs[0].shape == (1, 192)
    assert "flat" in refusal(path, shapes={"x": (2, 3, 8, 8)})


def test_unknown_domain_is_allowed_and_never_free(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Magic", ["a"], ["b"], domain="mine"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    graph = read_graph(save(tmp_path / "u.onnx", nodes))
    assert graph.shapeless == {"b", "y"}
    inspection = inspect_graph(graph)
    assert inspection.unknown_ops == {"Relu": 1, "mine::Magic": 1}
    assert 0.5 < inspection.unknown_share < 1
    assert all(row.bytes_written > 0 for row in inspection.nodes)
    assert graph_features(graph)["unknown_nodes"] == 2


@pytest.mark.parametrize("path", sorted(ONNX_DATA.rglob("*.onnx")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_file_of_the_onnx_package(path):
    message = outcome(path)
    assert "\n" not in message
    assert not message or path.parent.name != "light"


def mutate(content: bytes, rng: random.Random) -> bytes:
    mutant = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at, size = rng.randrange(len(mutant)), rng.choice([1, 2, 8, 64])
        match rng.randrange(6):
            case 0:
                mutant[at:at] = mutant[at : at + 4 * size]
            case 1:
                mutant[at:at] = rng.randbytes(size)
            case 2:
                del mutant[at : at + size]
            case 3:
                mutant[at] = rng.choice([0x00, 0x7F, 0xFF])
            case _:
                mutant[at] ^= 1 << rng.randrange(8)
        if not mutant:
            break
    return bytes(mutant)


def test_mutated_files_give_a_graph_or_one_line(tmp_path):
    rng = random.Random(7)
    names = ["light_squeezenet", "light_resnet50", "light_shufflenet"]
    originals = [(ONNX_DATA / "light" / f"{name}.onnx").read_bytes() for name in names]
    originals += [path.read_bytes() for path in sorted((ONNX_DATA / "simple").rglob("*.onnx"))]
    path = tmp_path / "mutant.onnx"
    for _ in range(800):
        path.write_bytes(mutate(rng.choice(originals), rng))
        start = time.perf_counter()
        assert "\n" not in outcome(path)
        assert time.perf_counter() - start < 20


def test_mutated_files_are_predicted_or_refused_in_one_line(tmp_path):
    rng = random.Random(8)
    original = (ONNX_DATA / "light" / "light_resnet50.onnx").read_bytes()
    path = tmp_path / "mutant.onnx"
    answered = 0
    for _ in range(150):
        path.write_bytes(mutate(original, rng))
        start = time.perf_counter()
        message, found = "", []
        try:
            found = predict(path)
        except LatmodError as error:
            message = str(error)
        answered += bool(found)
        assert "\n" not in message
        assert all(0 < one.low_ms <= one.latency_ms <= one.high_ms < math.inf for one in found)
        assert time.perf_counter() - start < 20
    assert answered


def test_reading_noise_takes_bounded_memory(tmp_path):
    """A file whose lengths promise gigabytes is refused without asking for them."""
    path = tmp_path / "greedy.onnx"
    # Field 7 (the graph) says that it has 2 GB, in a file of 20 bytes.
    path.write_bytes(b"\x08\x08\x3a\xff\xff\xff\xff\x07" + bytes(12))
    code = (
        "import resource, sys\nfrom pathlib import Path\nresource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))\n"
        "from latmod.errors import GraphError\nfrom latmod.graph import read_graph\n"
        f"try:\n    read_graph(Path({str(path)!r}))\nexcept GraphError:\n    sys.exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
