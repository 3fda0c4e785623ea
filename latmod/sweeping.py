"""Run a sweep: export every model once, then time all of them in rounds, every burst on disk before the next starts."""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path

import msgspec

from latmod.bursts import kernel_burst, now, settled_burst
from latmod.dataset import (
    Card,
    DatasetFolder,
    Logs,
    Measurement,
    PlannedModel,
    Protocol,
    nominal_reference,
    quiet_levels,
)
from latmod.errors import DatasetError, WorkerError
from latmod.machine import usable_cores
from latmod.plan import default_memory_bytes, find_spaces, plan_sweep
from latmod.quiet import SharedCores
from latmod.runtimes import find_runtime, installed_runtimes
from latmod.schedule import EXPORT, Pending, SweepResult, disturbed, dropped_pairs, pending, summarise
from latmod.table import write_table
from latmod.worker import Worker
from latmod.worker.messages import ExportRequest, Failure

REPEATS = 2
"""So often is measured again, by default, what never found quiet cores."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Tell how far a sweep is; sent between bursts only, never while something is timed."""

    phase: str
    done: int
    total: int
    seconds_left: float
    line: str = ""
    """One line on something that went wrong, empty otherwise."""


Notify = Callable[[Progress], None]


def sweep(
    spaces: Sequence[Path | str],
    out: Path,
    *,
    runtimes: Sequence[str] = (),
    protocol: Protocol | None = None,
    limit: int = 0,
    max_gmacs: float = 0.0,
    max_memory_bytes: int = 0,
    repeats: int = REPEATS,
    shapes: Sequence[str] = (),
    notify: Notify = lambda progress: None,
) -> SweepResult:
    """Measure the models of spaces (files, or names of bundled ones) into a data set folder, or go on with it.

    A space may be an `.onnx` file, or a folder of such; `shapes` say what their free dims are, as `--shape` does.

    Without `runtimes` all that are installed; without `protocol` the defaults of `latmod sweep`. Raises as `plan_sweep`
    and `run_sweep` do.
    """
    card = plan_sweep(
        find_spaces([str(space) for space in spaces]),
        runtimes or installed_runtimes(),
        protocol or Protocol(),
        name=out.name,
        limit=limit,
        max_gmacs=max_gmacs,
        max_memory_bytes=max_memory_bytes,
        shapes=shapes,
    )
    folder = DatasetFolder(out)
    memory_bytes = max_memory_bytes or default_memory_bytes(card.machine)
    result = run_sweep(folder, card, notify, repeats=repeats, memory_bytes=memory_bytes)
    if result.measured:
        write_table(folder)
    return result


def run_sweep(
    folder: DatasetFolder,
    card: Card,
    notify: Notify,
    *,
    repeats: int = REPEATS,
    memory_bytes: int = 0,
    timeout_seconds: float = 600.0,
) -> SweepResult:
    """Measure what `card` plans and `folder` does not hold yet.

    What no round found quiet cores for is measured up to `repeats` times again, in rounds of its own.

    Raises DatasetError where the folder is locked, unwritable, or holds a sweep with other settings; KeyboardInterrupt
    passes through with all workers ended and all finished bursts kept.
    """
    asked = tuple(card.runtimes)
    with folder.writing() as log:
        card = _settle_card(folder, card)
        _export_all(folder, card, log, notify, timeout_seconds)
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    Worker(
                        name, threads=card.protocol.threads, memory_bytes=memory_bytes, timeout_seconds=timeout_seconds
                    )
                )
                for name in asked
            }
            card = _measure_all(folder, card, log, workers, notify, repeats)
        measurements = folder.read_measurements()
        if card.nominal is None and any(m.status == "ok" for m in measurements):
            card = msgspec.structs.replace(card, nominal=nominal_reference(measurements))
            folder.write_card(card)
    return summarise(card, measurements)


def _settle_card(folder: DatasetFolder, card: Card) -> Card:
    """Return the folder's card where it fits the new plan, or write the new one; more may be asked for, or a part.

    More rounds, more models beside all that are there, or other runtimes: what is measured already counts. Of runtimes
    that are not asked for what is still to be done is left.
    """
    if not folder.exists:
        folder.write_card(card)
        return card
    found = folder.read_card()
    if found.protocol.rounds < card.protocol.rounds:
        longer = msgspec.structs.replace(found.protocol, rounds=card.protocol.rounds)
        found = msgspec.structs.replace(found, protocol=longer, nominal=None)
    if len(found.models) < len(card.models) and all(model in card.models for model in found.models):
        found = msgspec.structs.replace(found, models=card.models, spaces=card.spaces, nominal=None)
    if not {*card.runtimes} <= {*found.runtimes}:
        found = msgspec.structs.replace(
            found,
            runtimes=card.runtimes | found.runtimes,
            tolerances=card.tolerances | found.tolerances,
            nominal=None,
        )
    card = msgspec.structs.replace(card, runtimes=found.runtimes | card.runtimes)
    for what in ("protocol", "runtimes", "machine", "models"):
        if getattr(found, what) != getattr(card, what):
            raise DatasetError(
                f"{folder.path}: holds a sweep with another {what} ({_difference(found, card, what)}); "
                "start it with the same command to resume it, or choose another --out"
            )
    folder.write_card(found)
    return found


def _difference(found: Card, card: Card, what: str) -> str:
    old, new = (msgspec.to_builtins(getattr(one, what)) for one in (found, card))
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return "; ".join(f"{key}: {old.get(key)} there, {new.get(key)} now" for key in keys)[:300]
    changed = [one["model"] for one in (*old, *new) if one not in old or one not in new]
    return f"{len(old)} there, {len(new)} now; {changed[0]} is not the same in both"


def _export_all(folder: DatasetFolder, card: Card, log: Logs, notify: Notify, timeout_seconds: float) -> None:
    """Build and export the models that have no graph yet, on all cores: nothing is being timed."""
    dropped = dropped_pairs(folder.read_measurements())
    todo = [m for m in card.planned if not folder.graph_path(m.model).exists() and (m.model, EXPORT) not in dropped]
    if not todo:
        return
    start = time.monotonic()
    count = min(len(usable_cores()), len(todo))
    with ExitStack() as stack:
        # Left in reverse order: on an interrupt the workers are ended first, so that the pool has nothing to wait for.
        pool = stack.enter_context(ThreadPoolExecutor(count))
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(count):
            idle.put(stack.enter_context(Worker(timeout_seconds=timeout_seconds, bound=False)))
        try:
            for done, future in enumerate(as_completed([pool.submit(_export, folder, m, idle) for m in todo]), start=1):
                measurement = future.result()
                log.append(measurement)
                line = f"{measurement.model}: export failed: {measurement.reason}" if measurement.reason else ""
                left = (time.monotonic() - start) / done * (len(todo) - done)
                notify(Progress(phase="export", done=done, total=len(todo), seconds_left=left, line=line))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _export(folder: DatasetFolder, model: PlannedModel, idle: "queue.SimpleQueue[Worker]") -> Measurement:
    worker = idle.get()
    start = time.perf_counter_ns()
    path = folder.graph_path(model.model)
    try:
        reply = worker.ask(ExportRequest(family=model.family, spec=model.spec, path=str(path)))
        reason = reply.reason if isinstance(reply, Failure) else ""
    except WorkerError as error:
        reason = str(error)
    finally:
        idle.put(worker)
    return Measurement(
        model=model.model,
        runtime=EXPORT,
        round=0,
        status="failed" if reason else "exported",
        reason=reason,
        started=now(),
        wall_ns=time.perf_counter_ns() - start,
    )


def _measure_all(
    folder: DatasetFolder, card: Card, log: Logs, workers: dict[str, Worker], notify: Notify, repeats: int
) -> Card:
    """Make the pending bursts of the workers' runtimes; return the card with each engine's settings in it."""
    run = _Run(folder, card, log, workers, notify)
    kernels = folder.read_kernels()
    todo = [one for one in pending(card, run.measurements, kernels, run.profiling) if one.runtime in workers]
    run.measure(todo, run.total - len(todo), run.total)
    for number in range(repeats):
        todo = [one for one in disturbed(card, run.measurements, number) if one.runtime in workers]
        run.measure(todo, 0, len(todo), f"never quiet, again {number + 1}/{repeats}")
    return run.card


class _Run:
    """Make bursts one after the other, each on disk before the next, and know what the cores were like so far."""

    def __init__(
        self, folder: DatasetFolder, card: Card, log: Logs, workers: dict[str, Worker], notify: Notify
    ) -> None:
        """Go on from what the folder holds."""
        self.card = card
        self.measurements = folder.read_measurements()
        self.profiling = [name for name in workers if find_runtime(name).profiles]
        self._folder, self._log, self._workers, self._notify = folder, log, workers, notify
        self._levels = quiet_levels(self.measurements)
        self._dropped: set[tuple[str, str]] = set()
        self._shared = SharedCores()

    @property
    def total(self) -> int:
        """Return how many bursts the rounds have in the workers' runtimes."""
        protocol = self.card.protocol
        each = len(self._workers) * protocol.rounds + len(self.profiling) * protocol.kernel_rounds
        return len(self.card.planned) * each

    def measure(self, todo: Sequence[Pending], done: int, total: int, phase: str = "") -> None:
        """Make these bursts; `done` of `total` are there already."""
        start = time.monotonic()
        for position, one in enumerate(todo, start=1):
            if (one.model.model, one.runtime) in self._dropped:
                continue
            line = self._kernels(one) if one.kernels else self._latency(one)
            left = (time.monotonic() - start) / position * (len(todo) - position)
            self._notify(
                Progress(
                    phase=phase or f"round {one.round + 1}/{self.card.protocol.rounds}",
                    done=done + position,
                    total=total,
                    seconds_left=left,
                    line=line,
                )
            )

    def _kernels(self, one: Pending) -> str:
        told = kernel_burst(self._folder, self.card, one, self._workers[one.runtime], self._levels.level(one.runtime))
        self._log.append(told)
        return f"{one.model.model} in {one.runtime}: no per-kernel times: {told.reason}" if told.reason else ""

    def _latency(self, one: Pending) -> str:
        level_ns = self._levels.level(one.runtime)
        line = ""
        for measurement, settings in settled_burst(self._folder, self.card, one, self._workers[one.runtime], level_ns):
            self._log.append(measurement)
            self.measurements.append(measurement)
            # The nominal state is a median over all bursts: with one more it is another.
            self.card = msgspec.structs.replace(self.card, nominal=None)
            self._levels.add(one.runtime, measurement.probes_ns)
            if settings and one.runtime not in self.card.settings:
                self.card = msgspec.structs.replace(self.card, settings={**self.card.settings, one.runtime: settings})
                self._folder.write_card(self.card)
            if measurement.status in ("failed", "skipped"):
                self._dropped = dropped_pairs(self.measurements)
                line = f"{one.model.model} in {one.runtime}: {measurement.status}: {measurement.reason}"
            line = line or self._shared.see(measurement.probes_ns, self._levels.level(one.runtime))
        return line
