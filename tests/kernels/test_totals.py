"""The sum over kernels fitted to whole latencies alone, where the prices behind these are known."""

import msgspec
import numpy as np
import pytest
from known_prices import kernel, priced_at

from latmod.kernels.columns import column_matrix
from latmod.labels import LabelledModel
from latmod.total_fitting import PRIOR, apportioned, fit_sum, scaled, without_kernels

pytest.importorskip("scipy")

# ns per MAC, byte and call: a dense convolution is twice as fast per MAC as the prior says, the other kind much slower.
PRICES = {"Conv 3x3": {"macs": 0.01, "one": 1000.0}, "Relu": {"bytes_in": 0.3, "one": 5000.0}}


@pytest.fixture(scope="module")
def models() -> list[LabelledModel]:
    random = np.random.default_rng(0)
    found = []
    for number in range(120):
        own = [kernel("Conv 3x3", float(10 ** random.uniform(6, 8)), 1e5) for _ in range(random.integers(3, 20))]
        own += [kernel("Relu", 0.0, float(10 ** random.uniform(4, 7))) for _ in range(random.integers(3, 20))]
        found.append(
            LabelledModel(
                model=str(number), family="f", runtime="torch", kernels=tuple(own),
                columns=column_matrix(own),
                kernel_ns=(float("nan"),) * len(own),
                latency_ns=float(priced_at(PRICES).kernel_ns(own).sum()), noise=0.0, told_ns=float("nan"),
                unmatched_ns=float("nan"),
            )
        )  # fmt: skip
    return found


def test_parts_sum_to_the_whole(models: list[LabelledModel]) -> None:
    for before, after in zip(models, apportioned(models, PRIOR), strict=True):
        assert sum(after.kernel_ns) == pytest.approx(before.latency_ns)


def test_prices_are_found_from_whole_latencies(models: list[LabelledModel]) -> None:
    fitted = fit_sum(models[:90])
    errors = [abs(fitted.latency_ns(model.kernels) / model.latency_ns - 1.0) for model in models[90:]]
    assert np.mean(errors) < 0.05
    rough = [abs(PRIOR.latency_ns(model.kernels) / model.latency_ns - 1.0) for model in models[90:]]
    assert np.mean(rough) > 5 * np.mean(errors)


def test_prices_of_another_engine_are_brought_to_the_latencies_by_a_factor_per_kind(
    models: list[LabelledModel],
) -> None:
    factors = {"Conv 3x3": 3.0, "Relu": 0.5}
    slower = [
        msgspec.structs.replace(
            model,
            latency_ns=float(
                sum(
                    ns * factors[k.kind]
                    for k, ns in zip(model.kernels, priced_at(PRICES).kernel_ns(model.kernels), strict=True)
                )
            ),
        )
        for model in models
    ]
    found = scaled(priced_at(PRICES), slower)
    assert {kind: found.factors[kind] for kind in factors} == pytest.approx(factors, rel=0.15)  # drawn to each other
    fitted = fit_sum(slower[:90], near=priced_at(PRICES))
    errors = [abs(fitted.latency_ns(model.kernels) / model.latency_ns - 1.0) for model in slower[90:]]
    assert np.mean(errors) < 0.05


def test_what_was_told_can_be_forgotten(models: list[LabelledModel]) -> None:
    told = apportioned(models, PRIOR)
    assert all(np.isfinite(model.told_ns) for model in told)
    forgotten = without_kernels(told)
    assert not any(np.isfinite(model.told_ns) for model in forgotten)
    assert [len(model.kernel_ns) for model in forgotten] == [len(model.kernels) for model in models]
