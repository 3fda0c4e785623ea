import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_resnets import resnets

from latmod import columns
from latmod.columns import feature_matrix
from latmod.physics import fit_kernel, fit_physics, fit_ridge
from latmod.regressors import OWN_GRIDS, STUDY_GRIDS, candidates, describe, train


@pytest.fixture(scope="module")
def data():
    observations = resnets(120, seed=3)
    names = tuple(observations[0].features)
    x = feature_matrix([o.features for o in observations], names)
    return names, x, np.array([o.latency_ns() / 1e6 for o in observations])


def run(model, x):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["latency_ms"], {"features": x})[0][:, 0]


@pytest.mark.parametrize(
    "candidate", candidates(), ids=lambda c: f"{c.regressor}-{c.features}-{c.target}".replace(" ", "-")
)
def test_onnx_equals_python_on_seen_unseen_and_absurd_models(candidate, data):
    names, x, latency = data
    fitted = train(candidate, candidate.grid[-1], names, x[:90], latency[:90], seed=1)
    model = fitted.to_onnx(len(names))
    onnx.checker.check_model(model, full_check=True)
    beyond = np.concatenate([x, x * np.float32(7.3), np.zeros_like(x[:1])])
    np.testing.assert_allclose(run(model, beyond), fitted.predict(beyond), rtol=1e-5)
    assert np.all(fitted.predict(beyond) > 0)
    assert {opset.domain for opset in model.opset_import} <= {"", "ai.onnx.ml"}


@pytest.mark.parametrize("candidate", [c for c in candidates() if c.role != "baseline"], ids=lambda c: c.regressor)
def test_a_seed_repeats_and_only_seeded_regressors_depend_on_it(candidate, data):
    names, x, latency = data
    params = next((p for p in candidate.grid if p.get("max_features") != 1.0), candidate.grid[0])
    a, b, c = (train(candidate, params, names, x, latency, seed).predict(x) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert candidate.seeded or np.array_equal(a, c)


def test_study_regressors_equal_scikit_learn_used_directly(data):
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression

    names, x, latency = data
    study = [names.index(name) for name in columns.STUDY]
    by_name = {(c.regressor, c.features, c.target): c for c in candidates()}
    ours = train(by_name["LinearRegression", "study", "latency"], {}, names, x, latency, 0)
    theirs = LinearRegression().fit(x[:, study].astype(float), latency).predict(x[:, study].astype(float))
    np.testing.assert_allclose(ours.predict(x), np.maximum(theirs, 0.1 * latency.min()), rtol=1e-6)
    ours = train(by_name["RandomForestRegressor", "graph", "log latency"], {"n_estimators": 10}, names, x, latency, 4)
    theirs = RandomForestRegressor(n_estimators=10, random_state=4).fit(x, np.log(latency)).predict(x)
    np.testing.assert_allclose(ours.predict(x), np.exp(theirs), rtol=1e-9)


def test_physics_finds_a_true_sum(data):
    names, x, _ = data
    view = columns.totals_view(names, ("macs", "activation_bytes"))
    truth = 3e-8 * x[:, names.index("macs")] + 2e-7 * x[:, names.index("activation_bytes")] + 0.5
    part = fit_physics(view, x, truth.astype(np.float64), ridge=0.0)
    np.testing.assert_allclose([*part.weights, part.constant], [3e-8, 2e-7, 0.5], rtol=1e-3)


def test_physics_is_never_negative(data):
    names, x, latency = data
    part = fit_physics(columns.additive_view(names), x, latency, ridge=1e-4)
    assert min(part.weights) >= 0.0
    assert part.constant >= 0.0


def test_kernel_is_a_gaussian_process(data):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    names, x, latency = data
    view = columns.shape_view(names)
    target = np.log(latency) - np.median(np.log(latency))
    part = fit_kernel(view, x[:90], target[:90])
    z = (view.apply(x) - np.array(part.mean)) / np.array(part.scale)
    errors = {}
    for noise in (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0):
        process = GaussianProcessRegressor(Matern(np.sqrt(3.0), "fixed", nu=1.5), alpha=noise, optimizer=None)
        process.fit(z[:90], target[:90] - part.constant)
        errors[noise] = np.abs(process.predict(z) + part.constant - part.predict(x)).max()
    assert min(errors.values()) < 1e-6


def test_ridge_equals_scikit_learn(data):
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    names, x, latency = data
    view = columns.log_view(names)
    z = StandardScaler().fit_transform(view.apply(x))
    part = fit_ridge(view, x, np.log(latency), alpha=0.7)
    np.testing.assert_allclose(part.predict(x), Ridge(alpha=0.7).fit(z, np.log(latency)).predict(z), rtol=1e-6)


def test_physics_and_residual_beat_the_study_and_the_baselines(data):
    names, x, latency = data

    def mape(candidate, params):
        predicted = train(candidate, params, names, x[:90], latency[:90], 0).predict(x[90:])
        return np.mean(np.abs(predicted / latency[90:] - 1))

    best = {}
    for candidate in candidates():
        best[candidate.role] = min(best.get(candidate.role, 9.0), mape(candidate, candidate.grid[-1]))
    assert best["candidate"] < best["study"]
    assert best["candidate"] < 0.6 * best["baseline"]


@settings(max_examples=30)
@given(st.lists(st.floats(0, 1e12), min_size=5, max_size=5))
def test_a_view_is_the_same_in_onnx(values):
    names = ("width", "macs", "macs_a", "nodes", "count_a")
    x = np.array([values], dtype=np.float32)
    view = columns.log_view(names)
    out = columns.Writer(5)
    total = out.add("ReduceSum", view.write(out, out.cast("features", "float64")), out.constant(np.array([1])))
    np.testing.assert_allclose(run(out.finish(latency_ms=total), x), view.apply(x).sum(axis=1), rtol=1e-12)


def test_columns_are_sorted_by_what_they_mean():
    names = ("width", "macs", "macs_a", "nodes", "count_a", "max_weight_bytes", "is_residual")
    view = columns.log_view(names)
    assert [names[i] for i in view.logs] == ["width", "macs", "max_weight_bytes", "nodes"]
    assert [(names[a], names[b]) for a, b in view.over] == [("macs_a", "macs"), ("nodes", "macs"), ("count_a", "nodes")]
    assert [names[i] for i in columns.additive_view(names).raw] == ["macs", "macs_a", "nodes", "count_a"]


def test_grids_are_documented_and_describable():
    assert set(STUDY_GRIDS) == {"LinearRegression", "DecisionTreeRegressor", "RandomForestRegressor"}
    assert all(len(grid) > 1 for grid in (*STUDY_GRIDS.values(), *OWN_GRIDS.values()))
    assert describe({"alpha": 0.1, "max_depth": None, "n_estimators": 20}) == "alpha=0.1 max_depth=None n_estimators=20"
