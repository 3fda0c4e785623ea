"""Measure any `.onnx` file: the sweep's own worker, bursts and rounds, on a network that came from elsewhere."""

import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from latmod.bursts import ask_burst
from latmod.graph import check_shapes, strip_weights
from latmod.quiet import QuietLevels, over_quiet, undisturbed
from latmod.runtimes import Model, Settings, find_runtime
from latmod.scores import split_half
from latmod.sweeping import Notify, Progress
from latmod.timing import BurstPlan, Statistic, burst_value, over_rounds
from latmod.worker import Worker
from latmod.worker.messages import BurstReply, BurstRequest


class MeasuredLatency(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what measuring one model in one runtime gave; `status` is `ok`, or `failed` with a reason."""

    model: str
    runtime: str
    latency_ms: float | None
    min_ms: float | None
    p50_ms: float | None
    mean_ms: float | None
    noise: float | None
    load_ms: float | None
    status: str
    inputs: str = ""
    samples: int = 0


def measure(
    paths: Sequence[Path],
    runtimes: Sequence[str],
    *,
    threads: int = 1,
    rounds: int = 5,
    burst_seconds: float = 0.5,
    patience_seconds: float = 1.0,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    images: str = "",
    memory_bytes: int = 0,
    timeout_seconds: float = 600.0,
    notify: Callable[[str], None] = lambda line: None,
    tell: Notify = lambda progress: None,
) -> list[MeasuredLatency]:
    """Measure every model in every runtime, in rounds; weights in the files are not used, only their shapes.

    A burst may look for `patience_seconds` for quiet before it samples the cores as they are. `notify` hears of what
    failed, `tell`, between bursts, of how far it is.

    Raises GraphError for a file that cannot be read, or is fixed to other shapes than `shapes`, and LatmodError for an
    unknown runtime, before anything is timed; what one runtime cannot run is a row with status `failed`.
    """
    for name in runtimes:
        find_runtime(name).version()
    replies: dict[tuple[Path, str], list[BurstReply]] = {}
    failures: dict[tuple[Path, str], str] = {}
    levels = QuietLevels()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="latmod-")))
        stripped = {path: _weight_free(path, folder / f"{index}.onnx", shapes) for index, path in enumerate(paths)}
        workers = {
            name: stack.enter_context(
                Worker(name, threads=threads, memory_bytes=memory_bytes, timeout_seconds=timeout_seconds)
            )
            for name in runtimes
        }
        start = time.monotonic()
        for number in range(rounds):
            pairs = [(path, name) for path in stripped for name in runtimes if (path, name) not in failures]
            random.Random(number).shuffle(pairs)
            for place, (path, name) in enumerate(pairs, 1):
                request = BurstRequest(
                    model=Model(path=str(stripped[path])),
                    settings=Settings(threads=threads),
                    plan=BurstPlan(
                        seconds=burst_seconds, patience_seconds=patience_seconds, quiet_ns=levels.level(name)
                    ),
                    images=images,
                )
                status, reason, reply = ask_burst(workers[name], request, 0.0)
                if reply is None or status != "ok":
                    failures[path, name] = reason
                    notify(f"{path} in {name}: {reason}")
                else:
                    replies.setdefault((path, name), []).append(reply)
                    levels.add(name, reply.burst.probes_ns)
                done, total = number * len(pairs) + place, rounds * len(pairs)
                left = (time.monotonic() - start) / done * (total - done)
                tell(Progress(phase=f"round {number + 1}/{rounds}", done=done, total=total, seconds_left=left))
    return [
        _result(path, name, replies.get((path, name), []), failures, levels.level(name))
        for path in stripped
        for name in runtimes
    ]


def _weight_free(path: Path, target: Path, shapes: Mapping[str, tuple[int, ...]] | None) -> Path:
    if shapes:
        check_shapes(path, shapes)
    target.write_bytes(strip_weights(path, shapes))
    return target


def _result(
    path: Path, runtime: str, replies: list[BurstReply], failures: Mapping[tuple[Path, str], str], level_ns: int
) -> MeasuredLatency:
    model = path.stem
    if (path, runtime) in failures or not replies:
        reason = failures.get((path, runtime), "no burst")
        return MeasuredLatency(
            model=model, runtime=runtime, latency_ms=None, min_ms=None, p50_ms=None, mean_ms=None, noise=None,
            load_ms=None, status=f"failed: {reason}",
        )  # fmt: skip

    def latency_ms(statistic: Statistic) -> float:
        values = tuple(burst_value(reply.burst.samples_ns, statistic) for reply in replies)
        return round(over_rounds(values, statistic) / 1e6, 6)

    bursts, quiet = undisturbed([(reply.burst.samples_ns, reply.burst.probes_ns) for reply in replies], level_ns)
    minima = tuple(float(min(samples)) for samples in bursts if samples)
    noise = split_half(minima)
    return MeasuredLatency(
        model=model,
        runtime=runtime,
        latency_ms=round(over_quiet(minima, quiet) / 1e6, 6),
        min_ms=round(min(minima) / 1e6, 6),
        p50_ms=latency_ms(Statistic.P50),
        mean_ms=latency_ms(Statistic.MEAN),
        noise=None if math.isnan(noise) else round(noise, 5),
        load_ms=round(statistics.median(reply.load_ns for reply in replies) / 1e6, 3),
        status="ok" if all(reply.finite for reply in replies) else "ok, but the output is not finite",
        inputs=replies[0].inputs,
        samples=sum(len(reply.burst.samples_ns) for reply in replies),
    )
