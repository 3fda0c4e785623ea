"""What PyTorch makes of a graph, eagerly: one kernel for each operator call, nothing fused.

What no input influences is computed once, and activations that exporters spell out are one call, as
`runtimes/conversion.py` has it.
"""

from math import prod

from latmod.graph import Graph
from latmod.kernels.activations import restore_gelu, restore_silu
from latmod.kernels.layouts import Layouts, Shape
from latmod.kernels.nchwc import RESIZING
from latmod.kernels.rewriting import Rewriter, Step

# ATen's Convolution.cpp, ConvParams::use_mkldnn: with one thread these run on torch's own im2col and Gemm instead of
# oneDNN: 1x1 of stride 1 below a batch of 16; ungrouped, one image of at most 20,480 elements, and a small kernel. So
# do most over volumes: 3x3x3 over 16 x 8 x 128 x 128 elements takes 5 multiply-adds a nanosecond, 3x7x7 over fewer 60
# to 120 (rare-zen5).
_LARGE_BATCH, _SMALL_INPUT, _LARGE_KERNEL = 16, 20480, 3

# oneDNN's jit_avx512_common_conv_kernel.cpp, init_conf: filters in blocks of 16, up to five blocks at once where their
# number can be divided so. Wide kernels, rows that registers hold, and few filters over wider ones run in another way;
# of several images only rows of a kernel 3 wide, but for some that are many channels deep.
_FILTERS, _MOST_BLOCKS, _NARROW_KERNEL, _FEW_IMAGES = 16, 5, 3, 16
_ROW, _FEW_FILTERS, _FEW_FILTERS_ROW = 28, 96, 147

# oneDNN's jit_uni_dw_conv_kernel_utils: so many pixels of a row at once, and no more padding beside one, with vectors
# of 16 and of fewer elements. What it refuses is unfolded, and takes ten times as long.
PIXELS, _FEWER_PIXELS = 6, 4

# Maps of 1, 4 and 16 KB for each channel, enlarged by interpolation: an element takes 3.0 ns for 1.6 in maps of other
# sizes, larger ones too (medians, kernels-zen5: 21 and 120 of more than 40 channels; kernels-spr: 4.4 for 3.5). What
# lies at one place of the cache pushes each other out.
_CROWDED = frozenset({256, 1024, 4096})


def run_eagerly(graph: Graph, *, threads: int, block: int) -> Rewriter:
    """Return the operator calls; `block` is how many elements a vector of the machine holds.

    Convolutions are renamed after the library that runs them and marked by the algorithm that it chooses, reshapes of
    memory in another order are renamed, as they have to copy it, and whoever else minds that order is marked, as are
    maps whose channels lie at one place of the cache.
    """
    work = Rewriter(graph)
    restore_gelu(work, "Gelu")
    restore_silu(work, "Silu")
    layouts = Layouts(work)
    for step in work.live():
        if step.op == "Conv":
            _choose(work, layouts, step, threads, block)
        elif step.op in RESIZING and prod(work.shape(step.out)[2:]) in _CROWDED:
            step.attributes["at_one_place"] = 1
        if layouts.copies(step):
            step.op = "CopyingReshape"
        elif layouts.is_minded(step):
            step.attributes["transposed_input"] = 1
        layouts.follow(step)
    return work


def _choose(work: Rewriter, layouts: Layouts, step: Step, threads: int, block: int) -> None:
    """Name a convolution after its library, and mark the algorithm that this chooses."""
    if not uses_onednn(work, step, threads):
        step.op = "SlowConv"
        return
    source, weight = work.shape(step.inputs[0]), work.shape(step.inputs[1])
    group = step.integer("group", 1)
    if len(source) < 3 or len(weight) < 3:
        return
    depthwise = group > 1 and weight[1] == 1 and group == source[1]
    if depthwise and len(source) == 3:
        step.attributes["along_time"] = 1
    if len(source) != 4 or len(weight) != 4:
        return
    pads = step.ints("pads", (0, 0, 0, 0))
    if group == 1 and block == _FILTERS and runs_single_blocks(source, weight, work.shape(step.outputs[0]), step):
        step.attributes["single_blocks"] = 1
    elif depthwise and layouts.has_channels_last(step.inputs[0]):
        step.attributes["channels_last"] = 1
    elif depthwise and max(pads[1], pads[3]) > (PIXELS if block == 16 else _FEWER_PIXELS):
        step.attributes["unfolded"] = 1


def runs_single_blocks(source: Shape, weight: Shape, out: Shape, step: Step) -> bool:
    """Tell whether oneDNN with AVX-512 takes one block of filters at a time, reading a pixel for each multiplication.

    Where blocks have no divisor up to five: 11, 13, 17 of them, say. It takes a third longer than two blocks or more
    (kernels, Zen 4: 42 multiply-adds a nanosecond and 54). A row that registers hold is another way, as quick as these.
    """
    if len(out) != 4 or set(weight[2:]) == {1} or weight[3] > _NARROW_KERNEL:
        return False
    blocks = -(-weight[0] // _FILTERS)
    if any(blocks % several == 0 for several in range(2, _MOST_BLOCKS + 1)):
        return False
    batch, filters, (height, width) = source[0], blocks * _FILTERS, out[2:]
    if batch == 1:
        few = filters <= _FEW_FILTERS and width <= _FEW_FILTERS_ROW
        return not (width <= _ROW or few or weight[1] < _FILTERS)
    one_step = set(step.ints("strides", ())) <= {1}
    deep = (width == 13 and weight[1] > 176) or (width == _ROW and weight[1] > 496)
    shallow = one_step or (batch <= _FEW_IMAGES and (filters <= 192 or height <= 10))
    return not (weight[3] == _NARROW_KERNEL and width <= _ROW and shallow and not deep)


def uses_onednn(work: Rewriter, step: Step, threads: int) -> bool:
    """Tell whether torch gives a float32 convolution to oneDNN; most are, so one after an unknown operator too."""
    source, weight = work.shape(step.inputs[0]), work.shape(step.inputs[1])
    if not source or not weight:
        return True
    kernel = weight[2:]
    strided = any(value != 1 for value in step.ints("strides", ()))
    dilated = any(value != 1 for value in step.ints("dilations", ()))
    # ATen looks at the last two dims alone, and counts the elements of the first four: so of volumes all but a row's.
    pointwise = set(kernel[-2:]) == {1}
    if not (strided or dilated or source[0] >= _LARGE_BATCH or not pointwise or threads > 1):
        return False
    group = step.integer("group", 1)
    large = len(kernel) > 1 and min(kernel[-2:]) > _LARGE_KERNEL
    return group != 1 or large or source[0] > 1 or prod(source[:4]) > _SMALL_INPUT or threads > 1
