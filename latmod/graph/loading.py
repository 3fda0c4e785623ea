"""Open an `.onnx` file as a protobuf model without its weights, or refuse it in one line."""

import mmap
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from latmod.errors import GraphError
from latmod.graph.nodes import check_texts, read_nodes
from latmod.graph.records import Node
from latmod.graph.wire import INDEX_BYTES, SMALL_BYTES, cut_weights

# Protobuf cannot hold more; larger models keep their weights in external data, which is not read.
_MAX_BYTES = 2**31 - 1
_INDEX_TYPES = frozenset({TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL})


class Loaded(msgspec.Struct, frozen=True):
    """Hold a model and its nodes."""

    model: ModelProto
    nodes: tuple[Node, ...]


def load(path: Path) -> Loaded:
    """Read a model without the data of its large tensors, local functions inlined. Raises GraphError."""
    model = _parse(path)
    if not model.HasField("graph") or not (model.graph.node or model.graph.input or model.graph.output):
        raise GraphError(f"{path}: not an ONNX model, or one without a graph")
    try:
        nodes, held = read_nodes(model.graph.node)
        tensors = [*model.graph.initializer, *held]
        for sparse in model.graph.sparse_initializer:
            tensors += [sparse.values, sparse.indices]
        _check_text(model, tensors)
        _read_external(tensors, path.parent)
        if model.functions:
            model = _inline(model)
            nodes, _ = read_nodes(model.graph.node)
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from None
    return Loaded(model, nodes)


def _parse(path: Path) -> ModelProto:
    try:
        if path.is_dir():
            raise GraphError("a folder, not an .onnx file")
        if not path.exists():
            raise GraphError("no such file")
        if not path.is_file():
            raise GraphError("not a regular file")
        size = path.stat().st_size
        if size == 0:
            raise GraphError("empty file")
        if size > _MAX_BYTES:
            raise GraphError("over 2 GB, which no .onnx file can be; save its weights as external data")
        with path.open("rb") as file:
            # Not closed by hand: while an error is under way its traceback still holds views into the map.
            content = cut_weights(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except GraphError as error:
        raise GraphError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        raise GraphError(f"{path}: cannot be read: {one_line(error)}") from None
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except (DecodeError, RecursionError) as error:
        raise GraphError(f"{path}: not an ONNX model: {one_line(error)}") from None
    return model


def _inline(model: ModelProto) -> ModelProto:
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError, DecodeError) as error:
        raise GraphError(f"its local functions cannot be inlined: {one_line(error)}") from None


def _check_text(model: ModelProto, tensors: list[TensorProto]) -> None:
    """Refuse names outside the nodes that are not UTF-8."""
    graph = model.graph
    names = [tensor.name for tensor in tensors]
    names += [text for t in tensors for entry in t.external_data for text in (entry.key, entry.value)]
    names += [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
    names += [opset.domain for opset in model.opset_import]
    check_texts(map(type, names))


def _read_external(tensors: Iterable[TensorProto], folder: Path) -> None:
    """Refuse external data outside the model's folder, and read what is inside and small enough to steer shapes."""
    # A model has thousands of tensors in one file.
    places: dict[str, Path] = {}
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            _read_one(tensor, folder, places)


def _read_one(tensor: TensorProto, folder: Path, places: dict[str, Path]) -> None:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    try:
        if location not in places:
            places[location] = _external_place(tensor, location, folder)
        data = places[location]
        offset, length = int(fields.get("offset") or 0), int(fields.get("length") or 0)
        limit = INDEX_BYTES if tensor.data_type in _INDEX_TYPES else SMALL_BYTES
        if not 0 < length <= limit or offset < 0 or not data.is_file():
            return
        with data.open("rb") as file:
            file.seek(offset)
            raw = file.read(length)
    except (OSError, ValueError, OverflowError, RuntimeError) as error:
        raise GraphError(f"external data of tensor {tensor.name!r} cannot be read: {one_line(error)}") from None
    if len(raw) == length:
        tensor.raw_data = raw
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _external_place(tensor: TensorProto, location: str, folder: Path) -> Path:
    folder = folder.resolve()
    data = (folder / location).resolve()
    inside = bool(location) and ".." not in Path(location).parts and data.is_relative_to(folder)
    if not inside or Path(location).is_absolute():
        raise GraphError(f"tensor {tensor.name!r} wants data from {location!r}, outside the model's folder: refused")
    return data


def keep_nodes(model: ModelProto, kept: Sequence[NodeProto]) -> None:
    """Let a model have these nodes, of which some may be new and others left out, in place."""
    if len(kept) != len(model.graph.node) or any(a is not b for a, b in zip(kept, model.graph.node, strict=True)):
        nodes = [NodeProto.FromString(node.SerializeToString()) for node in kept]  # `del` empties the originals
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def has_data(tensor: TensorProto) -> bool:
    """Tell whether a tensor still has its values (an empty tensor has)."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return False
    return (
        0 in tensor.dims
        or tensor.HasField("raw_data")
        or any(
            (
                tensor.float_data,
                tensor.int32_data,
                tensor.int64_data,
                tensor.double_data,
                tensor.uint64_data,
                tensor.string_data,
            )
        )
    )


def array_of(tensor: TensorProto) -> npt.NDArray[np.generic]:
    """Read the values of a tensor that has some. Raises GraphError where they do not fit its type and dims."""
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        raise GraphError(f"tensor {tensor.name!r} has damaged data: {one_line(error)}") from None


@cache
def dtype_name(data_type: int) -> str:
    """Name an ONNX element type the way numpy does ("float" is "float32"). Raises GraphError for an unknown number."""
    try:
        name = str(TensorProto.DataType.Name(data_type)).lower()
    except ValueError:
        raise GraphError(f"element type {data_type} does not exist") from None
    return {"float": "float32", "double": "float64"}.get(name, name)


def one_line(error: BaseException) -> str:
    """Shorten an error message to what fits one line, without control characters."""
    text = " ".join(str(error).split())[:400] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in text)
