"""Tell whether the cores are one's own at this moment: a probe of some 70 us, run beside every sample.

On a shared machine a neighbour on the other thread of a core slows everything by a quarter to a half, for tens of
milliseconds to seconds at a time. A burst that waits for quiet, and a latency made of samples with quiet on both sides,
then repeat to 2-3 % where bursts' minima scatter by 6-12 % (measured on nine networks, 14 bursts each).

What it does not see is a neighbour elsewhere that uses up the memory's or the last cache's bandwidth, for hours: the
copy of the reference load, and with it the correction of drift, tells of that.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

QUIET_WITHIN = 0.12
"""A probe this much above the quiet level still counts as quiet.

Measured: undisturbed probes lie within 6 % of the fastest of 25,000, disturbed ones 22 to 54 % above it.
"""
NEIGHBOUR_SLOWS_BY = 0.18
"""A crowd of bursts is slowed by a neighbour where another, a fifth as large or larger, took so much less.

Neighbours add 22 % or more (18 % less is the same the other way round), steps of the clock at most 12 % (kernels-xeon).
On zoo-spr, measured while something ran on the same cores most of the time, 19 % of the bursts saw 14.5 us and 54 %
19.8; kernels-spr, measured before it, has 14.5.
"""
_CROWD = 0.2
_WATCHED = 40
_SIDE = 96
_TRIES = 3
_PAGE = 4096
_LEVEL_PERCENTILE = 5


class Probe:
    """Time a matrix product that fits into a core's own caches (96 x 96: 110 KB, 0.9 M MACs), the best of three.

    It is so small that what it takes from the caches costs a network less than 10 us to fetch again.
    """

    def __init__(self) -> None:
        """Allocate the operands once."""
        rng = np.random.default_rng(0)
        self._left, self._right, self._product = (_aligned(rng) for _ in range(3))

    def measure(self) -> int:
        """Return the best of three, in ns."""
        clock = time.perf_counter_ns
        best = 0
        for _ in range(_TRIES):
            start = clock()
            np.matmul(self._left, self._right, out=self._product)
            took = clock() - start
            best = min(best, took) if best else took
        return best


def _aligned(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a matrix at the beginning of a page: where it lies changes the probe's time by a tenth."""
    count = _SIDE * _SIDE
    room = np.empty(count + _PAGE // 4, dtype=np.float32)
    start = -room.ctypes.data % _PAGE // 4
    matrix = room[start : start + count].reshape(_SIDE, _SIDE)
    matrix[:] = rng.standard_normal((_SIDE, _SIDE), dtype=np.float32)
    return matrix


def quiet_level(fastest_ns: Sequence[int]) -> int:
    """Return what a probe takes when nobody disturbs, in ns, from each burst's fastest; 0 without any.

    It is the 5th percentile of those that lie closest together: what neighbours slow down is scattered, and so are
    single fast readings of the clock, or a core that ran faster for some minutes (kernels-xeon: a few of onnxruntime's
    bursts saw 9.0 us, most 9.8 us or more; against the few, two thirds of all would count as disturbed). Where a
    neighbour was there most of the time, it is that of the smaller crowd that it did not slow (NEIGHBOUR_SLOWS_BY).
    """
    if not fastest_ns:
        return 0
    ordered = np.sort(np.asarray(fastest_ns))
    ends = np.searchsorted(ordered, ordered * (1.0 + QUIET_WITHIN), side="right")
    crowds = ends - np.arange(len(ordered))

    def level(start: int) -> int:
        return int(np.percentile(ordered[start : ends[start]], _LEVEL_PERCENTILE))

    largest = level(int(np.argmax(crowds)))
    fastest = level(int(np.argmax(crowds >= _CROWD * crowds.max())))
    return fastest if fastest <= largest * (1.0 - NEIGHBOUR_SLOWS_BY) else largest


class QuietLevels:
    """Keep what a probe takes on quiet cores, by runtime.

    Each engine leaves a core's caches in another state, and each runs in a process of its own: levels differ by up to
    3 % on quiet machines. One that lies further above that of all runtimes together saw no quiet (MNN in
    kernels-engines-spr: 17.4 us for 14.5), and takes theirs.
    """

    def __init__(self) -> None:
        """Know nothing yet."""
        self._fastest_ns: dict[str, list[int]] = {}
        self._levels_ns: dict[str, int] = {}

    def add(self, runtime: str, probes_ns: Sequence[int]) -> None:
        """Take in the probes of one burst; none says nothing."""
        if probes_ns:
            self._fastest_ns.setdefault(runtime, []).append(min(probes_ns))
            self._levels_ns.clear()

    def level(self, runtime: str) -> int:
        """Return the level in ns, that of all runtimes where this one has none; 0 where nobody looked."""
        if runtime not in self._levels_ns:
            own = quiet_level(self._fastest_ns.get(runtime, ()))
            shared = quiet_level([probe for each in self._fastest_ns.values() for probe in each])
            self._levels_ns[runtime] = own if own and is_quiet(own, shared) else shared
        return self._levels_ns[runtime]


class SharedCores:
    """Notice while measuring goes on that something else uses the cores."""

    def __init__(self) -> None:
        """Have seen nothing yet."""
        self._quiet: list[bool] = []

    def see(self, probes_ns: Sequence[int], level_ns: int) -> str:
        """Take in one burst's probes; return one line after each `_WATCHED` bursts of which half found no quiet."""
        if probes_ns:
            self._quiet.append(is_quiet(min(probes_ns), level_ns))
        if len(self._quiet) < _WATCHED:
            return ""
        disturbed = self._quiet.count(False)
        self._quiet.clear()
        if 2 * disturbed < _WATCHED:
            return ""
        return (
            f"something else uses the cores: {disturbed} of the last {_WATCHED} bursts found no quiet, and their "
            "latencies are too high; end it, or measure at another time"
        )


def is_quiet(probe_ns: int, level_ns: int) -> bool:
    """Return whether a probe was undisturbed."""
    return probe_ns <= level_ns * (1.0 + QUIET_WITHIN)


def undisturbed(
    bursts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], level_ns: int
) -> tuple[list[tuple[int, ...]], bool]:
    """Return of each burst the samples with quiet on both sides, and whether there are any.

    A burst is its samples and, for each, the slower of the two probes around it; without probes all its samples count.
    Where no burst has a quiet sample, all of all bursts are returned.
    """
    quiet = [
        tuple(sample for sample, probe in zip(samples, probes, strict=True) if is_quiet(probe, level_ns))
        if probes
        else samples
        for samples, probes in bursts
    ]
    return (quiet, True) if any(quiet) else ([samples for samples, _ in bursts], False)


def over_quiet(minima_ns: Sequence[float], quiet: bool) -> float:
    """Reduce each round's least sample to a model's latency: the median; the least where none was undisturbed.

    Each of those is too high, by what nobody knows.
    """
    return statistics.median(minima_ns) if quiet else min(minima_ns)


def wait_for_quiet(probe: Callable[[], int], patience_seconds: float, quiet_ns: int) -> None:
    """Return as soon as the cores are quiet, or when the patience is used up."""
    end = time.monotonic() + patience_seconds
    while not is_quiet(probe(), quiet_ns) and time.monotonic() < end:
        pass
