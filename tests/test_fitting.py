import math

import msgspec
import numpy as np
import pytest
from synthetic_resnets import resnets

from latmod.errors import DatasetError, MachineError, PredictorError
from latmod.findings import Origin
from latmod.fitting import MIN_MODELS, fit_observations, fit_transfer, write_artifact
from latmod.predictor import GraphPredictor, load_predictor
from latmod.regressors import BASELINES, STUDY_GRIDS, candidates
from latmod.study import calibrate, choose_params, cross_seed, make_table, out_of_fold, split
from latmod.timing import Statistic

CANDIDATES = {(c.regressor, c.features, c.target): c for c in candidates()}
KERNEL = CANDIDATES["PhysicsKernel", "graph", "log latency"]


def table_of(observations):
    names = tuple(observations[0].features)
    latencies = [o.latency_ns() / 1e6 for o in observations]
    return make_table([o.features for o in observations], [o.family for o in observations], latencies, names)


@pytest.fixture(scope="module")
def observations():
    return resnets(60, seed=5) + resnets(60, seed=5, runtime="beta", speed=1.5)


@pytest.fixture(scope="module")
def report(observations):
    return fit_observations(
        observations,
        Origin(dataset="varied", machine="a test machine", space="resnet-varied-width"),
        split_seeds=2,
        regressor_seeds=2,
        regressors=["LinearRegression", "DecisionTreeRegressor", "Physics", "PhysicsKernel"],
        jobs=1,
    )


def test_every_regressor_has_a_row_per_runtime_feature_set_and_scale(report):
    rows = {(r.runtime, r.regressor, r.features, r.target) for r in report.rows}
    assert len(rows) == len(report.rows) == 2 * (4 + 4 + 1 + 1 + len(BASELINES))
    assert ("beta", "LinearRegression", "study", "log latency") in rows
    assert {r.regressor for r in report.rows if r.role == "baseline"} == set(BASELINES)
    by_name = {r.regressor: r for r in report.rows}
    assert by_name["DecisionTreeRegressor"].regressor_seeds == 2
    assert by_name["LinearRegression"].regressor_seeds == 1
    for row in report.rows:
        assert row.r2_worst <= row.r2
        assert 0.0 < row.noise_floor < 0.02


def test_rows_are_flat(report):
    for row in (*report.rows, *report.transfers, *report.chosen):
        assert all(isinstance(value, str | int | float) for value in msgspec.structs.asdict(row).values())


def test_the_shipped_regressor_has_the_smallest_error_out_of_fold(report, observations):
    for chosen in report.chosen:
        table = table_of([o for o in observations if o.runtime == chosen.runtime])
        errors = {}
        for winner in report.winners:
            if winner.runtime == chosen.runtime and winner.candidate.role != "baseline":
                predicted = out_of_fold(winner.candidate, winner.params, table, 0)
                errors[winner.candidate.regressor, winner.candidate.features, winner.candidate.target] = np.mean(
                    np.abs(predicted / table.latency_ms - 1)
                )
        assert min(errors, key=errors.get) == (chosen.regressor, chosen.features, chosen.target)
        assert min(errors.values()) == pytest.approx(chosen.cross_validated_mape)


def test_transfer_to_the_larger_half_is_reported_for_all(report):
    assert len(report.transfers) == len(report.rows)
    assert {(r.trained_on, r.tested_on) for r in report.transfers} == {("varied: smaller half", "varied: larger half")}
    assert all(r.train_models == r.test_models == 30 for r in report.transfers)


def test_transfer_to_another_data_set(report, observations):
    other = resnets(20, seed=9, width=64)
    rows = fit_transfer(report, observations, other, test_dataset="fixed", jobs=1)
    assert {r.runtime for r in rows} == {"alpha"}
    assert len(rows) == len(report.rows) / 2
    best = min(rows, key=lambda r: r.mape)
    assert (best.trained_on, best.tested_on, best.test_models) == ("varied", "fixed", 20)
    assert best.mape < 0.1


def test_an_artifact_predicts_what_was_fitted(report, observations, tmp_path):
    for artifact in report.artifacts:
        path = write_artifact(artifact, tmp_path / "out")
        predictor = load_predictor(path)
        assert predictor.card == artifact.card
        assert predictor.card.machine == "a test machine"
        assert path.stat().st_size < 300_000
        own = [o for o in observations if o.runtime == predictor.card.runtime]
        predicted = predictor.latency_ms([o.features for o in own])
        errors = [abs(p / (o.latency_ns() / 1e6) - 1) for p, o in zip(predicted, own, strict=True)]
        assert np.mean(errors) < 0.05
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["varied-alpha-1t.onnx", "varied-beta-1t.onnx"]


def test_fitting_twice_gives_the_same_bytes(observations):
    def content():
        few = observations[:20]
        found = fit_observations(
            few, Origin(dataset="d"), split_seeds=1, regressor_seeds=1, regressors=["PhysicsBoosting"], jobs=1
        )
        return found.artifacts[0].content

    assert content() == content()


def test_bars_hold_in_the_cross_seed_test_on_a_known_truth():
    fixed, varied = (
        cross_seed(KERNEL, table_of(resnets(200, seed=1, width=width)), seed=0, split_seeds=10, regressor_seeds=5)
        for width in (64, None)
    )
    assert len(fixed.scores) == 10
    assert fixed.mean("r2") >= 0.998
    assert fixed.mean("mape") <= 0.03
    assert fixed.mean("within_10") >= 0.95
    assert varied.mean("r2") >= 0.995
    assert varied.mean("mape") <= 0.06
    assert varied.mean("within_10") >= 0.85
    assert 0.86 <= fixed.mean("coverage") <= 0.94
    assert 0.86 <= varied.mean("coverage") <= 0.94


def test_splits_are_by_model_and_repeat():
    kept, held = split(200, 3)
    assert sorted([*kept, *held]) == list(range(200))
    assert len(held) == 50
    np.testing.assert_array_equal(held, split(200, 3)[1])


def test_test_models_never_reach_the_regressor_or_its_interval():
    """Spoil the test rows of one split: whatever was fitted must not notice."""
    table = table_of(resnets(80, seed=2))
    _, held = split(len(table), 1)
    spoiled = table.latency_ms.copy()
    spoiled[held] *= 100.0
    other = msgspec.structs.replace(table, latency_ms=spoiled)
    one = cross_seed(
        msgspec.structs.replace(KERNEL, grid=KERNEL.grid[:1]), table, seed=0, split_seeds=1, regressor_seeds=1
    )
    two = cross_seed(
        msgspec.structs.replace(KERNEL, grid=KERNEL.grid[:1]), other, seed=0, split_seeds=1, regressor_seeds=1
    )
    assert two.scores[0].width == one.scores[0].width
    assert two.scores[0].coverage == 0.0


def test_hyper_parameters_are_chosen_by_r2_on_the_validation_split():
    from sklearn.metrics import r2_score

    from latmod.study import fit_table

    candidate = CANDIDATES["DecisionTreeRegressor", "graph", "latency"]
    table = table_of(resnets(80, seed=2))
    params, value = choose_params(candidate, table, seed=0)
    kept, held = split(len(table), 0)
    found = [
        r2_score(table.latency_ms[held], fit_table(candidate, p, table.take(kept), 0).predict(table.x[held]))
        for p in STUDY_GRIDS["DecisionTreeRegressor"]
    ]
    assert value == pytest.approx(max(found))
    assert params == STUDY_GRIDS["DecisionTreeRegressor"][int(np.argmax(found))]


def test_intervals_widen_out_of_domain():
    inside, near, far = calibrate(KERNEL, KERNEL.grid[0], table_of(resnets(80, seed=2)), 0).quantiles
    assert 0.0 < inside <= near <= far


def test_statistics_differ_as_the_rounds_do(observations):
    own = [o for o in observations if o.runtime == "alpha"]
    levels = {}
    for statistic in (Statistic.MEDIAN_OF_MINIMA, Statistic.P90):
        found = fit_observations(
            own,
            Origin(dataset="d"),
            statistic=statistic,
            split_seeds=1,
            regressor_seeds=1,
            regressors=["Physics"],
            jobs=1,
        ).artifacts[0]
        assert found.card.statistic == statistic.value
        predictor = GraphPredictor(found.content, found.card, "memory")
        levels[statistic] = np.median(predictor.latency_ms([o.features for o in own]))
    assert levels[Statistic.P90] / levels[Statistic.MEDIAN_OF_MINIMA] == pytest.approx(1.06, rel=0.02)


def test_few_models_still_fit():
    names = ["LinearRegression", "DecisionTreeRegressor", "PhysicsKernel", "LogLinearRidge"]
    few = resnets(MIN_MODELS, seed=1)
    report = fit_observations(few, Origin(dataset="tiny"), split_seeds=2, regressor_seeds=1, regressors=names, jobs=1)
    assert all(math.isfinite(row.mape) for row in report.rows)
    assert len(report.artifacts) == 1


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        (lambda rows: [], DatasetError, "latmod sweep"),
        (lambda rows: rows[: MIN_MODELS - 1], DatasetError, "7 models"),
        (lambda rows: rows + rows[:1], DatasetError, "twice"),
        (lambda rows: [*rows[1:], msgspec.structs.replace(rows[0], machine_id="other")], MachineError, "2 machines"),
        (lambda rows: [*rows[1:], msgspec.structs.replace(rows[0], runtime_version="9")], MachineError, "1.0, 9"),
    ],
)
def test_what_cannot_be_fitted_gives_one_line(change, kind, words):
    with pytest.raises(kind, match=words) as caught:
        fit_observations(change(resnets(20, seed=1)), Origin(dataset="bad"), jobs=1)
    assert "\n" not in str(caught.value)


def test_unknown_regressor_and_unwritable_folder(report, tmp_path):
    with pytest.raises(PredictorError, match="no regressor Nonsense"):
        fit_observations(resnets(20, seed=1), Origin(dataset="d"), regressors=["Nonsense"], jobs=1)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="choose another folder"):
        write_artifact(report.artifacts[0], tmp_path / "file")


def test_transfer_refuses_another_machine(report, observations):
    other = [msgspec.structs.replace(o, machine_id="other") for o in resnets(20, seed=9)]
    with pytest.raises(MachineError):
        fit_transfer(report, observations, other, test_dataset="other", jobs=1)
