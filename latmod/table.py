"""Make the table of a data set: one row per model and runtime, with spec, features, latency and noise."""

import csv
import io
import math
import statistics
from collections.abc import Mapping
from pathlib import Path

import msgspec

from latmod.dataset import (
    TABLE_FILE,
    DatasetFolder,
    Measurement,
    Observation,
    final_bursts,
    nominal_reference,
    quiet_levels,
    statistic_key,
    undisturbed_minima,
)
from latmod.drift import Correction, fit_correction, state_of
from latmod.faults import without_faults
from latmod.features import graph_features
from latmod.graph import read_graph
from latmod.log import replace_file
from latmod.scores import split_half
from latmod.sessions import Sessions, effects
from latmod.specs import flat_fields
from latmod.timing import Reference, Statistic, burst_value

PARITY_TOLERANCE = 1e-3
"""Largest difference between two runtimes' outputs, relative to the largest output, where they say nothing else."""

_Rounds = dict[str, dict[int, float]]
"""Values in ns by figure and round."""

_ROUND_STATISTICS = (Statistic.MEAN, Statistic.P50, Statistic.P90)


def corrections(folder: DatasetFolder, nominal: Reference | None = None) -> dict[str, Correction]:
    """Return the drift correction of each runtime, fitted to a data set; by default for its own nominal state."""
    card = folder.read_card()
    measurements = folder.read_measurements()
    state = nominal or card.nominal
    if state is None or not state.probe_ns:
        own = nominal_reference(measurements)
        state = msgspec.structs.replace(state, probe_ns=own.probe_ns) if state else own
    return {name: fit_correction(name, measurements, state) for name in card.runtimes}


def observations(
    folder: DatasetFolder, correct: Mapping[str, Correction] | None = None, *, with_features: bool = True
) -> list[Observation]:
    """Return what a data set knows, in the card's order, corrected for drift, page faults and sessions.

    Without `correct` the corrections are those of the data set itself; a runtime that is not in it stays as measured.
    Without `with_features` the graphs are not read, and features are empty.
    """
    card = folder.read_card()
    measurements = folder.read_measurements()
    known = corrections(folder) if correct is None else correct
    bursts = final_bursts(without_faults(measurements, {name: one.fault_ns for name, one in known.items()}))
    levels = quiet_levels(measurements)
    values = {
        (model, name): _round_values([rounds[n] for n in sorted(rounds)], known.get(name), levels.level(name))
        for (model, name), rounds in bursts.items()
    }
    if correct is None or correct:
        _align_sessions(values, bursts)
    differing = parity_failures(measurements, card.tolerances)
    found = []
    for model in card.planned:
        measured = [name for name in card.runtimes if (model.model, name) in bursts]
        if not measured:
            continue
        features = graph_features(read_graph(folder.graph_path(model.model))) if with_features else {}
        for name in measured:
            rounds = bursts[model.model, name]
            round_ns, quiet = values[model.model, name]
            found.append(
                Observation(
                    model=model.model,
                    family=model.family,
                    runtime=name,
                    runtime_version=card.runtimes[name],
                    machine_id=card.machine.id,
                    threads=card.protocol.threads,
                    batch=int(features.get("batch", 1)),
                    spec=model.spec,
                    features=features,
                    round_ns={statistic: tuple(own.values()) for statistic, own in round_ns.items()},
                    disturbed=not quiet,
                    load_ns=float(min(burst.load_ns for burst in rounds.values())),
                    parity="differs" if (model.model, name) in differing else "ok",
                )
            )
    return found


def parity_failures(
    measurements: list[Measurement], tolerances: Mapping[str, float] | None = None
) -> frozenset[tuple[str, str]]:
    """Return the (model, runtime) pairs whose outputs are not finite, or differ from more than half of the others'.

    Two outputs differ where they are farther apart, relative to the larger one, than the looser of the two runtimes'
    `tolerances` allows (1e-3 by default: float32 sums over 600 layers).
    """
    outputs: dict[str, dict[str, tuple[float, ...]]] = {}
    failed = set()
    for m in measurements:
        if m.status == "ok" and m.output:
            outputs.setdefault(m.model, {})[m.runtime] = m.output
            if m.reason:
                failed.add((m.model, m.runtime))
    loose = tolerances or {}
    for model, digests in outputs.items():
        for name, own in digests.items():
            others = [
                _apart(own, digest) > max(loose.get(name, PARITY_TOLERANCE), loose.get(other, PARITY_TOLERANCE))
                for other, digest in digests.items()
                if other != name
            ]
            if 2 * sum(others) > len(others):
                failed.add((model, name))
    return frozenset(failed)


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Return the largest difference of two digests, relative to the larger output."""
    largest = max(one[0], other[0]) or 1.0
    return max(abs(a - b) for a, b in zip(one, other, strict=False)) / largest


def write_table(folder: DatasetFolder) -> Path:
    """Derive `table.csv` from the rest of the folder and return its path."""
    rows = [table_row(one) for one in observations(folder)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = folder.path / TABLE_FILE
    replace_file(path, text.getvalue().encode())
    return path


def table_row(one: Observation) -> dict[str, str | int | float]:
    """Return one observation as the flat row of `table.csv`: latency in ms, then spec fields, then features."""
    row: dict[str, str | int | float] = {
        "model": one.model,
        "family": one.family,
        "runtime": one.runtime,
        "threads": one.threads,
        "batch": one.batch,
        "latency_ms": _ms(one.latency_ns(Statistic.MEDIAN_OF_MINIMA)),
        "min_ms": _ms(one.latency_ns(Statistic.MIN)),
        "p50_ms": _ms(one.latency_ns(Statistic.P50)),
        "p90_ms": _ms(one.latency_ns(Statistic.P90)),
        "mean_ms": _ms(one.latency_ns(Statistic.MEAN)),
        "noise": "" if math.isnan(noise := split_half(one.round_ns["min"])) else round(noise, 5),
        "rounds": len(one.round_ns["min"]),
        "parity": one.parity,
        **{f"spec_{name}": value for name, value in flat_fields(one.spec).items()},
    }
    return row | {name: _short(value) for name, value in one.features.items() if name not in row}


def _short(value: float) -> int | float:
    """Return a whole number as one: most features are counts, and there are a hundred thousand of them."""
    return int(value) if float(value).is_integer() else value


def _align_sessions(
    values: Mapping[tuple[str, str], tuple[_Rounds, bool]],
    bursts: Mapping[tuple[str, str], Mapping[int, Measurement]],
) -> None:
    """Take out of each figure by how much its session differs from the mean of all, in its runtime."""
    sessions = Sessions([burst for rounds in bursts.values() for burst in rounds.values()])
    for runtime in {name for _, name in values}:
        own = {key: rounds for key, (rounds, _) in values.items() if key[1] == runtime}
        logs = []
        for key, rounds in own.items():
            found: dict[int, list[float]] = {}
            for number, ns in rounds["min"].items():
                found.setdefault(sessions.of(bursts[key][number]), []).append(math.log(ns))
            logs.append({session: statistics.median(some) for session, some in found.items()})
        factors = {session: math.exp(-effect) for session, effect in effects(logs).items()}
        for key, rounds in own.items():
            for figures in rounds.values():
                figures.update({n: ns * factors.get(sessions.of(bursts[key][n]), 1.0) for n, ns in figures.items()})


def _round_values(rounds: list[Measurement], correction: Correction | None, level_ns: int) -> tuple[_Rounds, bool]:
    """Return each figure, by round (the least of the undisturbed samples, the others of all), and whether any was."""
    factors = {m.round: correction.factor(state_of(m, level_ns)) if correction else 1.0 for m in rounds}
    minima, quiet = undisturbed_minima(rounds, level_ns)
    least = {statistic_key(Statistic.MIN): {number: value * factors[number] for number, value in minima.items()}}
    return least | {
        statistic_key(statistic): {m.round: burst_value(m.samples_ns, statistic) * factors[m.round] for m in rounds}
        for statistic in _ROUND_STATISTICS
    }, quiet


def _ms(latency_ns: float) -> float:
    return round(latency_ns / 1e6, 6)
