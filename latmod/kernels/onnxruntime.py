"""What onnxruntime's CPU provider makes of a graph (all optimisations on), without asking it.

The rules follow `graph_transformer_utils.cc` of onnxruntime 1.20 to 1.32 in its order; each names the transformer that
it stands for. The tests hold them against what onnxruntime's own profile tells.
"""

from collections.abc import Collection

from latmod.cost import VIEWS
from latmod.graph import Graph
from latmod.kernels.activations import restore_gelu, restore_tanh_gelu
from latmod.kernels.nchwc import block_layout
from latmod.kernels.norms import layer_norm, simplified_layer_norm, skip_layer_norm
from latmod.kernels.products import MS, gemm_activation, matmul_add, scaled_products, transposed_products
from latmod.kernels.rewriting import Rewriter, Step
from latmod.kernels.transposes import move_transposes

_ENDLESS = 2**62
_CONV_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"})


GELUS = frozenset({"input", "product"})
"""Which GELUs GeluFusion finds, by what they multiply by 0.5 (latmod.kernels.activations.HALVED); not the one that
torch's newer exporter writes."""


def optimise(graph: Graph, *, block: int, gelus: Collection[str] = GELUS) -> Rewriter:
    """Return what is executed, step by step; `block` is the channel block of the machine's convolutions (8 or 16).

    `gelus` are those that become one operator.
    """
    work = Rewriter(graph)
    _mark_quantized(work)
    _decompose(work)
    _merge_twins(work)
    _fuse_pads(work)
    _fold_into_convolutions(work)
    _drop_noops(work)
    restore_gelu(work, f"{MS}Gelu", gelus)
    restore_tanh_gelu(work, f"{MS}FastGelu")
    for step in work.live("Gelu"):
        # The standard's operator, since opset 20, runs by the same code.
        step.op = f"{MS}FastGelu" if step.attributes.get("approximate") == "tanh" else f"{MS}Gelu"
    layer_norm(work)
    simplified_layer_norm(work)
    matmul_add(work)
    _join_reshapes(work)
    _split(work, "Slice")
    move_transposes(work)
    _join_reshapes(work)
    _split(work, "Gather", "Slice")
    transposed_products(work)
    gemm_activation(work)
    _conv_activation(work)
    _bias_gelu(work)
    skip_layer_norm(work)
    _quick_gelu(work)
    scaled_products(work)
    transposed_products(work)
    if block > 1:
        block_layout(work, block)
    _conv_add_activation(work)
    for step in work.live("Conv", f"{MS}FusedConv"):
        step.attributes["unfolded"] = 1
    for step in work.live(*VIEWS):
        if step.out in work.results:
            # What a network returns has memory of its own.
            step.attributes = {**step.attributes, "copies": 1}
    return work


def _mark_quantized(work: Rewriter) -> None:
    """QDQSelectorActionTransformer: what reads integers made floats again computes with the integers."""
    for step in work.live("Conv", "ConvTranspose", "Gemm", "MatMul"):
        before = work.producers.get(step.inputs[0])
        if before is not None and before.op == "DequantizeLinear":
            step.attributes = {**step.attributes, "quantized": 1}


def _decompose(work: Rewriter) -> None:
    """HardSwish has no kernel of its own: it runs as x * HardSigmoid(x), as the ONNX standard defines it."""
    for step in work.live("HardSwish"):
        gate = work.declare(f"{step.out}:gate", step.inputs[0], work.shape(step.inputs[0]))
        work.insert("HardSigmoid", step.inputs[0], gate, step, after=False)
        work.rewire(step, [step.inputs[0], gate])
        step.op, step.attributes = "Mul", {}


def _fold_into_convolutions(work: Rewriter) -> None:
    """ConvBNFusion, ConvMulFusion, ConvAddFusion: what follows a convolution, per channel, goes into its weights.

    Of a transposed one, the batch norm alone.
    """
    for step in work.live("Conv", "ConvTranspose"):
        if not _is_static(work, step.inputs[1:]):
            continue
        while (after := work.only_reader(step.out)) is not None and _is_per_channel(work, step, after):
            work.absorb(step, after)
            if len(step.inputs) < 3 or not step.inputs[2]:
                filters = work.shape(step.out)[1:2]
                bias = work.declare(f"{step.out}:bias", step.inputs[1], filters, static=True)
                work.rewire(step, [*step.inputs[:2], bias])


def _is_per_channel(work: Rewriter, conv: Step, after: Step) -> bool:
    if after.op == "BatchNormalization":
        return after.inputs[0] == conv.out and len([name for name in after.outputs if name]) == 1
    if conv.op != "Conv" or after.op not in ("Mul", "Add") or len(after.inputs) != 2:
        return False
    other = after.inputs[1] if after.inputs[0] == conv.out else after.inputs[0]
    if other not in work.static:
        return False
    shape, rank = work.shape(other), len(work.shape(conv.out))
    if after.op == "Mul" and shape in ((), (1,)):
        return True
    channels = work.shape(conv.out)[1]
    return shape in ((channels, *(1,) * (rank - 2)), (1, channels, *(1,) * (rank - 2)))


def _drop_noops(work: Rewriter) -> None:
    """EliminateSlice, NoopElimination, ExpandElimination, and a Transpose or Reshape that changes nothing."""
    for step in work.live():
        if step.out in work.results:
            continue
        if step.op in ("Expand", "Slice") and _same_shape(work, step) and _takes_all(work, step):
            work.bypass(step)
        elif step.op == "Transpose":
            rank = len(work.shape(step.inputs[0]))
            if step.attributes.get("perm") == tuple(range(rank)):
                work.bypass(step)
        elif step.op in ("Add", "Sub", "Mul", "Div") and len(step.inputs) == 2:
            neutral = 0.0 if step.op in ("Add", "Sub") else 1.0
            for position in (0, 1) if step.op in ("Add", "Mul") else (1,):
                kept = step.inputs[1 - position]
                if work.scalar(step.inputs[position]) == neutral and work.shape(kept) == work.shape(step.out):
                    work.bypass(step, kept)
                    break


def _same_shape(work: Rewriter, step: Step) -> bool:
    return step.inputs[0] not in work.static and work.shape(step.inputs[0]) == work.shape(step.out) != ()


def _takes_all(work: Rewriter, step: Step) -> bool:
    """Tell whether a step of the same shape before and after is seen to change nothing.

    A Slice that ends at the largest number there is; where it names the dim's size, it stays and copies.
    """
    if step.op != "Slice":
        return True
    ends = work.graph.constants.get(step.inputs[2], ()) if len(step.inputs) > 2 else step.ints("ends", ())
    return all(end >= _ENDLESS for end in ends)


def _fuse_pads(work: Rewriter) -> None:
    """PadFusion: a Pad of noughts around an image is done by the convolution or the pool that follows it.

    By an average pool if it counts padding.
    """
    for step in work.live("Pad"):
        after = work.only_reader(step.out)
        if after is None or after.op not in ("Conv", "MaxPool", "AveragePool") or after.inputs[0] != step.out:
            continue
        pads, rank = _pads(work, step), len(work.shape(step.inputs[0]))
        # A value that is left out by an empty name is no constant to onnxruntime.
        value = work.scalar(step.inputs[2]) if len(step.inputs) > 2 else step.attributes.get("value", 0.0)
        explicit = after.attributes.get("auto_pad", "NOTSET") == "NOTSET"
        plain = step.attributes.get("mode", "constant") == "constant" and value == 0.0 and len(step.inputs) <= 3
        plain = plain and (after.op != "AveragePool" or after.integer("count_include_pad", 0) == 1)
        if not (explicit and plain and len(pads) == 2 * rank) or min(pads) < 0:
            continue
        if any((*pads[:2], *pads[rank : rank + 2])):
            continue
        around = [int(pad) for pad in (*pads[2:rank], *pads[rank + 2 :])]
        own = after.ints("pads", (0,) * len(around))
        after.attributes = {**after.attributes, "pads": tuple(map(sum, zip(own, around, strict=True)))}
        after.sources += step.sources
        work.rewire(after, [step.inputs[0], *after.inputs[1:]])
        work.remove(step)


def _pads(work: Rewriter, step: Step) -> tuple[float, ...]:
    """Give what a Pad adds before and behind each dim, () where nothing tells."""
    return tuple(work.graph.constants.get(step.inputs[1], ())) if len(step.inputs) > 1 else step.ints("pads", ())


def _merge_twins(work: Rewriter) -> None:
    """CommonSubexpressionElimination: of two that do the same to the same, one is enough."""
    first: dict[tuple[object, ...], Step] = {}
    for step in work.live():
        if len(step.outputs) != 1:
            continue
        read = tuple(work.graph.constants.get(name) or name for name in step.inputs)
        twin = first.setdefault((step.op, read, tuple(sorted(step.attributes.items()))), step)
        if twin is not step and step.out not in work.results:
            twin.sources += step.sources
            work.bypass(step, twin.out)


def _join_reshapes(work: Rewriter) -> None:
    """ReshapeFusion: of two that follow each other one is enough, and none where the shape is as it was.

    Not where a nought in the shape means nought, as torch's newer exporter always has it.
    """
    for step in work.live("Reshape", "Squeeze", "Unsqueeze"):
        before = work.producers.get(step.inputs[0])
        if before is None or before.op != "Reshape" or work.only_reader(before.out) is not step:
            continue
        same = work.shape(before.inputs[0]) == work.shape(step.out) != ()
        if step.integer("allowzero", 0) and not same:
            continue
        step.op = "Reshape"
        step.sources += before.sources
        work.rewire(step, [before.inputs[0], *step.inputs[1:]])
        work.remove(before)
        if same and step.out not in work.results:
            work.bypass(step)


def _split(work: Rewriter, *ops: str) -> None:
    """GatherSliceToSplitFusion: positions and slices that together read a whole axis are one Split.

    Others may read it as well (rotary embeddings), but it is no output of another Split. Transposes meet slices as a
    Split already, positions one by one (as told of cait_xxs24 and of torch.export's files).
    """
    for name in list(work.readers):
        readers = [step for step in work.uses(name) if step.op in ("Gather", "Slice") and step.inputs[0] == name]
        before, shape = work.producers.get(name), work.shape(name)
        if len(readers) < 2 or not shape or name in work.static or (before is not None and len(before.outputs) > 1):
            continue
        if all(step.op in ops for step in readers):
            _split_along(work, name, readers)


def _split_along(work: Rewriter, name: str, readers: list[Step]) -> None:
    """Put a Split in the place of steps that cut a value, where nothing is left over and nothing read twice."""
    shape = work.shape(name)
    cuts = sorted(((cut, step) for step in readers if (cut := _cut(work, step))), key=lambda one: one[0][:2])
    axis, end = (cuts[0][0][0] if cuts else 0), 0
    for (own, start, size), _ in cuts:
        if own != axis or start != end:
            return
        end += size
    if len(cuts) < len(readers) or end != shape[axis]:
        return
    gone = [step for _, step in cuts]
    results = [step.out for step in gone]
    squeezed = [step.op == "Gather" and work.shape(step.inputs[1]) == () for step in gone]
    kept = (*shape[:axis], 1, *shape[axis + 1 :])
    parts = [
        work.declare(f"{out}:part", name, kept) if alone else out for out, alone in zip(results, squeezed, strict=True)
    ]
    made = work.replace(gone[0], "Split", [name], parts, *gone[1:])
    made.attributes = {"axis": axis}
    for part, result in zip(parts, results, strict=True):
        if part != result:
            work.insert("Squeeze", part, result, made, after=True)


def _cut(work: Rewriter, step: Step) -> tuple[int, int, int] | None:
    """Return the axis that a Gather of one position or a Slice cuts, where it begins, and how much it takes."""
    shape = work.shape(step.inputs[0])
    if step.op == "Gather":
        position, axis = work.scalar(step.inputs[1]), step.integer("axis", 0) % len(shape)
        return None if position is None else (axis, int(position) % max(1, shape[axis]), 1)
    cut = [dim for dim, size in enumerate(work.shape(step.out)) if size != shape[dim]]
    steps = work.graph.constants.get(step.inputs[4], ()) if len(step.inputs) > 4 else (1,)
    starts = work.graph.constants.get(step.inputs[1], ()) if len(step.inputs) > 1 else step.ints("starts", ())
    # What is computed from a shape is no constant yet when this is asked (told of efficientvit_b1).
    computed = [node.op for name in step.inputs[1:3] if (node := work.graph.producer(name)) is not None]
    if len(cut) != 1 or len(starts) != 1 or set(steps) != {1} or set(computed) - {"Constant"}:
        return None
    start = max(int(starts[0]) + (shape[cut[0]] if starts[0] < 0 else 0), 0)
    return cut[0], start, work.shape(step.out)[cut[0]]


def _conv_activation(work: Rewriter) -> None:
    """ConvActivationFusion."""
    for step in work.live("Conv"):
        after = work.only_reader(step.out)
        if after is not None and after.op in _CONV_ACTIVATIONS and after.inputs[0] == step.out:
            work.absorb(step, after)
            step.op = f"{MS}FusedConv"
            step.attributes["activation"] = after.op


def _bias_gelu(work: Rewriter) -> None:
    """BiasGeluFusion: a static row is added within the Gelu."""
    for step in work.live(f"{MS}Gelu"):
        before = work.producers.get(step.inputs[0])
        if before is None or before.op != "Add" or work.only_reader(before.out) is not step:
            continue
        bias = next((name for name in before.inputs if name in work.static), "")
        if bias and len(work.shape(bias)) == 1:
            source = next(name for name in before.inputs if name != bias)
            work.replace(before, f"{MS}BiasGelu", [source, bias], [step.out], step)


def _quick_gelu(work: Rewriter) -> None:
    """QuickGeluFusion: x * Sigmoid(x), with a factor before the Sigmoid or without."""
    for step in work.live("Sigmoid"):
        after = work.only_reader(step.out)
        if after is None or after.op != "Mul":
            continue
        source, before = step.inputs[0], work.producers.get(step.inputs[0])
        if source in after.inputs:
            work.replace(step, f"{MS}QuickGelu", [source], [after.out], after)
        elif before is not None and before.op == "Mul" and work.only_reader(before.out) is step:
            scaled = next((n for n in before.inputs if n not in work.static and n in after.inputs), "")
            if scaled:
                work.replace(before, f"{MS}QuickGelu", [scaled], [after.out], step, after)


def _conv_add_activation(work: Rewriter) -> None:
    """ConvAddActivationFusion: outside the blocked layout, a sum of equal shapes and what follows it."""
    for step in work.live("Conv"):
        if len(step.inputs) < 3 or len(work.shape(step.out)) != 4:
            continue
        after = work.only_reader(step.out)
        if after is None or after.op != "Add" or work.shape(after.inputs[0]) != work.shape(after.inputs[1]):
            continue
        other = next((name for name in after.inputs if name != step.out), step.out)
        work.absorb(step, after)
        work.rewire(step, [*step.inputs[:3], other])
        step.op = f"{MS}FusedConv"
        last = work.only_reader(step.out)
        if last is not None and last.op in _CONV_ACTIVATIONS:
            work.absorb(step, last)
            step.attributes["activation"] = last.op


def _is_static(work: Rewriter, names: list[str]) -> bool:
    return all(name in work.static for name in names if name)
