"""Find layer norms that exporters spell as several operators, and what onnxruntime makes within them."""

from latmod.kernels.products import MS
from latmod.kernels.rewriting import Rewriter


def layer_norm(work: Rewriter) -> None:
    """LayerNormFusion: mean, subtract, square, mean, add epsilon, root, divide, and scale and shift if they follow."""
    for root in work.live("Sqrt"):
        plus = work.producers.get(root.inputs[0])
        variance = next((p for name in plus.inputs if (p := work.producers.get(name))), None) if plus else None
        if plus is None or variance is None or plus.op != "Add" or variance.op != "ReduceMean":
            continue
        square, divide = work.producers.get(variance.inputs[0]), work.only_reader(root.out)
        if square is None or divide is None or square.op not in ("Pow", "Mul") or divide.op != "Div":
            continue
        centred = work.producers.get(square.inputs[0])
        if centred is None or centred.op != "Sub" or centred.out not in divide.inputs:
            continue
        mean = work.producers.get(centred.inputs[1])
        if mean is None or mean.op != "ReduceMean":
            continue
        parts = [centred, square, variance, plus, root, divide]
        inputs = [centred.inputs[0]]
        for op in ("Mul", "Add"):
            following = work.only_reader(parts[-1].out)
            static = [name for name in following.inputs if name in work.static] if following else []
            if following is not None and following.op == op and static:
                parts.append(following)
                inputs.append(static[0])
        work.replace(mean, "LayerNormalization", inputs, [parts[-1].out], *parts)


def simplified_layer_norm(work: Rewriter) -> None:
    """SimplifiedLayerNormFusion: square, mean, add epsilon, root, divide by it, and scale (RMSNorm)."""
    for root in work.live("Sqrt"):
        plus = work.producers.get(root.inputs[0])
        mean = next((p for name in plus.inputs if (p := work.producers.get(name))), None) if plus else None
        square = work.producers.get(mean.inputs[0]) if mean is not None else None
        divide = work.only_reader(root.out)
        if plus is None or mean is None or square is None or divide is None:
            continue
        if (plus.op, mean.op, square.op, divide.op) != ("Add", "ReduceMean", "Pow", "Div"):
            continue
        source, parts = square.inputs[0], [mean, plus, root, divide]
        if divide.inputs[0] != source:
            # One over the root, and a product with it.
            product = work.only_reader(divide.out)
            if product is None or product.op != "Mul" or source not in product.inputs:
                continue
            parts.append(product)
        scale = work.only_reader(parts[-1].out)
        fixed = [name for name in scale.inputs if name in work.static] if scale is not None else []
        if scale is not None and scale.op == "Mul" and fixed:
            parts.append(scale)
            work.replace(square, "SimplifiedLayerNormalization", [source, fixed[0]], [scale.out], *parts)


def skip_layer_norm(work: Rewriter) -> None:
    """SkipLayerNormFusion: the sum of two equal shapes that only a layer norm reads is made within it.

    So is the sum with a static row before it, on either side.
    """
    for step in work.live("LayerNormalization"):
        total = work.producers.get(step.inputs[0])
        if total is None or total.op != "Add" or work.only_reader(total.out) is not step:
            continue
        shapes = [work.shape(name) for name in total.inputs]
        if shapes[0] != shapes[1] or len(shapes[0]) != 3:
            continue
        inputs, gone = list(total.inputs), [total]
        for position in (0, 1):
            row = work.producers.get(inputs[position])
            if row is None or row.op != "Add" or work.only_reader(row.out) is not total:
                continue
            if row.inputs[1] in work.static and len(work.shape(row.inputs[1])) == 1:
                inputs = [*inputs[:position], row.inputs[0], *inputs[position + 1 :], row.inputs[1]]
                gone.append(row)
                break
        norm = [*inputs[:2], *step.inputs[1:], *inputs[2:]]
        work.replace(gone[-1], f"{MS}SkipLayerNormalization", norm, [step.out], *gone[:-1], step)
