from pathlib import Path

import pytest

from latmod.dataset import DatasetFolder
from latmod.evaluating import Verdict, levels_of, summarise
from latmod.predicting import reference_predictors

DATASETS = Path(__file__).parents[1] / "datasets"


def verdict(model: str, measured: float, predicted: float, *, macs: float = 1e9, family: str = "a") -> Verdict:
    return Verdict(
        model=model,
        family=family,
        runtime="fake",
        level="best",
        predicted_ms=predicted,
        low_ms=predicted * 0.95,
        high_ms=predicted * 1.05,
        measured_ms=measured,
        error=predicted / measured - 1.0,
        in_domain=True,
        noise=0.01,
        macs=macs,
    )


def test_families_are_summed_up_beside_all() -> None:
    rows = summarise([verdict("m1", 10, 11), verdict("m2", 20, 20), verdict("m3", 30, 30, family="b")])
    assert [(row.family, row.models) for row in rows] == [("all", 3), ("a", 2), ("b", 1)]
    assert rows[0].mape == pytest.approx(0.1 / 3)
    assert rows[0].coverage == pytest.approx(2 / 3)


def test_one_family_is_not_said_twice() -> None:
    assert [row.family for row in summarise([verdict("m1", 10, 10), verdict("m2", 20, 20)])] == ["all"]


def test_pairs_alike_in_macs_and_apart_in_latency_are_ordered() -> None:
    right = [verdict("m1", 10, 10), verdict("m2", 20, 20)]
    wrong = verdict("m3", 30, 15)
    far = verdict("m4", 100, 1, macs=9e9)
    close = verdict("m5", 10.5, 9)
    summary = summarise([*right, wrong, far, close])[0]
    assert summary.pairs == 5
    assert summary.order == pytest.approx(4 / 5)


@pytest.mark.parametrize(
    ("name", "levels"), [("zoo", ("best", "graph", "kernel")), ("zoo-zen4-avx2", ("best", "kernel"))]
)
def test_levels_without_a_predictor_for_the_machine_are_left_out(name: str, levels: tuple[str, ...]) -> None:
    assert levels_of(DatasetFolder(DATASETS / name), reference_predictors()) == levels
