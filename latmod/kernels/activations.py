"""Find activations that exporters spell as several operators."""

from collections.abc import Collection
from math import isclose, pi, sqrt

from latmod.kernels.rewriting import Rewriter, Step

_CUBIC = 0.044715
"""Of the approximation by Hendrycks and Gimpel 2016 (arXiv:1606.08415)."""


HALVED = frozenset({"input", "sum", "product"})
"""What exporters multiply by 0.5 in a GELU: x, 1 + Erf(x / sqrt(2)), as torch's newer one does, or x times that."""


def restore_gelu(work: Rewriter, op: str, halved: Collection[str] = HALVED) -> None:
    """Put one operator in the place of x / sqrt(2), Erf, + 1, * x, and * 0.5, where that is done to one of `halved`."""
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
        if len(last) == 3 and ("sum" if other_than_scalar(work, last[1], 0.5) == plus.out else "product") in halved:
            work.replace(scaled, op, [source], [last[-1].out], erf, *last)
        elif len(last) == 2 and "input" in halved and (half := _half(work, last[1], source)) is not None:
            work.replace(scaled, op, [source], [last[-1].out], erf, *last, half)


def restore_tanh_gelu(work: Rewriter, op: str) -> None:
    """Put one operator in the place of (x * 0.5) * (1 + Tanh((x + x^3 * 0.044715) * sqrt(2 / pi))), with a Pow."""
    for tanh in work.live("Tanh"):
        scaled, plus = work.producers.get(tanh.inputs[0]), work.only_reader(tanh.out)
        total = _factor_of(work, scaled, sqrt(2.0 / pi))
        product = work.only_reader(plus.out) if plus is not None and plus.op == "Add" else None
        if scaled is None or plus is None or total is None or product is None or product.op != "Mul":
            continue
        for part in [work.producers.get(name) for name in total.inputs]:
            cube = _factor_of(work, part, _CUBIC)
            source = other_than_scalar(work, cube, 3.0) if cube is not None and cube.op == "Pow" else None
            half = _half(work, product, source) if source in total.inputs else None
            if cube is not None and part is not None and source is not None and half is not None:
                work.replace(cube, op, [source], [product.out], part, total, scaled, tanh, plus, product, half)
                break


def _half(work: Rewriter, product: Step, source: str | None) -> Step | None:
    """Return the step that makes 0.5 * x for a product."""
    parts = [work.producers.get(name) for name in product.inputs]
    halves = [one for one in parts if one is not None and one.op == "Mul"]
    return next((one for one in halves if other_than_scalar(work, one, 0.5) == source), None)


def _factor_of(work: Rewriter, step: Step | None, factor: float) -> Step | None:
    """Return the step whose result another multiplies by a number."""
    if step is None or step.op != "Mul":
        return None
    return work.producers.get(other_than_scalar(work, step, factor) or "")


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
