"""What ncnn makes of a graph, as far as it differs from onnxruntime."""

from math import prod

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import FIELDS, Kernel
from latmod.kernels.winograd import may_be_tiled, tiled

_INT64_BYTES = 8

# convolution_x86.cpp, create_pipeline, without shapes in the file: 3x3 of more than eight channels on a side are done
# by Winograd, of 32 at most in tiles of 6 x 6 outputs, of more in such of 4 x 4.
_FEWEST, _FEW_CHANNELS, _LARGE_UNIT, _UNIT = 8, 32, 6, 4


def as_ncnn(graph: Graph, found: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return kernels in ncnn, made of those in onnxruntime; the very same where nothing differs.

    Reshapes that make an image of a matrix's rows copy: ncnn keeps eight rows together, and takes them apart one by
    one (measured on ConvNeXt-T, ncnn 1.0.20261020: 100 ns an element, 128 ms of 132 ms that its first product takes).
    """
    changed: dict[int, Kernel] = {}
    for place, kernel in enumerate(found):
        if _takes_rows_apart(kernel):
            changed[place] = _copying(graph, kernel)
        elif may_be_tiled(kernel) and kernel.number("kernel_h") == 3:
            most = max(kernel.number("channels_in"), kernel.number("channels_out"))
            if most > _FEWEST:
                changed[place] = tiled(kernel, _LARGE_UNIT if most <= _FEW_CHANNELS else _UNIT)
    return tuple(changed.get(place, kernel) for place, kernel in enumerate(found)) if changed else found


def _takes_rows_apart(kernel: Kernel) -> bool:
    if kernel.op != "Reshape" or not kernel.inputs or not kernel.outputs:
        return False
    rows, image = kernel.inputs[0], kernel.outputs[0]
    return len(rows) == 2 and rows[0] > 1 and len(image) >= 4 and image[-1] == rows[-1]


def _copying(graph: Graph, kernel: Kernel) -> Kernel:
    bytes_moved = float(graph.tensors[kernel.values[0]].nbytes)
    shape_bytes = float(sum(_INT64_BYTES * prod(shape) for shape in kernel.inputs[1:]))
    numbers = dict(zip(FIELDS, kernel.numbers, strict=True))
    numbers |= {"bytes_in": bytes_moved, "bytes_out": bytes_moved, "bytes_weights": shape_bytes}
    numbers["steps"] = numbers["numel_out"]
    return msgspec.structs.replace(
        kernel,
        op="RowsToImage",
        kind="RowsToImage",
        numbers=tuple(numbers[field] for field in FIELDS),
        label=kernel.label if kernel.nodes else kernel.label.replace("Reshape", "RowsToImage", 1),
    )
