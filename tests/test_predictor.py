import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from synthetic_resnets import features_of, resnets

from latmod import artifact
from latmod.artifact import CARD_KEY, SHA256_KEY, pack, unpack
from latmod.domain import TOLERANCE, group, observe_domain, spread
from latmod.errors import PredictorError
from latmod.findings import Origin
from latmod.fitting import fit_observations, write_artifact
from latmod.predicting import choose, choose_each, predict, reference_predictors
from latmod.predictor import GraphPredictor, KernelPredictor, Prediction, Query, load_predictor
from latmod.timing import Reference

NOMINAL = Reference(conv_ns=2_000_000, copy_ns=8_000_000, dispatch_ns=1_000_000)
RESNET50 = features_of(True, [3, 4, 6, 3], 64)
WIDE_RESNET50 = RESNET50 | {"widen": 2.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predictors")
    found = {}
    for name, width in (("fixed", 64), ("varied", None)):
        observations = resnets(60, seed=6, width=width)
        report = fit_observations(
            observations,
            Origin(dataset=name, machine="a test machine", nominal=NOMINAL, drift_weights={"alpha": (0.0, 0.5, 0.0)}),
            split_seeds=1,
            regressor_seeds=1,
            regressors=["PhysicsKernel", "Physics"],
            jobs=1,
        )
        found[name] = write_artifact(report.artifacts[0], folder)
    return found


@pytest.fixture(scope="module")
def varied(files):
    return load_predictor(files["varied"])


def with_card(content, change):
    """Write the file again with another card and a checksum that fits."""
    model = onnx.load_model_from_string(content)
    props = {p.key: p.value for p in model.metadata_props}
    card = change(props[CARD_KEY])
    helper.set_model_props(model, {CARD_KEY: card, SHA256_KEY: "0" * 64})
    blank = model.SerializeToString()
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode())


def test_a_prediction_has_the_flat_names_that_the_command_line_prints(varied):
    found = varied.predict(RESNET50, model="resnet50.onnx")
    names = "model runtime latency_ms low_ms high_ms in_domain reasons unknown_share machine level threads load_ms"
    assert list(msgspec.structs.asdict(found)) == names.split()
    assert (found.model, found.runtime, found.level) == ("resnet50.onnx", "alpha", "graph")
    assert found.machine == "a test machine"
    assert found.low_ms < found.latency_ms < found.high_ms
    assert found.in_domain
    assert found.reasons == ()


def test_many_models_in_one_call_equal_one_by_one(varied):
    rows = [o.features for o in resnets(12, seed=11)]
    together = varied.predict_all([Query(features=row, model=str(i)) for i, row in enumerate(rows)])
    for i, (row, found) in enumerate(zip(rows, together, strict=True)):
        alone = varied.predict(row, model=str(i))
        assert found.latency_ms == pytest.approx(alone.latency_ms, rel=1e-9)
        assert found.reasons == alone.reasons
    assert varied.predict_all([]) == []


def test_a_state_moves_the_answer_as_strongly_as_the_card_says(varied):
    slower = msgspec.structs.replace(NOMINAL, copy_ns=round(NOMINAL.copy_ns * 1.25**2))
    nominal, now = varied.predict(RESNET50), varied.predict(RESNET50, state=slower)
    for name in ("latency_ms", "low_ms", "high_ms"):
        assert getattr(now, name) == pytest.approx(1.25 * getattr(nominal, name))


@pytest.mark.parametrize(
    ("features", "words"),
    [
        (features_of(True, [3, 4, 6, 3], 400), "base width 400 is above"),
        (features_of(False, [3, 4, 300, 3], 64), "blocks in stage 3 300 is above"),
        (features_of(True, [3, 4, 6, 3], 64, side=320), r"input side 320 is above what was seen \(224\)"),
        (RESNET50 | {"batch": 8.0}, "batch 8 is above"),
        (WIDE_RESNET50, "widening of the inner convolutions 2 is above"),
        (RESNET50 | {"is_residual": 0.0}, "not a network of the families seen"),
    ],
)
def test_out_of_domain_says_why_and_widens(varied, features, words):
    import re

    found = varied.predict(features)
    assert not found.in_domain
    assert any(re.search(words, reason) for reason in found.reasons), found.reasons
    inside = varied.predict(RESNET50)
    assert found.high_ms / found.latency_ms > inside.high_ms / inside.latency_ms


def test_unknown_operators_and_the_callers_doubts_are_part_of_the_answer(varied):
    few, many = (varied.predict(RESNET50, unknown_share=share) for share in (0.01, 0.4))
    assert few.in_domain
    assert few.unknown_share == 0.01
    assert not many.in_domain
    assert "40%" in many.reasons[0]
    doubted = varied.predict(RESNET50, reasons=("the stem is not a 7x7 convolution",))
    assert doubted.reasons == ("the stem is not a 7x7 convolution",)
    assert not doubted.in_domain


def test_a_missing_block_type_is_out_of_domain():
    rows = [o.features for o in resnets(40, seed=1) if not o.features["block_bottleneck"]]
    domain = observe_domain(["resnet"], rows)
    assert "block type bottleneck was not among the models seen" in domain.reasons(RESNET50)
    assert domain.distance(RESNET50) >= 1.0


def test_intervals_are_no_narrower_than_sweeps_repeat(varied):
    """Halves of a sweep differ by the noise floor in the median, and another sweep about as much (latmod repeat)."""
    again = 1.6449 * varied.card.noise_floor / 0.6745
    found = varied.predict(RESNET50)
    assert again > 0.0
    assert np.log(found.high_ms / found.latency_ms) >= max(again, varied.card.quantiles[0])


@settings(deadline=None)
@given(st.floats(0, 40), st.floats(0, 40))
def test_intervals_only_grow_with_the_distance(a, b):
    near, far = sorted((a, b))
    assert spread((0.1, 0.2, 0.3), near) <= spread((0.1, 0.2, 0.3), far)


def test_groups():
    assert [group(d) for d in (0.0, TOLERANCE, 0.5, 1.0, 1.1, float("inf"))] == [0, 0, 1, 1, 2, 2]


def test_the_predictor_whose_domain_contains_the_model_answers(files):
    fixed, varied = load_predictor(files["fixed"]), load_predictor(files["varied"])
    narrow = features_of(False, [2, 2, 2, 2], 24)
    for both in ([fixed, varied], [varied, fixed]):
        assert choose(both, Query(features=RESNET50)) is fixed
        assert choose(both, Query(features=narrow)) is varied
        assert choose(both, Query(features=features_of(True, [3, 4, 6, 3], 400))) is varied
        assert choose(both, Query(features={"is_residual": 0.0})) is varied
    assert choose_each([fixed, varied], Query(features=narrow)) == (varied,)
    with pytest.raises(PredictorError, match="latmod fit"):
        choose([], Query(features=RESNET50))


def test_loading_and_predicting_import_nothing_heavy(files):
    code = f"""
import sys
from pathlib import Path
from latmod.predictor import load_predictor
load_predictor(Path({str(files["varied"])!r})).predict({RESNET50!r})
heavy = {{"torch", "sklearn", "pandas", "scipy", "skl2onnx", "lightgbm"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_reference_predictors_all_load():
    for predictor in reference_predictors():
        if isinstance(predictor, GraphPredictor):
            assert predictor.predict(RESNET50).latency_ms > 0


@pytest.mark.parametrize("model", ["mobilenet_v2", "convnext_tiny", "vit_b_32"])
def test_those_that_add_up_kernels_grow_with_batch_and_resolution(model):
    path = Path(__file__).parents[1] / "datasets" / "zoo" / "graphs" / f"{model}.onnx"
    adding = [one for one in reference_predictors() if isinstance(one, KernelPredictor)]
    assert {one.card.runtime for one in adding} >= {"onnxruntime", "torch"}
    sides = (224,) if model.startswith("vit") else (128, 224, 320)
    latencies = [
        [one.latency_ms for one in predict(path, predictors=adding, shapes={"input": (1, 3, side, side)})]
        for side in sides
    ]
    for by_side in zip(*latencies, strict=True):
        assert list(by_side) == sorted(by_side)
    # ncnn takes 1.1 s for ConvNeXt-T, the others 0.1 s.
    assert all(0.2 < one.latency_ms < 2000 for one in predict(path, predictors=adding))


def test_the_card_survives_the_file(files, varied):
    content = files["varied"].read_bytes()
    assert unpack(content, "again") == varied.card
    assert varied.card.regressor in {"Physics", "PhysicsKernel"}
    assert varied.card.models == 60
    assert len(varied.card.quantiles) == 3


def test_the_file_holds_no_pickle_and_only_standard_operators(files):
    model = onnx.load(files["varied"])
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx.ml"}


BAD = {
    "empty": lambda content: b"",
    "text": lambda content: b"this is no protobuf at all, not even close",
    "truncated": lambda content: content[: len(content) // 2],
    "another onnx": lambda content: _other_onnx(),
    "weight changed": lambda content: _flip(content, len(content) // 3),
    "card changed": lambda content: content.replace(b"a test machine", b"a best machine"),
    "checksum changed": lambda content: content[:-3] + bytes([content[-3] ^ 1]) + content[-2:],
    "appended": lambda content: content + b"\x0a\x00",
    "other schema": lambda content: with_card(content, lambda card: card.replace('"schema":3', '"schema":99', 1)),
    "card no json": lambda content: with_card(content, lambda card: card[:-5]),
    "card of wrong type": lambda content: with_card(content, lambda card: card.replace('"models":60', '"models":"x"')),
}


def _flip(content, position):
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def _other_onnx():
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([node], "g", [value], [out])).SerializeToString()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gives_one_line(name, files, tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(BAD[name](files["varied"].read_bytes()))
    with pytest.raises(PredictorError) as caught:
        load_predictor(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_a_missing_file_and_a_huge_one_give_one_line(tmp_path):
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate(artifact.MAX_BYTES + 1)
    for path, words in ((tmp_path, "not a file"), (tmp_path / "none.onnx", "No such file"), (huge, "50 MB")):
        with pytest.raises(PredictorError, match=words):
            load_predictor(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(files, position, bit):
    content = files["varied"].read_bytes()
    position %= len(content)
    flipped = content[:position] + bytes([content[position] ^ (1 << bit)]) + content[position + 1 :]
    with pytest.raises(PredictorError):
        unpack(flipped, "flipped")


def test_a_graph_that_onnxruntime_refuses_gives_one_line(varied):
    model = onnx.load_model_from_string(_other_onnx())
    model.graph.node[0].op_type = "NoSuchOperator"
    content = pack(model, varied.card)
    with pytest.raises(PredictorError, match="cannot load"):
        GraphPredictor(content, varied.card, "odd.onnx").predict(RESNET50)


def test_a_file_is_predicted_from_its_path(files, tmp_path):
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 16, 16])
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])
    node = helper.make_node("Relu", ["x"], ["y"])
    model = helper.make_model(
        helper.make_graph([node], "g", [image], [out]), opset_imports=[helper.make_opsetid("", 17)]
    )
    path = tmp_path / "relu.onnx"
    onnx.save(model, path)
    found = predict(path, predictors=[load_predictor(p) for p in files.values()])
    assert [p.runtime for p in found] == ["alpha"]
    assert isinstance(found[0], Prediction)
    assert found[0].model == "relu.onnx"
    assert not found[0].in_domain
    assert np.isfinite(found[0].latency_ms)
    with pytest.raises(PredictorError, match="latmod fit"):
        predict(path, predictors=[])


def test_columns_that_this_latmod_does_not_know_are_named():
    shipped = next(one for one in reference_predictors() if isinstance(one, KernelPredictor))
    for change in ({"seen": (*shipped.card.seen, "moon")}, {"physical": (*shipped.card.physical, "moon")}):
        newer = KernelPredictor(b"", msgspec.structs.replace(shipped.card, **change), "newer.onnx")
        with pytest.raises(PredictorError, match=r"newer.onnx: sees kernels by 'moon'"):
            _ = newer.prices
