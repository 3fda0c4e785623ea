"""Hold predicted differences between networks against a data set that was measured: pair by pair."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from latmod.dataset import DatasetFolder, Observation
from latmod.differing import Difference, difference
from latmod.evaluating import CLOSE, family_of, truth, usable
from latmod.graph import read_graph
from latmod.predicting import ask
from latmod.predictor import Breakdown, KernelPredictor, Predictor, Query

ONE_FAMILY, ALIKE = "one family", "within a factor of 2"


class PairScore(msgspec.Struct, frozen=True, kw_only=True):
    """Score the differences of pairs in one runtime; fractions, not per cent.

    `pairs_of` is which pairs: those of one family, or all whose latencies are within a factor of 2. `coverage` is how
    often the 90 % interval of the ratio holds the measured one, `width` its median half-width, `false_alarms` how often
    the truth lies below what is said to be surely exceeded (10 % where that is right), `error` the median error of the
    ratio, `alone` that of dividing two predictions' intervals as if they erred independently: their median half-width.
    """

    runtime: str
    pairs_of: str
    pairs: int
    coverage: float
    width: float
    alone: float
    false_alarms: float
    error: float


def evaluate_pairs(folder: DatasetFolder, predictors: Sequence[Predictor]) -> list[PairScore]:
    """Score the differences that predictors of the kernel level tell between the models of a data set.

    Raises as `evaluate` does.
    """
    rows = []
    fitting = usable(folder, predictors, "kernel")
    queries: dict[str, Query] = {}
    for predictor in fitting:
        assert isinstance(predictor, KernelPredictor)
        known = truth(folder, predictor, fitting)
        for model in known:
            if model not in queries:
                queries[model] = ask(read_graph(folder.graph_path(model)), model)
        told = {model: _told(predictor, queries[model]) for model in known}
        pairs = list(itertools.combinations(sorted(known), 2))
        related = [(a, b) for a, b in pairs if family_of(known[a]) == family_of(known[b])]
        alike = [(a, b) for a, b in pairs if 1.0 / CLOSE <= _ratio(known[a], known[b]) <= CLOSE]
        for name, own in ((ONE_FAMILY, related), (ALIKE, alike)):
            if own:
                rows.append(_score(predictor, name, own, known, told))
    return rows


def _told(predictor: KernelPredictor, query: Query) -> tuple[Breakdown, float]:
    """Return where the time of a model goes, and the logarithm of its interval's factor."""
    answer = predictor.predict_all([query])[0]
    return predictor.breakdown(query), float(np.log(answer.high_ms / answer.latency_ms))


def _score(
    predictor: KernelPredictor,
    name: str,
    pairs: Sequence[tuple[str, str]],
    known: dict[str, Observation],
    told: dict[str, tuple[Breakdown, float]],
) -> PairScore:
    card = predictor.card
    found: list[tuple[Difference, float]] = [
        (difference(card.runtime, told[a][0], told[b][0], card.pair_quantile), _ratio(known[a], known[b]))
        for a, b in pairs
    ]
    return PairScore(
        runtime=card.runtime,
        pairs_of=name,
        pairs=len(pairs),
        coverage=float(np.mean([one.low <= ratio <= one.high for one, ratio in found])),
        width=float(np.median([one.high / one.ratio - 1.0 for one, _ in found])),
        alone=float(np.median([np.exp(np.hypot(told[a][1], told[b][1])) - 1.0 for a, b in pairs])),
        false_alarms=float(np.mean([ratio < one.surely_above for one, ratio in found])),
        error=float(np.median([abs(one.ratio / ratio - 1.0) for one, ratio in found])),
    )


def _ratio(old: Observation, new: Observation) -> float:
    return new.latency_ns() / old.latency_ns()
