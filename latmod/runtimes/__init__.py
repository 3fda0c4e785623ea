"""The runtime contract, and the runtimes that are there.

A runtime is one file in this folder, or in a package of somebody else's that names it in the entry point group
`latmod.runtimes`. Nothing outside this folder knows a runtime's name.
"""

import importlib.metadata
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np

from latmod.dataset import KernelTime
from latmod.errors import LatmodError, RuntimeMissingError

GROUP = "latmod.runtimes"

Inputs = dict[str, np.ndarray]
"""The tensors of one inference, by input name."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Name a model to open: its weight-free graph, the spec it was built from if there is one, and its weight seed."""

    path: str
    family: str = ""
    spec: dict[str, object] = {}
    weight_seed: int = 0


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Say how a runtime is to run; `profile` opens a session that tells per-kernel times, not to be timed itself."""

    threads: int = 1
    profile: bool = False


def profiled_runs(seconds: float, least: int = 4, most: int = 60) -> Iterator[int]:
    """Count the runs to profile, from 0: for about so many seconds, within bounds."""
    end = time.monotonic() + seconds
    for run in range(most):
        if run >= least and time.monotonic() >= end:
            return
        yield run


def fastest_third(runs: Sequence[Sequence[float]]) -> list[float]:
    """Return for each kernel, [kernels], the mean over the fastest third of the runs, [runs][kernels]."""
    ranked = sorted(runs, key=sum)
    kept = ranked[: max(1, len(ranked) // 3)]
    return [sum(column) / len(kept) for column in zip(*kept, strict=True)]


class Session(Protocol):
    """Hold one opened model, its weights and inputs in place."""

    settings: dict[str, str | int | bool]
    """What the engine says that it uses."""

    def feed(self, index: int) -> None:
        """Put input `index` (modulo their number) in place; never timed."""

    def infer(self) -> None:
        """Run one blocking inference on the input in place: the only thing that is timed."""

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last `infer`, in graph order; never timed."""

    def close(self) -> None:
        """Free the model's memory."""


@runtime_checkable
class ProfilingSession(Protocol):
    """Hold a session that was opened to tell per-kernel times."""

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for about so many seconds and return what each kernel took."""


class Runtime(Protocol):
    """Open models in one inference engine."""

    name: str
    extra: str
    """The extra of latmod that installs the engine, empty where the core has it."""
    rules: str
    """The runtime whose kernel rules (`latmod.kernels`) say what this one makes of a graph, its own name or another."""
    source: str
    """How it gets its model, in a few words for people."""
    tolerance: float
    """Largest difference of its outputs from another runtime's, relative to the largest output, that rounding makes."""
    profiles: bool
    """Whether sessions that are opened with `Settings.profile` can tell per-kernel times (`ProfilingSession`)."""
    simulated_clock: Callable[[], int] | None
    """A clock in ns that `infer` moves, for an engine that is simulated; None for a real one."""

    def version(self) -> str:
        """Return the engine's version, without importing it; raise RuntimeMissingError where it is not installed."""

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> Session:
        """Load `model`; raise UnsupportedModelError, naming the operator, where the engine cannot run it."""


@runtime_checkable
class PreloadingRuntime(Protocol):
    """Be a runtime whose models are each opened in a process of their own, forked where its engine is imported already.

    For engines that ask for memory while they infer. What the models before left of the heap decides where in memory
    values lie: torch, after some dozen models in one process, takes 3 % more (Zen 4), by luck more or less. A network
    that is deployed has a process to itself.
    """

    def preload(self) -> None:
        """Import all that opening a model needs; start no thread."""


def find_runtimes() -> dict[str, Runtime]:
    """Return every runtime that is declared, by name, whether its engine is installed or not."""
    found: dict[str, Runtime] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found[entry.name] = entry.load()()
        except (ImportError, AttributeError) as error:
            raise LatmodError(f"runtime {entry.name}: {entry.value} does not load ({error}); reinstall it") from error
    return found


def find_runtime(name: str) -> Runtime:
    """Return one runtime by name."""
    entries = importlib.metadata.entry_points(group=GROUP, name=name)
    for entry in entries:
        runtime: Runtime = entry.load()()
        return runtime
    known = sorted(point.name for point in importlib.metadata.entry_points(group=GROUP))
    raise LatmodError(f"unknown runtime {name!r}; there are: {', '.join(known)} (see `latmod runtimes`)")


def installed_runtimes() -> tuple[str, ...]:
    """Return the names of the runtimes whose engine is installed."""
    names = []
    for name, runtime in find_runtimes().items():
        try:
            runtime.version()
        except RuntimeMissingError:
            continue
        names.append(name)
    return tuple(names)


def kernel_rules(name: str) -> str:
    """Return whose kernel rules hold for a runtime; a runtime that is not declared here has none but its own name."""
    for entry in importlib.metadata.entry_points(group=GROUP, name=name):
        rules: str = entry.load()().rules
        return rules
    return name


def installed_version(package: str, extra: str) -> str:
    """Return an installed package's version without importing it; raise RuntimeMissingError naming the extra."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        what = f"pip install 'latmod[{extra}]'" if extra else f"pip install {package}"
        raise RuntimeMissingError(f"{package} is not installed: {what}") from None
