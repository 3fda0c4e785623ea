"""Turn what torch's exporter wrote, with weights as further inputs, into the graph that latmod keeps."""

import keyword
import re
from collections.abc import Mapping

from onnx import ModelProto, NodeProto, TensorProto

from latmod.graph.loading import keep_nodes
from latmod.graph.shapes import without_shape_arithmetic


def tidy_export(
    content: bytes, input_shape: tuple[int, ...], modules: frozenset[str], properties: Mapping[str, str]
) -> bytes:
    """Return the model with its first input in `input_shape` and all further inputs as initialisers without data.

    Shape arithmetic is done. Nodes and values are named after `modules`, the leaf modules by their names in the state
    dict; `properties` go into the file's metadata.
    """
    model = ModelProto.FromString(content)
    _weights_to_initializers(model)
    _set_shape(model, input_shape)
    if any(node.op_type in ("Shape", "Constant") for node in model.graph.node):
        model = _folded(model)
    _rename(model, modules)
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)
    written: bytes = model.SerializeToString(deterministic=True)
    return written


def _weights_to_initializers(model: ModelProto) -> None:
    """Declare every input but the first as an initialiser that has no data."""
    for value in model.graph.input[1:]:
        tensor = value.type.tensor_type
        dims = [dimension.dim_value for dimension in tensor.shape.dim]
        model.graph.initializer.append(TensorProto(name=value.name, data_type=tensor.elem_type, dims=dims))
    del model.graph.input[1:]


def _set_shape(model: ModelProto, shape: tuple[int, ...]) -> None:
    """Set the input's shape and the batch of the output; what lies between is inferred by whoever reads the graph."""
    for dimension, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = shape[0]
    del model.graph.value_info[:]


def _folded(model: ModelProto) -> ModelProto:
    """Do the shape arithmetic, and leave out what nothing reads any more: half of the nodes of a transformer."""
    model = without_shape_arithmetic(model)
    read = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if read.intersection(node.output):
            read.update(node.input)
            kept.append(node)
    keep_nodes(model, kept[::-1])
    del model.graph.value_info[:]
    return model


def _rename(model: ModelProto, leaves: frozenset[str]) -> None:
    """Name nodes and values after their modules, as in `layer1.0.conv1`: readable, and a third of the file's size."""
    kept = {value.name for value in (*model.graph.input, *model.graph.output, *model.graph.initializer)}
    values: dict[str, str] = {}
    uses: dict[str, int] = {}
    for node in model.graph.node:
        name = _module_name(node, leaves)
        uses[name] = uses.get(name, 0) + 1
        node.name = name if uses[name] == 1 else f"{name}_{uses[name]}"
        node.doc_string = ""
        node.input[:] = [values.get(value, value) for value in node.input]
        for position, value in enumerate(node.output):
            if value not in kept:
                values[value] = node.name if position == 0 else f"{node.name}:{position}"
        node.output[:] = [values.get(value, value) for value in node.output]


def _module_name(node: NodeProto, leaves: frozenset[str]) -> str:
    """Turn `/module/layer1/layer1.0/conv1/Conv` into `layer1.0.conv1`; keep the operator where no leaf ran it.

    The exporter repeats a container's own name before the position of a child, and numbers the later calls of a module.
    A network that has no modules is a leaf itself, whose name is empty: no name for a value. `not` and `and` get a `_`:
    torch writes Python with these names.
    """
    *scopes, operator = node.name.removeprefix("/module/").removeprefix("/").split("/")
    path: list[str] = []
    for scope in scopes:
        if path and scope.startswith(f"{path[-1]}."):
            path.pop()
        path.append(scope)
    name = ".".join(path)
    first_call = re.sub(r"_\d+$", "", name)
    if path and (name in leaves or first_call in leaves):
        return name if name in leaves else first_call
    word = operator.lower()
    return ".".join((*path, f"{word}_" if keyword.iskeyword(word) else word))
