"""What OpenVINO makes of a graph, as far as it differs from onnxruntime."""

from collections.abc import Sequence
from math import prod

import msgspec

from latmod.graph import Graph, Node
from latmod.kernels.chains import chained
from latmod.kernels.kernel import AT_ONE_PLACE, Kernel
from latmod.kernels.parts import joined_parts
from latmod.kernels.turned import turned_sources

# oneDNN's jit_uni_lrn: windows of five channels, vectors of eight; anything else element by element, with a power each.
_WINDOW, _VECTOR = 5, 8
_POWER_STEPS = 10.0
_SHUFFLING = (0, 2, 1, 3, 4)
_WEIGHTED = ("Gemm weights", "MatMul weights")
_RETURNED = "Reorder"
_IMAGE_DIMS = 4
_FLOAT_BYTES, _PAGE_BYTES, _CROWDING = 4, 4096, range(17, 65)
_MOST_PIXELS, _MOST_CACHED_BYTES, _FEW_CHANNELS, _VECTOR_PIXELS = 4096, 2**19, 64, 16
_CHAINED = frozenset({"Add", "BatchNormalization", "Div", "Mul", "Pow", "Sub", "Sum"})
_ENDING = frozenset({"Elu", "LeakyRelu", "Relu"})
"""Kinds that OpenVINO compiles into one piece with what goes before, the second ones as its end.

By its counters always, where the shapes are the same and nothing else reads what lies between (kernels-engines-zen4:
262 of 262 pairs; kernels-engines-spr: 363 of 366). Other element-wise ones, as GELU, never are.
"""


_CHANNELS_LAST = frozenset({"Concat", "Conv"})
"""What reads a map with its channels last."""


def changed_in_openvino(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return what is otherwise in OpenVINO, by its place among the kernels in onnxruntime; None for what is gone.

    A product with weights takes a scale of its columns into these, so no kernel is left of it: what the engine tells of
    the product bears the scale's name. Local response norms that no vectors fit take so many more steps per element
    (kernels-engines-zen4-avx2: 17 ns for 1.5). A reshape that takes channels apart, a transpose and the reshape back
    are one shuffle of channels, told by the name of the last. A layer norm of an image that a transpose
    turned takes two to four times as long as others, by element (kernels-engines-zen4: 0.8 to 2 ns for 0.2 to 0.5), and
    as long again where its channels are whole pages apart, or 64, 128, 256 of them in maps of over half a megabyte
    (kernels-engines-zen5, kernels-more-zen5: 2 to 7.5 ns for 0.6, EdgeNeXt 6.1 to 6.4), but of no more than 64 x 64
    pixels (0.4 to 0.9 from there on), and not of rows (0.3 to 0.6, with whole pages too). Element-wise work on what
    element-wise work gives is one piece with it.

    What onnxruntime puts in is gone (latmod.kernels), but where it brings a map that the network returns out of blocks
    of channels: 0.2 to 0.9 ns an element, and 3 to 6 where the same pixels of more than 16 channels are whole pages
    apart, so that one pushes another out of the cache: 39 % of the time of LR-ASPP (kernels-more-zen5: 9 such of 19 to
    32 channels, 19 others; of 66 channels it is as quick as others).

    A split of a convolution's channels of which no part is convolved or put together again turns them into planes, 1.8
    to 3.2 ns an element, and 8 to 9 where pixels are whole pages apart (mixer-zen5: 79 and 7; 539 others 0.03 to 0.65).
    Parts that are convolved alike and put together again are one convolution with groups, told by the name of the norm
    behind them. What else it turns in memory first is told in `latmod.kernels.turned`.
    """
    places = {node: place for place, kernel in enumerate(found) for node in kernel.nodes}
    changed = _returned(graph, found) | turned_sources(graph, found, places) | joined_parts(graph, found, places)
    for node in graph.nodes:
        place = places.get(node.name, -1)
        if place < 0 or place in changed:
            continue
        if node.op == "LRN" and not _fits_vectors(node, found[place]):
            changed[place] = found[place].with_numbers(steps=found[place].number("steps") * _POWER_STEPS)
        shuffled = _shuffle(graph, node) if node.op == "Reshape" else ()
        if shuffled and all(one.name in places for one in shuffled):
            changed |= dict.fromkeys(places[one.name] for one in shuffled[:-1])
            changed[place] = _shuffling(graph, found[place], shuffled)
        if node.op == "Split" and _gives_planes(graph, node):
            kind = "Split/planes" + (AT_ONE_PLACE if _fills_pages(found[place].inputs[0][2:]) else "")
            changed[place] = msgspec.structs.replace(found[place], kind=kind)
        source = graph.producer(node.inputs[0]) if node.op == "LayerNormalization" else None
        if source is not None and source.op == "Transpose":
            changed[place] = msgspec.structs.replace(found[place], kind=_turned(graph, source.outputs[0]))
        scaled = _scaled_product(graph, node) if node.op == "Mul" and found[place].nodes == (node.name,) else None
        product = places.get(scaled.name, -1) if scaled is not None else -1
        if product >= 0 and found[product].kind.startswith(_WEIGHTED):
            own = changed.get(product) or found[product]
            changed[product] = msgspec.structs.replace(own, nodes=(*own.nodes, node.name))
            changed[place] = None
    return changed | chained(graph, found, places, _CHAINED, _ENDING, changed)


def _turned(graph: Graph, name: str) -> str:
    """Return the kind of a layer norm over what was turned so that channels are last."""
    shape = graph.tensors[name].shape if name in graph.tensors else ()
    if len(shape) != _IMAGE_DIMS:
        return "LayerNormalization/rows turned"
    pixels, channels = prod(shape[1:-1]), shape[-1]
    written = channels >= _FEW_CHANNELS and channels & (channels - 1) == 0 and pixels % _VECTOR_PIXELS == 0
    large = _FLOAT_BYTES * pixels * channels > _MOST_CACHED_BYTES
    crowded = _fills_pages(shape[1:-1]) or (written and large)
    return "LayerNormalization/turned" + (AT_ONE_PLACE if crowded and pixels <= _MOST_PIXELS else "")


def _gives_planes(graph: Graph, node: Node) -> bool:
    """Tell whether a split gives planes of what a convolution left with channels last: nothing wants them so."""
    shape = graph.tensors[node.inputs[0]].shape if node.inputs[0] in graph.tensors else ()
    source = graph.producer(node.inputs[0])
    if len(shape) != _IMAGE_DIMS or node.integer("axis", 0) % _IMAGE_DIMS != 1 or source is None or source.op != "Conv":
        return False
    return not any(reader.op in _CHANNELS_LAST for part in node.outputs for reader in graph.consumers(part))


def _fills_pages(sides: Sequence[int]) -> bool:
    """Tell whether a channel's pixels are whole pages, so that all channels lie at one place of the cache."""
    return _FLOAT_BYTES * prod(sides) % _PAGE_BYTES == 0


def _returned(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return what brings maps that the network returns out of blocks of channels."""
    maps = {tensor.name: tensor.shape for tensor in graph.outputs if len(tensor.shape) == _IMAGE_DIMS}
    changed: dict[int, Kernel | None] = {}
    for place, kernel in enumerate(found):
        shapes = [maps[name] for name in kernel.values if name in maps]
        if shapes and not kernel.nodes:
            channels = shapes[0][1]
            crowded = _fills_pages(shapes[0][2:]) and channels in _CROWDING
            kind = _RETURNED + (AT_ONE_PLACE if crowded else "")
            named = kernel.with_numbers(channels_out=float(channels))
            changed[place] = msgspec.structs.replace(named, op=_RETURNED, kind=kind, label=kernel.values[0])
    return changed


def _fits_vectors(node: Node, kernel: Kernel) -> bool:
    shape = kernel.inputs[0] if kernel.inputs else ()
    return node.integer("size", 0) == _WINDOW and len(shape) > 1 and shape[1] % _VECTOR == 0


def _scaled_product(graph: Graph, node: Node) -> Node | None:
    """Return the node whose result, read by nothing else, is multiplied by a fixed number for each column."""
    if len(node.inputs) != 2:
        return None
    active = [name for name in node.inputs if name not in graph.static]
    fixed = [graph.tensors[name] for name in node.inputs if name in graph.static and name in graph.tensors]
    if len(active) != 1 or len(fixed) != 1 or active[0] not in graph.tensors or graph.consumers(active[0]) != (node,):
        return None
    width = graph.tensors[active[0]].shape[-1:]
    return graph.producer(active[0]) if fixed[0].shape[-1:] == width == (fixed[0].numel,) else None


def _shuffle(graph: Graph, last: Node) -> tuple[Node, ...]:
    """Return the nodes that shuffle channels, where this is the last of them."""
    turn = graph.producer(last.inputs[0])
    first = graph.producer(turn.inputs[0]) if turn is not None else None
    if turn is None or first is None or (turn.op, first.op) != ("Transpose", "Reshape"):
        return ()
    shapes = [graph.tensors[name].shape for name in (first.inputs[0], last.outputs[0]) if name in graph.tensors]
    alone = graph.consumers(first.outputs[0]) == (turn,) and graph.consumers(turn.outputs[0]) == (last,)
    return (first, turn, last) if alone and len({*shapes}) == 1 and turn.ints("perm", ()) == _SHUFFLING else ()


def _shuffling(graph: Graph, kernel: Kernel, nodes: tuple[Node, ...]) -> Kernel:
    shuffle = kernel.copying("ChannelShuffle", graph.tensors[nodes[-1].outputs[0]].nbytes)
    return msgspec.structs.replace(shuffle, nodes=tuple(node.name for node in nodes))
