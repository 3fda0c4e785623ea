"""Turn an `.onnx` file into a static `Graph`: shapes set, inferred and checked."""

from math import prod
from pathlib import Path
from struct import Struct

from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, defs

from latmod.errors import GraphError
from latmod.graph.loading import array_of, dtype_name, has_data, load, one_line
from latmod.graph.nodes import ONNX
from latmod.graph.records import Graph, Node, Scalar, Tensor, link, static_values
from latmod.graph.shapes import Inferred, Shapes, fed_inputs, inferred

# 2**40 elements are 4 TB of float32: no such network runs, so a larger number is a damaged file.
_MAX_NUMEL = 2**40
# Constants longer than this never steer a cost.
_MAX_CONSTANT = 4096
# What shapes and scalars are kept in; read at once, as there are thousands of them (numpy takes 30 us for each).
_PLAIN: dict[int, Struct] = {TensorProto.INT64: Struct("<q"), TensorProto.FLOAT: Struct("<f")}
_NOT_REAL = frozenset({TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.COMPLEX128, TensorProto.UNDEFINED})


def read_graph(path: Path, shapes: Shapes | None = None) -> Graph:
    """Read one static graph from an `.onnx` file, with or without its weights.

    `shapes` sets the dims of inputs by name: needed where they are symbolic, allowed where they are static.
    Weights are never read. Raises GraphError, one line, for anything that is not one static graph.
    """
    path = Path(path)
    loaded = load(path)
    try:
        return _build(inferred(loaded.model, loaded.nodes, dict(shapes or {})), path.stem)
    except GraphError as error:
        raise GraphError(f"{path}: {one_line(error)}") from None


def check_shapes(path: Path, shapes: Shapes) -> None:
    """Raise GraphError where inputs cannot have these shapes, or a graph is fixed to others.

    A shape that hangs on the data, as that of detections, is no reason: such a network runs, though it is not static.
    """
    path = Path(path)
    loaded = load(path)
    try:
        found = inferred(loaded.model, loaded.nodes, shapes)
        _check_reshapes(found.nodes, {name: _tensor(name, *value) for name, value in found.values.items()})
    except GraphError as error:
        raise GraphError(f"{path}: {one_line(error)}") from None


def _tensor(name: str, data_type: int, shape: tuple[int, ...]) -> Tensor:
    if min(shape, default=0) < 0 or prod(shape) > _MAX_NUMEL:
        raise GraphError(f"value {name!r} has an impossible shape {shape}")
    return Tensor(name=name, dtype=dtype_name(data_type), shape=shape)


def _build(found: Inferred, name: str) -> Graph:
    model, nodes = found.model, found.nodes
    graph = model.graph
    initializers, constants = _initializers(model)
    tensors = dict(initializers)
    for value, (data_type, shape) in found.values.items():
        if value not in initializers:
            tensors[value] = _tensor(value, data_type, shape)
    for node, proto in zip(nodes, graph.node, strict=True):
        if node.op == "Constant":
            _constant(node, proto, tensors, constants)
    producers, users = link(nodes)
    needed = set(users).union(value.name for value in graph.output)
    shapeless = _shapeless(nodes, tensors, needed)
    _check_reshapes(nodes, tensors)
    for output in graph.output:
        if output.name not in tensors and output.name not in shapeless:
            raise GraphError(f"output {output.name!r} is computed by no node")
    return Graph(
        name=name,
        opset=next((o.version for o in model.opset_import if o.domain in ONNX), 0),
        inputs=tuple(tensors[value.name] for value in fed_inputs(model)),
        outputs=tuple(tensors[value.name] for value in graph.output if value.name in tensors),
        nodes=nodes,
        initializers=initializers,
        tensors=tensors,
        constants=constants,
        static=static_values(nodes, initializers),
        shapeless=shapeless,
        producers=producers,
        users=users,
    )


def _initializers(model: ModelProto) -> tuple[dict[str, Tensor], dict[str, tuple[Scalar, ...]]]:
    initializers: dict[str, Tensor] = {}
    constants: dict[str, tuple[Scalar, ...]] = {}
    for proto in model.graph.initializer:
        tensor = initializers[proto.name] = _tensor(proto.name, proto.data_type, tuple(proto.dims))
        if tensor.numel <= _MAX_CONSTANT and has_data(proto):
            constants[proto.name] = _values(proto)
    for sparse in model.graph.sparse_initializer:
        name = sparse.values.name
        initializers[name] = _tensor(name, sparse.values.data_type, tuple(sparse.dims))
    return initializers, constants


def _values(proto: TensorProto) -> tuple[Scalar, ...]:
    """Read the values of a small tensor; other types than real numbers have none that matter."""
    if proto.data_type in _NOT_REAL:
        return ()
    plain = _PLAIN.get(proto.data_type)
    raw = proto.raw_data if plain else b""
    if plain and len(raw) == plain.size * prod(proto.dims):
        return tuple([one for (one,) in plain.iter_unpack(raw)])
    return tuple(array_of(proto).ravel().tolist())


def _constant(
    node: Node, proto: NodeProto, tensors: dict[str, Tensor], constants: dict[str, tuple[Scalar, ...]]
) -> None:
    """Enter the value of a Constant node, whichever of its attributes holds it."""
    if not node.outputs:
        return
    name = node.outputs[0]
    for attribute in proto.attribute:
        if attribute.name == "value":
            value = attribute.t
            tensors[name] = tensor = _tensor(name, value.data_type, tuple(value.dims))
            if tensor.numel <= _MAX_CONSTANT and has_data(value):
                constants[name] = _values(value)
        elif attribute.name == "sparse_value":
            dims, kind = attribute.sparse_tensor.dims, attribute.sparse_tensor.values.data_type
            tensors[name] = _tensor(name, kind, tuple(dims))
        elif attribute.type in (AttributeProto.INT, AttributeProto.FLOAT):
            constants[name] = (attribute.i if attribute.type == AttributeProto.INT else attribute.f,)
        elif attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS):
            constants[name] = tuple(attribute.ints or attribute.floats)


def _shapeless(nodes: tuple[Node, ...], known: dict[str, Tensor], needed: set[str]) -> frozenset[str]:
    """Name the values that have no shape because an unknown operator stands before them.

    Raises GraphError where there is no such excuse: the shape then depends on the data.
    """
    shapeless: set[str] = set()
    for node in nodes:
        missing = [name for name in node.outputs if name in needed and name not in known]
        if not missing:
            continue
        excused = not is_known(node.op) or any(name in shapeless for name in node.inputs)
        if not excused:
            raise GraphError(
                f"node {node.name} ({node.op}) has an output without a static shape ({missing[0]!r}): "
                "it depends on the data, or on an input whose shape --shape can set"
            )
        shapeless.update(missing)
    return frozenset(shapeless)


def _check_reshapes(nodes: tuple[Node, ...], tensors: dict[str, Tensor]) -> None:
    """Refuse a Reshape to a number of elements that its input does not have: a batch was baked into the graph."""
    for node in nodes:
        if node.op == "Reshape" and node.inputs[0] in tensors and node.outputs[0] in tensors:
            source, target = tensors[node.inputs[0]], tensors[node.outputs[0]]
            if source.numel != target.numel:
                raise GraphError(
                    f"node {node.name} (Reshape) turns {source.shape} into {target.shape}: the graph is fixed to "
                    "another input shape; export it with that one, or with a dynamic axis"
                )


def is_known(op: str) -> bool:
    """Tell whether `op` is an operator of the ONNX standard."""
    return "::" not in op and defs.has(op)
