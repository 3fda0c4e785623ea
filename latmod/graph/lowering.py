"""Write operators as opset 17 has them.

onnx2torch 1.5 knows none of what opset 18 changed, and torch exports that, or a later one, by default.
"""

from collections.abc import Sequence

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from latmod.graph.loading import has_data, keep_nodes

_OPSET = 17
# ReduceSum has had its axes as an input since opset 13, the others since 18.
_REDUCTIONS = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
        "ReduceProd", "ReduceSumSquare",
    }
)  # fmt: skip
_LATER: dict[str, dict[str, object]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "Reshape": {"allowzero": 1},
    "Split": {"num_outputs": None},
}
"""Attributes that opset 17 lacks, or onnx2torch, and the value with which they mean nothing; None for any."""

_NEGATED = {"GreaterOrEqual": "Less", "LessOrEqual": "Greater"}
"""What onnx2torch knows up to opset 15 alone, and what is true where they are not (but for NaN)."""

Constants = dict[str, np.ndarray]


def lower_opset(model: ModelProto) -> None:
    """Bring a model whose shapes are inferred and whose constants are initialisers to opset 17, in place.

    What has no equal there stays as it is, for the converter to refuse by its name.
    """
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    known = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer if has_data(one)}
    for node in model.graph.node:
        if node.op_type in _REDUCTIONS and len(node.input) > 1 and node.input[1] in known:
            _set(node, axes=known[node.input[1]].tolist(), noop_with_empty_axes=None)
            del node.input[1:]
        elif node.op_type == "Split" and len(node.input) == 1 and shapes.keys() >= set(node.output):
            axis = next((one.i for one in node.attribute if one.name == "axis"), 0)
            if _attribute(node, "num_outputs") is not None:
                _read(model, node, 1, [shapes[name][axis] for name in node.output])
        elif node.op_type == "Pad" and len(node.input) > 3:
            source, pads, axes = node.input[0], known.get(node.input[1]), known.get(node.input[3])
            if source in shapes and pads is not None and axes is not None:
                _read(model, node, 1, _everywhere(pads.tolist(), axes.tolist(), len(shapes[source])))
                del node.input[3:]
        for name, meaningless in _LATER.get(node.op_type, {}).items():
            if meaningless is None or (_attribute(node, name) == meaningless and not _counts(node, known)):
                _set(node, **{name: None})
    _negate(model)
    for own in model.opset_import:
        if own.domain in ("", "ai.onnx"):
            own.version = min(own.version, _OPSET)


def _negate(model: ModelProto) -> None:
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type in _NEGATED:
            opposite, result = f"latmod.{node.output[0]}.opposite", node.output[0]
            node.op_type, node.output[0] = _NEGATED[node.op_type], opposite
            nodes.append(helper.make_node("Not", [opposite], [result]))
    keep_nodes(model, nodes)


def _counts(node: NodeProto, known: Constants) -> bool:
    """Tell whether a Reshape takes a nought for a size of nought."""
    return node.op_type == "Reshape" and 0 in known.get(node.input[1], np.zeros(1))


def _everywhere(pads: Sequence[int], axes: Sequence[int], rank: int) -> list[int]:
    """Return what is padded before and behind every dim, of what is said for some."""
    found = [0] * (2 * rank)
    for place, axis in enumerate(axes):
        found[axis % rank], found[rank + axis % rank] = pads[place], pads[len(axes) + place]
    return found


def _read(model: ModelProto, node: NodeProto, place: int, numbers: Sequence[int]) -> None:
    """Let a node read whole numbers as one of its inputs."""
    name = f"latmod.{node.output[0]}.{place}"
    model.graph.initializer.append(numpy_helper.from_array(np.array(numbers, dtype=np.int64), name))
    if len(node.input) == place:
        node.input.append(name)
    else:
        node.input[place] = name


def _attribute(node: NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), None)


def _set(node: NodeProto, **values: object) -> None:
    """Set attributes; None takes one away."""
    kept = [one for one in node.attribute if one.name not in values]
    made = [helper.make_attribute(name, value) for name, value in values.items() if value is not None]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])
