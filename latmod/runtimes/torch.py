"""PyTorch eager on the CPU: a spec's own module where there is one, else the graph converted by onnx2torch."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from latmod.errors import UnsupportedModelError
from latmod.families import FAMILIES
from latmod.graph import fill_weights, weight_slots
from latmod.runtimes import Inputs, Model, Settings, installed_version
from latmod.weights import WeightMaker

if TYPE_CHECKING:
    import torch


class Torch:
    """Open models in PyTorch, eagerly, in inference mode."""

    name = "torch"
    extra = "torch"
    profiles = True
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        return installed_version("torch", self.extra)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "TorchSession":
        """Build or convert the module; raise UnsupportedModelError naming the operator that has no conversion."""
        import torch

        torch.set_num_threads(settings.threads)
        flushed = torch.set_flush_denormal(True)
        module = _build(model) if model.family else _convert(model)
        graph_inputs = tuple(inputs[0])
        tensors = [tuple(torch.from_numpy(one[name]) for name in graph_inputs) for one in inputs]
        session = TorchSession(module.eval().requires_grad_(False), tensors)
        session.settings = {
            "threads": torch.get_num_threads(),
            "mode": "eager, inference_mode",
            "memory_format": "contiguous",
            "mkldnn": bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
            "flush_denormals": flushed,
            "source": f"family {model.family}" if model.family else "onnx2torch",
        }
        return session


class TorchSession:
    """Hold a module and its inputs."""

    settings: dict[str, str | int | bool]

    def __init__(self, module: "torch.nn.Module", tensors: list[tuple["torch.Tensor", ...]]) -> None:
        """Keep the module and one tuple of positional inputs per input."""
        import torch

        self._module = module
        self._tensors = tensors
        self._input = tensors[0]
        self._result: torch.Tensor | tuple[torch.Tensor, ...] | None = None
        self._inference_mode = torch.inference_mode

    def feed(self, index: int) -> None:
        """Choose one input."""
        self._input = self._tensors[index % len(self._tensors)]

    def infer(self) -> None:
        """Run once."""
        with self._inference_mode():
            self._result = self._module(*self._input)

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run."""
        result = self._result
        parts = result if isinstance(result, tuple | list) else () if result is None else (result,)
        return [part.numpy() for part in parts]

    def close(self) -> None:
        """Drop the module."""
        del self._module, self._tensors, self._input, self._result


def _build(model: Model) -> "torch.nn.Module":
    """Return the family's module for a spec, with the weights of its graph assigned by name."""
    import torch

    family = FAMILIES[model.family]
    with torch.device("meta"):
        module = family.build(msgspec.convert(model.spec, family.spec_type))
    made = WeightMaker(model.weight_seed).make(weight_slots(Path(model.path)))
    weights = {name: torch.from_numpy(value) for name, value in made}
    counters = {
        name: torch.zeros((), dtype=torch.int64) for name in module.state_dict() if name.endswith("num_batches_tracked")
    }
    module.load_state_dict(weights | counters, assign=True)
    return module


def _convert(model: Model) -> "torch.nn.Module":
    """Return a foreign graph as a module (onnx2torch), its weights made first since they become parameters."""
    from onnx2torch import convert

    path = Path(model.path)
    proto = fill_weights(path, WeightMaker(model.weight_seed).make(weight_slots(path)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: torch.nn.Module = convert(proto)
        except NotImplementedError as error:
            raise UnsupportedModelError(f"torch (onnx2torch) cannot run {path}: {error}") from error
    return module
