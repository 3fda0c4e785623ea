"""Parts that predictors are made of: each maps features to one number per model, in numpy and as ONNX nodes.

A part is fitted once and then frozen. `predict` takes float32 [N, F] and returns float64 [N]; `write` adds the same
computation to an ONNX graph.
"""

from typing import Protocol

import msgspec
import numpy as np

from latmod.columns import Features, Floats, View, Writer

Rows = tuple[tuple[float, ...], ...]


class Part(Protocol):
    """Map features to one number per model."""

    def predict(self, x: Features) -> Floats:
        """Return one number per row."""

    def write(self, out: Writer, features: str, x: str) -> str:
        """Add nodes for the same numbers; `features` is the input, `x` the same as float64 [N, F]. Return [N, 1]."""


class Linear(msgspec.Struct, frozen=True, kw_only=True):
    """Weigh columns and add a constant."""

    view: View
    weights: tuple[float, ...]
    constant: float

    def predict(self, x: Features) -> Floats:
        """Return the weighted sums."""
        return np.asarray(self.view.apply(x) @ np.array(self.weights) + self.constant, dtype=np.float64)

    def write(self, out: Writer, features: str, x: str) -> str:
        """Add the weighted sums."""
        weights = out.constant(np.array(self.weights).reshape(-1, 1))
        return out.add("Add", out.add("MatMul", self.view.write(out, x), weights), out.constant(self.constant))


class Trees(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a scikit-learn tree or an ensemble of them, fitted on float32 columns."""

    view: View
    model: object

    def predict(self, x: Features) -> Floats:
        """Return what the trees say."""
        columns = self.view.apply(x).astype(np.float32)
        return np.asarray(self.model.predict(columns), dtype=np.float64)  # type: ignore[attr-defined]

    def write(self, out: Writer, features: str, x: str) -> str:
        """Add the trees."""
        return out.trees(self.model, self.view.size, self.view.write(out, x))


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """Interpolate between the models seen: a weighted sum of bumps around them, which fade to 0 far from all.

    The bump at distance r is Matérn's with smoothness 3/2, (1 + r) exp(-r): engines change their ways at certain
    sizes, and rougher than a Gaussian fits that better.
    """

    view: View
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    centres: Rows
    weights: tuple[float, ...]
    constant: float

    def predict(self, x: Features) -> Floats:
        """Return the interpolation."""
        z = (self.view.apply(x) - np.array(self.mean)) / np.array(self.scale)
        return np.asarray(_bumps(z, np.array(self.centres)) @ np.array(self.weights) + self.constant)

    def write(self, out: Writer, features: str, x: str) -> str:
        """Add the interpolation; |z - c|^2 is written out as |z|^2 - 2 z.c + |c|^2."""
        centred = out.add("Sub", self.view.write(out, x), out.constant(np.array(self.mean)))
        z = out.add("Div", centred, out.constant(np.array(self.scale)))
        centres = np.array(self.centres)
        norm = out.add("MatMul", out.add("Mul", z, z), out.constant(np.ones((centres.shape[1], 1))))
        cross = out.add("MatMul", z, out.constant(-2.0 * centres.T))
        squared = out.add("Add", out.add("Add", norm, cross), out.constant((centres**2).sum(axis=1)))
        distance = out.add("Sqrt", out.add("Max", squared, out.constant(0.0)))
        fading = out.add("Exp", out.add("Neg", distance))
        bumps = out.add("Mul", out.add("Add", distance, out.constant(1.0)), fading)
        total = out.add("MatMul", bumps, out.constant(np.array(self.weights).reshape(-1, 1)))
        return out.add("Add", total, out.constant(self.constant))


def _bumps(a: Floats, b: Floats) -> Floats:
    squared = (a**2).sum(axis=1)[:, None] - 2.0 * a @ b.T + (b**2).sum(axis=1)[None, :]
    distance = np.sqrt(np.maximum(squared, 0.0))
    return np.asarray((1.0 + distance) * np.exp(-distance))


def fit_physics(view: View, x: Features, latency_ms: Floats, ridge: float) -> Linear:
    """Fit a non-negative combination of a constant and physical quantities, on relative error.

    Every row is divided by its latency, so that 1 % of a small model weighs as much as 1 % of a large one. Columns are
    brought to the same norm; `ridge` then shares the cost between columns that say nearly the same.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    columns = np.concatenate([view.apply(x), np.ones((len(x), 1))], axis=1) / latency_ms[:, None]
    norms = np.linalg.norm(columns, axis=0)
    norms[norms == 0.0] = 1.0
    scaled = columns / norms
    penalty = np.sqrt(ridge) * np.eye(scaled.shape[1])
    target = np.concatenate([np.ones(len(x)), np.zeros(scaled.shape[1])])
    weights, _ = nnls(np.concatenate([scaled, penalty]), target, maxiter=100 * scaled.shape[1])
    weights = weights / norms
    return Linear(view=view, weights=tuple(weights[:-1].tolist()), constant=float(weights[-1]))


def fit_ridge(view: View, x: Features, target: Floats, alpha: float) -> Linear:
    """Fit ridge regression on standardised columns; the result is stated for the columns as they are."""
    columns = view.apply(x)
    mean, scale = _standard(columns)
    z = (columns - mean) / scale
    centre = float(target.mean())
    weights = np.linalg.solve(z.T @ z + alpha * np.eye(z.shape[1]), z.T @ (target - centre)) / scale
    return Linear(view=view, weights=tuple(weights.tolist()), constant=centre - float(mean @ weights))


LENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
NOISES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)


def fit_kernel(view: View, x: Features, target: Floats) -> Kernel:
    """Fit kernel ridge regression on standardised columns.

    Length (in units of the root of the number of varying columns) and noise are those with the smallest leave-one-out
    error, known in closed form: residual_i / (1 - H_ii) (Rasmussen & Williams, Gaussian Processes, 2006, section
    5.4.2).
    """
    columns = view.apply(x)
    mean, scale = _standard(columns)
    centre = float(np.median(target))
    varying = max(1, int(np.sum(np.ptp(columns, axis=0) > 0.0)))
    best = (np.inf, 0.0, np.zeros(len(x)))
    for length in LENGTHS:
        stretch = length * np.sqrt(varying / 3.0)
        z = (columns - mean) / (scale * stretch)
        values, vectors = np.linalg.eigh(_bumps(z, z))
        rotated = vectors.T @ (target - centre)
        for noise in NOISES:
            inverse = 1.0 / (np.maximum(values, 0.0) + noise)
            weights = vectors @ (rotated * inverse)
            diagonal = (vectors**2) @ inverse
            error = float(np.mean(np.abs(weights / diagonal)))
            if error < best[0]:
                best = (error, float(stretch), weights)
    _, stretch, weights = best
    scale = scale * stretch
    centres = (columns - mean) / scale
    return Kernel(
        view=view,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        centres=tuple(tuple(row) for row in centres.tolist()),
        weights=tuple(weights.tolist()),
        constant=centre,
    )


def _standard(columns: Floats) -> tuple[Floats, Floats]:
    mean, scale = columns.mean(axis=0), columns.std(axis=0)
    return mean, np.where(scale > 1e-9 * np.maximum(np.abs(mean), 1e-9), scale, 1.0)
