"""Smooth networks: they learn, extrapolate flat, and say the same as ONNX."""

import numpy as np
import pytest

from latmod.columns import Writer
from latmod.smooth import Smooth, fit_smooth, squashed

pytest.importorskip("sklearn")
ort = pytest.importorskip("onnxruntime")


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return columns (two sizes over many orders of magnitude, one of three categories) and what to learn of them."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(0.0, 15.0, (count, 2)))
    kind = rng.integers(0, 3, count)
    x = np.column_stack([sizes, kind]).astype(np.float32)
    return x, 0.1 * np.log(sizes[:, 0]) - 0.05 * np.log(sizes[:, 1]) + 0.3 * kind


@pytest.fixture(scope="module")
def fitted() -> Smooth:
    x, y = samples(2000)
    return fit_smooth(x, y, np.ones(len(y)), kinds=3, seed=0)


def test_it_learns_over_orders_of_magnitude(fitted: Smooth) -> None:
    x, y = samples(300, seed=1)
    assert np.sqrt(np.mean((fitted.predict(x) - y) ** 2)) < 0.1 * y.std()


def test_far_outside_the_answer_stays_what_it_was(fitted: Smooth) -> None:
    far, farther = (np.array([[size, 10.0, 1.0]], dtype=np.float32) for size in (1e30, 1e36))
    assert fitted.predict(far) == pytest.approx(fitted.predict(farther))


def test_onnx_says_the_same(fitted: Smooth) -> None:
    x, _ = samples(100, seed=2)
    x = np.concatenate([x, -x, np.float32([[0.0, 0.0, 7.0]])])
    out = Writer(3)
    model = out.finish(answer=fitted.write(out, out.cast("features", "float64")))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    told = session.run(["answer"], {"features": x})[0][:, 0]
    np.testing.assert_allclose(told, fitted.predict(x), rtol=1e-9)


def test_squashing_is_odd_and_grows() -> None:
    x = np.float32([[-1e9, -1.0, 0.0, 1.0, 1e9]])
    np.testing.assert_allclose(squashed(x), -squashed(-x))
    assert np.all(np.diff(squashed(x)) > 0.0)
