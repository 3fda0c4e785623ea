"""Judge predictions of latency: every score that latmod prints, always together.

r2 alone flatters, because sizes span three orders of magnitude: a constant offset of 100 % on all small models hardly
moves it.
"""

import math
import statistics
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

NORMAL_90 = 1.6449
"""Half of the 90 % interval of a normal distribution, in standard deviations."""
NORMAL_MEDIAN = 0.6745
"""Median of the absolute value of a standard normal variable."""

Floats = NDArray[np.float64]


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the scores of one set of predictions; shares and relative errors are fractions, not per cent."""

    models: int
    r2: float
    r2_log: float
    mape: float
    median_error: float
    within_5: float
    within_10: float
    spearman: float
    coverage: float
    width: float


def relative_errors(truth: Floats, predicted: Floats) -> Floats:
    """Return |predicted - truth| / truth, shape [N]."""
    return np.abs(predicted - truth) / truth


def r2(truth: Floats, predicted: Floats) -> float:
    """Return the coefficient of determination; nan when the truth does not vary."""
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return 1.0 - float(np.sum((truth - predicted) ** 2)) / spread if spread > 0 else float("nan")


def ranks(values: Floats) -> Floats:
    """Return ranks from 0, ties sharing their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts + 1) / 2.0)[inverse], dtype=np.float64)


def spearman(truth: Floats, predicted: Floats) -> float:
    """Return Spearman's rank correlation; nan when either side does not vary."""
    a, b = ranks(truth), ranks(predicted)
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt(np.sum(a * a) * np.sum(b * b)))
    return float(np.sum(a * b)) / spread if spread > 0 else float("nan")


def score(truth: Floats, predicted: Floats, low: Floats, high: Floats) -> Scores:
    """Score predictions [N] and their intervals against the truth, all in one unit and positive.

    `coverage` is the share of the truth inside [low, high], `width` the mean of (high - low) / predicted.
    """
    errors = relative_errors(truth, predicted)
    return Scores(
        models=len(truth),
        r2=r2(truth, predicted),
        r2_log=r2(np.log(truth), np.log(predicted)),
        mape=float(errors.mean()),
        median_error=float(np.median(errors)),
        within_5=float(np.mean(errors <= 0.05)),
        within_10=float(np.mean(errors <= 0.10)),
        spearman=spearman(truth, predicted),
        coverage=float(np.mean((low <= truth) & (truth <= high))),
        width=float(np.mean((high - low) / predicted)),
    )


def noise_floor(rounds: Sequence[Sequence[float]]) -> float:
    """Return the split-half noise of a set of models: the median of |odd / even - 1| over the models.

    `rounds` has one row per model with one value per round. The halves are the medians of the odd and of the even
    rounds, so each rests on half the data and the label itself, made of all rounds, is somewhat better than this.
    Models with fewer than two rounds say nothing; nan when none is left.
    """
    return median_known([split_half(row) for row in rounds])


def median_known(values: Sequence[float]) -> float:
    """Return the median of those that are numbers, nan for none."""
    known = [value for value in values if not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def split_half(values: Sequence[float]) -> float:
    """Return how much the median of the odd rounds differs from that of the even ones, relative; nan for one round."""
    if len(values) < 2:
        return math.nan
    return abs(statistics.median(values[0::2]) / statistics.median(values[1::2]) - 1.0)


def conformal_quantile(log_errors: Floats, coverage: float) -> float:
    """Return the finite-sample quantile of |log(measured / predicted)| that covers a new model with this probability.

    The ceil((n + 1) * coverage)-th smallest of n residuals (Lei et al., Distribution-free predictive inference for
    regression, JASA 2018, section 2.2); the largest one when n is too small for that. nan when there are no
    residuals.
    """
    n = len(log_errors)
    if n == 0:
        return float("nan")
    rank = min(int(np.ceil((n + 1) * coverage)), n)
    return float(np.sort(np.abs(log_errors))[rank - 1])
