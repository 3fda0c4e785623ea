"""What tract makes of a graph, as far as it differs from onnxruntime."""

from collections.abc import Sequence

import msgspec

from latmod.graph import Graph, Node, Scalar
from latmod.kernels.kernel import Kernel

# tract 0.23.9, DirectSpatialConv (sonos/tract, pull request 2771): rows of at least so many outputs, and at most so
# many multiply-adds for each of them.
_ROW, _TAPS = 128, 576
# Windows are cut by a transpose of batch, two times rows, two times columns, and channels.
_WINDOW_DIMS = 6
_SQUARED = (2.0,)
_IMAGE_DIMS = 4
_BY_CHANNEL = frozenset({"BatchNormalization", "com.microsoft.nchwc::Upsample", "Resize"})

ALONG_ROWS = "Conv along rows"
BATCHED = "/batch"
"""Ends kinds that are slow over several images, by the element, not by the multiply-add."""


def changed_in_tract(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return what is otherwise in tract, by its place among the kernels in onnxruntime.

    Convolutions along the rows of the image are of a kind of their own: all others are products of filters and of the
    matrix that it makes of the input, two to four times as fast (kernels-zen3: 24 multiply-adds a nanosecond for 7 x 7
    over 240 x 240 pixels, 10 over 256 x 256). Of 252 networks there no convolution is made in the other way than this
    says; in bare chains, where nothing stands between a 1 x 1 convolution and the next one, some are.

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
    """
    channels_first = not any(
        node.op == "Transpose" and len(node.ints("perm", ())) >= _WINDOW_DIMS for node in graph.nodes
    )
    powers = {node.name for node in graph.nodes if node.op == "Pow" and _exponent(graph, node) != _SQUARED}
    changes = ((place, _changed(kernel, channels_first, powers)) for place, kernel in enumerate(found))
    return {place: changed for place, changed in changes if changed is not None}


def _exponent(graph: Graph, node: Node) -> tuple[Scalar, ...]:
    return graph.constants.get(node.inputs[1], ()) if len(node.inputs) > 1 else ()


def _changed(kernel: Kernel, channels_first: bool, powers: set[str]) -> Kernel | None:
    # Forms in other floats, as Pow/float16, stay what was never measured.
    if "/" not in kernel.kind and not powers.isdisjoint(kernel.nodes):
        return msgspec.structs.replace(kernel, kind="Power")
    if kernel.kind == "LayerNormalization" and channels_first:
        turned = kernel.with_numbers(products=kernel.number("last_dim") * _images(kernel))
        return msgspec.structs.replace(turned, kind="LayerNormalization/turned")
    kind = ALONG_ROWS if _goes_along_rows(kernel) else kernel.kind
    kind += BATCHED if _goes_by_channel(kernel) and _images(kernel) > 1 else ""
    return msgspec.structs.replace(kernel, kind=kind) if kind != kernel.kind else None


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
