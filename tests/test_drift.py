import math
import random

import msgspec
import pytest

from latmod.dataset import Measurement
from latmod.drift import Correction, correction_gain, fit_correction, log_state, state_of
from latmod.timing import Reference

NOMINAL = Reference(conv_ns=2_800_000, copy_ns=7_400_000, dispatch_ns=1_000_000, probe_ns=10_000)
TRUE_WEIGHTS = (0.2, 0.4, 0.0, 0.3)
NONE = (0.0, 0.0, 0.0, 0.0)


def state(rng: random.Random) -> Reference:
    conv, copy, dispatch, probe = (math.exp(rng.gauss(0, spread)) for spread in (0.1, 0.1, 0.1, 0.02))
    return Reference(
        conv_ns=round(NOMINAL.conv_ns * conv),
        copy_ns=round(NOMINAL.copy_ns * copy),
        dispatch_ns=round(NOMINAL.dispatch_ns * dispatch),
        probe_ns=round(NOMINAL.probe_ns * probe),
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
                    probes_ns=(now.probe_ns, now.probe_ns),
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
    assert found.weights == NONE
    assert found.factor(NOMINAL) == 1.0


def test_weights_are_never_negative() -> None:
    contrary = drifting_sweep()
    turned = [
        Measurement(
            model=m.model, runtime="r", round=m.round, status="ok", samples_ns=(round(1e15 / m.samples_ns[0]),),
            before=m.before, after=m.after, probes_ns=m.probes_ns[:1],
        )
        for m in contrary
    ]  # fmt: skip
    assert min(fit_correction("r", turned, NOMINAL).weights) >= 0.0


def test_what_differs_from_day_to_day_does_not_count_as_drift() -> None:
    later = Reference(
        conv_ns=NOMINAL.conv_ns, copy_ns=NOMINAL.copy_ns, dispatch_ns=2 * NOMINAL.dispatch_ns, probe_ns=NOMINAL.probe_ns
    )
    today = [
        msgspec.structs.replace(burst, started=f"2026-11-25T10:00:{burst.round:02}+00:00")
        for burst in drifting_sweep(noise=0.0)
    ]
    tomorrow = [
        msgspec.structs.replace(
            burst, round=10, started="2026-11-26T10:00:00+00:00", before=later, after=later,
            samples_ns=tuple(3 * ns for ns in burst.samples_ns),
        )
        for burst in today
        if burst.round == 0
    ]  # fmt: skip
    assert fit_correction("r", [*today, *tomorrow], NOMINAL).weights == pytest.approx(TRUE_WEIGHTS, abs=0.01)


@pytest.mark.parametrize("models", [1, 2, 3, 6])
def test_few_second_rounds_do_not_lead_far_from_what_is_typical(models: int) -> None:
    """Two rounds that differ by noise of 5 %, in states that hardly do, could be explained by any weights."""
    rng = random.Random(models)
    calm = Reference(conv_ns=2_810_000, copy_ns=7_410_000, dispatch_ns=1_010_000, probe_ns=10_010)
    bursts = [
        Measurement(
            model=f"m{model}", runtime="r", round=number, status="ok",
            samples_ns=(round(1e7 * math.exp(rng.gauss(0, 0.05))),), before=now, after=now,
        )
        for model in range(models)
        for number, now in enumerate((NOMINAL, calm))
    ]  # fmt: skip
    found = fit_correction("r", bursts, NOMINAL).weights
    single = fit_correction("r", drifting_sweep(rounds=1), NOMINAL).weights
    assert found in (NONE, pytest.approx(single, abs=0.2))


def test_one_round_is_corrected_as_runtimes_are_in_general() -> None:
    found = fit_correction("r", drifting_sweep(rounds=1), NOMINAL)
    assert found.factor(NOMINAL) == 1.0
    slow = Reference(conv_ns=2 * NOMINAL.conv_ns, copy_ns=NOMINAL.copy_ns, dispatch_ns=NOMINAL.dispatch_ns)
    assert 0.5 < found.factor(slow) < 0.6


def test_a_slower_state_makes_a_latency_count_for_less() -> None:
    slow = Reference(conv_ns=NOMINAL.conv_ns, copy_ns=2 * NOMINAL.copy_ns, dispatch_ns=NOMINAL.dispatch_ns)
    assert Correction(runtime="r", nominal=NOMINAL, weights=(0.0, 1.0, 0.0, 0.0)).factor(slow) == pytest.approx(0.5)


def test_the_state_around_a_burst_is_the_mean_of_both_references() -> None:
    after = Reference(conv_ns=4 * NOMINAL.conv_ns, copy_ns=NOMINAL.copy_ns, dispatch_ns=NOMINAL.dispatch_ns)
    burst = Measurement(model="m", runtime="r", round=0, status="ok", samples_ns=(1,), before=NOMINAL, after=after)
    assert state_of(burst).conv_ns == 2 * NOMINAL.conv_ns


def test_a_state_has_the_median_of_the_undisturbed_probes() -> None:
    burst = Measurement(
        model="m", runtime="r", round=0, status="ok", samples_ns=(1, 1, 1, 1), probes_ns=(100, 106, 104, 150),
        before=NOMINAL, after=NOMINAL,
    )  # fmt: skip
    assert state_of(burst, 100).probe_ns == 104
    assert state_of(burst, 50).probe_ns == NOMINAL.probe_ns


def test_conv_stands_in_for_a_probe_that_nobody_ran() -> None:
    unprobed = Reference(conv_ns=2 * NOMINAL.conv_ns, copy_ns=NOMINAL.copy_ns, dispatch_ns=NOMINAL.dispatch_ns)
    found = Correction(runtime="r", nominal=NOMINAL, weights=(0.5, 0.0, 0.0, 0.5)).factor(unprobed)
    assert found == pytest.approx(0.5)


def test_weights_of_before_there_were_probes_still_hold() -> None:
    slow = Reference(conv_ns=2 * NOMINAL.conv_ns, copy_ns=NOMINAL.copy_ns, dispatch_ns=NOMINAL.dispatch_ns)
    assert Correction(runtime="r", nominal=NOMINAL, weights=(1.0, 0.0, 0.0)).factor(slow) == pytest.approx(0.5)
