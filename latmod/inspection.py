"""Lay out what a graph holds: inputs, outputs, one row per node, totals, unknown operators, and the residual shape."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from latmod.cost import VIEWS, Cost, cost, parameters
from latmod.graph import Graph, Tensor, read_graph
from latmod.residual import NotResidual, ResidualShape, residual_shape

Cell = str | int | float | bool


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one node; shapes are of its first output, "?" where nobody knows."""

    name: str
    op: str
    output: str
    macs: int
    flops: int
    params: int
    bytes_read: int
    bytes_weights: int
    bytes_written: int
    known: bool


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """Hold everything that `latmod inspect` shows of one model.

    `nodes` are those of the file except what costs nothing (views, and what is known at load time); `totals` is the sum
    of their rows. `unknown_ops` maps operators without a cost formula to how often they occur; `unknown_share` is
    their part of all bytes moved.
    """

    model: str
    opset: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: tuple[NodeRow, ...]
    totals: NodeRow
    unknown_ops: dict[str, int]
    unknown_share: float
    residual: ResidualShape | NotResidual

    def rows(self) -> list[dict[str, Cell]]:
        """Give one flat row per node and a last one, named "total"."""
        return [{"model": self.model, **msgspec.structs.asdict(row)} for row in (*self.nodes, self.totals)]

    def summary(self) -> dict[str, Cell]:
        """Give the facts about the whole model as one flat row."""
        facts: dict[str, Cell] = {
            "model": self.model,
            "opset": self.opset,
            "inputs": "; ".join(describe(tensor) for tensor in self.inputs),
            "outputs": "; ".join(describe(tensor) for tensor in self.outputs),
            "nodes": len(self.nodes),
        }
        names = ("macs", "flops", "params", "bytes_read", "bytes_weights", "bytes_written")
        facts |= {name: getattr(self.totals, name) for name in names}
        facts["unknown_ops"] = "; ".join(f"{op} x{count}" for op, count in self.unknown_ops.items())
        facts["unknown_share"] = self.unknown_share
        facts["is_residual"] = isinstance(self.residual, ResidualShape)
        if isinstance(self.residual, ResidualShape):
            shape = self.residual
            facts |= {"block": shape.block, "blocks": "-".join(map(str, shape.blocks)), "width": shape.width}
            facts |= {"widen": shape.widen, "side": shape.side, "batch": shape.batch, "classes": shape.classes}
        else:
            facts["reason"] = self.residual.reason
        return facts


def describe(tensor: Tensor) -> str:
    """Write a tensor as one word, such as "input:float32[1x3x224x224]"."""
    return f"{tensor.name}:{tensor.dtype}[{_dims(tensor)}]"


def inspect(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Inspection:
    """Inspect an `.onnx` file; `shapes` sets the dims of inputs by name. Raises GraphError."""
    return inspect_graph(read_graph(Path(path), dict(shapes) if shapes else None))


def unknown_share(graph: Graph) -> float:
    """Return the part of unknown operators in all bytes moved, 0 to 1. Raises GraphError as `inspect_graph` does."""
    return _unknown_share([cost(node, graph) for node in graph.nodes])


def _unknown_share(costs: list[Cost]) -> float:
    moved = sum(spent.bytes_read + spent.bytes_written for spent in costs)
    blind = sum(spent.bytes_read + spent.bytes_written for spent in costs if not spent.known)
    return blind / moved if moved else 0.0


def inspect_graph(graph: Graph) -> Inspection:
    """Cost every node of a graph. Raises GraphError where a node's shapes contradict its operator."""
    nodes = [node for node in graph.nodes if node.op not in VIEWS]
    nodes = [node for node in nodes if not all(name in graph.static for name in node.outputs if name)]
    costs = [cost(node, graph) for node in nodes]
    rows = []
    unknown: dict[str, int] = {}
    for node, spent in zip(nodes, costs, strict=True):
        output = graph.tensors.get(node.outputs[0]) if node.outputs else None
        rows.append(_row(node.name, node.op, _dims(output), spent))
        if not spent.known:
            unknown[node.op] = unknown.get(node.op, 0) + 1
    return Inspection(
        model=graph.name,
        opset=graph.opset,
        inputs=graph.inputs,
        outputs=graph.outputs,
        nodes=tuple(rows),
        totals=_row("total", "", "", _sum(costs, parameters(graph))),
        unknown_ops=dict(sorted(unknown.items())),
        unknown_share=_unknown_share(costs),
        residual=residual_shape(graph),
    )


def _dims(tensor: Tensor | None) -> str:
    return "x".join(map(str, tensor.shape)) if tensor is not None else "?"


def _row(name: str, op: str, output: str, spent: Cost) -> NodeRow:
    return NodeRow(name=name, op=op, output=output, **msgspec.structs.asdict(spent))


def _sum(costs: list[Cost], params: int) -> Cost:
    return Cost(
        macs=sum(spent.macs for spent in costs),
        flops=sum(spent.flops for spent in costs),
        bytes_read=sum(spent.bytes_read for spent in costs),
        bytes_weights=sum(spent.bytes_weights for spent in costs),
        bytes_written=sum(spent.bytes_written for spent in costs),
        params=params,
        known=all(spent.known for spent in costs),
    )
