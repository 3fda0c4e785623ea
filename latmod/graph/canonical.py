"""Bring graphs that compute the same thing in the same way to the same form, whoever exported them."""

from collections.abc import Sequence

from latmod.graph.records import Graph, Node, Tensor, link

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})


def canonical(graph: Graph) -> Graph:
    """Rewrite a graph so that equal networks have equal nodes, whichever exporter wrote them.

    Left out: nodes that no input influences (their results become initialisers), Identity, Dropout, and Cast to the
    same type. A batch norm that alone reads a convolution is folded into it, and every convolution carries a bias: an
    exporter drops a bias that happens to be zero, and folding a batch norm makes one. A Sum of two is an Add; a mean or
    an average pool over all of height and width is a GlobalAveragePool. Views such as Reshape stay (they cost nothing).
    """
    builder = _Builder(graph)
    for node in graph.nodes:
        builder.add(node)
    return builder.build()


def canonical_op(op: str, inputs: Sequence[str]) -> str:
    """Return what an operator that reads so many values is called in canonical form: a Sum of two is an Add."""
    return "Add" if op == "Sum" and len(inputs) == 2 else op


def is_copy(node: Node, graph: Graph) -> bool:
    """Tell whether a node gives on what it reads: an Identity, a Dropout, a Cast to the same type."""
    if node.op == "Cast":
        source, target = graph.tensors.get(node.inputs[0]), graph.tensors.get(node.outputs[0])
        return source is not None and target is not None and source.dtype == target.dtype
    # A mask that something reads makes a Dropout a real one.
    return node.op in ("Identity", "Dropout") and not any(graph.consumers(name) for name in node.outputs[1:])


def takes_all(node: Node, graph: Graph) -> bool:
    """Tell whether a node gives all that it reads, in the same order: a slice of every place, a union of one.

    As exporters write a cut at as many channels as there are. onnxruntime, torch and ncnn copy it nevertheless.
    """
    if node.op == "Concat":
        return len(node.inputs) == 1
    if node.op != "Slice":
        return False
    source, target = graph.tensors.get(node.inputs[0]), graph.tensors.get(node.outputs[0])
    if source is None or target is None or source.shape != target.shape:
        return False
    steps = graph.constants.get(node.inputs[4], ()) if len(node.inputs) > 4 and node.inputs[4] else (1,)
    return bool(steps) and all(step > 0 for step in steps)


class _Builder:
    """Collect canonical nodes; `alias` maps a value that is left out to the one that stands for it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.alias: dict[str, str] = {}
        self.nodes: list[Node] = []
        self.index: dict[str, int] = {}
        self.tensors = dict(graph.tensors)
        self.initializers = dict(graph.initializers)
        self.static = set(graph.static)
        self.outputs = {tensor.name for tensor in graph.outputs}

    def add(self, node: Node) -> None:
        """Take over one node in its canonical form, or leave it out."""
        graph = self.graph
        outputs = [name for name in node.outputs if name]
        if outputs and all(name in graph.static for name in outputs):
            self.initializers.update((name, graph.tensors[name]) for name in outputs if name in graph.tensors)
            return
        inputs = tuple(self.alias.get(name, name) for name in node.inputs)
        if is_copy(node, self.graph):
            self.alias[node.outputs[0]] = inputs[0]
            return
        if node.op == "BatchNormalization" and self._fold(node, inputs[0]):
            return
        if node.op in _CONVOLUTIONS:
            inputs = self._with_bias(node, inputs)
        op = canonical_op(node.op, inputs)
        if self._is_global_mean(node):
            op, inputs = "GlobalAveragePool", inputs[:1]
        attributes = {} if op == "GlobalAveragePool" else node.attributes
        self.index.update((name, len(self.nodes)) for name in outputs)
        self.nodes.append(Node(name=node.name, op=op, inputs=inputs, outputs=node.outputs, attributes=attributes))

    def _fold(self, norm: Node, source: str) -> bool:
        """Let the convolution that writes `source` write what the batch norm would have."""
        position = self.index.get(source)
        if position is None or source in self.outputs or len(norm.outputs) > 1:
            return False
        producer = self.nodes[position]
        if producer.op not in _CONVOLUTIONS or not self._read_once(source, norm):
            return False
        output = norm.outputs[0]
        self.nodes[position] = Node(
            name=producer.name,
            op=producer.op,
            inputs=producer.inputs,
            outputs=(output,),
            attributes=producer.attributes,
        )
        self.index[output] = position
        return True

    def _read_once(self, source: str, norm: Node) -> bool:
        """Tell whether nothing but `norm` reads `source`, be it through copies."""
        frontier = [source]
        while frontier:
            for reader in self.graph.consumers(frontier.pop()):
                if is_copy(reader, self.graph) and reader.outputs[0] not in self.outputs:
                    frontier.append(reader.outputs[0])
                elif reader is not norm:
                    return False
        return True

    def _with_bias(self, node: Node, inputs: tuple[str, ...]) -> tuple[str, ...]:
        if (len(inputs) > 2 and inputs[2]) or len(inputs) < 2:
            return inputs
        weight, output = self.tensors.get(inputs[1]), self.tensors.get(node.outputs[0])
        if weight is None or output is None or len(output.shape) < 2:
            return inputs
        bias = Tensor(name=f"{node.outputs[0]}.bias", dtype=weight.dtype, shape=(output.shape[1],))
        self.tensors[bias.name] = self.initializers[bias.name] = bias
        self.static.add(bias.name)
        return (*inputs[:2], bias.name)

    def _is_global_mean(self, node: Node) -> bool:
        source = self.tensors.get(node.inputs[0]) if node.inputs else None
        output = self.tensors.get(node.outputs[0]) if node.outputs else None
        if source is None or output is None or len(source.shape) != 4:
            return False
        if node.op == "AveragePool":
            return node.ints("kernel_shape", ()) == source.shape[2:] and output.shape[2:] == (1, 1)
        if node.op != "ReduceMean":
            return False
        return sorted(axis % 4 for axis in self.graph.axes(node)) == [2, 3]

    def build(self) -> Graph:
        """Assemble the canonical graph."""
        graph, nodes = self.graph, tuple(self.nodes)
        producers, users = link(nodes)
        outputs = tuple(self.tensors[self.alias.get(tensor.name, tensor.name)] for tensor in graph.outputs)
        return Graph(
            name=graph.name,
            opset=graph.opset,
            inputs=graph.inputs,
            outputs=outputs,
            nodes=nodes,
            initializers=self.initializers,
            tensors=self.tensors,
            constants=graph.constants,
            static=frozenset(self.static),
            shapeless=graph.shapeless,
            producers=producers,
            users=users,
        )
