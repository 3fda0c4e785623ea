"""What OpenVINO has to turn in memory before a kernel can read it, and takes long for."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod

import msgspec

from latmod.graph import Graph, Node
from latmod.kernels.kernel import AT_ONE_PLACE, Kernel

_FLOAT_BYTES, _CROWDED_BYTES, _CACHED_BYTES, _VECTOR = 4, 1024, 2**20, 16
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_JOINING = frozenset({"Add", "Mul"})


def turned_sources(graph: Graph, found: Sequence[Kernel], places: Mapping[str, int]) -> dict[int, Kernel | None]:
    """Return the kernels that read what lies otherwise than they want, as kinds of their own, by their place.

    A product with weights reads rows that were put together of parts one of which had its channels first, to be
    convolved: these are turned back for 0.1 to 0.5 ns an element, and for 1.8 to 7 where vectors fit a row and the
    pixels lie at one place of the cache, or the map in none (mixer-zen5: 14 of 83, of which 12 are told so). A
    convolution of a part of the channels of such rows takes about twice as long as of a map (78 kernels there). A
    reduction over dims with others between goes element by element: 9 ns each instead of 0.1 to 0.5 (48 in
    kernels-engines-zen5 and kernels-more-zen5). All of this is told with the kernel that needs it.
    """
    changed: dict[int, Kernel | None] = {}
    for node in graph.nodes:
        place = places.get(node.name, -1)
        if place < 0:
            continue
        kernel = found[place]
        if node.op in _PRODUCTS and " weights" in kernel.kind and _reads_joined_parts(graph, node):
            kind = f"{kernel.kind}/turned" + (AT_ONE_PLACE if _is_crowded(kernel.inputs[0]) else "")
            changed[place] = msgspec.structs.replace(kernel, kind=kind)
        elif node.op == "Conv" and _reads_turned_part(graph, node):
            changed[place] = msgspec.structs.replace(kernel, kind=f"{kernel.kind}/turned part")
        elif node.op.startswith("Reduce") and _has_dims_between(graph, node):
            changed[place] = msgspec.structs.replace(kernel, kind=f"{node.op}/apart")
    return changed


def _reads_joined_parts(graph: Graph, node: Node) -> bool:
    """Tell whether a product's rows are, but for a gate, a union of parts one of which was a convolution's map."""
    source = graph.producer(node.inputs[0])
    if source is None:
        return False
    joined = [graph.producer(name) for name in source.inputs] if source.op in _JOINING else [source]
    parts = [graph.producer(name) for one in joined if one is not None and one.op == "Concat" for name in one.inputs]
    turned = [graph.producer(part.inputs[0]) for part in parts if part is not None and part.op == "Transpose"]
    return any(source is not None and source.op == "Conv" for source in turned)


def _reads_turned_part(graph: Graph, node: Node) -> bool:
    turn = graph.producer(node.inputs[0])
    source = graph.producer(turn.inputs[0]) if turn is not None and turn.op == "Transpose" else None
    return source is not None and source.op == "Split"


def _is_crowded(shape: Sequence[int]) -> bool:
    pixels, channels = prod(shape[:-1]), shape[-1]
    large = _FLOAT_BYTES * pixels * channels > _CACHED_BYTES
    return channels % _VECTOR == 0 and (large or _FLOAT_BYTES * pixels % _CROWDED_BYTES == 0)


def _has_dims_between(graph: Graph, node: Node) -> bool:
    """Tell whether a reduction leaves dims of more than one element between those that it is over."""
    shape = graph.tensors[node.inputs[0]].shape if node.inputs[0] in graph.tensors else ()
    own = sorted(axis % len(shape) for axis in graph.axes(node)) if shape else []
    return any(prod(shape[one + 1 : other]) > 1 for one, other in pairwise(own))
