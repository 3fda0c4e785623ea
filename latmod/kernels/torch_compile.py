"""What inductor makes of a graph, as far as it differs from onnxruntime."""

from collections.abc import Mapping, Sequence

import msgspec

from latmod.graph import Graph, Node
from latmod.kernels.chains import chained, with_work_of
from latmod.kernels.kernel import Kernel, convolution_form
from latmod.kernels.torch import PIXELS

_ELEMENT_WISE = frozenset({
    "Abs", "Add", "BatchNormalization", "Clip", "Div", "Elu", "Erf", "Exp", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Mul", "Neg", "Pow", "PRelu", "Relu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "com.microsoft::Gelu",
    "com.microsoft::QuickGelu",
})  # fmt: skip
"""Kinds of which inductor compiles any number that follow one another into one loop."""
_TAKEN_IN = frozenset({
    "Clip", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh", "com.microsoft::Gelu",
    "com.microsoft::QuickGelu",
})  # fmt: skip
"""Activations that it lets oneDNN do behind a convolution (torch/_inductor/fx_passes/mkldnn_fusion.py, 2.14)."""


def changed_in_torch_compile(graph: Graph, found: Sequence[Kernel]) -> dict[int, Kernel | None]:
    """Return what is otherwise in torch-compile, by its place among the kernels in onnxruntime; None for what is gone.

    Convolutions are oneDNN's, priced by their form, and take in the activation behind them. Dilated depthwise ones that
    it refuses for their padding, as in torch, take four to six times as long (Zen 5: from a padding of 7 on). Where
    vectors are shorter it refuses a padding of 5 and 6 too, which is not known here. Element-wise work is one loop with
    what it goes on with.
    """
    places = {node: place for place, kernel in enumerate(found) for node in kernel.nodes}
    nodes = {node.name: node for node in graph.nodes}
    results = {tensor.name for tensor in graph.outputs}
    changed: dict[int, Kernel | None] = {}
    for place, kernel in enumerate(found):
        if not kernel.convolves_images:
            continue
        changed[place] = formed = msgspec.structs.replace(kernel, kind=f"Conv {_form(kernel, nodes)}")
        if kernel.number("activation") or len(kernel.values) != 1 or kernel.values[0] in results:
            continue
        readers = {node.name for node in graph.consumers(kernel.values[0])}
        behind = {places.get(name, -1) for name in readers}
        last = behind.pop() if len(behind) == 1 else -1
        if last < 0 or not readers <= {*found[last].nodes}:
            continue
        if _TAKEN_IN & {found[last].kind, nodes[found[last].nodes[0]].op}:
            changed[place] = with_work_of(formed, found[last])
            changed[last] = None
    return changed | chained(graph, found, places, _ELEMENT_WISE, (), changed)


def _form(kernel: Kernel, nodes: Mapping[str, Node]) -> str:
    sizes = int(kernel.number("kernel_h")), int(kernel.number("kernel_w"))
    form = convolution_form(
        int(kernel.number("group")), int(kernel.number("channels_in")), sizes, kernel.number("stride")
    )
    pads = (nodes[name].ints("pads", ()) for name in kernel.nodes if nodes[name].op == "Conv")
    beside = max((pad for one in pads for pad in one[1::2]), default=0)
    refused = kernel.number("dilation") > 1.0 and beside > PIXELS
    return "unfolded" if refused and form.startswith("depthwise") else form
