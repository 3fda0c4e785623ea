"""Cost every operator by one small pure function over shapes.

MACs are multiply-accumulates as `torch.utils.flop_counter` and torchvision's tables count them (FLOPs there are twice
that, biases left out); `flops = 2 * macs + element-wise steps`. Bytes are those of the tensors that a node has to touch
at least once; what an engine's caches make of that is for the predictors to learn.
"""

from collections.abc import Callable
from math import prod

import msgspec

from latmod.errors import GraphError
from latmod.graph import FLOATS, Graph, Node, Tensor


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """State what one node costs.

    `bytes_read` includes `bytes_weights`, the part that no input influences. `params` counts learnt elements: no
    running statistics of a batch norm, no scalars. `known` is False where only the bytes are more than a guess.
    """

    macs: int = 0
    flops: int = 0
    bytes_read: int = 0
    bytes_weights: int = 0
    bytes_written: int = 0
    params: int = 0
    known: bool = True

    @property
    def bytes_activations(self) -> int:
        """Count the bytes of activations read and written."""
        return self.bytes_read - self.bytes_weights + self.bytes_written


class Work(msgspec.Struct, frozen=True):
    """Say what a formula knows beside bytes: multiply-accumulates and element-wise steps."""

    macs: int
    steps: int = 0


class Operands(msgspec.Struct, frozen=True, kw_only=True):
    """Hand a formula its node with the tensors it reads (None where an optional one is absent) and writes."""

    node: Node
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor, ...]

    def read(self, index: int) -> Tensor:
        """Give input `index`. Raises ValueError where it is absent."""
        tensor = self.inputs[index]
        if tensor is None:
            raise ValueError(f"input {index} is absent")
        return tensor

    def has(self, index: int) -> bool:
        """Tell whether input `index` is there."""
        return index < len(self.inputs) and self.inputs[index] is not None

    @property
    def out(self) -> Tensor:
        """Give the first output."""
        return self.outputs[0]


Formula = Callable[[Operands], Work]


def cost(node: Node, graph: Graph) -> Cost:
    """Cost one node of a graph. Raises GraphError where its shapes contradict its operator.

    Nodes that no input influences cost nothing: every engine computes them once, at load time.
    """
    written = [name for name in node.outputs if name and (name in graph.tensors or name in graph.shapeless)]
    if node.op in VIEWS or (all(name in graph.static for name in written) and written):
        return Cost()
    names = dict.fromkeys(name for name in node.inputs if name)
    shapeless = any(name in graph.shapeless for name in (*names, *written))
    formula = None if shapeless else FORMULAS.get(node.op)
    weights = sum(_nbytes(name, graph) for name in names if name in graph.static)
    read = sum(_nbytes(name, graph) for name in names)
    bytes_written = sum(_nbytes(name, graph) for name in written)
    params = sum(_params(node, index, graph) for index in range(len(node.inputs)))
    if formula is None:
        elements = sum(graph.tensors[name].numel for name in written if name in graph.tensors)
        return Cost(
            flops=max(elements, 1),
            bytes_read=read,
            bytes_weights=weights,
            bytes_written=bytes_written,
            params=params,
            known=False,
        )
    operands = Operands(
        node=node,
        inputs=tuple(graph.tensors.get(name) for name in node.inputs),
        outputs=tuple(graph.tensors[name] for name in written),
    )
    try:
        work = formula(operands)
    except (IndexError, ValueError, ZeroDivisionError) as error:
        raise GraphError(f"node {node.name!r} ({node.op}): its shapes do not fit the operator ({error})") from None
    if node.op in PARTIAL_READS:
        source = node.inputs[0]
        skipped = max(0, _nbytes(source, graph) - bytes_written)
        read -= skipped
        weights -= skipped if source in graph.static else 0
    return Cost(
        macs=work.macs,
        flops=2 * work.macs + work.steps,
        bytes_read=read,
        bytes_weights=weights,
        bytes_written=bytes_written,
        params=params,
    )


def parameters(graph: Graph) -> int:
    """Count the learnt elements of a graph; weights that several nodes read, as tied embeddings are, count once."""
    counted: dict[str, int] = {}
    for node in graph.nodes:
        if node.op in VIEWS or all(name in graph.static for name in node.outputs if name):
            continue
        for index, name in enumerate(node.inputs):
            if name in graph.static:
                source = _stored(name, graph)
                counted[source] = max(counted.get(source, 0), _params(node, index, graph))
    return sum(counted.values())


def _stored(name: str, graph: Graph) -> str:
    """Return what a value is another name of, or another arrangement."""
    while (node := graph.producer(name)) is not None and (node.op in VIEWS or node.op == "Transpose") and node.inputs:
        name = node.inputs[0]
    return name


def _nbytes(name: str, graph: Graph) -> int:
    """Count the bytes of a value; where its shape is unknown take the nearest known value that it is computed from."""
    seen: set[str] = set()
    while name not in graph.tensors and name not in seen:
        seen.add(name)
        node = graph.producer(name)
        moving = [source for source in node.inputs if source and source not in graph.static] if node else []
        if not moving:
            return 1
        name = moving[0]
    return graph.tensors[name].nbytes if name in graph.tensors else 1


_WEIGHT_TYPES = FLOATS | {"int8", "uint8", "int4", "uint4"}
_RUNNING_STATISTICS = {"BatchNormalization": (3, 4)}


def _params(node: Node, index: int, graph: Graph) -> int:
    """Count the learnt elements in one input of a node."""
    name = node.inputs[index]
    if name not in graph.static or name not in graph.tensors or index in _RUNNING_STATISTICS.get(node.op, ()):
        return 0
    tensor = graph.tensors[name]
    producer = graph.producer(name)
    # A scalar is a constant of the formula (a clip bound, an epsilon); so is a scalar that Expand spreads.
    if not tensor.shape or tensor.dtype not in _WEIGHT_TYPES or (producer is not None and producer.op == "Expand"):
        return 0
    return tensor.numel


def _conv(weight: int, bias: int) -> Formula:
    def formula(x: Operands) -> Work:
        channels, group = x.read(0).shape[1], x.node.integer("group", 1)
        if channels != x.read(weight).shape[1] * group:
            raise ValueError(f"{channels} input channels, weights for {x.read(weight).shape[1] * group}")
        return Work(x.out.numel * prod(x.read(weight).shape[1:]), x.out.numel if x.has(bias) else 0)

    return formula


def _conv_transpose(x: Operands) -> Work:
    return Work(x.read(0).numel * prod(x.read(1).shape[1:]), x.out.numel if x.has(2) else 0)


def _gemm(x: Operands) -> Work:
    inner = x.read(0).shape[0 if x.node.integer("transA", 0) else 1]
    return Work(x.out.numel * inner, x.out.numel if x.has(2) else 0)


def _matmul(x: Operands) -> Work:
    left = x.read(0).shape
    return Work(x.out.numel * left[-2 if x.node.integer("transA", 0) else -1])


def _einsum(x: Operands) -> Work:
    equation = str(x.node.attributes.get("equation", "")).replace(" ", "")
    sizes: dict[str, int] = {}
    for term, tensor in zip(equation.split("->")[0].split(","), x.inputs, strict=True):
        if tensor is None:
            raise ValueError("an input is absent")
        before, dots, after = term.partition("...")
        dims = list(zip(before, tensor.shape, strict=False))
        dims += list(zip(reversed(after), reversed(tensor.shape), strict=False))
        sizes.update(dims)
        if dots:
            middle = tensor.shape[len(before) : len(tensor.shape) - len(after)]
            sizes["..."] = max(sizes.get("...", 1), prod(middle))
    return Work(prod(sizes.values())) if len(x.inputs) > 1 else Work(0, x.read(0).numel)


def _recurrent(gates: int) -> Formula:
    def formula(x: Operands) -> Work:
        steps, batch, inputs = x.read(0).shape
        if x.node.integer("layout", 0):
            steps, batch = batch, steps
        directions, _, hidden = x.read(2).shape
        units = steps * batch * directions * gates * hidden
        # Per gate and step: bias, activation (4 steps, as Sigmoid below) and the product with the state.
        return Work(units * (inputs + hidden), units * 6)

    return formula


def _attention(x: Operands) -> Work:
    query, key, value = x.read(0).shape, x.read(1).shape, x.read(2).shape
    if len(query) == 4:
        batch, heads, queries, _ = query
        scores = batch * heads * queries * key[2]
        return Work(scores * (query[3] + value[3]), scores * 5)
    heads = x.node.integer("q_num_heads", 1)
    scores = query[0] * query[1] * key[1]
    kv_heads = max(x.node.integer("kv_num_heads", heads), 1)
    return Work(scores * (query[2] + value[2] * heads // kv_heads), scores * heads * 5)


def _pool(x: Operands) -> Work:
    return Work(0, x.out.numel * prod(x.node.ints("kernel_shape", (1,))))


def _reads(steps: int) -> Formula:
    return lambda x: Work(0, x.read(0).numel * steps)


def _writes(steps: int) -> Formula:
    return lambda x: Work(0, x.out.numel * steps)


def _variadic(x: Operands) -> Work:
    return Work(0, x.out.numel * max(len(x.inputs) - 1, 1))


def _lrn(x: Operands) -> Work:
    return Work(0, x.out.numel * (2 * x.node.integer("size", 1) + 5))


def _resize(x: Operands) -> Work:
    # Interpolating multiplies and adds the 2 (linear) or 4 (cubic) neighbours along each dim that it changes.
    taps = {"nearest": 0, "linear": 2, "cubic": 4}.get(str(x.node.attributes.get("mode", "nearest")), 2)
    changed = sum(a != b for a, b in zip(x.read(0).shape, x.out.shape, strict=False))
    return Work(0, 2 * x.out.numel * taps**changed if taps else 0)


def _dft(x: Operands) -> Work:
    return Work(0, 5 * x.out.numel * max(x.read(0).numel.bit_length(), 1))


def _moves(x: Operands) -> Work:
    return Work(0)


# Engines give these a new name for the same memory, or skip them at inference.
VIEWS = frozenset(
    {"Constant", "Dropout", "Flatten", "Identity", "Reshape", "Shape", "Size", "Squeeze", "Unsqueeze", "Optional"}
)
# These touch only as much of their first input as they write.
PARTIAL_READS = frozenset({"Gather", "GatherElements", "GatherND", "Slice", "Compress"})

# Arithmetic steps per element: Sigmoid is negate, exp, add, divide; Softmax max, subtract, exp, sum, divide; a
# normalisation mean, subtract, square, mean, scale twice, shift. Only their order of magnitude matters.
STEPS_PER_OUTPUT = {
    "Abs": 1, "Add": 1, "And": 1, "BitShift": 1, "BitwiseAnd": 1, "BitwiseNot": 1, "BitwiseOr": 1, "BitwiseXor": 1,
    "Ceil": 1, "Div": 1, "Equal": 1, "Floor": 1, "Greater": 1, "GreaterOrEqual": 1, "IsInf": 1, "IsNaN": 1, "Less": 1,
    "LessOrEqual": 1, "Mod": 1, "Mul": 1, "Neg": 1, "Not": 1, "Or": 1, "Reciprocal": 1, "Relu": 1, "Round": 1,
    "Sign": 1, "Sqrt": 1, "Sub": 1, "Where": 1, "Xor": 1,
    "BatchNormalization": 2, "Binarizer": 1, "Clip": 2, "Exp": 1, "LeakyRelu": 2, "Log": 1, "PRelu": 2, "Pow": 1,
    "ThresholdedRelu": 1, "Shrink": 2,
    "Acos": 4, "Acosh": 4, "Asin": 4, "Asinh": 4, "Atan": 4, "Atanh": 4, "Cos": 4, "Cosh": 4, "Sin": 4, "Sinh": 4,
    "Tan": 4, "Erf": 4, "Tanh": 4, "Sigmoid": 4,
    "Celu": 4, "Elu": 3, "Gelu": 8, "HardSigmoid": 3, "HardSwish": 4, "Mish": 8, "Selu": 4, "Softplus": 3,
    "Softsign": 3, "Swish": 5,
    "GridSample": 10, "MaxRoiPool": 4, "RoiAlign": 10, "RotaryEmbedding": 3, "CumSum": 1, "CumProd": 1,
    "QuantizeLinear": 3, "DequantizeLinear": 2, "DynamicQuantizeLinear": 5,
    "Bernoulli": 4, "RandomNormal": 8, "RandomNormalLike": 8, "RandomUniform": 4, "RandomUniformLike": 4,
    "QLinearAdd": 5, "QLinearMul": 5, "com.microsoft::QLinearAdd": 5, "com.microsoft::QLinearMul": 5,
    "com.microsoft::QuickGelu": 5, "com.microsoft::Gelu": 8, "com.microsoft::FastGelu": 8,
    "com.microsoft::BiasGelu": 9, "HannWindow": 4, "HammingWindow": 4, "BlackmanWindow": 6,
}  # fmt: skip
_STEPS_PER_INPUT = {
    "ArgMax": 1, "ArgMin": 1, "GlobalAveragePool": 1, "GlobalMaxPool": 1, "GlobalLpPool": 2, "Hardmax": 2,
    "ReduceL1": 2, "ReduceL2": 2, "ReduceLogSum": 1, "ReduceLogSumExp": 2, "ReduceMax": 1, "ReduceMean": 1,
    "ReduceMin": 1, "ReduceProd": 1, "ReduceSum": 1, "ReduceSumSquare": 2,
    "Softmax": 5, "LogSoftmax": 6,
    "GroupNormalization": 7, "InstanceNormalization": 7, "LayerNormalization": 7, "LpNormalization": 4,
    "MeanVarianceNormalization": 6, "RMSNormalization": 4, "SimplifiedLayerNormalization": 4,
    "com.microsoft::SkipLayerNormalization": 8, "com.microsoft::SkipSimplifiedLayerNormalization": 5,
    "TopK": 4, "Unique": 8, "NegativeLogLikelihoodLoss": 2, "SoftmaxCrossEntropyLoss": 8,
}  # fmt: skip
_MOVING = (
    "Cast", "CastLike", "CenterCropPad", "Col2Im", "Compress", "Concat", "ConstantOfShape", "DepthToSpace", "Expand",
    "EyeLike", "Gather", "GatherElements", "GatherND", "MaxUnpool", "OneHot", "Pad", "Range", "ReverseSequence",
    "Scatter", "ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "TensorScatter", "Tile", "Transpose",
    "Trilu", "com.microsoft.nchwc::ReorderInput", "com.microsoft.nchwc::ReorderOutput",
)  # fmt: skip

FORMULAS: dict[str, Formula] = {
    "Conv": _conv(1, 2),
    "ConvInteger": _conv(1, 99),
    "QLinearConv": _conv(3, 8),
    "com.microsoft::FusedConv": _conv(1, 2),
    "com.microsoft.nchwc::Conv": _conv(1, 2),
    "ConvTranspose": _conv_transpose,
    "DeformConv": lambda x: Work(x.out.numel * prod(x.read(1).shape[1:]), 8 * x.out.numel),
    "Gemm": _gemm,
    "com.microsoft::FusedGemm": _gemm,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "com.microsoft::FusedMatMul": _matmul,
    "com.microsoft::MatMulNBits": _matmul,
    "Einsum": _einsum,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    "Attention": _attention,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "LpPool": _pool,
    "com.microsoft.nchwc::AveragePool": _pool,
    "com.microsoft.nchwc::MaxPool": _pool,
    "com.microsoft.nchwc::GlobalAveragePool": _reads(1),
    "Sum": _variadic,
    "Mean": _variadic,
    "Max": _variadic,
    "Min": _variadic,
    "LRN": _lrn,
    "Resize": _resize,
    "Upsample": _resize,
    "DFT": _dft,
    "STFT": _dft,
    **{op: _writes(steps) for op, steps in STEPS_PER_OUTPUT.items()},
    **{op: _reads(steps) for op, steps in _STEPS_PER_INPUT.items()},
    **{op: _moves for op in _MOVING},
}
