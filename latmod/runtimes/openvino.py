"""OpenVINO on the CPU."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latmod.dataset import KernelTime
from latmod.errors import UnsupportedModelError
from latmod.runtimes import Inputs, Model, Settings, installed_version, profiled_runs
from latmod.runtimes.files import one_line, whole_file

if TYPE_CHECKING:
    import openvino

_WARMUP = 2
_MIN_RUNS, _MAX_RUNS = 10, 100
_NOT_EXECUTED = "not_executed"


class OpenVino:
    """Open models in OpenVINO's CPU plugin: one stream, float32 throughout."""

    name = "openvino"
    extra = "openvino"
    rules = "openvino"
    source = "the .onnx file, compiled"
    tolerance = 1e-3
    profiles = True
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        return installed_version("openvino", self.extra)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "OpenVinoSession":
        """Read and compile the model; raise UnsupportedModelError with the engine's reason."""
        import openvino

        core = openvino.Core()
        config = {
            "INFERENCE_NUM_THREADS": settings.threads,
            "NUM_STREAMS": 1,
            # Where the CPU has bfloat16 the plugin would use it.
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
            "CPU_DENORMALS_OPTIMIZATION": True,
            "PERF_COUNT": settings.profile,
        }
        try:
            with whole_file(model) as path:
                compiled = core.compile_model(core.read_model(str(path)), "CPU", config)
        except RuntimeError as error:
            raise UnsupportedModelError(f"openvino cannot run {model.path}: {one_line(error)}") from error
        return ProfilingOpenVinoSession(compiled, inputs) if settings.profile else OpenVinoSession(compiled, inputs)


class OpenVinoSession:
    """Hold one inference request, and a tensor over the memory of every input."""

    def __init__(self, compiled: "openvino.CompiledModel", inputs: Sequence[Inputs]) -> None:
        """Make the request and the tensors."""
        import openvino

        self.settings: dict[str, str | int | bool] = {
            "threads": int(compiled.get_property("INFERENCE_NUM_THREADS")),
            "streams": int(compiled.get_property("NUM_STREAMS")),
            "precision": str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()),
            "pinning": bool(compiled.get_property("ENABLE_CPU_PINNING")),
            "flush_denormals": True,
        }
        self._outputs = len(compiled.outputs)
        self._request = compiled.create_infer_request()
        self._tensors = [
            {name: openvino.Tensor(np.ascontiguousarray(value), shared_memory=True) for name, value in one.items()}
            for one in inputs
        ]
        self.feed(0)

    def feed(self, index: int) -> None:
        """Point the request to one input's memory."""
        for name, tensor in self._tensors[index % len(self._tensors)].items():
            self._request.set_tensor(name, tensor)

    def infer(self) -> None:
        """Run once."""
        self._request.infer()

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run."""
        return [np.array(self._request.get_output_tensor(position).data) for position in range(self._outputs)]

    def close(self) -> None:
        """Drop the request."""
        del self._request, self._tensors


class ProfilingOpenVinoSession(OpenVinoSession):
    """Hold a request of a model that was compiled to count; it counts its runs too."""

    _runs = 0

    def infer(self) -> None:
        """Run once."""
        super().infer()
        self._runs += 1

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for about so many seconds, at least ten times, and read the counters of the graph that is executed.

        A counter is the mean over all runs, in whole µs, so the first runs are taken out of it again (their mean is
        known from an earlier reading).
        """
        for _ in range(_WARMUP):
            self.infer()
        early, before = self._counters(), self._runs
        for _ in profiled_runs(seconds, _MIN_RUNS, _MAX_RUNS):
            self.infer()
        late, after = self._counters(), self._runs
        return tuple(
            KernelTime(
                op=op,
                inputs=(),
                outputs=(),
                value="",
                count=1,
                ns=max(0, round(1e3 * (us * after - early[name][2] * before) / (after - before))),
                nodes=nodes,
            )
            for name, (op, nodes, us) in late.items()
            if name in early
        )

    def _counters(self) -> dict[str, tuple[str, tuple[str, ...], float]]:
        """Return of each executed piece, by name, its type, the nodes of the file that it stands for, and its µs.

        The keys are those of OpenVINO's exec_model_info.hpp.
        """
        found = {}
        for piece in self._request.get_compiled_model().get_runtime_model().get_ordered_ops():
            told = piece.get_rt_info()
            took = str(told["execTimeMcs"].value) if "execTimeMcs" in told else _NOT_EXECUTED
            if took != _NOT_EXECUTED:
                nodes = tuple(str(told["originalLayersNames"].value).split(","))
                found[piece.get_friendly_name()] = (str(told["layerType"].value), nodes, float(took))
        return found
