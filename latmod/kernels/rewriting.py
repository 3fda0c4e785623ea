"""Rewrite a graph as engines do: nodes disappear into others, whose names they leave behind."""

from bisect import bisect_left
from collections.abc import Iterator
from operator import attrgetter

from latmod.graph import Attribute, Attributed, Graph, Tensor, is_copy


class Step(Attributed):
    """One operator of a graph under rewriting; `sources` are the nodes of the file that it does the work of.

    `place` tells where it stands among others: it grows along a graph's steps.
    """

    __slots__ = ("attributes", "gone", "inputs", "op", "outputs", "place", "sources")

    def __init__(
        self, op: str, inputs: list[str], outputs: list[str], attributes: dict[str, Attribute], sources: list[str]
    ) -> None:
        """Take over the parts as they are."""
        self.op = op
        self.inputs = inputs
        self.outputs = outputs
        self.attributes = attributes
        self.sources = sources
        self.gone = False
        self.place = 0.0

    @property
    def out(self) -> str:
        """Give the first output."""
        return self.outputs[0]


_place = attrgetter("place")


class Rewriter:
    """Hold a graph as steps in topological order, with who writes and who reads each value.

    Left out from the start are copies, and nodes that no input influences: engines compute those once.
    """

    def __init__(self, graph: Graph) -> None:
        """Take over a graph."""
        self.graph = graph
        self.tensors: dict[str, Tensor] = dict(graph.tensors)
        self.static: set[str] = set(graph.static)
        self.results: set[str] = {tensor.name for tensor in graph.outputs}
        self.steps: list[Step] = []
        self.producers: dict[str, Step] = {}
        self.readers: dict[str, list[Step]] = {}
        alias: dict[str, str] = {}
        for node in graph.nodes:
            outputs = [name for name in node.outputs if name]
            if outputs and graph.static.issuperset(outputs):
                continue
            inputs = [alias.get(name, name) for name in node.inputs]
            if is_copy(node, graph):
                alias[node.outputs[0]] = inputs[0]
                if node.outputs[0] in self.results:
                    self.results.add(inputs[0])
                continue
            self.append(Step(node.op, inputs, list(node.outputs), dict(node.attributes), [node.name]))

    def append(self, step: Step) -> None:
        """Add a step at the end."""
        step.place = self.steps[-1].place + 1.0 if self.steps else 0.0
        self.steps.append(step)
        self.producers.update((name, step) for name in step.outputs if name)
        for name in dict.fromkeys(step.inputs):
            if name:
                self.readers.setdefault(name, []).append(step)

    def live(self, *ops: str) -> Iterator[Step]:
        """Yield the steps that are left, in order, or those of some operators; steps may be removed meanwhile."""
        for step in [step for step in self.steps if not ops or step.op in ops]:
            if not step.gone:
                yield step

    def shape(self, name: str) -> tuple[int, ...]:
        """Give the shape of a value, () where it is unknown."""
        tensor = self.tensors.get(name)
        return tensor.shape if tensor is not None else ()

    def uses(self, name: str) -> list[Step]:
        """List the steps that read a value."""
        return self.readers.get(name, [])

    def only_reader(self, name: str) -> Step | None:
        """Give the step that alone reads a value, which is no result of the graph either."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.results else None

    def scalar(self, name: str) -> float | None:
        """Give the value of a constant of one element, None for anything else."""
        values = self.graph.constants.get(name, ())
        return float(values[0]) if len(values) == 1 else None

    def remove(self, step: Step) -> None:
        """Drop a step; what it wrote has no producer any more."""
        step.gone = True
        for name in dict.fromkeys(step.inputs):
            if name and step in self.readers.get(name, []):
                self.readers[name].remove(step)
        for name in step.outputs:
            if self.producers.get(name) is step:
                del self.producers[name]

    def rewire(self, step: Step, inputs: list[str]) -> None:
        """Let a step read other values."""
        for name in dict.fromkeys(step.inputs):
            if name and step in self.readers.get(name, []):
                self.readers[name].remove(step)
        step.inputs = inputs
        for name in dict.fromkeys(inputs):
            if name:
                self.readers.setdefault(name, []).append(step)

    def absorb(self, into: Step, *others: Step, out: str | None = None) -> None:
        """Let a step do the work of later ones; it then writes `out`, or what the last of them wrote."""
        for other in others:
            into.sources += other.sources
            self.remove(other)
        written = out if out is not None else others[-1].out
        if self.producers.get(into.out) is into:
            del self.producers[into.out]
        into.outputs = [written]
        self.producers[written] = into

    def redirect(self, step: Step, *outs: str) -> None:
        """Let a step write its first outputs under other names."""
        for old, new in zip(step.outputs, outs, strict=False):
            if self.producers.get(old) is step:
                del self.producers[old]
            self.producers[new] = step
        step.outputs = [*outs, *step.outputs[len(outs) :]]

    def bypass(self, step: Step, source: str = "") -> None:
        """Drop a step; the readers of its output read its input, or `source`, instead."""
        source = source or step.inputs[0]
        readers = list(self.uses(step.out))
        self.remove(step)
        for reader in readers:
            self.rewire(reader, [source if name == step.out else name for name in reader.inputs])

    def replace(self, first: Step, op: str, inputs: list[str], outputs: list[str], *others: Step) -> Step:
        """Put one step in the place of several, where the last of them stands."""
        gone = (first, *others)
        made = Step(op, inputs, outputs, {}, [source for step in gone for source in step.sources])
        last = max(gone, key=_place)
        for step in gone:
            self.remove(step)
        made.place = last.place
        self.steps[self._index(last)] = made
        self.producers.update((name, made) for name in outputs if name)
        for name in dict.fromkeys(inputs):
            if name:
                self.readers.setdefault(name, []).append(made)
        return made

    def insert(self, op: str, source: str, target: str, beside: Step, *, after: bool) -> Step:
        """Put a step of one input and one output before or after another."""
        made = Step(op, [source], [target], {}, [])
        position = self._index(beside) + after
        before = self.steps[position - 1].place if position else self.steps[0].place - 1.0
        behind = self.steps[position].place if position < len(self.steps) else before + 1.0
        made.place = (before + behind) / 2.0
        self.steps.insert(position, made)
        self.producers[target] = made
        self.readers.setdefault(source, []).append(made)
        return made

    def _index(self, step: Step) -> int:
        """Return where a step stands in the list."""
        position = bisect_left(self.steps, step.place, key=_place)
        # Halved often enough, places become the same.
        return position if self.steps[position] is step else self.steps.index(step, position)

    def declare(self, name: str, like: str, shape: tuple[int, ...], *, static: bool = False) -> str:
        """Enter a new value of the type of another."""
        source = self.tensors.get(like)
        self.tensors[name] = Tensor(name=name, dtype=source.dtype if source else "float32", shape=shape)
        if static:
            self.static.add(name)
        return name
