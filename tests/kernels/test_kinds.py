"""What is priced apart though the operator is the same: how its elements lie together."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from latmod.graph import read_graph
from latmod.kernels import kernels, refused
from latmod.kernels.kernel import Kernel


def of_one_node(
    path: Path, op: str, shape: tuple[int, ...], *more: np.ndarray, opset: int = 18, **attributes: object
) -> Kernel:
    """Return the kernel of a graph of one operator, whose further inputs are constants."""
    names = [f"constant{place}" for place in range(len(more))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], "node", **attributes)],
        "kinds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names, more, strict=True)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    (found,) = kernels(read_graph(path), "onnxruntime", isa=("avx2",))
    return found


@pytest.mark.parametrize(
    ("axes", "keep", "kind"),
    [
        ((2, 3), 1, "ReduceMean"),
        ((2, 3), 0, "ReduceMean"),
        ((-1,), 1, "ReduceMean"),
        ((1, 2, 3), 0, "ReduceMean"),
        ((1,), 1, "ReduceMean/across"),
        ((1,), 0, "ReduceMean/across"),
        ((1, 2), 1, "ReduceMean/across"),
    ],
)
def test_a_reduction_over_what_lies_together_is_another_than_one_across(
    axes: tuple[int, ...], keep: int, kind: str, tmp_path: Path
) -> None:
    found = of_one_node(tmp_path / "r.onnx", "ReduceMean", (2, 6, 5, 7), np.array(axes), keepdims=keep)
    assert found.kind == kind


@pytest.mark.parametrize(
    ("op", "older", "attributes", "newer", "inputs"),
    [
        ("ReduceMean", 13, {"axes": [2, 3]}, 18, (np.array([2, 3]),)),
        ("ReduceSum", 11, {"axes": [1]}, 13, (np.array([1]),)),
        ("Clip", 6, {"min": 0.0, "max": 6.0}, 13, (np.float32([0.0]).reshape(()), np.float32([6.0]).reshape(()))),
        ("Slice", 9, {"axes": [1], "starts": [1], "ends": [3]}, 13, (np.array([1]), np.array([3]), np.array([1]))),
        ("Pad", 2, {"pads": [0, 0, 1, 1, 0, 0, 1, 1]}, 13, (np.array([0, 0, 1, 1, 0, 0, 1, 1]),)),
        ("Upsample", 7, {"scales": [1.0, 1.0, 2.0, 2.0]}, 9, (np.float32([1.0, 1.0, 2.0, 2.0]),)),
    ],
)
def test_what_says_how_counts_the_same_as_an_attribute_and_as_an_input(
    op: str, older: int, attributes: dict[str, object], newer: int, inputs: tuple[np.ndarray, ...], tmp_path: Path
) -> None:
    """PyTorch's newer exporter gives a mean its axes as an input, which once tripled what the mean was told to take."""
    shape = (1, 6, 5, 7)
    old = of_one_node(tmp_path / "old.onnx", op, shape, opset=older, **attributes)
    new = of_one_node(tmp_path / "new.onnx", op, shape, *inputs, opset=newer)
    assert (new.kind, new.numbers) == (old.kind, old.numbers)
    assert new.number("bytes_in") == 4 * 6 * 5 * 7
    assert new.number("bytes_weights") == 0.0


@pytest.mark.parametrize(
    ("perm", "kind"),
    [
        ((0, 2, 1, 3), "Transpose"),
        ((0, 2, 3, 1), "Transpose"),
        ((0, 3, 1, 2), "Transpose"),
        ((0, 1, 3, 2), "Transpose"),
        ((0, 3, 2, 1), "Transpose/scattered"),
        ((3, 2, 1, 0), "Transpose/scattered"),
        ((2, 0, 1, 3), "Transpose"),
    ],
)
def test_a_transpose_that_moves_more_than_one_dim_and_the_last_goes_element_by_element(
    perm: tuple[int, ...], kind: str, tmp_path: Path
) -> None:
    assert of_one_node(tmp_path / "t.onnx", "Transpose", (2, 6, 5, 7), perm=perm).kind == kind


@pytest.mark.parametrize(("axis", "kind"), [(-1, "Softmax"), (3, "Softmax"), (1, "Softmax/turned")])
def test_a_softmax_over_another_dim_than_the_last_is_turned(axis: int, kind: str, tmp_path: Path) -> None:
    assert of_one_node(tmp_path / "s.onnx", "Softmax", (2, 6, 5, 7), axis=axis).kind == kind


@pytest.mark.parametrize(
    ("starts", "ends", "steps", "left"),
    [((0,), (6,), (1,), 0), ((0,), (2**40,), (1,), 0), ((0,), (3,), (1,), 1), ((5,), (-7,), (-1,), 1)],
)
def test_three_engines_leave_out_a_cut_that_takes_all(
    starts: tuple[int, ...], ends: tuple[int, ...], steps: tuple[int, ...], left: int, tmp_path: Path
) -> None:
    """As GhostNet has them, which cuts at as many channels as there are; what turns the channels round is none."""
    path = tmp_path / "cut.onnx"
    more = (np.array(starts), np.array(ends), np.array([1]), np.array(steps))
    of_one_node(path, "Slice", (1, 6, 5, 7), *more)
    for rules in ("mnn", "openvino", "tract"):
        assert len(kernels(read_graph(path), rules, isa=("avx2",))) == left
    for rules in ("ncnn", "onnxruntime", "torch"):
        assert len(kernels(read_graph(path), rules, isa=("avx2",))) == 1


def test_what_lacks_an_operator_says_which(tmp_path: Path) -> None:
    path = tmp_path / "nan.onnx"
    values = [
        helper.make_tensor_value_info(name, kind, [2])
        for name, kind in (("x", TensorProto.FLOAT), ("y", TensorProto.BOOL))
    ]
    graph = helper.make_graph([helper.make_node("IsNaN", ["x"], ["y"], "guard")], "g", values[:1], values[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    for rules in ("mnn", "ncnn"):
        assert refused(read_graph(path), rules) == "it has no IsNaN, as node 'guard' is"
    for rules in ("onnxruntime", "openvino", "tract", "torch"):
        assert refused(read_graph(path), rules) == ""
