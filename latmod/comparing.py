"""Say in which runtime a model is fastest, how sure that is, and which models meet a budget."""

from collections.abc import Sequence
from math import erf, exp, log, pi, sqrt

import msgspec
import numpy as np

from latmod.predictor import Prediction
from latmod.scores import NORMAL_90

REFERENCE = "onnxruntime"
"""The runtime that speed-ups are told against."""

_STEPS = 2001


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one runtime's part of a comparison, flat.

    `speedup` is the reference runtime's latency over this one's; `fastest` the probability that no other runtime of the
    comparison is faster.
    """

    model: str
    runtime: str
    latency_ms: float
    low_ms: float
    high_ms: float
    speedup: float | None
    fastest: float
    in_domain: bool
    load_ms: float | None = None
    measured_ms: float | None = None
    measured_load_ms: float | None = None


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """Hold whether one model meets a budget in one runtime; `confidence` is the probability that it does."""

    model: str
    runtime: str
    latency_ms: float
    high_ms: float
    confidence: float
    meets: bool
    in_domain: bool


def compare(predictions: Sequence[Prediction]) -> list[Contender]:
    """Return the predictions of one model as contenders, the fastest first.

    Errors count as log-normal and independent from one runtime to the next, as wide as the intervals say.
    """
    chances = fastest_chances(predictions)
    reference = next((one.latency_ms for one in predictions if one.runtime == REFERENCE), None)
    found = [
        Contender(
            model=one.model,
            runtime=one.runtime,
            latency_ms=one.latency_ms,
            low_ms=one.low_ms,
            high_ms=one.high_ms,
            speedup=None if reference is None else reference / one.latency_ms,
            fastest=chance,
            in_domain=one.in_domain,
            load_ms=one.load_ms,
        )
        for one, chance in zip(predictions, chances, strict=True)
    ]
    return sorted(found, key=lambda one: (one.latency_ms, one.runtime))


def fastest_chances(predictions: Sequence[Prediction]) -> list[float]:
    """Return for each prediction the probability that its true latency is the smallest.

    By quadrature over the logarithm of the latency: the density of one times the others' chances to lie above.
    """
    centres = [log(one.latency_ms) for one in predictions]
    widths = [max(deviation(one), 1e-4) for one in predictions]
    low = min(centre - 5.0 * width for centre, width in zip(centres, widths, strict=True))
    high = min(centre + 5.0 * width for centre, width in zip(centres, widths, strict=True))
    grid = np.linspace(low, high, _STEPS)
    above = [
        np.array([1.0 - _normal((x - centre) / width) for x in grid])
        for centre, width in zip(centres, widths, strict=True)
    ]
    chances = []
    for position, (centre, width) in enumerate(zip(centres, widths, strict=True)):
        density = np.exp(-0.5 * ((grid - centre) / width) ** 2) / (width * sqrt(2.0 * pi))
        others = np.prod([row for other, row in enumerate(above) if other != position] or [np.ones(_STEPS)], axis=0)
        chances.append(float(np.trapezoid(density * others, grid)))
    total = sum(chances) or 1.0
    return [chance / total for chance in chances]


def meets_budget(prediction: Prediction, budget_ms: float, confidence: float = 0.9) -> Fit:
    """Return how sure it is that a model takes at most `budget_ms`; it meets the budget where that is `confidence`."""
    chance = _normal((log(budget_ms) - log(prediction.latency_ms)) / max(deviation(prediction), 1e-4))
    return Fit(
        model=prediction.model,
        runtime=prediction.runtime,
        latency_ms=prediction.latency_ms,
        high_ms=prediction.high_ms,
        confidence=chance,
        meets=chance >= confidence,
        in_domain=prediction.in_domain,
    )


def deviation(prediction: Prediction) -> float:
    """Return the standard deviation of the logarithm of the true latency that a 90 % interval stands for."""
    return log(prediction.high_ms / prediction.latency_ms) / NORMAL_90


def regret(predicted_ms: Sequence[float], measured_ms: Sequence[float]) -> float:
    """Return what the choice by prediction costs: the chosen one's measured latency over the best, minus one."""
    chosen = measured_ms[int(np.argmin(predicted_ms))]
    return chosen / min(measured_ms) - 1.0


def _normal(x: float) -> float:
    """Return the normal distribution's cumulative probability."""
    if x < -40.0:
        return exp(-0.5 * x * x)
    return 0.5 * (1.0 + erf(x / sqrt(2.0)))
