"""Make the fake runtime an installed package for the whole suite, in this process and in the workers it starts."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

PLUGIN = str(Path(__file__).parent / "plugin")
sys.path.insert(0, PLUGIN)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PLUGIN, os.environ.get("PYTHONPATH", "")]))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let golden files be written anew."""
    parser.addoption("--update-golden", action="store_true", help="write what is printed now into the golden files")


@pytest.fixture(autouse=True)
def denormals_are_kept_again() -> Iterator[None]:
    """Undo for the rest of the suite what engines set for a whole thread: hypothesis draws denormals."""
    yield
    if np.float64(5e-324) * 1.0 == 0.0:
        import torch

        torch.set_flush_denormal(False)


TINY_SPACE = """
schema = 1
family = "resnet"
count = 4
seed = 1

[draw]
block = { values = ["basic", "bottleneck"] }
blocks = [{ low = 1, high = 2, scale = "uniform" }, 1, 1, 1]
width = { values = [4, 8] }
side = 32
classes = 10
"""


@pytest.fixture
def tiny_space(tmp_path: Path) -> Path:
    """Return a space of four networks that every engine runs in about a millisecond."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_SPACE)
    return path


@pytest.fixture(scope="session")
def exported_graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the tiny space once; tests copy the graphs, so that they need not wait for torch."""
    from latmod.export import export_spec
    from latmod.families import FAMILIES
    from latmod.specs import draw, load_space

    folder = tmp_path_factory.mktemp("graphs")
    space = folder / "tiny.toml"
    space.write_text(TINY_SPACE)
    for name, spec in draw(load_space(space, FAMILIES), FAMILIES):
        export_spec(FAMILIES["resnet"], spec, folder / f"{name}.onnx")
    return folder
