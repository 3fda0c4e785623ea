"""Look at the machine: what it is, how noisy it is right now, and what to do about it."""

import os
import statistics
import time

import msgspec

from latmod.machine import Disturbance, Machine, read_machine, read_versions, usable_cores
from latmod.timing import Reference, median_reference
from latmod.worker import reference_passes


class Checkup(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the findings of `latmod doctor`."""

    machine: Machine
    versions: dict[str, str]
    usable_cores: tuple[int, ...]
    reference: Reference
    """Median of each part over the noise test."""
    spread: dict[str, float]
    """Half the interquartile range over the median, by part."""
    empty_infer_ns: int
    """What the clock and the call cost when `infer` does nothing."""
    around: Disturbance
    advice: tuple[str, ...]


def check_up(seconds: float = 10.0) -> Checkup:
    """Run the reference load for so many seconds, as a sweep does around its bursts, and judge what it shows."""
    found = reference_passes(seconds)
    spread = {
        name.removesuffix("_ns"): _relative_spread([float(getattr(one, name)) for one in found.passes])
        for name in ("conv_ns", "copy_ns", "dispatch_ns")
    }
    return Checkup(
        machine=read_machine(),
        versions=read_versions(),
        usable_cores=usable_cores(),
        reference=median_reference(found.passes),
        spread=spread,
        empty_infer_ns=_empty_infer_ns(),
        around=found.disturbance,
        advice=tuple(_advice(spread, found.disturbance)),
    )


def _relative_spread(values: list[float]) -> float:
    low, middle, high = statistics.quantiles(values, n=4)
    return round((high - low) / 2 / middle, 5)


def _empty_infer_ns() -> int:
    def infer() -> None:
        return

    clock = time.perf_counter_ns
    costs = []
    for _ in range(1000):
        start = clock()
        infer()
        costs.append(clock() - start)
    return round(statistics.median(costs))


def _advice(spread: dict[str, float], around: Disturbance) -> list[str]:
    advice = []
    if spread["conv"] > 0.03:
        advice.append(f"computing varies by {spread['conv']:.1%}: something else uses the cores, or the clock changes")
    if spread["copy"] > 0.03:
        advice.append(f"memory varies by {spread['copy']:.1%}: another program streams memory; latencies will drift")
    if around.steal_ns > 0.01 * around.wall_ns:
        advice.append(f"the hypervisor took {around.steal_ns / 1e6:.0f} ms away: measure at another hour or machine")
    if around.throttled_ns:
        advice.append("the control group throttles this process: raise its processor quota")
    if around.load1 > 1.5:
        advice.append(f"load average {around.load1}: stop other programs before a sweep")
    if (os.cpu_count() or 1) > 1 and len(usable_cores()) == 1:
        advice.append("only one core may be used: the parent and the worker share it")
    return advice or ["quiet enough: measure now"]


def checkup_rows(found: Checkup) -> list[dict[str, str | int | float | bool | None]]:
    """Return a check-up as flat rows: what was looked at, and what it is."""
    rows: list[dict[str, str | int | float | bool | None]] = [
        {"what": "machine", "value": found.machine.label},
        {"what": "machine id", "value": found.machine.id},
        {"what": "memory", "value": f"{found.machine.memory_gib} GiB"},
        {"what": "hypervisor", "value": found.machine.hypervisor},
        {"what": "usable cores", "value": ", ".join(map(str, found.usable_cores))},
        {"what": "versions", "value": ", ".join(f"{name} {version}" for name, version in found.versions.items())},
    ]
    for name, spread in found.spread.items():
        typical = getattr(found.reference, f"{name}_ns") / 1e6
        rows.append({"what": f"reference load: {name}", "value": f"{typical:.3f} ms, varies by {spread:.1%}"})
    rows.append({"what": "empty infer", "value": f"{found.empty_infer_ns} ns"})
    rows.append({"what": "stolen by the hypervisor", "value": f"{found.around.steal_ns / 1e6:.0f} ms"})
    rows.append({"what": "load average", "value": f"{found.around.load1}"})
    rows.extend({"what": "advice", "value": line} for line in found.advice)
    return rows
