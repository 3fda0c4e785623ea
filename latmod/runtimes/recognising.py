"""Find which nodes of a file an engine's layers do the work of, by the values that they write.

For engines whose converter keeps no names: what a layer writes is, up to the order of its elements, what some node of
the file writes, and everything between that and what the layer reads is its work.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.graph import Graph
from latmod.runtimes import Inputs

_TOLERANCE = 2e-3
"""How far figures of one value may differ, as a part of its root mean square: Winograd's convolutions lose digits."""
_BYTES_AT_ONCE = 500_000_000
"""Values of a network are computed in portions of this size: all of them at once may not fit into memory."""
_SILENT = 4


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what tells a value from others: its dims but those of one, and what the order of its elements is nothing to.

    `spread` is root mean square, mean, least and largest.
    """

    dims: tuple[int, ...]
    spread: tuple[float, float, float, float]

    @property
    def numel(self) -> int:
        """Count the elements."""
        return prod(self.dims)


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """Name, by any numbers, the values that a layer reads and those that it writes, with their figures."""

    reads: tuple[int, ...]
    writes: dict[int, Figures]


class Recognised(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the nodes that a layer does the work of; or the value that it only brings into another form."""

    nodes: tuple[str, ...]
    moved: str = ""


def figures(value: NDArray[np.float32]) -> Figures:
    """Return the figures of a value."""
    dims = tuple(size for size in value.shape if size != 1)
    if not value.size:
        return Figures(dims=dims, spread=(0.0, 0.0, 0.0, 0.0))
    wide = value.astype(np.float64)
    root = float(np.sqrt(np.mean(wide**2)))
    return Figures(dims=dims, spread=(root, float(wide.mean()), float(wide.min()), float(wide.max())))


def file_figures(path: Path, graph: Graph, inputs: Inputs) -> dict[str, Figures]:
    """Return the figures of every value that a whole model computes, in the file's order, as onnxruntime has them."""
    import onnx
    import onnxruntime as ort

    proto = onnx.load(str(path), load_external_data=False)
    written = [name for node in proto.graph.node for name in node.output if name in graph.tensors]
    wanted = [name for name in written if name not in graph.static and graph.tensors[name].dtype == "float32"]
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    marked = path.with_name("marked.onnx")
    found: dict[str, Figures] = {}
    for names in _portions(wanted, graph):
        del proto.graph.output[:]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        onnx.save_model(proto, str(marked))
        session = ort.InferenceSession(str(marked), options, providers=["CPUExecutionProvider"])
        found |= {name: figures(value) for name, value in zip(names, session.run(names, dict(inputs)), strict=True)}
    marked.unlink(missing_ok=True)
    return found


def _portions(names: Sequence[str], graph: Graph) -> Iterator[list[str]]:
    portion: list[str] = []
    size = 0
    for name in names:
        if portion and size + graph.tensors[name].nbytes > _BYTES_AT_ONCE:
            yield portion
            portion, size = [], 0
        portion.append(name)
        size += graph.tensors[name].nbytes
    if portion:
        yield portion


def recognise(
    graph: Graph, known: Mapping[str, Figures], layers: Sequence[Layer], inputs: Sequence[int]
) -> list[Recognised]:
    """Return for each layer, given in the order in which they run, the nodes that it does the work of.

    None for a layer that writes what no node does: it is a part of those that read it. `known` holds the figures of the
    file's values, `inputs` are the layers' numbers for the graph's inputs.
    """
    values = _Values(known)
    behind: dict[int, frozenset[str]] = {
        number: frozenset([tensor.name]) for number, tensor in zip(inputs, graph.inputs, strict=True)
    }
    found = []
    for layer in layers:
        read = frozenset[str]().union(*(behind.get(number, ()) for number in layer.reads))
        nodes: dict[str, None] = {}
        moved = ""
        for number, own in layer.writes.items():
            same = next((name for name in read if name in known and near(known[name], own)), "")
            name, made_by = _written(graph, values.like(own, exactly=bool(same)), read)
            behind[number] = frozenset([name]) if name else read
            nodes |= dict.fromkeys(made_by)
            moved = moved or (same if not name else "")
            if name:
                values.take(name)
        found.append(Recognised(nodes=tuple(nodes), moved="" if nodes else moved))
    return found


def near(one: Figures, other: Figures) -> bool:
    """Tell whether two values may be one, their elements in any order."""
    apart = max(abs(a - b) for a, b in zip(one.spread, other.spread, strict=True))
    return one.numel == other.numel and apart <= _TOLERANCE * other.spread[0]


class _Values:
    """Hold the values of a file that no layer was found to write yet."""

    def __init__(self, known: Mapping[str, Figures]) -> None:
        """Take over their figures, in the file's order."""
        self._left = dict(known)

    def like(self, own: Figures, *, exactly: bool) -> list[str]:
        """Return those that may be this one, in the file's order: of the same dims first, or these alone."""
        alike = [name for name, one in self._left.items() if near(one, own)]
        first = [name for name in alike if self._left[name].dims == own.dims]
        return first if exactly else [*first, *(name for name in alike if name not in first)]

    def take(self, name: str) -> None:
        """Leave one out from now on."""
        del self._left[name]


def _written(graph: Graph, names: Iterable[str], read: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """Return the first of some values that is computed from what was read alone, and by which nodes."""
    for name in names:
        nodes = _between(graph, read, name)
        if nodes:
            return name, nodes
    return "", ()


def _between(graph: Graph, read: frozenset[str], written: str) -> tuple[str, ...]:
    """Return the nodes that make one value of others and of weights; none where it takes any other input."""
    found: dict[str, None] = {}
    left = [written]
    while left:
        name = left.pop()
        if not name or name in graph.static or name in read:
            continue
        node = graph.producer(name)
        if node is None:
            return ()
        if node.name not in found:
            found[node.name] = None
            left.extend(node.inputs)
    return tuple(found)
