"""Set the dims of a model's inputs and infer those of every other value."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, TensorShapeProto, TypeProto, ValueInfoProto, shape_inference

from latmod.errors import GraphError
from latmod.graph.folding import Array, fold_shape_arithmetic
from latmod.graph.loading import dtype_name, load, one_line
from latmod.graph.nodes import check_order, read_nodes
from latmod.graph.records import Node, Tensor

# Each pass resolves one link in a chain such as Shape of a Reshape to a Shape; a Swin transformer needs 16.
_MAX_FOLDS = 100

Shapes = Mapping[str, tuple[int, ...]]
Typed = dict[str, tuple[int, tuple[int, ...]]]
"""Element type (a number of ONNX's) and static shape of values, by name."""


def parse_shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Read shapes of inputs, or sizes of free dims, as NAME=1x3x224x224. Raises GraphError for anything else."""
    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition("=")
        try:
            shape = tuple(int(dim) for dim in dims.lower().replace(",", "x").split("x"))
        except ValueError:
            shape = ()
        if not name or not shape or min(shape) < 1:
            raise GraphError(f"{text!r} is not NAME=1x3x224x224")
        shapes[name] = shape
    return shapes


def shape_names(path: Path) -> frozenset[str]:
    """Name what `--shape` can set in a file: its inputs and their free dims. Raises GraphError."""
    fed = fed_inputs(load(Path(path)).model)
    return frozenset({value.name for value in fed} | _free_dims(fed).keys())


def set_shapes(model: ModelProto, shapes: Shapes) -> bool:
    """Set the dims of inputs by name, forget the shapes that hung on them, and tell whether that changed anything.

    A name is an input's, or that of a free dim, which is then set wherever it stands.
    """
    fed = fed_inputs(model)
    names = {value.name for value in fed}
    free = _free_dims(fed)
    unknown = sorted(set(shapes) - names - free.keys())
    if unknown:
        dims = f"; the free dims: {', '.join(free)}" if free else ""
        listed = ", ".join(value.name for value in fed)
        raise GraphError(f"no input is named {unknown[0]!r} for --shape; the inputs are: {listed}{dims}")
    changed = any([_set_shape(value, shapes[value.name]) for value in fed if value.name in shapes])
    for name in sorted(shapes.keys() & free.keys() - names):
        if len(shapes[name]) != 1 or shapes[name][0] < 1:
            told = "x".join(map(str, shapes[name]))
            raise GraphError(f"--shape {name}: a dim takes one number of at least 1, not {told}")
        for dim in free[name]:
            if not dim.dim_value:
                dim.dim_value = shapes[name][0]
                changed = True
    if changed:
        _forget_shapes(model)
    return changed


def _free_dims(values: Sequence[ValueInfoProto]) -> dict[str, list[TensorShapeProto.Dimension]]:
    """Return the dims that have a name instead of a number, by that name."""
    found: dict[str, list[TensorShapeProto.Dimension]] = {}
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                found.setdefault(dim.dim_param, []).append(dim)
    return found


def read_inputs(path: Path) -> tuple[Tensor, ...]:
    """Read the inputs alone, without inferring any shape. Raises GraphError where one has no static shape."""
    values = fed_inputs(load(Path(path)).model)
    try:
        _check_inputs(values)
    except GraphError as error:
        raise GraphError(f"{path}: {one_line(error)}") from None
    return tuple(
        Tensor(
            name=value.name,
            dtype=dtype_name(value.type.tensor_type.elem_type),
            shape=tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    )


class Inferred(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a model with all shapes inferred, its values that have static ones, and its nodes."""

    model: ModelProto
    values: Typed
    nodes: tuple[Node, ...]


def inferred(model: ModelProto, nodes: tuple[Node, ...], shapes: Shapes) -> Inferred:
    """Set the dims of the inputs of a model with these nodes, infer those of every other value. Raises GraphError."""
    changed = set_shapes(model, shapes)
    _check_inputs(fed_inputs(model))
    written = check_order(nodes, _given(model))
    try:
        return _infer_all(model, nodes, written)
    except GraphError:
        if changed or not model.graph.value_info:
            raise
    # Some exporters leave intermediate shapes that contradict the inputs; the inputs are right.
    _forget_shapes(model)
    return _infer_all(model, nodes, written)


def _given(model: ModelProto) -> Iterator[str]:
    yield from (value.name for value in model.graph.input)
    yield from (tensor.name for tensor in model.graph.initializer)
    yield from (sparse.values.name for sparse in model.graph.sparse_initializer)


def without_shape_arithmetic(model: ModelProto) -> ModelProto:
    """Infer all shapes and put constants in the place of what is computed from them. Raises GraphError."""
    model = inferred(model, read_nodes(model.graph.node)[0], {}).model
    known: dict[str, Array] = {}
    while fold_shape_arithmetic(model, known):
        pass
    return model


def _infer_all(model: ModelProto, nodes: tuple[Node, ...], written: set[str]) -> Inferred:
    """Infer shapes; where that leaves gaps among what is written, compute the values they hang on and infer again."""
    model, values = _infer(model)
    known: dict[str, Array] = {}
    for _ in range(_MAX_FOLDS):
        if written <= values.keys() or not fold_shape_arithmetic(model, known):
            break
        model, values = _infer(model)
    return Inferred(model=model, values=values, nodes=read_nodes(model.graph.node)[0] if known else nodes)


def _infer(model: ModelProto) -> tuple[ModelProto, Typed]:
    try:
        model = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, RuntimeError, ValueError, DecodeError) as error:
        raise GraphError(f"shapes do not fit: {one_line(error)}") from None
    values: Typed = {}
    for value in (*fed_inputs(model), *model.graph.value_info, *model.graph.output):
        shape = static_shape(value.type)
        if shape is not None:
            values[value.name] = value.type.tensor_type.elem_type, shape
    return model, values


def fed_inputs(model: ModelProto) -> list[ValueInfoProto]:
    """List the inputs that the caller feeds: before IR version 4, initialisers were listed among the inputs too."""
    initial = {tensor.name for tensor in model.graph.initializer}
    initial.update(sparse.values.name for sparse in model.graph.sparse_initializer)
    return [value for value in model.graph.input if value.name not in initial]


def _set_shape(value: ValueInfoProto, dims: tuple[int, ...]) -> bool:
    """Set the dims of an input; tell whether that changed anything."""
    if any(dim < 1 for dim in dims):
        raise GraphError(f"--shape {value.name}: every dim must be at least 1, not {dims}")
    old = value.type.tensor_type.shape
    if value.type.tensor_type.HasField("shape") and len(old.dim) != len(dims):
        raise GraphError(f"--shape {value.name}: the input has {len(old.dim)} dims, not {len(dims)}")
    before = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in old.dim)
    old.ClearField("dim")
    for dim in dims:
        old.dim.add().dim_value = dim
    return before != dims


def _check_inputs(values: Sequence[ValueInfoProto]) -> None:
    """Raise GraphError where inputs are no tensors, or have no static shapes: all of these at once."""
    for value in values:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type":
            raise GraphError(f"input {value.name!r} is a {kind or 'value without a type'}: only tensors are supported")
    free = [value for value in values if static_shape(value.type) is None]
    if free:
        told = ", ".join(f"{value.name!r} ({_dims(value) or 'unknown rank'})" for value in free)
        inputs = "inputs have" if len(free) > 1 else "an input has"
        raise GraphError(f"{inputs} no static shape: {told}; for example, say {_example(free)}")


def _dims(value: ValueInfoProto) -> str:
    return ",".join(dim.dim_param or str(dim.dim_value or "?") for dim in value.type.tensor_type.shape.dim)


def _example(free: Sequence[ValueInfoProto]) -> str:
    """Return options that would do: by dims where each has a name and several inputs share them, else by inputs."""
    named = _free_dims(free)
    alone = all(dim.dim_param or dim.dim_value for value in free for dim in value.type.tensor_type.shape.dim)
    if len(free) > 1 and named and alone:
        firsts = {value.type.tensor_type.shape.dim[0].dim_param for value in free if _dims(value)}
        return " ".join(f"--shape {name}={1 if name in firsts else 128}" for name in named)
    return " ".join(f"--shape {value.name}={_likely(value)}" for value in free)


def _likely(value: ValueInfoProto) -> str:
    """Return a shape for an input: its own numbers where it has some, one image of 224 x 224 or 128 tokens else."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        return "1x3x224x224"
    usual = (1, 3, 224, 224) if len(dims) == 4 else (1, *(128,) * (len(dims) - 1))
    return "x".join(str(dim.dim_value or likely) for dim, likely in zip(dims, usual, strict=True))


def _forget_shapes(model: ModelProto) -> None:
    del model.graph.value_info[:]
    for output in model.graph.output:
        if output.type.WhichOneof("value") == "tensor_type":
            output.type.tensor_type.ClearField("shape")


def static_shape(kind: TypeProto) -> tuple[int, ...] | None:
    """Give the dims of a tensor type, or None where one is not a number."""
    tensor = kind.tensor_type
    shape = tuple([dim.dim_value for dim in tensor.shape.dim])
    if shape and all(shape):
        return shape
    # A dim of nought and one that is no number read alike.
    if not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    return shape
