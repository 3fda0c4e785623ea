"""A kernel: what a runtime executes as one piece, in numbers."""

from math import prod

import msgspec

from latmod.cost import FORMULAS, VIEWS, Operands
from latmod.errors import GraphError
from latmod.graph import Node, Tensor
from latmod.kernels.nchwc import DOMAIN
from latmod.kernels.rewriting import Rewriter, Step
from latmod.kernels.transposes import permutation

# Engines give these a new name for the same memory; all that is left is the call.
_FREE = VIEWS - {"Dropout", "Identity"}
_CONVOLUTIONS = frozenset({"Conv", "SlowConv", "com.microsoft::FusedConv", f"{DOMAIN}Conv", "ConvTranspose"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "com.microsoft::FusedGemm", "com.microsoft::FusedMatMul"})
_ALIASES = {"SlowConv": "Conv"}
_ROWWISE = frozenset({"LayerNormalization", "com.microsoft::SkipLayerNormalization", "Softmax"})
_KINDS = {
    "com.microsoft::SkipLayerNormalization": "LayerNormalization",
    "com.microsoft::BiasGelu": "com.microsoft::Gelu",
}
"""Operators that are priced as others: what they do besides shows in their numbers."""

FIELDS = (
    "macs", "padded_macs", "steps", "bytes_in", "bytes_out", "bytes_weights", "numel_out",
    "batch", "channels_in", "channels_out", "group", "kernel_h", "kernel_w", "stride", "dilation",
    "side_in", "side_out", "rows", "columns", "inner", "products",
    "activation", "fused_add", "rank", "broadcast", "last_moves", "operands", "outputs", "last_dim",
)  # fmt: skip
"""Names of a kernel's numbers, in the order in which `numbers` gives them.

- macs: multiply-accumulates; padded_macs: the same with channels padded to whole blocks of 16.
- steps: element-wise steps; bytes_*: of activations read and written, and of weights; numel_out: elements written.
- batch, channels_*, group, kernel_*, stride, dilation, side_*: of convolutions and pools (sides: root of the area).
- rows x inner by inner x columns, `products` times: of matrix products, and of convolutions as such.
- activation: 0 none, else its steps per element; fused_add: 1 where a sum is made within.
- rank: of the first input; broadcast: 0 equal shapes, 1 a scalar, 2 a row, 3 channels, 4 anything else.
- last_moves: 1 where a transpose moves the last dim, or memory is read that one left in another order.
- operands, outputs: how many; last_dim: of the first input.
"""

_ACTIVATION_STEPS = {
    "Relu": 1.0, "Clip": 2.0, "LeakyRelu": 2.0, "HardSigmoid": 3.0, "HardSwish": 4.0, "Sigmoid": 4.0, "Tanh": 4.0,
}  # fmt: skip
_BLOCK = 16


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


def describe(work: Rewriter) -> tuple[Kernel, ...]:
    """Return the kernels of a rewritten graph. Raises GraphError where shapes contradict an operator."""
    return tuple(_kernel(work, step) for step in work.live())


def _kernel(work: Rewriter, step: Step) -> Kernel:
    inputs = [work.tensors.get(name) for name in step.inputs]
    outputs = [work.tensors[name] for name in step.outputs if name in work.tensors]
    numbers = dict.fromkeys(FIELDS, 0.0)
    active = [t for name, t in zip(step.inputs, inputs, strict=True) if t is not None and name not in work.static]
    fixed = [t for name, t in zip(step.inputs, inputs, strict=True) if t is not None and name in work.static]
    free = step.op in _FREE
    numbers["bytes_in"] = 0.0 if free else float(sum(tensor.nbytes for tensor in active))
    numbers["bytes_out"] = 0.0 if free else float(sum(tensor.nbytes for tensor in outputs))
    numbers["bytes_weights"] = 0.0 if free else float(sum(tensor.nbytes for tensor in fixed))
    numbers["numel_out"] = float(sum(tensor.numel for tensor in outputs))
    numbers["operands"], numbers["outputs"] = float(len(active)), float(len(outputs))
    shape = active[0].shape if active else ()
    numbers["rank"], numbers["last_dim"] = float(len(shape)), float(shape[-1] if shape else 1)
    macs, steps = _work(step, inputs, outputs)
    numbers["macs"], numbers["steps"] = float(macs), float(steps)
    numbers["padded_macs"] = float(macs)
    kind = _KINDS.get(step.op, step.op)
    if step.op in _CONVOLUTIONS and len(inputs) > 1 and inputs[0] and inputs[1] and len(outputs) == 1:
        kind = _convolution(numbers, step, inputs[0].shape, inputs[1].shape, outputs[0].shape)
    elif step.op in _PRODUCTS and len(inputs) > 1 and inputs[0] and inputs[1] and outputs:
        kind = _product(numbers, step, inputs[0].shape, outputs[0].shape, fixed=step.inputs[1] in work.static)
    elif "Pool" in step.op and len(shape) == 4 and outputs:
        _pool(numbers, step, shape, outputs[0].shape)
    elif step.op == "Transpose":
        perm = permutation(work, step)
        numbers["last_moves"] = float(bool(perm) and perm[-1] != len(perm) - 1)
        numbers["inner"] = float(_kept_tail(perm, shape))
    elif step.op == "Clip" and len([name for name in step.inputs[1:] if name]) + len(step.attributes) == 1:
        # Not what activations do: torch has another operator for it.
        kind = "Clip/one bound"
    elif step.op in _ROWWISE:
        numbers["inner"] = numbers["last_dim"]
    elif step.op in ("Concat", "Split", "Slice", "Gather"):
        numbers["inner"] = float(_moved_together(step, shape, outputs))
    elif len(step.inputs) == 2 and inputs[0] and inputs[1] and outputs:
        numbers["broadcast"] = _broadcast(inputs[0].shape, inputs[1].shape, outputs[0].shape)
    if step.attributes.get("transposed_input"):
        numbers["last_moves"] = 1.0
    activation = step.attributes.get("activation")
    if isinstance(activation, str):
        numbers["activation"] = _ACTIVATION_STEPS.get(activation, 4.0)
    if step.op in _CONVOLUTIONS and len(step.inputs) > 3:
        numbers["fused_add"] = 1.0
    return Kernel(
        op=step.op,
        kind=kind,
        numbers=tuple(numbers[field] for field in FIELDS),
        nodes=tuple(dict.fromkeys(step.sources)),
        label=step.sources[0] if step.sources else f"{step.op.rpartition('::')[2]} of {next(iter(step.inputs), '')}",
        inputs=tuple(tensor.shape for tensor in inputs if tensor is not None),
        outputs=tuple(tensor.shape for tensor in outputs),
        values=tuple(name for name in step.outputs if name),
    )


def _work(step: Step, inputs: list[Tensor | None], outputs: list[Tensor]) -> tuple[int, int]:
    """Return multiply-accumulates and element-wise steps, by the formula of the operator where there is one."""
    if step.op in _FREE:
        return 0, 0
    name = _ALIASES.get(step.op, step.op)
    formula = FORMULAS.get(name) or FORMULAS.get(name.rpartition("::")[2])
    if formula is None or not outputs:
        return 0, sum(tensor.numel for tensor in outputs)
    if step.op == f"{DOMAIN}Conv":
        # Padded channels of a depthwise convolution and of plain input: what the weights say counts.
        weight, out = inputs[1], outputs[0]
        if weight is not None:
            return out.numel * prod(weight.shape[1:]), out.numel
    node = Node(
        name=step.sources[0] if step.sources else step.op,
        op=name,
        inputs=tuple(step.inputs),
        outputs=tuple(step.outputs),
        attributes=step.attributes,
    )
    try:
        found = formula(Operands(node=node, inputs=tuple(inputs), outputs=tuple(outputs)))
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise GraphError(f"node {node.name!r} ({step.op}): its shapes do not fit the operator ({error})") from None
    return found.macs, found.steps


def _convolution(
    numbers: dict[str, float], step: Step, source: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...]
) -> str:
    group = step.integer("group", 1)
    kernel = weight[2:]
    numbers["batch"], numbers["group"] = float(source[0]), float(group)
    numbers["channels_in"], numbers["channels_out"] = float(source[1]), float(out[1])
    numbers["kernel_h"], numbers["kernel_w"] = float(kernel[0]), float(kernel[-1])
    for number, name in (("stride", "strides"), ("dilation", "dilations")):
        numbers[number] = float(max(step.ints(name, ()), default=1))
    numbers["side_in"] = float(prod(source[2:])) ** 0.5
    numbers["side_out"] = float(prod(out[2:])) ** 0.5
    per_group = max(1, out[1] // group)
    numbers["rows"], numbers["columns"] = float(prod(out[2:])), float(per_group)
    numbers["inner"], numbers["products"] = float(prod(weight[1:])), float(group * source[0])
    if group == 1:
        padded_in, padded_out = (-(-value // _BLOCK) * _BLOCK for value in (source[1], out[1]))
        numbers["padded_macs"] = numbers["macs"] * (padded_in * padded_out) / max(1, source[1] * out[1])
    if group > 1 and weight[1] == 1 and group == source[1]:
        form = "depthwise"
    elif group > 1:
        form = "grouped"
    elif set(kernel) == {1}:
        form = "1x1"
    elif set(kernel) == {3}:
        form = "3x3"
    else:
        form = "other"
    if step.attributes.get("unfolded"):
        # One algorithm for all: the groups one after another, each a product, of the input as it is or unfolded.
        return f"{_plain(step.op)} {'in place' if set(kernel) == {1} and numbers['stride'] == 1 else 'unfolded'}"
    if step.attributes.get("plain_input"):
        form += "/plain input"
    if form in ("1x1", "3x3", "depthwise") and numbers["stride"] > 1:
        form += "/strided"
    return f"{_plain(step.op)} {form}"


def _plain(op: str) -> str:
    """Name what is priced alike whether an activation is fused or not: the numbers tell."""
    return op.removeprefix("com.microsoft::Fused")


def _product(numbers: dict[str, float], step: Step, left: tuple[int, ...], out: tuple[int, ...], *, fixed: bool) -> str:
    swapped = step.integer("transA", 0)
    inner = left[-2 if swapped and len(left) > 1 else -1] if left else 1
    columns = out[-1] if out else 1
    if fixed:
        # A product with one static matrix is one product over all rows.
        rows, products = prod(out[:-1]), 1
    else:
        rows, products = (out[-2] if len(out) > 1 else 1), prod(out[:-2])
    numbers["rows"], numbers["columns"] = float(rows), float(columns)
    numbers["inner"], numbers["products"] = float(inner), float(products)
    row = " row" if rows == 1 else ""
    return f"{_plain(step.op)} {'weights' if fixed else 'activations'}{row}"


def _pool(numbers: dict[str, float], step: Step, source: tuple[int, ...], out: tuple[int, ...]) -> None:
    sizes = step.ints("kernel_shape", ()) or source[2:]
    numbers["batch"], numbers["channels_in"], numbers["channels_out"] = map(float, (source[0], source[1], out[1]))
    numbers["kernel_h"], numbers["kernel_w"] = float(sizes[0]), float(sizes[-1])
    numbers["stride"] = float(max(step.ints("strides", ()), default=1))
    numbers["side_in"], numbers["side_out"] = float(prod(source[2:])) ** 0.5, float(prod(out[2:])) ** 0.5


def _kept_tail(perm: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Count the elements that a transpose moves in one piece."""
    kept = 1
    for position in reversed(range(len(perm))):
        if perm[position] != position or position >= len(shape):
            break
        kept *= shape[position]
    return kept


def _moved_together(step: Step, shape: tuple[int, ...], outputs: list[Tensor]) -> int:
    """Count the elements that are copied in one piece: those of the axis and behind it."""
    axis = step.integer("axis", 0)
    smaller = outputs[0].shape if outputs and step.op != "Concat" else shape
    if step.op == "Slice":
        changed = [i for i, (a, b) in enumerate(zip(shape, smaller, strict=False)) if a != b]
        axis = changed[-1] if changed else 0
    return prod(smaller[axis % len(smaller) :]) if smaller else 1


def _broadcast(left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]) -> float:
    if left == right:
        return 0.0
    small = left if prod(left) < prod(right) else right
    if prod(small) == 1:
        return 1.0
    trimmed = [size for size in small if size != 1]
    if trimmed == list(out[len(out) - len(trimmed) :]) and small[-1:] == out[-1:]:
        return 2.0
    if len(small) >= 3 and set(small[-2:]) == {1}:
        return 3.0
    return 4.0
