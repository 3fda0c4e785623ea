"""What is priced apart though the operator is the same: how its elements lie together."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

from latmod.graph import read_graph
from latmod.kernels import kernels, refused
from latmod.kernels.kernel import Kernel


def of_one_node(path: Path, op: str, shape: tuple[int, ...], *more: np.ndarray, **attributes: object) -> Kernel:
    """Return the kernel of a graph of one operator, whose further inputs are constants."""
    names = [f"constant{place}" for place in range(len(more))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], "node", **attributes)],
        "kinds",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in zip(names, more, strict=True)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
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
