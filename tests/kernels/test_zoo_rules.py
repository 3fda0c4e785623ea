"""The rules against onnxruntime's own profile of every network of the zoo, as `latmod sweep --kernels` kept it."""

from pathlib import Path

import numpy as np
import pytest

from latmod.dataset import DatasetFolder
from latmod.graph import read_graph
from latmod.kernels import kernels
from latmod.labels import join
from latmod.predicting import ask, reference_predictors
from latmod.predictor import KernelPredictor

DATASETS = Path(__file__).parents[2] / "datasets"


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_nearly_all_of_the_time_is_in_kernels_that_the_engine_names_too(runtime: str) -> None:
    folder = DatasetFolder(DATASETS / "zoo")
    machine = folder.read_card().machine.id
    (predictor,) = [
        one
        for one in reference_predictors()
        if isinstance(one, KernelPredictor)
        and (one.card.runtime, one.card.threads, one.card.machine_id) == (runtime, 1, machine)
    ]
    found = [one for one in folder.read_kernels() if one.runtime == runtime and one.status == "ok"]
    assert len({one.model for one in found}) >= 39
    shares = {}
    for one in found:
        breakdown = predictor.breakdown(ask(read_graph(folder.graph_path(one.model)), one.model))
        labels = join(breakdown.kernels, [one.kernels]).kernel_ns
        predicted = np.array(breakdown.kernel_ns)
        shares[one.model] = float(predicted[np.isfinite(labels)].sum() / predicted.sum())
    assert min(shares.values()) >= 0.98, {model: share for model, share in shares.items() if share < 0.98}


def test_the_rules_hold_without_avx512_too() -> None:
    """There blocks hold 8 channels instead of 16; of what the engine told, nearly all is in kernels expected."""
    folder = DatasetFolder(DATASETS / "checks" / "zoo-zen3")
    isa = folder.read_card().machine.isa
    assert "avx512f" not in isa
    shares = {}
    for one in folder.read_kernels():
        if one.runtime == "onnxruntime" and one.status == "ok":
            expected = kernels(read_graph(folder.graph_path(one.model)), "onnxruntime", isa=isa)
            labels = join(expected, [one.kernels])
            shares[one.model] = 1.0 - labels.unmatched_ns / labels.total_ns
    assert len(shares) >= 46
    assert np.mean(list(shares.values())) >= 0.98
    assert min(shares.values()) >= 0.95
