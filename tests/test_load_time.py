"""Load prices from invented load times."""

from pathlib import Path

import pytest

from latmod.graph import read_graph
from latmod.kernels import Kernel, kernels
from latmod.load_time import fit_load, load_ns

GRAPHS = Path(__file__).parents[1] / "datasets" / "zoo" / "graphs"
NAMES = ("alexnet", "mobilenet_v2", "squeezenet1_1", "resnet18", "vgg11", "shufflenet_v2_x1_0", "mnasnet0_5")
PRICES = (5e6, 2e4, 0.3)


@pytest.fixture(scope="module")
def models() -> list[tuple[Kernel, ...]]:
    return [kernels(read_graph(GRAPHS / f"{name}.onnx"), "onnxruntime", isa=("avx2",)) for name in NAMES]


def test_prices_are_found_again_and_the_first_model_of_a_process_does_not_count(
    models: list[tuple[Kernel, ...]],
) -> None:
    took = [load_ns(one, PRICES) for one in models]
    took[0] += 3e9
    assert fit_load(models, took) == pytest.approx(PRICES, rel=0.05)


def test_nothing_is_known_of_what_was_never_loaded(models: list[tuple[Kernel, ...]]) -> None:
    assert fit_load(models, [0.0] * len(models)) == (0.0, 0.0, 0.0)
