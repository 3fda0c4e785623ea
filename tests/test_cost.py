import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, defs, helper, save

from latmod.cost import FORMULAS, VIEWS, Cost, cost, parameters
from latmod.errors import GraphError
from latmod.graph import Graph, read_graph
from latmod.inspection import inspect_graph

# Small inputs where the network allows it: the oracle counts what it is given.
TORCHVISION = {
    "alexnet": 224,
    "vgg11": 224,
    "squeezenet1_1": 64,
    "squeezenet1_0": 64,
    "resnet18": 64,
    "resnet34": 64,
    "resnext50_32x4d": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 96,
    "shufflenet_v2_x0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "mobilenet_v3_large": 64,
    "mnasnet0_5": 64,
    "efficientnet_b0": 64,
    "regnet_x_400mf": 64,
    "regnet_y_400mf": 64,
    "convnext_tiny": 64,
    "vit_b_32": 224,
}


def total(graph: Graph) -> Cost:
    costs = [cost(node, graph) for node in graph.nodes]
    return Cost(
        macs=sum(c.macs for c in costs),
        flops=sum(c.flops for c in costs),
        bytes_read=sum(c.bytes_read for c in costs),
        bytes_weights=sum(c.bytes_weights for c in costs),
        bytes_written=sum(c.bytes_written for c in costs),
        params=sum(c.params for c in costs),
        known=all(c.known for c in costs),
    )


def export(model, image, path: Path, **options) -> Path:
    import torch

    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (image,), path, dynamo=False, opset_version=17, **options)
    finally:
        logging.disable(logging.NOTSET)
    return path


def build(name: str):
    import torchvision

    options = {"init_weights": False, "aux_logits": True} if name in ("googlenet", "inception_v3") else {}
    return getattr(torchvision.models, name)(**options).eval()


@pytest.fixture
def unfused_attention():
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.no_grad():
        yield
    torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.parametrize("name", TORCHVISION)
def test_macs_equal_torchs_flop_counter(name, tmp_path, unfused_attention):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    # Most can be built on meta, which draws no weights; the builders of the others compute with tensors.
    computes = name in {"regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "vit_b_32"}
    with torch.device("cpu" if computes else "meta"):
        model = build(name)
    if not computes:
        model = model.to_empty(device="cpu")
    side = TORCHVISION[name]
    image = torch.zeros(1, 3, side, side)
    graph = read_graph(export(model, image, tmp_path / "m.onnx", export_params=False, do_constant_folding=False))
    model = model.to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    counted = total(graph)
    assert counted.macs == counter.get_total_flops() // 2
    assert counted.known
    assert counted.flops > 2 * counted.macs


@pytest.mark.parametrize("name", ["ResNet18", "ResNet50"])
def test_residual_networks_equal_torchvisions_published_figures(name, tmp_path):
    import torch
    import torchvision

    published = getattr(torchvision.models, f"{name}_Weights").IMAGENET1K_V1.meta
    with torch.device("meta"):
        model = build(name.lower())
    model = model.to_empty(device="cpu")
    keep_norms = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    graph = read_graph(export(model, torch.zeros(1, 3, 224, 224), tmp_path / "m.onnx", **keep_norms))
    counted = total(graph)
    assert counted.params == published["num_params"]
    assert counted.macs / 1e9 == pytest.approx(published["_ops"], rel=1e-3)
    assert counted.bytes_weights == 4 * (counted.params + norm_statistics(graph))


def norm_statistics(graph: Graph) -> int:
    norms = [node for node in graph.nodes if node.op == "BatchNormalization"]
    return sum(graph.tensors[name].numel for node in norms for name in node.inputs[3:5])


def one(
    tmp: Path, op: str, shapes: list, *, out: str = "y", weights: dict | None = None, opset: int = 20, **attributes
):
    """Build a graph of one node over float inputs of the given shapes, then cost it."""
    weights = weights or {}
    names = [f"x{i}" for i in range(len(shapes))]
    initial = [
        helper.make_tensor(names[i], TensorProto.FLOAT, shape, bytes(4 * int(np.prod(shape))), raw=True)
        for i, shape in enumerate(shapes)
        if i in weights
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, shapes, strict=True)]
    inputs = [value for i, value in enumerate(values) if i not in weights]
    node = helper.make_node(op, names, [out], name="n", **attributes)
    graph = helper.make_graph(
        [node], "g", inputs, [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)], initial
    )
    path = tmp / "one.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    read = read_graph(path)
    return cost(read.nodes[0], read)


@pytest.fixture(scope="module")
def tmp(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("one")


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "macs"),
    [
        ("Conv", [(2, 4, 9, 9), (6, 4, 3, 3)], {}, 2 * 6 * 49 * 36),
        ("Conv", [(1, 4, 9), (6, 4, 3)], {}, 6 * 7 * 12),
        ("Conv", [(1, 4, 9, 9), (4, 1, 3, 3)], {"group": 4}, 4 * 49 * 9),
        ("ConvTranspose", [(1, 4, 5, 5), (4, 6, 2, 2)], {"strides": [2, 2]}, 25 * 4 * 6 * 4),
        ("Gemm", [(3, 5), (7, 5)], {"transB": 1}, 3 * 5 * 7),
        ("Gemm", [(5, 3), (5, 7)], {"transA": 1}, 3 * 5 * 7),
        ("MatMul", [(2, 3, 4, 5), (5, 6)], {}, 2 * 3 * 4 * 5 * 6),
        ("MatMul", [(5,), (5,)], {}, 5),
        ("Einsum", [(2, 3, 4), (2, 4, 5)], {"equation": "bij,bjk->bik"}, 2 * 3 * 4 * 5),
        ("Einsum", [(2, 3, 4), (5, 4)], {"equation": "...j,kj->...k"}, 2 * 3 * 4 * 5),
        ("LSTM", [(7, 2, 5), (1, 12, 5), (1, 12, 3)], {"hidden_size": 3}, 7 * 2 * 12 * (5 + 3)),
        ("GRU", [(7, 2, 5), (2, 9, 5), (2, 9, 3)], {"hidden_size": 3, "direction": "bidirectional"}, 7 * 2 * 2 * 9 * 8),
        ("Relu", [(2, 3)], {}, 0),
        ("Softmax", [(2, 3)], {}, 0),
        ("MaxPool", [(1, 2, 8, 8)], {"kernel_shape": [2, 2], "strides": [2, 2]}, 0),
    ],
)
def test_macs_by_hand(tmp, op, shapes, attributes, macs):
    spent = one(tmp, op, shapes, **attributes)
    assert spent.macs == macs
    assert spent.known
    assert spent.bytes_read == 4 * sum(int(np.prod(shape)) for shape in shapes)
    assert spent.flops >= 2 * macs


def test_bytes_and_params_of_a_convolution(tmp):
    spent = one(tmp, "Conv", [(1, 4, 9, 9), (6, 4, 3, 3), (6,)], weights={1: True, 2: True})
    assert spent.params == 6 * 4 * 9 + 6
    assert spent.bytes_weights == 4 * spent.params
    assert spent.bytes_read == 4 * 4 * 81 + spent.bytes_weights
    assert spent.bytes_written == 4 * 6 * 49
    assert spent.bytes_activations == 4 * 4 * 81 + 4 * 6 * 49
    assert spent.flops == 2 * spent.macs + 6 * 49


def test_attention(tmp):
    heads = one(tmp, "Attention", [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)], opset=23)
    assert heads.macs == 2 * 3 * 5 * 7 * (8 + 6)
    flat = one(tmp, "Attention", [(2, 5, 24), (2, 7, 24), (2, 7, 18)], opset=23, q_num_heads=3, kv_num_heads=3)
    assert flat.macs == heads.macs


def test_views_and_load_time_nodes_cost_nothing(tmp):
    assert one(tmp, "Flatten", [(2, 3, 4)]) == Cost()
    assert one(tmp, "Identity", [(2, 3)]) == Cost()
    assert one(tmp, "Add", [(2, 3), (3,)], weights={0: True, 1: True}) == Cost()


def over_a_table(path: Path, nodes: list) -> Graph:
    """Read a graph that makes `y` of three `ids` and a `table` of 1000 x 8 weights."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [helper.make_tensor("table", TensorProto.FLOAT, [1000, 8], bytes(32000), raw=True)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return read_graph(path)


def test_slices_read_what_they_write(tmp):
    read = over_a_table(tmp / "g.onnx", [helper.make_node("Gather", ["table", "ids"], ["y"])])
    spent = cost(read.nodes[0], read)
    assert spent.bytes_read == 3 * 8 * 4 + 3 * 8
    assert spent.bytes_weights == 3 * 8 * 4
    assert spent.params == 8000


def test_weights_that_several_nodes_read_are_counted_once(tmp):
    """As those of an embedding that the last layer is tied to, transposed, under another name."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Identity", ["table"], ["same"]),
        helper.make_node("Transpose", ["same"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["logits"]),
        helper.make_node("MatMul", ["logits", "same"], ["y"]),
    ]
    read = over_a_table(tmp / "tied.onnx", nodes)
    assert parameters(read) == 8000
    assert inspect_graph(read).totals.params == 8000
    assert sum(cost(node, read).params for node in read.nodes) == 24000


def test_operators_without_formula_are_costed_by_bytes(tmp):
    spent = one(tmp, "Det", [(4, 5, 5)])
    assert not spent.known
    assert spent.flops > 0
    assert spent.bytes_read == 400
    assert spent.bytes_written == 16


def test_nonsense_is_refused_by_name(tmp):
    with pytest.raises(GraphError, match=r"'n' \(Conv\)"):
        one(tmp, "Conv", [(1, 4, 9, 9), (6, 5, 3, 3)])


def test_formulas_cover_the_standard():
    """What is left out either runs a subgraph, holds sequences or strings, or has data-dependent shapes."""
    left_out = {
        "AffineGrid", "BitCast", "CausalConvWithState", "Det", "ImageDecoder", "LinearAttention", "MelWeightMatrix",
        "Multinomial", "NonMaxSuppression", "NonZero", "SwiGLU",
        "If", "Loop", "Scan", "SequenceMap",
        "ConcatFromSequence", "OptionalGetElement", "OptionalHasElement", "SequenceAt", "SequenceConstruct",
        "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength", "SplitToSequence",
        "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
    }  # fmt: skip
    standard = {schema.name for schema in defs.get_all_schemas() if schema.domain == ""}
    assert standard - set(FORMULAS) - VIEWS <= left_out
    assert not set(FORMULAS) & VIEWS


channels = st.integers(1, 40)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 5), cin=channels, cout=channels, side=st.integers(3, 20), kernel=st.sampled_from([1, 3]))
def test_costs_are_linear_in_batch_and_grow_with_width_and_resolution(tmp, batch, cin, cout, side, kernel):
    def conv(n, i, o, s):
        return one(tmp, "Conv", [(n, i, s, s), (o, i, kernel, kernel)], weights={1: True})

    base, single = conv(batch, cin, cout, side), conv(1, cin, cout, side)
    assert base.macs == batch * single.macs
    assert base.flops == batch * single.flops
    assert base.bytes_activations == batch * single.bytes_activations
    assert base.bytes_weights == single.bytes_weights
    for larger in (
        conv(batch, cin + 1, cout, side),
        conv(batch, cin, cout + 1, side),
        conv(batch, cin, cout, side + 1),
    ):
        assert larger.macs > base.macs
        assert larger.bytes_activations > base.bytes_activations
        assert larger.params >= base.params


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), inner=channels, columns=channels, batch=st.integers(1, 6))
def test_matrix_products_are_linear_in_every_size(tmp, rows, inner, columns, batch):
    spent = one(tmp, "MatMul", [(batch, rows, inner), (inner, columns)])
    assert spent.macs == batch * rows * inner * columns
    assert spent.flops == 2 * spent.macs
