"""Kinds that one machine never measured, priced from another that is slower by a known factor."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from known_prices import kernel, priced_at

from latmod.borrowing import Lender, borrowed, told_kernels
from latmod.kernels import Kernel
from latmod.kernels.columns import column_matrix
from latmod.labels import LabelledModel
from latmod.total_fitting import fit_sum, without_kernels

pytest.importorskip("scipy")

PRICES = {
    "Conv 3x3": {"macs": 0.01, "one": 1000.0},
    "MaxPool": {"bytes_in": 0.3, "one": 5000.0},
    "LRN": {"bytes_in": 4.0, "one": 2000.0},
}
SLOWER = 1.5
HERE, OTHER = "here", "another"


def measured(
    factor: float, kinds: tuple[str, ...], count: int = 60, seed: int = 0, size: float = 1.0
) -> list[LabelledModel]:
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        own = [
            kernel(
                kind,
                size * float(10 ** random.uniform(6, 8)) if kind == "Conv 3x3" else 0.0,
                size * 10 ** random.uniform(4, 7),
            )
            for kind in kinds
            for _ in range(random.integers(2, 6))
        ]
        ns = priced_at(PRICES, factor).kernel_ns(own)
        found.append(
            LabelledModel(
                model=str(number), family="f", runtime="torch", kernels=tuple(own),
                columns=column_matrix(own), kernel_ns=tuple(ns.tolist()),
                latency_ns=float(ns.sum()), noise=0.0, told_ns=float(ns.sum()), unmatched_ns=0.0,
            )
        )  # fmt: skip
    return found


def lent_to(own: Sequence[LabelledModel], lenders: Sequence[Lender]) -> list[LabelledModel]:
    return borrowed(own, lenders, HERE)


def stated(lent: Sequence[LabelledModel], kind: str) -> list[tuple[Kernel, float]]:
    """Return kernels of a kind, and what they are said to take over what they take here."""
    return [
        (one, ns / priced_at(PRICES).kernel_ns([one])[0])
        for model in lent
        for one, ns in zip(model.kernels, model.kernel_ns, strict=True)
        if one.kind == kind and np.isfinite(ns)
    ]


def ratios(lent: Sequence[LabelledModel], kind: str) -> list[float]:
    return [ratio for _, ratio in stated(lent, kind)]


def test_kinds_of_the_other_machine_are_stated_for_this_one() -> None:
    own = measured(1.0, ("Conv 3x3", "MaxPool"))
    other = measured(SLOWER, tuple(PRICES), seed=1)
    lent = lent_to(own, [Lender(machine=OTHER, models=tuple(other))])
    told = told_kernels(lent)
    assert {kernel.kind for kernel in told} == {"LRN"}
    labels = [ns for model in lent for ns in model.kernel_ns if np.isfinite(ns)]
    assert labels == pytest.approx(priced_at(PRICES).kernel_ns(told), rel=0.05)
    network = [kernel("Conv 3x3", 3e7, 1e6), kernel("LRN", 0.0, 2e6)]
    expected = priced_at(PRICES).kernel_ns(network).sum()
    without = fit_sum(own).latency_ns(network)
    assert fit_sum([*own, *lent]).latency_ns(network) == pytest.approx(expected, rel=0.15)
    assert without < 0.6 * expected


def test_a_kind_counts_by_what_its_kernels_took_not_by_its_rates() -> None:
    """Rates price a kind whose kernels differ as its cheapest: relative error is least so."""
    random = np.random.default_rng(7)

    def disturbed(model: LabelledModel) -> LabelledModel:
        took = np.array(model.kernel_ns) * np.where(random.random(len(model.kernels)) < 0.7, 10.0, 1.0)
        whole = float(took.sum())
        return msgspec.structs.replace(model, kernel_ns=tuple(took.tolist()), latency_ns=whole, told_ns=whole)

    own, other = (measured(1.0, kinds) for kinds in (("Conv 3x3", "MaxPool"), tuple(PRICES)))
    lent = lent_to([disturbed(one) for one in own], [Lender(machine=OTHER, models=tuple(other))])
    assert np.median(ratios(lent, "LRN")) == pytest.approx(10.0, rel=0.15)


def test_a_machine_lends_to_itself_what_it_took() -> None:
    """Whatever its other kernels say: here they took four times as long, in other shapes perhaps."""
    own = measured(1.0, ("MaxPool",))
    odd = []
    for model in measured(1.0, ("MaxPool", "LRN"), seed=1):
        took = [
            ns * (4.0 if one.kind == "MaxPool" else 1.0) for one, ns in zip(model.kernels, model.kernel_ns, strict=True)
        ]
        odd.append(msgspec.structs.replace(model, kernel_ns=tuple(took), latency_ns=sum(took), told_ns=sum(took)))
    lent = lent_to(own, [Lender(machine=HERE, models=tuple(odd))])
    assert ratios(lent, "LRN") == pytest.approx([1.0] * len(ratios(lent, "LRN")), rel=0.05)
    assert np.median(ratios(lent_to(own, [Lender(machine=OTHER, models=tuple(odd))]), "LRN")) < 0.5


def test_a_machine_is_compared_by_all_that_it_lends() -> None:
    """Its first networks have nothing in common with those here."""
    own = measured(1.0, ("MaxPool",))
    first = Lender(machine=OTHER, models=tuple(measured(SLOWER, ("LRN",), seed=1)))
    renamed = [
        msgspec.structs.replace(one, model=f"other {one.model}") for one in measured(SLOWER, ("MaxPool",), seed=2)
    ]
    lent = lent_to(own, [first, Lender(machine=OTHER, models=tuple(renamed))])
    assert np.median(ratios(lent, "LRN")) == pytest.approx(1.0, rel=0.05)
    assert np.median(ratios(lent_to(own, [first]), "LRN")) == pytest.approx(SLOWER, rel=0.05)


@pytest.mark.parametrize("form", ["naive", "3x3/batch"])
def test_what_has_no_vectors_is_lent_to_every_machine(form: str) -> None:
    other = []
    for model in measured(SLOWER, ("Conv 3x3", "MaxPool"), seed=1):
        kinds = [one.kind.replace("3x3", form) for one in model.kernels]
        renamed = (msgspec.structs.replace(one, kind=kind) for one, kind in zip(model.kernels, kinds, strict=True))
        other.append(msgspec.structs.replace(model, kernels=tuple(renamed)))
    lent = lent_to(measured(1.0, ("MaxPool",)), [Lender(machine=OTHER, models=tuple(other), alike=False)])
    assert {one.kind for one in told_kernels(lent)} == {f"Conv {form}"}


def test_nothing_is_borrowed_of_what_is_known() -> None:
    own = measured(1.0, tuple(PRICES))
    assert lent_to(own, [Lender(machine=OTHER, models=tuple(measured(SLOWER, tuple(PRICES), seed=1)))]) == []


def test_what_is_much_larger_than_any_of_its_kind_is_borrowed() -> None:
    own = measured(1.0, tuple(PRICES))
    other = measured(SLOWER, tuple(PRICES), seed=1) + measured(SLOWER, tuple(PRICES), count=9, seed=2, size=30.0)
    lent = lent_to(own, [Lender(machine=OTHER, models=tuple(other)), Lender(machine="a third", models=tuple(other))])
    for kind in PRICES:
        ours = [one for model in own for one in model.kernels if one.kind == kind]
        macs, nbytes = (2.0 * max(one.number(name) for one in ours) for name in ("macs", "bytes_in"))
        theirs = [one for model in other for one in model.kernels if one.kind == kind]
        found = stated(lent, kind)
        assert [one for one, _ in found] == [
            one for one in theirs if one.number("macs") > macs or one.number("bytes_in") > nbytes
        ]
        assert [ratio for _, ratio in found] == pytest.approx([1.0] * len(found), rel=0.05)
        assert found
    assert len(told_kernels(lent)) == len({*told_kernels(lent)})


def test_of_another_rank_nothing_is_larger_than_what_is_known() -> None:
    own, other = measured(1.0, ("MaxPool",)), measured(SLOWER, ("MaxPool",), size=30.0)
    volumes = [
        msgspec.structs.replace(model, kernels=tuple(one.with_numbers(rank=5.0) for one in model.kernels))
        for model in other
    ]
    assert lent_to(own, [Lender(machine=OTHER, models=tuple(other))])
    assert lent_to(own, [Lender(machine=OTHER, models=tuple(volumes))]) == []


def test_each_lender_lends_what_none_before_it_had() -> None:
    own = measured(1.0, ("Conv 3x3",))
    first = Lender(machine=OTHER, models=tuple(measured(SLOWER, ("Conv 3x3", "MaxPool"), seed=1)))
    second = Lender(machine="a third", models=tuple(measured(2.0, tuple(PRICES), seed=2)))
    lent = lent_to(own, [first, second])
    pools, norms = (stated(lent, kind) for kind in ("MaxPool", "LRN"))
    assert {one for one, _ in pools} <= {one for model in first.models for one in model.kernels}
    assert {one for one, _ in norms} <= {one for model in second.models for one in model.kernels}
    assert [ratio for _, ratio in (*pools, *norms)] == pytest.approx([1.0] * (len(pools) + len(norms)), rel=0.05)
    assert pools
    assert norms


def test_other_vector_units_lend_no_convolutions() -> None:
    own = measured(1.0, ("MaxPool",))
    other = tuple(measured(SLOWER, tuple(PRICES), seed=1))
    assert {one.kind for one in told_kernels(lent_to(own, [Lender(machine=OTHER, models=other)]))} == {
        "Conv 3x3",
        "LRN",
    }
    assert {one.kind for one in told_kernels(lent_to(own, [Lender(machine=OTHER, models=other, alike=False)]))} == {
        "LRN"
    }


def test_two_kernels_of_a_kind_are_too_few_to_lend() -> None:
    own = measured(1.0, ("Conv 3x3", "MaxPool"))
    (one,) = measured(SLOWER, ("LRN", "Conv 3x3"), count=1, seed=5)
    norms = len([kernel for kernel in one.kernels if kernel.kind == "LRN"])
    assert norms >= 3
    few = msgspec.structs.replace(
        one, kernel_ns=tuple(np.where(np.arange(len(one.kernels)) < norms - 2, np.nan, one.kernel_ns).tolist())
    )
    assert lent_to(own, [Lender(machine=OTHER, models=(one,))])
    assert lent_to(own, [Lender(machine=OTHER, models=(few,))]) == []


def test_a_runtime_that_tells_nothing_here_borrows_kinds_as_well() -> None:
    """Its own networks tell only what those take together; what they have none of is priced by what was lent."""
    own = measured(1.0, ("Conv 3x3", "MaxPool"), count=30)
    lent = lent_to(own, [Lender(machine=OTHER, models=tuple(measured(SLOWER, tuple(PRICES), count=30, seed=1)))])
    network = [kernel("Conv 3x3", 3e7, 1e6), kernel("LRN", 0.0, 2e6)]
    expected = priced_at(PRICES).kernel_ns(network).sum()
    silent, without = fit_sum([*without_kernels(own), *lent]), fit_sum(without_kernels(own))
    assert silent.latency_ns(network) == pytest.approx(expected, rel=0.25)
    assert without.latency_ns(network) < 0.6 * expected
