"""Take the machine's drift out of a sweep: state each burst for the nominal state, using its reference loads."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.dataset import KernelMeasurement, Measurement, final_bursts, quiet_levels, undisturbed_minima
from latmod.timing import Reference

PARTS = ("conv_ns", "copy_ns", "dispatch_ns")
_RIDGE = 1e-5
"""Pulls the weights to zero where the machine hardly drifted: log variance of 0.3 % squared."""


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """Hold how strongly one runtime's latency follows each part of the reference load, in logs."""

    runtime: str
    nominal: Reference
    weights: tuple[float, float, float]

    def factor(self, state: Reference) -> float:
        """Return what a latency measured in this state must be multiplied with to hold for the nominal state."""
        return math.exp(-float(np.dot(self.weights, log_state(state, self.nominal))))


class CorrectionGain(msgspec.Struct, frozen=True, kw_only=True):
    """Show what the correction is worth: the spread between rounds (rms), on models it was not fitted on."""

    runtime: str
    weights: tuple[float, float, float]
    raw_rms: float
    corrected_rms: float


def log_state(state: Reference, nominal: Reference) -> NDArray[np.float64]:
    """Return the logarithm of each part over its nominal time, shape [3]."""
    return np.array([math.log(getattr(state, part) / getattr(nominal, part)) for part in PARTS])


def state_of(measurement: Measurement | KernelMeasurement) -> Reference:
    """Return the state around a burst: the geometric mean of the references before and after."""
    before, after = measurement.before, measurement.after
    assert before is not None
    assert after is not None
    return Reference(**{part: max(1, round(math.sqrt(getattr(before, part) * getattr(after, part)))) for part in PARTS})


def fit_correction(runtime: str, measurements: list[Measurement], nominal: Reference) -> Correction:
    """Fit the non-negative weights that explain best how each model's rounds differ from their mean.

    The weights are zero where a correction did not help models that it was not fitted on: on a quiet machine the
    reference load scatters more than the networks drift.
    """
    gain = correction_gain(runtime, measurements, nominal)
    weights = gain.weights if gain.corrected_rms < gain.raw_rms else (0.0, 0.0, 0.0)
    return Correction(runtime=runtime, nominal=nominal, weights=weights)


def correction_gain(runtime: str, measurements: list[Measurement], nominal: Reference) -> CorrectionGain:
    """Measure the correction by two-fold cross-validation over models; both spreads are in logs, within models."""
    groups = _groups(runtime, measurements, nominal)
    halves = (groups[0::2], groups[1::2])
    raw: list[float] = []
    corrected: list[float] = []
    for trained, tested in (halves, halves[::-1]):
        weights = np.array(_fit(trained))
        for states, logs in tested:
            raw.extend(logs - logs.mean())
            left = logs - states @ weights
            corrected.extend(left - left.mean())
    return CorrectionGain(
        runtime=runtime,
        weights=_fit(groups),
        raw_rms=_root_mean_square(raw),
        corrected_rms=_root_mean_square(corrected),
    )


def _root_mean_square(values: list[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if values else 0.0


_Group = tuple[NDArray[np.float64], NDArray[np.float64]]


def _groups(runtime: str, measurements: list[Measurement], nominal: Reference) -> list[_Group]:
    """Return for each model of a runtime its states [rounds, 3] and log minima [rounds]."""
    found = []
    level_ns = quiet_levels(measurements).level(runtime)
    for (_, name), rounds in final_bursts(measurements).items():
        if name == runtime:
            minima, _ = undisturbed_minima(rounds.values(), level_ns)
            if len(minima) >= 2:
                states = np.array([log_state(state_of(rounds[number]), nominal) for number in minima])
                found.append((states, np.log(list(minima.values()))))
    return found


def _fit(groups: list[_Group]) -> tuple[float, float, float]:
    """Return non-negative least squares over within-model deviations, by trying all 8 sets of active parts."""
    if not groups:
        return 0.0, 0.0, 0.0
    x = np.concatenate([states - states.mean(axis=0) for states, _ in groups])
    y = np.concatenate([logs - logs.mean() for _, logs in groups])
    gram = x.T @ x + _RIDGE * len(x) * np.eye(len(PARTS))
    target = x.T @ y
    best, best_value = np.zeros(len(PARTS)), 0.0
    for mask in range(1, 1 << len(PARTS)):
        active = [part for part in range(len(PARTS)) if mask >> part & 1]
        weights = np.zeros(len(PARTS))
        weights[active] = np.linalg.solve(gram[np.ix_(active, active)], target[active])
        value = float(weights @ gram @ weights - 2 * weights @ target)
        if weights.min() >= 0 and value < best_value:
            best, best_value = weights, value
    return float(best[0]), float(best[1]), float(best[2])
