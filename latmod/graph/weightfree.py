"""Make the weight-free form of a model: the unit that latmod keeps and ships (design section 3)."""

from pathlib import Path

from onnx import ModelProto, NodeProto, StringStringEntryProto, TensorProto

from latmod.errors import GraphError
from latmod.graph.loading import array_of, dtype_name, has_data, keep_nodes, load, one_line
from latmod.graph.records import Tensor
from latmod.graph.shapes import Shapes, set_shapes

# The file that engines which read files are given: random numbers, made once, in the same folder as the model.
WEIGHTS_FILE = "latmod-weights.bin"
_ALIGNMENT = 64
_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "double_data")
_FLOAT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})
_PARAMETRIC = frozenset(
    {
        "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "InstanceNormalization", "LayerNormalization",
        "GroupNormalization",
    }
)  # fmt: skip


def strip_weights(path: Path, shapes: Shapes | None = None) -> bytes:
    """Give the weight-free `.onnx`: weights keep name, type and dims and point into `latmod-weights.bin`.

    Weights are all large tensors, and the parameters of convolutions, matrix products and norms however small.
    `shapes` sets the dims of inputs by name.

    Offsets are 64-byte aligned and do not overlap, because aliased weights stay in the cache and read too fast. Small
    tensors, indices, shapes and masks keep their values. Large Constant nodes become initialisers, and so do parameters
    that ConstantOfShape stands in for, as in the onnx package's `backend/test/data/light`: one value everywhere makes
    torch's max pooling, which branches on the data, faster than any real weights do. Raises GraphError.
    """
    model = load(Path(path)).model
    try:
        return _strip(model, shapes or {})
    except GraphError as error:
        raise GraphError(f"{path}: {one_line(error)}") from None


def _strip(model: ModelProto, shapes: Shapes) -> bytes:
    set_shapes(model, shapes)
    graph = model.graph
    for node in graph.node:
        # Exporters note here which line of whose source a node came from.
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    _constants_to_initializers(model)
    _stand_ins_to_initializers(model)
    if model.ir_version < 4:
        # Before IR version 4 initialisers were also inputs, yet constant; since then that would make them overridable.
        initial = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in initial]
        del graph.input[:]
        graph.input.extend(inputs)
        model.ir_version = 4
    offset = 0
    parameters = _parameters(model)
    for tensor in graph.initializer:
        if has_data(tensor):
            if tensor.name not in parameters or 0 in tensor.dims:
                continue
            for field in _DATA_FIELDS:
                tensor.ClearField(field)
        size = Tensor(name=tensor.name, dtype=dtype_name(tensor.data_type), shape=tuple(tensor.dims)).nbytes
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(size))):
            tensor.external_data.append(StringStringEntryProto(key=key, value=value))
        offset += -(-size // _ALIGNMENT) * _ALIGNMENT
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def _parameters(model: ModelProto) -> frozenset[str]:
    """Name the float initialisers that a convolution, matrix product or norm reads as its parameters."""
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type in _FLOAT_TYPES}
    return frozenset(
        name for node in model.graph.node if node.op_type in _PARAMETRIC for name in node.input if name in floats
    )


def _constants_to_initializers(model: ModelProto) -> None:
    kept: list[NodeProto] = []
    for node in model.graph.node:
        tensor = next((a.t for a in node.attribute if a.name == "value" and node.op_type == "Constant"), None)
        if tensor is None or has_data(tensor) or not node.output:
            kept.append(node)
            continue
        initializer = model.graph.initializer.add()
        initializer.CopyFrom(tensor)
        initializer.name = node.output[0]
    keep_nodes(model, kept)


def _stand_ins_to_initializers(model: ModelProto) -> None:
    """Make initialisers without data of parameters that ConstantOfShape stands in for."""
    shapes = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.INT64 and has_data(t)}
    read = {name for node in model.graph.node if node.op_type in _PARAMETRIC for name in node.input}
    kept: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape" or node.output[0] not in read or node.input[0] not in shapes:
            kept.append(node)
            continue
        value = next((a.t.data_type for a in node.attribute if a.name == "value"), int(TensorProto.FLOAT))
        dims = array_of(shapes[node.input[0]]).tolist()
        model.graph.initializer.append(TensorProto(name=node.output[0], data_type=value, dims=dims))
    keep_nodes(model, kept)
