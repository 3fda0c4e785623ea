from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, load, save

from latmod.coverage import most_underpriced, observe_ranges, share_group, unseen
from latmod.graph import read_graph
from latmod.kernels import FIELDS, Kernel, kernels


def kernel(kind: str, **numbers: float) -> Kernel:
    return Kernel(
        op=kind,
        kind=kind,
        numbers=tuple(numbers.get(field, 0.0) for field in FIELDS),
        nodes=("n",),
        label=f"one {kind}",
        inputs=(),
        outputs=(),
        values=(),
    )


def test_what_was_never_measured_is_named_with_its_share() -> None:
    ranges = observe_ranges([kernel("Conv", macs=100.0), kernel("Conv", macs=1000.0)])
    found = unseen(
        [kernel("Conv", macs=500.0), kernel("Erf"), kernel("Conv", macs=9000.0)], np.array([1.0, 2.0, 7.0]), ranges
    )
    # What was never measured may take four times what its bytes say: 8 of 16.
    assert [(one.kind, one.share) for one in found] == [("Erf", 0.5), ("Conv", 0.4375)]
    assert "macs 9000 of a Conv is beyond what was measured (100 to 1000)" in found[1].reason
    assert found[0].reason == "Erf was never measured"
    assert [one.never for one in found] == [True, False]


def test_a_little_beyond_is_inside() -> None:
    ranges = observe_ranges([kernel("Conv", macs=100.0), kernel("Conv", macs=1000.0)])
    assert unseen([kernel("Conv", macs=1200.0), kernel("Conv", macs=90.0)], np.ones(2), ranges) == []


def test_another_rank_is_outside() -> None:
    """Torch calls convolutions in two and in three dimensions the same."""
    ranges = observe_ranges([kernel("Conv", rank=4.0)])
    assert [one.reason.partition(" of ")[0] for one in unseen([kernel("Conv", rank=5.0)], np.ones(1), ranges)] == [
        "rank 5"
    ]


def test_share_groups() -> None:
    assert share_group(0.0, 0.0) == 0
    assert [share_group(share, 0.02) for share in (0.02, 0.1, 0.2, 0.5)] == [0, 1, 1, 2]
    assert [share_group(share, 0.03) for share in (0.03, 0.5)] == [3, 3]


def small(path: Path, dtype: int) -> Path:
    """Write a convolution, its activation and a sum, over numbers of one type."""
    value = [
        helper.make_tensor_value_info(name, dtype, shape)
        for name, shape in (("x", [1, 8, 9, 9]), ("w", [8, 8, 3, 3]), ("y", [1, 8, 9, 9]))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Add", ["s", "x"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "small", value[:2], value[2:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_numbers_of_another_size_were_never_measured(runtime: str, dtype: int, tmp_path: Path) -> None:
    plain, other = (
        kernels(read_graph(small(tmp_path / "small.onnx", own)), runtime) for own in (TensorProto.FLOAT, dtype)
    )
    found = unseen(other, np.ones(len(other)), observe_ranges(plain))
    assert [one.never for one in found] == [True] * len(other)
    assert unseen(plain, np.ones(len(plain)), observe_ranges(plain)) == []


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "mnn"])
def test_convolutions_of_integers_were_never_measured(runtime: str, tmp_path: Path) -> None:
    """Quantised as exporters write it: floats between integers, which engines leave out."""
    path = small(tmp_path / "small.onnx", TensorProto.FLOAT)
    plain = kernels(read_graph(path), runtime)
    model = load(path)
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    conv.input[0] = "d"
    model.graph.initializer.append(helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1]))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "scale"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "scale"], ["d"]))
    save(model, path)
    found = kernels(read_graph(path), runtime)
    (product,) = [one for one in found if one.number("macs") > 0]
    assert product.kind.endswith("/quantized")
    assert [one.never for one in unseen([product], np.ones(1), observe_ranges(plain))] == [True]


@given(st.floats(0.0, 1.0), st.floats(0.01, 1e3))
def test_what_was_never_measured_may_take_four_times_as_long(part: float, rest: float) -> None:
    took = np.array([rest * part, rest * (1.0 - part)])
    ranges = observe_ranges([kernel("Conv")])
    share = sum(one.share for one in unseen([kernel("Erf"), kernel("Conv")], took, ranges) if one.never)
    assert most_underpriced(share) == pytest.approx((4.0 * took[0] + took[1]) / took.sum())
