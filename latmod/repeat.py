"""Tell how well measurements repeat: two sweeps over the same models, at different hours."""

import msgspec
import numpy as np

from latmod.dataset import DatasetFolder
from latmod.errors import DatasetError, MachineError
from latmod.table import corrections, observations


class Repeatability(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the differences between two sweeps in one runtime; fractions of the first.

    `common_scale` is the median of again over first, minus one: what a drift of the whole machine would show as.
    """

    runtime: str
    corrected: bool
    models: int
    median_difference: float
    within_5: float
    within_10: float
    largest_difference: float
    common_scale: float


def repeatability(first: DatasetFolder, again: DatasetFolder) -> list[Repeatability]:
    """Compare the models that both data sets have, as measured and corrected for drift.

    Both are corrected alike, by what the first, larger one shows of the runtimes, for its nominal state.

    Raises MachineError for two machines or runtime versions, DatasetError where they share no model.
    """
    old, new = first.read_card(), again.read_card()
    if old.machine.id != new.machine.id or any(old.runtimes.get(n, v) != v for n, v in new.runtimes.items()):
        raise MachineError(f"{first.path} and {again.path} come from different machines or versions of a runtime")
    rows = []
    for corrected in (True, False):
        correct = corrections(first) if corrected else {}
        pair = [
            {(one.runtime, one.model): one.latency_ns() for one in observations(folder, correct, with_features=False)}
            for folder in (first, again)
        ]
        for runtime in new.runtimes:
            keys = [key for key in pair[1] if key in pair[0] and key[0] == runtime]
            if keys:
                ratios = np.array([pair[1][key] / pair[0][key] for key in keys])
                rows.append(_row(runtime, corrected, ratios))
    if not rows:
        raise DatasetError(f"{first.path} and {again.path} have no model in common")
    return rows


def _row(runtime: str, corrected: bool, ratios: "np.ndarray") -> Repeatability:
    differences = np.abs(ratios - 1.0)
    return Repeatability(
        runtime=runtime,
        corrected=corrected,
        models=len(ratios),
        median_difference=float(np.median(differences)),
        within_5=float(np.mean(differences <= 0.05)),
        within_10=float(np.mean(differences <= 0.10)),
        largest_difference=float(differences.max()),
        common_scale=float(np.median(ratios) - 1.0),
    )
