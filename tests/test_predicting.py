"""Which predictors are asked: those of the machine most like this one, or all of one machine."""

from pathlib import Path

import msgspec
import onnx
import pytest

from latmod.errors import MachineError, PredictorError
from latmod.machine import Machine, read_machine
from latmod.predicting import (
    choose_each,
    nearest,
    of_one_machine,
    of_threads,
    on_machine,
    predict,
    reference_predictors,
    sharpest,
)
from latmod.predictor import GraphPredictor, Query

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
HERE = msgspec.structs.replace(
    read_machine(), cpu="this", cpu_family="family/model/stepping 25/17/1", isa=("avx2", "fma")
)
SIBLING = msgspec.structs.replace(HERE, cpu_family="family/model/stepping 25/1/1")
TWIN = msgspec.structs.replace(HERE, memory_gib=HERE.memory_gib + 1)
LIKE = msgspec.structs.replace(HERE, cpu="like")
WIDE = msgspec.structs.replace(HERE, cpu="wide", isa=("avx2", "avx512f"))


def predictor(machine: Machine, runtime: str = "onnxruntime", threads: int = 1) -> GraphPredictor:
    one = next(one for one in reference_predictors() if isinstance(one, GraphPredictor))
    card = msgspec.structs.replace(
        one.card, machine_id=machine.id, machine=machine.label, isa=machine.isa, runtime=runtime, threads=threads
    )
    return GraphPredictor(one.content, card, f"{machine.cpu}-{machine.memory_gib}-{runtime}")


def test_the_machine_itself_comes_before_its_like_and_that_before_another() -> None:
    known = [predictor(machine) for machine in (WIDE, LIKE, SIBLING, TWIN, HERE)]
    while known:
        (found,) = nearest(known, HERE)
        assert found is known.pop()


def test_each_runtime_has_its_own_nearest_machine() -> None:
    known = [predictor(WIDE, "torch"), predictor(WIDE), predictor(LIKE)]
    assert {(one.card.runtime, one.card.machine_id) for one in nearest(known, HERE)} == {
        ("torch", WIDE.id), ("onnxruntime", LIKE.id),
    }  # fmt: skip


def test_runtimes_are_compared_on_the_machine_that_has_most_of_them() -> None:
    own, many = [predictor(HERE)], [predictor(WIDE), predictor(WIDE, "torch")]
    assert of_one_machine([*own, *many], HERE) == tuple(many)
    assert of_one_machine([*own, predictor(WIDE)], HERE) == tuple(own)
    assert of_one_machine([], HERE) == ()


def test_this_machine_is_compared_on_where_it_has_more_than_half_of_the_runtimes() -> None:
    many = [predictor(WIDE, name) for name in ("onnxruntime", "torch", "tract")]
    own = [predictor(HERE), predictor(HERE, "torch")]
    assert of_one_machine([*many, *own], HERE) == tuple(own)
    assert of_one_machine([*many, own[0]], HERE) == tuple(many)


def test_what_is_for_other_threads_is_not_asked() -> None:
    one, two = predictor(HERE), predictor(WIDE, threads=2)
    assert of_threads([one, two], 1) == (one,)
    assert of_threads([one, two], 2) == (two,)
    assert of_threads([], 2) == ()
    with pytest.raises(PredictorError, match="no predictor for 3 threads; there are some for 1, 2"):
        of_threads([one, two], 3)


def test_the_predictors_that_ship_answer_for_one_thread_unless_asked() -> None:
    assert {one.threads for one in predict(LIGHT)} == {1}
    assert {one.threads for one in predict(LIGHT, threads=2)} == {2}


def test_the_sharpest_is_the_same_everywhere() -> None:
    rough, sharp = (
        GraphPredictor(one.content, msgspec.structs.replace(one.card, scores={"mape": mape}), one.name)
        for one, mape in ((predictor(HERE), 0.08), (predictor(WIDE), 0.05))
    )
    other = predictor(LIKE, "torch")
    assert sharpest([rough, sharp, other]) == sharpest([other, sharp, rough]) == (sharp, other)


def test_a_machine_is_named_by_its_id_or_by_words_that_only_it_has() -> None:
    known = [predictor(machine) for machine in (WIDE, LIKE)]
    assert on_machine(known, LIKE.id) == (known[1],)
    assert on_machine(known, "avx512f") == (known[0],)
    assert on_machine(known, "all") == tuple(known)
    with pytest.raises(MachineError, match="fits several"):
        on_machine(known, "family")
    with pytest.raises(MachineError, match=f"fits none.*{LIKE.id} is like"):
        on_machine(known, "pentium")


def test_machines_are_never_chosen_between_by_the_model() -> None:
    known = [predictor(machine) for machine in (WIDE, LIKE)]
    assert len(choose_each(known, Query(features={}))) == 2
