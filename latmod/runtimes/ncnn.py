"""Ncnn on the CPU, converted by pnnx: one image at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latmod.errors import UnsupportedModelError
from latmod.runtimes import Inputs, Model, Settings, installed_version
from latmod.runtimes.files import run_converter, whole_file

if TYPE_CHECKING:
    import ncnn

# What would compute in less than float32, or elsewhere than on the CPU.
_OFF = (
    "use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage",
    "use_int8_inference",
)  # fmt: skip


class Ncnn:
    """Open models in ncnn, float32 throughout, its Winograd and packed layouts on."""

    name = "ncnn"
    extra = "ncnn"
    rules = "ncnn"
    source = "the .onnx file, converted by pnnx"
    tolerance = 1e-3
    # It has no profiler; extracting blob after blob disturbs what it measures by 30 %.
    profiles = False
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        installed_version("pnnx", self.extra)
        return installed_version("ncnn", self.extra)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "NcnnSession":
        """Convert and load the model; raise UnsupportedModelError for a batch, or where there is nothing to show."""
        import ncnn

        if any(value.ndim > 1 and value.shape[0] != 1 for value in inputs[0].values()):
            raise UnsupportedModelError("ncnn runs one image at a time; set the batch to 1 with --shape")
        net = ncnn.Net()
        net.opt.num_threads = settings.threads
        for option in _OFF:
            if hasattr(net.opt, option):
                setattr(net.opt, option, False)
        with whole_file(model) as path:
            _convert(path, inputs[0], model.path)
            param, weights = path.with_name("model.ncnn.param"), path.with_name("model.ncnn.bin")
            if net.load_param(str(param)) != 0 or net.load_model(str(weights)) != 0:
                raise UnsupportedModelError(f"ncnn cannot load {model.path}: it has no layer for an operator in it")
        session = NcnnSession(net, inputs)
        session.infer()
        for output in session.outputs():
            if output.size == 0 or not np.isfinite(output).all():
                raise UnsupportedModelError(
                    f"ncnn runs {model.path} to an output of shape {output.shape} or not finite"
                )
        return session


def _convert(path: Path, inputs: Inputs, name: str) -> None:
    """Run pnnx in the model's folder: from elsewhere it refuses weights that lie beside the graph."""
    import pnnx

    shapes = ",".join(f"[{','.join(map(str, value.shape))}]{_element(value)}" for value in inputs.values())
    command = [pnnx.EXEC_PATH, path.name, f"inputshape={shapes}", "fp16=0"]
    code, told = run_converter(command, path.parent, f"ncnn: {name}")
    if code != 0 or not path.with_name("model.ncnn.bin").is_file():
        raise UnsupportedModelError(f"pnnx cannot convert {name}: {told}")


def _element(value: np.ndarray) -> str:
    return {"float32": "f32", "int64": "i64", "int32": "i32"}.get(str(value.dtype), "f32")


class NcnnSession:
    """Hold a net, and every input as a matrix of the engine."""

    def __init__(self, net: "ncnn.Net", inputs: Sequence[Inputs]) -> None:
        """Copy the inputs, without their batch."""
        import ncnn

        self.settings: dict[str, str | int | bool] = {
            "threads": int(net.opt.num_threads),
            "precision": "float32",
            "winograd": bool(net.opt.use_winograd_convolution),
            "packing": bool(net.opt.use_packing_layout),
        }
        self._net = net
        self._names = [f"in{position}" for position in range(len(inputs[0]))]
        self._results_wanted = list(net.output_names())
        self._inputs = [[ncnn.Mat(np.ascontiguousarray(value[0])).clone() for value in one.values()] for one in inputs]
        self._input = self._inputs[0]
        self._results: list[Any] = []

    def feed(self, index: int) -> None:
        """Choose one input."""
        self._input = self._inputs[index % len(self._inputs)]

    def infer(self) -> None:
        """Run once."""
        extractor = self._net.create_extractor()
        for name, value in zip(self._names, self._input, strict=True):
            extractor.input(name, value)
        self._results = [extractor.extract(name) for name in self._results_wanted]

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run, a batch of one put back in front."""
        return [
            np.array(value)[None] if code == 0 else np.empty((0,), dtype=np.float32) for code, value in self._results
        ]

    def close(self) -> None:
        """Drop the net."""
        self._net.clear()
        del self._net, self._inputs, self._input, self._results
