"""The rules against onnxruntime's own profile of every network of the zoo, as `latmod sweep --kernels` kept it."""

from pathlib import Path

import numpy as np
import pytest

from latmod.dataset import DatasetFolder, KernelTime
from latmod.graph import read_graph
from latmod.labels import join
from latmod.predictor import KernelPredictor, ask, reference_predictors

ZOO = DatasetFolder(Path(__file__).parents[2] / "datasets" / "zoo")


def told(runtime: str) -> list[tuple[str, tuple[KernelTime, ...]]]:
    return [(one.model, one.kernels) for one in ZOO.read_kernels() if one.runtime == runtime and one.status == "ok"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
def test_nearly_all_of_the_time_is_in_kernels_that_the_engine_names_too(runtime: str) -> None:
    (predictor,) = [
        one
        for one in reference_predictors()
        if isinstance(one, KernelPredictor) and (one.card.runtime, one.card.threads) == (runtime, 1)
    ]
    found = told(runtime)
    assert len({model for model, _ in found}) >= 39
    shares = {}
    for model, times in found:
        breakdown = predictor.breakdown(ask(read_graph(ZOO.graph_path(model)), model))
        labels, _, _ = join(breakdown.kernels, [times])
        predicted = np.array(breakdown.kernel_ns)
        shares[model] = float(predicted[np.isfinite(labels)].sum() / predicted.sum())
    assert min(shares.values()) >= 0.98, {model: share for model, share in shares.items() if share < 0.98}
