"""Make explicit what a converter would have to work out: shapes, constants, weights."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from latmod.graph.loading import has_data, keep_nodes, load
from latmod.graph.shapes import without_shape_arithmetic
from latmod.graph.slots import filled

_CONSTANT = frozenset({"ConstantOfShape", "Cast"})
_COPIES = frozenset({"Identity", "Dropout"})


def explicit_model(path: Path, weights: Iterable[tuple[str, np.ndarray]]) -> ModelProto:
    """Return the model with weights put in, all shapes inferred and shape arithmetic done.

    Constants, and what ConstantOfShape and Cast make of them, become initialisers; copies of tensors are dropped, and
    inputs that are left out too: onnx2torch takes weights and bounds only as initialisers, fails where a copy shares
    one, and takes an empty name for a name. Raises GraphError.
    """
    model = without_shape_arithmetic(load(path).model)
    _inline_constants(model)
    return filled(model, weights)


def _inline_constants(model: ModelProto) -> None:
    outputs = {value.name for value in model.graph.output}
    known = {tensor.name: tensor for tensor in model.graph.initializer if has_data(tensor)}
    read = {name for node in model.graph.node for name in node.input} | outputs
    lowest = numpy_helper.from_array(np.array(-np.inf, np.float32), "latmod.lowest")
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
        elif node.op_type in _CONSTANT and all(name in known for name in node.input):
            value = _evaluate(node, [known[name] for name in node.input])
        if value is not None:
            value.name = node.output[0]
            model.graph.initializer.append(value)
            known[value.name] = value
            continue
        kept.append(node)
    keep_nodes(model, kept)


def _evaluate(node: NodeProto, inputs: list[TensorProto]) -> TensorProto:
    from onnx.reference import ReferenceEvaluator

    feeds = {name: numpy_helper.to_array(value) for name, value in zip(node.input, inputs, strict=True)}
    (result,) = ReferenceEvaluator(node).run(None, feeds)
    return numpy_helper.from_array(np.asarray(result))
