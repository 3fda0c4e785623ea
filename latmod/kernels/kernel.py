"""A kernel: what a runtime executes as one piece, in numbers."""

from collections.abc import Sequence

import msgspec

from latmod.cost import STEPS_PER_OUTPUT
from latmod.graph import FLOATS

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
VOLUME_DIMS = 5
_OTHER_NUMBERS = FLOATS - {"float32"} | {"quantized"}

FIELDS = (
    "macs", "padded_macs", "steps", "bytes_in", "bytes_out", "bytes_weights", "numel_out",
    "batch", "channels_in", "channels_out", "group", "kernel_h", "kernel_w", "stride", "dilation",
    "side_in", "side_out", "rows", "columns", "inner", "products",
    "activation", "fused_add", "rank", "broadcast", "last_moves", "operands", "outputs", "last_dim",
)  # fmt: skip
"""Names of a kernel's numbers, in the order in which `numbers` gives them.

- macs: multiply-accumulates, those that the engine does (latmod.kernels.padding); padded_macs: the same with channels
  padded to whole blocks of 16.
- steps: element-wise steps; bytes_*: of activations read and written, and of weights; numel_out: elements written.
- batch, channels_*, group, kernel_*, stride, dilation, side_*: of convolutions and pools (sides: root of the area).
- rows x inner by inner x columns, `products` times: of products, and of convolutions and recurrent layers as such.
- activation: 0 none, else its steps per element; fused_add: 1 where a sum is made within.
- rank: of the first input; broadcast: 0 equal shapes, 1 a scalar, 2 a row, 3 channels, 4 anything else.
- last_moves: 1 where a transpose moves the last dim, a softmax runs over another, or memory is read that one left in
  another order.
- operands, outputs: how many; last_dim: of the first input.
"""

ACTIVATION_STEPS = {
    "Relu": 1.0, "Clip": 2.0, "LeakyRelu": 2.0, "HardSigmoid": 3.0, "HardSwish": 4.0, "Sigmoid": 4.0, "Tanh": 4.0,
}  # fmt: skip
ACTIVATIONS = frozenset(ACTIVATION_STEPS)
AT_ONE_PLACE = "/at one place"
"""Ends kinds of kernels whose channels push each other out of the cache: a power of two, or whole pages, apart."""
_STRIDED_FORMS = ("1x1", "3x3", "depthwise")
_ELEMENT_WISE = ("bytes_in", "bytes_out", "bytes_weights", "numel_out", "rank", "operands", "outputs", "last_dim")


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one piece of execution.

    `op` is the operator as the runtime calls it, `kind` what is priced alike, `numbers` belong to `FIELDS`, `nodes` are
    the nodes of the file that it does the work of (none for what the runtime inserts), `label` names it for people;
    `inputs` and `outputs` are shapes, `values` the names of what it writes.
    """

    op: str
    kind: str
    numbers: tuple[float, ...]
    nodes: tuple[str, ...]
    label: str
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    values: tuple[str, ...]

    def number(self, field: str) -> float:
        """Give one of the numbers by its name."""
        return self.numbers[FIELDS.index(field)]

    def with_numbers(self, **changed: float) -> "Kernel":
        """Return the same kernel with some of the numbers changed, by their names."""
        numbers = dict(zip(FIELDS, self.numbers, strict=True)) | changed
        return msgspec.structs.replace(self, numbers=tuple(numbers[field] for field in FIELDS))

    @property
    def convolves_images(self) -> bool:
        """Tell whether it is a convolution in two dimensions, in float32, none that is transposed."""
        convolves = "Conv" in self.kind and "Transpose" not in self.op and self.number("kernel_h") > 0.0
        plain = self.kind.rpartition("/")[2] not in _OTHER_NUMBERS
        return convolves and plain and bool(self.outputs) and len(self.outputs[0]) == 4

    def element_wise(self, op: str) -> "Kernel":
        """Return an element-wise operator's kernel in its place, which does what it had fused too."""
        numbers = dict.fromkeys(FIELDS, 0.0) | {name: self.number(name) for name in _ELEMENT_WISE}
        steps = STEPS_PER_OUTPUT[op] + self.number("activation") + self.number("fused_add")
        numbers["steps"] = numbers["numel_out"] * steps
        return msgspec.structs.replace(self, op=op, kind=op, numbers=tuple(numbers[field] for field in FIELDS))

    def copying(self, op: str, moved_bytes: int) -> "Kernel":
        """Return another operator's kernel in its place, which copies so many bytes, element by element."""
        moved = float(moved_bytes)
        copy = self.with_numbers(bytes_in=moved, bytes_out=moved, steps=self.number("numel_out"))
        return msgspec.structs.replace(copy, op=op, kind=op)


def convolution_form(group: int, channels: int, kernel: Sequence[int], stride: float) -> str:
    """Name what convolutions are priced apart by, whatever way an engine makes them."""
    sizes = set(kernel)
    if group > 1:
        form = "depthwise" if group == channels else "grouped"
    else:
        form = "1x1" if sizes == {1} else "3x3" if sizes == {3} else "other"
    return f"{form}/strided" if stride > 1 and form in _STRIDED_FORMS else form
