"""Rates of kinds, of classes, and of what was never seen, where the prices are known."""

from collections.abc import Sequence

import numpy as np
import pytest
from made_kernels import made

from latmod.additive import Rates, uncalibrated
from latmod.kernels import Kernel
from latmod.kernels.columns import column_matrix
from latmod.rate_fitting import fit_rates

pytest.importorskip("scipy")


def moving(kind: str, size: float) -> Kernel:
    return made(kind, bytes_in=size, bytes_out=size, numel_out=size / 4.0, steps=size / 4.0)


def fitted(kernels: Sequence[Kernel], took_ns: Sequence[float], silent: Sequence[str] = ()) -> Rates:
    took = np.array(took_ns)
    return fit_rates([kernel.kind for kernel in kernels], column_matrix(kernels), took, np.sqrt(took), silent)


def price_ns(rates: Rates, kernel: Kernel) -> float:
    return float(uncalibrated(rates).kernel_ns([kernel])[0])


def drawn(kinds: dict[str, float], count: int = 40) -> tuple[list[Kernel], list[float]]:
    """Return kernels of each kind, and what they take at its price, in ns per byte that comes in."""
    rng = np.random.default_rng(3)
    kernels = [moving(kind, float(10 ** rng.uniform(4, 7))) for kind in kinds for _ in range(count)]
    return kernels, [2000.0 + kinds[kernel.kind] * kernel.number("bytes_in") for kernel in kernels]


def test_every_kind_has_its_price_and_those_never_seen_that_of_their_class() -> None:
    rates = fitted(*drawn({"Relu": 0.1, "Transpose": 0.4}))
    for kind, price in {"Relu": 0.1, "Sigmoid": 0.1, "Transpose": 0.4, "Concat": 0.4}.items():
        assert price_ns(rates, moving(kind, 1e6)) == pytest.approx(2000.0 + price * 1e6, rel=0.1)


def test_a_kind_that_is_never_told_is_left_the_call() -> None:
    rates = fitted(*drawn({"Relu": 0.1}), silent=["Reshape"])
    assert price_ns(rates, moving("Reshape", 1e6)) < 1000.0


def test_one_slow_kind_does_not_price_what_was_never_seen() -> None:
    rates = fitted(*drawn({"Relu": 0.1, "Clip": 0.1, "Add": 0.1, "Mul": 0.1, "Erf": 10.0}))
    assert price_ns(rates, moving("Sigmoid", 1e6)) == pytest.approx(1e5, rel=0.3)


def test_few_kernels_of_a_slow_kind_price_it() -> None:
    """Drawn to its class, it came out at a tenth."""
    kernels, took = drawn({"Relu": 0.1, "Clip": 0.1, "Add": 0.1})
    slow, took_slow = drawn({"FastGelu": 10.0}, count=6)
    rates = fitted([*kernels, *slow], [*took, *took_slow])
    assert price_ns(rates, moving("FastGelu", 1e6)) == pytest.approx(1e7, rel=0.1)
    assert price_ns(rates, moving("Relu", 1e6)) == pytest.approx(1e5, rel=0.1)


def test_rows_that_are_taken_apart_price_no_other_movement() -> None:
    """They take 100 ns an element; resizing, which goes by element too, was priced so where it was never measured."""
    rng = np.random.default_rng(5)
    kernels, took = [], []
    for kind, per_element, steps in (("Transpose", 1.0, 0.0), ("Concat", 1.0, 0.0), ("RowsToImage", 100.0, 1.0)):
        for elements in rng.uniform(1e4, 1e6, 40):
            bytes_in = 4.0 * elements
            kernels.append(
                made(kind, bytes_in=bytes_in, bytes_out=bytes_in, numel_out=elements, steps=steps * elements)
            )
            took.append(per_element * elements)
    rates = fitted(kernels, took)
    assert price_ns(rates, made("Resize", bytes_in=1e6, bytes_out=4e6, numel_out=1e6, steps=1e6)) < 3e6
    apart = made("RowsToImage", bytes_in=4e6, bytes_out=4e6, numel_out=1e6, steps=1e6)
    assert price_ns(rates, apart) == pytest.approx(1e8, rel=0.1)


def test_what_was_seen_small_alone_is_priced_large_as_its_class() -> None:
    """Thousands of times larger than any Clip that was seen."""
    rng = np.random.default_rng(3)
    kernels = [moving("Relu", size) for size in rng.uniform(1e3, 1e7, 240)]
    kernels += [moving("Clip", size) for size in rng.uniform(1e3, 2e3, 120)]
    took = [(2000.0 + k.number("bytes_in") / 10.0) * float(np.exp(rng.normal(0.0, 0.2))) for k in kernels]
    rates = fitted(kernels, took)
    relu, clip = (price_ns(rates, moving(kind, 5e6)) for kind in ("Relu", "Clip"))
    assert relu / 2.5 < clip < relu * 2.5


@pytest.mark.parametrize(("slow", "per_byte"), [(1, 0.1), (6, 0.5)])
def test_one_slow_kernel_beyond_a_cache_does_not_price_all(slow: int, per_byte: float) -> None:
    """A product of 39 MB, five times as slow as its bytes say, once or often; memory as slow as that if often."""

    def product(size: float) -> Kernel:
        return made("Gemm weights row", bytes_weights=size, macs=size / 4.0, padded_macs=size / 4.0)

    sizes = np.concatenate([np.random.default_rng(5).uniform(1e5, 2e7, 160), np.full(slow, 3.9e7)])
    took = 2000.0 + sizes * np.where(sizes > 3e7, 0.5, 0.1)
    rates = fitted([product(size) for size in sizes], took.tolist())
    assert per_byte / 1.5 < price_ns(rates, product(1.5e8)) / 1.5e8 < per_byte * 1.5


def test_many_kernels_of_an_unlike_kind_outweigh_the_proportions_of_its_class() -> None:
    """A class that knew of calls alone priced such kernels by call: at 0.3 to 1.0 of what they took."""
    rng = np.random.default_rng(4)
    kinds = [f"Odd{number}" for number in range(60)]
    calls = [moving(kind, float(10 ** rng.uniform(2, 4))) for kind in kinds for _ in range(10)]
    slow = [moving("GridSample", float(10 ** rng.uniform(4, 6))) for _ in range(90)]
    took = np.array([3000.0] * len(calls) + [60.0 * kernel.number("bytes_in") for kernel in slow])
    every = [*calls, *slow]
    rates = fit_rates([kernel.kind for kernel in every], column_matrix(every), took, np.ones(len(every)), ())
    found = [price_ns(rates, moving("GridSample", size)) / (60.0 * size) for size in (1e4, 1e5, 1e6)]
    assert found == pytest.approx([1.0] * 3, rel=0.25)


def test_what_no_kernel_of_an_unlike_kind_has_costs_what_it_does_in_the_class() -> None:
    sizes = [1e4, 1e5, 1e6] * 10
    kinds = [f"Odd{number}" for number in range(60)]
    plain = [made(kind, bytes_in=1e5, bytes_weights=size) for kind in kinds for size in sizes]
    took = [1000.0 + 0.1 * (kernel.number("bytes_in") + kernel.number("bytes_weights")) for kernel in plain]
    slow = [made("GridSample", bytes_in=size) for size in sizes]
    rates = fitted([*plain, *slow], [*took, *(100.0 * kernel.number("bytes_in") for kernel in slow)])
    without, weighted = (price_ns(rates, made("GridSample", bytes_in=1e5, bytes_weights=size)) for size in (0.0, 1e6))
    assert weighted - without == pytest.approx(1e5, rel=0.5)


def test_constants_of_one_number_do_not_price_maps_of_weights() -> None:
    """All have them, so what a call takes may be theirs as well."""
    kernels, took = drawn({"Add": 0.1})
    rates = fitted([kernel.with_numbers(bytes_weights=4.0) for kernel in kernels], took)
    assert price_ns(rates, moving("Add", 1e6).with_numbers(bytes_weights=1e6)) < 5e6
