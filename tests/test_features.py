import math
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from exports import export_ways
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_resnets import ResNetWriter, write_resnet

from latmod.cost import cost
from latmod.features import CONV_CLASSES, FEATURES, graph_features
from latmod.graph import canonical, read_graph, strip_weights
from latmod.residual import NotResidual, ResidualShape, residual_shape

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def features(path: Path) -> dict[str, float]:
    return graph_features(read_graph(path))


@pytest.fixture(scope="module")
def tmp(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.mark.parametrize("way", ["script-norms", "script-trained", "dynamo", "dynamo-norms"])
def test_features_are_the_same_for_both_exporters_and_folded_norms(way, tmp):
    folder = export_ways()
    expected = features(folder / "script.onnx")
    assert features(folder / f"{way}.onnx") == expected
    stripped = tmp / "stripped.onnx"
    stripped.write_bytes(strip_weights(folder / f"{way}.onnx"))
    assert features(stripped) == expected
    assert expected["is_residual"] == 1
    assert [expected[f"blocks{stage}"] for stage in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert expected["width"] == 64


@pytest.mark.parametrize("way", ["script-dynamic", "dynamo-dynamic"])
def test_features_of_a_batch_that_was_set(way, tmp):
    graph = read_graph(export_ways() / f"{way}.onnx", {"x": (4, 3, 64, 64)})
    shape = residual_shape(graph)
    assert isinstance(shape, ResidualShape)
    assert shape.batch == 4
    plain = write_resnet(tmp / "b.onnx", width=64, batch=4)
    assert graph_features(graph) == features(plain)


BIG = st.tuples(st.integers(1, 12), st.integers(1, 32), st.integers(1, 144), st.integers(1, 12))
SMALL = st.tuples(*[st.integers(1, 3)] * 4)


@settings(max_examples=40, deadline=None)
@given(
    block=st.sampled_from(["basic", "bottleneck"]),
    blocks=SMALL | BIG,
    width=st.integers(1, 192) | st.just(1),
    norms=st.sampled_from(["folded", "kept", "no bias"]),
    dynamo=st.booleans(),
    side=st.sampled_from([32, 64, 97, 160, 224]),
    batch=st.integers(1, 3),
    classes=st.integers(1, 1000),
)
def test_residual_shape_is_read_back(tmp, block, blocks, width, norms, dynamo, side, batch, classes):
    spec = {"block": block, "blocks": blocks, "width": width, "side": side, "batch": batch, "classes": classes}
    shape = residual_shape(read_graph(write_resnet(tmp / "r.onnx", norms=norms, dynamo=dynamo, **spec)))
    assert shape == ResidualShape(widen=1.0, **spec)


@pytest.mark.parametrize(("width", "widen"), [(64, 2.0), (1, 2.0), (3, 1.5), (5, 1.3), (64, 0.5), (7, 0.25)])
def test_widened_bottlenecks(tmp, width, widen):
    path = write_resnet(tmp / "w.onnx", block="bottleneck", blocks=(2, 1, 2, 1), width=width, widen=widen)
    shape = residual_shape(read_graph(path))
    assert isinstance(shape, ResidualShape)
    assert (shape.width, shape.blocks) == (width, (2, 1, 2, 1))
    # Widths are whole numbers, so a share of them says no more than the widest stage shows.
    assert shape.widen == int(8 * width * widen) / (8 * width)


@settings(max_examples=15, deadline=None)
@given(
    block=st.sampled_from(["basic", "bottleneck"]),
    blocks=SMALL,
    width=st.integers(1, 100),
    side=st.sampled_from([32, 65, 224]),
    seed=st.integers(0, 1000),
)
def test_features_depend_on_nothing_but_the_network(tmp, block, blocks, width, side, seed):
    spec = {"block": block, "blocks": blocks, "width": width, "side": side}
    expected = features(write_resnet(tmp / "a.onnx", **spec))
    assert list(expected) == list(FEATURES)
    assert all(type(value) is float for value in expected.values())
    for form in ({"norms": "kept", "dynamo": True}, {"norms": "no bias"}, {"tag": "other"}):
        assert features(write_resnet(tmp / "b.onnx", **spec, **form)) == expected
    assert features(shuffled(tmp / "a.onnx", seed)) == expected


def shuffled(path: Path, seed: int) -> Path:
    """Write the same graph with its nodes in another topological order, and sums the other way round."""
    rng = random.Random(seed)
    model = onnx.load(path, load_external_data=False)
    waiting = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    known = {"x"} | {tensor.name for tensor in model.graph.initializer}
    del model.graph.node[:]
    while waiting:
        node = rng.choice([node for node in waiting if known.issuperset(node.input)])
        waiting.remove(node)
        known.update(node.output)
        if node.op_type == "Add" and rng.random() < 0.5:
            node.input[0], node.input[1] = node.input[1], node.input[0]
        model.graph.node.append(node)
    tensors = list(model.graph.initializer)
    rng.shuffle(tensors)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    onnx.save(model, path.with_name("shuffled.onnx"))
    return path.with_name("shuffled.onnx")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("bvlc_alexnet", "7x7"),
        ("vgg19", "7x7"),
        ("squeezenet", "7x7"),
        ("shufflenet", "7x7"),
        ("inception_v1", "LRN"),
        ("densenet121", "Mul"),
    ],
)
def test_other_networks_are_not_residual_and_say_why(name, word):
    graph = read_graph(LIGHT / f"light_{name}.onnx")
    shape = residual_shape(graph)
    assert isinstance(shape, NotResidual)
    assert word in shape.reason
    row = graph_features(graph)
    assert row["is_residual"] == row["width"] == row["blocks1"] == 0
    assert row["macs"] > 0


def test_a_residual_network_of_other_numbers_is_none_of_those_measured(tmp):
    path = write_resnet(tmp / "half.onnx", block="basic", blocks=(1, 1, 1, 1), width=8, side=64, classes=10)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.data_type = onnx.TensorProto.FLOAT16
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, path)
    shape = residual_shape(read_graph(path))
    assert shape == NotResidual(reason="it computes in float16, not in float32")


def test_an_older_exporter_writes_the_same_network(tmp):
    shape = residual_shape(read_graph(LIGHT / "light_resnet50.onnx"))
    assert shape == ResidualShape(
        block="bottleneck", blocks=(3, 4, 6, 3), width=64, widen=1.0, side=224, batch=1, classes=1000
    )
    spec = {"block": "bottleneck", "blocks": (3, 4, 6, 3), "width": 64, "side": 224, "classes": 1000}
    row, expected = features(LIGHT / "light_resnet50.onnx"), features(write_resnet(tmp / "f.onnx", **spec))
    # It ends in a Softmax; all else is equal.
    assert {name for name in FEATURES if row[name] != expected[name]} == {
        "flops", "activation_bytes", "nodes", "count_other", "activation_bytes_other",
    }  # fmt: skip


def test_variants_of_residual_networks_say_what_is_different(tmp):
    def reason(**spec) -> str:
        shape = residual_shape(read_graph(write_resnet(tmp / "v.onnx", **spec)))
        assert isinstance(shape, NotResidual)
        return shape.reason

    assert "grouped" in reason(block="bottleneck", group=2)
    assert "dilated" in reason(block="bottleneck", dilation=2)
    assert "3 stages" in reason(blocks=(1, 1, 1))
    assert "5 stages" in reason(blocks=(1, 1, 1, 1, 1))


def test_totals_are_those_of_the_nodes(tmp):
    graph = canonical(read_graph(write_resnet(tmp / "t.onnx", block="bottleneck", width=20)))
    row = graph_features(graph)
    costs = [cost(node, graph) for node in graph.nodes]
    assert row["macs"] == sum(spent.macs for spent in costs)
    assert row["params"] == sum(spent.params for spent in costs)
    assert row["weight_bytes"] == 4 * row["params"]
    assert row["activation_bytes"] == sum(spent.bytes_activations for spent in costs)
    assert row["depth"] == 1 + 3 * 4 + 1
    kinds = ("conv", "add", "relu", "pool", "gemm", "other")
    assert sum(row[f"count_{kind}"] for kind in kinds) == row["nodes"]
    assert sum(row[f"activation_bytes_{kind}"] for kind in kinds) == row["activation_bytes"]
    for parts in (
        ("conv1x1", "conv3x3", "conv_other", "depthwise", "grouped"),
        ("side2", "side4", "side8", "side16", "side32"),
    ):
        assert sum(row[f"macs_{part}"] for part in parts) == row["macs"] - row["macs_gemm"]
        assert sum(row[f"count_{part}"] for part in parts) == row["count_conv"]
        assert sum(row[f"weight_bytes_{part}"] for part in parts) == row["weight_bytes"] - row["weight_bytes_gemm"]


def single(
    tmp: Path, cin: int, cout: int, kernel: int, *, side: int = 64, stride: int = 1, batch: int = 1, group: int = 1
):
    writer = ResNetWriter()
    y = writer.node("Flatten", writer.conv(writer.conv("x", 3, cin, 1), cin, cout, kernel, stride, group))
    size = cout * math.ceil(side / stride) ** 2
    row = features(writer.save(tmp / "s.onnx", output=y, side=side, batch=batch, classes=size))
    first = features_of_first(tmp, cin, side, batch)
    return {name: row[f"count_{name}"] - first[f"count_{name}"] for name in CONV_CLASSES}, row


def features_of_first(tmp: Path, cin: int, side: int, batch: int):
    writer = ResNetWriter()
    y = writer.node("Flatten", writer.conv("x", 3, cin, 1))
    return features(writer.save(tmp / "s1.onnx", output=y, side=side, batch=batch, classes=cin * side * side))


@pytest.mark.parametrize(
    ("spec", "classes"),
    [
        ((16, 16, 3), {"conv3x3", "conv3x3_stride1", "side2"}),
        ((16, 16, 1), {"conv1x1", "conv1x1_stride1", "side2"}),
        ((17, 16, 1), {"conv1x1", "conv1x1_stride1", "conv_in_not4", "side2"}),
        ((10, 8, 3), {"conv3x3", "conv3x3_stride1", "conv_in_8to15", "conv_in_not4", "conv_out_not16", "side2"}),
        ((6, 9, 5), {"conv_other", "conv_in_under8", "conv_out_not8", "conv_out_not16", "side2"}),
    ],
)
def test_classes_of_one_convolution(tmp, spec, classes):
    counts, _ = single(tmp, *spec)
    assert {name for name, count in counts.items() if count} == classes


def test_classes_by_group_stride_size_and_batch(tmp):
    def of(*spec, **more):
        return {name for name, count in single(tmp, *spec, **more)[0].items() if count}

    assert "depthwise" in of(32, 32, 3, group=32)
    assert "grouped" in of(32, 32, 3, group=4)
    assert {"strided", "side4"} <= of(32, 32, 3, stride=4)
    # 32 * 25 * 25 is 20,000 elements: at most 20,480 is small. A batch, or a large kernel, never is.
    assert "conv_small_input" in of(32, 32, 3, side=25)
    assert "conv_small_input" not in of(32, 32, 3, side=26)
    assert "conv_small_input" not in of(32, 32, 3, side=16, batch=2)
    assert "conv_small_input" not in of(32, 32, 5, side=16)
    assert "conv_small_input" in of(32, 32, 1, side=16, stride=2)
    assert "conv1x1_stride1" not in of(32, 32, 1, side=8, batch=16)


def test_padded_macs_and_weights_beyond_the_cache(tmp):
    _, row = single(tmp, 10, 20, 3, side=16)
    assert row["macs_padded8"] == 256 * (8 * 16 + 9 * 16 * 24)
    assert row["macs_padded16"] == 256 * (16 * 16 + 9 * 16 * 32)
    assert row["weight_bytes_over_l2"] == 0
    _, row = single(tmp, 256, 256, 3, side=16)
    assert row["weight_bytes_over_l2"] == 4 * (256 * 256 * 9 + 256) - 512 * 1024


@settings(max_examples=10, deadline=None)
@given(width=st.integers(2, 100), side=st.sampled_from([64, 128]), block=st.sampled_from(["basic", "bottleneck"]))
def test_work_grows_with_width_depth_and_resolution_and_is_linear_in_batch(tmp, width, side, block):
    def row(**change):
        return features(write_resnet(tmp / "m.onnx", **({"block": block, "width": width, "side": side} | change)))

    base, double = row(), row(batch=2)
    for name in ("macs", "flops", "activation_bytes"):
        assert double[name] == 2 * base[name]
        assert row(width=width + 1)[name] > base[name]
        assert row(blocks=(1, 1, 2, 1))[name] > base[name]
        assert row(side=2 * side)[name] > base[name]
    assert double["params"] == base["params"]


def test_every_feature_is_documented():
    assert all(meaning and meaning[0] != " " for meaning in FEATURES.values())
    assert len(set(FEATURES.values())) == len(FEATURES)
    assert np.isfinite(list(features(LIGHT / "light_resnet50.onnx").values())).all()
