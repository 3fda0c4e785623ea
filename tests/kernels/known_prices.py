"""Kernels of two numbers, and what they take where prices are known."""

from collections.abc import Mapping

import msgspec

from latmod.additive import Additive, Rates
from latmod.kernels import FIELDS, Kernel
from latmod.kernels.columns import PHYSICAL
from latmod.total_fitting import PRIOR


def kernel(kind: str, macs: float, nbytes: float) -> Kernel:
    numbers = {"macs": macs, "padded_macs": macs, "bytes_in": nbytes, "bytes_out": nbytes}
    return Kernel(
        op=kind.split()[0], kind=kind, numbers=tuple(numbers.get(field, 0.0) for field in FIELDS), nodes=(), label=kind,
        inputs=(), outputs=(), values=(),
    )  # fmt: skip


def priced_at(prices: Mapping[str, Mapping[str, float]], factor: float = 1.0) -> Additive:
    """Return the prices (ns per unit, by kind), times a factor; other kinds as `PRIOR` has them."""
    rates = tuple(tuple(factor * price.get(name, 0.0) for name in PHYSICAL) for price in prices.values())
    return msgspec.structs.replace(
        PRIOR, rates=Rates(kinds=(*prices, "other kinds"), rates=(*rates, PRIOR.rates.rates[0]))
    )
