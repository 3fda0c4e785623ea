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
        nodes = nodes_of([(one["op_name"], _node(one["node_name"], places)) for one in pieces], self._graph, places)
        return tuple(
            KernelTime(
                op=one["op_name"], inputs=(), outputs=(), value="", count=1, ns=round(1e9 * one["secs_per_iter"]),
                nodes=own,
            )
            for one, own in zip(pieces, nodes, strict=True)
        )  # fmt: skip


def _node(name: str, nodes: Collection[str]) -> str:
    """Return the node that a piece is a part of: the engine adds endings to its name, as in `conv1.pack_a`."""
    own = name
    while own and own not in nodes:
        own = own.rpartition(".")[0]
    return own or name


def nodes_of(pieces: Sequence[tuple[str, str]], graph: "Graph", places: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return the nodes that each piece, an operator and a name, does the work of.

    A product is named after the last that was fused into it. It is the one computed last of those behind whose results
    this stands, if none has a piece of its own: nearer may lie that of the block before, beyond a shortcut (where
    windows are put together again before they are added; kernels-engines-zen3: 80 pieces of 20 networks). `places`
    says where in the graph each node stands.
    """
    found: list[tuple[str, ...]] = [(name,) for _, name in pieces]
    named = {at: name for at, (op, name) in enumerate(pieces) if op == _PRODUCT and name in places}
    taken = {name for name in named.values() if graph.nodes[places[name]].op in _PRODUCTS}
    fused = {at: name for at, name in named.items() if name not in taken}
    for at, name in sorted(fused.items(), key=lambda one: places[one[1]]):
        products = sorted(_products_before(name, graph, places), key=places.__getitem__, reverse=True)
        if products:
            own = next((one for one in products if one not in taken), products[0])
            taken.add(own)
            found[at] = (own, name)
    return found


def _products_before(name: str, graph: "Graph", places: Mapping[str, int]) -> set[str]:
    """Return the products that a node's value comes of, those alone that no other lies behind."""
    products: set[str] = set()
    seen, level = {name}, [name]
    while level:
        before = [graph.producer(value) for one in level for value in graph.nodes[places[one]].inputs]
        new = {node.name: node.op for node in before if node is not None}
        products |= {one for one, op in new.items() if op in _PRODUCTS}
        level = [one for one, op in new.items() if op not in _PRODUCTS and one not in seen]
        seen.update(level)
    return products


def _element(value: np.ndarray) -> str:
    return {"float32": "f32", "float64": "f64", "int64": "i64", "int32": "i32", "bool": "bool"}[str(value.dtype)]
