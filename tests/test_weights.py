from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmod.graph import Tensor, WeightSlot
from latmod.weights import WeightMaker


def slot(
    shape: tuple[int, ...], op: str = "Conv", position: int = 1, dtype: str = "float32", name: str = "w"
) -> WeightSlot:
    return WeightSlot(
        tensor=Tensor(name=name, dtype=dtype, shape=shape), op=op, position=position, transposed=op == "Gemm"
    )


def made(one: WeightSlot, seed: int = 0) -> np.ndarray:
    (pair,) = WeightMaker(seed).make([one])
    assert pair[0] == one.tensor.name
    return pair[1]


@pytest.mark.parametrize(
    ("op", "shape", "fan_in"),
    [("Conv", (256, 128, 3, 3), 1152), ("Gemm", (1000, 512), 512), ("MatMul", (512, 900), 512)],
)
def test_weights_are_he_normal(op: str, shape: tuple[int, ...], fan_in: int) -> None:
    values = made(slot(shape, op))
    assert values.shape == shape
    assert values.std() == pytest.approx((2 / fan_in) ** 0.5, rel=0.02)
    assert abs(values.mean()) < 0.01


def test_a_weight_that_is_normalised_is_a_weight() -> None:
    values = made(slot((256, 128, 3, 3), "BatchNormalization", 0))
    assert values.std() == pytest.approx((2 / 1152) ** 0.5, rel=0.02)


def test_batch_norms_are_near_identity_with_a_gain_of_one_half() -> None:
    scale, bias, mean, variance = (made(slot((512,), "BatchNormalization", position)) for position in (1, 2, 3, 4))
    assert scale.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(bias).max() < 0.2
    assert abs(mean).max() < 0.2
    assert variance.min() > 0.5


@given(st.integers(0, 3), st.integers(1, 3_000_000))
def test_no_value_is_denormal_and_none_is_infinite(seed: int, size: int) -> None:
    values = made(slot((size,)), seed)
    assert np.isfinite(values).all()
    nonzero = values[values != 0]
    assert np.abs(nonzero).min(initial=1.0) > np.finfo(np.float32).tiny


def test_seed_and_name_decide() -> None:
    assert np.array_equal(made(slot((100,))), made(slot((100,))))
    assert not np.array_equal(made(slot((100,))), made(slot((100,)), seed=1))
    assert not np.array_equal(made(slot((100,))), made(slot((100,), name="v")))


def test_two_tensors_share_no_memory() -> None:
    one, other = (values for _, values in WeightMaker(0).make([slot((64,), name="a"), slot((64,), name="b")]))
    assert not np.shares_memory(one, other)


def test_integers_are_zero_or_one() -> None:
    values = made(slot((1000,), "Gather", 0, "int64"))
    assert values.dtype == np.int64
    assert set(np.unique(values)) == {0, 1}


def test_half_precision_is_kept() -> None:
    assert made(slot((8, 8), dtype="float16")).dtype == np.float16


def test_what_is_a_variance_too_is_made_as_one(tmp_path: Path) -> None:
    """Of the equal ones of an untrained network's norms, exporters keep one, and hand it on by Identity."""
    from onnx import TensorProto, helper, save

    from latmod.graph import strip_weights, weight_slots

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 2, 2]) for name in "xy"]
    norm = ["x", "ones", "noughts", "noughts", "variance"]
    nodes = [
        helper.make_node("Identity", ["ones"], ["handed"], "first"),
        helper.make_node("Identity", ["handed"], ["variance"], "second"),
        helper.make_node("BatchNormalization", norm, ["y"], "norm"),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [4], [value] * 4) for name, value in (("ones", 1), ("noughts", 0))
    ]
    path = tmp_path / "norm.onnx"
    save(helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], constants), ir_version=9), path)
    path.write_bytes(strip_weights(path))
    slots = {one.tensor.name: one for one in weight_slots(path)}
    assert (slots["ones"].op, slots["ones"].position) == ("BatchNormalization", 4)
    assert made(slots["ones"]).min() > 0.5
    assert abs(made(slots["noughts"])).max() < 0.5
