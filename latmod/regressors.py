"""The regressors that are compared, each over a documented grid of its main hyper-parameters.

Three roles. *study*: the three of the study that latmod grows out of, on both target scales and both feature sets.
*candidate*: what is meant to beat them. *baseline*: what any predictor must beat to be worth its name.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from latmod import columns
from latmod.columns import Features, FeatureSet, Floats, View, Writer
from latmod.physics import Linear, Part, Trees, fit_kernel, fit_physics, fit_ridge

if TYPE_CHECKING:
    from onnx import ModelProto

Params = dict[str, str | int | float | bool | None]
Role = Literal["study", "candidate", "baseline"]
Target = Literal["latency", "log latency"]

MAX_EXPONENT = 30.0
"""Bound of the logarithm of a predicted latency in ms: exp(30) ms is 300 years, and still a number."""


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """Map features to latency: the product of `factors`, each at least `floor`, times exp of the sum of `exponents`."""

    factors: tuple[Part, ...] = ()
    exponents: tuple[Part, ...] = ()
    floor: float = 0.0

    def predict(self, x: Features) -> Floats:
        """Return the latency in ms, [N], of features [N, F]."""
        latency = np.ones(len(x))
        for part in self.factors:
            latency = latency * np.maximum(part.predict(x), self.floor)
        if self.exponents:
            exponent = np.sum([part.predict(x) for part in self.exponents], axis=0)
            latency = latency * np.exp(np.clip(exponent, -MAX_EXPONENT, MAX_EXPONENT))
        return latency

    def to_onnx(self, features: int) -> "ModelProto":
        """Return the same map as an ONNX model with input `features` and output `latency_ms`."""
        out = Writer(features)
        x = out.cast("features", "float64")
        terms = [out.add("Max", part.write(out, "features", x), out.constant(self.floor)) for part in self.factors]
        if self.exponents:
            exponent = self.exponents[0].write(out, "features", x)
            for part in self.exponents[1:]:
                exponent = out.add("Add", exponent, part.write(out, "features", x))
            bounded = out.add("Clip", exponent, out.constant(-MAX_EXPONENT), out.constant(MAX_EXPONENT))
            terms.append(out.add("Exp", bounded))
        latency = terms[0]
        for term in terms[1:]:
            latency = out.add("Mul", latency, term)
        return out.finish(latency_ms=latency)


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """Name a regressor, what it sees and predicts, and the grid its hyper-parameters are chosen from.

    `seeded` tells whether the regressor seed changes it; `criterion` is what the choice on the validation split goes
    by.
    """

    regressor: str
    role: Role
    features: FeatureSet
    target: Target
    grid: tuple[Params, ...]
    seeded: bool
    criterion: Literal["r2", "mape"]


def _product(**axes: Sequence[str | int | float | bool | None]) -> tuple[Params, ...]:
    grid: list[Params] = [{}]
    for name, values in axes.items():
        grid = [{**params, name: value} for params in grid for value in values]
    return tuple(grid)


STUDY_GRIDS: dict[str, tuple[Params, ...]] = {
    "LinearRegression": _product(fit_intercept=(True, False), positive=(False, True)),
    "DecisionTreeRegressor": _product(
        max_depth=(None, 4, 6, 8, 12), min_samples_leaf=(1, 2, 4), max_features=(1.0, 0.5)
    ),
    "RandomForestRegressor": _product(
        n_estimators=(20, 50), max_depth=(None, 8), max_features=(1.0, 0.5, 0.3), min_samples_leaf=(1, 2)
    ),
}
"""Keyword arguments of the scikit-learn classes of these names."""

OWN_GRIDS: dict[str, tuple[Params, ...]] = {
    "LogLinearRidge": _product(alpha=(0.01, 0.1, 1.0, 10.0)),
    "Physics": _product(ridge=(1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
    "PhysicsBoosting": _product(
        ridge=(1e-5, 1e-3), n_estimators=(50, 100), max_depth=(2, 3), learning_rate=(0.1,), subsample=(0.6,)
    ),
    "PhysicsKernel": _product(ridge=(1e-5, 1e-4, 1e-3), columns=("shape", "mix", "log")),
}
"""`ridge` is the penalty of the physics part on columns of unit norm; the rest belongs to the residual."""

BASELINES = ("MACsOnly", "LogLinearTotals", "NonNegativeTotals")
_TOTALS = ("macs", "params", "activation_bytes")


def candidates() -> tuple[Candidate, ...]:
    """Return all that `fit` compares, in the order of its table."""
    found = [
        Candidate(
            regressor=name,
            role="study",
            features=features,
            target=target,
            grid=grid,
            seeded=name != "LinearRegression",
            criterion="r2",
        )
        for name, grid in STUDY_GRIDS.items()
        for features in ("study", "graph")
        for target in ("latency", "log latency")
    ]
    found += [
        Candidate(
            regressor=name,
            role="candidate",
            features="graph",
            target="latency" if name == "Physics" else "log latency",
            grid=grid,
            seeded=name == "PhysicsBoosting",
            criterion="mape",
        )
        for name, grid in OWN_GRIDS.items()
    ]
    found += [
        Candidate(
            regressor=name,
            role="baseline",
            features="graph",
            target="log latency" if name == "LogLinearTotals" else "latency",
            grid=({},),
            seeded=False,
            criterion="mape",
        )
        for name in BASELINES
    ]
    return tuple(found)


def train(
    candidate: Candidate, params: Params, names: Sequence[str], x: Features, latency_ms: Floats, seed: int
) -> Fitted:
    """Fit a candidate with one choice of hyper-parameters to features [N, F] and latencies [N].

    A regressor on the latency scale is kept above a tenth of the smallest latency seen: a network that takes no or
    negative time is never the answer, and relative scores stay finite.
    """
    build = _BUILDERS[candidate.regressor]
    parts = build(candidate, params, names, x, latency_ms, seed)
    return msgspec.structs.replace(parts, floor=0.1 * float(latency_ms.min()))


def _study(
    candidate: Candidate, params: Params, names: Sequence[str], x: Features, latency_ms: Floats, seed: int
) -> Fitted:
    view = columns.study_view(names) if candidate.features == "study" else columns.graph_view(names)
    target = np.log(latency_ms) if candidate.target == "log latency" else latency_ms
    part = _linear(params, view, x, target) if candidate.regressor == "LinearRegression" else None
    part = part or _trees(candidate.regressor, params, view, x, target, seed)
    return Fitted(exponents=(part,)) if candidate.target == "log latency" else Fitted(factors=(part,))


def _linear(params: Params, view: View, x: Features, target: Floats) -> Part:
    """Fit least squares on columns of unit size: beside MACs, block counts would fall under its rank cut-off."""
    from sklearn.linear_model import LinearRegression

    seen = view.apply(x)
    scale = np.abs(seen).max(axis=0)
    scale[scale == 0.0] = 1.0
    model = LinearRegression(**params).fit(seen / scale, target)
    weights = np.asarray(model.coef_, dtype=np.float64) / scale
    return Linear(view=view, weights=tuple(weights.tolist()), constant=float(model.intercept_))


def _trees(name: str, params: Params, view: View, x: Features, target: Floats, seed: int) -> Part:
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestRegressor
    from sklearn.tree import DecisionTreeRegressor

    kinds = {kind.__name__: kind for kind in (DecisionTreeRegressor, RandomForestRegressor, GradientBoostingRegressor)}
    model = kinds[name](**params, random_state=seed)
    return Trees(view=view, model=model.fit(view.apply(x).astype(np.float32), target))


def _physics(
    candidate: Candidate, params: Params, names: Sequence[str], x: Features, latency_ms: Floats, seed: int
) -> Fitted:
    """Fit physics and, if the candidate has one, a residual on log(measured / physics)."""
    base = fit_physics(columns.additive_view(names), x, latency_ms, float(params["ridge"] or 0.0))
    floor = 0.1 * float(latency_ms.min())
    residual = np.log(latency_ms / np.maximum(base.predict(x), floor))
    if candidate.regressor == "PhysicsBoosting":
        boosting: Params = {key: value for key, value in params.items() if key != "ridge"}
        boosting |= {"max_features": 0.3, "min_samples_leaf": 5}
        view = columns.scale_free_view(names)
        return Fitted(
            factors=(base,),
            exponents=(_trees("GradientBoostingRegressor", boosting, view, x, residual, seed),),
        )
    if candidate.regressor == "PhysicsKernel":
        view = _KERNEL_VIEWS[str(params["columns"])](names)
        return Fitted(factors=(base,), exponents=(fit_kernel(view, x, residual),))
    return Fitted(factors=(base,))


def _log_linear(
    candidate: Candidate, params: Params, names: Sequence[str], x: Features, latency_ms: Floats, seed: int
) -> Fitted:
    baseline = candidate.role == "baseline"
    view = columns.totals_view(names, _TOTALS, logs=True) if baseline else columns.log_view(names)
    alpha = 1e-6 if baseline else float(params["alpha"] or 0.0)
    return Fitted(exponents=(fit_ridge(view, x, np.log(latency_ms), alpha),))


def _macs_only(
    candidate: Candidate, params: Params, names: Sequence[str], x: Features, latency_ms: Floats, seed: int
) -> Fitted:
    view = columns.totals_view(names, ("macs",))
    rates = latency_ms / np.maximum(view.apply(x)[:, 0], 1.0)
    return Fitted(factors=(Linear(view=view, weights=(float(np.median(rates)),), constant=0.0),))


def _non_negative_totals(
    candidate: Candidate, params: Params, names: Sequence[str], x: Features, latency_ms: Floats, seed: int
) -> Fitted:
    return Fitted(factors=(fit_physics(columns.totals_view(names, _TOTALS), x, latency_ms, 0.0),))


_KERNEL_VIEWS: dict[str, Callable[[Sequence[str]], View]] = {
    "shape": columns.shape_view,
    "mix": columns.mix_view,
    "log": columns.log_view,
}
Builder = Callable[[Candidate, Params, Sequence[str], Features, Floats, int], Fitted]
_BUILDERS: dict[str, Builder] = {
    **dict.fromkeys(STUDY_GRIDS, _study),
    **dict.fromkeys(("Physics", "PhysicsBoosting", "PhysicsKernel"), _physics),
    "LogLinearRidge": _log_linear,
    "LogLinearTotals": _log_linear,
    "MACsOnly": _macs_only,
    "NonNegativeTotals": _non_negative_totals,
}


def describe(params: Params) -> str:
    """Return hyper-parameters as one phrase, `name=value` separated by spaces."""
    return " ".join(f"{key}={_short(value)}" for key, value in params.items())


def _short(value: str | int | float | bool | None) -> str:
    return f"{value:g}" if isinstance(value, float) and math.isfinite(value) else str(value)
