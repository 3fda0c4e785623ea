"""Tell which bursts were measured in one go: a machine is another one from day to day.

On kernels-xeon torch took 17 % more on the third day than on average, the reference load 5 %: what its neighbours do to
the shared caches no fixed load tells. So drift is learnt within sessions, and latencies are stated for the mean of all
sessions: by how much one differs, the networks that were measured in all of them tell.
"""

import statistics
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise

from latmod.dataset import KernelMeasurement, Measurement

_GAP_SECONDS = 7200.0
"""Bursts farther apart than this, with none between them, belong to two sessions."""
_FEW = 3


class Sessions:
    """Number the sessions of a data set, from 0."""

    def __init__(self, measurements: Iterable[Measurement | KernelMeasurement]) -> None:
        """Find the gaps between the bursts."""
        times = sorted(_seconds(one.started) for one in measurements if one.started)
        self._starts = [later for before, later in pairwise(times) if later - before > _GAP_SECONDS]

    def of(self, burst: Measurement | KernelMeasurement) -> int:
        """Return the number of a burst's session; 0 where nobody knows when it began."""
        return bisect_right(self._starts, _seconds(burst.started)) if burst.started else 0


def effects(logs: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return by how much each session differs from the mean of all, from each network's logarithm by session.

    It is the median over the networks that were measured in all sessions; nothing where there are fewer than three.
    """
    sessions = {session for own in logs for session in own}
    complete = [own for own in logs if len(own) == len(sessions)]
    if len(sessions) < 2 or len(complete) < _FEW:
        return {}
    return {
        session: statistics.median(own[session] - statistics.fmean(own.values()) for own in complete)
        for session in sorted(sessions)
    }


def _seconds(started: str) -> float:
    return datetime.fromisoformat(started).timestamp()
