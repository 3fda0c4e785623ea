"""Price kernels of kinds that were never measured on a machine by what they took on another one.

A data set that lacks a kind prices it as others of its class: local response normalisation, which takes a power of
every element, came out three times too cheap on the machine whose generated networks had none.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from latmod.additive import Rates, others_of
from latmod.kernel_fitting import fit_rated, parted, training_kernels
from latmod.kernels.columns import Columns, Floats
from latmod.labels import LabelledModel


def borrowed(own: Sequence[LabelledModel], other: Sequence[LabelledModel]) -> list[LabelledModel]:
    """Return the kernels of another machine's networks whose kind has no rates of its own here.

    Of each network that holds any these alone are left, and its latency is nan. Their times are stated for this
    machine: scaled by how it compares with the other in kinds of the same class.
    """
    here, priced = fit_rated(own).rates, fit_rated(other)
    there, told = priced.rates, training_kernels(parted(other, priced))
    ratios = _ratios(here, there, told.kinds, told.columns)
    whole = float(np.median(list(ratios.values())))
    missing = {*there.kinds} - {*here.kinds}
    scales = np.array([ratios.get(others_of(kind), whole) if kind in missing else np.nan for kind in told.kinds])
    labels = np.split(told.label_ns * scales, told.starts[1:])
    return [_left(model, own) for model, own in zip(other, labels, strict=True) if np.isfinite(own).any()]


def _left(model: LabelledModel, label_ns: Floats) -> LabelledModel:
    """Return what is left of a network: the kernels with a label."""
    places, nothing = np.flatnonzero(np.isfinite(label_ns)), float("nan")
    return msgspec.structs.replace(
        model,
        kernels=tuple(model.kernels[place] for place in places),
        columns=model.columns[places],
        kernel_ns=tuple(label_ns[places].tolist()),
        latency_ns=nothing,
        told_ns=nothing,
        unmatched_ns=0.0,
        pieces=(),
    )


def _ratios(here: Rates, there: Rates, kinds: Sequence[str], columns: Columns) -> dict[str, float]:
    """Return by class how many times longer kernels take here: the median over the kinds that both have.

    Each kind counts by the median over its kernels, priced by either's rates.
    """
    relative = np.log(here.ns(kinds, columns) / there.ns(kinds, columns))
    by_class: dict[str, list[float]] = {}
    for kind in sorted({*kinds} & {*here.kinds} & {*there.kinds}):
        by_class.setdefault(others_of(kind), []).append(float(np.median(relative[np.isin(kinds, [kind])])))
    return {name: float(np.exp(np.median(own))) for name, own in by_class.items()}
