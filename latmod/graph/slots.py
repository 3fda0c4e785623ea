"""Name the weights that a weight-free file lacks, and put weights back in."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto, numpy_helper

from latmod.graph.loading import dtype_name, has_data, load
from latmod.graph.records import Attribute, Tensor

_VARIANCE = ("BatchNormalization", 4)


class WeightSlot(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one initialiser without data, and its use: operator, which input, whether it is transposed.

    Of several uses it is the first, or that as a variance: exporters keep one of parameters that are equal, as the ones
    and zeros of an untrained network's norms are, and hand it on by Identity.
    """

    tensor: Tensor
    op: str
    position: int
    transposed: bool


def weight_slots(path: Path) -> tuple[WeightSlot, ...]:
    """List the initialisers of a file that have no data, in file order; shapes are not inferred. Raises GraphError."""
    graph = load(path).model.graph
    missing = {tensor.name: tensor for tensor in graph.initializer if not has_data(tensor)}
    origin = {name: name for name in missing}
    uses: dict[str, tuple[str, int, bool]] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
            continue
        for position, name in enumerate(node.input):
            if name in origin and (origin[name] not in uses or (node.op_type, position) == _VARIANCE):
                attributes: dict[str, Attribute] = {a.name: a.i for a in node.attribute if a.name == "transB"}
                uses[origin[name]] = (node.op_type, position, bool(attributes.get("transB", 0)))
    slots = []
    for name, tensor in missing.items():
        op, position, transposed = uses.get(name, ("", 0, False))
        described = Tensor(name=name, dtype=dtype_name(tensor.data_type), shape=tuple(tensor.dims))
        slots.append(WeightSlot(tensor=described, op=op, position=position, transposed=transposed))
    return tuple(slots)


def fill_weights(path: Path, weights: Iterable[tuple[str, np.ndarray]]) -> ModelProto:
    """Return the model with the data of the named initialisers put in (for engines that take no weights beside)."""
    return filled(load(path).model, weights)


def filled(model: ModelProto, weights: Iterable[tuple[str, np.ndarray]]) -> ModelProto:
    """Put the data of the named initialisers into a model, in place; return it."""
    positions = {tensor.name: index for index, tensor in enumerate(model.graph.initializer)}
    for name, values in weights:
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
        model.graph.initializer[positions[name]].CopyFrom(tensor)
    return model
