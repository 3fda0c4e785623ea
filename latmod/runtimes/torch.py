"""PyTorch eager on the CPU: a spec's own module where there is one, else the graph converted by onnx2torch."""

import importlib
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from latmod.dataset import KernelTime
from latmod.families import FAMILIES, GENERATED
from latmod.graph import weight_slots
from latmod.runtimes import Inputs, Model, Settings, fastest_third, installed_version, profiled_runs
from latmod.runtimes.conversion import convert_graph
from latmod.weights import WeightMaker

if TYPE_CHECKING:
    import torch


class Torch:
    """Open models in PyTorch, eagerly, in inference mode."""

    name = "torch"
    extra = "torch"
    rules = "torch"
    source = "a family's own module, or the graph converted by onnx2torch"
    tolerance = 1e-3
    profiles = True
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        return installed_version("torch", self.extra)

    def preload(self) -> None:
        """Import torch, its profiler, what converts graphs to it, and what builds families' modules."""
        families = (f"latmod.families.{name}" for name in GENERATED)
        for name in ("torch", "torch.profiler", "torchvision.models", "onnx2torch", *families):
            importlib.import_module(name)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "TorchSession":
        """Build or convert the module; raise UnsupportedModelError naming the operator that has no conversion."""
        import torch

        module, own = load_module(model, settings.threads, converted=settings.profile)
        return TorchSession(module, inputs, torch.inference_mode, own | {"mode": "eager, inference_mode"})


def load_module(
    model: Model, threads: int, *, converted: bool = False
) -> tuple["torch.nn.Module", dict[str, str | int | bool]]:
    """Return a model as a module to infer with, and what torch says that it uses.

    It is the family's own module where there is one, else the graph converted; where asked for always that, whose parts
    say which values they write.
    """
    import torch

    native = bool(model.family) and FAMILIES[model.family].native and not converted
    torch.set_num_threads(threads)
    flushed = torch.set_flush_denormal(True)
    module = _build(model) if native else convert_graph(Path(model.path), model.weight_seed)
    return module.eval().requires_grad_(False), {
        "threads": torch.get_num_threads(),
        "memory_format": "contiguous",
        "mkldnn": bool(torch.backends.mkldnn.is_available()),  # type: ignore[no-untyped-call]
        "flush_denormals": flushed,
        "source": f"family {model.family}" if native else "onnx2torch",
    }


class ModuleSession:
    """Hold a module and its inputs."""

    def __init__(
        self,
        module: "torch.nn.Module",
        inputs: Sequence[Inputs],
        mode: Callable[[], AbstractContextManager[Any]],
        settings: dict[str, str | int | bool],
    ) -> None:
        """Keep the module and the inputs as tensors, by position; `mode` is what it runs in."""
        import torch

        self.settings = settings
        self._module = module
        self._tensors = [tuple(torch.from_numpy(one[name]) for name in inputs[0]) for one in inputs]
        self._input = self._tensors[0]
        self._result: torch.Tensor | tuple[torch.Tensor, ...] | None = None
        self._mode = mode

    def feed(self, index: int) -> None:
        """Choose one input."""
        self._input = self._tensors[index % len(self._tensors)]

    def infer(self) -> None:
        """Run once."""
        with self._mode():
            self._result = self._module(*self._input)

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run."""
        result = self._result
        parts = result if isinstance(result, tuple | list) else () if result is None else (result,)
        return [part.numpy() for part in parts]

    def close(self) -> None:
        """Drop the module."""
        del self._module, self._tensors, self._input, self._result


class TorchSession(ModuleSession):
    """Hold a module that can also tell what each of its parts takes."""

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for about so many seconds, at least four times, with a clock around every operator's module.

        torch.profiler would tell the same at up to 17 % more time per run (measured on MobileNet v2).
        """
        parts: list[tuple[Any, Any]] = [
            (part, part.onnx_mapping) for part in self._module.children() if hasattr(part, "onnx_mapping")
        ]
        times = [0.0] * len(parts)
        for position, (part, _) in enumerate(parts):
            part.forward = _timed(part.forward, times, position)
        self.infer()
        runs: list[list[float]] = []
        for _ in profiled_runs(seconds):
            self.infer()
            runs.append(list(times))
        return tuple(
            KernelTime(op="", inputs=(), outputs=(), value=mapping.outputs[0], count=1, ns=round(ns))
            for (_, mapping), ns in zip(parts, fastest_third(runs), strict=True)
        )


def _timed(forward: Callable[..., Any], times: list[float], position: int) -> Callable[..., Any]:
    """Return the same function, which notes in `times` how long it took."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter_ns()
        result = forward(*args, **kwargs)
        times[position] = time.perf_counter_ns() - start
        return result

    return run


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
