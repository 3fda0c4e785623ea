"""Find convolutions of parts of the channels that an engine may make as one with groups."""

from collections.abc import Mapping, Sequence

import msgspec

from latmod.graph import Graph, Node
from latmod.kernels.chains import with_work_of
from latmod.kernels.kernel import Kernel

KIND = "Conv grouped/parts"
_SUMMED = (
    "macs", "padded_macs", "steps", "bytes_in", "bytes_out", "bytes_weights", "numel_out", "channels_in",
    "channels_out",
)  # fmt: skip
_LIKE = ("strides", "pads", "dilations", "group", "kernel_shape")


def joined_parts(graph: Graph, found: Sequence[Kernel], places: Mapping[str, int]) -> dict[int, Kernel | None]:
    """Return one convolution for a split, alike ones without a bias of all its parts, their union and a norm behind.

    By the places among the kernels, `places` being those of nodes; None for what is gone.
    """
    alone = {kernel.nodes[0]: place for place, kernel in enumerate(found) if len(kernel.nodes) == 1}
    changed: dict[int, Kernel | None] = {}
    for node in graph.nodes:
        convolutions = _convolutions_of_parts(graph, node) if node.op == "Concat" else ()
        split = graph.producer(convolutions[0].inputs[0]) if convolutions else None
        names = [*(one.name for one in convolutions), *([split.name, node.name] if split is not None else [])]
        if not names or not alone.keys() >= {*names}:
            continue
        first, union = found[alone[names[0]]], found[alone[node.name]]
        count = float(len(convolutions))
        numbers = {name: count * first.number(name) for name in _SUMMED} | {"group": count, "products": count}
        joined = msgspec.structs.replace(
            first.with_numbers(**numbers),
            kind=KIND,
            nodes=tuple(names),
            outputs=union.outputs,
            values=union.values,
        )
        changed |= dict.fromkeys(alone[name] for name in names)
        behind = graph.consumers(node.outputs[0])
        norm = places.get(behind[0].name, -1) if len(behind) == 1 and behind[0].op == "BatchNormalization" else -1
        if norm >= 0:
            joined = with_work_of(joined, found[norm])
            changed[norm] = None
        changed[alone[names[0]]] = joined
    return changed


def _convolutions_of_parts(graph: Graph, union: Node) -> tuple[Node, ...]:
    """Return what is put together, where these are alike convolutions of all parts of the same channels, in order."""
    made = [graph.producer(name) for name in union.inputs]
    convolutions = tuple(one for one in made if one is not None and one.op == "Conv" and len(one.inputs) == 2)
    if union.integer("axis", 0) != 1 or len(convolutions) < 2 or len(convolutions) != len(made):
        return ()
    split = graph.producer(convolutions[0].inputs[0])
    if split is None or split.op != "Split" or split.outputs != tuple(one.inputs[0] for one in convolutions):
        return ()
    read_once = all(len(graph.consumers(name)) == 1 for name in (*split.outputs, *union.inputs))
    weights = {graph.tensors[one.inputs[1]].shape for one in convolutions}
    forms = {tuple(str(one.attributes.get(name)) for name in _LIKE) for one in convolutions}
    alike = len(weights) == len(forms) == 1 and convolutions[0].integer("group", 1) == 1
    return convolutions if alike and read_once else ()
