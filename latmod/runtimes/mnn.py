"""MNN on the CPU, converted by its extension module `_tools`.

`MNN.tools` is never imported: it installs a package with pip and calls a vendor's telemetry when it is.
"""

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latmod.dataset import KernelTime
from latmod.errors import UnsupportedModelError
from latmod.runtimes import Inputs, Model, Settings, fastest_third, installed_version, profiled_runs
from latmod.runtimes.files import run_converter, silent, whole_file

if TYPE_CHECKING:
    import MNN

_ENDINGS = re.compile(r"(__matmul_converted|_raster_\d+|__group__\d+)+$")
_RECURRENT = "--useOriginRNNImpl"
"""Else recurrent layers become loops, which sessions do not run: 16 networks of rare-zen5 gave no output."""
_CONVERT = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"


class Mnn:
    """Open models in MNN's CPU backend at `precision=high`, which is float32 with Winograd convolutions."""

    name = "mnn"
    extra = "mnn"
    rules = "mnn"
    source = "the .onnx file, converted by MNN's _tools"
    # Winograd transforms of 3x3 convolutions lose digits: up to 3e-3 seen on ResNet-50.
    tolerance = 1e-2
    profiles = True
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        return installed_version("MNN", self.extra)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "MnnSession":
        """Convert and load the model; raise UnsupportedModelError where there is no file, shape or number to show."""
        import MNN

        with whole_file(model) as path:
            converted = _converted(path, model.path)
            with silent():
                session = MnnSession(MNN.Interpreter(str(converted)), inputs, settings)
                session.infer()
        for output in session.outputs():
            if output.size == 0 or not np.isfinite(output).all():
                raise UnsupportedModelError(f"mnn runs {model.path} to an output of shape {output.shape} or not finite")
        return session


def _source(name: str) -> str:
    """Return the value that an operator of MNN's is there for, by the endings that its converter gives names."""
    return _ENDINGS.sub("", name)


def _converted(path: Path, name: str) -> Path:
    target = path.with_suffix(".mnn")
    arguments = ["-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(target), "--bizCode", "latmod"]
    command = [sys.executable, "-c", _CONVERT, *arguments, _RECURRENT]
    _, told = run_converter(command, path.parent, f"mnn: {name}")
    if not target.is_file():
        raise UnsupportedModelError(f"mnn cannot convert {name}: {told}")
    return target


class MnnSession:
    """Hold a session of an interpreter, and every input as a tensor of the engine."""

    def __init__(self, interpreter: "MNN.Interpreter", inputs: Sequence[Inputs], settings: Settings) -> None:
        """Create the session and set its shapes."""
        import MNN

        self.settings: dict[str, str | int | bool] = {
            "threads": settings.threads,
            "backend": "CPU",
            "precision": "high",
            "winograd": True,
        }
        self._interpreter = interpreter
        self._session: Any = interpreter.createSession(
            {"numThread": settings.threads, "precision": "high", "backend": "CPU"}
        )
        self._places = {name: interpreter.getSessionInput(self._session, name) for name in inputs[0]}
        for name, value in inputs[0].items():
            interpreter.resizeTensor(self._places[name], tuple(value.shape))
        interpreter.resizeSession(self._session)
        self._inputs = [{name: _tensor(MNN, value) for name, value in one.items()} for one in inputs]
        self.feed(0)

    def feed(self, index: int) -> None:
        """Copy one input into the session's memory."""
        for name, tensor in self._inputs[index % len(self._inputs)].items():
            self._places[name].copyFrom(tensor)

    def infer(self) -> None:
        """Run once."""
        self._interpreter.runSession(self._session)

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for about so many seconds, at least four times, with a clock before and after every operator."""
        told: list[tuple[str, str, int]] = []
        clock = time.perf_counter_ns
        start = 0

        def before(tensors: object, piece: Any) -> bool:
            nonlocal start
            start = clock()
            return True

        def after(tensors: object, piece: Any) -> bool:
            took = clock() - start
            told.append((piece.getType(), piece.getName(), took))
            return True

        runs: list[list[float]] = []
        for _ in profiled_runs(seconds):
            told.clear()
            self._interpreter.runSessionWithCallBackInfo(self._session, before, after)
            runs.append([float(ns) for _, _, ns in told])
        return tuple(
            KernelTime(op=op, inputs=(), outputs=(), value="", count=1, ns=round(ns), nodes=(_source(name),))
            for (op, name, _), ns in zip(told, fastest_third(runs), strict=True)
        )

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run."""
        import MNN

        found = []
        for output in self._interpreter.getSessionOutputAll(self._session).values():
            shape = tuple(output.getShape())
            if 0 in shape:
                found.append(np.empty(shape, dtype=np.float32))
                continue
            host = _tensor(MNN, np.zeros(shape, dtype=np.float32))
            output.copyToHostTensor(host)
            found.append(np.array(host.getNumpyData(), dtype=np.float32).reshape(shape))
        return found

    def close(self) -> None:
        """Drop session and interpreter."""
        del self._places, self._inputs, self._session, self._interpreter


def _tensor(mnn: Any, value: np.ndarray) -> Any:
    """Return a host tensor in Caffe's layout: batch x channels x height x width, as in ONNX."""
    whole = value.dtype.kind in "iu"
    kind = mnn.Halide_Type_Int if whole else mnn.Halide_Type_Float
    data = np.ascontiguousarray(value, dtype=np.int32 if whole else np.float32)
    return mnn.Tensor(tuple(value.shape), kind, data, mnn.Tensor_DimensionType_Caffe)
