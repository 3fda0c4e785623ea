"""Price kernels of kinds, or of sizes, that were never measured on a machine by what they took on another one.

A data set that lacks a kind prices it as others of its class: local response normalisation, which takes a power of
every element, came out three times too cheap on the machine whose generated networks had none; maps resized by
interpolation, which took tract 8 ns an element and OpenVINO half of one (kernels-engines-spr), 0.2 and 7 on Zen 4.
One that has a kind in small sizes alone prices larger ones by what hardly shows there: convolutions along one dim, of
ten thousand multiply-adds at most, said of wav2vec 2's, of a thousand million, that they take tract 98 ms, for 37.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from latmod.additive import Rates, class_of, others_of
from latmod.kernel_fitting import Training, fit_rated, parted, training_kernels
from latmod.kernels import FIELDS, Kernel
from latmod.kernels.ncnn import NAIVE
from latmod.kernels.tract import BATCHED
from latmod.labels import LabelledModel

_FEWEST = 3
"""Kernels of a kind below which there is nothing to lend."""
_SIZES = tuple(FIELDS.index(name) for name in ("macs", "bytes_in", "bytes_out", "bytes_weights"))
_RANK = FIELDS.index("rank")
_FURTHER = 2.0
"""How many times as large as any here a kernel of a known kind is that is lent."""
_WITHOUT_VECTORS = (NAIVE, BATCHED)
"""Ends of kinds of convolutions whose time goes to the same code on every machine."""


class Lender(msgspec.Struct, frozen=True, kw_only=True):
    """Hold networks of another machine, or of this one that are fitted to nothing else; `machine` is its id.

    `alike` tells whether its vector units are as here: on these convolutions hang.
    """

    models: tuple[LabelledModel, ...]
    machine: str
    alike: bool = True


def borrowed(own: Sequence[LabelledModel], lenders: Sequence[Lender], machine: str) -> list[LabelledModel]:
    """Return networks of lenders that hold kernels which have no like on a machine, named by its id.

    Their kind has no rates of its own there, or they are more than twice as large as any of it. Of each network these
    kernels alone are told, its latency is nan. Their times are stated for this machine: scaled by how it compares with
    the other in their kind, or in kinds of the same class, by all that its lenders were told. The other kernels
    stay: the residual is drawn to nothing where it was shown what nobody told (torch on kernels, families left out:
    5.8 % MAPE; without them 6.1). Lenders are asked in their order: of each only what none before it had.
    """
    here = _rated(own)
    known = {*here.rates.kinds}
    have = told_kernels(own)
    ratios = {machine: _Ratios({}, {})}
    found: list[LabelledModel] = []
    for lender in lenders:
        told = [one for one in told_kernels(lender.models) if lender.alike or not _hangs_on_vectors(one.kind)]
        counts = Counter(kernel.kind for kernel in told)
        missing = {kind for kind, count in counts.items() if count >= _FEWEST} - known
        known |= missing
        reach = _reach(have, {*here.excess})
        wanted = [one for one in told if one.kind in missing or (one.kind in reach and reach[one.kind].exceeded(one))]
        if wanted and lender.machine not in ratios:
            ratios[lender.machine] = _ratios(here, _rated(_all_of(lender.machine, lenders)))
        if wanted:
            found += _stated_here(lender.models, {*map(id, wanted)}, ratios[lender.machine])
        have += wanted
    return found


class _Ratios(msgspec.Struct, frozen=True):
    """Hold how many times longer kernels take here than on another machine, by kind and by class of kinds."""

    kinds: Mapping[str, float]
    classes: Mapping[str, float]

    def of(self, kind: str) -> float:
        """Return that of a kind, else of its class, else of all classes, 1 where nothing is known."""
        whole = float(np.median(list(self.classes.values()))) if self.classes else 1.0
        return self.kinds.get(kind, self.classes.get(others_of(kind), whole))


class _Reach(msgspec.Struct, frozen=True):
    """Hold the largest sizes of a kind's kernels, and their ranks: of another rank they are nothing alike."""

    sizes: tuple[float, ...]
    ranks: frozenset[float]

    def exceeded(self, kernel: Kernel) -> bool:
        """Tell whether a kernel is much larger in some respect."""
        larger = any(kernel.numbers[at] > _FURTHER * most for at, most in zip(_SIZES, self.sizes, strict=True))
        return larger and kernel.numbers[_RANK] in self.ranks


def _reach(kernels: Sequence[Kernel], kinds: set[str]) -> dict[str, _Reach]:
    """Return how far the kernels of some kinds reach."""
    by_kind: dict[str, list[Kernel]] = {}
    for kernel in kernels:
        if kernel.kind in kinds:
            by_kind.setdefault(kernel.kind, []).append(kernel)
    return {
        kind: _Reach(
            tuple(max(one.numbers[at] for one in own) for at in _SIZES), frozenset(one.numbers[_RANK] for one in own)
        )
        for kind, own in by_kind.items()
    }


def _all_of(machine: str, lenders: Sequence[Lender]) -> list[LabelledModel]:
    """Return every network of a machine once, without those that never found quiet cores, if there are others.

    A few odd networks would tell little of it: by those of rare operators alone Zen 5 took half as long as itself.
    """
    models = {one.model: one for lender in lenders if lender.machine == machine for one in lender.models}
    return [one for one in models.values() if not one.disturbed] or [*models.values()]


def _hangs_on_vectors(kind: str) -> bool:
    return class_of(kind) == "convolutions" and not kind.endswith(_WITHOUT_VECTORS)


class _Rated(msgspec.Struct, frozen=True):
    """Hold a machine's rates, the kernels that they were fitted to, and how much longer than priced each kind took."""

    rates: Rates
    told: Training
    excess: dict[str, float]
    """Medians of log(told / priced): a kind whose kernels differ is priced as its cheapest, relative error is least so.

    With it 230 kinds, each priced on another machine by the others of its class, are off by 0.37 on average instead of
    0.39 (logs), all together by 0.05 instead of 0.13 (eight pairs of machine and runtime).
    """


def _rated(models: Sequence[LabelledModel]) -> _Rated:
    priced = fit_rated(models)
    told = training_kernels(parted(models, priced))
    known = np.isfinite(told.label_ns)
    kinds = np.array(told.kinds)
    excess = np.log(np.where(known, told.label_ns, 1.0) / priced.rates.ns(told.kinds, told.columns))
    medians = {kind: float(np.median(excess[known & (kinds == kind)])) for kind in sorted({*kinds[known].tolist()})}
    return _Rated(priced.rates, told, medians)


def _stated_here(other: Sequence[LabelledModel], wanted: set[int], ratios: _Ratios) -> list[LabelledModel]:
    """Return what was told of the kernels that are wanted, by their identity, times the ratio of their kind."""
    told = training_kernels(parted(other, fit_rated(other)))
    kernels = [kernel for model in other for kernel in model.kernels]
    by_kind = {kind: ratios.of(kind) for kind in {kernel.kind for kernel in kernels}}
    scales = np.array([by_kind[kernel.kind] if id(kernel) in wanted else np.nan for kernel in kernels])
    nothing = float("nan")
    return [
        msgspec.structs.replace(
            model, kernel_ns=tuple(labels.tolist()), latency_ns=nothing, told_ns=nothing, unmatched_ns=0.0, pieces=()
        )
        for model, labels in zip(other, np.split(told.label_ns * scales, told.starts[1:]), strict=True)
        if np.isfinite(labels).any()
    ]


def told_kernels(models: Sequence[LabelledModel]) -> list[Kernel]:
    """Return the kernels that were told."""
    return [
        kernel for model in models for kernel, ns in zip(model.kernels, model.kernel_ns, strict=True) if np.isfinite(ns)
    ]


def _ratios(here: _Rated, there: _Rated) -> _Ratios:
    """Return how many times longer kernels take here, by kinds that both were told of; by class their median.

    Each kind counts by the median over the other's kernels, priced by either's rates and what they took beyond that.
    """
    kinds = np.array(there.told.kinds)
    relative = np.log(
        here.rates.ns(there.told.kinds, there.told.columns) / there.rates.ns(there.told.kinds, there.told.columns)
    )
    found = {
        kind: float(np.median(relative[kinds == kind])) + here.excess[kind] - there.excess[kind]
        for kind in sorted({*here.excess} & {*there.excess})
    }
    by_class: dict[str, list[float]] = {}
    for kind, ratio in found.items():
        by_class.setdefault(others_of(kind), []).append(ratio)
    return _Ratios(
        kinds={kind: float(np.exp(ratio)) for kind, ratio in found.items()},
        classes={name: float(np.exp(np.median(own))) for name, own in by_class.items()},
    )
