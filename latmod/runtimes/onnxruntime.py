"""onnxruntime on the CPU: the graph goes in weight-free, the weights are handed over in memory."""

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latmod.dataset import KernelTime
from latmod.errors import UnsupportedModelError
from latmod.graph import weight_slots
from latmod.runtimes import Inputs, Model, Settings, fastest_third, installed_version, profiled_runs
from latmod.runtimes.files import one_line
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
    rules = "onnxruntime"
    source = "the graph as it is, weights handed over in memory"
    # Float32 sums over 600 layers.
    tolerance = 1e-3
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
        if settings.profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.mkdtemp(prefix="latmod-profile-")) / "profile")
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
            raise UnsupportedModelError(f"onnxruntime cannot run {model.path}: {one_line(error)}") from error


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

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for about so many seconds, at least four times, and read onnxruntime's own profile."""
        self.infer()
        runs = 0
        for _ in profiled_runs(seconds):
            self.infer()
            runs += 1
        path = Path(self._session.end_profiling())
        events = json.loads(path.read_bytes())
        path.unlink()
        path.parent.rmdir()
        return _read_profile(events, runs)

    def close(self) -> None:
        """Drop the session."""
        del self._bound, self._bindings, self._session


def _read_profile(events: Sequence[Mapping[str, Any]], runs: int) -> tuple[KernelTime, ...]:
    """Return the kernels of the last `runs` runs, times in ns (the profile's are whole µs)."""
    starts = sorted(event["ts"] for event in events if event.get("name") == "model_run")[-runs:]
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    nodes.sort(key=lambda event: event["ts"])
    found: list[dict[str, Mapping[str, Any]]] = []
    for start, end in zip(starts, [*starts[1:], float("inf")], strict=True):
        found.append({event["name"]: event for event in nodes if start <= event["ts"] < end})
    names = list(found[0])
    whole = [run for run in found if len(run) == len(names) and all(name in run for name in names)]
    means = fastest_third([[run[name]["dur"] * 1e3 for name in names] for run in whole])
    totals: Counter[tuple[str, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = Counter()
    counts: Counter[tuple[str, tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]] = Counter()
    for name, mean in zip(names, means, strict=True):
        arguments = whole[0][name]["args"]
        key = (
            arguments["op_name"],
            _shapes(arguments.get("input_type_shape", ())),
            _shapes(arguments.get("output_type_shape", ())),
        )
        totals[key] += mean  # type: ignore[assignment]
        counts[key] += 1
    return tuple(
        KernelTime(op=key[0], inputs=key[1], outputs=key[2], value="", count=counts[key], ns=round(total / counts[key]))
        for key, total in totals.items()
    )


def _shapes(described: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(dims) for one in described for dims in one.values())
