"""Comparisons over invented predictions, whose probabilities are known."""

from math import exp, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmod.comparing import compare, deviation, fastest_chances, meets_budget, regret
from latmod.predictor import Prediction


def prediction(runtime: str, latency_ms: float, factor: float = 1.1) -> Prediction:
    return Prediction(
        model="net.onnx",
        runtime=runtime,
        latency_ms=latency_ms,
        low_ms=latency_ms / factor,
        high_ms=latency_ms * factor,
        in_domain=True,
        reasons=(),
        unknown_share=0.0,
        machine="a machine",
        level="kernel",
    )


def test_the_fastest_comes_first_and_speed_ups_are_against_onnxruntime() -> None:
    found = compare([prediction("torch", 30.0), prediction("onnxruntime", 20.0), prediction("mnn", 10.0)])
    assert [one.runtime for one in found] == ["mnn", "onnxruntime", "torch"]
    assert [one.speedup for one in found] == pytest.approx([2.0, 1.0, 2 / 3])


def test_without_the_reference_there_is_no_speed_up() -> None:
    assert compare([prediction("torch", 30.0)])[0].speedup is None


def test_two_equal_ones_have_even_chances() -> None:
    assert fastest_chances([prediction("a", 10.0), prediction("b", 10.0)]) == pytest.approx([0.5, 0.5], abs=1e-6)


def test_the_chance_of_two_is_that_of_their_difference() -> None:
    """The difference of two normal logarithms is normal: its chance has a closed form."""
    one, other = prediction("a", 10.0, 1.2), prediction("b", 11.0, 1.05)
    spread = sqrt(deviation(one) ** 2 + deviation(other) ** 2)
    draws = np.random.default_rng(0).normal(size=400_000)
    expected = float(np.mean(draws * spread < log(11.0 / 10.0)))
    assert fastest_chances([one, other])[0] == pytest.approx(expected, abs=0.005)


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.floats(1.001, 3.0)), min_size=1, max_size=7))
def test_chances_sum_to_one(pairs: list[tuple[float, float]]) -> None:
    chances = fastest_chances([prediction(str(i), ms, factor) for i, (ms, factor) in enumerate(pairs)])
    assert sum(chances) == pytest.approx(1.0)
    assert all(chance >= 0.0 for chance in chances)


def test_a_budget_is_met_where_it_is_sure_enough() -> None:
    one = prediction("a", 10.0, 1.1)
    assert meets_budget(one, 10.0).confidence == pytest.approx(0.5)
    assert not meets_budget(one, 10.5).meets
    # The upper end of a 90 % interval is exceeded in 5 of 100 cases.
    assert meets_budget(one, 11.0).confidence == pytest.approx(0.95, abs=1e-3)
    assert meets_budget(one, 11.0).meets
    assert not meets_budget(one, 11.0, confidence=0.96).meets


def test_regret_is_what_a_wrong_choice_costs() -> None:
    assert regret([1.0, 2.0], [10.0, 12.0]) == 0.0
    assert regret([2.0, 1.0], [10.0, 12.0]) == pytest.approx(0.2)
    assert exp(deviation(prediction("a", 10.0, 1.1)) * 1.6449) == pytest.approx(1.1)
