"""Make explicit what a converter would have to work out: shapes, constants, weights, padding."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from latmod.graph.loading import has_data, keep_nodes, load
from latmod.graph.lowering import lower_opset
from latmod.graph.shapes import without_shape_arithmetic
from latmod.graph.slots import filled

_CONSTANT = frozenset(
    {
        "Add", "And", "Cast", "ConstantOfShape", "Expand", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul",
        "Range", "Reshape", "Sub", "Trilu", "Unsqueeze", "Where",
    }
)  # fmt: skip
"""What masks and positions are made by."""
_PADDED = frozenset({"AveragePool", "Conv", "LpPool", "MaxPool"})
_LOWEST = "latmod.lowest"
_WHOLE = frozenset({TensorProto.INT32, TensorProto.INT64})
_COPIES = frozenset({"Identity", "Dropout"})


def explicit_model(path: Path, weights: Iterable[tuple[str, np.ndarray]]) -> ModelProto:
    """Return the model of opset 17 with weights put in, all shapes inferred, shape arithmetic done, padding in numbers.

    Constants, and masks and positions that are made of them, become initialisers; copies of tensors are dropped, and
    inputs that are left out too: onnx2torch takes weights and bounds only as initialisers, knows no Trilu, fails where
    a copy shares one, and takes an empty name for a name. Whole numbers are not clipped, since it makes floats of
    them, and nothing is flattened from before its first axis or after its last, which it refuses. Raises GraphError.
    """
    model = without_shape_arithmetic(load(path).model)
    _inline_constants(model)
    _spell_padding(model)
    _spell_odd_forms(model)
    lower_opset(model)
    return filled(model, weights)


def _inline_constants(model: ModelProto) -> None:
    outputs = {value.name for value in model.graph.output}
    known = {tensor.name: tensor for tensor in model.graph.initializer if has_data(tensor)}
    read = {name for node in model.graph.node for name in node.input} | outputs
    lowest = numpy_helper.from_array(np.array(-np.inf, np.float32), _LOWEST)
    model.graph.initializer.append(lowest)
    alias: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [alias.get(name, name) for name in node.input]
        while node.input and not node.input[-1]:
            node.input.pop()
        if node.op_type == "Clip" and "" in node.input:
            node.input[1] = lowest.name
        if node.op_type in _COPIES and node.output[0] not in outputs and not read.intersection(node.output[1:]):
            alias[node.output[0]] = node.input[0]
            continue
        value = None
        if node.op_type == "Constant":
            value = next((attribute.t for attribute in node.attribute if attribute.HasField("t")), None)
        elif node.op_type in _CONSTANT and node.output[0] not in outputs and all(name in known for name in node.input):
            value = _evaluate(node, [known[name] for name in node.input], model)
        if value is not None:
            value.name = node.output[0]
            model.graph.initializer.append(value)
            known[value.name] = value
            continue
        kept.append(node)
    keep_nodes(model, kept)


def _spell_padding(model: ModelProto) -> None:
    """Put numbers in the place of SAME_UPPER, SAME_LOWER and VALID, as the ONNX standard defines them for Conv."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
    shapes |= {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        rule = said.get("auto_pad", b"NOTSET").decode()
        sizes = shapes.get(node.input[0], [])[2:] if node.input else []
        if rule == "NOTSET" or node.op_type not in _PADDED or not all(sizes):
            continue
        kernel = said.get("kernel_shape") or shapes[node.input[1]][2:]
        ones = [1] * len(sizes)
        before, after = [], []
        for size, width, stride, dilation in zip(
            sizes, kernel, said.get("strides", ones), said.get("dilations", ones), strict=True
        ):
            missing = (-(-size // stride) - 1) * stride + (width - 1) * dilation + 1 - size
            total = 0 if rule == "VALID" else max(missing, 0)
            less, more = total // 2, total - total // 2
            before.append(less if rule == "SAME_UPPER" else more)
            after.append(more if rule == "SAME_UPPER" else less)
        kept = [one for one in node.attribute if one.name not in ("auto_pad", "pads")]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("pads", before + after)])


def _spell_odd_forms(model: ModelProto) -> None:
    """Write clips of whole numbers as minimum and maximum, and flattening into one row or column as a reshape."""
    values = {value.name: value.type.tensor_type for value in (*model.graph.input, *model.graph.value_info)}
    kept: list[NodeProto] = []
    for node in model.graph.node:
        source = values.get(node.input[0]) if node.input else None
        axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
        rank = len(source.shape.dim) if source is not None else -1
        if node.op_type == "Flatten" and axis in (0, rank, -rank):
            shape = [-1, 1] if axis == rank else [1, -1]
            name = f"{node.output[0]}.shape"
            model.graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), name))
            kept.append(helper.make_node("Reshape", [node.input[0], name], node.output, node.name))
        elif source is not None and node.op_type == "Clip" and source.elem_type in _WHOLE:
            given = zip(("Max", "Min"), node.input[1:], strict=False)
            bounds = [(op, name) for op, name in given if name not in ("", _LOWEST)]
            value = node.input[0]
            if not bounds:
                kept.append(helper.make_node("Identity", [value], node.output, node.name))
            for place, (op, bound) in enumerate(bounds, 1):
                made = node.output[0] if place == len(bounds) else f"{node.output[0]}.{op}"
                kept.append(helper.make_node(op, [value, bound], [made], f"{node.name}.{op}"))
                value = made
        else:
            kept.append(node)
    keep_nodes(model, kept)


def _evaluate(node: NodeProto, inputs: list[TensorProto], model: ModelProto) -> TensorProto:
    """Return what a node of a model makes of constants: operators mean what they did at the model's opset."""
    from onnx.reference import ReferenceEvaluator

    values = dict(zip(node.input, inputs, strict=True))
    graph = helper.make_graph(
        [node],
        "constant",
        [helper.make_tensor_value_info(name, value.data_type, value.dims) for name, value in values.items()],
        [helper.make_empty_tensor_value_info(node.output[0])],
    )
    opsets = {own.domain: own.version for own in model.opset_import}
    feeds = {name: numpy_helper.to_array(value) for name, value in values.items()}
    (result,) = ReferenceEvaluator(graph, opsets=opsets).run(None, feeds)
    return numpy_helper.from_array(np.asarray(result))
