"""Price what it takes to open a model: a runtime's start, its work on each kernel, and its packing of weights."""

from collections.abc import Sequence

import numpy as np

from latmod.kernels import Kernel

Prices = tuple[float, float, float]
"""ns per model, per kernel, and per byte of weights; all zero where nothing is known."""

_FEWEST = 3
"""Models below which three prices cannot be told apart."""
_TURNS = 12


def load_ns(kernels: Sequence[Kernel], prices: Prices) -> float:
    """Return what opening a model of these kernels takes, in ns."""
    return float(np.dot(_quantities(kernels), prices))


def fit_load(models: Sequence[Sequence[Kernel]], measured_ns: Sequence[float]) -> Prices:
    """Fit non-negative prices to the load times of models, on relative error.

    By iteratively reweighted least squares, which comes to absolute error: the first model that a process opens also
    pays for imports, and must not count.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    known = [(kernels, took) for kernels, took in zip(models, measured_ns, strict=True) if took > 0]
    if len(known) < _FEWEST:
        return 0.0, 0.0, 0.0
    took = np.array([ns for _, ns in known])
    scaled = np.array([_quantities(kernels) for kernels, _ in known]) / took[:, None]
    norms = np.linalg.norm(scaled, axis=0)
    weights = np.ones(len(took))
    for _ in range(_TURNS):
        solution, _ = nnls(scaled / norms * weights[:, None], weights)
        weights = 1.0 / np.sqrt(np.maximum(np.abs(scaled / norms @ solution - 1.0), 0.01))
    first, second, third = (solution / norms).tolist()
    return first, second, third


def _quantities(kernels: Sequence[Kernel]) -> tuple[float, float, float]:
    return 1.0, float(len(kernels)), sum(kernel.number("bytes_weights") for kernel in kernels)
