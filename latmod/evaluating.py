"""Hold predictions against a data set that was measured: network by network, and all together."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from latmod.columns import feature_matrix
from latmod.comparing import regret
from latmod.dataset import DatasetFolder, Observation
from latmod.drift import Correction
from latmod.errors import MachineError, PredictorError
from latmod.families import FAMILIES
from latmod.families.file import File
from latmod.families.published import lineage
from latmod.graph import read_graph
from latmod.labels import labelled_models
from latmod.predicting import ask, choose_each
from latmod.predictor import GraphPredictor, KernelPredictor, Predictor
from latmod.regressors import BASELINES, candidates
from latmod.scores import median_known, score, split_half
from latmod.study import calibrate, fit_table, make_table
from latmod.table import observations

LEVELS = ("best", "graph", "kernel")
CLOSE, APART = 2.0, 1.1
"""Two networks are a pair to order where their MACs are within the first factor, their latencies beyond the second."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was predicted and what was measured of one model in one runtime; `error` is a fraction of the truth.

    `level` is `best` (what `latmod predict` answers), `graph`, `kernel`, the name of a baseline, or the sum of what the
    engine told of its kernels. Published networks, and files, have the family of their name.
    """

    model: str
    family: str
    runtime: str
    level: str
    predicted_ms: float
    low_ms: float
    high_ms: float
    measured_ms: float
    error: float
    in_domain: bool
    noise: float
    macs: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the scores of one level in one runtime over a family, or over all; fractions, not per cent.

    `order` is the share of pairs of networks, alike in MACs and apart in latency, whose order is predicted right.
    """

    runtime: str
    level: str
    family: str
    models: int
    mape: float
    median_error: float
    within_5: float
    within_10: float
    r2: float
    r2_log: float
    spearman: float
    coverage: float
    width: float
    order: float
    pairs: int
    noise_floor: float


class Picks(msgspec.Struct, frozen=True, kw_only=True):
    """Hold how often the runtime that a level says is fastest is, over models in several runtimes; fractions.

    `right` counts the `clear` models, whose two fastest runtimes are more than 10 % apart; `regret` is the chosen
    runtime's latency over the best, minus one, over all of them.
    """

    level: str
    runtimes: int
    models: int
    clear: int
    right: float
    regret: float
    worst_regret: float


def evaluate(folder: DatasetFolder, predictors: Sequence[Predictor], level: str = "best") -> list[Verdict]:
    """Predict every model of a data set, in the runtimes that predictors are at hand for.

    The truth is stated for the nominal state that the predictors are stated for, by their drift weights. Raises as
    `usable` does.
    """
    fitting = usable(folder, predictors, level)
    found = []
    truths = {predictor.name: truth(folder, predictor, fitting) for predictor in fitting}
    for model in dict.fromkeys(name for known in truths.values() for name in known):
        query = ask(read_graph(folder.graph_path(model)), model)
        for predictor in choose_each([p for p in fitting if model in truths[p.name]], query):
            answer = predictor.predict_all([query])[0]
            found.append(
                _verdict(
                    truths[predictor.name][model],
                    level,
                    (answer.latency_ms, answer.low_ms, answer.high_ms),
                    in_domain=answer.in_domain,
                    macs=query.features["macs"],
                )
            )
    return found


def levels_of(folder: DatasetFolder, predictors: Sequence[Predictor]) -> tuple[str, ...]:
    """Return the levels that there are predictors of for a data set, `best` first. Raises as `usable` does."""
    found = usable(folder, predictors, "best")
    there = {"best", *("kernel" if isinstance(one, KernelPredictor) else "graph" for one in found)}
    return tuple(level for level in LEVELS if level in there)


def usable(folder: DatasetFolder, predictors: Sequence[Predictor], level: str) -> list[Predictor]:
    """Return the predictors of a level for the machine, runtimes and threads of a data set.

    Raises MachineError where none of them is for its machine, PredictorError where none is for its runtimes and
    threads, or of the level.
    """
    card = folder.read_card()
    own = [one for one in predictors if one.card.machine_id == card.machine.id]
    if not own:
        raise MachineError(f"{folder.path}: measured on {card.machine.label}; no predictor at hand is for that machine")
    threads = card.protocol.threads
    kinds = {"graph": GraphPredictor, "kernel": KernelPredictor}.get(level, Predictor)
    fitting = [
        one
        for one in own
        if one.card.runtime in card.runtimes and one.card.threads == threads and isinstance(one, kinds)
    ]
    if not fitting:
        what = "predictor" if level == "best" else f"predictor of the {level} level"
        raise PredictorError(f"{folder.path}: no {what} for {', '.join(card.runtimes)} with {threads} threads")
    return fitting


def truth(folder: DatasetFolder, predictor: Predictor, fitting: Sequence[Predictor]) -> dict[str, Observation]:
    """Return by model what was measured in a predictor's runtime, stated for the state that it is stated for.

    Measurements whose outputs differ from other runtimes' are left out.
    """
    correct = {**_corrections(fitting), **_corrections([predictor])}
    found = observations(folder, correct, with_features=False)
    return {one.model: one for one in found if one.runtime == predictor.card.runtime and one.parity == "ok"}


def family_of(one: Observation) -> str:
    """Return the family of a model; published networks, and those that come as files, have that of their name."""
    return lineage(one.model) if FAMILIES[one.family].published or one.family == File.name else one.family


def evaluate_baselines(
    folder: DatasetFolder, training: Sequence[DatasetFolder], predictors: Sequence[Predictor], seed: int = 0
) -> list[Verdict]:
    """Predict every model of a data set by baselines that are fitted to others: MACs alone, and two over totals.

    Raises MachineError where the data sets come from different machines.
    """
    card = folder.read_card()
    if any(other.read_card().machine.id != card.machine.id for other in training):
        raise MachineError(f"{folder.path}: the data sets to fit baselines to come from another machine")
    correct = _corrections([one for one in predictors if one.card.machine_id == card.machine.id]) or None
    tested = observations(folder, correct)
    known = [one for other in training for one in observations(other, correct)]
    found = []
    for runtime in card.runtimes:
        seen, own = ([one for one in side if one.runtime == runtime] for side in (known, tested))
        if not seen or not own:
            continue
        names = tuple(seen[0].features)
        table = make_table(
            [o.features for o in seen], [o.family for o in seen], [o.latency_ns() / 1e6 for o in seen], names
        )
        x = feature_matrix([o.features for o in own], names)
        for candidate in candidates():
            if candidate.regressor not in BASELINES:
                continue
            predicted = fit_table(candidate, candidate.grid[0], table, seed).predict(x)
            factor = float(np.exp(calibrate(candidate, candidate.grid[0], table, seed).quantiles[0]))
            found += [
                _verdict(
                    one, candidate.regressor, (ms, ms / factor, ms * factor), in_domain=True, macs=one.features["macs"]
                )
                for one, ms in zip(own, predicted.tolist(), strict=True)
            ]
    return found


def evaluate_told(folder: DatasetFolder, predictors: Sequence[Predictor]) -> list[Verdict]:
    """Put the sum of the per-kernel times that the engines told in the place of a prediction, where they told any.

    Exact prices of all kernels would predict this, no better: it is the ceiling of the kernel level.
    """
    card = folder.read_card()
    correct = _corrections([one for one in predictors if one.card.machine_id == card.machine.id])
    runtimes = [name for name in card.runtimes if name in correct]
    told = {
        (runtime, one.model): one.told_ns / 1e6
        for runtime, models in labelled_models(folder, runtimes, correct).items()
        for one in models
    }
    found = []
    for one in observations(folder, correct):
        ms = told.get((one.runtime, one.model), float("nan"))
        if np.isfinite(ms):
            macs = one.features["macs"]
            found.append(_verdict(one, "sum of told kernels", (ms, ms, ms), in_domain=True, macs=macs))
    return found


def summarise(verdicts: Sequence[Verdict]) -> list[Summary]:
    """Score verdicts: for each runtime and level all families together, then each by itself where there are several."""
    rows = []
    for runtime, level in sorted({(one.runtime, one.level) for one in verdicts}):
        own = [one for one in verdicts if (one.runtime, one.level) == (runtime, level)]
        families = sorted({one.family for one in own})
        rows.append(_summary("all", own))
        if len(families) > 1:
            rows += [_summary(family, [one for one in own if one.family == family]) for family in families]
    return rows


def picks(verdicts: Sequence[Verdict]) -> list[Picks]:
    """Score the choice of a runtime by each level, over the models that were measured in two runtimes or more."""
    rows = []
    for level in sorted({one.level for one in verdicts}):
        by_model: dict[str, list[Verdict]] = {}
        for one in verdicts:
            if one.level == level:
                by_model.setdefault(one.model, []).append(one)
        several = [own for own in by_model.values() if len(own) > 1]
        if not several:
            continue
        costs = [regret([one.predicted_ms for one in own], [one.measured_ms for one in own]) for own in several]
        clear = [cost for own, cost in zip(several, costs, strict=True) if _is_clear(own)]
        rows.append(
            Picks(
                level=level,
                runtimes=len({one.runtime for one in verdicts}),
                models=len(several),
                clear=len(clear),
                right=sum(cost == 0.0 for cost in clear) / len(clear) if clear else float("nan"),
                regret=float(np.mean(costs)),
                worst_regret=max(costs),
            )
        )
    return rows


def _is_clear(own: Sequence[Verdict]) -> bool:
    best, second = sorted(one.measured_ms for one in own)[:2]
    return second > APART * best


def _summary(family: str, own: Sequence[Verdict]) -> Summary:
    truth, predicted, low, high = (
        np.array([getattr(one, name) for one in own]) for name in ("measured_ms", "predicted_ms", "low_ms", "high_ms")
    )
    found = msgspec.structs.asdict(score(truth, predicted, low, high))
    right, pairs = _order(own)
    return Summary(
        runtime=own[0].runtime,
        level=own[0].level,
        family=family,
        order=right / pairs if pairs else float("nan"),
        pairs=pairs,
        noise_floor=median_known([one.noise for one in own]),
        **found,
    )


def _order(own: Sequence[Verdict]) -> tuple[int, int]:
    """Return how many pairs are predicted in the right order, and how many there are."""
    right = pairs = 0
    for a, b in itertools.combinations(own, 2):
        alike = max(a.macs, b.macs) <= CLOSE * min(a.macs, b.macs)
        if alike and max(a.measured_ms, b.measured_ms) > APART * min(a.measured_ms, b.measured_ms):
            pairs += 1
            right += (a.predicted_ms < b.predicted_ms) == (a.measured_ms < b.measured_ms)
    return right, pairs


def _verdict(
    one: Observation, level: str, told_ms: tuple[float, float, float], *, in_domain: bool, macs: float
) -> Verdict:
    """Return the record of one answer: the latency told, and the ends of its interval."""
    measured_ms = one.latency_ns() / 1e6
    predicted_ms, low_ms, high_ms = told_ms
    return Verdict(
        model=one.model,
        family=family_of(one),
        runtime=one.runtime,
        level=level,
        predicted_ms=predicted_ms,
        low_ms=low_ms,
        high_ms=high_ms,
        measured_ms=measured_ms,
        error=predicted_ms / measured_ms - 1.0,
        in_domain=in_domain,
        noise=split_half(one.round_ns["min"]),
        macs=macs,
    )


def _corrections(predictors: Sequence[Predictor]) -> dict[str, Correction]:
    return {one.card.runtime: one.card.correction for one in predictors if one.card.correction is not None}
