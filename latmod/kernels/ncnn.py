"""What ncnn makes of a graph, as far as it differs from onnxruntime."""

from math import prod

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import FIELDS, Kernel

_INT64_BYTES = 8


def copy_reshapes(graph: Graph, found: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Price the reshapes that make an image of a matrix's rows: ncnn keeps eight rows together, and takes them apart.

    One by one: measured on ConvNeXt-T, ncnn 1.0.20261020, 100 ns an element, 128 ms of 132 ms that its first product
    takes. `found` are the kernels in onnxruntime, and come back as they are where there is no such reshape.
    """
    changed = {place: _copying(graph, kernel) for place, kernel in enumerate(found) if _takes_rows_apart(kernel)}
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
