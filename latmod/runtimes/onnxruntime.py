"""onnxruntime on the CPU: the graph goes in weight-free, the weights are handed over in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latmod.errors import UnsupportedModelError
from latmod.graph import weight_slots
from latmod.runtimes import Inputs, Model, Settings, installed_version
from latmod.weights import WeightMaker

if TYPE_CHECKING:
    import onnxruntime

_CONFIG = {
    # Idle pools spin for 3 to 500 ms after a run (onnxruntime PR 27916) and would slow down whatever is timed next.
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
    "session.set_denormal_as_zero": "1",
}
_SILENT = 4


class OnnxRuntime:
    """Open models in onnxruntime's CPU provider, all graph optimisations on."""

    name = "onnxruntime"
    extra = ""
    profiles = True
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        return installed_version("onnxruntime", self.extra)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "OnnxRuntimeSession":
        """Create a session; raise UnsupportedModelError where the engine refuses the graph."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        for key, value in _CONFIG.items():
            options.add_session_config_entry(key, value)
        weights = dict(WeightMaker(model.weight_seed).make(weight_slots(Path(model.path))))
        if weights:
            values = [ort.OrtValue.ortvalue_from_numpy(value) for value in weights.values()]
            options.add_external_initializers(list(weights), values)
        try:
            session = ort.InferenceSession(model.path, options, providers=["CPUExecutionProvider"])
            return OnnxRuntimeSession(session, inputs, settings)
        except MemoryError:
            raise
        except Exception as error:
            if "bad_alloc" in str(error) or "llocat" in str(error):
                raise MemoryError(str(error)) from error
            raise UnsupportedModelError(f"onnxruntime cannot run {model.path}: {_reason(error)}") from error


class OnnxRuntimeSession:
    """Hold an onnxruntime session, its inputs bound."""

    def __init__(self, session: "onnxruntime.InferenceSession", inputs: Sequence[Inputs], settings: Settings) -> None:
        """Bind every input once, so that `infer` moves no data."""
        import onnxruntime as ort

        self.settings: dict[str, str | int | bool] = {
            "threads": settings.threads,
            "graph_optimization": "all",
            "execution": "sequential",
            "providers": ",".join(session.get_providers()),
            "spinning": False,
            "flush_denormals": True,
        }
        self._session = session
        self._bindings = []
        for tensors in inputs:
            binding = session.io_binding()
            for name, value in tensors.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
            for output in session.get_outputs():
                binding.bind_output(output.name)
            self._bindings.append(binding)
        self._bound = self._bindings[0]

    def feed(self, index: int) -> None:
        """Choose the binding of one input."""
        self._bound = self._bindings[index % len(self._bindings)]

    def infer(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._bound)

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run."""
        return list(self._bound.copy_outputs_to_cpu())

    def close(self) -> None:
        """Drop the session."""
        del self._bound, self._bindings, self._session


def _reason(error: Exception) -> str:
    """Return the engine's message in one line, without its code location."""
    return " ".join(str(error).split())[:300]
