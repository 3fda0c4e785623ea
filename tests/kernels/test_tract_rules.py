"""What tract does otherwise than onnxruntime, whose rules it shares, by what it said itself when it was measured."""

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from statistics import median

import pytest
from onnx import TensorProto, helper, save

from latmod.dataset import DatasetFolder, KernelTime
from latmod.graph import read_graph
from latmod.kernels import Kernel, kernels
from latmod.kernels.nchwc import DOMAIN
from latmod.kernels.tract import ALONG_ROWS, BATCHED, CLEAN, PARTED

DATASETS = Path(__file__).parents[2] / "datasets"
FOLDER = DatasetFolder(DATASETS / "kernels-engines-zen4")


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
def test_all_else_is_as_in_onnxruntime_but_norms(family: str, norms: set[str]) -> None:
    """A layer norm calls a sum for each channel but where windows are cut; unions that were not told are none."""
    name = next(one.model for one in FOLDER.read_kernels() if one.runtime == "tract" and one.model.startswith(family))
    graph = read_graph(FOLDER.graph_path(name))
    own = kernels(graph, "tract")
    there = {name for kernel in own for name in kernel.nodes}
    like = [kernel for kernel in kernels(graph, "onnxruntime") if kernel.nodes and kernel.nodes[0] in there]
    changes = {"LayerNormalization/turned": "products"}
    for one, other in zip(own, like, strict=True):
        if one.kind.endswith(PARTED):
            continue
        kind = one.kind.removesuffix(CLEAN)
        expected = {changes[kind]: other.number("last_dim")} if kind in changes else {}
        assert one.numbers == other.with_numbers(**expected).numbers
        plain = other.kind.removeprefix(DOMAIN)
        assert kind in (plain, f"{plain}/turned", ALONG_ROWS) or one.convolves_images
    assert {one.kind.removesuffix(CLEAN) for one in own if one.kind.startswith("LayerNormalization")} == norms


def test_unions_that_products_alone_read_are_never_made() -> None:
    """As tract told: of no union that the rules leave out, and of nearly all others of convolutions."""
    folder = DatasetFolder(DATASETS / "kernels-more-zen5")
    left_out, kept, told_of = 0, 0, 0
    for one in folder.read_kernels():
        if one.runtime != "tract" or not one.model.startswith("slim"):
            continue
        graph = read_graph(folder.graph_path(one.model))
        found = kernels(graph, "tract")
        there = {name for kernel in found for name in kernel.nodes}
        told = {name for piece in one.kernels if piece.op == "Concat" for name in piece.nodes}
        for node in graph.nodes:
            if node.op == "Concat" and len(node.inputs) > 1:
                assert node.name in there or node.name not in told, (one.model, node.name)
                left_out += node.name not in there
                kept, told_of = kept + (node.name in there), told_of + (node.name in told)
        parted = [kernel for kernel in found if kernel.kind.endswith(PARTED)]
        assert all(kernel.number("products") >= 2 for kernel in parted)
    assert left_out >= 40
    assert told_of > 0.85 * kept > 200


def test_blocks_of_channels_make_no_difference() -> None:
    """With other instructions onnxruntime makes some convolutions in another way, and tract none."""
    graph = read_graph(DATASETS / "kernels-more-zen5" / "graphs" / "slim-12727-w18-d17-s224.onnx")
    kinds = [[kernel.kind for kernel in kernels(graph, "tract", isa=isa)] for isa in ((), ("avx2",), ("avx512f",))]
    assert kinds[0] == kinds[1] == kinds[2]
    assert {"Conv 1x1", "Conv 3x3/strided", "Conv depthwise", "Conv depthwise/strided/clean"} <= {*kinds[0]}


def test_strided_depthwise_convolutions_run_fast_where_registers_are_clean() -> None:
    """As tract told: two to four times as fast behind some, and never in between."""
    counts = {True: 0, False: 0}
    folder = DatasetFolder(DATASETS / "kernels-more-zen5")
    told = [one for one in folder.read_kernels() if one.runtime == "tract" and one.model.startswith("slim")]
    for one in told[::4]:
        took = {name: piece.ns for piece in one.kernels if piece.op == "DepthWiseConv" for name in piece.nodes}
        for kernel in kernels(read_graph(folder.graph_path(one.model)), "tract"):
            if "depthwise/strided" in kernel.kind and kernel.number("macs") > 2e5:
                clean = kernel.kind.endswith(CLEAN)
                counts[clean] += 1
                assert (took[kernel.nodes[0]] / kernel.number("macs") < 0.7) == clean, (one.model, kernel.label)
    assert min(counts.values()) >= 10


@pytest.mark.parametrize(
    ("before", "clean"),
    [
        ((), False),
        (("Conv",), False),
        (("Depthwise",), True),
        (("Depthwise", "Relu"), True),
        (("Depthwise", "MaxPool", "Add"), True),
        (("Depthwise", "Sigmoid"), False),
        (("Depthwise", "Conv"), False),
        (("Depthwise", "Strided"), True),
        (("Conv", "Relu"), False),
        (("Exp", "Relu"), True),
    ],
)
def test_what_runs_before_decides_whether_registers_are_clean(
    before: tuple[str, ...], clean: bool, tmp_path: Path
) -> None:
    weights = {"Conv": (8, 8, 1, 1), "Depthwise": (8, 1, 3, 3), "Strided": (8, 1, 3, 3)}
    attributes = {
        "Depthwise": {"group": 8, "pads": [1, 1, 1, 1]},
        "Strided": {"group": 8, "pads": [1, 1, 1, 1], "strides": [2, 2]},
        "MaxPool": {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    }
    nodes, value = [], "x"
    for place, op in enumerate((*before, "Mul")):
        more = [op] if op in weights else [value] if op in ("Add", "Mul") else []
        name = "Conv" if op in weights else op
        nodes.append(helper.make_node(name, [value, *more], [f"v{place}"], op, **attributes.get(op, {})))
        value = f"v{place}"
    graph = helper.make_graph(
        nodes,
        "before",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8, 32, 32))],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, None)],
        [
            helper.make_tensor(op, TensorProto.FLOAT, shape, [0.5] * prod(shape))
            for op, shape in weights.items()
            if op in before
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "before.onnx")
    found = next(one for one in kernels(read_graph(tmp_path / "before.onnx"), "tract") if "Mul" in one.nodes)
    assert found.kind == ("Mul/clean" if clean else "Mul")


def _told_and_found(
    *families: str, machine: str = "spr"
) -> Iterator[tuple[tuple[KernelTime, ...], tuple[Kernel, ...]]]:
    """Give what tract told of each network of some families on a machine, and the kernels by the rules."""
    folder = DatasetFolder(DATASETS / f"kernels-engines-{machine}")
    for one in folder.read_kernels():
        if one.runtime == "tract" and one.status == "ok" and one.model.startswith(families):
            yield one.kernels, kernels(read_graph(folder.graph_path(one.model)), "tract")


def test_a_softmax_along_another_dim_than_the_last_takes_longer_for_each_row() -> None:
    row_ns: dict[str, list[float]] = {"Softmax": [], "Softmax/turned": []}
    for told, found in _told_and_found("detector", "hybrid", "varied"):
        took_ns = {name: piece.ns for piece in told for name in piece.nodes}
        for kernel in found:
            if kernel.op == "Softmax" and kernel.nodes[0] in took_ns:
                rows = kernel.number("numel_out") / kernel.number("inner")
                row_ns[kernel.kind].append(took_ns[kernel.nodes[0]] / rows)
    last, turned = row_ns["Softmax"], row_ns["Softmax/turned"]
    assert len(turned) >= 10
    assert min(turned) > 1.2 * median(last)
    assert median(turned) > 2.0 * median(last)


def test_powers_but_the_square_are_what_took_long_by_element() -> None:
    element_ns: dict[str, list[float]] = {"Power": [], "Pow": []}
    for told, found in _told_and_found("detector", "language"):
        for kernel in found:
            took = [piece.ns for piece in told if not {*piece.nodes}.isdisjoint(kernel.nodes)]
            if kernel.kind in element_ns and took:
                element_ns[kernel.kind].append(sum(took) / kernel.number("numel_out"))
    assert len(element_ns["Power"]) >= 8
    assert min(element_ns["Power"]) > 100.0
    assert len(element_ns["Pow"]) >= 3
    assert max(element_ns["Pow"]) < 10.0


def test_convolutions_take_longer_over_several_images() -> None:
    one, several = "Conv 1x1", f"Conv 1x1{BATCHED}"
    mac_ns: dict[str, list[float]] = {one: [], several: []}
    for told, found in _told_and_found("inception", machine="zen5"):
        for kernel in found:
            if kernel.kind in mac_ns:
                took = sum(piece.ns for piece in told if not {*piece.nodes}.isdisjoint(kernel.nodes))
                mac_ns[kernel.kind].append(took / kernel.number("macs"))
    assert min(map(len, mac_ns.values())) >= 20
    assert median(mac_ns[several]) > 2.0 * median(mac_ns[one])


def test_a_norm_behind_an_unknown_operator_counts_as_of_one_image(tmp_path: Path) -> None:
    """Nothing but its scale has a shape, which is no number of images."""
    ends = (
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 64]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    )
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [64], [1.0] * 64)
    nodes = [
        helper.make_node("Strange", ["x"], ["unknown"], domain="somebody"),
        helper.make_node("LayerNormalization", ["unknown", "scale"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "norm", ends[:1], ends[1:], [scale])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("somebody", 1)]
    save(helper.make_model(graph, opset_imports=domains, ir_version=8), tmp_path / "norm.onnx")
    (norm,) = (one for one in kernels(read_graph(tmp_path / "norm.onnx"), "tract") if one.op == "LayerNormalization")
    assert norm.number("products") == norm.number("last_dim")


@pytest.mark.parametrize(
    ("element", "exponent", "expected"),
    [
        (TensorProto.FLOAT, 3.0, "Power"),
        (TensorProto.FLOAT, 2.0, "Pow"),
        (TensorProto.FLOAT16, 3.0, "Pow/float16"),
    ],
)
def test_a_power_in_half_floats_was_never_measured(
    element: int, exponent: float, expected: str, tmp_path: Path
) -> None:
    values = [helper.make_tensor_value_info(name, element, [1, 64]) for name in ("input", "output")]
    power = helper.make_tensor("power", element, [], [exponent])
    node = helper.make_node("Pow", ["input", "power"], ["output"])
    graph = helper.make_graph([node], "power", values[:1], values[1:], [power])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "power.onnx")
    assert [kernel.kind for kernel in kernels(read_graph(tmp_path / "power.onnx"), "tract")] == [expected]
