"""Adapt predictors to a machine that none was fitted on, by a few small networks that are measured there.

What a kernel takes on two machines differs by a factor that is much alike for kernels of one kind, so a few dozen whole
latencies tell it (latmod.factors).
"""

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.additive import OTHER
from latmod.artifact import KernelCard, repack
from latmod.errors import PredictorError
from latmod.factors import factors_of, fit_factors
from latmod.findings import Artifact
from latmod.graph import read_graph
from latmod.kernels import Kernel
from latmod.load_time import Prices, load_ns
from latmod.machine import Machine, read_machine
from latmod.measuring import measure
from latmod.predicting import ask
from latmod.predictor import KernelPredictor, Query
from latmod.runtimes import find_runtime, installed_runtimes
from latmod.scores import conformal_quantile, score
from latmod.sweeping import Notify

Floats = NDArray[np.float64]
T = TypeVar("T")

FEWEST = 8
"""Networks below which nothing is adapted: the interval comes from what is left out, one by one."""

MAX_LOAD_SECONDS = 120.0
"""A runtime that takes longer to open the networks is left out unless it was asked for: torch-compile takes 1,100 s."""


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what one network took in one runtime, and what opening it took (0: nobody knows), in ns."""

    query: Query
    latency_ns: float
    load_ns: float = 0.0


class Adaptation(Artifact, frozen=True, kw_only=True):
    """Hold one predictor adapted to a machine."""

    card: KernelCard

    @property
    def factor(self) -> float:
        """Return how many times longer kernels take than on the machine that it starts from."""
        return self.card.factors[OTHER]

    @property
    def error(self) -> float:
        """Return the mean error over the networks measured, each predicted without it."""
        return self.card.scores["mape"] or 0.0


def yardsticks() -> tuple[Path, ...]:
    """Return the networks that ship to be measured for this, weight-free, by name."""
    return tuple(sorted(Path(str(resources.files("latmod") / "yardsticks")).glob("*.onnx")))


def adapt_here(
    known: Sequence[KernelPredictor],
    *,
    asked: bool,
    rounds: int,
    burst_seconds: float,
    patience_seconds: float,
    notify: Callable[[str], None],
    tell: Notify = lambda progress: None,
) -> list[Adaptation]:
    """Measure the yardsticks in every runtime that is installed and known, adapt a predictor of each.

    Unless they were `asked` for, runtimes that would take longer than `MAX_LOAD_SECONDS` to open them are left out.
    Raises PredictorError where none is installed.
    """
    starts: dict[str, list[KernelPredictor]] = {}
    for one in known:
        if one.card.threads == 1:
            starts.setdefault(one.card.runtime, []).append(one)
    installed = installed_runtimes()
    names = [name for name in installed if name in starts]
    if not names:
        raise PredictorError(f"none of {', '.join(sorted(starts))} is installed; see `latmod runtimes`")
    paths = yardsticks()
    queries = {path.stem: ask(read_graph(path)) for path in paths}
    for name in () if asked else tuple(names):
        seconds = rounds * sum(_load_seconds(query, starts[name][0]) for query in queries.values())
        if seconds > MAX_LOAD_SECONDS:
            notify(f"{name} left out: opening the networks takes about {seconds:.0f} s; --runtime {name} asks for it")
            names.remove(name)
    notify(f"measuring {len(paths)} small networks in {', '.join(names)}, {rounds} rounds")
    results = measure(
        paths,
        names,
        rounds=rounds,
        burst_seconds=burst_seconds,
        patience_seconds=patience_seconds,
        notify=notify,
        tell=tell,
    )
    here = read_machine()
    found = []
    for name in names:
        took = [
            Took(query=queries[one.model], latency_ns=one.latency_ms * 1e6, load_ns=(one.load_ms or 0.0) * 1e6)
            for one in results
            if one.runtime == name and one.latency_ms
        ]
        try:
            found.append(adapt(took, starts[name], here, find_runtime(name).version()))
        except PredictorError as error:
            notify(f"{name} left out: {error}")
    if not found:
        raise PredictorError("nothing was adapted, for the reasons above")
    return found


def adapt(took: Sequence[Took], starts: Sequence[KernelPredictor], machine: Machine, version: str) -> Adaptation:
    """Adapt the best of several predictors of one runtime to what networks took on a machine.

    Which is best is told by the networks: each is predicted by what was adapted to the others. `version` is the
    runtime's. Raises PredictorError for fewer than `FEWEST` networks, or none to start from.
    """
    if len(took) < FEWEST or not starts:
        raise PredictorError(f"{len(took)} networks measured, {len(starts)} predictors: {FEWEST} and one are needed")
    found = [_adapted(took, start, machine, version) for start in starts]
    return min(found, key=lambda one: (one.error, one.card.adapted_from))


def _load_seconds(query: Query, predictor: KernelPredictor) -> float:
    card = predictor.card
    return load_ns(query.kernels(card.rules, card.isa, card.threads)[0], card.load_prices) / 1e9


def _adapted(took: Sequence[Took], start: KernelPredictor, machine: Machine, version: str) -> Adaptation:
    card = start.card
    found = [one.query.kernels(card.rules, machine.isa, card.threads) for one in took]
    networks = [own for own, _ in found]
    prices = [start.prices.kernel_ns(own, columns) for own, columns in found]
    latencies = [one.latency_ns for one in took]
    errors = np.array(
        [_error_without(place, networks, prices, start.prices.run_ns, latencies) for place in range(len(took))]
    )
    own = fit_factors(networks, prices, start.prices.run_ns, latencies)
    # What the start errs by on families that it has not seen comes on top of what adapting misses.
    missed = conformal_quantile(errors, card.coverage)
    widths = tuple(float(np.hypot(missed, width)) for width in card.quantiles)
    truth = np.array(latencies)
    predicted, factor = truth / np.exp(errors), np.exp(widths[0])
    scored = score(truth, predicted, predicted / factor, predicted * factor)
    adapted = msgspec.structs.replace(
        card,
        dataset="adapted",
        machine_id=machine.id,
        machine=machine.label,
        isa=machine.isa,
        runtime_version=version,
        nominal=None,
        drift_weights=(),
        models=len(took),
        adapted_from=card.machine,
        factors=own,
        quantiles=widths,
        width_range_ns=(card.width_range_ns[0] * own[OTHER], card.width_range_ns[1] * own[OTHER]),
        scores={name: getattr(scored, name) for name in ("mape", "median_error", "within_5", "within_10")},
        load_prices=_load_prices(networks, took, card.load_prices),
    )
    return Adaptation(card=adapted, content=repack(start.content, adapted))


def _error_without(
    place: int,
    networks: Sequence[Sequence[Kernel]],
    prices: Sequence[Floats],
    run_ns: float,
    latencies: Sequence[float],
) -> float:
    """Return log(measured / predicted) of one network by factors that were fitted to the others."""

    def others(values: Sequence[T]) -> list[T]:
        return [value for other, value in enumerate(values) if other != place]

    factors = fit_factors(others(networks), others(prices), run_ns, others(latencies))
    predicted = run_ns * factors[OTHER] + float(prices[place] @ factors_of(networks[place], factors))
    return float(np.log(latencies[place] / predicted))


def _load_prices(networks: Sequence[Sequence[Kernel]], took: Sequence[Took], prices: Prices) -> Prices:
    """Return the prices of opening a model, scaled by how much longer it took here (the median)."""
    ratios = [
        one.load_ns / load_ns(own, prices)
        for own, one in zip(networks, took, strict=True)
        if one.load_ns and any(prices)
    ]
    first, second, third = prices
    factor = float(np.median(ratios)) if ratios else 0.0
    return first * factor, second * factor, third * factor
