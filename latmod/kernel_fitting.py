"""Fit the additive model to labelled kernels and whole latencies."""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.additive import (
    FLOOR_NS,
    GROUPS,
    MAX_RESIDUAL,
    Additive,
    Seeing,
    others_of,
    residual_columns,
    seen_by,
    uncalibrated,
)
from latmod.kernels import Kernel
from latmod.kernels.columns import Columns
from latmod.labels import LabelledModel, stacked
from latmod.rate_fitting import fit_rates
from latmod.training import Lesson, train

Floats = NDArray[np.float64]

_FEW = 12
"""Kernels below which nothing is said of what is never told, or of what the telling costs."""
_SILENT_SHARE = 0.1
"""Share of a kind's kernels below which it is by chance that an engine told of any."""
_STRANGE = 0.15
"""Share of the kernels that networks see as if their kind had never been seen, each model a second time."""
_PARTINGS = 2
"""How often what an engine told of several kernels in one is parted anew."""

_CALIBRATION_PULL = 1.0
"""How strongly the calibration is drawn to none at all, in rows of data per row."""


def fit_additive(models: Sequence[LabelledModel], seed: int = 0) -> Additive:
    """Fit rates, the residual and the calibration to kernels whose times were told, and to the whole."""
    rated = fit_rated(models)
    models = parted(models, rated)
    return with_residual(rated, models, training_kernels(models), seed)


def fit_rated(models: Sequence[LabelledModel]) -> Additive:
    """Fit rates and the calibration alone.

    In turns where kernels were told in one piece: these are parted by the rates so far.
    """
    rated = _rated(models, training_kernels(models))
    for _ in range(_PARTINGS if any(model.pieces for model in models) else 0):
        models = parted(models, rated)
        rated = _rated(models, training_kernels(models))
    return rated


class Prices(Protocol):
    """Tell what kernels take."""

    def kernel_ns(self, kernels: Sequence[Kernel], columns: Columns | None = None) -> Floats:
        """Return what each kernel takes, in ns; `columns` are theirs, of one network where not given."""


def priced(prices: Prices, models: Sequence[LabelledModel]) -> list[Floats]:
    """Return what each kernel of each model takes, in ns."""
    kernels, columns, starts = stacked(models)
    return np.split(prices.kernel_ns(kernels, columns), starts)


def parted(models: Sequence[LabelledModel], prices: Prices) -> list[LabelledModel]:
    """Return the models with what was told of several kernels in one parted among them in proportion to prices."""
    if not any(model.pieces for model in models):
        return list(models)
    found = []
    for model, own in zip(models, priced(prices, models), strict=True):
        told = np.array(model.kernel_ns)
        for piece in map(list, model.pieces):
            told[piece] = told[piece].sum() * (own[piece] / own[piece].sum())
        found.append(msgspec.structs.replace(model, kernel_ns=tuple(told.tolist())))
    return found


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the kernels of all models in a row: `label_ns` nan where nothing was told, `starts` each model's first.

    A kernel's weight is the root of its share of the model's time: what matters is the sum, but a kernel that is small
    here may be large elsewhere. Each model weighs as its kernels do. `counts` says how many kernels each stands for.
    """

    kinds: list[str]
    columns: Columns
    label_ns: Floats
    weights: Floats
    starts: NDArray[np.int64]
    counts: Floats

    def owner(self) -> NDArray[np.int64]:
        """Return the model of each kernel, by its place."""
        return np.repeat(np.arange(len(self.starts)), np.diff(self.starts, append=len(self.kinds)))


def training_kernels(models: Sequence[LabelledModel]) -> Training:
    """Return all kernels with their labels.

    Labels are brought to sum to the latency that was measured without a profile: what the engine tells includes the
    telling, a cost per kernel that is the same for all. They stay as they are where the latency is nan.
    """
    overhead_ns = telling_ns(models)
    labels: list[Floats] = []
    weights: list[Floats] = []
    for model in models:
        told = np.array(model.kernel_ns)
        known = np.isfinite(told)
        if np.isfinite(model.latency_ns):
            told = np.maximum(told - overhead_ns, 0.2 * told)
            total = float(told[known].sum()) + model.unmatched_ns if known.any() else 1.0
            told = told * (model.latency_ns / max(total, 1.0))
        own = np.maximum(told, FLOOR_NS / 3.0)
        share = np.where(known, np.sqrt(own), 0.0)
        labels.append(own)
        weights.append(share / max(share.sum(), 1e-9) * np.sqrt(known.sum()))
    kernels, columns, starts = stacked(models)
    return Training(
        kinds=[kernel.kind for kernel in kernels],
        columns=columns,
        label_ns=np.concatenate(labels),
        weights=np.concatenate(weights),
        starts=np.concatenate([[0], starts]),
        counts=np.ones(len(kernels)),
    )


def merged(told: Training) -> Training:
    """Let one kernel of a model stand for all of its kernels that nothing tells apart: blocks repeat.

    Their labels become one, the mean of the logarithms by weight, which is what a fit to squares makes of them anyway.
    """
    owner = told.owner()
    places: dict[tuple[int, str, bytes], int] = {}
    which = np.array(
        [
            places.setdefault((model, kind, row.tobytes()), len(places))
            for model, kind, row in zip(owner.tolist(), told.kinds, told.columns, strict=True)
        ],
        dtype=np.int64,
    )
    first = np.unique(which, return_index=True)[1]
    known = np.isfinite(told.label_ns)
    # What nothing was told of weighs nothing.
    weights: Floats = np.bincount(which, told.weights).astype(np.float64)
    logs = np.bincount(which, told.weights * np.log(np.where(known, told.label_ns, 1.0)))
    heavy = weights > 0.0
    return Training(
        kinds=[told.kinds[place] for place in first],
        columns=told.columns[first],
        label_ns=np.where(heavy, np.exp(logs / np.where(heavy, weights, 1.0)), np.nan),
        weights=weights,
        starts=np.searchsorted(owner[first], np.arange(len(told.starts))),
        counts=np.bincount(which, told.counts).astype(np.float64),
    )


def _rated(models: Sequence[LabelledModel], told: Training) -> Additive:
    known = np.flatnonzero(np.isfinite(told.label_ns))
    kinds = [told.kinds[place] for place in known]
    rates = fit_rates(kinds, told.columns[known], told.label_ns[known], told.weights[known], silent_kinds(models))
    return calibrated(uncalibrated(rates), models)


def silent_kinds(models: Sequence[LabelledModel]) -> list[str]:
    """Return the kinds of which an engine that tells its kernels tells nothing: it has none, or none that take time.

    What they are there for is told with their neighbours, and would be counted twice.
    """
    counts: dict[str, list[int]] = {}
    for model in models:
        if np.isfinite(model.told_ns):
            for kernel, ns in zip(model.kernels, model.kernel_ns, strict=True):
                count = counts.setdefault(kernel.kind, [0, 0])
                count[0] += 1
                count[1] += bool(np.isfinite(ns))
    return sorted(kind for kind, (there, told) in counts.items() if there >= _FEW and told < _SILENT_SHARE * there)


def with_residual(rated: Additive, models: Sequence[LabelledModel], told: Training, seed: int = 0) -> Additive:
    """Let networks correct rates by what was told of kernels, if anything, and by whole latencies.

    Each model is shown in two forms, the second with some kernels as if their kind had never been seen.
    """
    told = merged(told)
    hidden = np.random.default_rng(seed).random(len(told.kinds)) < _STRANGE
    owner = told.owner()
    # Each model's kernels, and behind them those of its second form.
    rows = np.concatenate([np.arange(len(told.kinds)), np.flatnonzero(hidden)])
    strange = np.arange(len(rows)) >= len(told.kinds)
    order = np.argsort(owner[rows], kind="stable")
    rows, strange = rows[order], strange[order]
    kinds = [others_of(told.kinds[row]) if other else told.kinds[row] for row, other in zip(rows, strange, strict=True)]
    columns, label_ns, weights, counts = (x[rows] for x in (told.columns, told.label_ns, told.weights, told.counts))
    physics = rated.rates.ns(kinds, columns)
    positions = seen_by(models[0].runtime)
    heavy = weights > 0.0
    mean = weights[heavy].sum() / counts[heavy].sum() if heavy.any() else 1.0
    networks = train(
        Lesson(
            x=residual_columns(columns, rated.rates.index(kinds), physics)[:, positions],
            kinds=len(rated.rates.kinds),
            counts=counts,
            physics_ns=physics,
            target=np.clip(np.log(label_ns / physics), -MAX_RESIDUAL, MAX_RESIDUAL),
            weights=weights / mean,
            starts=np.searchsorted(owner[rows], np.arange(len(models))),
            forms=np.stack([~strange, strange | ~hidden[rows]]),
            latency_ns=np.array([model.latency_ns for model in models]),
            run_ns=rated.run_ns,
            bound=MAX_RESIDUAL,
        ),
        seed,
    )
    return calibrated(uncalibrated(rated.rates, Seeing(networks=networks, positions=positions)), models)


def telling_ns(models: Sequence[LabelledModel]) -> float:
    """Return what the telling adds to each kernel: the slope of (told - latency) over the number of kernels.

    Fitted on relative error, so that small networks, where it shows, decide, as the median of the slopes between any
    two networks (Theil and Sen). What all of them differ by alike is left: the machine was in another state when the
    kernels were told, hours later perhaps. Negative where the engine spends time between kernels that it tells nothing
    of.
    """
    from scipy.stats import theilslopes  # type: ignore[import-untyped]

    rows = [(m.told_ns - m.latency_ns, len(m.kernels), m.latency_ns) for m in models if np.isfinite(m.told_ns)]
    if len(rows) < _FEW:
        return 0.0
    difference, count, latency = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    return float(theilslopes(difference / latency, count / latency).slope)


def calibrated(plain: Additive, models: Sequence[LabelledModel]) -> Additive:
    """Fit one scale per group, a cost per kernel and one per run to the latencies that are known, on relative error.

    All are drawn to what they are without it (1, 0, 0): the labels already sum to the whole, on the models seen.
    """
    rows, latencies = [], []
    models = [model for model in models if np.isfinite(model.latency_ns)]
    kernels, columns, starts = stacked(models)
    raw_ns, _, groups_of_all = plain.raw_ns(kernels, columns)
    parts = (np.split(column, starts) for column in (raw_ns, groups_of_all))
    for model, raw, groups in zip(models, *parts, strict=True):
        rows.append([*(raw[groups == group].sum() for group in range(len(GROUPS))), float(len(raw)), 1.0])
        latencies.append(model.latency_ns)
    x, y = np.array(rows), np.array(latencies)
    start = np.array([1.0] * len(GROUPS) + [0.0, 0.0])
    penalty = np.diag([0.1] * len(GROUPS) + [1e-4, 1e-5]) * np.sqrt(len(y)) * _CALIBRATION_PULL
    scaled = x / y[:, None]
    left = np.concatenate([scaled, penalty])
    right = np.concatenate([1.0 - scaled @ start, np.zeros(len(start))])
    change, *_ = np.linalg.lstsq(left, right, rcond=None)
    fitted = start + change
    return msgspec.structs.replace(
        plain,
        scales=tuple(np.clip(fitted[: len(GROUPS)], 0.5, 2.0).tolist()),
        call_ns=float(fitted[-2]),
        run_ns=max(0.0, float(fitted[-1])),
    )
