"""Fit the kernel level to data sets with per-kernel times, judge it on families it has not seen, make its artifact."""

import itertools
import math
import os
import random
from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import numpy as np

from latmod import __version__
from latmod.additive import Additive, residual_to_onnx
from latmod.artifact import KERNEL_SCHEMA, KernelCard, pack
from latmod.borrowing import Lender, borrowed, told_kernels
from latmod.coverage import observe_ranges
from latmod.dataset import Card, DatasetFolder
from latmod.differing import apart
from latmod.drift import Correction
from latmod.errors import DatasetError, MachineError
from latmod.families import FAMILIES
from latmod.findings import Artifact
from latmod.intervals import Widths
from latmod.kernel_fitting import priced
from latmod.kernel_study import Fits, Held, Part, calibrate_widths, decompose, fit_and_hold_out
from latmod.kernels import channel_block, nearest_rules
from latmod.kernels.columns import PHYSICAL
from latmod.labels import LabelledModel, labelled_models
from latmod.load_time import fit_load
from latmod.predictor import Breakdown
from latmod.runtimes import kernel_rules
from latmod.scores import Scores, conformal_quantile, median_known, score
from latmod.study import COVERAGE, run_all
from latmod.table import corrections
from latmod.timing import Statistic
from latmod.total_fitting import apportioned, scaled, without_kernels

MIN_FAMILIES = 3
"""Fewer families leave nothing to hold out."""
_MAX_PAIRS = 3000


class FamilyRow(msgspec.Struct, frozen=True, kw_only=True):
    """Hold how one family (or all) was predicted by what was fitted to the others, flat; fractions, not per cent.

    `all, of known families` is how networks were predicted by what was fitted to others of all families.

    `kernel_sum_mape` is what the sum of the measured kernels would give, `unmatched_share` the share of told time in
    kernels that the rules do not expect.
    """

    dataset: str
    runtime: str
    threads: int
    family: str
    models: int
    mape: float
    median_error: float
    within_5: float
    within_10: float
    r2_log: float
    spearman: float
    coverage: float
    width: float
    noise_floor: float
    kernel_sum_mape: float
    unseen_share: float
    unmatched_share: float


class KernelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all that fitting the kernel level found out in one runtime."""

    dataset: str
    runtime: str
    rows: tuple[FamilyRow, ...]
    parts: tuple[Part, ...]
    fits: Fits
    artifact: Artifact


def fit_kernel_level(
    folders: Sequence[DatasetFolder],
    *,
    runtimes: Sequence[str] = (),
    seed: int = 0,
    jobs: int = 0,
    totals_only: bool = False,
    near: Sequence[KernelReport] = (),
    lenders: Sequence[DatasetFolder] = (),
) -> list[KernelReport]:
    """Fit one predictor per runtime to all data sets that have it; the first of them gives it its name.

    To per-kernel times where a runtime told any, else to whole latencies alone, starting from what is `near`: the same
    runtime's prices on this machine with other threads, or those of the runtime whose kernel rules it shares (or
    nearly), where that is fitted to the same data sets. `totals_only` forgets what was told. `lenders` are data sets of
    other machines, or of this one that nothing is fitted to: a runtime that told its kernels there alone starts from
    what these took in the first that has it; kernels of kinds that are lacking are taken from the others
    (latmod.borrowing). Models without a sample on quiet cores are left out (in kernels-engines-zen3-earlier OpenVINO's
    were 27 % above their prediction), but where lenders tell of a kind nowhere else. Raises MachineError where
    machines, versions or threads differ; DatasetError for fewer than three families, or published networks, which are
    there to test on.
    """
    cards = [folder.read_card() for folder in folders]
    _check(folders, cards)
    jobs = jobs or os.cpu_count() or 1
    declared = dict.fromkeys(name for card in cards for name in card.runtimes)
    names = [name for name in declared if not runtimes or name in runtimes]
    nearest = {name: nearest_rules(kernel_rules(name)) for name in declared}
    # What others may start from is read too, and comes first.
    read = sorted(
        {*names, *({nearest[name] for name in names} & set(declared))}, key=lambda name: (nearest[name] != name, name)
    )
    models: dict[str, list[LabelledModel]] = {name: [] for name in read}
    known: dict[str, Correction] = {}
    for folder in folders:
        correct = corrections(folder, next(iter(known.values())).nominal if known else None)
        for name, labelled in _labelled(folder, [n for n in read if n in correct], correct, jobs).items():
            models[name] += [one for one in labelled if not one.disturbed]
        known = correct | known
    lent: dict[str, list[Lender]] = {}
    for folder in () if totals_only else lenders:
        card = folder.read_card()
        _check_lender(folder, card, cards[0])
        alike = channel_block(card.machine.isa) == channel_block(cards[0].machine.isa)
        correct = corrections(folder)
        for name, labelled in _labelled(folder, [n for n in names if n in correct], correct, jobs).items():
            # What no model on quiet cores tells enough of comes from all.
            for own in ([one for one in labelled if not one.disturbed], labelled):
                if _told(own):
                    lent.setdefault(name, []).append(Lender(models=tuple(own), machine=card.machine.id, alike=alike))
    if totals_only:
        models = {name: without_kernels(own) for name, own in models.items()}
    others = {one.runtime: one.fits for one in near if one.artifact.card.machine_id == cards[0].machine.id}
    fits: dict[str, Fits] = {}
    also: dict[str, list[LabelledModel]] = {}
    starts = {nearest[name] for name in names if not _told(models[name]) and name not in lent}
    for name in [name for name in read if name in names or name in starts]:
        start = others.get(name) or fits.get(nearest[name])
        also[name] = []
        if name in lent:
            own = models[name]
            if not _told(own):
                start = fit_and_hold_out(lent[name][0].models, seed=seed, jobs=jobs, judged=False)
                own = apportioned(own, scaled(start.whole, own))
            also[name] = borrowed(own, lent[name], cards[0].machine.id)
        fits[name] = fit_and_hold_out(
            models[name], also=also[name], seed=seed, jobs=jobs, near=start, judged=name in names
        )
    reports = [
        _report(
            [card for card in cards if name in card.runtimes], name, models[name], also[name], known[name], fits[name],
            seed,
        )
        for name in names
    ]  # fmt: skip
    if not reports:
        raise DatasetError(f"{folders[0].path}: measured in {', '.join(declared)}, not in {', '.join(runtimes)}")
    return reports


def _labelled(
    folder: DatasetFolder, runtimes: Sequence[str], correct: Mapping[str, Correction], jobs: int
) -> dict[str, list[LabelledModel]]:
    """Return by runtime the models of a data set; each process reads the graphs of a part."""
    models = [one.model for one in folder.read_card().models]
    size = max(1, -(-len(models) // jobs))
    parts = [models[first : first + size] for first in range(0, len(models), size)]
    found: dict[str, list[LabelledModel]] = {}
    for part in run_all(partial(labelled_models, folder, runtimes, correct), parts, jobs):
        for name, labelled in part.items():
            found.setdefault(name, []).extend(labelled)
    return found


def _check(folders: Sequence[DatasetFolder], cards: Sequence[Card]) -> None:
    first = cards[0]
    for folder, card in zip(folders, cards, strict=True):
        if (card.machine.id, card.protocol.threads) != (first.machine.id, first.protocol.threads):
            raise MachineError(f"{folder.path}: another machine or number of threads than {folders[0].path}")
        _check_alike(folder, card, first, str(folders[0].path))
    families = {model.family for card in cards for model in card.planned}
    if len(families) < MIN_FAMILIES:
        raise DatasetError(
            f"families: {len(families)}, and at least {MIN_FAMILIES} are needed, to hold one out; "
            "`latmod sweep kernels --kernels` measures generated ones here"
        )


def _check_lender(folder: DatasetFolder, card: Card, first: Card) -> None:
    """Raise where other kernels run."""
    if card.protocol.threads != first.protocol.threads:
        raise MachineError(f"{folder.path}: other threads than {first.name}: other kernels run there")
    _check_alike(folder, card, first, first.name)


def _check_alike(folder: DatasetFolder, card: Card, first: Card, than: str) -> None:
    if any(card.runtimes.get(name, version) != version for name, version in first.runtimes.items()):
        raise MachineError(f"{folder.path}: another version of a runtime than {than}")
    published = sorted({m.family for m in card.models if FAMILIES[m.family].published})
    if published:
        raise DatasetError(
            f"{folder.path}: holds published networks ({', '.join(published)}), which are there to test on; "
            "leave it out"
        )


def _told(models: Sequence[LabelledModel]) -> bool:
    return any(math.isfinite(model.told_ns) for model in models)


def _report(
    cards: Sequence[Card],
    runtime: str,
    models: Sequence[LabelledModel],
    also: Sequence[LabelledModel],
    correction: Correction,
    fits: Fits,
    seed: int,
) -> KernelReport:
    held, fitted = fits.held, fits.whole
    # What is asked about is now like what was measured, now of a new family: half of either.
    widths = calibrate_widths([*held, *fits.known])
    card = cards[0]
    threads = card.protocol.threads
    rows = [
        _row(card.name, runtime, threads, "all", held, widths),
        _row(card.name, runtime, threads, "all, of known families", fits.known, widths),
    ]
    for family in sorted({one.family for one in held}):
        own = [one for one in held if one.family == family]
        rows.append(_row(card.name, runtime, threads, family, own, widths))
    return KernelReport(
        dataset=card.name,
        runtime=runtime,
        rows=tuple(rows),
        parts=tuple(decompose(fitted, models)),
        fits=fits,
        artifact=_artifact(
            cards,
            runtime,
            models,
            also,
            correction,
            fitted,
            rows[0],
            widths,
            pair_quantile(models, held, fitted, seed),
        ),
    )


def score_held(held: Sequence[Held], widths: Widths) -> Scores:
    """Score models that were held out, with the intervals that an artifact would give."""
    truth = np.array([one.latency_ns for one in held])
    predicted = np.array([one.predicted_ns for one in held])
    factors = np.exp([widths.of(one.predicted_ns, one.unseen_share, one.never_share, one.doubt) for one in held])
    return score(truth, predicted, predicted / factors, predicted * factors)


def pair_quantile(models: Sequence[LabelledModel], held: Sequence[Held], fitted: Additive, seed: int = 0) -> float:
    """Return the quantile of the error of a pair of networks, per share of time that they do not have in common.

    Over pairs of one family, which is what changes of a network look like; each was predicted without its family.
    """
    told = [
        Breakdown(
            kernels=model.kernels,
            kernel_ns=tuple(own.tolist()),
            run_ns=fitted.run_ns,
            unseen=(),
        )
        for model, own in zip(models, priced(fitted, models), strict=True)
    ]
    pairs = [
        (one, other)
        for one, other in itertools.combinations(range(len(models)), 2)
        if models[one].family == models[other].family
    ]
    random.Random(seed).shuffle(pairs)
    # Two data sets may have the same network.
    errors = [
        abs(held[one].log_error - held[other].log_error) / share
        for one, other in pairs[:_MAX_PAIRS]
        if (share := apart(told[one], told[other])) > 0.0
    ]
    return conformal_quantile(np.array(errors), COVERAGE)


def _row(dataset: str, runtime: str, threads: int, family: str, held: Sequence[Held], widths: Widths) -> FamilyRow:
    found = score_held(held, widths)
    sums = [abs(one.kernel_sum_ns / one.latency_ns - 1.0) for one in held if np.isfinite(one.kernel_sum_ns)]
    unmatched = [one.unmatched_share for one in held if np.isfinite(one.unmatched_share)]
    return FamilyRow(
        dataset=dataset,
        runtime=runtime,
        threads=threads,
        family=family,
        models=len(held),
        mape=found.mape,
        median_error=found.median_error,
        within_5=found.within_5,
        within_10=found.within_10,
        r2_log=found.r2_log,
        spearman=found.spearman,
        coverage=found.coverage,
        width=found.width,
        noise_floor=median_known([one.noise for one in held]),
        kernel_sum_mape=float(np.mean(sums)) if sums else float("nan"),
        unseen_share=float(np.mean([one.unseen_share for one in held])),
        unmatched_share=float(np.mean(unmatched)) if unmatched else float("nan"),
    )


def _artifact(
    cards: Sequence[Card],
    runtime: str,
    models: Sequence[LabelledModel],
    also: Sequence[LabelledModel],
    correction: Correction,
    fitted: Additive,
    overall: FamilyRow,
    widths: Widths,
    between: float,
) -> Artifact:
    first = cards[0]
    lent = told_kernels(also)
    kernels = [*(kernel for model in models for kernel in model.kernels), *lent]
    residual, seen = residual_to_onnx(fitted)
    scored = ("mape", "median_error", "within_5", "within_10", "r2_log", "spearman", "coverage", "width")
    card = KernelCard(
        schema=KERNEL_SCHEMA,
        latmod=__version__,
        dataset=first.name,
        space=msgspec.json.encode([space for card in cards for space in card.spaces]).decode(),
        statistic=Statistic.MEDIAN_OF_MINIMA.value,
        runtime=runtime,
        runtime_version=first.runtimes[runtime],
        settings=first.settings.get(runtime, {}),
        threads=first.protocol.threads,
        batches=(1,),
        machine_id=first.machine.id,
        machine=first.machine.label,
        isa=first.machine.isa,
        nominal=correction.nominal,
        drift_weights=correction.weights,
        fault_ns=correction.fault_ns,
        models=len(models),
        scores={name: getattr(overall, name) for name in scored},
        noise_floor=None if math.isnan(overall.noise_floor) else overall.noise_floor,
        coverage=COVERAGE,
        quantiles=widths.quantiles,
        width_slope=widths.slope,
        width_range_ns=widths.range_ns,
        width_doubt_slope=widths.doubt_slope,
        width_doubt_range=widths.doubt_range,
        scatter=widths.scatter,
        rules=kernel_rules(runtime),
        families=tuple(sorted({model.family for model in models})),
        kernels=len(kernels),
        borrowed=tuple(sorted({kernel.kind for kernel in lent})),
        physical=PHYSICAL,
        kinds=fitted.rates.kinds,
        rates=fitted.rates.rates,
        scales=fitted.scales,
        call_ns=fitted.call_ns,
        run_ns=fitted.run_ns,
        seen=seen,
        ranges=observe_ranges(kernels),
        pair_quantile=between,
        load_prices=fit_load([model.kernels for model in models], [model.load_ns for model in models]),
    )
    return Artifact(card=card, content=pack(residual, card))
