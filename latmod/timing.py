"""Time one blocking call honestly: warm up until steady, sample within a budget, with a reference load around it."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from enum import StrEnum

import msgspec
import numpy as np

from latmod.machine import Disturbance, disturbance, read_counters
from latmod.quiet import Probe, is_quiet

STEADY_WITHIN = 0.02
"""Warm-up ends when a rolling median changes by less than this (design section 5, point 4)."""
_WINDOW = 3
_MAX_WARMUP = 30
"""Cap of Paddle#27739: oneDNN's primitive cache needed close to 20 runs."""
_WARMUP_SHARE = 0.3


class Statistic(StrEnum):
    """Name a way to make one latency out of a model's rounds."""

    MEDIAN_OF_MINIMA = "median-of-minima"
    MEAN = "mean"
    P50 = "p50"
    P90 = "p90"
    MIN = "min"


class BurstPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Bound one burst: a budget in seconds, and samples between a lower and an upper bound."""

    seconds: float
    min_samples: int = 2
    max_samples: int = 100
    max_latency_seconds: float = 0.0
    """Give up after the first run where it takes longer than this (0: never)."""
    patience_seconds: float = 0.0
    """How long a burst may look for quiet before it samples the cores as they are (0: nobody looks)."""
    quiet_ns: int = 0
    """What a probe takes on quiet cores, as far as known."""


class Reference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold the times of the three parts of the reference load, and of a probe (see latmod.quiet), in ns."""

    conv_ns: int
    copy_ns: int
    dispatch_ns: int
    probe_ns: int = 0
    """0 in data of before there were probes."""


class Burst(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the raw samples of one model in one go, warm-up apart, in ns, and what went on around them."""

    samples_ns: tuple[int, ...]
    warmup_ns: tuple[int, ...]
    before: Reference
    after: Reference
    disturbance: Disturbance
    probes_ns: tuple[int, ...] = ()
    """The slower of the two probes around each sample; empty where nobody looked."""


def run_burst(
    infer: Callable[[], None],
    feed: Callable[[int], None],
    plan: BurstPlan,
    reference: Callable[[], Reference],
    after_first: Callable[[], None],
    clock: Callable[[], int] = time.perf_counter_ns,
    probe: Callable[[], int] | None = None,
) -> Burst:
    """Warm up, run the reference load, time `infer` in one go, run the reference load again.

    Where the plan has patience, samples start only while `probe` finds the cores quiet, and the burst goes on until one
    sample has quiet on both sides; when the patience is used up, it samples as it is.

    `feed(i)` puts the i-th input in place before each call and is not timed; `after_first` is called once the first
    run, which is on input 0, has its outputs. The first reference stands after the
    warm-up, since a fresh process image and fresh pages make copies 5 % slower for a moment (measured).
    """

    def sample(index: int) -> int:
        feed(index)
        start = clock()
        infer()
        return clock() - start

    warmup: list[int] = []
    samples: list[int] = []
    probes: list[int] = []
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        while not _steady(warmup, plan.seconds):
            warmup.append(sample(len(warmup)))
            if len(warmup) == 1:
                after_first()
            if plan.max_latency_seconds and warmup[0] > plan.max_latency_seconds * 1e9:
                break
        before = reference()
        counters = read_counters()
        if not plan.max_latency_seconds or warmup[0] <= plan.max_latency_seconds * 1e9:
            look = probe if probe is not None and plan.patience_seconds else None
            samples, probes = _sample(sample, look, plan, len(warmup), clock)
        around = disturbance(counters, read_counters())
        after = reference()
    finally:
        if was_enabled:
            gc.enable()
    return Burst(
        samples_ns=tuple(samples),
        warmup_ns=tuple(warmup),
        before=before,
        after=after,
        disturbance=around,
        probes_ns=tuple(probes),
    )


def _sample(
    sample: Callable[[int], int],
    probe: Callable[[], int] | None,
    plan: BurstPlan,
    index: int,
    clock: Callable[[], int],
) -> tuple[list[int], list[int]]:
    """Return samples until the plan is fulfilled, and the slower of the probes before and after each."""
    look = probe or (lambda: 0)
    samples: list[int] = []
    probes: list[int] = []
    level = plan.quiet_ns or look()
    end = clock() + int(plan.patience_seconds * 1e9)
    spent, found_quiet = 0, False
    while True:
        late = clock() >= end
        enough = spent >= plan.seconds * 1e9 or len(samples) >= plan.max_samples
        if len(samples) >= plan.min_samples and enough and (found_quiet or late):
            return samples, probes if probe else []
        before = look()
        level = min(level, before)
        if is_quiet(before, level) or late:
            samples.append(sample(index + len(samples)))
            probes.append(max(before, look()))
            spent += samples[-1]
            found_quiet = found_quiet or is_quiet(probes[-1], level)


def burst_value(samples_ns: tuple[int, ...], statistic: Statistic) -> float:
    """Reduce one burst's samples (ns) to the figure that `statistic` takes from each round."""
    match statistic:
        case Statistic.MEDIAN_OF_MINIMA | Statistic.MIN:
            return float(min(samples_ns))
        case Statistic.MEAN:
            return statistics.fmean(samples_ns)
        case Statistic.P50:
            return statistics.median(samples_ns)
        case Statistic.P90:
            return float(np.percentile(samples_ns, 90))


def over_rounds(values: tuple[float, ...], statistic: Statistic) -> float:
    """Reduce one figure per round to a model's latency: the median, but for `min` and `mean` as they say."""
    match statistic:
        case Statistic.MIN:
            return min(values)
        case Statistic.MEAN:
            return statistics.fmean(values)
        case _:
            return statistics.median(values)


class ReferenceLoad:
    """Run three fixed loads of a few ms each, and a probe, to tell how fast the machine is at this moment.

    - conv: a 3x3 convolution of 256 channels at 14 x 14 as the matrix product that engines make of it (116 M MACs).
    - copy: 64 MB read and 64 MB written, more than the last-level cache holds.
    - dispatch: 2,000 additions of 16 numbers, where the interpreter and the call are all there is.

    numpy runs them, so they are the same in every runtime's process. The best of four passes is kept: where neighbours
    stream memory, half as many bursts then seem disturbed as with two (12 % for 22 %, measured).
    """

    def __init__(self) -> None:
        """Allocate the operands once (about 130 MB)."""
        rng = np.random.default_rng(0)
        self._weight = rng.standard_normal((256, 2304), dtype=np.float32)
        self._columns = rng.standard_normal((2304, 196), dtype=np.float32)
        self._product = np.empty((256, 196), dtype=np.float32)
        self._source = np.ones(2**24, dtype=np.float32)
        self._target = np.ones(2**24, dtype=np.float32)
        self._small = np.ones(16, dtype=np.float32)
        self._sum = np.empty(16, dtype=np.float32)
        self._probe = Probe()

    def measure(self, passes: int = 4) -> Reference:
        """Return the best of `passes` for each part."""
        best = [min(times) for times in zip(*(self._one_pass() for _ in range(passes)), strict=True)]
        return Reference(conv_ns=best[0], copy_ns=best[1], dispatch_ns=best[2], probe_ns=best[3])

    def _one_pass(self) -> tuple[int, int, int, int]:
        clock = time.perf_counter_ns
        start = clock()
        np.matmul(self._weight, self._columns, out=self._product)
        after_conv = clock()
        np.copyto(self._target, self._source)
        after_copy = clock()
        for _ in range(2000):
            np.add(self._small, self._small, out=self._sum)
        after_dispatch = clock()
        return after_conv - start, after_copy - after_conv, after_dispatch - after_copy, self._probe.measure()


def median_reference(references: Sequence[Reference]) -> Reference:
    """Return the median of each part."""
    return Reference(
        conv_ns=round(statistics.median(one.conv_ns for one in references)),
        copy_ns=round(statistics.median(one.copy_ns for one in references)),
        dispatch_ns=round(statistics.median(one.dispatch_ns for one in references)),
        probe_ns=round(statistics.median(one.probe_ns for one in references)),
    )


def disagreement(before: Reference, after: Reference) -> float:
    """Return by how much two references differ: the larger relative change of conv, and of copy at half its weight.

    On a quiet machine copy alone scatters by 2 % (a quarter of all changes lie above 4 %, one in six above 5 %), and
    bursts repeated for that came out the same (median difference 0.03 % over 94 of them). So copy counts half.
    Dispatch, a few thousand calls of an interpreter, is not asked.
    """
    return max(abs(after.conv_ns / before.conv_ns - 1.0), abs(after.copy_ns / before.copy_ns - 1.0) / 2.0)


def _steady(warmup_ns: list[int], burst_seconds: float) -> bool:
    if not warmup_ns:
        return False
    if len(warmup_ns) >= _MAX_WARMUP or sum(warmup_ns) >= _WARMUP_SHARE * burst_seconds * 1e9:
        return True
    if len(warmup_ns) < 2 * _WINDOW:
        return False
    newest = statistics.median(warmup_ns[-_WINDOW:])
    before = statistics.median(warmup_ns[-2 * _WINDOW : -_WINDOW])
    return abs(newest / before - 1.0) <= STEADY_WITHIN
