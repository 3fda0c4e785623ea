"""Take the machine's drift out of a sweep: state each burst for the nominal state, using its reference loads."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.dataset import (
    KernelMeasurement,
    Measurement,
    final_bursts,
    quiet_levels,
    quiet_probe_ns,
    undisturbed_minima,
)
from latmod.faults import fault_ns, without_faults
from latmod.sessions import Sessions
from latmod.timing import Reference

PARTS = ("conv_ns", "copy_ns", "dispatch_ns", "probe_ns")
"""What a state is made of: the reference load before and after a burst, and the probe beside its samples.

The probe sees what the clock did while a network ran. With it, the spread between rounds (rms) falls from 3.7 to 3.2 %
in onnxruntime on kernels-xeon, where probes step between 8.8, 9.8 and 11 us, and from 3.1 to 2.8 % on what
kernels-zen5 was on 25 November.
"""
_Group = tuple[NDArray[np.float64], NDArray[np.float64]]
_NO_WEIGHTS = (0.0,) * len(PARTS)
_TYPICAL_WEIGHTS: tuple[float, ...] = (0.5, 0.05, 0.05, 0.4)
"""What latencies follow where one round alone tells nothing: about what was found where there were several.

Cross-validated on kernels-engines-xeon, one round, against none: OpenVINO 7.9 % MAPE for 8.1, MNN 8.4 for 8.6.
"""
_DIFFERING = 0.4
"""How far weights lie from typical ones (rms 0.43, in 18 runtimes of six sweeps of 200 models and more in two rounds).

It draws them there where few rounds, or hardly any drift, tell them: two models with a second round (OpenVINO,
kernels-engines-spr) gave weights of 1.0 and 1.9, which put the published networks at 2.6 times what they take.
"""
_LEAST_NOISE = 0.003
"""Logs of one model in two rounds scatter by 0.3 % at least, whatever the few rounds at hand do."""
_FEWEST = 4
"""Models with two rounds below which nobody can tell whether a correction helps."""


class Correction(msgspec.Struct, frozen=True, kw_only=True):
    """Hold how strongly one runtime's latency follows each part of the reference load, in logs; what a fault takes."""

    runtime: str
    nominal: Reference
    weights: tuple[float, ...]
    """One for each of PARTS, or for the first of them."""
    fault_ns: float = 0.0
    """What a page fault takes off before that (latmod.faults)."""

    def factor(self, state: Reference) -> float:
        """Return what a latency measured in this state must be multiplied with to hold for the nominal state."""
        return math.exp(-float(np.dot(self.weights, log_state(state, self.nominal)[: len(self.weights)])))


class CorrectionGain(msgspec.Struct, frozen=True, kw_only=True):
    """Show what the correction is worth: the spread between rounds (rms), on models it was not fitted on."""

    runtime: str
    weights: tuple[float, ...]
    raw_rms: float
    corrected_rms: float


def log_state(state: Reference, nominal: Reference) -> NDArray[np.float64]:
    """Return the logarithm of each part over its nominal time, shape [4].

    Where nobody probed, conv stands in for the probe: both follow the core's speed.
    """
    logs = [math.log(getattr(state, part) / getattr(nominal, part)) for part in PARTS[:-1]]
    probed = state.probe_ns and nominal.probe_ns
    return np.array([*logs, math.log(state.probe_ns / nominal.probe_ns) if probed else logs[0]])


def state_of(burst: Measurement | KernelMeasurement, level_ns: int = 0) -> Reference:
    """Return the state around a burst: the geometric mean of the references before and after.

    Of the probe it is the median beside the burst's samples, where there are any; `level_ns` is what probes take on
    quiet cores: the others are left out, as the samples beside them are.
    """
    before, after = burst.before, burst.after
    assert before is not None
    assert after is not None
    beside = quiet_probe_ns(burst, level_ns) if isinstance(burst, Measurement) else 0
    return Reference(
        conv_ns=_between(before.conv_ns, after.conv_ns),
        copy_ns=_between(before.copy_ns, after.copy_ns),
        dispatch_ns=_between(before.dispatch_ns, after.dispatch_ns),
        probe_ns=beside or _between(before.probe_ns, after.probe_ns),
    )


def _between(before_ns: int, after_ns: int) -> int:
    return round(math.sqrt(before_ns * after_ns))


def fit_correction(runtime: str, measurements: list[Measurement], nominal: Reference) -> Correction:
    """Fit the non-negative weights that explain best how each model's rounds differ from their mean.

    The weights are zero where a correction did not help models that it was not fitted on: on a quiet machine the
    reference load scatters more than the networks drift. They are drawn to typical ones, and are these where no model
    has two rounds.
    """
    cost_ns = fault_ns(runtime, measurements)
    groups = _groups(runtime, without_faults(measurements, {runtime: cost_ns}), nominal)
    weights = _TYPICAL_WEIGHTS
    if groups:
        gain = _gain(runtime, groups)
        helps = len(groups) < _FEWEST or gain.corrected_rms < gain.raw_rms
        weights = gain.weights if helps else _NO_WEIGHTS
    return Correction(runtime=runtime, nominal=nominal, weights=weights, fault_ns=cost_ns)


def correction_gain(runtime: str, measurements: list[Measurement], nominal: Reference) -> CorrectionGain:
    """Measure the correction by two-fold cross-validation over models; both spreads are in logs, within models."""
    return _gain(runtime, _groups(runtime, measurements, nominal))


def _gain(runtime: str, groups: list[_Group]) -> CorrectionGain:
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


def _groups(runtime: str, measurements: list[Measurement], nominal: Reference) -> list[_Group]:
    """Return for each model of a runtime its states [rounds, 4] and log minima [rounds], session by session.

    Where no session has two rounds of a model, all are taken together.
    """
    within, across = [], []
    level_ns = quiet_levels(measurements).level(runtime)
    sessions = Sessions(measurements)
    for (_, name), rounds in final_bursts(measurements).items():
        if name == runtime:
            minima, _ = undisturbed_minima(rounds.values(), level_ns)
            states = np.array([log_state(state_of(rounds[number], level_ns), nominal) for number in minima])
            logs = np.log(list(minima.values()))
            numbers = np.array([sessions.of(rounds[number]) for number in minima])
            across.append((states, logs))
            within += [(states[numbers == one], logs[numbers == one]) for one in np.unique(numbers)]
    return _several(within) or _several(across)


def _several(groups: list[_Group]) -> list[_Group]:
    return [(states, logs) for states, logs in groups if len(logs) >= 2]


def _fit(groups: list[_Group]) -> tuple[float, ...]:
    """Return non-negative least squares over within-model deviations, by trying all 16 sets of active parts.

    They are drawn to typical ones, the more the rounds scatter beside them.
    """
    if not groups:
        return _TYPICAL_WEIGHTS
    x = np.concatenate([states - states.mean(axis=0) for states, _ in groups])
    y = np.concatenate([logs - logs.mean() for _, logs in groups])
    typical = np.array(_TYPICAL_WEIGHTS)
    # Each model's mean is free, and so are the weights that suit best; of fewer rounds these leave no noise at all.
    free = len(x) - len(groups) - len(PARTS)
    suiting, free = (np.linalg.lstsq(x, y)[0], free) if free > len(PARTS) else (typical, len(x) - len(groups))
    noise = max(float(np.sum(np.square(y - x @ suiting))) / free, _LEAST_NOISE**2)
    pull = noise / _DIFFERING**2
    gram = x.T @ x + pull * np.eye(len(PARTS))
    target = x.T @ y + pull * typical
    best, best_value = np.zeros(len(PARTS)), 0.0
    for mask in range(1, 1 << len(PARTS)):
        active = [part for part in range(len(PARTS)) if mask >> part & 1]
        weights = np.zeros(len(PARTS))
        weights[active] = np.linalg.solve(gram[np.ix_(active, active)], target[active])
        value = float(weights @ gram @ weights - 2 * weights @ target)
        if weights.min() >= 0 and value < best_value:
            best, best_value = weights, value
    return tuple(best.tolist())
