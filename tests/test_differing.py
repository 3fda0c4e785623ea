"""Differences between two networks whose kernels and times are given."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmod.differing import ADDED, CHANGED, REMOVED, apart, difference
from latmod.kernels import FIELDS, Kernel
from latmod.predictor import Breakdown


def kernel(label: str, macs: float = 1.0, kind: str = "Conv 3x3") -> Kernel:
    numbers = tuple(macs if field == "macs" else 0.0 for field in FIELDS)
    return Kernel(op="Conv", kind=kind, numbers=numbers, nodes=(label,), label=label, inputs=(), outputs=(), values=())


def network(**times_ns: float) -> Breakdown:
    """Return kernels named as the arguments, each as large as it takes long."""
    return Breakdown(
        kernels=tuple(kernel(label, ns) for label, ns in times_ns.items()),
        kernel_ns=tuple(times_ns.values()),
        run_ns=100.0,
        unseen=(),
    )


def test_the_same_network_has_no_difference_and_no_doubt() -> None:
    found = difference("x", network(a=1e6, b=2e6), network(a=1e6, b=2e6), 0.1)
    assert (found.ratio, found.low, found.high, found.blames) == (1.0, 1.0, 1.0, ())


def test_names_do_not_matter() -> None:
    assert difference("x", network(a=1e6), network(b=1e6), 0.1).blames == ()


def test_kernels_are_added_removed_and_changed() -> None:
    found = difference("x", network(a=1e6, b=2e6, c=3e6), network(a=1e6, b=5e6, d=1e6), 0.1)
    assert [(one.change, one.kernel) for one in found.blames] == [(CHANGED, "b"), (REMOVED, "c"), (ADDED, "d")]
    assert sum(one.share for one in found.blames) == pytest.approx(found.ratio - 1.0)
    assert sum(one.new_ms - one.old_ms for one in found.blames) == pytest.approx(found.new_ms - found.old_ms)


def test_the_interval_grows_with_what_is_not_in_common() -> None:
    base = network(a=8e6, b=2e6)
    little, much = (difference("x", base, new, 0.1) for new in (network(a=8e6, b=3e6), network(a=9e6, b=3e6)))
    assert little.high / little.ratio < much.high / much.ratio
    assert much.high / much.ratio == pytest.approx(exp(0.1 * apart(base, network(a=9e6, b=3e6))))
    assert little.low < little.surely_above < little.ratio < little.high


@given(st.lists(st.sampled_from([1e5, 2e5, 4e5]), min_size=1, max_size=6),
       st.lists(st.sampled_from([1e5, 2e5, 4e5]), min_size=1, max_size=6))  # fmt: skip
def test_the_way_back_is_the_inverse(old: list[float], new: list[float]) -> None:
    before, after = (network(**{f"k{i}": ns for i, ns in enumerate(times)}) for times in (old, new))
    there, back = difference("x", before, after, 0.1), difference("x", after, before, 0.1)
    assert there.ratio * back.ratio == pytest.approx(1.0)
    assert there.high * back.low == pytest.approx(1.0)
    assert 0.0 <= apart(before, after) <= 2**0.5
    assert sum(one.new_ms - one.old_ms for one in there.blames) == pytest.approx(there.new_ms - there.old_ms)
