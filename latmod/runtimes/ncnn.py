"""Ncnn on the CPU, converted by pnnx: one image at a time."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latmod.dataset import KernelTime
from latmod.errors import UnsupportedModelError
from latmod.graph import Graph, read_graph
from latmod.kernels.ncnn import refused_batch
from latmod.runtimes import Inputs, Model, Settings, fastest_third, installed_version, profiled_runs
from latmod.runtimes.files import run_converter, whole_file
from latmod.runtimes.recognising import Figures, Layer, figures, file_figures, recognise

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
    profiles = True
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        installed_version("pnnx", self.extra)
        return installed_version("ncnn", self.extra)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "NcnnSession":
        """Convert and load the model; raise UnsupportedModelError for a batch, or where there is nothing to show."""
        import ncnn

        for name, value in inputs[0].items():
            if value.ndim > 1 and value.shape[0] != 1:
                raise UnsupportedModelError(f"ncnn cannot run {model.path}: {refused_batch(name, value.shape[0])}")
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
            if settings.profile:
                graph = read_graph(Path(model.path))
                known = file_figures(path, graph, inputs[0])
                session: NcnnSession = ProfilingNcnnSession(net, inputs, graph, known)
            else:
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
        extractor = self._fed()
        self._results = [extractor.extract(name) for name in self._results_wanted]

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run, a batch of one put back in front."""
        return [
            np.array(value)[None] if code == 0 else np.empty((0,), dtype=np.float32) for code, value in self._results
        ]

    def _fed(self) -> Any:
        extractor = self._net.create_extractor()
        for name, value in zip(self._names, self._input, strict=True):
            extractor.input(name, value)
        return extractor

    def close(self) -> None:
        """Drop the net."""
        self._net.clear()
        del self._net, self._inputs, self._input, self._results


class ProfilingNcnnSession(NcnnSession):
    """Tell what layers take, too: ncnn has no profiler, but it runs no further than what it is asked for."""

    def __init__(self, net: "ncnn.Net", inputs: Sequence[Inputs], graph: Graph, known: Mapping[str, Figures]) -> None:
        """Keep the graph, whose nodes the layers are to be found in, and what its values are for the first input."""
        super().__init__(net, inputs)
        self._graph, self._known = graph, known
        # A Split gives one value several names.
        self._layers = [layer for layer in net.layers() if layer.type not in ("Input", "Split")]

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for about so many seconds, at least four times, layer by layer, with a clock before and after each."""
        layers = self._written()
        found = recognise(self._graph, self._known, layers, self._net.input_indexes())
        runs = [list(self._steps()) for _ in profiled_runs(seconds)]
        # Ranked apart: of differences those would come first whose second part was disturbed, down to below nothing.
        asked, again = (fastest_third([[step[part] for step in run] for run in runs]) for part in (0, 1))
        return tuple(
            KernelTime(
                op=layer.type,
                inputs=(),
                outputs=tuple(value.dims for value in wrote.writes.values()),
                value=own.moved,
                count=1,
                ns=max(0, round(first - second)),
                nodes=own.nodes,
            )
            for layer, wrote, first, second, own in zip(self._layers, layers, asked, again, found, strict=True)
        )

    def _steps(self) -> Iterator[tuple[float, float]]:
        """Yield what asking for each layer's value takes, in ns, and what asking again does; it takes the difference.

        Asking alone takes time, as the value is copied and its channels are put in order (measured: sums of layers are
        1 to 5 % above whole runs so, 3 to 18 % without). Nothing may hold a value when the next layer runs: layers
        that work in place would copy it first.
        """
        import ncnn

        extractor = self._fed()
        clock = time.perf_counter_ns
        for layer in self._layers:
            first, again = ncnn.Mat(), ncnn.Mat()
            start = clock()
            extractor.extract(layer.tops[0], first, 1)
            between = clock()
            del first
            restart = clock()
            extractor.extract(layer.tops[0], again, 1)
            end = clock()
            del again
            yield between - start, end - restart

    def _written(self) -> list[Layer]:
        """Return what each layer reads and what it writes."""
        extractor = self._fed()
        source = {top: layer.bottoms[0] for layer in self._net.layers() if layer.type == "Split" for top in layer.tops}
        layers = []
        for layer in self._layers:
            reads = tuple(source.get(number, number) for number in layer.bottoms)
            layers.append(Layer(reads=reads, writes={top: _figures(extractor.extract(top)) for top in layer.tops}))
        return layers

    def close(self) -> None:
        """Drop the layers with their net."""
        del self._layers
        super().close()


def _figures(extracted: tuple[int, Any]) -> Figures:
    code, value = extracted
    return figures(np.array(value) if code == 0 else np.empty(0, dtype=np.float32))
