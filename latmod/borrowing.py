"""Price kernels of kinds that were never measured on a machine by what they took on another one.

A data set that lacks a kind prices it as others of its class: local response normalisation, which takes a power of
every element, came out three times too cheap on the machine whose generated networks had none; maps resized by
interpolation, which took tract 8 ns an element and OpenVINO half of one (kernels-engines-spr), 0.2 and 7 on Zen 4.
"""

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np

from latmod.additive import Rates, class_of, others_of
from latmod.kernel_fitting import fit_rated, parted, training_kernels
from latmod.kernels import Kernel
from latmod.kernels.columns import Columns
from latmod.labels import LabelledModel

_FEWEST = 3
"""Kernels of a kind below which there is nothing to lend."""


class Lender(msgspec.Struct, frozen=True, kw_only=True):
    """Hold networks of another machine; `alike` tells whether its vector units are, on which convolutions hang."""

    models: tuple[LabelledModel, ...]
    alike: bool = True


def borrowed(own: Sequence[LabelledModel], lenders: Sequence[Lender]) -> list[LabelledModel]:
    """Return other machines' networks that hold kernels whose kind has no rates of its own here.

    Of each network these kernels alone are told, its latency is nan. Their times are stated for this machine: scaled by
    how it compares with the other in kinds of the same class. The others stay: the residual is drawn to nothing where
    it was shown what nobody told (torch on kernels, families left out: 5.8 % MAPE; without them 6.1). Lenders are asked
    in their order: of each only what none before it had.
    """
    here = fit_rated(own).rates
    known = {*here.kinds}
    found: list[LabelledModel] = []
    for lender in lenders:
        counts = Counter(kernel.kind for kernel in told_kernels(lender.models))
        lent = {kind for kind, count in counts.items() if count >= _FEWEST}
        missing = {kind for kind in lent - known if lender.alike or class_of(kind) != "convolutions"}
        known |= missing
        found += _stated_here(here, lender.models, missing) if missing else []
    return found


def _stated_here(here: Rates, other: Sequence[LabelledModel], missing: set[str]) -> list[LabelledModel]:
    priced = fit_rated(other)
    there, told = priced.rates, training_kernels(parted(other, priced))
    ratios = _ratios(here, there, told.kinds, told.columns)
    whole = float(np.median(list(ratios.values())))
    scales = np.array([ratios.get(others_of(kind), whole) if kind in missing else np.nan for kind in told.kinds])
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


def _ratios(here: Rates, there: Rates, kinds: Sequence[str], columns: Columns) -> dict[str, float]:
    """Return by class how many times longer kernels take here: the median over the kinds that both have.

    Each kind counts by the median over its kernels, priced by either's rates.
    """
    relative = np.log(here.ns(kinds, columns) / there.ns(kinds, columns))
    by_class: dict[str, list[float]] = {}
    for kind in sorted({*kinds} & {*here.kinds} & {*there.kinds}):
        by_class.setdefault(others_of(kind), []).append(float(np.median(relative[np.isin(kinds, [kind])])))
    return {name: float(np.exp(np.median(own))) for name, own in by_class.items()}
