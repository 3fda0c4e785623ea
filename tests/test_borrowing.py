"""What kernels of another machine take here, where both machines' prices are known."""

import msgspec
import numpy as np
import pytest
from made_kernels import made

from latmod.borrowing import Lender, borrowed
from latmod.kernels.columns import column_matrix
from latmod.labels import LabelledModel

pytest.importorskip("scipy")

PRICES = {"Relu": 0.1, "Clip": 0.2, "Add": 0.3, "Mul": 0.2, "Sub": 0.1}
"""What kinds take here, in ns per byte that comes in."""


def machine(prices: dict[str, float], *, slower: float = 1.0, models: int = 12, seed: int = 0) -> list[LabelledModel]:
    """Return networks with four kernels of each kind, all told; kernels of a kind differ by chance up to threefold."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(models):
        sizes = [(kind, float(10 ** rng.uniform(5, 7))) for kind in prices for _ in range(4)]
        kernels = tuple(made(kind, bytes_in=size, bytes_out=size, numel_out=size / 4.0) for kind, size in sizes)
        took = np.array([prices[kind] * size * rng.uniform(1.0, 3.0) for kind, size in sizes]) * slower + 2000.0
        found.append(
            LabelledModel(
                model=str(number),
                family="f",
                runtime="onnxruntime",
                kernels=kernels,
                columns=column_matrix(kernels),
                kernel_ns=tuple(took.tolist()),
                latency_ns=float(took.sum()),
                noise=0.0,
                told_ns=float(took.sum()),
                unmatched_ns=0.0,
            )
        )
    return found


def lent_ns(found: list[LabelledModel], kind: str) -> np.ndarray:
    return np.array(
        [
            ns
            for model in found
            for kernel, ns in zip(model.kernels, model.kernel_ns, strict=True)
            if np.isfinite(ns) and kernel.kind == kind
        ]
    )


def test_a_kind_that_is_lacking_takes_as_much_longer_as_others_of_its_class() -> None:
    there = machine(PRICES | {"Erf": 5.0}, slower=2.0)
    found = borrowed(machine(PRICES, seed=1), [Lender(models=tuple(there))])
    assert {kernel.kind for model in found for kernel in model.kernels} == {*PRICES, "Erf"}
    told = np.concatenate([np.array(model.kernel_ns)[-4:] for model in there])
    assert np.median(lent_ns(found, "Erf") / told) == pytest.approx(0.5, rel=0.1)


def test_what_is_known_here_is_not_taken_from_others() -> None:
    found = borrowed(machine(PRICES, seed=1), [Lender(models=tuple(machine(PRICES | {"Erf": 5.0})))])
    assert all(len(lent_ns(found, kind)) == 0 for kind in PRICES)
    assert borrowed(machine(PRICES, seed=1), [Lender(models=tuple(machine(PRICES)))]) == []


def test_a_kind_counts_by_what_its_kernels_took_not_by_its_rates() -> None:
    """Kernels that differ are priced as their cheapest: where they differ here alone, the ratio came out too low."""
    here = machine(PRICES, seed=1)
    rng = np.random.default_rng(5)
    slow = []
    for model in here:
        # Half of the kernels take ten times as long, as on cores that are shared.
        took = np.array(model.kernel_ns) * np.where(rng.random(len(model.kernels)) < 0.6, 10.0, 1.0)
        total = float(took.sum())
        slow.append(_told(model, took, total))
    there = machine(PRICES | {"Erf": 5.0})
    (plain, dear) = (lent_ns(borrowed(own, [Lender(models=tuple(there))]), "Erf") for own in (here, slow))
    assert 5.0 < float(np.median(dear / plain)) < 15.0


def test_convolutions_are_not_lent_between_unlike_vector_units() -> None:
    there = machine(PRICES | {"Conv 1x1": 1.0, "Conv 3x3": 2.0})
    here = machine(PRICES | {"Conv 1x1": 1.0}, seed=1)
    assert borrowed(here, [Lender(models=tuple(there), alike=False)]) == []
    assert len(lent_ns(borrowed(here, [Lender(models=tuple(there))]), "Conv 3x3")) == 48


def test_lenders_are_asked_in_their_order() -> None:
    first, second = machine(PRICES | {"Erf": 5.0}), machine(PRICES | {"Erf": 50.0, "Tanh": 1.0})
    found = borrowed(machine(PRICES, seed=1), [Lender(models=tuple(one)) for one in (first, second)])
    assert len(lent_ns(found, "Erf")) == 48
    assert len(lent_ns(found, "Tanh")) == 48
    assert np.median(lent_ns(found, "Erf")) == pytest.approx(np.median(lent_ns(found[:12], "Erf")))


def _told(model: LabelledModel, took: np.ndarray, total: float) -> LabelledModel:
    return msgspec.structs.replace(model, kernel_ns=tuple(took.tolist()), latency_ns=total, told_ns=total)
