"""Tell what machine this is, and what its operating system did to a burst.

Every reader returns "nothing" (`None`, 0 or an empty tuple) where the operating system does not tell: a missing counter
never stops a measurement. No host name, user name or path is read.
"""

import hashlib
import importlib.metadata
import os
import platform
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

_ISA_FLAGS = (
    "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""CPU flags that change which kernels an engine picks (names as in /proc/cpuinfo)."""

_VERSIONED = ("numpy", "onnx", "onnxruntime", "torch", "torchvision", "onnx2torch")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Identify hardware, so that numbers of two machines are never mixed silently."""

    cpu: str
    cpu_family: str
    isa: tuple[str, ...]
    physical_cores: int
    logical_cores: int
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int
    memory_gib: int
    os: str
    architecture: str
    hypervisor: str
    cpu_quota: float

    @property
    def id(self) -> str:
        """Return 12 hexadecimal digits that change with anything in this record."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Return the machine in one phrase for a person."""
        vector = vector_unit(self.isa) or "no vector unit"
        return f"{self.cpu} ({self.cpu_family}, {vector}, {self.logical_cores} cores, {self.l3_bytes >> 20} MB L3)"


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what the operating system has counted up to one moment (differences are what matters)."""

    wall_ns: int
    cpu_ns: int
    steal_ns: int
    throttled_ns: int
    involuntary_switches: int
    page_faults: int


class Disturbance(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what happened to a process between two moments."""

    wall_ns: int
    cpu_ns: int
    steal_ns: int
    throttled_ns: int
    involuntary_switches: int
    page_faults: int
    load1: float
    mhz: float


def read_machine() -> Machine:
    """Return the identity of the machine this process runs on."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    logical = os.cpu_count() or 1
    family = "/".join(info[key] for key in ("cpu family", "model", "stepping") if key in info)
    return Machine(
        cpu=info.get("model name") or platform.processor() or "unknown",
        cpu_family=f"family/model/stepping {family}" if family else platform.machine(),
        isa=tuple(flag for flag in _ISA_FLAGS if flag in flags),
        physical_cores=_physical_cores() or logical,
        logical_cores=logical,
        l1d_bytes=_cache_bytes(1, "Data"),
        l2_bytes=_cache_bytes(2, "Unified"),
        l3_bytes=_cache_bytes(3, "Unified"),
        memory_gib=round(_memory_bytes() / 2**30),
        os=platform.system(),
        architecture=platform.machine(),
        hypervisor=_read("/sys/hypervisor/type") or ("yes" if "hypervisor" in flags else "none"),
        cpu_quota=_cpu_quota(),
    )


def read_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what is measured; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_counters() -> Counters:
    """Return this process's counters and the machine's steal and throttling, now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return Counters(
        wall_ns=time.perf_counter_ns(),
        cpu_ns=time.process_time_ns(),
        steal_ns=_steal_ns(),
        throttled_ns=_throttled_ns(),
        involuntary_switches=usage.ru_nivcsw,
        page_faults=usage.ru_minflt + usage.ru_majflt,
    )


def disturbance(before: Counters, after: Counters) -> Disturbance:
    """Return what happened between two readings, with the load average and clock of the later moment."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return Disturbance(
        wall_ns=after.wall_ns - before.wall_ns,
        cpu_ns=after.cpu_ns - before.cpu_ns,
        steal_ns=after.steal_ns - before.steal_ns,
        throttled_ns=after.throttled_ns - before.throttled_ns,
        involuntary_switches=after.involuntary_switches - before.involuntary_switches,
        page_faults=after.page_faults - before.page_faults,
        load1=round(load, 2),
        mhz=_mhz(),
    )


def vector_unit(isa: Sequence[str]) -> str:
    """Return the widest vector unit of an instruction set by the name of its flag, '' where there is none."""
    return next((flag for flag in ("avx512f", "avx2", "avx", "asimd") if flag in isa), "")


def usable_cores() -> tuple[int, ...]:
    """Return the cores this process may run on, in ascending order."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _cpuinfo() -> dict[str, str]:
    info: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            break
        info[key.strip()] = value.strip()
    return info


def _physical_cores() -> int:
    siblings = {
        _read(str(path)) for path in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    }
    return len(siblings - {""})


def _cache_bytes(level: int, kind: str) -> int:
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        if _read(f"{index}/level") == str(level) and _read(f"{index}/type") == kind:
            size = _read(f"{index}/size")
            return int(size[:-1]) * 1024 if size.endswith("K") else int(size or 0)
    return 0


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _cpu_quota() -> float:
    """Return the cores that the control group grants, 0 for no limit: v2's `cpu.max`, or v1's quota and period."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota in ("", "max", "-1") or not period:
        return 0.0
    return int(quota) / int(period)


def _steal_ns() -> int:
    """Return the time that the hypervisor gave to others, over all cores (`man 5 proc`: the eighth figure of `cpu`)."""
    fields = _read("/proc/stat").partition("\n")[0].split()
    return int(fields[8]) * (10**9 // os.sysconf("SC_CLK_TCK")) if len(fields) > 8 else 0


def _throttled_ns() -> int:
    for line in (_read("/sys/fs/cgroup/cpu.stat") or _read("/sys/fs/cgroup/cpu/cpu.stat")).splitlines():
        name, _, value = line.partition(" ")
        if name == "throttled_usec":
            return int(value) * 1000
        if name == "throttled_time":
            return int(value)
    return 0


def _mhz() -> float:
    return float(_cpuinfo().get("cpu MHz", 0.0))
