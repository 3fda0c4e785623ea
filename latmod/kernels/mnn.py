"""What MNN makes of a graph, as far as it differs from onnxruntime: convolutions by Winograd, in tiles."""

from collections.abc import Sequence

import msgspec

from latmod.graph import Graph
from latmod.kernels.kernel import Kernel

# ConvolutionPackWinograd.cpp, bestWinogradUnit: the outputs along a side that one tile gives, and the sides that tiles
# of the input may have.
_UNITS, _SIDES = range(2, 9), (4, 6, 8)
_TILES_AT_ONCE = 8


def changed_in_mnn(_: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return the convolutions that MNN does by Winograd, by their places among the kernels in onnxruntime.

    Of those that may be, all for which it is less work.
    """
    units = {place: _unit(kernel) for place, kernel in enumerate(found) if may_be_tiled(kernel)}
    return {place: tiled(found[place], unit) for place, unit in units.items() if unit}


def may_be_tiled(kernel: Kernel) -> bool:
    """Tell whether a kernel is a square convolution in two dimensions of stride 1, neither dilated nor grouped."""
    size, plain = kernel.number("kernel_h"), {kernel.number(name) for name in ("stride", "dilation", "group")} == {1.0}
    return kernel.convolves_images and plain and size > 1 and size == kernel.number("kernel_w")


def tiled(kernel: Kernel, unit: int) -> Kernel:
    """Return a convolution done by tiles of `unit` outputs a side: products of tiles by channels by filters.

    A tile of the input is `unit` + size - 1 places a side (Lavin and Gray, Fast Algorithms for Convolutional Neural
    Networks, 2015), and there is a product for each of them.
    """
    height, width = kernel.outputs[0][2:]
    channels, filters = kernel.number("channels_in"), kernel.number("channels_out")
    side = unit + int(kernel.number("kernel_h")) - 1
    tiles = kernel.number("batch") * -(-height // unit) * -(-width // unit)
    numbered = kernel.with_numbers(
        rows=tiles,
        inner=channels,
        columns=filters,
        products=float(side**2),
        padded_macs=side**2 * channels * filters * -(-tiles // _TILES_AT_ONCE) * _TILES_AT_ONCE,
        steps=kernel.number("steps") + _transform_steps(unit, side, channels, filters) * tiles,
    )
    return msgspec.structs.replace(numbered, kind="Conv winograd")


def _unit(kernel: Kernel) -> int:
    """Return how many outputs along a side a tile gives, 0 where no unit saves anything: the least work decides."""
    height, width = kernel.outputs[0][2:]
    size, channels, filters = (kernel.number(name) for name in ("kernel_h", "channels_in", "channels_out"))
    plain = 2 * height * width * channels * filters * size**2
    best, gain = 0, 1.0
    for unit in _UNITS:
        side = unit + int(size) - 1
        if side not in _SIDES or unit > max(_UNITS[0], int((height * width) ** 0.5)):
            continue
        once = _transform_steps(unit, side, channels, filters) + 2 * side**2 * channels * filters
        saved = plain / (once * -(-height // unit) * -(-width // unit))
        if saved > gain:
            best, gain = unit, saved
    return best


def _transform_steps(unit: int, side: int, channels: float, filters: float) -> float:
    """Return the steps that bring a tile's channels into the products and its filters out, as MNN counts them."""
    return 2 * side**3 * channels + 2 * (side + unit) * unit * side * filters
