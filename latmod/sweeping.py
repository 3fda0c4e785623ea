"""Run a sweep: export every model once, then time all of them in rounds, every burst on disk before the next starts."""

import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from latmod.dataset import (
    Card,
    DatasetFolder,
    KernelMeasurement,
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
from latmod.runtimes import Model, Settings, find_runtime, installed_runtimes
from latmod.schedule import EXPORT, Pending, SweepResult, dropped_pairs, pending, summarise
from latmod.table import write_table
from latmod.timing import BurstPlan, disagreement
from latmod.worker import Worker
from latmod.worker.messages import BurstReply, BurstRequest, ExportRequest, Failure, KernelReply, KernelRequest

MAX_DISAGREEMENT = 0.10
"""A burst whose references before and after differ by more is repeated.

The design says 5 % (section 5, point 5). On a machine whose neighbours stream memory that repeats a quarter of all
bursts, and the repeats are no better than what they replace: 50 of them differed from it by 0.4 % (onnxruntime) and
1.8 % (torch), median, up as often as down. What a single burst misses, the median over rounds catches.
"""
MAX_REPEATS = 2


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
    notify: Notify = lambda progress: None,
) -> SweepResult:
    """Measure the models of spaces (files, or names of bundled ones) into a data set folder, or go on with it.

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
    )
    folder = DatasetFolder(out)
    result = run_sweep(folder, card, notify, memory_bytes=max_memory_bytes or default_memory_bytes(card.machine))
    if result.measured:
        write_table(folder)
    return result


def run_sweep(
    folder: DatasetFolder, card: Card, notify: Notify, *, memory_bytes: int = 0, timeout_seconds: float = 600.0
) -> SweepResult:
    """Measure what `card` plans and `folder` does not hold yet.

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
            card = _measure_all(folder, card, log, workers, notify)
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
        found = msgspec.structs.replace(found, models=card.models, nominal=None)
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
        started=_now(),
        wall_ns=time.perf_counter_ns() - start,
    )


def _measure_all(folder: DatasetFolder, card: Card, log: Logs, workers: dict[str, Worker], notify: Notify) -> Card:
    """Make the pending bursts of the workers' runtimes; return the card with each engine's settings in it."""
    measurements = folder.read_measurements()
    profiling = [name for name in workers if find_runtime(name).profiles]
    each = len(workers) * card.protocol.rounds + len(profiling) * card.protocol.kernel_rounds
    total = len(card.planned) * each
    start = time.monotonic()
    todo = [one for one in pending(card, measurements, folder.read_kernels(), profiling) if one.runtime in workers]
    levels = quiet_levels(measurements)
    dropped: set[tuple[str, str]] = set()
    for position, one in enumerate(todo, start=1):
        if (one.model.model, one.runtime) in dropped:
            continue
        line = ""
        if one.kernels:
            told = _kernel_burst(folder, card, one, workers[one.runtime], levels.level(one.runtime))
            log.append(told)
            line = f"{one.model.model} in {one.runtime}: no per-kernel times: {told.reason}" if told.reason else ""
        else:
            bursts = _settled_burst(folder, card, one, workers[one.runtime], levels.level(one.runtime))
            for measurement, settings in bursts:
                log.append(measurement)
                measurements.append(measurement)
                levels.add(one.runtime, measurement.probes_ns)
                if settings and one.runtime not in card.settings:
                    card = msgspec.structs.replace(card, settings={**card.settings, one.runtime: settings})
                    folder.write_card(card)
                if measurement.status in ("failed", "skipped"):
                    dropped = dropped_pairs(measurements)
                    line = f"{one.model.model} in {one.runtime}: {measurement.status}: {measurement.reason}"
        left = (time.monotonic() - start) / position * (len(todo) - position)
        phase = f"round {one.round + 1}/{card.protocol.rounds}"
        notify(Progress(phase=phase, done=total - len(todo) + position, total=total, seconds_left=left, line=line))
    return card


def _settled_burst(
    folder: DatasetFolder, card: Card, one: Pending, worker: Worker, quiet_ns: int
) -> Iterator[tuple[Measurement, dict[str, str | int | bool]]]:
    """Yield a model's bursts with the engine's settings: one, or more where the references around it disagree.

    A burst with patience has waited for quiet by itself, and is not repeated.
    """
    for attempt in range(one.attempt, MAX_REPEATS + 1):
        measurement, settings = _burst(folder, card, one, attempt, worker, quiet_ns)
        yield measurement, settings
        if measurement.status != "unsteady":
            return


def _burst(
    folder: DatasetFolder, card: Card, one: Pending, attempt: int, worker: Worker, quiet_ns: int
) -> tuple[Measurement, dict[str, str | int | bool]]:
    protocol = card.protocol
    request = BurstRequest(
        model=_model(folder, card, one.model),
        settings=Settings(threads=protocol.threads),
        plan=BurstPlan(
            seconds=protocol.burst_seconds,
            min_samples=protocol.min_samples,
            max_samples=protocol.max_samples,
            max_latency_seconds=protocol.max_latency_seconds,
            patience_seconds=protocol.patience_seconds,
            quiet_ns=quiet_ns,
        ),
        images=protocol.images,
        input_count=protocol.input_count,
        input_seed=protocol.seeds.input,
    )
    started, start = _now(), time.perf_counter_ns()
    status, reason, reply = ask_burst(worker, request, protocol.max_latency_seconds)
    if status == "ok" and reply is not None and attempt < MAX_REPEATS and not protocol.patience_seconds:
        change = disagreement(reply.burst.before, reply.burst.after)
        if change > MAX_DISAGREEMENT:
            status, reason = "unsteady", f"the reference load changed by {change:.0%}"
    wall_ns = time.perf_counter_ns() - start
    return to_measurement(one, attempt, status, reason, reply, started, wall_ns), reply.settings if reply else {}


def _model(folder: DatasetFolder, card: Card, model: PlannedModel) -> Model:
    return Model(
        path=str(folder.graph_path(model.model)),
        family=model.family,
        spec={**model.spec},
        weight_seed=card.protocol.seeds.weight,
    )


def _kernel_burst(folder: DatasetFolder, card: Card, one: Pending, worker: Worker, quiet_ns: int) -> KernelMeasurement:
    protocol = card.protocol
    request = KernelRequest(
        model=_model(folder, card, one.model),
        settings=Settings(threads=protocol.threads, profile=True),
        seconds=protocol.burst_seconds,
        patience_seconds=protocol.patience_seconds,
        quiet_ns=quiet_ns,
        images=protocol.images,
        input_count=protocol.input_count,
        input_seed=protocol.seeds.input,
    )
    base = KernelMeasurement(
        model=one.model.model, runtime=one.runtime, round=one.round, status="failed", started=_now()
    )
    start = time.perf_counter_ns()
    try:
        reply = worker.ask(request)
    except WorkerError as error:
        return msgspec.structs.replace(base, reason=str(error), wall_ns=time.perf_counter_ns() - start)
    wall_ns = time.perf_counter_ns() - start
    if not isinstance(reply, KernelReply):
        reason = without_path(reply.reason, request.model) if isinstance(reply, Failure) else "no answer"
        return msgspec.structs.replace(base, reason=reason, wall_ns=wall_ns)
    return msgspec.structs.replace(
        base, status="ok", before=reply.before, after=reply.after, kernels=reply.kernels, wall_ns=wall_ns
    )


def ask_burst(worker: Worker, request: BurstRequest, max_latency_seconds: float) -> tuple[str, str, BurstReply | None]:
    """Return (status, reason, reply) of one burst; a worker that dies is a failed burst."""
    try:
        reply = worker.ask(request)
    except WorkerError as error:
        return "failed", str(error), None
    if isinstance(reply, Failure):
        return "failed", without_path(reply.reason, request.model), None
    assert isinstance(reply, BurstReply)
    if not reply.burst.samples_ns:
        took = reply.burst.warmup_ns[0] / 1e9
        return "skipped", f"one inference took {took:.1f} s, more than {max_latency_seconds:g} s", reply
    return "ok", "" if reply.finite else "the output is not finite", reply


def without_path(reason: str, model: Model) -> str:
    """Return what an engine said without the path of the model's graph: it belongs to this machine alone."""
    return reason.replace(model.path, "it")


def to_measurement(
    one: Pending, attempt: int, status: str, reason: str, reply: BurstReply | None, started: str, wall_ns: int
) -> Measurement:
    """Return the record of one burst."""
    base = Measurement(
        model=one.model.model,
        runtime=one.runtime,
        round=one.round,
        attempt=attempt,
        status=status,
        reason=reason,
        started=started,
        wall_ns=wall_ns,
    )
    if reply is None:
        return base
    return msgspec.structs.replace(
        base,
        samples_ns=reply.burst.samples_ns,
        warmup_ns=reply.burst.warmup_ns,
        probes_ns=reply.burst.probes_ns,
        load_ns=reply.load_ns,
        before=reply.burst.before,
        after=reply.burst.after,
        disturbance=reply.burst.disturbance,
        output=reply.output,
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
