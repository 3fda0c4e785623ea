"""Describe the steps of a rewritten graph as kernels: their kind, and their numbers."""

from functools import lru_cache
from math import prod

import msgspec

from latmod.cost import FORMULAS, PARTIAL_READS, VIEWS, Operands
from latmod.errors import GraphError
from latmod.graph import FLOATS, Attribute, Node, Tensor, canonical_op
from latmod.kernels.kernel import ACTIVATION_STEPS, AT_ONE_PLACE, FIELDS, RECURRENT, Kernel, convolution_form
from latmod.kernels.nchwc import DOMAIN, RESIZING
from latmod.kernels.rewriting import Rewriter, Step
from latmod.kernels.transposes import order_of_dims

# Engines give these a new name for the same memory; all that is left is the call.
_FREE = VIEWS - {"Dropout", "Identity"}
_CONVOLUTIONS = frozenset({"Conv", "SlowConv", "com.microsoft::FusedConv", f"{DOMAIN}Conv", "ConvTranspose"})
_PRODUCTS = frozenset({"MatMul", "Gemm", "com.microsoft::FusedGemm", "com.microsoft::FusedMatMul"})
_ALIASES = {"SlowConv": "Conv"}
_CORNERS = 4.0
_BLOCK = 16
_OTHER_FLOATS = FLOATS - {"float32"}
_PLAIN = "nearest"
_ROWWISE = frozenset({"LayerNormalization", "com.microsoft::SkipLayerNormalization", "Softmax"})
_KINDS = {
    "com.microsoft::SkipLayerNormalization": "LayerNormalization",
    "com.microsoft::BiasGelu": "com.microsoft::Gelu",
}
"""Operators that are priced as others: what they do besides shows in their numbers."""

_DATA = {
    "Clip": 1, "CumSum": 1, "Expand": 1, "Pad": 1, "Reshape": 1, "Resize": 1, "Slice": 1, "Split": 1, "Squeeze": 1,
    "Tile": 1, "TopK": 1, "Unsqueeze": 1, "Upsample": 1,
}  # fmt: skip
"""How many inputs of an operator are data: the others say how, as axes do, which older files have as attributes."""


def describe(work: Rewriter) -> tuple[Kernel, ...]:
    """Return the kernels of a rewritten graph; a Sum of two is of the kind Add, whatever engines call it.

    Raises GraphError where shapes contradict an operator.
    """
    operands = {
        name: _Operand(tensor.dtype, tensor.shape, name in work.static) for name, tensor in work.tensors.items()
    }
    return tuple([_kernel(step, operands) for step in work.live()])


class _Operand(msgspec.Struct, frozen=True):
    """Hold what counts of a value that a step reads or writes; `static` if no input of the network influences it."""

    dtype: str
    shape: tuple[int, ...]
    static: bool = False

    def tensor(self) -> Tensor:
        return Tensor(name="", dtype=self.dtype, shape=self.shape)


_UNKNOWN = _Operand("", ())
"""A value without a shape; None stands for an optional one that is absent."""


class _Form(msgspec.Struct, frozen=True):
    """Hold all that a kernel's numbers hang on: blocks repeat, so most steps of a network have that of another."""

    op: str
    inputs: tuple[_Operand | None, ...]
    outputs: tuple[_Operand, ...]
    attributes: tuple[tuple[str, Attribute], ...]


def _kernel(step: Step, operands: dict[str, _Operand]) -> Kernel:
    form = _Form(
        canonical_op(step.op, step.inputs),
        tuple([operands.get(name, _UNKNOWN) if name else None for name in step.inputs]),
        tuple([operands[name] for name in step.outputs if name in operands]),
        tuple(step.attributes.items()),
    )
    try:
        kind, numbers, inputs, outputs = _describe(form)
    except (IndexError, ValueError, ZeroDivisionError) as error:
        name = step.sources[0] if step.sources else step.op
        raise GraphError(f"node {name!r} ({step.op}): its shapes do not fit the operator ({error})") from None
    return Kernel(
        op=step.op,
        kind=kind,
        numbers=numbers,
        nodes=tuple(dict.fromkeys(step.sources)),
        label=step.sources[0] if step.sources else f"{step.op.rpartition('::')[2]} of {next(iter(step.inputs), '')}",
        inputs=inputs,
        outputs=outputs,
        values=tuple([name for name in step.outputs if name]),
    )


_Described = tuple[str, tuple[float, ...], tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]


@lru_cache(maxsize=4096)
def _describe(form: _Form) -> _Described:
    """Return kind, numbers, and the shapes of inputs and outputs. Raises ValueError and the like where none fit."""
    inputs = [None if one is None or one is _UNKNOWN else one.tensor() for one in form.inputs]
    outputs = [one.tensor() for one in form.outputs]
    node = Node(name="", op=form.op, inputs=(), outputs=(), attributes=dict(form.attributes))
    numbers = dict.fromkeys(FIELDS, 0.0)
    static = [one is not None and one.static for one in form.inputs]
    data = list(zip(inputs, static, strict=True))[: _data_inputs(node.op)]
    fixed = [tensor for tensor, still in data if tensor is not None and still]
    active = [tensor for tensor, still in data if tensor is not None and not still]
    free = node.op in _FREE and "copies" not in node.attributes
    numbers["bytes_in"] = 0.0 if free else float(sum(tensor.nbytes for tensor in active))
    numbers["bytes_out"] = 0.0 if free else float(sum(tensor.nbytes for tensor in outputs))
    numbers["bytes_weights"] = 0.0 if free else float(sum(tensor.nbytes for tensor in fixed))
    if node.op in PARTIAL_READS and static[0]:
        # Of a table, such as an embedding of tokens, only the rows that are asked for are read.
        numbers["bytes_weights"] = min(numbers["bytes_weights"], numbers["bytes_out"])
    if node.op == "GridSample" and len(active) > 1:
        # Of a map at most four places are read for each that is written.
        numbers["bytes_in"] = float(active[1].nbytes + min(active[0].nbytes, _CORNERS * numbers["bytes_out"]))
    numbers["numel_out"] = float(sum(tensor.numel for tensor in outputs))
    numbers["operands"], numbers["outputs"] = float(len(active)), float(len(outputs))
    shape = active[0].shape if active else ()
    numbers["rank"], numbers["last_dim"] = float(len(shape)), float(shape[-1] if shape else 1)
    # What stands behind an unknown operator has no shape: all that is known of the work is what it writes.
    macs, steps = (0, int(numbers["numel_out"])) if _UNKNOWN in form.inputs else _work(node, inputs, outputs)
    numbers["macs"], numbers["steps"] = float(macs), float(steps)
    numbers["padded_macs"] = float(macs)
    kind = "CopyingReshape" if "copies" in node.attributes else _KINDS.get(node.op, node.op)
    if node.op in _CONVOLUTIONS and len(inputs) > 1 and inputs[0] and inputs[1] and len(outputs) == 1:
        kind = _convolution(numbers, node, inputs[0].shape, inputs[1].shape, outputs[0].shape)
    elif node.op in _PRODUCTS and len(inputs) > 1 and inputs[0] and inputs[1] and outputs:
        kind = _product(numbers, node, inputs[0].shape, outputs[0].shape, fixed=static[1])
    elif node.op in RECURRENT and len(shape) == 3 and len(inputs) > 2 and inputs[2]:
        _recurrence(numbers, shape, inputs[2].shape)
    elif "Pool" in node.op and len(shape) == 4 and outputs:
        _pool(numbers, node, shape, outputs[0].shape)
    elif node.op == "Transpose":
        perm = order_of_dims(node, len(shape))
        numbers["last_moves"] = float(bool(perm) and perm[-1] != len(perm) - 1)
        numbers["inner"] = float(_kept_tail(perm, shape))
        if numbers["last_moves"] and not _moves_one(perm):
            # Element by element: 2.4 to 3 ns each in onnxruntime, where moving one dim takes 0.1 to 0.4.
            kind = "Transpose/scattered"
    elif node.op == "Clip" and sum(one is not None for one in form.inputs[1:]) + len(form.attributes) == 1:
        # Not what activations do: torch has another operator for it.
        kind = "Clip/one bound"
    elif node.op.rpartition("::")[2] in RESIZING and (mode := str(node.attributes.get("mode", _PLAIN))) != _PLAIN:
        # By element, interpolating takes 6 and 130 ns in onnxruntime, cubically the latter, and choosing 0.3 ns.
        kind = f"{kind}/{mode}" + (AT_ONE_PLACE if node.attributes.get("at_one_place") else "")
    elif node.op in _ROWWISE:
        numbers["inner"] = numbers["last_dim"]
        axis = node.integer("axis", -1) % len(shape) if shape else 0
        if node.op == "Softmax" and prod(shape[axis + 1 :]) > 1:
            # Over another dim, as YOLO's over its bins: engines turn it to be the last, or stride.
            numbers["inner"], numbers["last_moves"] = float(shape[axis]), 1.0
            kind = "Softmax/turned"
    elif node.op.startswith("Reduce") and shape and outputs and not _reduces_ends(shape, outputs[0].shape):
        # Over channels, say, not over an image: 0.3 to 0.9 ns an element in onnxruntime, not 0.07 (kernels-zen5).
        kind = f"{kind}/across"
    elif node.op in ("Concat", "Split", "Slice", "Gather"):
        numbers["inner"] = float(_moved_together(node, shape, outputs))
    elif len(data) == 2 and inputs[0] and inputs[1] and outputs:
        numbers["broadcast"] = _broadcast(inputs[0].shape, inputs[1].shape, outputs[0].shape)
    if node.attributes.get("transposed_input"):
        numbers["last_moves"] = 1.0
    activation = node.attributes.get("activation")
    if isinstance(activation, str):
        numbers["activation"] = ACTIVATION_STEPS.get(activation, 4.0)
    if node.op in _CONVOLUTIONS and len(inputs) > 3:
        numbers["fused_add"] = 1.0
    quantized = "quantized" if "quantized" in node.attributes else ""
    if other := next((tensor.dtype for tensor in outputs if tensor.dtype in _OTHER_FLOATS), quantized):
        # A form of its own, and never measured: engines bring most floats to float32 and back.
        kind = f"{kind}/{other}"
    return (
        kind,
        tuple(numbers[field] for field in FIELDS),
        tuple(tensor.shape for tensor in inputs if tensor is not None),
        tuple(tensor.shape for tensor in outputs),
    )


def _data_inputs(op: str) -> int | None:
    """Return how many inputs are data, None for all."""
    return 1 if op.startswith("Reduce") else _DATA.get(op)


def _work(node: Node, inputs: list[Tensor | None], outputs: list[Tensor]) -> tuple[int, int]:
    """Return multiply-accumulates and element-wise steps, by the formula of the operator where there is one."""
    if node.op in _FREE:
        return 0, 0
    name = _ALIASES.get(node.op, node.op)
    formula = FORMULAS.get(name) or FORMULAS.get(name.rpartition("::")[2])
    if formula is None or not outputs:
        return 0, sum(tensor.numel for tensor in outputs)
    if node.op == f"{DOMAIN}Conv":
        # Padded channels of a depthwise convolution and of plain input: what the weights say counts.
        weight, out = inputs[1], outputs[0]
        if weight is not None:
            return out.numel * prod(weight.shape[1:]), out.numel
    found = formula(Operands(node=node, inputs=tuple(inputs), outputs=tuple(outputs)))
    return found.macs, found.steps


def _convolution(
    numbers: dict[str, float], node: Node, source: tuple[int, ...], weight: tuple[int, ...], out: tuple[int, ...]
) -> str:
    group = node.integer("group", 1)
    kernel = weight[2:]
    numbers["batch"], numbers["group"] = float(source[0]), float(group)
    numbers["channels_in"], numbers["channels_out"] = float(source[1]), float(out[1])
    numbers["kernel_h"], numbers["kernel_w"] = float(kernel[0]), float(kernel[-1])
    for number, name in (("stride", "strides"), ("dilation", "dilations")):
        numbers[number] = float(max(node.ints(name, ()), default=1))
    numbers["side_in"] = float(prod(source[2:])) ** 0.5
    numbers["side_out"] = float(prod(out[2:])) ** 0.5
    per_group = max(1, out[1] // group)
    numbers["rows"], numbers["columns"] = float(prod(out[2:])), float(per_group)
    numbers["inner"], numbers["products"] = float(prod(weight[1:])), float(group * source[0])
    if group == 1:
        padded_in, padded_out = (-(-value // _BLOCK) * _BLOCK for value in (source[1], out[1]))
        numbers["padded_macs"] = numbers["macs"] * (padded_in * padded_out) / max(1, source[1] * out[1])
    if node.attributes.get("unfolded"):
        # One algorithm for all: the groups one after another, each a product, of the input as it is or unfolded.
        return f"{_plain(node.op)} {'in place' if set(kernel) == {1} and numbers['stride'] == 1 else 'unfolded'}"
    if node.attributes.get("single_blocks"):
        return f"{_plain(node.op)} single blocks"
    plain = bool(node.attributes.get("plain_input"))
    form = convolution_form(group, source[1], kernel, 1.0 if plain else numbers["stride"])
    if plain:
        form += "/plain input"
    if node.attributes.get("channels_last"):
        form += "/channels last"
    if node.attributes.get("along_time"):
        # In torch a tenth to a half as quick as over images (rare-zen5).
        form += "/along time"
    return f"{_plain(node.op)} {form}"


def _plain(op: str) -> str:
    """Name what is priced alike whether an activation is fused or not: the numbers tell."""
    return op.removeprefix("com.microsoft::Fused")


def _product(numbers: dict[str, float], node: Node, left: tuple[int, ...], out: tuple[int, ...], *, fixed: bool) -> str:
    swapped = node.integer("transA", 0)
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
    return f"{_plain(node.op)} {'weights' if fixed else 'activations'}{row}"


def _recurrence(numbers: dict[str, float], source: tuple[int, ...], state: tuple[int, ...]) -> None:
    """Set the product of each step: they come one after another."""
    numbers["rows"], numbers["columns"] = float(source[1]), float(state[1])
    numbers["inner"], numbers["products"] = float(source[2] + state[2]), float(state[0] * source[0])


def _pool(numbers: dict[str, float], node: Node, source: tuple[int, ...], out: tuple[int, ...]) -> None:
    sizes = node.ints("kernel_shape", ()) or source[2:]
    numbers["batch"], numbers["channels_in"], numbers["channels_out"] = map(float, (source[0], source[1], out[1]))
    numbers["kernel_h"], numbers["kernel_w"] = float(sizes[0]), float(sizes[-1])
    numbers["stride"] = float(max(node.ints("strides", ()), default=1))
    numbers["side_in"], numbers["side_out"] = float(prod(source[2:])) ** 0.5, float(prod(out[2:])) ** 0.5


def _kept_tail(perm: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """Count the elements that a transpose moves in one piece."""
    kept = 1
    for position in reversed(range(len(perm))):
        if perm[position] != position or position >= len(shape):
            break
        kept *= shape[position]
    return kept


def _moves_one(perm: tuple[int, ...]) -> bool:
    """Tell whether a transpose moves a single dim to another place."""
    moved = [place for place, dim in enumerate(perm) if place != dim]
    if not moved:
        return True
    between = perm[moved[0] : moved[-1] + 1]
    kept = tuple(range(moved[0], moved[-1] + 1))
    return between in (kept[1:] + kept[:1], kept[-1:] + kept[:-1])


def _reduces_ends(shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
    """Tell whether a reduction is over the last dims, whose elements lie together; they may stay as ones."""
    if len(out) < len(shape):
        return shape[: len(out)] == out
    gone = [place for place, (before, after) in enumerate(zip(shape, out, strict=False)) if before != after]
    return not gone or all(size == 1 for size in out[gone[0] :])


def _moved_together(node: Node, shape: tuple[int, ...], outputs: list[Tensor]) -> int:
    """Count the elements that are copied in one piece: those of the axis and behind it."""
    axis = node.integer("axis", 0)
    smaller = outputs[0].shape if outputs and node.op != "Concat" else shape
    if node.op == "Slice":
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
