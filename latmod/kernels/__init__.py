"""Turn a graph into the kernels that a given runtime executes, without any engine at hand."""

from collections.abc import Collection, Iterable, Mapping

import msgspec

from latmod.graph import Graph, takes_all
from latmod.kernels.activations import HALVED
from latmod.kernels.describing import describe
from latmod.kernels.kernel import ACTIVATIONS, FIELDS, Kernel
from latmod.kernels.mnn import changed_in_mnn
from latmod.kernels.nchwc import DOMAIN, RESIZE, UPSAMPLE
from latmod.kernels.ncnn import changed_in_ncnn, refused_by_ncnn
from latmod.kernels.onnxruntime import GELUS, optimise
from latmod.kernels.openvino import changed_in_openvino
from latmod.kernels.padding import without_padding
from latmod.kernels.torch import run_eagerly
from latmod.kernels.torch_compile import changed_in_torch_compile
from latmod.kernels.tract import changed_in_tract

_CHANGES = {
    "mnn": changed_in_mnn,
    "ncnn": changed_in_ncnn,
    "openvino": changed_in_openvino,
    "torch-compile": changed_in_torch_compile,
    "tract": changed_in_tract,
}
"""What differs in runtimes whose rules nearly are onnxruntime's.

None of them has anything of what onnxruntime puts in: layouts of its blocks, reshapes around products. Of 4,500 such
kernels OpenVINO, MNN and tract told nothing at all, and they were priced at 1 to 4 % of what networks take
(kernels-engines-zen4); nor did ncnn of 2,100 layouts (kernels-engines-zen3-earlier).
"""

_UNBLOCKED = frozenset({"torch-compile"})
"""What is as onnxruntime where that has no blocks of channels: their padding is no work to it."""

_FORGOING = frozenset({"mnn", "openvino", "torch-compile", "tract"})
"""What leaves out cuts that take all: of 292 such in kernels-more-zen5 these told of none, ncnn of all.

But torch-compile was not asked: it tells of no cut by itself, and is taken to do as the others.
"""

_GELUS: Mapping[str, Collection[str]] = {"mnn": ("product",), "openvino": HALVED}
"""Which GELUs become one operator, where they are others than in onnxruntime.

Behind four products of 784 x 512 by 512 x 512 on Zen 5, as `input`, `product`, `sum` and the standard's operator: 0.16,
0.18, 0.28, 0.16 ms each in onnxruntime, 0.16, 0.18, 0.33, 0.17 in tract, 0.09, 0.07, 0.10, 0.10 in OpenVINO, and in MNN
3.5, 0.17, 3.6, 0.13; behind convolutions in ncnn 0.16, 0.16, 0.24, 0.16.
"""

_REFUSALS = {"ncnn": refused_by_ncnn}

_LACKING = {
    "mnn": {"Col2Im", "IsNaN"},
    "ncnn": {"And", "Col2Im", "Equal", "GatherElements", "GatherND", "IsNaN", "Not", "Where"},
    "tract": {"Col2Im"},
}
"""Operators that a runtime lacks: of the networks in all data sets that have one, computed from their inputs, it ran
none. IsNaN stands in attention as PyTorch exports it with a mask: MNN refused 16 of 16 such, ncnn too.
"""

_MADE_CONVOLUTIONS = ("BatchNormalization", "Mul")
"""What onnxruntime makes depthwise convolutions of."""
_TAKEN_IN = ACTIVATIONS | {"Add", "Sum"}
_OF_WHOLE_BLOCKS = ("bytes_in", "bytes_out", "steps", "numel_out")
"""What counts the channels that fill up a resize's last block."""


def kernels(graph: Graph, rules: str, *, isa: Iterable[str] = (), threads: int = 1) -> tuple[Kernel, ...]:
    """Return the kernels of a graph by the rules of a runtime, on a machine with an instruction set, in no order.

    Known are onnxruntime, MNN, ncnn, OpenVINO, torch-compile, tract and torch; by any other name a graph runs node by
    node, as in torch. Raises GraphError where shapes contradict an operator.
    """
    block = channel_block(isa)
    if rules != "onnxruntime" and rules not in _CHANGES:
        return adjusted(graph, rules, describe(run_eagerly(graph, threads=threads, block=block)))
    found = optimise(graph, block=1 if rules in _UNBLOCKED else block, gelus=_GELUS.get(rules, GELUS))
    return adjusted(graph, rules, describe(found))


def adjusted(graph: Graph, rules: str, found: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return kernels by some rules, made of those by the nearest; the very same where nothing differs."""
    plain = tuple([without_padding(kernel, rules) for kernel in found])
    if rules not in _CHANGES:
        return plain
    ops = {node.name: node.op for node in graph.nodes}
    whole = {node.name for node in graph.nodes if rules in _FORGOING and takes_all(node, graph)}
    own = tuple(_as_the_file_says(graph, ops, _writing_the_files_values(graph, kernel)) for kernel in plain)
    changed: dict[int, Kernel | None] = {place: None for place, kernel in enumerate(own) if not kernel.nodes}
    changed |= {place: None for place, kernel in enumerate(own) if kernel.nodes and whole.issuperset(kernel.nodes)}
    changed |= _CHANGES[rules](graph, own)
    if not changed and own == found:
        return found
    left = (changed.get(place, kernel) for place, kernel in enumerate(own))
    return tuple(kernel for kernel in left if kernel is not None)


def _writing_the_files_values(graph: Graph, kernel: Kernel) -> Kernel:
    """Return a kernel that writes a value of the file itself where it wrote it for what onnxruntime puts in behind."""
    values = tuple(name if name in graph.producers else name.rpartition(":")[0] or name for name in kernel.values)
    return kernel if values == kernel.values else msgspec.structs.replace(kernel, values=values)


def _as_the_file_says(graph: Graph, ops: Mapping[str, str], kernel: Kernel) -> Kernel:
    """Return as such what onnxruntime makes something else of, to stay in its blocks: norms, scales, resizes."""
    if kernel.op.removeprefix(DOMAIN) == UPSAMPLE:
        return _resizing(graph, kernel)
    first = ops[kernel.nodes[0]] if kernel.nodes and kernel.op == f"{DOMAIN}Conv" else ""
    if first not in _MADE_CONVOLUTIONS or any(ops[node] not in _TAKEN_IN for node in kernel.nodes[1:]):
        return kernel
    return kernel.element_wise(first)


def _resizing(graph: Graph, kernel: Kernel) -> Kernel:
    """Return a resize as all others are called, of the channels that the file says, not of whole blocks of them."""
    resize = msgspec.structs.replace(kernel, op=RESIZE, kind=kernel.kind.replace(kernel.op, RESIZE))
    if not kernel.op.startswith(DOMAIN):
        return resize
    out, (blocked,) = graph.tensors[kernel.values[0]].shape, kernel.outputs
    held = out[1] / blocked[1]
    resize = resize.with_numbers(**{name: kernel.number(name) * held for name in _OF_WHOLE_BLOCKS})
    inputs = tuple((shape[0], out[1], *shape[2:]) for shape in kernel.inputs)
    return msgspec.structs.replace(resize, inputs=inputs, outputs=(out,))


def refused(graph: Graph, rules: str) -> str:
    """Return why a runtime cannot run a graph; nothing where nothing is known against it, which is no promise."""
    lacking = _LACKING.get(rules, set())
    for node in graph.nodes:
        if node.op in lacking and not graph.static.issuperset(node.outputs):
            return f"it has no {node.op}, as node {node.name!r} is"
    return _REFUSALS[rules](graph) if rules in _REFUSALS else ""


def nearest_rules(rules: str, graph: Graph | None = None) -> str:
    """Return the rules that some rules differ from, for a graph, in a few kernels only; else the same."""
    if graph is not None and rules in _GELUS and any(node.op == "Erf" for node in graph.nodes):
        return rules
    return "onnxruntime" if rules in _CHANGES and rules not in _UNBLOCKED else rules


def channel_block(isa: Iterable[str]) -> int:
    """Return onnxruntime's channel block (MlasNchwcGetBlockSize): 16 with AVX-512, 8 without, 1 where it has none."""
    found = set(isa)
    if "avx512f" in found:
        return 16
    return 8 if "avx" in found or "avx2" in found else 1


__all__ = ["FIELDS", "Kernel", "adjusted", "channel_block", "kernels", "nearest_rules", "refused"]
