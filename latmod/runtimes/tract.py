"""Tract on the CPU, which always runs on one thread."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latmod.dataset import KernelTime
from latmod.errors import UnsupportedModelError
from latmod.runtimes import Inputs, Model, Settings, installed_version
from latmod.runtimes.files import one_line, whole_file

if TYPE_CHECKING:
    from latmod.graph import Graph

_PRODUCT = "OptMatMul"
_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


class Tract:
    """Open models in tract, its own optimisations on."""

    name = "tract"
    extra = "tract"
    rules = "tract"
    source = "the .onnx file"
    tolerance = 1e-3
    profiles = True
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version."""
        return installed_version("tract", self.extra)

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "TractSession":
        """Load and optimise the model; raise UnsupportedModelError with the engine's reason, or for several threads."""
        import tract

        from latmod.graph import read_graph

        if settings.threads != 1:
            raise UnsupportedModelError("tract runs on one thread, whatever it is told; measure it with --threads 1")
        try:
            with whole_file(model) as path:
                loaded = tract.onnx().load(str(path))
                for position, value in enumerate(inputs[0].values()):
                    loaded.set_input_fact(position, ",".join([*map(str, value.shape), _element(value)]))
                runnable = loaded.into_model().into_runnable()
            if settings.profile:
                session: TractSession = ProfilingTractSession(runnable, inputs, read_graph(Path(model.path)))
            else:
                session = TractSession(runnable, inputs)
            session.infer()
        except tract.TractError as error:
            raise UnsupportedModelError(f"tract cannot run {model.path}: {one_line(error)}") from error
        return session


class TractSession:
    """Hold a runnable model, and every input as a tensor of the engine."""

    def __init__(self, runnable: Any, inputs: Sequence[Inputs]) -> None:
        """Copy the inputs."""
        import tract

        self.settings: dict[str, str | int | bool] = {"threads": 1, "precision": "float32"}
        self._runnable = runnable
        self._inputs = [[tract.Tensor.from_numpy(value) for value in one.values()] for one in inputs]
        self._input = self._inputs[0]
        self._results: list[Any] = []

    def feed(self, index: int) -> None:
        """Choose one input."""
        self._input = self._inputs[index % len(self._inputs)]

    def infer(self) -> None:
        """Run once."""
        self._results = self._runnable.run(self._input)

    def outputs(self) -> list[np.ndarray]:
        """Return the outputs of the last run."""
        return [np.array(result.to_numpy()) for result in self._results]

    def close(self) -> None:
        """Drop the model."""
        del self._runnable, self._inputs, self._input, self._results


class ProfilingTractSession(TractSession):
    """Hold a session that knows the graph of the file."""

    def __init__(self, runnable: Any, inputs: Sequence[Inputs], graph: "Graph") -> None:
        """Copy the inputs."""
        super().__init__(runnable, inputs)
        self._graph = graph

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for the five seconds that the engine takes for a profile, whatever it is told."""
        told = json.loads(self._runnable.profile_json(self._input))["nodes"]
        places = {node.name: place for place, node in enumerate(self._graph.nodes)}
        pieces = sorted((one for one in told if "secs_per_iter" in one), key=lambda one: one["qualified_id"][1])
        return tuple(
            KernelTime(
                op=one["op_name"], inputs=(), outputs=(), value="", count=1, ns=round(1e9 * one["secs_per_iter"]),
                nodes=nodes_of(one["op_name"], _node(one["node_name"], places), self._graph, places),
            )
            for one in pieces
        )  # fmt: skip


def _node(name: str, nodes: Collection[str]) -> str:
    """Return the node that a piece is a part of: the engine adds endings to its name, as in `conv1.pack_a`."""
    own = name
    while own and own not in nodes:
        own = own.rpartition(".")[0]
    return own or name


def nodes_of(op: str, name: str, graph: "Graph", places: Mapping[str, int]) -> tuple[str, ...]:
    """Return the nodes that a piece does the work of; a product is named after the last that was fused into it.

    `places` says where in the graph each node stands.
    """
    if op != _PRODUCT or name not in places:
        return (name,)
    level, seen = [name], {name}
    while level:
        products = [one for one in level if graph.nodes[places[one]].op in _PRODUCTS]
        if products:
            # Of several as near the last one: what was computed before it has pieces of its own.
            nearest = max(products, key=places.__getitem__)
            return (nearest,) if nearest == name else (nearest, name)
        before = [graph.producer(value) for one in level for value in graph.nodes[places[one]].inputs]
        level = [node.name for node in before if node is not None and node.name not in seen]
        seen.update(level)
    return (name,)


def _element(value: np.ndarray) -> str:
    return {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "bool": "bool"}[str(value.dtype)]
