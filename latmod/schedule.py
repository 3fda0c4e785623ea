"""Tell from a card and its log which bursts are still to be made, and what the log amounts to."""

import random
from collections.abc import Collection, Iterator

import msgspec

from latmod.dataset import Card, KernelMeasurement, Measurement, PlannedModel, disturbed_pairs

EXPORT = "export"
"""Stands where a runtime's name would, in the log's lines on exports."""

_MAX_FAILURES = 2
"""A model that failed this often in one runtime is not tried there again."""


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """Name one burst that is still to be made."""

    round: int
    model: PlannedModel
    runtime: str
    attempt: int = 0
    kernels: bool = False
    """Ask for per-kernel times instead of latency."""


class SweepResult(msgspec.Struct, frozen=True, kw_only=True):
    """Sum up a sweep over all its sessions."""

    measured: int
    """(model, runtime) pairs with a burst in every round."""
    failed: tuple[str, ...]
    """One line for each (model, runtime) that could not be measured."""
    skipped: tuple[str, ...]
    disturbed: int
    """(model, runtime) pairs of which no burst found quiet cores: their latencies are too high."""
    infer_share: float
    """Share of the wall time that was spent inside `infer`."""


def pending(
    card: Card,
    measurements: list[Measurement],
    kernels: list[KernelMeasurement] | None = None,
    profiling: Collection[str] = (),
) -> Iterator[Pending]:
    """Yield the bursts still to be made, round by round: models in a new random order each, runtimes interleaved.

    In the first `kernel_rounds` rounds each is followed, in the `profiling` runtimes, by the one that tells per-kernel
    times.
    """
    told = {(k.round, k.model, k.runtime) for k in kernels or ()}
    done: set[tuple[int, str, str]] = set()
    attempts: dict[tuple[int, str, str], int] = {}
    for m in measurements:
        key = (m.round, m.model, m.runtime)
        if m.status == "unsteady":
            attempts[key] = attempts.get(key, 0) + 1
        elif m.runtime != EXPORT:
            done.add(key)
    dropped = dropped_pairs(measurements)
    for number in range(card.protocol.rounds):
        order = random.Random(f"{card.protocol.seeds.sweep}:{number}")
        models = list(card.planned)
        order.shuffle(models)
        for model in models:
            runtimes = list(card.runtimes)
            order.shuffle(runtimes)
            if (model.model, EXPORT) in dropped:
                continue
            for runtime in runtimes:
                key = (number, model.model, runtime)
                if key not in done and (model.model, runtime) not in dropped:
                    yield Pending(round=number, model=model, runtime=runtime, attempt=attempts.get(key, 0))
                if runtime in profiling and number < card.protocol.kernel_rounds and key not in told:
                    yield Pending(round=number, model=model, runtime=runtime, kernels=True)


def disturbed(card: Card, measurements: list[Measurement], repeat: int) -> Iterator[Pending]:
    """Yield one more burst for all that never found quiet cores and were not repeated more than `repeat` times."""
    models = {model.model: model for model in card.planned}
    dropped = dropped_pairs(measurements)
    pairs = [
        (pair, number)
        for pair, number in disturbed_pairs(measurements).items()
        if pair not in dropped and pair[0] in models and number <= card.protocol.rounds + repeat
    ]
    random.Random(f"{card.protocol.seeds.sweep}:again:{repeat}").shuffle(pairs)
    for (model, runtime), number in pairs:
        yield Pending(round=number, model=models[model], runtime=runtime)


def summarise(card: Card, measurements: list[Measurement]) -> SweepResult:
    """Return what a log amounts to."""
    ok: dict[tuple[str, str], int] = {}
    reasons: dict[tuple[str, str], str] = {}
    skipped: dict[str, str] = {model.model: model.skipped for model in card.models if model.skipped}
    infer_ns = wall_ns = 0
    for m in measurements:
        infer_ns += sum(m.samples_ns) + sum(m.warmup_ns)
        wall_ns += m.wall_ns
        if m.status == "ok":
            ok[m.model, m.runtime] = ok.get((m.model, m.runtime), 0) + 1
        elif m.status == "failed":
            reasons[m.model, m.runtime] = m.reason
        elif m.status == "skipped":
            skipped[f"{m.model} in {m.runtime}"] = m.reason
    return SweepResult(
        measured=sum(count >= card.protocol.rounds for count in ok.values()),
        failed=tuple(f"{model} in {runtime}: {reason}" for (model, runtime), reason in reasons.items()),
        skipped=tuple(f"{what}: {why}" for what, why in skipped.items()),
        disturbed=len(disturbed_pairs(measurements)),
        infer_share=infer_ns / wall_ns if wall_ns else 0.0,
    )


def dropped_pairs(measurements: list[Measurement]) -> set[tuple[str, str]]:
    """Return the (model, runtime) pairs that are not to be tried again: too slow, or failed too often."""
    failures: dict[tuple[str, str], int] = {}
    dropped = set()
    for m in measurements:
        if m.status == "skipped":
            dropped.add((m.model, m.runtime))
        elif m.status == "failed":
            failures[m.model, m.runtime] = failures.get((m.model, m.runtime), 0) + 1
            if failures[m.model, m.runtime] >= (1 if m.runtime == EXPORT else _MAX_FAILURES):
                dropped.add((m.model, m.runtime))
    return dropped
