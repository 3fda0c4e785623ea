"""The study's procedure: choose hyper-parameters on one validation split, then judge over split seeds and regressor
seeds.

Rows are only ever split by model; one table holds one row per model. Everything here works on arrays in memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.columns import Features, Floats, feature_matrix
from latmod.domain import Domain, group, observe_domain, spread
from latmod.regressors import Candidate, Fitted, Params, train
from latmod.scores import Scores, conformal_quantile, score

Positions = NDArray[np.intp]
Task = TypeVar("Task")
Result = TypeVar("Result")

TEST_SHARE = 0.25
FOLDS = 5
COVERAGE = 0.90

_EXTREMES = ("macs", "width", "nodes", "blocks3", "weight_bytes")
"""Features along which models are held out at either end, to learn how errors grow outside the domain."""

_FEW = 10
"""Fewer residuals than this give no quantile of their own."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one runtime's models: features [N, F] under their names, and latencies [N]."""

    names: tuple[str, ...]
    rows: tuple[Mapping[str, float], ...]
    families: tuple[str, ...]
    x: Features
    latency_ms: Floats

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self.rows)

    def take(self, positions: Positions) -> "Table":
        """Return some of the models."""
        return Table(
            names=self.names,
            rows=tuple(self.rows[i] for i in positions),
            families=tuple(self.families[i] for i in positions),
            x=self.x[positions],
            latency_ms=self.latency_ms[positions],
        )

    def domain(self) -> Domain:
        """Return the ranges these models span."""
        return observe_domain(self.families, self.rows)


def make_table(
    rows: Sequence[Mapping[str, float]], families: Sequence[str], latency_ms: Sequence[float], names: Sequence[str]
) -> Table:
    """Return a table with its features in the order of `names`."""
    return Table(
        names=tuple(names),
        rows=tuple(rows),
        families=tuple(families),
        x=feature_matrix(rows, names),
        latency_ms=np.array(latency_ms, dtype=np.float64),
    )


class CrossSeed(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what one candidate came to: the chosen hyper-parameters and the scores of every split and regressor seed."""

    candidate: Candidate
    params: Params
    validation_score: float
    split_seeds: int
    regressor_seeds: int
    scores: tuple[Scores, ...]

    def mean(self, name: str) -> float:
        """Return the mean of a score over all seeds."""
        return float(np.mean([getattr(scores, name) for scores in self.scores]))

    def deviation(self, name: str) -> float:
        """Return the standard deviation of a score over all seeds."""
        return float(np.std([getattr(scores, name) for scores in self.scores]))

    def worst_r2(self) -> float:
        """Return the worst r2 of all seeds."""
        return min(scores.r2 for scores in self.scores)


def split(count: int, seed: int) -> tuple[Positions, Positions]:
    """Return the positions of training and test models, a quarter being test."""
    order = np.random.default_rng(seed).permutation(count)
    test = max(1, round(count * TEST_SHARE))
    return order[test:], order[:test]


def fit_table(candidate: Candidate, params: Params, table: Table, seed: int) -> Fitted:
    """Fit a candidate to a table."""
    return train(candidate, params, table.names, table.x, table.latency_ms, seed)


def out_of_fold(candidate: Candidate, params: Params, table: Table, seed: int) -> Floats:
    """Predict every model, [N], by a regressor that was fitted without it (5 folds)."""
    order = np.random.default_rng(seed).permutation(len(table))
    predicted = np.empty(len(table))
    folds = min(FOLDS, len(table))
    for fold in range(folds):
        held = order[fold::folds]
        kept = np.setdiff1d(order, held)
        predicted[held] = fit_table(candidate, params, table.take(kept), seed).predict(table.x[held])
    return predicted


def choose_params(candidate: Candidate, table: Table, seed: int) -> tuple[Params, float]:
    """Return the hyper-parameters that score best on the validation split, and that score; the first of equals."""
    kept, held = split(len(table), seed)
    training, validation = table.take(kept), table.take(held)
    best: tuple[float, Params] | None = None
    for params in candidate.grid:
        predicted = fit_table(candidate, params, training, seed).predict(validation.x)
        scores = score(validation.latency_ms, predicted, predicted, predicted)
        value = scores.r2 if candidate.criterion == "r2" else -scores.mape
        if best is None or value > best[0]:
            best = (value, params)
    assert best is not None, "a grid has at least one entry"
    return best[1], abs(best[0]) if candidate.criterion == "mape" else best[0]


def cross_seed(candidate: Candidate, table: Table, *, seed: int, split_seeds: int, regressor_seeds: int) -> CrossSeed:
    """Choose hyper-parameters, then score over split seeds x regressor seeds.

    A regressor that no seed changes is fitted once per split. Intervals come from out-of-fold residuals of the training
    models of each split, never from its test models.
    """
    params, validation_score = choose_params(candidate, table, seed)
    draws = regressor_seeds if candidate.seeded else 1
    found = []
    for split_seed in range(seed + 1, seed + 1 + split_seeds):
        kept, held = split(len(table), split_seed)
        training, test = table.take(kept), table.take(held)
        residuals = np.log(training.latency_ms / out_of_fold(candidate, params, training, seed))
        factor = np.exp(conformal_quantile(residuals, COVERAGE))
        for regressor_seed in range(seed, seed + draws):
            predicted = fit_table(candidate, params, training, regressor_seed).predict(test.x)
            found.append(score(test.latency_ms, predicted, predicted / factor, predicted * factor))
    return CrossSeed(
        candidate=candidate,
        params=params,
        validation_score=validation_score,
        split_seeds=split_seeds,
        regressor_seeds=draws,
        scores=tuple(found),
    )


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the error out of fold, and the quantiles of |log error| inside, near and far from the domain."""

    mape: float
    quantiles: tuple[float, float, float]


def calibrate(candidate: Candidate, params: Params, table: Table, seed: int) -> Calibration:
    """Return quantiles of |log(measured / predicted)| from models that the regressor had not seen.

    Inside: out of fold. Near and far: the quarter of models at either end of a few features is held out, and each of
    them counts for the group that its own distance puts it in. A group with few models gets twice the quantile of the
    group before it.
    """
    predicted = out_of_fold(candidate, params, table, seed)
    errors: tuple[list[float], ...] = ([], [], [])
    for held in _ends(table):
        training = table.take(np.setdiff1d(np.arange(len(table)), held))
        domain = training.domain()
        log_errors = np.log(
            table.latency_ms[held] / fit_table(candidate, params, training, seed).predict(table.x[held])
        )
        for position, error in zip(held, log_errors, strict=True):
            errors[group(domain.distance(table.rows[position]))].append(float(error))
    inside = conformal_quantile(np.log(table.latency_ms / predicted), COVERAGE)
    near = _wider(inside, errors[1])
    return Calibration(
        mape=float(np.mean(np.abs(predicted / table.latency_ms - 1.0))),
        quantiles=(inside, near, _wider(near, errors[2])),
    )


def _ends(table: Table) -> Iterator[Positions]:
    quarter = len(table) // 4
    for name in _EXTREMES:
        values = np.array([row.get(name, 0.0) for row in table.rows])
        if quarter and len(np.unique(values)) > 4:
            order = np.argsort(values, kind="stable")
            yield order[:quarter]
            yield order[-quarter:]


def _wider(before: float, errors: Sequence[float]) -> float:
    if len(errors) < _FEW:
        return 2.0 * before
    return max(before, conformal_quantile(np.array(errors), COVERAGE))


def score_transfer(candidate: Candidate, params: Params, training: Table, test: Table, seed: int) -> Scores:
    """Score a candidate on models unlike those it was fitted on, with the intervals that an artifact would give."""
    quantiles = calibrate(candidate, params, training, seed).quantiles
    domain = training.domain()
    factors = np.array([spread(quantiles, domain.distance(row)) for row in test.rows])
    predicted = fit_table(candidate, params, training, seed).predict(test.x)
    return score(test.latency_ms, predicted, predicted / factors, predicted * factors)


def run_all(
    work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, progress: Callable[[int, int], None] | None = None
) -> list[Result]:
    """Return `work(task)` for every task, in order, by up to `jobs` processes; `progress(done, total)` after each."""
    from joblib import Parallel, delayed  # type: ignore[import-untyped]

    limited = delayed(partial(_single_threaded, work))
    pool = Parallel(n_jobs=min(jobs, len(tasks)) or 1, return_as="generator")
    found: list[Result] = []
    for result in pool(limited(task) for task in tasks):
        found.append(result)
        if progress:
            progress(len(found), len(tasks))
    return found


def _single_threaded(work: Callable[[Task], Result], task: Task) -> Result:
    """Keep linear algebra to one thread: on a few hundred rows more threads only wait for each other."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1):
        return work(task)
