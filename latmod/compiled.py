"""Join what a compiler's code told of its products and loops with the kernels that the rules expect."""

from collections import defaultdict
from collections.abc import Sequence
from math import prod

from latmod.dataset import LOOP, KernelTime
from latmod.kernels import Kernel


def compiled(expected: Sequence[Kernel], burst: Sequence[KernelTime]) -> dict[tuple[int, ...], float]:
    """Return what was told of which kernels, by their places: of products one by one, of all others in one piece.

    Products go to those of as many elements: how many are multiplied, of the one and of the other, and written, says
    all of a product's shape, however an engine orders dims and packs weights; the latter two where it pads an input
    before, which the rules have a convolution do. What a loop does is several operators' work, and work on what a
    product reads: parted by the heaviest operator in their names, loops predicted families left out with a MAPE of
    13.0 %, as one piece with 8.8 % (kernels-zen5-compile, one round).
    """
    products: dict[tuple[int, ...], list[float]] = defaultdict(list)
    rest = 0.0
    for time in burst:
        if time.op.startswith(LOOP):
            rest += time.ns * time.count
        else:
            products[_elements(time.inputs, time.outputs)] += [time.ns] * time.count
    wanted: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, kernel in enumerate(expected):
        if kernel.number("macs") and len(kernel.inputs) > 1 and kernel.outputs:
            wanted[_elements(kernel.inputs, kernel.outputs)].append(place)
    padded = {key[1:]: places for key, places in wanted.items() if key not in products}
    told: dict[tuple[int, ...], float] = {}
    for key, times in products.items():
        places = wanted.get(key) or padded.get(key[1:], [])
        told |= {(place,): sum(times) / len(places) for place in places}
    others = tuple(place for place in range(len(expected)) if (place,) not in told)
    return told | {others: rest} if others else told


def _elements(inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return prod(inputs[0]), prod(inputs[1]), prod(outputs[0])
