"""Turn a graph into the kernels that a given runtime executes, without any engine at hand."""

from collections.abc import Iterable

from latmod.graph import Graph
from latmod.kernels.kernel import FIELDS, Kernel, describe
from latmod.kernels.mnn import as_mnn
from latmod.kernels.ncnn import copy_reshapes
from latmod.kernels.onnxruntime import optimise
from latmod.kernels.openvino import as_openvino
from latmod.kernels.torch import run_eagerly


def kernels(graph: Graph, rules: str, *, isa: Iterable[str] = (), threads: int = 1) -> tuple[Kernel, ...]:
    """Return the kernels of a graph by the rules of a runtime, on a machine with an instruction set, in no order.

    There are those of onnxruntime, MNN, ncnn, OpenVINO and torch; by any other name a graph runs node by node, as in
    torch. Raises GraphError where shapes contradict an operator.
    """
    if nearest_rules(rules) != "onnxruntime":
        return describe(run_eagerly(graph, threads=threads, block=channel_block(isa)))
    return adjusted(graph, rules, describe(optimise(graph, block=channel_block(isa))))


def adjusted(graph: Graph, rules: str, found: tuple[Kernel, ...]) -> tuple[Kernel, ...]:
    """Return kernels by some rules, made of those by the nearest; the very same where nothing differs."""
    if rules == "ncnn":
        return copy_reshapes(graph, found)
    if rules == "mnn":
        return as_mnn(found)
    return as_openvino(graph, found) if rules == "openvino" else found


def nearest_rules(rules: str) -> str:
    """Return the rules that some rules differ from in a few kernels only; else the same."""
    return "onnxruntime" if rules in ("mnn", "ncnn", "openvino") else rules


def channel_block(isa: Iterable[str]) -> int:
    """Return onnxruntime's channel block (MlasNchwcGetBlockSize): 16 with AVX-512, 8 without, 1 where it has none."""
    found = set(isa)
    if "avx512f" in found:
        return 16
    return 8 if "avx" in found or "avx2" in found else 1


__all__ = ["FIELDS", "Kernel", "adjusted", "channel_block", "kernels", "nearest_rules"]
