"""Bring prices of kernels to an engine, or a machine, that they were not fitted to, by one factor per kind of kernel.

Factors are fitted to whole latencies. A few dozen of these cannot tell every kind's, so there is a common factor, what
each class of kernels differs from it, and what each kind differs from its class, the last two drawn to nothing.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.additive import OTHER, Additive, others_of
from latmod.kernels import Kernel
from latmod.kernels.columns import Columns

Floats = NDArray[np.float64]

_NOISE = 0.1
"""How far a latency lies from what factors make of it, in logs: what the pulls are measured against."""
_CLASS_PULL, _KIND_PULL = 10.0, 100.0
"""How strongly classes and kinds are drawn to what stands above them: one over the square of how far they differ.

Compared with 10 to 100 and 40 to 300 on five machines, each from the other four: errors move by 0.2 and 0.7 points.
"""
_FAR = 0.3
"""Errors beyond count as if they were so large (Huber)."""
_TURNS = 10


class Adapted(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the prices of another engine or machine, and the factor of each kind, of each class, and of `OTHER`."""

    prices: Additive
    factors: dict[str, float]

    @property
    def run_ns(self) -> float:
        """Return what a run takes beside its kernels."""
        return self.prices.run_ns * self.factors[OTHER]

    def kernel_ns(self, kernels: Sequence[Kernel], columns: Columns | None = None) -> Floats:
        """Return what each kernel takes, in ns; `columns` are theirs, made where not given."""
        return self.doubted_ns(kernels, columns)[0]

    def doubted_ns(self, kernels: Sequence[Kernel], columns: Columns | None = None) -> tuple[Floats, Floats]:
        """Return this, and by how much networks differ about each, the standard deviation of logarithms."""
        took, doubts = self.prices.doubted_ns(kernels, columns)
        return np.asarray(took * factors_of(kernels, self.factors)), doubts


def factor_of(kind: str, factors: dict[str, float]) -> float:
    """Return the factor of a kind, that of its class where it was not seen, the common one where that was not."""
    return factors.get(kind, factors.get(others_of(kind), factors[OTHER]))


def factors_of(kernels: Sequence[Kernel], factors: dict[str, float]) -> Floats:
    """Return the factor of each kernel, [kernels]."""
    known = {kind: factor_of(kind, factors) for kind in {kernel.kind for kernel in kernels}}
    return np.array([known[kernel.kind] for kernel in kernels])


def fit_factors(
    networks: Sequence[Sequence[Kernel]], kernel_ns: Sequence[Floats], run_ns: float, latency_ns: Sequence[float]
) -> dict[str, float]:
    """Fit factors to latencies in ns, on log error, by reweighted least squares (Gauss-Newton).

    `kernel_ns` are the prices to be scaled, of each kernel of each network; `run_ns` is scaled with the common factor.
    """
    kinds = sorted({kernel.kind for kernels in networks for kernel in kernels})
    classes = sorted({others_of(kind) for kind in kinds})
    places = {kind: place for place, kind in enumerate(kinds)}
    sums = np.zeros((len(networks), len(kinds) + 1))
    sums[:, -1] = run_ns
    for row, (kernels, own) in enumerate(zip(networks, kernel_ns, strict=True)):
        np.add.at(sums[row], [places[kernel.kind] for kernel in kernels], own)
    # Each kind's logarithm is the sum of the common one, its class's and its own; that of a run is the common one.
    made_of = np.zeros((len(kinds) + 1, 1 + len(classes) + len(kinds)))
    made_of[:, 0] = 1.0
    for kind, place in places.items():
        made_of[place, [1 + classes.index(others_of(kind)), 1 + len(classes) + place]] = 1.0
    pulls = np.sqrt(np.array([0.0] + [_CLASS_PULL] * len(classes) + [_KIND_PULL] * len(kinds)))
    wanted = np.log(latency_ns)
    logs = np.zeros(len(pulls))
    logs[0] = np.median(wanted - np.log(sums.sum(axis=1)))
    for _ in range(_TURNS):
        parts = sums * np.exp(made_of @ logs)
        total = parts.sum(axis=1)
        error = wanted - np.log(total)
        weights = np.sqrt(np.minimum(1.0, _FAR / np.maximum(np.abs(error), 1e-9))) / _NOISE
        slopes = parts / total[:, None] @ made_of
        left = np.concatenate([slopes * weights[:, None], np.diag(pulls)])
        right = np.concatenate([error * weights, -pulls * logs])
        logs = logs + np.linalg.lstsq(left, right, rcond=None)[0]
    of_classes = {name: float(np.exp(logs[0] + logs[1 + place])) for place, name in enumerate(classes)}
    of_kinds = {kind: float(own) for kind, own in zip(kinds, np.exp(made_of @ logs), strict=False)}
    return {OTHER: float(np.exp(logs[0]))} | of_classes | of_kinds
