"""Convolutions by Winograd: in tiles, with as many products as a tile has places, and transforms before and after."""

import msgspec

from latmod.kernels.kernel import FIELDS, Kernel

_TILES_AT_ONCE = 8


def may_be_tiled(kernel: Kernel) -> bool:
    """Tell whether a kernel is a square convolution in two dimensions of stride 1, neither dilated nor grouped."""
    if "Conv" not in kernel.kind or "Transpose" in kernel.op or not kernel.number("kernel_h"):
        return False
    size, plain = kernel.number("kernel_h"), {kernel.number(name) for name in ("stride", "dilation", "group")} == {1.0}
    return plain and size > 1 and size == kernel.number("kernel_w") and len(kernel.outputs[0]) == 4


def tiled(kernel: Kernel, unit: int) -> Kernel:
    """Return a convolution done by tiles of `unit` outputs a side: products of tiles by channels by filters.

    A tile of the input is `unit` + size - 1 places a side (Lavin and Gray, Fast Algorithms for Convolutional Neural
    Networks, 2015), and there is a product for each of them.
    """
    height, width = kernel.outputs[0][2:]
    channels, filters = kernel.number("channels_in"), kernel.number("channels_out")
    side = unit + int(kernel.number("kernel_h")) - 1
    tiles = kernel.number("batch") * -(-height // unit) * -(-width // unit)
    numbers = dict(zip(FIELDS, kernel.numbers, strict=True)) | {
        "rows": tiles,
        "inner": channels,
        "columns": filters,
        "products": float(side**2),
        "padded_macs": side**2 * channels * filters * -(-tiles // _TILES_AT_ONCE) * _TILES_AT_ONCE,
        "steps": kernel.number("steps") + transform_steps(unit, side, channels, filters) * tiles,
    }
    return msgspec.structs.replace(kernel, kind="Conv winograd", numbers=tuple(numbers[field] for field in FIELDS))


def transform_steps(unit: int, side: int, channels: float, filters: float) -> float:
    """Return the steps that bring a tile's channels into the products and its filters out (MNN's count of them)."""
    return 2 * side**3 * channels + 2 * (side + unit) * unit * side * filters
