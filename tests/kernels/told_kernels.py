"""Kernels of a data set, with what an engine told of each."""

from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from latmod.dataset import DatasetFolder
from latmod.kernels import Kernel
from latmod.labels import labelled_models
from latmod.table import corrections

DATASETS = Path(__file__).parents[2] / "datasets"


def told_kernels(name: str, runtime: str, *families: str) -> Iterator[tuple[str, Kernel, float]]:
    """Yield model, kernel and ns of each kernel that was told, of a data set's families, of all where none is given."""
    folder = DatasetFolder(DATASETS / name)
    models = [one.model for one in folder.read_card().models if one.model.startswith(families or "")]
    for one in labelled_models(folder, [runtime], corrections(folder), models)[runtime]:
        for kernel, told_ns in zip(one.kernels, one.kernel_ns, strict=True):
            if isfinite(told_ns):
                yield one.model, kernel, told_ns
