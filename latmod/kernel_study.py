"""Judge the kernel level on families, and on networks, that it was not fitted on; calibrate its intervals on both."""

from collections.abc import Sequence
from functools import partial

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.additive import Additive
from latmod.borrowing import told_kernels
from latmod.coverage import observe_ranges, share_group, unseen
from latmod.intervals import Widths, doubt_of, fit_widths
from latmod.kernel_fitting import parted, priced
from latmod.labels import LabelledModel, stacked
from latmod.scores import NORMAL_MEDIAN, median_known
from latmod.study import COVERAGE, run_all
from latmod.total_fitting import fit_sum

Floats = NDArray[np.float64]

_QUARTERS = 4


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one model as it was predicted without its family: latencies in ns, and where the error comes from.

    `kernel_sum_ns` is the sum of the kernels as measured, which no additive model can beat; `unseen_share` the share of
    predicted time in kernels outside what was measured, `never_share` of kinds of which nothing was; `doubt` how far
    networks differ about a kernel (latmod.intervals); `unmatched_share` the share of told time in kernels that the
    rules do not expect.
    """

    model: str
    family: str
    kernels: int
    latency_ns: float
    predicted_ns: float
    kernel_sum_ns: float
    noise: float
    unseen_share: float
    never_share: float
    doubt: float
    unmatched_share: float

    @property
    def log_error(self) -> float:
        """Return log(measured / predicted)."""
        return float(np.log(self.latency_ns / self.predicted_ns))


class Fits(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what was fitted to the models of one runtime: without each family, without some of all families, to all.

    `held` are the models as they were predicted without their family, `known` as they were without themselves but with
    others of their family (none where this is a start alone); both in the order of the models.
    """

    folds: dict[str, Additive]
    """By the family that was left out."""
    held: tuple[Held, ...]
    known: tuple[Held, ...]
    whole: Additive


def fit_and_hold_out(
    models: Sequence[LabelledModel],
    *,
    also: Sequence[LabelledModel] = (),
    seed: int = 0,
    jobs: int = 1,
    near: Fits | None = None,
    judged: bool = True,
) -> Fits:
    """Fit to all models, and predict every one by what was fitted to all families but its own.

    Where it is to be `judged`, also by what was fitted to three quarters of all models, it not among them. `also` is
    always fitted to and never judged; `near` are prices of another engine to start from, those that have not seen the
    family either.
    """
    families = sorted({model.family for model in models})
    left = [[place for place, model in enumerate(models) if model.family == family] for family in families]
    starts = [near.folds.get(family) if near else None for family in families]
    # A model that two data sets have is left out with all that is known of it.
    places: dict[str, list[int]] = {}
    for place, model in enumerate(models):
        places.setdefault(model.model, []).append(place)
    alike = list(places.values())
    order = np.random.default_rng(seed).permutation(len(alike))
    parts = [order[first::_QUARTERS] for first in range(min(_QUARTERS, len(order)))] if judged else []
    quarters = [[place for at in part for place in alike[at]] for part in parts]
    rest = [*quarters, []]
    tasks = list(zip([*left, *rest], [*starts, *([near.whole if near else None] * len(rest))], strict=True))
    # Dealt out beforehand, so that each process unpacks the models once: 559 take 1.2 s, a fit without a family 20.
    hands = [tasks[first::jobs] for first in range(min(jobs, len(tasks)))]
    dealt = run_all(partial(_without_each, models, also, seed), hands, jobs)
    done = [dealt[at % jobs][at // jobs] for at in range(len(tasks))]
    folds, known, (whole, _) = done[: len(families)], done[len(families) : -1], done[-1]
    return Fits(
        folds={family: fitted for family, (fitted, _) in zip(families, folds, strict=True)},
        held=_in_order(models, folds),
        known=_in_order(models, known) if judged else (),
        whole=whole,
    )


def _without_each(
    models: Sequence[LabelledModel],
    also: Sequence[LabelledModel],
    seed: int,
    tasks: Sequence[tuple[Sequence[int], Additive | None]],
) -> list[tuple[Additive, list[Held]]]:
    return [_without(models, also, seed, places, near) for places, near in tasks]


def _without(
    models: Sequence[LabelledModel],
    also: Sequence[LabelledModel],
    seed: int,
    places: Sequence[int],
    near: Additive | None,
) -> tuple[Additive, list[Held]]:
    """Fit without the models at some places, from prices of another engine where there are any; predict those."""
    left = set(places)
    kept = [model for place, model in enumerate(models) if place not in left]
    tested = [models[place] for place in places]
    fitted = fit_sum([*kept, *also], seed, near)
    if not tested:
        return fitted, []
    ranges = observe_ranges([*(kernel for model in kept for kernel in model.kernels), *told_kernels(also)])
    kernels, columns, starts = stacked(tested)
    took, doubts = (np.split(one, starts) for one in fitted.doubted_ns(kernels, columns))
    return fitted, [
        judge(own, fitted.run_ns, doubt_of(own, doubted), ranges, model)
        for own, doubted, model in zip(took, doubts, tested, strict=True)
    ]


def _in_order(models: Sequence[LabelledModel], parts: Sequence[tuple[Additive, list[Held]]]) -> tuple[Held, ...]:
    by_model = {held.model: held for _, own in parts for held in own}
    return tuple(by_model[model.model] for model in models)


def judge(
    kernel_ns: Floats,
    run_ns: float,
    doubt: float,
    ranges: dict[str, tuple[tuple[float, float], ...]],
    model: LabelledModel,
) -> Held:
    """Say what is known of the error of a model that was predicted."""
    outside = unseen(model.kernels, kernel_ns, ranges)
    told = np.array(model.kernel_ns)
    return Held(
        model=model.model,
        family=model.family,
        kernels=len(model.kernels),
        latency_ns=model.latency_ns,
        predicted_ns=float(kernel_ns.sum()) + run_ns,
        kernel_sum_ns=float(np.nansum(told)) + model.unmatched_ns if np.isfinite(told).any() else float("nan"),
        noise=model.noise,
        unseen_share=sum(one.share for one in outside),
        never_share=sum(one.share for one in outside if one.never),
        doubt=doubt,
        unmatched_share=model.unmatched_ns / model.told_ns if model.told_ns else float("nan"),
    )


def calibrate_widths(held: Sequence[Held], coverage: float = COVERAGE) -> Widths:
    """Return how wide intervals must be, by the errors on models that were held out."""
    return fit_widths(
        np.array([one.log_error for one in held]),
        np.array([one.predicted_ns for one in held]),
        [share_group(one.unseen_share, one.never_share) for one in held],
        np.array([one.doubt for one in held]),
        coverage=coverage,
        noise=label_noise(held),
    )


def label_noise(held: Sequence[Held]) -> float:
    """Return the standard deviation of the labels' logarithms, by how their halves differ; 0 where nobody knows.

    The mean of two halves deviates half as much as they do from each other.
    """
    between = median_known([one.noise for one in held])
    return 0.0 if np.isnan(between) else between / NORMAL_MEDIAN / 2.0


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the error of one kind of kernel on models that were held out.

    `share` is its part of all told time; `bias` the sum predicted over the sum measured, minus one; `error` the mean
    absolute error relative to the sum; `contribution` what it adds to a network's relative error (rms over networks).
    """

    kind: str
    kernels: int
    share: float
    bias: float
    error: float
    contribution: float


def decompose(fitted: Additive, models: Sequence[LabelledModel]) -> list[Part]:
    """Return the error of each kind of kernel, the largest contribution first."""
    sums: dict[str, list[tuple[float, float, float]]] = {}
    contributions: dict[str, list[float]] = {}
    for model, predicted in zip(parted(models, fitted), priced(fitted, models), strict=True):
        told = np.array(model.kernel_ns)
        known = np.isfinite(told)
        if not known.any():
            continue
        scale = model.latency_ns / max(float(told[known].sum()), 1.0)
        own: dict[str, float] = {}
        for kernel, ns, estimate in zip(model.kernels, told * scale, predicted, strict=True):
            if np.isfinite(ns):
                sums.setdefault(kernel.kind, []).append((ns, estimate - ns, abs(estimate - ns)))
                own[kernel.kind] = own.get(kernel.kind, 0.0) + estimate - ns
        for kind, difference in own.items():
            contributions.setdefault(kind, []).append(difference / model.latency_ns)
    total = sum(ns for rows in sums.values() for ns, _, _ in rows) or 1.0
    parts = []
    for kind, rows in sums.items():
        measured = sum(row[0] for row in rows)
        parts.append(
            Part(
                kind=kind,
                kernels=len(rows),
                share=measured / total,
                bias=sum(row[1] for row in rows) / measured,
                error=sum(row[2] for row in rows) / measured,
                contribution=float(np.sqrt(np.sum(np.square(contributions[kind])) / len(models))),
            )
        )
    return sorted(parts, key=lambda part: -part.contribution)
