"""What tract makes of a graph, as far as it differs from onnxruntime."""

from collections.abc import Sequence

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import Kernel

# tract 0.23.9, DirectSpatialConv (sonos/tract, pull request 2771): rows of at least so many outputs, and at most so
# many multiply-adds for each of them.
_ROW, _TAPS = 128, 576
# Windows are cut by a transpose of batch, two times rows, two times columns, and channels.
_WINDOW_DIMS = 6


def changed_in_tract(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return what is otherwise in tract, by its place among the kernels in onnxruntime.

    Convolutions along the rows of the image are of a kind of their own: all others are products of filters and of the
    matrix that it makes of the input, two to four times as fast (kernels-zen3: 24 multiply-adds a nanosecond for 7 x 7
    over 240 x 240 pixels, 10 over 256 x 256). Of 252 networks there no convolution is made in the other way than this
    says; in bare chains, where nothing stands between a 1 x 1 convolution and the next one, some are.

    Channels come first in tract, as convolutions leave them, but in networks that cut images into windows. A layer norm
    then sums over one channel after another: 0.36 us for each, however few rows there are, so 0.24 ms for 680 numbers.
    A softmax takes about 0.1 us for each row (kernels-engines-zen4-avx2).
    """
    channels_first = not any(
        node.op == "Transpose" and len(node.ints("perm", ())) >= _WINDOW_DIMS for node in graph.nodes
    )
    changes = ((place, _changed(kernel, channels_first)) for place, kernel in enumerate(found))
    return {place: changed for place, changed in changes if changed is not None}


def _changed(kernel: Kernel, channels_first: bool) -> Kernel | None:
    if kernel.kind == "Softmax":
        return kernel.with_numbers(inner=kernel.number("last_dim"))
    if kernel.kind == "LayerNormalization" and channels_first:
        turned = kernel.with_numbers(products=kernel.number("last_dim"))
        return msgspec.structs.replace(turned, kind="LayerNormalization/turned")
    return msgspec.structs.replace(kernel, kind="Conv along rows") if _goes_along_rows(kernel) else None


def _goes_along_rows(kernel: Kernel) -> bool:
    if not kernel.convolves_images:
        return False
    area = kernel.number("kernel_h") * kernel.number("kernel_w")
    return kernel.number("group") == 1 < area and kernel.number("inner") <= _TAPS and kernel.outputs[0][-1] >= _ROW
