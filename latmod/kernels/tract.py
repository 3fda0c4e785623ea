"""What tract makes of a graph, as far as it differs from onnxruntime: convolutions along the rows of the image."""

from collections.abc import Sequence

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import Kernel

# tract 0.23.9, DirectSpatialConv (sonos/tract, pull request 2771): rows of at least so many outputs, and at most so
# many multiply-adds for each of them.
_ROW, _TAPS = 128, 576


def changed_in_tract(_: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return the convolutions that tract makes along the rows, by their places among the kernels in onnxruntime.

    All others are products of filters and of the matrix that it makes of the input, two to four times as fast
    (kernels-zen3: 24 multiply-adds a nanosecond for 7 x 7 over 240 x 240 pixels, 10 over 256 x 256). Of 252 networks
    there no convolution is made in the other way than this says; in bare chains, where nothing stands between a 1 x 1
    convolution and the next one, some are.
    """
    return {
        place: msgspec.structs.replace(kernel, kind="Conv along rows")
        for place, kernel in enumerate(found)
        if _goes_along_rows(kernel)
    }


def _goes_along_rows(kernel: Kernel) -> bool:
    if "Conv" not in kernel.kind or "Transpose" in kernel.op or not kernel.outputs or len(kernel.outputs[0]) != 4:
        return False
    area = kernel.number("kernel_h") * kernel.number("kernel_w")
    return kernel.number("group") == 1 < area and kernel.number("inner") <= _TAPS and kernel.outputs[0][-1] >= _ROW
