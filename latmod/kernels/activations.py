"""Find activations that exporters spell as several operators."""

from math import isclose, sqrt

from latmod.kernels.rewriting import Rewriter, Step


def restore_gelu(work: Rewriter, op: str) -> None:
    """Put one operator in the place of x / sqrt(2), Erf, + 1, * x, * 0.5, in any order of the last two."""
    for erf in work.live("Erf"):
        scaled, plus = work.producers.get(erf.inputs[0]), work.only_reader(erf.out)
        if scaled is None or plus is None or plus.op != "Add" or scaled.op not in ("Div", "Mul"):
            continue
        source = other_than_scalar(work, scaled, sqrt(2.0) if scaled.op == "Div" else sqrt(0.5))
        last = [plus]
        for _ in range(2):
            following = work.only_reader(last[-1].out)
            if following is not None and following.op == "Mul":
                last.append(following)
        if source is None or work.only_reader(scaled.out) is not erf:
            continue
        if len(last) == 3:
            work.replace(scaled, op, [source], [last[-1].out], erf, *last)
        elif len(last) == 2:
            # 0.5 * x stands on its own before the product.
            half = next((p for name in last[1].inputs if (p := work.producers.get(name)) not in (None, plus)), None)
            if half is not None and half.op == "Mul" and other_than_scalar(work, half, 0.5) == source:
                work.replace(scaled, op, [source], [last[-1].out], erf, *last, half)


def other_than_scalar(work: Rewriter, step: Step, wanted: float) -> str | None:
    """Give the input that a step combines with a certain number."""
    for position, name in enumerate(step.inputs):
        value = work.scalar(name)
        if value is not None and isclose(value, wanted, rel_tol=1e-3):
            return step.inputs[1 - position]
    return None


def restore_silu(work: Rewriter, op: str) -> None:
    """Put one operator in the place of x * Sigmoid(x)."""
    for step in work.live("Sigmoid"):
        after = work.only_reader(step.out)
        if after is not None and after.op == "Mul" and sorted(after.inputs) == sorted([step.inputs[0], step.out]):
            work.replace(step, op, [step.inputs[0]], [after.out], after)
