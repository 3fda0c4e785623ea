"""What MNN makes of a graph, as far as it differs from onnxruntime."""

from latmod.kernels.kernel import Kernel
from latmod.kernels.winograd import may_be_tiled, tiled, transform_steps

# ConvolutionPackWinograd.cpp, bestWinogradUnit: the outputs along a side that one tile gives, and the sides that tiles
# of the input may have.
_UNITS, _SIDES = range(2, 9), (4, 6, 8)


def as_mnn(found: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return kernels in MNN, made of those in onnxruntime; the very same where nothing differs.

    Square convolutions of stride 1 are done by Winograd wherever that is less work.
    """
    units = {place: _unit(kernel) for place, kernel in enumerate(found) if may_be_tiled(kernel)}
    if not any(units.values()):
        return found
    return tuple(tiled(kernel, units[place]) if units.get(place) else kernel for place, kernel in enumerate(found))


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
        once = transform_steps(unit, side, channels, filters) + 2 * side**2 * channels * filters
        saved = plain / (once * -(-height // unit) * -(-width // unit))
        if saved > gain:
            best, gain = unit, saved
    return best
