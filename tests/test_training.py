"""Small networks: they learn of kernels and of sums, extrapolate flat, and say the same as ONNX."""

import numpy as np
import pytest

from latmod.columns import Writer
from latmod.smooth import Smooth
from latmod.training import Lesson, train

ort = pytest.importorskip("onnxruntime")


def samples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return columns (two sizes over many orders of magnitude, one of three categories) and what to learn of them."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(0.0, 15.0, (count, 2)))
    kind = rng.integers(0, 3, count)
    x = np.column_stack([sizes, kind]).astype(np.float32)
    return x, 0.1 * np.log(sizes[:, 0]) - 0.05 * np.log(sizes[:, 1]) + 0.3 * kind


def lesson(x: np.ndarray, y: np.ndarray, told: bool = True, forms: int = 1) -> Lesson:
    """Return what 10 kernels each tell of models that take exp(y) in all; of single kernels only if `told`."""
    starts = np.arange(0, len(y), 10)
    return Lesson(
        x=x, kinds=3, counts=np.ones(len(y)), physics_ns=np.ones(len(y)), target=y if told else np.full(len(y), np.nan),
        weights=np.ones(len(y)), starts=starts, forms=np.ones((forms, len(y)), np.bool_),
        latency_ns=np.add.reduceat(np.exp(y), starts), run_ns=0.0, bound=2.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> Smooth:
    return train(lesson(*samples(2000)))


def test_it_learns_over_orders_of_magnitude(fitted: Smooth) -> None:
    x, y = samples(300, seed=1)
    assert np.sqrt(np.mean((fitted.predict(x)[0] - y) ** 2)) < 0.1 * y.std()


def test_sums_alone_teach_too() -> None:
    x, y = samples(3000)
    fresh, truth = samples(300, seed=1)
    learnt = np.exp(train(lesson(x, y, told=False)).predict(fresh)[0]).reshape(-1, 10).sum(axis=1)
    whole = np.exp(truth).reshape(-1, 10).sum(axis=1)
    spread = np.mean(np.abs(np.log(whole / whole.mean())))
    assert np.mean(np.abs(np.log(learnt / whole))) < 0.5 * spread


def test_one_lesson_teaches_the_same_twice() -> None:
    x, y = samples(300)
    np.testing.assert_array_equal(train(lesson(x, y), 1).predict(x)[0], train(lesson(x, y), 1).predict(x)[0])


def test_a_form_that_is_the_same_again_teaches_nothing_more() -> None:
    x, y = samples(300)
    once, twice = (train(lesson(x, y, forms=forms)).predict(x)[0] for forms in (1, 2))
    np.testing.assert_allclose(twice, once, atol=0.01)


def test_far_outside_the_answer_stays_what_it_was(fitted: Smooth) -> None:
    far, farther = (np.array([[size, 10.0, 1.0]], dtype=np.float32) for size in (1e30, 1e36))
    assert fitted.predict(far)[0] == pytest.approx(fitted.predict(farther)[0])


def test_onnx_says_the_same(fitted: Smooth) -> None:
    x, _ = samples(100, seed=2)
    x = np.concatenate([x, -x, np.float32([[0.0, 0.0, 7.0]])])
    out = Writer(3)
    answer, doubt = fitted.write(out, out.cast("features", "float64"))
    model = out.finish(answer=answer, doubt=doubt)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for told, own in zip(session.run(["answer", "doubt"], {"features": x}), fitted.predict(x), strict=True):
        np.testing.assert_allclose(told[:, 0], own, rtol=1e-9)


def test_networks_differ_more_about_what_they_have_not_seen(fitted: Smooth) -> None:
    seen, doubts = samples(1000)[0], fitted.predict(samples(1000)[0])[1]
    assert np.all(doubts > 0.0)
    beyond = np.where(np.arange(3) == 2, seen, seen * np.float32(30.0))
    assert fitted.predict(beyond)[1].mean() > 2.0 * doubts.mean()
