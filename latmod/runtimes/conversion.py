"""Turn an `.onnx` graph into the torch module that it was exported from, as nearly as onnx2torch and the file allow.

onnx2torch runs node by node. That would time the exporter rather than the network, where a file computes shapes, masks
and position tables that no input influences, and spells an activation as five operators. So the first are computed
once, and the second become one module again. (Swin-T: 184 ms node by node, 126 ms as torchvision runs it.)
"""

import warnings
from math import sqrt
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from latmod.errors import UnsupportedModelError
from latmod.graph import explicit_model, weight_slots
from latmod.weights import WeightMaker

if TYPE_CHECKING:
    import torch
    from torch import fx, nn


def convert_graph(path: Path, weight_seed: int) -> "nn.Module":
    """Return a graph as a module whose parts say (`onnx_mapping`) which values of the graph they write.

    Its weights are made first, since they become parameters. Raises UnsupportedModelError where onnx2torch has no
    conversion.
    """
    from onnx2torch import convert

    proto = explicit_model(path, WeightMaker(weight_seed).make(weight_slots(path)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: fx.GraphModule = convert(proto, attach_onnx_mapping=True)
            _mend_norms(module)
            _fold(module)
            _restore_activations(module)
        except MemoryError:
            raise
        except Exception as error:  # onnx2torch raises whatever it trips over: KeyError, NotImplementedError, ...
            raise UnsupportedModelError(f"torch (onnx2torch) cannot run {path}: {error!r}") from error
    return module


def _mend_norms(module: "nn.Module") -> None:
    """Take what a layer norm runs over from its weight: onnx2torch asks onnx, which does not infer every shape."""
    from torch import nn

    for part in module.modules():
        if isinstance(part, nn.LayerNorm) and part.weight is not None:
            part.normalized_shape = tuple(part.weight.shape)


def _fold(module: "fx.GraphModule") -> None:
    """Compute once what no input influences."""
    import torch
    from torch import fx

    graph = module.graph
    runner = fx.Interpreter(module)
    with torch.no_grad():
        for node in graph.nodes:
            if node.op != "placeholder" and all(source in runner.env for source in node.all_input_nodes):
                runner.env[node] = runner.run_node(node) if node.op != "output" else None
    for node in list(graph.nodes):
        value = runner.env.get(node)
        readers = [user for user in node.users if user not in runner.env]
        if node.op == "get_attr" or not isinstance(value, torch.Tensor) or not readers:
            continue
        name = f"folded_{node.name}"
        module.register_buffer(name, value.detach().clone())
        with graph.inserting_before(node):
            constant = graph.get_attr(name)
        for reader in readers:
            reader.replace_input_with(node, constant)
    _tidy(module)


def _tidy(module: "fx.GraphModule") -> None:
    module.graph.eliminate_dead_code()
    module.recompile()
    module.delete_all_unused_submodules()


def _restore_activations(module: "fx.GraphModule") -> None:
    """Put one GELU or SiLU in the place of the operators that exporters write for it."""
    from torch import nn

    for node in list(module.graph.nodes):
        kind = _part_name(module, node)
        last = None
        activation: nn.Module
        if kind == "OnnxErf":
            last, source, activation = _gelu(module, node), node.all_input_nodes[0].all_input_nodes[0], nn.GELU()
        elif kind == "Sigmoid" and len(node.users) == 1:
            (last,), source, activation = node.users, node.all_input_nodes[0], nn.SiLU()
            if not _is_product(module, last, node, source):
                last = None
        if last is None:
            continue
        activation.onnx_mapping = module.get_submodule(str(last.target)).onnx_mapping
        name = f"restored_{last.name}"
        module.add_submodule(name, activation)
        with module.graph.inserting_after(last):
            made = module.graph.call_module(name, (source,))
        last.replace_all_uses_with(made)
    _tidy(module)


def _gelu(module: "fx.GraphModule", erf: "fx.Node") -> "fx.Node | None":
    """Return the last of x / sqrt(2), Erf, + 1, * x, * 0.5 (the last two in either order), None for anything else."""
    divide = erf.all_input_nodes[0]
    if not _is_scaled(module, divide, sqrt(2.0)) or len(erf.users) != 1:
        return None
    source = divide.all_input_nodes[0]
    (plus,) = erf.users
    if _part_name(module, plus) != "OnnxBinaryMathOperation" or len(plus.users) != 1:
        return None
    (product,) = plus.users
    if not _is_product(module, product, plus, source):
        return None
    following = tuple(product.users)
    return following[0] if len(following) == 1 and _is_scaled(module, following[0], 0.5) else None


def _part_name(module: "fx.GraphModule", node: "fx.Node") -> str:
    return type(module.get_submodule(str(node.target))).__name__ if node.op == "call_module" else ""


def _is_product(module: "fx.GraphModule", node: "fx.Node", left: "fx.Node", right: "fx.Node") -> bool:
    import torch

    part = module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return getattr(part, "math_op_function", None) is torch.mul and set(node.all_input_nodes) == {left, right}


def _is_scaled(module: "fx.GraphModule", node: "fx.Node", wanted: float) -> bool:
    """Tell whether a node multiplies its first input by a certain number, or divides it by that."""
    if _part_name(module, node) != "OnnxBinaryMathOperation" or len(node.all_input_nodes) != 2:
        return False
    constant = node.all_input_nodes[1]
    if constant.op != "get_attr":
        return False
    value: torch.Tensor = attrgetter(str(constant.target))(module)
    return value.numel() == 1 and abs(float(value) / wanted - 1.0) < 1e-3
