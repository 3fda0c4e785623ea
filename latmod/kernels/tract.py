"""What tract makes of a graph, as far as it differs from onnxruntime."""

from collections.abc import Collection, Sequence

import msgspec

from latmod.graph import Graph, Node, Scalar, takes_all
from latmod.kernels.kernel import Kernel, convolution_form
from latmod.kernels.nchwc import DOMAIN

# tract 0.23.9, DirectSpatialConv (sonos/tract, pull request 2771): rows of at least so many outputs, and at most so
# many multiply-adds for each of them.
_ROW, _TAPS = 128, 576
# Windows are cut by a transpose of batch, two times rows, two times columns, and channels.
_WINDOW_DIMS = 6
_SQUARED = (2.0,)
_IMAGE_DIMS = 4
# Whose loops are the compiler's, for SSE: 1.3 to 4 times as slow where the upper halves of registers are in use.
_PLAIN = frozenset(
    {
        "Add", "AveragePool", "BatchNormalization", "Clip", "Clip/one bound", "Conv depthwise/strided", "Div",
        "GlobalAveragePool", "HardSigmoid", "LayerNormalization", "LayerNormalization/turned", "Max", "MaxPool", "Min",
        "Mul", "Neg", "PRelu", "Pow", "Power", "ReduceMean", "ReduceSum", "Relu", "Sqrt", "Sub",
    }
)  # fmt: skip
_STRIDED = "Conv depthwise/strided"
_WRITTEN_OUT = frozenset({"Erf", "Gelu", "HardSwish", "LeakyRelu", "Sigmoid", "Softmax", "Tanh"})
_TIDY = frozenset({"Exp", "GroupNormalization", "LayerNormalization", "SimplifiedLayerNormalization", "Softplus"})
_BY_CHANNEL = frozenset({"BatchNormalization", "Resize"})
_SUMMING = frozenset({"Conv", "Gemm", "MatMul"})
_MATRICES = ("Gemm weights", "MatMul weights")

ALONG_ROWS = "Conv along rows"
BATCHED = "/batch"
"""Ends kinds that are slow over several images, by the element, not by the multiply-add."""
PARTED = "/in parts"
"""Ends kinds of products behind a union, which are made of its parts."""
CLEAN = "/clean"
"""Ends kinds of kernels that find the upper halves of registers as they should be."""


def changed_in_tract(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return what is otherwise in tract, by its place among the kernels in onnxruntime.

    Convolutions along the rows of the image are of a kind of their own: all others are products of filters and of the
    matrix that it makes of the input, two to four times as fast (kernels-engines-zen3-earlier: 24 multiply-adds a
    nanosecond for 7 x 7 over 240 x 240 pixels, 10 over 256 x 256). Of 252 networks there no convolution is made in the
    other way than this says; in bare chains, where nothing stands between a 1 x 1 convolution and the next one, some
    are.

    Channels come first in tract, as convolutions leave them, but in networks that cut images into windows. A layer norm
    then sums over one channel of an image after another: 0.36 us for each, however few rows there are, so 0.24 ms for
    680 numbers. A softmax takes 0.1 us for each row (kernels-engines-zen4-avx2), on SPR 0.4 to 1.4, but 1.7 to 7.6
    where rows do not lie along the last dim (14 in kernels-engines-spr): 330 of YOLO11n's 730 ms, whose boxes are a
    softmax over 16 bins.

    Over several images what goes by channel, as a bias, is not made within the product: 2 to 8 ns for each element of a
    convolution's output, 3 to 4 in a batch norm or a resized map, a tenth of which it takes over one image
    (kernels-engines-zen5). MobileNet v2 takes 22 times as long over eight images as over one.

    A power other than the square takes 170 to 190 ns an element, all else that goes by element 1: so does a GELU whose
    third power is a Pow, as exported from PyTorch (kernels-engines-spr), three quarters of what ALBERT takes.

    A union that only products read, which sum over it (1 x 1 convolutions, matrices), is not made: there is a product
    for each part, and all but the first add to what the others left, 5 to 15 ns for each element (kernels-engines-zen5,
    which told of none of 220 such unions, and of all that something else reads).

    Its products and activations in assembler leave the upper halves of registers in use, and what the compiler made of
    Rust for SSE waits for these, until something made for AVX clears them: a depthwise convolution of stride 1, one
    along rows, a norm of rows. Behind such, with no product in between, a depthwise convolution of stride 2 over 112 x
    112 takes 0.85 ms for 3.2, an average pool 4.8 for 10.2, an activation 0.15 for 0.40, a sum 0.09 for 0.28 (tract
    0.23.9 on Zen 5; Intel's optimisation manual, 15.3, mixing AVX code with SSE code).
    """
    channels_first = not any(
        node.op == "Transpose" and len(node.ints("perm", ())) >= _WINDOW_DIMS for node in graph.nodes
    )
    powers = {node.name for node in graph.nodes if node.op == "Pow" and _exponent(graph, node) != _SQUARED}
    changes = ((place, _changed(one, channels_first, powers)) for place, one in enumerate(found) if one.nodes)
    changed: dict[int, Kernel | None] = {place: own for place, own in changes if own is not None}
    changed |= _in_parts(graph, [changed.get(place) or kernel for place, kernel in enumerate(found)])
    return changed | _clean(graph, [changed.get(place, kernel) for place, kernel in enumerate(found)])


def _in_parts(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return products behind a union, which take its parts one after another; nothing is left of the union itself."""
    places = {node: place for place, kernel in enumerate(found) for node in kernel.nodes}
    changed: dict[int, Kernel | None] = {}
    for node in graph.nodes:
        parts = sum(name not in graph.static for name in node.inputs)
        if node.op != "Concat" or parts < 2 or node.name not in places:
            continue
        readers = _readers(graph, node.outputs[0])
        at = [places.get(reader.name, -1) if reader.op in _SUMMING else -1 for reader in readers]
        if not at or any(place < 0 or not _sums_over(graph, node, found[place]) for place in at):
            continue
        changed[places[node.name]] = None
        for place in at:
            kernel = changed.get(place) or found[place]
            more = (parts - 1) * kernel.number("numel_out")
            kind = kernel.kind + ("" if kernel.kind.endswith(PARTED) else PARTED)
            numbered = kernel.with_numbers(products=float(parts), steps=kernel.number("steps") + more)
            changed[place] = msgspec.structs.replace(numbered, kind=kind)
    return changed


def _readers(graph: Graph, name: str) -> list[Node]:
    """Return the nodes that read a value, through slices of all of it."""
    found = []
    for reader in graph.consumers(name):
        found += _readers(graph, reader.outputs[0]) if takes_all(reader, graph) else [reader]
    return found


def _sums_over(graph: Graph, union: Node, kernel: Kernel) -> bool:
    """Tell whether a kernel is a product that sums over what was put together."""
    shape = graph.tensors[union.outputs[0]].shape if union.outputs[0] in graph.tensors else ()
    axis = union.integer("axis", 0) % len(shape) if shape else -1
    return (kernel.kind == "Conv 1x1" and axis == 1) or (
        kernel.kind.startswith(_MATRICES) and axis == len(shape) - 1 and not kernel.number("last_moves")
    )


def _clean(graph: Graph, found: Sequence[Kernel | None]) -> dict[int, Kernel | None]:
    """Return the kernels that find registers clean, by their places, in the order in which the graph has its nodes."""
    places = {node: place for place, kernel in enumerate(found) if kernel is not None for node in kernel.nodes}
    ops = {node.name: node.op for node in graph.nodes}
    clean, seen, changed = False, set[int](), dict[int, Kernel | None]()
    for node in graph.nodes:
        place = places.get(node.name, -1)
        kernel = found[place] if place >= 0 else None
        if kernel is None or place in seen:
            continue
        seen.add(place)
        if clean and kernel.kind in _PLAIN:
            changed[place] = msgspec.structs.replace(kernel, kind=kernel.kind + CLEAN)
        clean = _leaves_clean(kernel, {ops[name] for name in kernel.nodes}, before=clean)
    return changed


def _leaves_clean(kernel: Kernel, ops: Collection[str], *, before: bool) -> bool:
    if not _WRITTEN_OUT.isdisjoint(ops):
        return False
    kind = kernel.kind.partition("/")[0]
    if kind in _TIDY or kind == ALONG_ROWS:
        return True
    if kernel.number("macs") == 0.0 or _STRIDED in kernel.kind:
        return before
    return kernel.convolves_images and "depthwise" in kernel.kind


def _exponent(graph: Graph, node: Node) -> tuple[Scalar, ...]:
    return graph.constants.get(node.inputs[1], ()) if len(node.inputs) > 1 else ()


def _changed(kernel: Kernel, channels_first: bool, powers: set[str]) -> Kernel | None:
    # Forms in other floats, as Pow/float16, stay what was never measured.
    if "/" not in kernel.kind and not powers.isdisjoint(kernel.nodes):
        return msgspec.structs.replace(kernel, kind="Power")
    if kernel.kind == "LayerNormalization" and channels_first:
        turned = kernel.with_numbers(products=kernel.number("last_dim") * _images(kernel))
        return msgspec.structs.replace(turned, kind="LayerNormalization/turned")
    kind = ALONG_ROWS if _goes_along_rows(kernel) else _own_kind(kernel)
    kind += BATCHED if _goes_by_channel(kernel) and _images(kernel) > 1 else ""
    return msgspec.structs.replace(kernel, kind=kind) if kind != kernel.kind else None


def _own_kind(kernel: Kernel) -> str:
    """Return the kind without what only onnxruntime minds: whether channels fill its blocks."""
    if not kernel.convolves_images:
        return kernel.kind.removeprefix(DOMAIN)
    group, channels, height, width = (
        int(kernel.number(name)) for name in ("group", "channels_in", "kernel_h", "kernel_w")
    )
    return f"Conv {convolution_form(group, channels, (height, width), kernel.number('stride'))}"


def _images(kernel: Kernel) -> int:
    """Return how many are computed at once, 1 where nobody knows, as behind an unknown operator."""
    return kernel.outputs[0][0] if kernel.outputs and kernel.outputs[0] else 1


def _goes_by_channel(kernel: Kernel) -> bool:
    known = kernel.kind in _BY_CHANNEL and bool(kernel.outputs) and len(kernel.outputs[0]) == _IMAGE_DIMS
    return known or kernel.convolves_images


def _goes_along_rows(kernel: Kernel) -> bool:
    if not kernel.convolves_images:
        return False
    area = kernel.number("kernel_h") * kernel.number("kernel_w")
    return kernel.number("group") == 1 < area and kernel.number("inner") <= _TAPS and kernel.outputs[0][-1] >= _ROW
