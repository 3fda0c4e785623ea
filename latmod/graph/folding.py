"""Compute the small values that shapes hang on, where ONNX shape inference gives up (such as Expand of a Shape)."""

from collections.abc import Iterable
from math import prod

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from latmod.graph.loading import array_of, has_data
from latmod.graph.nodes import ONNX

Array = npt.NDArray[np.generic]

_SHAPE_ONLY = frozenset({"Shape", "Size"})
_BROADCAST = frozenset(
    {
        "Add", "And", "Clip", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod",
        "Mul", "Or", "Pow", "Sub", "Where", "Xor",
    }
)  # fmt: skip
_SAME_SIZE = frozenset(
    {
        "Abs", "Cast", "CastLike", "Ceil", "Concat", "CumSum", "Floor", "Gather", "GatherElements", "GatherND",
        "Identity", "Neg", "NonZero", "Not", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Relu",
        "Reshape", "Round", "ScatterElements", "ScatterND", "Sign", "Slice", "Split", "Sqrt", "Squeeze", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip
_FOLDABLE = _SHAPE_ONLY | _BROADCAST | _SAME_SIZE | {"Constant", "ConstantOfShape", "Expand", "Range"}
# A shape has a handful of elements; more is data, and folding data could take any amount of memory.
_MAX_NUMEL = 1024


def fold_shape_arithmetic(model: ModelProto, known: dict[str, Array]) -> bool:
    """Replace nodes with small known results by Constant nodes, in place; tell whether there was one to replace.

    `known` carries the values of small tensors from one pass to the next; begin with an empty one.
    """
    shapes = _static_shapes(model)
    if not known:
        known.update((t.name, array_of(t)) for t in model.graph.initializer if _has_small_data(t))
    folded = False
    for node in model.graph.node:
        if node.domain not in ONNX or node.op_type not in _FOLDABLE or node.output[0] in known:
            continue
        for name, value in _evaluate(node, known, shapes).items():
            if value.size > _MAX_NUMEL:
                continue
            known[name] = value
            if node.op_type != "Constant" and len(node.output) == 1:
                constant = helper.make_node(
                    "Constant", [], [name], name=node.name, value=numpy_helper.from_array(value)
                )
                node.CopyFrom(constant)
                folded = True
    return folded


def _has_small_data(tensor: TensorProto) -> bool:
    kinds = (TensorProto.UNDEFINED, TensorProto.STRING)
    return _is_small(tensor.dims) and has_data(tensor) and tensor.data_type not in kinds


def _evaluate(node: NodeProto, known: dict[str, Array], shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Compute the outputs of one node by ONNX's own reference implementation, or nothing where that is not cheap."""
    from onnx.reference import ReferenceEvaluator

    inputs = [name for name in node.input if name]
    feeds: dict[str, Array] = {}
    if node.op_type in _SHAPE_ONLY and all(name in shapes for name in inputs):
        feeds = {name: np.broadcast_to(np.float32(0), shapes[name]) for name in inputs}
    elif all(name in known for name in inputs) and _is_cheap(node, [known[name] for name in inputs]):
        feeds = {name: known[name] for name in inputs}
    else:
        return {}
    try:
        results = ReferenceEvaluator(node).run(None, feeds)
    except Exception:  # any failure of a third-party evaluator means the same: leave the node as it is
        return {}
    named = zip(node.output, results, strict=False)
    return {name: np.asarray(value) for name, value in named if name and value is not None}


def _is_cheap(node: NodeProto, inputs: list[Array]) -> bool:
    match node.op_type:
        case "Constant":
            return all(not a.HasField("t") or _has_small_data(a.t) for a in node.attribute)
        case "ConstantOfShape":
            return len(inputs) == 1 and _is_small(inputs[0].ravel().tolist())
        case "Expand":
            # Spread floats are data, such as the zero bias of a convolution, never a shape.
            return len(inputs) == 2 and inputs[0].dtype.kind != "f" and _is_small(inputs[1].ravel().tolist())
        case "Range":
            if len(inputs) != 3 or any(value.size != 1 for value in inputs):
                return False
            start, limit, delta = (float(value.ravel()[0]) for value in inputs)
            return delta != 0 and (limit - start) / delta <= _MAX_NUMEL
        case op if op in _BROADCAST:
            try:
                return _is_small(np.broadcast_shapes(*(value.shape for value in inputs)))
            except ValueError:
                return False
        case op:
            return op in _SAME_SIZE


def _is_small(dims: Iterable[int]) -> bool:
    dims = tuple(dims)
    return all(dim >= 0 for dim in dims) and prod(dims) <= _MAX_NUMEL


def _static_shapes(model: ModelProto) -> dict[str, tuple[int, ...]]:
    graph = model.graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind: TypeProto = value.type
        dims = kind.tensor_type.shape.dim
        if kind.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
            shapes.setdefault(value.name, tuple(dim.dim_value for dim in dims))
    return shapes
