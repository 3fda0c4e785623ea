"""What ncnn makes of a graph, as far as it differs from onnxruntime."""

from collections.abc import Sequence
from math import prod

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import Kernel

_INT64_BYTES = 8


def changed_in_ncnn(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Price the reshapes that make an image of a matrix's rows: ncnn keeps eight rows together, and takes them apart.

    One by one: measured on ConvNeXt-T, ncnn 1.0.20261020, 100 ns an element, 128 ms of 132 ms that its first product
    takes. `found` are the kernels in onnxruntime; what differs is returned by its place among them.
    """
    return {place: _copying(graph, kernel) for place, kernel in enumerate(found) if _takes_rows_apart(kernel)}


def _takes_rows_apart(kernel: Kernel) -> bool:
    if kernel.op != "Reshape" or not kernel.inputs or not kernel.outputs:
        return False
    rows, image = kernel.inputs[0], kernel.outputs[0]
    return len(rows) == 2 and rows[0] > 1 and len(image) >= 4 and image[-1] == rows[-1]


def _copying(graph: Graph, kernel: Kernel) -> Kernel:
    bytes_moved = float(graph.tensors[kernel.values[0]].nbytes)
    shape_bytes = float(sum(_INT64_BYTES * prod(shape) for shape in kernel.inputs[1:]))
    copying = kernel.with_numbers(
        bytes_in=bytes_moved, bytes_out=bytes_moved, bytes_weights=shape_bytes, steps=kernel.number("numel_out")
    )
    return msgspec.structs.replace(
        copying,
        op="RowsToImage",
        kind="RowsToImage",
        label=kernel.label if kernel.nodes else kernel.label.replace("Reshape", "RowsToImage", 1),
    )
