"""How onnxruntime fuses products of matrices with what stands around them; each rule names its transformer."""

from math import prod

from latmod.kernels.rewriting import Rewriter, Step
from latmod.kernels.transposes import permutation

MS = "com.microsoft::"
_GEMM_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "Elu", "Selu", "Softplus"})


def matmul_add(work: Rewriter) -> None:
    """MatMulAddFusion: a product with one matrix plus a row is a Gemm; reshapes flatten rows of more dims."""
    for step in work.live("MatMul"):
        if len(work.shape(step.inputs[1])) != 2:
            continue
        after, left = work.only_reader(step.out), work.shape(step.inputs[0])
        if after is None or after.op != "Add" or not left:
            continue
        bias = next((name for name in after.inputs if name != step.out), "")
        columns = work.shape(step.inputs[1])[1]
        flat = len(left) == 2
        if work.shape(bias) != (columns,) and not (flat and work.shape(bias) in ((1, columns), (left[0], columns))):
            continue
        work.absorb(step, after)
        step.op = "Gemm"
        source, result = step.inputs[0], step.out
        if not flat:
            rows = prod(left[:-1])
            matrix = work.declare(f"{source}:matrix:{result}", source, (rows, left[-1]))
            product = work.declare(f"{result}:matrix", result, (rows, columns))
            work.insert("Reshape", source, matrix, step, after=False)
            work.insert("Reshape", product, result, step, after=True)
            source = matrix
            step.outputs = [product]
            work.producers[product] = step
        work.rewire(step, [source, step.inputs[1], bias])


def transposed_products(work: Rewriter) -> None:
    """MatmulTransposeFusion: a Transpose goes into the product that alone reads it, where it swaps the last two dims.

    So does one that moves the first dim behind the batch, with or without such a swap.
    """
    for step in work.live("MatMul", f"{MS}FusedMatMul"):
        for position, flag in ((0, "transA"), (1, "transB")):
            before = work.producers.get(step.inputs[position])
            if before is None or before.op != "Transpose":
                continue
            perm = permutation(work, before)
            rank = len(perm)
            middle = tuple(range(1, rank - 1))
            swapped = perm in ((*range(rank - 2), rank - 1, rank - 2), (*middle, rank - 1, 0))
            if rank < 2 or not (swapped or (rank > 2 and perm == (*middle, 0, rank - 1))):
                continue
            inputs = list(step.inputs)
            inputs[position] = before.inputs[0]
            work.rewire(step, inputs)
            step.op = f"{MS}FusedMatMul"
            step.attributes[flag] = int(swapped)
            if not work.uses(before.out) and before.out not in work.results:
                step.sources += before.sources
                work.remove(before)


def gemm_activation(work: Rewriter) -> None:
    """GemmActivationFusion."""
    for step in work.live("Gemm"):
        after = work.only_reader(step.out)
        if after is not None and after.op in _GEMM_ACTIVATIONS:
            work.absorb(step, after)
            step.op = f"{MS}FusedGemm"
            step.attributes["activation"] = after.op


def scaled_products(work: Rewriter) -> None:
    """MatMulScaleFusion: a factor before or after a product of matrices goes into it."""
    for step in work.live("MatMul", f"{MS}FusedMatMul"):
        changed = False
        for position in (0, 1):
            before = work.producers.get(step.inputs[position])
            if before is None or before.op not in ("Mul", "Div") or work.only_reader(before.out) is not step:
                continue
            source = _scaled_input(work, before)
            if source:
                inputs = list(step.inputs)
                inputs[position] = source
                step.sources += before.sources
                work.remove(before)
                work.rewire(step, inputs)
                changed = True
        after = work.only_reader(step.out)
        if after is not None and after.op in ("Mul", "Div") and _scaled_input(work, after) == step.out:
            work.absorb(step, after)
            changed = True
        if changed:
            step.op = f"{MS}FusedMatMul"


def _scaled_input(work: Rewriter, step: Step) -> str:
    """Give the input that a step multiplies or divides by a constant of one element, '' where it does not."""
    for position, name in enumerate(step.inputs):
        if name in work.static and len(work.graph.constants.get(name, ())) == 1 and (step.op == "Mul" or position == 1):
            return step.inputs[1 - position]
    return ""
