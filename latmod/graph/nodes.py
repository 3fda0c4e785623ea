"""Read the nodes of a model, all in one walk: protobuf takes longer to hand them out than we to look at them."""

from collections.abc import Callable, Iterable

from onnx import AttributeProto, NodeProto, TensorProto

from latmod.errors import GraphError
from latmod.graph.records import Attribute, Node

ONNX = ("", "ai.onnx")
"""Names of the domain that needs no name."""
_CONTROL_FLOW = frozenset({AttributeProto.GRAPH, AttributeProto.GRAPHS})
# Tensors, graphs and types are no plain attributes.
_PLAIN_ATTRIBUTES: dict[int, Callable[[AttributeProto], Attribute]] = {
    AttributeProto.INT: lambda a: int(a.i),
    AttributeProto.FLOAT: lambda a: float(a.f),
    AttributeProto.STRING: lambda a: bytes(a.s).decode("utf-8", "replace"),
    AttributeProto.INTS: lambda a: tuple(a.ints),
    AttributeProto.FLOATS: lambda a: tuple(a.floats),
    AttributeProto.STRINGS: lambda a: tuple(s.decode("utf-8", "replace") for s in a.strings),
}


def read_nodes(protos: Iterable[NodeProto]) -> tuple[tuple[Node, ...], list[TensorProto]]:
    """Read the nodes, giving each a name of its own, and the tensors that they hold.

    Raises GraphError where one runs a subgraph or has a name that is not UTF-8.
    """
    nodes: list[Node] = []
    names: set[str] = set()
    kinds: set[type] = set()
    tensors: list[TensorProto] = []
    for proto in protos:
        inputs, outputs, domain, op = tuple(proto.input), tuple(proto.output), proto.domain, proto.op_type
        name = proto.name
        kinds.update(map(type, (name, domain, op, *inputs, *outputs)))
        name = name or f"{op}_{next(iter(outputs), '')}"
        name = name if name not in names else f"{name}#{len(nodes)}"
        names.add(name)
        attributes: dict[str, Attribute] = {}
        for attribute in proto.attribute:
            own, kind = attribute.name, attribute.type
            kinds.add(type(own))
            if kind in _CONTROL_FLOW:
                raise GraphError(
                    f"node {name} ({op}) runs a subgraph: its latency depends on the data; "
                    "export the model without control flow"
                )
            # Whatever the type says.
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            tensors += attribute.tensors
            if kind in _PLAIN_ATTRIBUTES:
                attributes[own] = _PLAIN_ATTRIBUTES[kind](attribute)
        op = op if domain in ONNX else f"{domain}::{op}"
        nodes.append(Node(name=name, op=op, inputs=inputs, outputs=outputs, attributes=attributes))
    check_texts(kinds)
    return tuple(nodes), tensors


def check_texts(kinds: Iterable[type]) -> None:
    """Refuse what is no text, by its type: protobuf hands names that are not UTF-8 out as bytes."""
    if set(kinds) - {str}:
        raise GraphError("damaged: a name in it is not UTF-8 text")


def check_order(nodes: Iterable[Node], given: Iterable[str]) -> set[str]:
    """Refuse a value that is read before it is computed, or computed twice; return the values that nodes compute.

    `given` are the values that are there before any node runs.
    """
    before = frozenset(given)
    defined = {*before, ""}
    for node in nodes:
        if not defined.issuperset(node.inputs):
            name = next(name for name in node.inputs if name not in defined)
            raise GraphError(f"node {node.name!r} ({node.op}) reads {name!r}, which nothing computed before it")
        for name in node.outputs:
            if name and name in defined:
                raise GraphError(f"node {node.name!r} ({node.op}) computes {name!r}, which exists already")
        defined.update(node.outputs)
    return defined - before - {""}
