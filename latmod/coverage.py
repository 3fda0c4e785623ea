"""Tell which kernels lie outside what was measured, and how much of a network's time that concerns."""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.kernels import FIELDS, Kernel

_CHECKED = (
    "macs", "bytes_in", "bytes_out", "bytes_weights", "channels_in", "channels_out", "group", "kernel_h", "kernel_w",
    "stride", "dilation", "side_out", "rows", "columns", "inner", "products", "rank",
)  # fmt: skip
_POSITIONS = tuple(FIELDS.index(name) for name in _CHECKED)
TOLERANCE = 1.25
"""A quarter beyond the range seen still counts as inside: ranges of some hundred draws end before the space does."""
_TOLERANCES = np.array([1.0 if name == "rank" else TOLERANCE for name in _CHECKED])
"""But a convolution in three dimensions is no larger one in two."""

NEVER_FACTOR = 4.0
"""By how much a kind that was never measured may be underpriced: all that is known of it is its bytes."""

SHARES = (0.02, 0.2)
"""Bounds of the share of predicted time in unseen kernels between few, some and many."""

Ranges = Mapping[str, Sequence[tuple[float, float]]]


class Unseen(msgspec.Struct, frozen=True, kw_only=True):
    """Name one kernel that lies outside, what share of the network's time it may take, and why."""

    label: str
    kind: str
    share: float
    reason: str
    never: bool
    """Whether nothing of its kind was measured."""


def observe_ranges(kernels: Sequence[Kernel]) -> dict[str, tuple[tuple[float, float], ...]]:
    """Return for each kind the smallest and largest value of each checked number."""
    by_kind: dict[str, list[tuple[float, ...]]] = {}
    for kernel in kernels:
        by_kind.setdefault(kernel.kind, []).append(tuple(kernel.numbers[i] for i in _POSITIONS))
    return {
        kind: tuple((float(low), float(high)) for low, high in zip(np.min(rows, 0), np.max(rows, 0), strict=True))
        for kind, rows in sorted(by_kind.items())
    }


def unseen(kernels: Sequence[Kernel], kernel_ns: NDArray[np.float64], ranges: Ranges) -> list[Unseen]:
    """Return the kernels outside the ranges, those that may take the most time first.

    Kinds that were never measured count as if they took `NEVER_FACTOR` times what is predicted.
    """
    may_take = kernel_ns * np.array([1.0 if kernel.kind in ranges else NEVER_FACTOR for kernel in kernels])
    total = float(may_take.sum()) or 1.0
    beyond = _beyond(kernels, ranges)
    found = [
        Unseen(
            label=kernels[place].label,
            kind=kernels[place].kind,
            share=float(may_take[place]) / total,
            reason=_reason(kernels[place], int(beyond[place].argmax()), ranges),
            never=kernels[place].kind not in ranges,
        )
        for place in np.flatnonzero(beyond.any(axis=1)).tolist()
    ]
    return sorted(found, key=lambda one: -one.share)


def _beyond(kernels: Sequence[Kernel], ranges: Ranges) -> NDArray[np.bool_]:
    """Tell in which respects kernels lie beyond their kind's range, [kernels, respects]: all, if never measured."""
    nowhere = ((np.inf, -np.inf),) * len(_CHECKED)
    kinds = list(dict.fromkeys(kernel.kind for kernel in kernels))
    bounds = np.array([ranges.get(kind, nowhere) for kind in kinds], dtype=np.float64).reshape(-1, len(_CHECKED), 2)
    rows = {kind: row for row, kind in enumerate(kinds)}
    own = bounds[np.array([rows[kernel.kind] for kernel in kernels], dtype=np.int64)]
    values = np.array([kernel.numbers for kernel in kernels], dtype=np.float64).reshape(-1, len(FIELDS))[:, _POSITIONS]
    return np.asarray((values > own[:, :, 1] * _TOLERANCES) | (values < own[:, :, 0] / _TOLERANCES))


def _reason(kernel: Kernel, respect: int, ranges: Ranges) -> str:
    """Say how a kernel lies outside, in the first respect in which it does."""
    own = ranges.get(kernel.kind)
    if own is None:
        return f"{kernel.kind} was never measured"
    low, high = own[respect]
    value = kernel.numbers[_POSITIONS[respect]]
    return f"{_CHECKED[respect]} {value:.4g} of a {kernel.kind} is beyond what was measured ({low:.4g} to {high:.4g})"


def most_underpriced(never_share: float) -> float:
    """Return by what factor a network may be underpriced by kinds of which nothing was measured.

    The share is one that `unseen` gives: of the time that it may take, in which these kinds count `NEVER_FACTOR` times.
    """
    return 1.0 / (1.0 - never_share * (1.0 - 1.0 / NEVER_FACTOR))


def share_group(unseen_share: float, never_share: float) -> int:
    """Return 0, 1 or 2: few, some or many of a network's kernels, by time, lie outside what was measured; or 3.

    That is where more than a few are of kinds of which nothing was: where kinds are known, but in other sizes, errors
    are smaller (kernels, families left out in onnxruntime: 4.0 % for 20 %).
    """
    if never_share > SHARES[0]:
        return len(SHARES) + 1
    return sum(unseen_share > bound for bound in SHARES)


GROUPS = len(SHARES) + 2
