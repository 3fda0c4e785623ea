"""Fit the additive model to whole latencies alone, for engines that tell nothing of their kernels.

In turns (expectation maximisation): each kernel is given its part of its network's latency, as the prices so far have
it, and prices are fitted to these parts. What starts the turns are the prices of an engine with the same kernels that
did tell, brought to the whole latencies by one factor per kind; or rough ones of any engine.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from latmod.additive import PRIOR, Additive
from latmod.factors import Adapted, fit_factors
from latmod.kernel_fitting import (
    Prices,
    calibrated,
    fit_additive,
    fit_rated,
    priced,
    training_kernels,
    with_residual,
)
from latmod.labels import LabelledModel

_TURNS = 12
"""Turns of the fit. Measured on families left out, kernels-engines-zen3-earlier data: after 2, 5 and 12 turns MAPE was
18.9, 16.8 and 14.9 % in OpenVINO, 24.1, 21.9 and 20.0 % in tract, 27.3, 27.8 and 27.2 % in MNN.

Rates alone are fitted so; the residual then learns from whole latencies (`latmod.training`). One that is fitted to the
parts instead, as trees were, learns the noise of single networks, which all their kernels share (MAPE 18 to 42 % for
16 to 28 % of rates alone).
"""


def fit_sum(models: Sequence[LabelledModel], seed: int = 0, near: Additive | None = None) -> Additive:
    """Fit the additive model to what the engine told of its kernels; to whole latencies where it told nothing.

    `near` are prices that were fitted to an engine of the same kernel rules, to start from. Models whose latency is nan
    are borrowed: what is told of their kernels is fitted to in either case.
    """
    if any(np.isfinite(model.told_ns) for model in models):
        return fit_additive(models, seed)
    own = [model for model in models if np.isfinite(model.latency_ns)]
    lent = [model for model in models if not np.isfinite(model.latency_ns)]
    start: Prices = calibrated(PRIOR, own) if near is None else scaled(near, own)
    fitted = fit_rated([*apportioned(own, start), *lent])
    for _ in range(_TURNS - 1):
        fitted = fit_rated([*apportioned(own, fitted), *lent])
    return with_residual(fitted, models, training_kernels(models), seed)


def without_kernels(models: Sequence[LabelledModel]) -> list[LabelledModel]:
    """Return the models as if the engine had told nothing of its kernels."""
    nothing = float("nan")
    return [
        msgspec.structs.replace(
            model, kernel_ns=(nothing,) * len(model.kernels), told_ns=nothing, unmatched_ns=nothing, pieces=()
        )
        for model in models
    ]


def apportioned(models: Sequence[LabelledModel], prices: Prices) -> list[LabelledModel]:
    """Return the models with each kernel's part of the whole latency, in proportion to prices, as if it were told."""
    found = []
    for model, parts in zip(models, priced(prices, models), strict=True):
        parts = parts * (model.latency_ns / parts.sum())
        found.append(
            msgspec.structs.replace(
                model, kernel_ns=tuple(parts.tolist()), told_ns=model.latency_ns, unmatched_ns=0.0, pieces=()
            )
        )
    return found


def scaled(other: Additive, models: Sequence[LabelledModel]) -> Adapted:
    """Bring the prices of another engine to whole latencies."""
    kernels, latencies = [model.kernels for model in models], [model.latency_ns for model in models]
    return Adapted(prices=other, factors=fit_factors(kernels, priced(other, models), other.run_ns, latencies))
