"""What ncnn does otherwise than onnxruntime, whose rules it shares."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from latmod.dataset import DatasetFolder
from latmod.graph import read_graph
from latmod.kernels import kernels, refused

GRAPHS = Path(__file__).parents[2] / "datasets" / "zoo" / "graphs"


def test_rows_that_become_an_image_are_copied() -> None:
    """In ConvNeXt each block has two products over the pixels of an image, and goes back to images after both.

    Rows are kept together in fours, but where their number leaves some over, as that of the last stage: 7 x 7.
    """
    graph = read_graph(GRAPHS / "convnext_tiny.onnx")
    own, like = (kernels(graph, rules, isa=("avx2",)) for rules in ("ncnn", "onnxruntime"))
    copied = [kernel for kernel in own if kernel.kind == "RowsToImage"]
    products = [kernel.number("rows") for kernel in like if kernel.op == "Gemm" and kernel.number("rows") > 1]
    assert len(copied) == len([rows for rows in products if rows % 4 == 0]) < len(products)
    assert all(kernel.number("bytes_out") > 0 for kernel in copied)


def test_nothing_that_onnxruntime_puts_in_is_left() -> None:
    graph = read_graph(GRAPHS / "convnext_tiny.onnx")
    own, like = (kernels(graph, rules, isa=("avx2",)) for rules in ("ncnn", "onnxruntime"))
    others = [kernel for kernel in own if kernel.kind != "RowsToImage"]
    expected = [kernel for kernel in like if kernel.nodes]
    assert [(one.kind, one.nodes, one.numbers) for one in others] == [
        (one.kind, one.nodes, one.numbers) for one in expected
    ]


def test_rows_that_stay_rows_are_not() -> None:
    found = kernels(read_graph(GRAPHS / "vit_b_16.onnx"), "ncnn", isa=("avx2",))
    assert "RowsToImage" not in {kernel.kind for kernel in found}


@pytest.mark.parametrize("name", ["hybrid-66666-w197-d3-s224", "hybrid-38461-w162-d3-s160"])
def test_rows_that_the_graph_itself_reshapes_are_not(name: str) -> None:
    """SegFormer's form: tokens go through a product as a matrix, and the graph makes an image of them behind it.

    Told by ncnn of the first of the two: 2.3 ns an element, for 129 behind ConvNeXt's products (kernels-engines-spr).
    """
    graph = read_graph(GRAPHS.parents[1] / "kernels-spr" / "graphs" / f"{name}.onnx")
    found = kernels(graph, "ncnn", isa=("avx2",))
    assert "RowsToImage" not in {kernel.kind for kernel in found}
    reshaped = [one for one in found if one.op == "Reshape" and len(one.inputs[0]) == 2 and len(one.outputs[0]) == 4]
    assert reshaped
    assert all(one.nodes for one in reshaped)


def test_batches_are_refused() -> None:
    graph = read_graph(GRAPHS / "resnet18.onnx", {"input": (8, 3, 224, 224)})
    assert (
        refused(graph, "ncnn") == "it runs one image at a time, and 'input' is a batch of 8; set it to 1 with --shape"
    )
    assert refused(graph, "onnxruntime") == ""


def test_only_what_ncnn_refused_is_refused() -> None:
    """Held against what happened when the zoo was measured; an operator that it lacks refuses the fourth network."""
    measurements = DatasetFolder(GRAPHS.parents[1] / "zoo-engines-zen4").read_measurements()
    ran = {one.model: one.status == "ok" for one in measurements if one.runtime == "ncnn"}
    known = {model for model in ran if refused(read_graph(GRAPHS / f"{model}.onnx"), "ncnn")}
    assert len(ran) == 48
    assert known == {"swin_t", "swin_s", "swin_v2_t-s256"}
    assert {model for model, fine in ran.items() if not fine} == known | {"light_inception_v1"}


@pytest.mark.parametrize(
    ("source", "weight", "more", "naive"),
    [
        ((1, 8, 4, 9, 9), (8, 8, 3, 3, 3), {}, True),
        ((1, 8, 4, 9, 9), (8, 1, 3, 3, 3), {"group": 8}, True),
        ((1, 8, 64), (8, 4, 1), {"group": 2}, True),
        ((1, 8, 64), (8, 1, 3), {"group": 8}, False),
        ((1, 8, 64), (8, 8, 3), {}, False),
        ((1, 8, 9, 9), (8, 4, 3, 3), {"group": 2}, False),
    ],
)
def test_convolutions_without_vectors(
    source: tuple[int, ...], weight: tuple[int, ...], more: dict[str, int], naive: bool, tmp_path: Path
) -> None:
    path = tmp_path / "conv.onnx"
    size = len(source) - 2
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], name="conv", kernel_shape=weight[2:], pads=[0] * 2 * size, **more
    )
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip("xy", (source, None), strict=True)
    ]
    filled = numpy_helper.from_array(np.zeros(weight, np.float32), "w")
    graph = helper.make_graph([node], "conv", values[:1], values[1:], [filled])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    (found,) = kernels(read_graph(path), "ncnn", isa=("avx2",))
    assert (found.kind == "Conv naive") is naive
    assert found.number("macs") > 0


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("segmenter-10256", {"com.microsoft.nchwc::Conv 3x3/dilated"}),
        ("segmenter-38461", {"com.microsoft.nchwc::Conv depthwise/dilated"}),
    ],
)
def test_dilated_ones_are_of_other_kinds_where_ncnn_has_a_way_for_those_that_are_not(
    name: str, kinds: set[str]
) -> None:
    (path,) = (GRAPHS.parents[1] / "segmenter-zen5" / "graphs").glob(f"{name}-*.onnx")
    found = kernels(read_graph(path), "ncnn", isa=("avx512f",))
    dilated = {kernel.kind for kernel in found if kernel.number("dilation") > 1 and kernel.number("kernel_h") > 1}
    assert dilated == kinds
    assert all(kernel.number("dilation") > 1 for kernel in found if kernel.kind.endswith("/dilated"))
