"""What runtimes compute of the same model and inputs, held against each other."""

from pathlib import Path

import numpy as np

from latmod.graph import read_inputs
from latmod.inputs import random_inputs
from latmod.runtimes import Model, Settings, find_runtime


def outputs(runtime: str, path: Path) -> list[np.ndarray]:
    inputs = random_inputs(read_inputs(path), 1, seed=0)
    session = find_runtime(runtime).open(Model(path=str(path)), inputs, Settings())
    session.infer()
    return session.outputs()


def assert_the_runtimes_agree(path: Path, *, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for expected, found in zip(outputs("onnxruntime", path), outputs("torch", path), strict=True):
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
