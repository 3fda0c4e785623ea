"""Join element-wise kernels into one with what they go on with, as compilers do."""

from collections.abc import Collection, Mapping, Sequence

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import Kernel


def chained(
    graph: Graph,
    found: Sequence[Kernel],
    places: Mapping[str, int],
    going_on: Collection[str],
    ending: Collection[str],
    taken: Collection[int],
) -> dict[int, Kernel | None]:
    """Return element-wise kernels with all the work that is one piece with them, None for what they do the work of.

    Kinds `going_on` may have others behind them, `ending` none, where the shapes are the same and nothing else reads
    what lies between; `places` are those of nodes among the kernels, and what is at places `taken` stays as it is.
    """
    results = {tensor.name for tensor in graph.outputs}
    heads = {
        place: place
        for place, kernel in enumerate(found)
        if (kernel.kind in going_on or kernel.kind in ending) and kernel.outputs and place not in taken
    }
    changed: dict[int, Kernel | None] = {}
    for node in graph.nodes:
        place = places.get(node.name, -1)
        for name in node.inputs if heads.get(place) == place else ():
            source = graph.producer(name)
            before = places.get(source.name, -1) if source is not None else -1
            alone = graph.consumers(name) == (node,) and name not in results
            goes_on = before in heads and found[before].kind in going_on
            if goes_on and before != place and alone and found[before].outputs == found[place].outputs:
                head = heads[place] = heads[before]
                changed[head] = with_work_of(changed.get(head) or found[head], found[place])
                changed[place] = None
                break
    return changed


def with_work_of(kernel: Kernel, later: Kernel) -> Kernel:
    """Return a kernel that goes on with what another does to its result, which is not written in between."""
    besides = max(0.0, later.number("bytes_in") - kernel.number("bytes_out"))
    grown = kernel.with_numbers(
        steps=kernel.number("steps") + later.number("steps"),
        bytes_in=kernel.number("bytes_in") + besides,
        bytes_weights=kernel.number("bytes_weights") + later.number("bytes_weights"),
        operands=kernel.number("operands") + later.number("operands") - 1.0,
    )
    return msgspec.structs.replace(grown, nodes=(*kernel.nodes, *later.nodes), values=later.values)
