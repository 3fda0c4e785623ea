"""In which order the dims of torch's tensors lie in memory: what an operator copies, or does otherwise, hangs on it.

An order names the dims of more than one element, slowest first, by their place among these: (0, 1, 2) is plain,
(1, 2, 0) an image of one batch with its channels last.
"""

from math import prod

from latmod.kernels.rewriting import Rewriter, Step
from latmod.kernels.transposes import order_of_dims

Order = tuple[int, ...]
Shape = tuple[int, ...]

# These give other strides to the same memory, reshapes where there are any.
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_CUTS = frozenset({"Split", "Slice"})
_VIEWS = _RESHAPES | {"Transpose", "Expand"}

# What the tensor iterator runs writes its result in the order of what it reads.
_ELEMENT_WISE = frozenset(
    {
        "Abs", "Add", "Cast", "Clip", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
        "Log", "Max", "Min", "Mish", "Mul", "Neg", "Pow", "PRelu", "Relu", "Sigmoid", "Silu", "Softplus", "Sqrt", "Sub",
        "Tanh", "Where",
    }
)  # fmt: skip
# These leave the channels of an image last where they find them last (ATen's suggest_memory_format).
_IMAGE_WISE = frozenset(
    {"AveragePool", "BatchNormalization", "Concat", "Conv", "ConvTranspose", "MaxPool", "Pad", "Resize", "SlowConv"}
)


class Layouts:
    """Follow the order of values from step to step; what was not followed is plain."""

    def __init__(self, work: Rewriter) -> None:
        """Begin with a graph's inputs, which are plain."""
        self._work = work
        self._orders: dict[str, Order] = {}

    def order(self, name: str) -> Order:
        """Return the order of a value's dims."""
        return self._orders.get(name) or tuple(range(sum(size > 1 for size in self._work.shape(name))))

    def is_plain(self, name: str) -> bool:
        """Tell whether a value lies in memory in the order of its dims."""
        return name not in self._orders

    def has_channels_last(self, name: str) -> bool:
        """Tell whether an image's channels lie next to each other."""
        return not self.is_plain(name) and self._orders[name] == channels_last(self._work.shape(name))

    def is_minded(self, step: Step) -> bool:
        """Tell whether a step minds the order of what it reads: one that goes along any order minds different ones."""
        if self._is_view(step) or step.op in _VIEWS:
            return False
        if step.op in _ELEMENT_WISE:
            return len({self._orders.get(name) for name in self._whole(step)}) > 1
        if step.op == "MatMul":
            return any(self._is_copied(step, name) for name in step.inputs)
        return not all(self.is_plain(name) for name in step.inputs)

    def copies(self, step: Step) -> bool:
        """Tell whether a step is a reshape that has to copy: no strides give its result of the memory that it reads."""
        return step.op in _RESHAPES and self._reshaped(step) is None

    def follow(self, step: Step) -> None:
        """Note in which order a step writes."""
        for name in step.outputs:
            # What follows an unknown operator has no shape.
            if not self._work.shape(name) or not all(self._work.shape(one) for one in step.inputs[:1]):
                continue
            order = self._written(step, name)
            if order is not None and order != tuple(range(len(order))):
                self._orders[name] = order

    def _written(self, step: Step, name: str) -> Order | None:
        source = step.inputs[0] if step.inputs else ""
        if step.op == "Transpose":
            return self._transposed(step)
        if self._is_view(step) and not self.is_plain(source):
            before = self._work.shape(source)
            return _cut(self._orders[source], before, self._left(step, before, name))
        if step.op in _RESHAPES:
            return self._reshaped(step)
        if step.op in _ELEMENT_WISE:
            return next((self._orders.get(one) for one in self._whole(step)), None)
        if step.op in _IMAGE_WISE and all(self.has_channels_last(one) for one in self._read(step)):
            return channels_last(self._work.shape(name))
        return None

    def _is_view(self, step: Step) -> bool:
        """Tell whether a step cuts a part out of its input without copying it; a Gather of one position does."""
        return step.op in _CUTS or (step.op == "Gather" and not self._work.shape(step.inputs[1]))

    def _left(self, step: Step, before: Shape, name: str) -> Shape:
        """Return what is left of each dim of what is cut."""
        if step.op != "Gather":
            return self._work.shape(name)
        axis = step.integer("axis", 0) % len(before)
        return (*before[:axis], 1, *before[axis + 1 :])

    def _is_copied(self, product: Step, name: str) -> bool:
        """Tell whether ATen's matmul copies a factor: what runs is one product, or one for each of a row of pairs."""
        shape = self._work.shape(name)
        if self.is_plain(name) or len(shape) < 3:
            return False
        kept = 2 if all(len(self._work.shape(one)) > 2 for one in product.inputs) else 1
        olds, news = ([size for size in sizes if size > 1] for sizes in (shape, (prod(shape[:-kept]), *shape[-kept:])))
        return _regrouped(self.order(name), olds, news) is None

    def _read(self, step: Step) -> list[str]:
        return step.inputs if step.op == "Concat" else step.inputs[:1]

    def _whole(self, step: Step) -> list[str]:
        shape = self._work.shape(step.out)
        return [name for name in step.inputs if name and self._work.shape(name) == shape]

    def _transposed(self, step: Step) -> Order:
        source = step.inputs[0]
        shape = self._work.shape(source)
        perm = order_of_dims(step, len(shape))
        # Where the dims of more than one element go, by their place among these.
        before = [dim for dim, size in enumerate(shape) if size > 1]
        after = [dim for dim in perm if shape[dim] > 1]
        return tuple(after.index(before[place]) for place in self.order(source))

    def _reshaped(self, step: Step) -> Order | None:
        """Return the order of a reshape's result where that shares memory with what it reads, None where it copies."""
        source = step.inputs[0]
        olds, news = ([size for size in self._work.shape(name) if size > 1] for name in (source, step.out))
        if self.is_plain(source) or prod(olds) != prod(news):
            return tuple(range(len(news)))
        return _regrouped(self.order(source), olds, news)


def channels_last(shape: Shape) -> Order | None:
    """Return the order of an image with its channels last; None for what is no image, or of one channel or pixel."""
    if len(shape) != 4 or shape[1] == 1 or prod(shape[2:]) == 1:
        return None
    dims = [dim for dim, size in enumerate(shape) if size > 1]
    return tuple(dims.index(dim) for dim in (0, 2, 3, 1) if dim in dims)


def _cut(order: Order, before: Shape, after: Shape) -> Order:
    """Return the order without the dims of which one element is left."""
    sizes = [left for size, left in zip(before, after, strict=True) if size > 1]
    kept = [place for place, left in enumerate(sizes) if left > 1]
    return tuple(kept.index(place) for place in order if place in kept)


def _regrouped(order: Order, olds: list[int], news: list[int]) -> Order | None:
    """Return the order of dims of other sizes over the same memory, None where there is none.

    Dims that become others together must lie one behind the other in memory (ATen's computeStride).
    """
    groups: list[tuple[range, range]] = []
    old = new = 0
    while old < len(olds):
        first_old, first_new = old, new
        left, right = olds[old], news[new]
        old, new = old + 1, new + 1
        while left != right:
            if left < right:
                left, old = left * olds[old], old + 1
            else:
                right, new = right * news[new], new + 1
        groups.append((range(first_old, old), range(first_new, new)))
    found: list[int] = []
    for place in order:
        own, made = next(group for group in groups if place in group[0])
        if place != own[0]:
            continue
        start = order.index(place)
        if order[start : start + len(own)] != tuple(own):
            return None
        found += made
    return tuple(found)
