"""What ncnn makes of a graph, as far as it differs from onnxruntime."""

from collections.abc import Sequence

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import VOLUME_DIMS, Kernel
from latmod.kernels.nchwc import DOMAIN

NAIVE = "Conv naive"
DILATED = "/dilated"
"""Ends kinds of convolutions that are made in a slower way where they are dilated."""
_OWN_FORMS = ("Conv 3x3", "Conv depthwise")
_TIME_DIMS = 3
_KEPT_TOGETHER = 4
_MOST_DIMS = 5
"""A batch of one and the four dims of ncnn's Mat."""


def refused_batch(name: str, size: int) -> str:
    """Return why ncnn does not take an input of so many images."""
    return f"it runs one image at a time, and {name!r} is a batch of {size}; set it to 1 with --shape"


def refused_by_ncnn(graph: Graph) -> str:
    """Return why ncnn does not run a graph: it has no batches, and no values of six dims, as windowed attention has.

    Of 33 networks with such values it refused all, of 511 others 11, and of 7 its outputs were not finite (all data
    sets).
    """
    for image in graph.inputs:
        if len(image.shape) > 1 and image.shape[0] != 1:
            return refused_batch(image.name, image.shape[0])
    for node in graph.nodes:
        for name in node.outputs:
            dims = len(graph.tensors[name].shape) if name in graph.tensors and name not in graph.static else 0
            if dims > _MOST_DIMS:
                return f"node {node.name!r} ({node.op}) gives {dims} dims, and it has {_MOST_DIMS} at most"
    return ""


def changed_in_ncnn(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Price what ncnn does in another way, such as the reshapes that make an image of a product's rows.

    It keeps four or eight of them together, and parts them.

    One by one: 70 to 120 ns an element, 128 ms of the 132 ms that ConvNeXt-T's first product takes; rows of another
    number are kept one by one, and left as they are (kernels-engines-zen3-earlier: 0.1 to 0.3 ns). Only behind a
    product that was given an image: there pnnx reshapes to the form of what went in, which ncnn works out when it runs.
    Reshapes that the graph itself has take at most 2.4 ns an element (kernels-engines-spr: 495 of more than 1,000
    elements, and 195 of the slow ones, at 117 or more).

    Some convolutions are written without vectors: 0.5 to 5 multiply-adds a nanosecond, where others make 40 and more
    (rare-zen5). Dilated ones have no Winograd, and depthwise ones nothing for 3x3: 92 multiply-adds a nanosecond for
    153, 15 for 24 (segmenter-zen5, kernels-more-zen5). `found` are the kernels in onnxruntime; what differs is returned
    by its place among them.
    """
    changes = ((place, _changed(graph, kernel)) for place, kernel in enumerate(found))
    return {place: changed for place, changed in changes if changed is not None}


def _changed(graph: Graph, kernel: Kernel) -> Kernel | None:
    if _takes_rows_apart(kernel):
        return _copying(graph, kernel)
    if _is_naive(kernel):
        return msgspec.structs.replace(kernel, kind=NAIVE)
    return msgspec.structs.replace(kernel, kind=f"{kernel.kind}{DILATED}") if _is_slower_dilated(kernel) else None


def _is_slower_dilated(kernel: Kernel) -> bool:
    """Tell whether a convolution is a dilated one of a form for which ncnn has another way where it is not."""
    return kernel.number("dilation") > 1.0 and kernel.kind.startswith(DOMAIN) and kernel.kind.endswith(_OWN_FORMS)


def _is_naive(kernel: Kernel) -> bool:
    """Tell whether a convolution goes element by element: over volumes, and along time in groups or transposed."""
    if "Conv" not in kernel.kind or kernel.number("kernel_h") == 0.0 or not kernel.outputs:
        return False
    grouped = 1.0 < kernel.number("group") < kernel.number("channels_in")
    dims = len(kernel.outputs[0])
    return dims == VOLUME_DIMS or (dims == _TIME_DIMS and (grouped or kernel.op == "ConvTranspose"))


def _takes_rows_apart(kernel: Kernel) -> bool:
    put_in = not kernel.nodes
    if kernel.op != "Reshape" or not put_in or not kernel.inputs or not kernel.outputs:
        return False
    rows, image = kernel.inputs[0], kernel.outputs[0]
    return len(rows) == 2 and rows[0] % _KEPT_TOGETHER == 0 and len(image) >= 4 and image[-1] == rows[-1]


def _copying(graph: Graph, kernel: Kernel) -> Kernel:
    copying = kernel.copying("RowsToImage", graph.tensors[kernel.values[0]].nbytes)
    return msgspec.structs.replace(copying, label=kernel.label.replace("Reshape", copying.op, 1))
