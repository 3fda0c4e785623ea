"""Make one burst, or one that tells per-kernel times, in a worker, and record what became of it."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from latmod.dataset import Card, DatasetFolder, KernelMeasurement, Measurement, PlannedModel
from latmod.errors import WorkerError
from latmod.runtimes import Model, Settings
from latmod.schedule import Pending
from latmod.timing import BurstPlan, disagreement
from latmod.worker import Worker
from latmod.worker.messages import BurstReply, BurstRequest, Failure, KernelReply, KernelRequest

MAX_DISAGREEMENT = 0.10
"""A burst whose references before and after differ by more is repeated.

The design says 5 % (section 5, point 5). On a machine whose neighbours stream memory that repeats a quarter of all
bursts, and the repeats are no better than what they replace: 50 of them differed from it by 0.4 % (onnxruntime) and
1.8 % (torch), median, up as often as down. What a single burst misses, the median over rounds catches.
"""
MAX_REPEATS = 2
_REPEAT_PATIENCE = 4.0
"""How much longer a burst looks for quiet that a model never found: a second did for a quarter of them (kernels-spr,
312 bursts in 25 minutes, when a fifth to a third of all bursts found it)."""


def settled_burst(
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
            patience_seconds=protocol.patience_seconds * (_REPEAT_PATIENCE if one.round >= protocol.rounds else 1.0),
            quiet_ns=quiet_ns,
        ),
        images=protocol.images,
        input_count=protocol.input_count,
        input_seed=protocol.seeds.input,
    )
    started, start = now(), time.perf_counter_ns()
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


def kernel_burst(folder: DatasetFolder, card: Card, one: Pending, worker: Worker, quiet_ns: int) -> KernelMeasurement:
    """Return what each kernel of a model took, or why the engine told nothing."""
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
        model=one.model.model, runtime=one.runtime, round=one.round, status="failed", started=now()
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


def now() -> str:
    """Return the time of day as data sets write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
