"""Make named numbers out of a graph: the same names in the same order for every graph.

The numbers belong to the canonical form of the graph (`latmod.graph.canonical`), so that neither the exporter, nor
folded batch norms, nor the names or the order of nodes change them. All are plain counts; MACs and bytes are exact.
"""

from collections.abc import Callable
from math import log2, sqrt

import msgspec

from latmod.cost import VIEWS, Cost, cost, parameters
from latmod.graph import Graph, Node, Tensor, canonical
from latmod.residual import ResidualShape, residual_shape

# Where tensors begin to be read from farther away: 512 KiB and 1 MiB are common second-level caches per core of x86
# servers, 32 MiB a common third-level cache, and 4 MiB what of it a single core has in practice.
_WEIGHTS_BEYOND = {"weight_bytes_over_l2": 2**19, "weight_bytes_over_4m": 2**22, "weight_bytes_over_l3": 2**25}
_ACTIVATIONS_BEYOND = {"activation_bytes_over_l2": 2**20, "activation_bytes_over_4m": 2**22}
# onnxruntime's blocked convolutions hold 16 channels with AVX-512 and 8 without (MlasNchwcGetBlockSize).
_WIDE_BLOCK, _NARROW_BLOCK = 16, 8
# onnxruntime leaves its blocked layout where the input channels of a convolution are no multiple of this
# (nchwc_transformer.cc).
_CHANNEL_ALIGNMENT = 4
# With one thread, torch keeps these from oneDNN: 1x1 of stride 1 below this batch, and inputs of at most so many
# elements (use_mkldnn in ATen's Convolution.cpp).
_SMALL_INPUT, _LARGE_BATCH = 20480, 16


class Conv(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what the classes below ask about one convolution."""

    cost: Cost
    batch: int
    channels_in: int
    channels_out: int
    group: int
    kernel: tuple[int, ...]
    stride: int
    dilation: int
    input_numel: int
    octave: int

    @property
    def pointwise(self) -> bool:
        """Tell a 1x1 convolution."""
        return set(self.kernel) <= {1}

    @property
    def plain(self) -> bool:
        """Tell a convolution whose every output channel reads every input channel."""
        return self.group == 1

    @property
    def depthwise(self) -> bool:
        """Tell a convolution of one input channel per group."""
        return self.group > 1 and self.group == self.channels_in

    @property
    def product(self) -> bool:
        """Tell a 1x1 convolution that is one matrix product over the input as it lies in memory."""
        return self.pointwise and self.stride == 1 and self.dilation == 1 and self.batch < _LARGE_BATCH

    @property
    def small_input(self) -> bool:
        """Tell a single, small, ungrouped input under a kernel of at most 3 in one dim."""
        large = self.batch > 1 or self.input_numel > _SMALL_INPUT or min(self.kernel, default=1) > 3
        return self.group == 1 and not large and not self.product


# Every convolution class gives four features: macs_*, count_*, activation_bytes_* and weight_bytes_*.
CONV_CLASSES: dict[str, tuple[str, Callable[[Conv], bool]]] = {
    "conv1x1": ("ungrouped 1x1 convolutions", lambda c: c.plain and c.pointwise),
    "conv3x3": ("ungrouped 3x3 convolutions", lambda c: c.plain and c.kernel == (3, 3)),
    "conv_other": (
        "ungrouped convolutions of other kernels",
        lambda c: c.plain and not c.pointwise and c.kernel != (3, 3),
    ),
    "depthwise": ("depthwise convolutions", lambda c: c.depthwise),
    "grouped": ("grouped convolutions that are not depthwise", lambda c: not c.plain and not c.depthwise),
    "strided": ("convolutions with a stride above 1", lambda c: c.stride > 1),
    "conv3x3_stride1": (
        "ungrouped 3x3 convolutions with stride 1",
        lambda c: c.plain and c.kernel == (3, 3) and c.stride == 1,
    ),
    "conv1x1_stride1": ("1x1 convolutions with stride 1, batch below 16", lambda c: c.plain and c.product),
    "conv_small_input": (
        "other ungrouped convolutions, batch 1, at most 20480 input elements, a kernel side of at most 3",
        lambda c: c.small_input,
    ),
    "conv_in_under8": (
        "ungrouped convolutions of fewer than 8 input channels",
        lambda c: c.plain and c.channels_in < 8,
    ),
    "conv_in_8to15": (
        "ungrouped convolutions of 8 to 15 input channels",
        lambda c: c.plain and _NARROW_BLOCK <= c.channels_in < _WIDE_BLOCK,
    ),
    "conv_in_not4": (
        "ungrouped convolutions of at least 8 input channels, not a multiple of 4",
        lambda c: c.plain and c.channels_in >= _NARROW_BLOCK and c.channels_in % _CHANNEL_ALIGNMENT != 0,
    ),
    "conv_out_not8": ("convolutions whose output channels are no multiple of 8", lambda c: c.channels_out % 8 != 0),
    "conv_out_not16": ("convolutions whose output channels are no multiple of 16", lambda c: c.channels_out % 16 != 0),
    "side2": ("convolutions whose output has half the side of the network's input, or more", lambda c: c.octave <= 1),
    "side4": ("convolutions whose output has a quarter of the input's side (stage 1)", lambda c: c.octave == 2),
    "side8": ("convolutions whose output has an eighth of the input's side (stage 2)", lambda c: c.octave == 3),
    "side16": ("convolutions whose output has a 16th of the input's side (stage 3)", lambda c: c.octave == 4),
    "side32": ("convolutions whose output has a 32nd of the input's side, or less (stage 4)", lambda c: c.octave >= 5),
}

_KINDS: dict[str, tuple[str, frozenset[str]]] = {
    "conv": ("convolutions", frozenset({"Conv", "ConvTranspose"})),
    "add": ("additions", frozenset({"Add"})),
    "relu": ("Relu and Clip", frozenset({"Relu", "Clip"})),
    "pool": ("pools", frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"})),
    "gemm": ("matrix products", frozenset({"Gemm", "MatMul"})),
}
_KIND_OF = {op: kind for kind, (_, ops) in _KINDS.items() for op in ops}
_RESIDUAL = {
    "is_residual": "1 for a residual network as torchvision builds it, else 0",
    "block_bottleneck": "1 for bottleneck blocks, 0 for basic ones (0 unless residual)",
    "blocks1": "blocks in stage 1 (0 unless residual)",
    "blocks2": "blocks in stage 2 (0 unless residual)",
    "blocks3": "blocks in stage 3 (0 unless residual)",
    "blocks4": "blocks in stage 4 (0 unless residual)",
    "width": "base width: channels after the stem (0 unless residual)",
    "widen": "inner width of the bottlenecks over the usual one (0 unless residual)",
    "classes": "outputs of the classifier (0 unless residual)",
}
_TOTALS = {
    "side": "side of the largest input image, the root of height times width (0 without one)",
    "batch": "first dim of that image, or of the largest input",
    "macs": "multiply-accumulates",
    "flops": "2 * macs + element-wise steps",
    "params": "learnt elements, batch norms folded",
    "weight_bytes": "bytes of weights read",
    "activation_bytes": "bytes of activations read and written, node by node",
    "max_activation_bytes": "bytes of activations that the largest node reads and writes",
    "max_weight_bytes": "bytes of the largest node's weights",
    "weight_bytes_over_l2": "sum over convolutions of the weight bytes beyond 512 KiB",
    "weight_bytes_over_4m": "sum over convolutions of the weight bytes beyond 4 MiB",
    "weight_bytes_over_l3": "sum over convolutions of the weight bytes beyond 32 MiB",
    "activation_bytes_over_l2": "sum over convolutions of the activation bytes beyond 1 MiB",
    "activation_bytes_over_4m": "sum over convolutions of the activation bytes beyond 4 MiB",
    "depth": "convolutions and matrix products on the longest path",
    "nodes": "nodes, without views and what is known at load time",
    "unknown_nodes": "nodes of operators without a cost formula",
    "macs_padded8": "MACs of ungrouped convolutions, channels padded to multiples of 8",
    "macs_padded16": "MACs of ungrouped convolutions, channels padded to multiples of 16",
}
_PER_KIND = {
    f"{quantity}_{kind}": f"{meaning} {text}"
    for kind, (text, _) in {**_KINDS, "other": ("all other operators", frozenset[str]())}.items()
    for quantity, meaning in {"count": "number of", "activation_bytes": "activation bytes of"}.items()
} | {"macs_gemm": "MACs of matrix products", "weight_bytes_gemm": "weight bytes of matrix products"}
_PER_CLASS = {
    f"{quantity}_{name}": f"{meaning} {text}"
    for name, (text, _) in CONV_CLASSES.items()
    for quantity, meaning in {
        "macs": "MACs of",
        "count": "number of",
        "activation_bytes": "activation bytes of",
        "weight_bytes": "weight bytes of",
    }.items()
}

# Name and meaning of every feature, in the order in which `graph_features` gives them.
FEATURES: dict[str, str] = {**_RESIDUAL, **_TOTALS, **_PER_KIND, **_PER_CLASS}


def graph_features(graph: Graph) -> dict[str, float]:
    """Compute the features named in `FEATURES`. Raises GraphError where a node's shapes contradict its operator."""
    graph = canonical(graph)
    totals = dict.fromkeys(FEATURES, 0)
    images = [tensor for tensor in graph.inputs if len(tensor.shape) == 4]
    image = max(images, key=_area, default=None)
    area = _area(image) if image is not None else 0
    largest = image or max(graph.inputs, key=lambda tensor: tensor.numel, default=None)
    totals["batch"] = largest.shape[0] if largest is not None and largest.shape else 1
    for node in graph.nodes:
        if node.op not in VIEWS:
            _add_node(totals, node, cost(node, graph), graph, area)
    totals["params"] = parameters(graph)
    totals["depth"] = _depth(graph)
    features = {name: float(value) for name, value in totals.items()}
    features["side"] = sqrt(area)
    features |= _residual_features(graph)
    return features


def _area(image: Tensor) -> int:
    return image.shape[2] * image.shape[3]


def _add_node(totals: dict[str, int], node: Node, spent: Cost, graph: Graph, area: int) -> None:
    kind = _KIND_OF.get(node.op, "other")
    totals["macs"] += spent.macs
    totals["flops"] += spent.flops
    totals["weight_bytes"] += spent.bytes_weights
    totals["activation_bytes"] += spent.bytes_activations
    totals["max_activation_bytes"] = max(totals["max_activation_bytes"], spent.bytes_activations)
    totals["max_weight_bytes"] = max(totals["max_weight_bytes"], spent.bytes_weights)
    totals["nodes"] += 1
    totals["unknown_nodes"] += not spent.known
    totals[f"count_{kind}"] += 1
    totals[f"activation_bytes_{kind}"] += spent.bytes_activations
    if kind == "gemm":
        totals["macs_gemm"] += spent.macs
        totals["weight_bytes_gemm"] += spent.bytes_weights
    conv = _conv(node, spent, graph, area) if kind == "conv" and spent.known else None
    if conv is None:
        return
    for name, bound in _WEIGHTS_BEYOND.items():
        totals[name] += max(0, spent.bytes_weights - bound)
    for name, bound in _ACTIVATIONS_BEYOND.items():
        totals[name] += max(0, spent.bytes_activations - bound)
    if conv.plain:
        totals["macs_padded8"] += _padded_macs(conv, 8)
        totals["macs_padded16"] += _padded_macs(conv, 16)
    for name, (_, belongs) in CONV_CLASSES.items():
        if belongs(conv):
            totals[f"macs_{name}"] += spent.macs
            totals[f"count_{name}"] += 1
            totals[f"activation_bytes_{name}"] += spent.bytes_activations
            totals[f"weight_bytes_{name}"] += spent.bytes_weights


def _conv(node: Node, spent: Cost, graph: Graph, area: int) -> Conv | None:
    source, weight, output = (graph.tensors[name] for name in (node.inputs[0], node.inputs[1], node.outputs[0]))
    if min(len(tensor.shape) for tensor in (source, weight, output)) < 3:
        return None
    pixels = max(1, output.shape[-1] * output.shape[-2]) if len(output.shape) > 3 else output.shape[-1] ** 2
    return Conv(
        cost=spent,
        batch=source.shape[0],
        channels_in=source.shape[1],
        channels_out=output.shape[1],
        group=node.integer("group", 1),
        kernel=weight.shape[2:],
        stride=max(node.ints("strides", (1,)), default=1),
        dilation=max(node.ints("dilations", (1,)), default=1),
        input_numel=source.numel,
        octave=round(log2(area / pixels) / 2) if area and pixels else 0,
    )


def _padded_macs(conv: Conv, multiple: int) -> int:
    if not conv.channels_in or not conv.channels_out:
        return 0
    padded_in, padded_out = (-(-n // multiple) * multiple for n in (conv.channels_in, conv.channels_out))
    return conv.cost.macs // (conv.channels_in * conv.channels_out) * padded_in * padded_out


def _depth(graph: Graph) -> int:
    depth: dict[str, int] = {}
    longest = 0
    for node in graph.nodes:
        weighs = _KIND_OF.get(node.op) in ("conv", "gemm")
        reached = max((depth.get(name, 0) for name in node.inputs), default=0) + weighs
        longest = max(longest, reached)
        depth.update((name, reached) for name in node.outputs)
    return longest


def _residual_features(graph: Graph) -> dict[str, float]:
    shape = residual_shape(graph)
    if not isinstance(shape, ResidualShape):
        return {}
    return {
        "is_residual": 1.0,
        "block_bottleneck": float(shape.block == "bottleneck"),
        **{f"blocks{stage}": float(count) for stage, count in enumerate(shape.blocks, 1)},
        "width": float(shape.width),
        "widen": shape.widen,
        "classes": float(shape.classes),
    }
