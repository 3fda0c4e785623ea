"""The immutable records that the rest of latmod sees of an `.onnx` file."""

from math import prod

import msgspec

Scalar = int | float
Attribute = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

# Bits per element; 4-bit types are packed two to a byte.
BITS = {
    "float64": 64, "int64": 64, "uint64": 64, "complex64": 64, "complex128": 128,
    "float32": 32, "int32": 32, "uint32": 32,
    "float16": 16, "bfloat16": 16, "int16": 16, "uint16": 16,
    "int8": 8, "uint8": 8, "bool": 8, "string": 8,
    "int4": 4, "uint4": 4, "float4e2m1": 4, "int2": 2, "uint2": 2,
}  # fmt: skip
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one value of a graph: its name, element type and static dims."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Count the elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Count the bytes of a dense copy (8-bit float types are not in `BITS` and take one byte)."""
        return (self.numel * BITS.get(self.dtype, 8) + 7) // 8


class Attributed:
    """Read the attributes of an operator."""

    __slots__ = ()
    attributes: dict[str, Attribute]

    def ints(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """Give the list-of-integers attribute `name`, or `default` where the operator does not say."""
        value = self.attributes.get(name, default)
        return tuple(int(v) for v in value) if isinstance(value, tuple) else default

    def integer(self, name: str, default: int) -> int:
        """Give the integer attribute `name`, or `default` where the operator does not say."""
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default


class Node(msgspec.Struct, Attributed, frozen=True, kw_only=True):
    """Describe one operator: `op` is "Conv", or "domain::Op" outside the ONNX domain; absent optional inputs are ""."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Attribute]


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one static graph, nodes in topological order.

    `inputs` leaves initialisers out. `tensors` has every value with a known shape: inputs, initialisers and
    intermediates; values that only an unknown operator could shape are in `shapeless` instead. `constants` holds the
    values of small tensors. `static` names the values that no input influences (initialisers and what is computed
    from them alone): every engine computes those once, at load time. `users` maps a value to the nodes that read it.
    """

    name: str
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[Node, ...]
    initializers: dict[str, Tensor]
    tensors: dict[str, Tensor]
    constants: dict[str, tuple[Scalar, ...]]
    static: frozenset[str]
    shapeless: frozenset[str]
    producers: dict[str, Node]
    users: dict[str, tuple[Node, ...]]

    def producer(self, name: str) -> Node | None:
        """Give the node that computes value `name`, or None for inputs and initialisers."""
        return self.producers.get(name)

    def consumers(self, name: str) -> tuple[Node, ...]:
        """List the nodes that read value `name`, each once, in topological order."""
        return self.users.get(name, ())

    def axes(self, node: Node) -> tuple[int, ...]:
        """List the axes that a reduction names: an attribute in older files, an input in newer ones; () for none."""
        if len(node.inputs) > 1:
            return tuple(int(axis) for axis in self.constants.get(node.inputs[1], ()))
        return node.ints("axes", ())


# Operators that draw numbers: their results are not known at load time although nothing flows into them.
RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)
# Operators whose result depends only on the (static) shape of what they read.
SHAPE_ONLY = frozenset({"Shape", "Size", "EyeLike"})
# Operators whose result depends only on the type of their second input.
TYPE_OF_SECOND = frozenset({"CastLike"})


def static_values(nodes: tuple[Node, ...], initializers: dict[str, Tensor]) -> frozenset[str]:
    """Name the values that no graph input influences."""
    static = set(initializers)
    for node in nodes:
        if node.op in RANDOM:
            continue
        inputs = node.inputs[:1] if node.op in TYPE_OF_SECOND else node.inputs
        if node.op in SHAPE_ONLY or all(not name or name in static for name in inputs):
            static.update(name for name in node.outputs if name)
    return frozenset(static)


def link(nodes: tuple[Node, ...]) -> tuple[dict[str, Node], dict[str, tuple[Node, ...]]]:
    """Index `nodes` by the values they produce and by the values they read."""
    producers = {name: node for node in nodes for name in node.outputs if name}
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in dict.fromkeys(node.inputs):
            if name:
                users.setdefault(name, []).append(node)
    return producers, {name: tuple(readers) for name, readers in users.items()}
