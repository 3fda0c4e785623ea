"""Hold what fitting finds out, as flat records that a table, JSON or CSV can be made of, and as predictor files."""

import msgspec
import numpy as np

from latmod import __version__
from latmod.artifact import GRAPH_SCHEMA, AnyCard, GraphCard, pack
from latmod.dataset import Observation
from latmod.regressors import Candidate, Params, describe
from latmod.study import COVERAGE, Calibration, CrossSeed, Table, fit_table
from latmod.timing import Reference, Statistic

_SCORED = (
    "r2", "r2_worst", "r2_log", "mape", "median_error", "within_5", "within_10", "spearman", "coverage", "width",
)  # fmt: skip


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Say where observations come from: what a predictor's card tells beyond its scores.

    `machine` is the phrase that predictions carry (the machine id where empty), `isa` its instruction set; `settings`,
    `drift_weights` and `fault_ns` are by runtime; `nominal` is the state of the machine that the latencies are stated
    for.
    """

    dataset: str
    space: str = ""
    machine: str = ""
    isa: tuple[str, ...] = ()
    settings: dict[str, dict[str, str | int | bool]] = {}
    nominal: Reference | None = None
    drift_weights: dict[str, tuple[float, ...]] = {}
    fault_ns: dict[str, float] = {}


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the observations of one runtime and number of threads, and their table."""

    runtime: str
    threads: int
    observations: tuple[Observation, ...]
    table: Table
    noise_floor: float


class FitRow(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one regressor's cross-seed scores, flat; errors and shares are fractions."""

    dataset: str
    runtime: str
    threads: int
    regressor: str
    role: str
    features: str
    target: str
    params: str
    validation_score: float
    models: int
    split_seeds: int
    regressor_seeds: int
    r2: float
    r2_std: float
    r2_worst: float
    r2_log: float
    mape: float
    mape_std: float
    median_error: float
    within_5: float
    within_10: float
    spearman: float
    coverage: float
    width: float
    noise_floor: float


class TransferRow(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one regressor's scores on models unlike those it was fitted on, flat."""

    runtime: str
    threads: int
    trained_on: str
    tested_on: str
    regressor: str
    role: str
    features: str
    target: str
    train_models: int
    test_models: int
    r2: float
    r2_log: float
    mape: float
    median_error: float
    within_5: float
    within_10: float
    spearman: float
    coverage: float
    width: float


class ChosenRow(msgspec.Struct, frozen=True, kw_only=True):
    """Hold which regressor is shipped for one runtime, and what decided."""

    dataset: str
    runtime: str
    threads: int
    regressor: str
    features: str
    target: str
    params: str
    models: int
    cross_validated_mape: float
    noise_floor: float
    quantile: float


class Winner(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a candidate with its chosen hyper-parameters, for one runtime."""

    runtime: str
    threads: int
    candidate: Candidate
    params: Params


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a predictor file before it is written."""

    card: AnyCard
    content: bytes

    @property
    def file_name(self) -> str:
        """Return the name it ships under."""
        return f"{self.card.dataset}-{self.card.runtime}-{self.card.threads}t.onnx"


class FitReport(msgspec.Struct, frozen=True, kw_only=True):
    """Hold all that `fit` found out about one data set."""

    dataset: str
    statistic: Statistic
    rows: tuple[FitRow, ...]
    transfers: tuple[TransferRow, ...]
    chosen: tuple[ChosenRow, ...]
    winners: tuple[Winner, ...]
    artifacts: tuple[Artifact, ...]


def fit_row(dataset: str, g: Group, found: CrossSeed) -> FitRow:
    """Return one line of the table of regressors."""
    means = ("r2", "r2_log", "mape", "median_error", "within_5", "within_10", "spearman", "coverage", "width")
    return FitRow(
        dataset=dataset,
        runtime=g.runtime,
        threads=g.threads,
        regressor=found.candidate.regressor,
        role=found.candidate.role,
        features=found.candidate.features,
        target=found.candidate.target,
        params=describe(found.params),
        validation_score=found.validation_score,
        models=len(g.table),
        split_seeds=found.split_seeds,
        regressor_seeds=found.regressor_seeds,
        r2_std=found.deviation("r2"),
        r2_worst=found.worst_r2(),
        mape_std=found.deviation("mape"),
        noise_floor=g.noise_floor,
        **{name: found.mean(name) for name in means},
    )


def chosen_row(dataset: str, g: Group, found: CrossSeed, calibration: Calibration) -> ChosenRow:
    """Return what ships for one runtime, and what decided."""
    return ChosenRow(
        dataset=dataset,
        runtime=g.runtime,
        threads=g.threads,
        regressor=found.candidate.regressor,
        features=found.candidate.features,
        target=found.candidate.target,
        params=describe(found.params),
        models=len(g.table),
        cross_validated_mape=calibration.mape,
        noise_floor=g.noise_floor,
        quantile=calibration.quantiles[0],
    )


def make_artifact(
    origin: Origin, statistic: Statistic, seed: int, g: Group, found: CrossSeed, calibration: Calibration
) -> Artifact:
    """Fit the chosen regressor to all models of a group and return the predictor file."""
    row = fit_row(origin.dataset, g, found)
    first = g.observations[0]
    card = GraphCard(
        schema=GRAPH_SCHEMA,
        latmod=__version__,
        dataset=origin.dataset,
        space=origin.space,
        statistic=statistic.value,
        runtime=g.runtime,
        runtime_version=first.runtime_version,
        settings=origin.settings.get(g.runtime, {}),
        threads=g.threads,
        batches=tuple(sorted({o.batch for o in g.observations})),
        machine_id=first.machine_id,
        machine=origin.machine or first.machine_id,
        isa=origin.isa,
        nominal=origin.nominal,
        drift_weights=origin.drift_weights.get(g.runtime, ()),
        fault_ns=origin.fault_ns.get(g.runtime, 0.0),
        features=g.table.names,
        domain=g.table.domain(),
        models=len(g.table),
        regressor=found.candidate.regressor,
        feature_set=found.candidate.features,
        target=found.candidate.target,
        params=found.params,
        regressor_seed=seed,
        chosen_by="smallest MAPE out of fold (5 folds) over all regressors but the baselines",
        scores={name: _known(getattr(row, name)) for name in _SCORED},
        noise_floor=_known(g.noise_floor),
        coverage=COVERAGE,
        quantiles=calibration.quantiles,
    )
    fitted = fit_table(found.candidate, found.params, g.table, seed)
    return Artifact(card=card, content=pack(fitted.to_onnx(len(g.table.names)), card))


def _known(value: float) -> float | None:
    """Return None for what JSON has no number for."""
    return value if np.isfinite(value) else None
