"""Prices brought to a machine where every kind takes a known factor longer, from whole latencies alone."""

import numpy as np
import pytest
from known_prices import kernel, priced_at

from latmod.factors import Adapted, factor_of, fit_factors
from latmod.kernels import Kernel

PRICES = {
    "Conv 3x3": {"macs": 0.01, "one": 1000.0},
    "MaxPool": {"bytes_in": 0.3, "one": 5000.0},
    "Relu": {"bytes_in": 0.1, "one": 2000.0},
}
SLOWER = {"Conv 3x3": 2.0, "MaxPool": 3.0, "Relu": 4.0}


def networks(count: int, seed: int = 0) -> list[list[Kernel]]:
    random = np.random.default_rng(seed)
    return [
        [
            kernel(kind, float(10 ** random.uniform(6, 8)) if kind == "Conv 3x3" else 0.0, 10 ** random.uniform(4, 7))
            for kind in PRICES
            for _ in range(random.integers(1, 6))
        ]
        for _ in range(count)
    ]


def took(own: list[Kernel], slower: dict[str, float]) -> float:
    ns = priced_at(PRICES).kernel_ns(own)
    return float(sum(one * slower[each.kind] for one, each in zip(ns, own, strict=True)))


def adapted(count: int, slower: dict[str, float]) -> Adapted:
    learnt = networks(count)
    prices = priced_at(PRICES)
    known = [prices.kernel_ns(own) for own in learnt]
    latencies = [took(own, slower) for own in learnt]
    return Adapted(prices=prices, factors=fit_factors(learnt, known, prices.run_ns, latencies))


@pytest.mark.parametrize(("count", "error"), [(12, 0.1), (100, 0.03)])
def test_each_kind_has_its_own_factor(count: int, error: float) -> None:
    found = adapted(count, SLOWER)
    for own in networks(20, seed=1):
        assert found.kernel_ns(own).sum() == pytest.approx(took(own, SLOWER), rel=error)


def test_one_factor_for_all_is_found_by_a_few_networks() -> None:
    found = adapted(3, dict.fromkeys(PRICES, 2.5))
    assert list(found.factors.values()) == pytest.approx([2.5] * len(found.factors), rel=1e-6)


def test_kinds_that_were_not_seen_are_as_their_class_or_as_all() -> None:
    factors = adapted(100, SLOWER).factors
    assert factor_of("AveragePool", factors) == factors["other reductions"]
    assert factors["other reductions"] > factors["other convolutions"]
    assert factor_of("MatMul", factors) == factors["other kinds"]


def test_a_disturbed_latency_does_not_lead() -> None:
    learnt = networks(20)
    prices = priced_at(PRICES)
    latencies = [took(own, dict.fromkeys(PRICES, 2.0)) for own in learnt]
    latencies[0] *= 5.0
    factors = fit_factors(learnt, [prices.kernel_ns(own) for own in learnt], 0.0, latencies)
    assert factors["other kinds"] == pytest.approx(2.0, rel=0.05)
