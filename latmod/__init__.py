"""Predict how long a neural network takes to run, per inference runtime, from its `.onnx` file, without running it."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_PLACES = {
    "Prediction": "latmod.predictor",
    "Predictor": "latmod.predictor",
    "fit": "latmod.fitting",
    "inspect": "latmod.inspection",
    "load_predictor": "latmod.predictor",
    "measure": "latmod.measuring",
    "predict": "latmod.predicting",
    "sweep": "latmod.sweeping",
}

__all__ = ["Prediction", "Predictor", "__version__", "fit", "inspect", "load_predictor", "measure", "predict", "sweep"]

if TYPE_CHECKING:
    from latmod.fitting import fit
    from latmod.inspection import inspect
    from latmod.measuring import measure
    from latmod.predicting import predict
    from latmod.predictor import Prediction, Predictor, load_predictor
    from latmod.sweeping import sweep


def __getattr__(name: str) -> object:
    """Import what a name stands for on first use, so that `import latmod` costs nothing (PEP 562)."""
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module 'latmod' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(place), name)
    globals()[name] = value
    return value
