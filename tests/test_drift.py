import math
import random

import pytest

from latmod.dataset import Measurement
from latmod.drift import Correction, correction_gain, fit_correction, log_state, state_of
from latmod.timing import Reference

NOMINAL = Reference(conv_ns=2_800_000, copy_ns=7_400_000, dispatch_ns=1_000_000)
TRUE_WEIGHTS = (0.2, 0.4, 0.0)


def state(rng: random.Random) -> Reference:
    conv, copy, dispatch = (math.exp(rng.gauss(0, 0.1)) for _ in range(3))
    return Reference(
        conv_ns=round(NOMINAL.conv_ns * conv),
        copy_ns=round(NOMINAL.copy_ns * copy),
        dispatch_ns=round(NOMINAL.dispatch_ns * dispatch),
    )


def drifting_sweep(models: int = 30, rounds: int = 6, noise: float = 0.002) -> list[Measurement]:
    """Return bursts whose latency follows the state with known weights."""
    rng = random.Random(1)
    found = []
    for number in range(rounds):
        for model in range(models):
            now = state(rng)
            drift = sum(w * d for w, d in zip(TRUE_WEIGHTS, log_state(now, NOMINAL), strict=True))
            ns = round(1e7 * (model + 1) * math.exp(drift + rng.gauss(0, noise)))
            found.append(
                Measurement(
                    model=f"m{model}",
                    runtime="r",
                    round=number,
                    status="ok",
                    samples_ns=(ns, 2 * ns),
                    before=now,
                    after=now,
                )
            )
    return found


def test_the_weights_of_a_known_drift_are_found() -> None:
    found = fit_correction("r", drifting_sweep(), NOMINAL)
    assert found.weights == pytest.approx(TRUE_WEIGHTS, abs=0.01)


def test_the_correction_takes_the_drift_out_of_models_it_was_not_fitted_on() -> None:
    gain = correction_gain("r", drifting_sweep(), NOMINAL)
    assert gain.raw_rms > 0.03
    assert gain.corrected_rms < 0.004


def test_without_drift_nothing_is_corrected() -> None:
    calm = [
        Measurement(
            model=f"m{model}", runtime="r", round=number, status="ok", samples_ns=(1000,), before=NOMINAL, after=NOMINAL
        )
        for model in range(5)
        for number in range(5)
    ]
    found = fit_correction("r", calm, NOMINAL)
    assert found.weights == (0.0, 0.0, 0.0)
    assert found.factor(NOMINAL) == 1.0


def test_weights_are_never_negative() -> None:
    contrary = drifting_sweep()
    turned = [
        Measurement(
            model=m.model, runtime="r", round=m.round, status="ok", samples_ns=(round(1e15 / m.samples_ns[0]),),
            before=m.before, after=m.after,
        )
        for m in contrary
    ]  # fmt: skip
    assert min(fit_correction("r", turned, NOMINAL).weights) >= 0.0


def test_a_runtime_without_bursts_is_not_corrected() -> None:
    assert fit_correction("other", drifting_sweep(), NOMINAL).weights == (0.0, 0.0, 0.0)


def test_a_slower_state_makes_a_latency_count_for_less() -> None:
    slow = Reference(conv_ns=NOMINAL.conv_ns, copy_ns=2 * NOMINAL.copy_ns, dispatch_ns=NOMINAL.dispatch_ns)
    assert Correction(runtime="r", nominal=NOMINAL, weights=(0.0, 1.0, 0.0)).factor(slow) == pytest.approx(0.5)


def test_the_state_around_a_burst_is_the_mean_of_both_references() -> None:
    after = Reference(conv_ns=4 * NOMINAL.conv_ns, copy_ns=NOMINAL.copy_ns, dispatch_ns=NOMINAL.dispatch_ns)
    burst = Measurement(model="m", runtime="r", round=0, status="ok", samples_ns=(1,), before=NOMINAL, after=after)
    assert state_of(burst).conv_ns == 2 * NOMINAL.conv_ns
