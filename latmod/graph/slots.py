"""Name the weights that a weight-free file lacks, and put weights back in."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from latmod.graph.loading import dtype_name, has_data, load
from latmod.graph.records import Attribute, Tensor


class WeightSlot(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one initialiser without data, and its first use: operator, which input, whether it is transposed."""

    tensor: Tensor
    op: str
    position: int
    transposed: bool


def weight_slots(path: Path) -> tuple[WeightSlot, ...]:
    """List the initialisers of a file that have no data, in file order; shapes are not inferred. Raises GraphError."""
    graph = load(path).graph
    missing = {tensor.name: tensor for tensor in graph.initializer if not has_data(tensor)}
    uses: dict[str, tuple[str, int, bool]] = {}
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in missing and name not in uses:
                attributes: dict[str, Attribute] = {a.name: a.i for a in node.attribute if a.name == "transB"}
                uses[name] = (node.op_type, position, bool(attributes.get("transB", 0)))
    slots = []
    for name, tensor in missing.items():
        op, position, transposed = uses.get(name, ("", 0, False))
        described = Tensor(name=name, dtype=dtype_name(tensor.data_type), shape=tuple(tensor.dims))
        slots.append(WeightSlot(tensor=described, op=op, position=position, transposed=transposed))
    return tuple(slots)


def fill_weights(path: Path, weights: Iterable[tuple[str, np.ndarray]]) -> ModelProto:
    """Return the model with the data of the named initialisers put in (for engines that take no weights beside)."""
    model = load(path)
    positions = {tensor.name: index for index, tensor in enumerate(model.graph.initializer)}
    for name, values in weights:
        filled = numpy_helper.from_array(np.ascontiguousarray(values), name)
        model.graph.initializer[positions[name]].CopyFrom(filled)
    return model


def inline_copies(model: ModelProto) -> None:
    """Let the readers of an Identity read its input, in place: onnx2torch fails where one shares an initialiser."""
    outputs = {value.name for value in model.graph.output}
    alias: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        node.input[:] = [alias.get(name, name) for name in node.input]
        if node.op_type == "Identity" and node.output[0] not in outputs:
            alias[node.output[0]] = node.input[0]
        else:
            kept.append(NodeProto.FromString(node.SerializeToString()))  # `del` empties the originals
    if alias:
        del model.graph.node[:]
        model.graph.node.extend(kept)
