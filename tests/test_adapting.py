"""Predictors adapted to a made-up machine, on which every network takes a known factor longer than on another."""

from pathlib import Path

import msgspec
import pytest

from latmod.adapting import FEWEST, Took, adapt, yardsticks
from latmod.coverage import unseen
from latmod.errors import PredictorError
from latmod.graph import read_graph
from latmod.machine import read_machine
from latmod.predicting import ask, reference_predictors
from latmod.predictor import KernelPredictor, load_predictor

SLOWER = 2.5
HERE = msgspec.structs.replace(read_machine(), cpu="a made-up CPU")


def shipped(machine: str, runtime: str = "onnxruntime") -> KernelPredictor:
    return next(
        one
        for one in reference_predictors()
        if isinstance(one, KernelPredictor)
        and machine in one.card.machine
        and (one.card.runtime, one.card.threads) == (runtime, 1)
    )


def took(like: KernelPredictor) -> list[Took]:
    queries = [ask(read_graph(path)) for path in yardsticks()]
    return [Took(query=query, latency_ns=SLOWER * like.breakdown(query).latency_ns, load_ns=1e6) for query in queries]


def test_the_likest_machine_is_found_and_scaled(tmp_path: Path) -> None:
    start, other = shipped("25/17/1"), shipped("25/1/1")
    here = msgspec.structs.replace(HERE, isa=start.card.isa)
    found = adapt(took(start), [other, start], here, "9.9")
    assert found.card.adapted_from == start.card.machine
    assert found.factor == pytest.approx(SLOWER, rel=0.01)
    assert found.error < 0.01
    path = tmp_path / found.file_name
    path.write_bytes(found.content)
    again = load_predictor(path)
    assert (again.card.machine, again.card.runtime_version) == (here.label, "9.9")
    query = ask(read_graph(yardsticks()[0]))
    before, after = start.predict_all([query])[0], again.predict_all([query])[0]
    assert after.latency_ms == pytest.approx(SLOWER * before.latency_ms, rel=0.02)
    assert after.machine == here.label
    assert after.high_ms / after.latency_ms >= before.high_ms / before.latency_ms


def test_a_machine_unlike_all_has_wide_intervals() -> None:
    start, other = shipped("25/17/1"), shipped("6/167/1")
    here = msgspec.structs.replace(HERE, isa=start.card.isa)
    alike, unlike = (adapt(took(start), [one], here, "1").card for one in (start, other))
    assert unlike.quantiles[0] > 1.2 * alike.quantiles[0]


def test_too_few_networks_are_refused() -> None:
    start = shipped("25/17/1")
    with pytest.raises(PredictorError, match=f"{FEWEST - 1} networks measured"):
        adapt(took(start)[: FEWEST - 1], [start], HERE, "1")


def test_the_networks_that_ship_hold_what_networks_are_made_of() -> None:
    kinds = {
        kernel.kind for path in yardsticks() for kernel in shipped("25/1/1").breakdown(ask(read_graph(path))).kernels
    }
    assert {"MatMul", "Softmax", "GlobalAveragePool", "MaxPool"} <= {kind.split()[0] for kind in kinds}
    assert any("depthwise" in kind for kind in kinds)
    for path in yardsticks():
        told = shipped("25/1/1").breakdown(ask(read_graph(path)))
        assert not unseen(told.kernels, told.kernel_ns, shipped("25/1/1").card.ranges)[3:], path
