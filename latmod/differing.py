"""Tell what a change of a network does to its latency, how sure that is, and which kernels are to blame."""

from collections import Counter
from collections.abc import Sequence
from math import exp, hypot

import msgspec

from latmod.kernels import Kernel
from latmod.predictor import Breakdown
from latmod.scores import NORMAL_90

_NORMAL_80 = 1.2816
"""Half of the 80 % interval of a normal distribution, in standard deviations."""

ADDED, REMOVED, CHANGED = "added", "removed", "changed"

_Kernels = Sequence[tuple[Kernel, float]]
"""Kernels with what each takes, in ns."""


class Blame(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one kernel that only one of the networks has, or that differs between them; times in ms.

    `share` is what it adds to the old latency, as a fraction of that. All of them do not quite sum to the whole change:
    what both networks have in common takes a little longer in a larger one, whose weights push it out of the caches.
    """

    change: str
    kernel: str
    kind: str
    old_ms: float
    new_ms: float
    share: float


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the change of latency from one network to another in one runtime.

    `ratio` is new over old, `low` and `high` its 90 % interval: narrower than that of either latency where the networks
    have kernels in common, since these share their error.
    """

    runtime: str
    old_ms: float
    new_ms: float
    ratio: float
    low: float
    high: float
    surely_above: float
    """The ratio that is exceeded with 90 % confidence."""
    blames: tuple[Blame, ...]


def difference(runtime: str, old: Breakdown, new: Breakdown, pair_quantile: float) -> Difference:
    """Return the change from `old` to `new`, the kernels with the largest part in it first.

    `pair_quantile` is the 90 % quantile of the error of a pair, per share of time that it does not have in common.
    """
    removed, added = _leftovers(old, new), _leftovers(new, old)
    ratio = new.latency_ns / old.latency_ns
    width = pair_quantile * _distance(removed, added, old, new)
    return Difference(
        runtime=runtime,
        old_ms=old.latency_ns / 1e6,
        new_ms=new.latency_ns / 1e6,
        ratio=ratio,
        low=ratio * exp(-width),
        high=ratio * exp(width),
        surely_above=ratio * exp(-width * _NORMAL_80 / NORMAL_90),
        blames=tuple(_blames(removed, added, old.latency_ns)),
    )


def apart(old: Breakdown, new: Breakdown) -> float:
    """Return how much of their time two networks do not have in common: 0 for all of it, root of 2 for nothing.

    What they have in common has the same error in both, which cancels in the ratio; the rest errs independently.
    """
    return _distance(_leftovers(old, new), _leftovers(new, old), old, new)


def _distance(removed: _Kernels, added: _Kernels, old: Breakdown, new: Breakdown) -> float:
    return hypot(sum(ns for _, ns in removed) / old.latency_ns, sum(ns for _, ns in added) / new.latency_ns)


def _leftovers(one: Breakdown, other: Breakdown) -> _Kernels:
    """Return the kernels of one network that the other does not have as often, with their times in ns."""
    there = Counter((kernel.kind, kernel.numbers) for kernel in other.kernels)
    found = []
    for kernel, ns in zip(one.kernels, one.kernel_ns, strict=True):
        key = (kernel.kind, kernel.numbers)
        if there[key]:
            there[key] -= 1
        else:
            found.append((kernel, ns))
    return found


def _blames(removed: _Kernels, added: _Kernels, old_latency_ns: float) -> list[Blame]:
    """Pair what bears the same name in both networks; the rest was removed or added."""
    before, after = _by_label(removed), _by_label(added)
    found = []
    for label in dict.fromkeys([*before, *after]):
        was, now = before.get(label), after.get(label)
        old_ns, new_ns = (was[1] if was else 0.0), (now[1] if now else 0.0)
        kernel = (now or was or (None, 0.0))[0]
        assert kernel is not None
        kind = f"{was[0].kind} -> {kernel.kind}" if was and now and was[0].kind != kernel.kind else kernel.kind
        found.append(
            Blame(
                change=CHANGED if was and now else ADDED if now else REMOVED,
                kernel=label,
                kind=kind,
                old_ms=old_ns / 1e6,
                new_ms=new_ns / 1e6,
                share=(new_ns - old_ns) / old_latency_ns,
            )
        )
    return sorted(found, key=lambda one: (-abs(one.new_ms - one.old_ms), one.kernel))


def _by_label(kernels: _Kernels) -> dict[str, tuple[Kernel, float]]:
    """Add up the times of kernels of the same name: what an engine inserts may occur twice."""
    found: dict[str, tuple[Kernel, float]] = {}
    for kernel, ns in kernels:
        found[kernel.label] = (kernel, ns + found[kernel.label][1] if kernel.label in found else ns)
    return found
