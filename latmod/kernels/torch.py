"""What PyTorch makes of a graph, eagerly: one kernel for each operator call, nothing fused.

What no input influences is computed once, and activations that exporters spell out are one call, as
`runtimes/conversion.py` has it.
"""

from math import prod

from latmod.graph import Graph
from latmod.kernels.activations import restore_gelu, restore_silu
from latmod.kernels.rewriting import Rewriter, Step

# ATen's Convolution.cpp, ConvParams::use_mkldnn: with one thread these run on torch's own im2col and Gemm instead of
# oneDNN: 1x1 of stride 1 below a batch of 16; ungrouped, one image of at most 20,480 elements, and a small kernel.
_LARGE_BATCH, _SMALL_INPUT, _LARGE_KERNEL = 16, 20480, 3

# These give other strides to the same memory.
_VIEWS = frozenset({"Transpose", "Squeeze", "Unsqueeze", "Split", "Slice", "Expand"})
_RESHAPES = frozenset({"Reshape", "Flatten"})


def run_eagerly(graph: Graph, *, threads: int) -> Rewriter:
    """Return the operator calls.

    Convolutions are renamed after the library that runs them, and reshapes of transposed memory, which have to copy it.
    Whoever else reads transposed memory is marked as such.
    """
    work = Rewriter(graph)
    restore_gelu(work, "Gelu")
    restore_silu(work, "Silu")
    transposed: set[str] = set()
    for step in work.live():
        source = step.inputs[0] if step.inputs else ""
        if step.op == "Conv":
            step.op = "Conv" if uses_onednn(work, step, threads) else "SlowConv"
        if step.op == "Transpose" or (step.op in _VIEWS and source in transposed):
            transposed.update(step.outputs)
        elif step.op in _RESHAPES and source in transposed:
            step.op = "CopyingReshape"
        if step.op not in _VIEWS and any(name in transposed for name in step.inputs):
            step.attributes["transposed_input"] = 1
    return work


def uses_onednn(work: Rewriter, step: Step, threads: int) -> bool:
    """Tell whether torch gives a float32 convolution to oneDNN."""
    source, weight = work.shape(step.inputs[0]), work.shape(step.inputs[1])
    kernel = weight[2:]
    strided = any(value != 1 for value in step.ints("strides", ()))
    dilated = any(value != 1 for value in step.ints("dilations", ()))
    if not (strided or dilated or source[0] >= _LARGE_BATCH or set(kernel) != {1} or threads > 1):
        return False
    group = step.integer("group", 1)
    large = len(kernel) > 1 and min(kernel[-2:]) > _LARGE_KERNEL
    return group != 1 or large or source[0] > 1 or prod(source) > _SMALL_INPUT or threads > 1
