"""Tell how far latencies may lie from what sums over kernels predict: split conformal, on networks that were held out.

An error is measured against a scale that follows from the network: it grows with the share of time in kernels outside
what was measured, and with how far networks that were trained alike differ about its kernels (Lakshminarayanan et al.
2017, arXiv:1612.01474), and falls with latency. Of small networks a call or a neighbour is a larger part, and there are
fewer kernels for errors to cancel.
"""

from collections.abc import Sequence
from math import log

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.coverage import GROUPS, most_underpriced, share_group
from latmod.scores import NORMAL_90, conformal_quantile

Floats = NDArray[np.float64]

_FEW = 8
"""Networks of a group below which it says nothing about errors: one family that nothing is like."""
_RIDGE = 1e-3
"""Draws scales of groups together, in rows of data per row."""
_LEAST_ERROR = 1e-4
_STEEPEST = 0.5
"""Errors of independent kernels fall with the root of their number, no faster."""
_IN_PROPORTION = 1.0
"""Errors grow with doubt no faster than it does."""
_LEAST_DOUBT = 1e-3


class Widths(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the quantile of |log(measured / predicted)| for each group, of a network in the middle of a range.

    Groups are those of `latmod.coverage`, the last ones wanting where a predictor has fewer. The quantile of a network
    of another latency is larger or smaller by a power of it, within the range, in ns; so it is by doubt. To this comes,
    as if both were normal, what measurements of one network `scatter` by, however large it is.
    """

    quantiles: tuple[float, ...]
    slope: float = 0.0
    range_ns: tuple[float, float] = (1.0, 1.0)
    doubt_slope: float = 0.0
    doubt_range: tuple[float, float] = (1.0, 1.0)
    scatter: float = 0.0

    def of(self, latency_ns: float, unseen_share: float, never_share: float, doubt: float) -> float:
        """Return the quantile for a network; the shares are of its time in kernels unlike what was measured.

        Networks held out had few kinds of which nothing was measured. Of one that consists of them, such as a network
        of integers, errors there tell nothing: it is as doubtful as the price of such a kind.
        """
        group = min(share_group(unseen_share, never_share), len(self.quantiles) - 1)
        size = _within(latency_ns, self.range_ns) ** self.slope
        doubtful = _within(doubt, self.doubt_range) ** self.doubt_slope
        told = np.hypot(self.quantiles[group] * size * doubtful, self.scatter)
        return max(float(told), log(most_underpriced(never_share)))


def _within(value: float, bounds: tuple[float, float]) -> float:
    """Return a value, bounded, over the middle of the bounds."""
    low, high = bounds
    return min(max(value, low), high) / float((low * high) ** 0.5)


def doubt_of(kernel_ns: Floats, doubts: Floats) -> float:
    """Return how far networks differ about a kernel of a network, on average by time."""
    return float((kernel_ns * doubts).sum() / max(float(kernel_ns.sum()), 1.0))


def fit_widths(
    log_errors: Floats, latency_ns: Floats, groups: Sequence[int], doubts: Floats, *, coverage: float, noise: float
) -> Widths:
    """Fit widths to log errors [N] on networks held out, of predicted latencies [N], each of a group; never shrinking.

    The scale is that under which errors are likeliest (as those of a Laplace distribution), the width its conformal
    quantile. `noise` is the standard deviation that rounds of one network scatter by: the next time it is measured, the
    machine will be in another state than any of those held out had met (without it intervals covered 68 % of the
    published networks in torch, 77 % in onnxruntime, on a machine that others share).
    """
    size, size_range = _centred(np.log(latency_ns))
    doubt, doubt_range = _centred(np.log(np.maximum(doubts, _LEAST_DOUBT)))
    counts = np.bincount(groups, minlength=GROUPS)
    beyond = [group for group in range(1, GROUPS) if counts[group] >= _FEW]
    steps_up = (np.asarray(groups) >= group for group in beyond)
    columns = np.stack([np.ones(len(size)), size, doubt, *steps_up], axis=1)
    telling = np.isin(groups, [0, *beyond])
    columns, errors = columns[telling], np.abs(log_errors)[telling]
    weights = _likeliest(columns, errors + _LEAST_ERROR)
    level, slope, doubt_slope, *steps = weights
    quantile = conformal_quantile(errors / np.exp(columns @ np.array(weights)), coverage)
    step_to = dict(zip(beyond, steps, strict=True))
    found = [quantile * float(np.exp(level))]
    for group in range(1, GROUPS):
        # Nothing is known of a group that was hardly seen: twice as wide as the one before.
        wider = found[-1] * float(np.exp(step_to[group])) if group in step_to else max(2.0 * found[-1], 0.1)
        found.append(wider)
    return Widths(
        quantiles=tuple(found),
        slope=slope,
        range_ns=size_range,
        doubt_slope=doubt_slope,
        doubt_range=doubt_range,
        scatter=NORMAL_90 * noise,
    )


def _centred(logs: Floats) -> tuple[Floats, tuple[float, float]]:
    """Return logarithms, bounded by most of them, less the middle of the bounds; and the bounds of what they are of."""
    low, high = np.quantile(logs, [0.05, 0.95])
    return np.clip(logs, low, high) - (low + high) / 2.0, (float(np.exp(low)), float(np.exp(high)))


def _likeliest(columns: Floats, errors: Floats) -> tuple[float, ...]:
    """Return the logarithm of the scale by columns: a level, two slopes, steps that do not fall.

    It does not rise with size, and does not fall with doubt.
    """
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    def loss(weights: Floats) -> tuple[float, Floats]:
        scale = columns @ weights
        relative = errors * np.exp(-scale)
        pull = np.append(0.0, weights[1:])
        slopes = columns.T @ (1.0 - relative) / len(errors) + 2.0 * _RIDGE * pull
        return float(np.mean(scale + relative) + _RIDGE * pull @ pull), slopes

    count = columns.shape[1]
    start = np.append(np.log(errors.mean()), np.zeros(count - 1))
    bounds = [(None, None), (-_STEEPEST, 0.0), (0.0, _IN_PROPORTION), *[(0.0, None)] * (count - 3)]
    return tuple(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x.tolist())
