"""Cut the weights out of a serialized model before protobuf sees it.

Walks the protobuf wire format (https://protobuf.dev/programming-guides/encoding/) and copies everything but the data of
large tensors, so that a file of 102 MB costs as much to read as its 30 KB without weights: skipped bytes are never
touched when the buffer is a memory map. Field numbers are those of onnx.proto.
"""

from collections.abc import Callable, Iterator

from latmod.errors import GraphError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_GRAPH_DOC, _GRAPH_METADATA = 10, 16
_NODE_ATTRIBUTE, _NODE_DOC, _NODE_METADATA = 5, 6, 9
_ATTRIBUTE_TENSOR = 5
_TENSOR_TYPE = 2
# float_data, int32_data, string_data, int64_data, raw_data, double_data, uint64_data
_TENSOR_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})
_INT32, _INT64, _BOOL = 6, 7, 9

# Exporters put stack traces here: half the size of a weight-free file, and the paths of whoever exported it.
_GRAPH_DROPPED = frozenset({_GRAPH_DOC, _GRAPH_METADATA})
_NODE_DROPPED = frozenset({_NODE_DOC, _NODE_METADATA})

# Scalars, clip bounds, scales and other short lists keep their values; 64 float32.
SMALL_BYTES = 256
# Indices, shapes and masks steer what runs, so random values in their place would be wrong, not just different.
INDEX_BYTES = 1 << 20
# A graph of a million fields is ten times the largest one known; beyond that the file is noise, and a scan would hang.
_MAX_FIELDS = 1_000_000

Buffer = memoryview
_Field = tuple[int, int, int, int]


def cut_weights(model: Buffer) -> bytes:
    """Copy a serialized ModelProto without the data of its large tensors and the notes on its nodes.

    Raises GraphError if it is malformed.
    """
    return _rewrite(model, {_MODEL_GRAPH: _cut_graph})


def _cut_graph(graph: Buffer) -> bytes:
    return _rewrite(graph, {_GRAPH_INITIALIZER: _cut_tensor, _GRAPH_NODE: _cut_node}, _GRAPH_DROPPED)


def _cut_node(node: Buffer) -> bytes:
    return _rewrite(node, {_NODE_ATTRIBUTE: _cut_attribute}, _NODE_DROPPED)


def _cut_attribute(attribute: Buffer) -> bytes:
    return _rewrite(attribute, {_ATTRIBUTE_TENSOR: _cut_tensor})


def _cut_tensor(tensor: Buffer) -> bytes:
    kept = bytearray()
    data: list[_Field] = []
    dtype = 0
    for field in _fields(tensor):
        number, start, body, end = field
        if number in _TENSOR_DATA:
            data.append(field)
            continue
        if number == _TENSOR_TYPE:
            dtype = tensor[body]
        kept += tensor[start:end]
    limit = INDEX_BYTES if dtype in (_INT32, _INT64, _BOOL) else SMALL_BYTES
    if sum(end - body for _, _, body, end in data) <= limit:
        return bytes(tensor)
    return bytes(kept)


def _rewrite(
    message: Buffer, edits: dict[int, Callable[[Buffer], bytes]], dropped: frozenset[int] = frozenset()
) -> bytes:
    """Copy `message` without the fields in `dropped`, passing large bodies of those in `edits` through their function.

    What stays as it is is copied in spans, not field by field: a graph has thousands of small ones.
    """
    out = bytearray()
    copied = 0
    for number, start, body, end in _fields(message):
        if number in dropped:
            out += message[copied:start]
        elif number in edits and end - body > SMALL_BYTES and message[start] & 7 == _BYTES:
            edited = edits[number](message[body:end])
            out += message[copied:start]
            out += _varint_bytes(number << 3 | _BYTES) + _varint_bytes(len(edited)) + edited
        else:
            continue
        copied = end
    out += message[copied:]
    return bytes(out)


def _fields(message: Buffer) -> Iterator[_Field]:
    """Yield (field number, start of key, start of body, end) for each field of a message."""
    at, size, count = 0, len(message), 0
    while at < size:
        start = at
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _BYTES:
            length, at = _varint(message, at)
            end = at + length
        elif kind == _VARINT:
            _, end = _varint(message, at)
        elif kind == _FIXED64:
            end = at + 8
        elif kind == _FIXED32:
            end = at + 4
        else:
            raise GraphError("not an ONNX model: malformed protobuf")
        count += 1
        if end > size:
            raise GraphError("truncated: the file ends in the middle of a field")
        if count > _MAX_FIELDS:
            raise GraphError("not an ONNX model: more fields than any real graph")
        yield key >> 3, start, at, end
        at = end


def _varint(message: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise GraphError("truncated or not an ONNX model: malformed protobuf")


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
