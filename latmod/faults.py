"""Take out of latencies what mapping memory anew costs: page faults that the history of a process decides.

glibc's malloc keeps freed blocks for the next time, but maps those larger than 32 MiB anew in every call, unless
earlier work left a hole that is large enough (mallopt(3), M_MMAP_THRESHOLD, which grows up to that). torch reorders the
weights of a convolution in each call: a network with wide ones pays for every page of them, or does not. One took
850 ms in four rounds, with 219,000 faults in each run, and 539 ms in the fifth, with 77 (basic-5.8.1.6-w188 in
resnet-varied-width). Where both were seen of a network, a fault took 1.7 to 2.2 us on a Zen 4 (ten networks), 1.4
and 1.8 us on a Zen 5, 0.5 and 1.0 us on a Xeon. Latencies are stated for a process that keeps its memory: since workers
map no block by itself (latmod.worker), few sweeps have such faults.
"""

from collections.abc import Iterable, Mapping

import msgspec
import numpy as np

from latmod.dataset import Measurement, final_bursts

_GUESS_NS = 1000.0
_LEAST_SHARE = 0.1
"""Networks whose rounds differ by so many faults, at a guess of 1 us each, that these are a tenth of the latency: with
fewer, what the machine did between rounds weighs more."""
_MOST_SHARE = 0.5
"""No more than half of a sample is taken off."""


def fault_ns(runtime: str, measurements: Iterable[Measurement]) -> float:
    """Return what a page fault takes in one runtime, in ns: how rounds of the same network differ by their faults.

    0 where no network's rounds differ enough. Least squares over deviations within networks, relative to the fastest
    round.
    """
    gained = spread = 0.0
    for (_, name), rounds in final_bursts(measurements).items():
        if name != runtime:
            continue
        faults = np.array([faults_per_run(burst) for burst in rounds.values()])
        latency_ns = np.array([float(min(burst.samples_ns)) for burst in rounds.values()])
        if np.ptp(faults) * _GUESS_NS < _LEAST_SHARE * latency_ns.min():
            continue
        x = (faults - faults.mean()) / latency_ns.min()
        y = (latency_ns - latency_ns.mean()) / latency_ns.min()
        gained += float(x @ y)
        spread += float(x @ x)
    return max(0.0, gained / spread) if spread else 0.0


def without_faults(measurements: Iterable[Measurement], cost_ns: Mapping[str, float]) -> list[Measurement]:
    """Return the bursts, what their page faults took (ns each, by runtime) off their samples."""
    return [_without(burst, cost_ns.get(burst.runtime, 0.0)) for burst in measurements]


def faults_per_run(burst: Measurement) -> float:
    """Return the page faults of a burst by sample; 0 where nobody counted."""
    counted = burst.disturbance.page_faults if burst.disturbance else 0
    return counted / max(1, len(burst.samples_ns))


def _without(burst: Measurement, cost_ns: float) -> Measurement:
    taken_ns = faults_per_run(burst) * cost_ns
    if not taken_ns:
        return burst
    samples = tuple(round(ns - min(taken_ns, _MOST_SHARE * ns)) for ns in burst.samples_ns)
    return msgspec.structs.replace(burst, samples_ns=samples)
