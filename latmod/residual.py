"""Read the shape of a residual network (He et al. 2015, as torchvision builds it) back from its graph alone."""

import msgspec

from latmod.cost import VIEWS
from latmod.graph import FLOATS, Graph, Node, Tensor, canonical

_KERNELS = {"basic": ((3, 3), (3, 3)), "bottleneck": ((1, 1), (3, 3), (1, 1))}
# The convolution of a block that carries its stride, as in torchvision ("v1.5").
_STRIDED = {"basic": 0, "bottleneck": 1}
_NO_STEM = "its first convolution is not 7x7 with stride 2"
_EXPANSION = {"basic": 1, "bottleneck": 4}


class ResidualShape(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a residual network the way the study does, plus its input and output.

    `width` counts the channels that the stem writes; `widen` is the inner width of the bottlenecks over `width` times
    1, 2, 4, 8 (2.0 for torchvision's wide networks); `side` is the input's height.
    """

    block: str
    blocks: tuple[int, int, int, int]
    width: int
    widen: float
    side: int
    batch: int
    classes: int


class NotResidual(msgspec.Struct, frozen=True, kw_only=True):
    """Say why a graph is not such a network."""

    reason: str


class _OtherNetwork(Exception):
    """Leave the walk with the reason."""


class _Block(msgspec.Struct, frozen=True, kw_only=True):
    convs: tuple[Node, ...]
    shortcut: Node | None
    end: str


def residual_shape(graph: Graph) -> ResidualShape | NotResidual:
    """Recognize a residual network of either exporter, batch norm folded or not, with or without weights."""
    if not any(_may_be_stem(node, graph) for node in graph.nodes):
        # Told at once of most other networks: bringing a large graph into canonical form takes longer than the rest.
        return NotResidual(reason=_NO_STEM)
    other = sorted({tensor.dtype for tensor in graph.tensors.values()} & FLOATS - {"float32"})
    if other:
        return NotResidual(reason=f"it computes in {other[0]}, not in float32")
    try:
        return _Walk(canonical(graph)).shape()
    except _OtherNetwork as reason:
        return NotResidual(reason=str(reason))


def _may_be_stem(node: Node, graph: Graph) -> bool:
    if node.op != "Conv" or len(node.inputs) < 2 or node.integer("group", 1) != 1:
        return False
    weight = graph.tensors.get(node.inputs[1])
    return weight is None or weight.shape[2:] == (7, 7)


class _Walk:
    """Follow the trunk of a canonical graph from the input to the classifier."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def shape(self) -> ResidualShape:
        """Read the whole network. Raises _OtherNetwork at the first thing that a residual network does not have."""
        image, stem, at = self._stem()
        blocks = []
        while (block := self._block(at)) is not None:
            blocks.append(block)
            at = block.end
        classes = self._head(at)
        if not blocks:
            raise _OtherNetwork("it has no residual blocks")
        width = self._weight(stem).shape[0]
        kind = self._kind(blocks)
        stages = self._stages(blocks)
        widen = self._weight(stages[-1][0].convs[0]).shape[0] / (8 * width) if kind == "bottleneck" else 1.0
        for index, stage in enumerate(stages):
            self._check_stage(stage, kind=kind, index=index, planes=width << index, widen=widen)
        first, second, third, fourth = (len(stage) for stage in stages)
        return ResidualShape(
            block=kind,
            blocks=(first, second, third, fourth),
            width=width,
            widen=widen,
            side=image.shape[2],
            batch=image.shape[0],
            classes=classes,
        )

    def _stem(self) -> tuple[Tensor, Node, str]:
        starts = [
            (image, node)
            for image in self.graph.inputs
            for node in self.graph.consumers(image.name)
            if node.op == "Conv" and node.inputs[0] == image.name and len(image.shape) == 4
        ]
        if len(starts) != 1:
            raise _OtherNetwork("no single convolution reads the input")
        image, stem = starts[0]
        at = stem.outputs[0]
        if self._kernel(stem) != (7, 7) or self._stride(stem) != 2:
            raise _OtherNetwork(_NO_STEM)
        at = self._only(at, "Relu").outputs[0]
        pool = self._only(at, "MaxPool")
        if pool.ints("kernel_shape", ()) != (3, 3) or pool.ints("strides", ()) != (2, 2):
            raise _OtherNetwork("its first pool is not 3x3 with stride 2")
        return image, stem, pool.outputs[0]

    def _block(self, at: str) -> _Block | None:
        """Read the block that begins at value `at`, or nothing where the trunk goes on without a branch."""
        readers = self._readers(at)
        if len(readers) == 1 and readers[0].op != "Conv":
            return None
        convs = [node for node in readers if node.op == "Conv"]
        adds = [node for node in readers if node.op == "Add"]
        if len(readers) != 2 or len(convs) + len(adds) != 2 or not convs:
            raise _OtherNetwork(
                f"after {at!r} stand {', '.join(n.op for n in readers) or 'nothing'}: no residual block"
            )
        branches = [self._branch(conv) for conv in convs]
        branches.sort(key=lambda branch: len(branch[0]))
        chain, add = branches[-1]
        shortcut: Node | None = None
        if adds:
            if adds[0] is not add:
                raise _OtherNetwork(f"the branch from {at!r} does not return to its sum")
        else:
            other, joined = branches[0]
            if joined is not add or len(other) != 1:
                raise _OtherNetwork(f"the branches from {at!r} do not join in one sum")
            shortcut = other[0]
        end = self._only(add.outputs[0], "Relu").outputs[0]
        return _Block(convs=tuple(chain), shortcut=shortcut, end=end)

    def _branch(self, conv: Node) -> tuple[list[Node], Node]:
        """Follow convolutions with Relu between them down to the sum."""
        chain = [conv]
        while True:
            readers = self._readers(chain[-1].outputs[0])
            if len(readers) != 1:
                raise _OtherNetwork(f"inside a block, {len(readers)} nodes read the output of {chain[-1].name}")
            after = readers[0]
            if after.op == "Add":
                return chain, after
            if after.op != "Relu":
                raise _OtherNetwork(f"{after.op} inside a block")
            chain.append(self._only(after.outputs[0], "Conv"))

    def _head(self, at: str) -> int:
        at = self._only(at, "GlobalAveragePool").outputs[0]
        readers = self._readers(at)
        if len(readers) != 1 or readers[0].op not in ("Gemm", "MatMul"):
            raise _OtherNetwork("the pooled features do not go into one linear layer")
        scores = self.graph.tensors.get(readers[0].outputs[0])
        if scores is None or not scores.shape:
            raise _OtherNetwork("its linear layer has an unknown shape")
        return scores.shape[-1]

    def _kind(self, blocks: list[_Block]) -> str:
        kernels = {tuple(self._kernel(conv) for conv in block.convs) for block in blocks}
        for kind, expected in _KERNELS.items():
            if kernels == {expected}:
                return kind
        raise _OtherNetwork("its blocks are not all basic (3x3, 3x3) or all bottleneck (1x1, 3x3, 1x1)")

    def _stages(self, blocks: list[_Block]) -> list[list[_Block]]:
        stages: list[list[_Block]] = [[]]
        for number, block in enumerate(blocks):
            if block.shortcut is not None and number:
                stages.append([])
            stages[-1].append(block)
        if len(stages) != 4:
            raise _OtherNetwork(f"it has {len(stages)} stages, not 4")
        return stages

    def _check_stage(self, stage: list[_Block], *, kind: str, index: int, planes: int, widen: float) -> None:
        inner, outer = int(planes * widen + 1e-9), planes * _EXPANSION[kind]
        expected = (inner, inner, outer) if kind == "bottleneck" else (planes, planes)
        for number, block in enumerate(stage):
            starts = number == 0 and (index > 0 or kind == "bottleneck")
            stride = 2 if number == 0 and index > 0 else 1
            convs = (*block.convs, block.shortcut) if block.shortcut else block.convs
            if any(conv.integer("group", 1) != 1 for conv in convs):
                raise _OtherNetwork("it has grouped convolutions (ResNeXt)")
            if any(set(conv.ints("dilations", (1, 1))) != {1} for conv in convs):
                raise _OtherNetwork("it has dilated convolutions")
            if tuple(self._weight(conv).shape[0] for conv in block.convs) != expected:
                raise _OtherNetwork(f"the widths of stage {index + 1} are not {expected}")
            strides = tuple(stride if at == _STRIDED[kind] else 1 for at in range(len(block.convs)))
            if tuple(self._stride(conv) for conv in block.convs) != strides:
                raise _OtherNetwork(f"the strides of stage {index + 1} are not torchvision's")
            if (block.shortcut is not None) != starts:
                raise _OtherNetwork(f"stage {index + 1} does not begin with the usual shortcut")
            if block.shortcut and (self._kernel(block.shortcut), self._stride(block.shortcut)) != ((1, 1), stride):
                raise _OtherNetwork(f"the shortcut of stage {index + 1} is not a 1x1 convolution with stride {stride}")

    def _readers(self, name: str) -> list[Node]:
        """List the nodes that read a value, looking through views."""
        found: list[Node] = []
        waiting = [name]
        while waiting:
            value = waiting.pop()
            for node in self.graph.consumers(value):
                if node.op in VIEWS and node.inputs[0] == value:
                    waiting.append(node.outputs[0])
                else:
                    found.append(node)
        return found

    def _only(self, name: str, op: str) -> Node:
        readers = self._readers(name)
        if len(readers) != 1 or readers[0].op != op:
            raise _OtherNetwork(f"after {name!r} stands {', '.join(n.op for n in readers) or 'nothing'}, not {op}")
        return readers[0]

    def _weight(self, conv: Node) -> Tensor:
        weight = self.graph.tensors.get(conv.inputs[1]) if len(conv.inputs) > 1 else None
        if weight is None or len(weight.shape) != 4:
            raise _OtherNetwork(f"{conv.name} has no weights for two dims")
        return weight

    def _kernel(self, conv: Node) -> tuple[int, ...]:
        return self._weight(conv).shape[2:]

    def _stride(self, conv: Node) -> int:
        strides = conv.ints("strides", (1, 1))
        return strides[0] if len(set(strides)) == 1 else 0
