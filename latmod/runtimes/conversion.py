"""Turn an `.onnx` graph into the torch module that it was exported from, as nearly as onnx2torch and the file allow.

onnx2torch runs node by node. That would time the exporter rather than the network, where a file computes shapes, masks
and position tables that no input influences, and spells an activation as five operators. So the first are computed
once, and the second become one module again. (Swin-T: 184 ms node by node, 126 ms as torchvision runs it.)
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from math import sqrt
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latmod.errors import UnsupportedModelError
from latmod.graph import explicit_model, weight_slots
from latmod.weights import WeightMaker

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto
    from torch import fx, nn


def convert_graph(path: Path, weight_seed: int) -> "nn.Module":
    """Return a graph as a module whose parts say (`onnx_mapping`) which values of the graph they write.

    Its weights are made first, since they become parameters. Raises UnsupportedModelError where onnx2torch has no
    conversion.
    """
    from onnx2torch import convert

    from latmod.runtimes.operators import extend_onnx2torch

    extend_onnx2torch()
    proto = explicit_model(path, WeightMaker(weight_seed).make(weight_slots(path)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _number_nodes(proto)
            _round_pools_up(proto)
            module: fx.GraphModule = convert(proto, attach_onnx_mapping=True)
            _mend_norms(module)
            _fold(module)
            _add_pairs(module)
            _restore_activations(module)
            _activate_in_place(module)
        except MemoryError:
            raise
        except Exception as error:  # onnx2torch raises whatever it trips over: KeyError, NotImplementedError, ...
            raise UnsupportedModelError(f"torch (onnx2torch) cannot run {path}: {error!r}") from error
    return module


def _number_nodes(proto: "ModelProto") -> None:
    """Name nodes by number: onnx2torch makes attributes of names, and one like `not` is no Python."""
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"


def _round_pools_up(proto: "ModelProto") -> None:
    """Let average pools that are padded at their end alone round up instead, since torch pads both ends alike.

    The results are the same where there are as many: padding is not counted, and torch counts nothing beyond the end.
    A single window that is wider than the map is made as wide as that.
    """
    from onnx import helper

    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    sizes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][2:] for value in values}
    for node in proto.graph.node:
        if node.op_type != "AveragePool":
            continue
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        rank = len(said["kernel_shape"])
        pads, strides = said.get("pads", [0] * 2 * rank), said.get("strides", [1] * rank)
        source, out = sizes.get(node.input[0], []), sizes.get(node.output[0], [])
        if said.get("count_include_pad", 0) or pads[:rank] == pads[rank:] or not len(source) == len(out) == rank:
            continue
        widths, starts = list(said["kernel_shape"]), list(pads[:rank])
        for axis in range(rank):
            if out[axis] == 1:
                widths[axis], starts[axis] = min(widths[axis] - starts[axis], source[axis]), 0
        spans = [size + 2 * start - width for size, start, width in zip(source, starts, widths, strict=True)]
        if out == [-(-span // stride) + 1 for span, stride in zip(spans, strides, strict=True)]:
            made = {"kernel_shape": widths, "pads": starts * 2, "ceil_mode": 1}
            kept = [one for one in node.attribute if one.name not in made]
            del node.attribute[:]
            node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in made.items())])


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


def _add_pairs(module: "fx.GraphModule") -> None:
    """Let a sum of two be one addition, as its source had it: onnx2torch adds both to zeros, in three passes."""
    from onnx2torch.node_converters.binary_math_operations import OnnxBinaryMathOperation

    for node in module.graph.nodes:
        if _part_name(module, node) == "OnnxSum" and len(node.args) == 2:
            addition = OnnxBinaryMathOperation("Add")
            addition.onnx_mapping = module.get_submodule(str(node.target)).onnx_mapping
            module.add_submodule(str(node.target), addition)


def _restore_activations(module: "fx.GraphModule") -> None:
    """Put one GELU or SiLU in the place of the operators that exporters write for it."""
    from torch import nn

    for node in list(module.graph.nodes):
        kind = _part_name(module, node)
        last = None
        activation: nn.Module
        if kind == "OnnxErf":
            (last, source), activation = _gelu(module, node), nn.GELU()
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


def _activate_in_place(module: "fx.GraphModule") -> None:
    """Let activations write over what they read, as published networks have them, where nothing else reads that.

    Only what a layer with parameters or a sum has just written: a view would share its memory with others.
    """
    from torch import nn

    activations = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.LeakyReLU)
    for node in module.graph.nodes:
        part = _part(module, node)
        if isinstance(part, activations) and _writes_anew(module, node.all_input_nodes[0]):
            part.inplace = True


def _writes_anew(module: "fx.GraphModule", node: "fx.Node") -> bool:
    from torch import nn

    part = _part(module, node)
    made = isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.Linear) or type(part).__name__ == "OnnxBinaryMathOperation"
    return made and len(node.users) == 1


def _gelu(module: "fx.GraphModule", erf: "fx.Node") -> "tuple[fx.Node | None, fx.Node | None]":
    """Return the last and x of x / sqrt(2), Erf, + 1, * x, * 0.5 (of x, the sum or the product); None for all else."""
    import torch

    scaled = erf.all_input_nodes[0]
    sources = [one for one in scaled.all_input_nodes if one.op != "get_attr"]
    if not _is_scaled(module, scaled, sqrt(0.5)) or len(sources) != 1 or len(erf.users) != 1:
        return None, None
    (source,), (plus,) = sources, erf.users
    if _function(module, plus) is not torch.add or len(plus.users) != 1:
        return None, None
    (after,) = plus.users
    halves = [one for one in after.all_input_nodes if one is not plus and _is_scaled(module, one, 0.5)]
    last = None
    if halves and source in halves[0].all_input_nodes and _is_product(module, after, plus, halves[0]):
        last = after
    elif len(after.users) == 1:
        (following,) = after.users
        sum_halved = _is_scaled(module, after, 0.5) and _is_product(module, following, after, source)
        if sum_halved or (_is_product(module, after, plus, source) and _is_scaled(module, following, 0.5)):
            last = following
    return last, source


def _part_name(module: "fx.GraphModule", node: "fx.Node") -> str:
    part = _part(module, node)
    return type(part).__name__ if part is not None else ""


def _part(module: "fx.GraphModule", node: "fx.Node") -> "nn.Module | None":
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _function(module: "fx.GraphModule", node: "fx.Node") -> object:
    """Return what an element-wise part of two operands computes, None for other parts."""
    return getattr(_part(module, node), "math_op_function", None)


def _is_product(module: "fx.GraphModule", node: "fx.Node", left: "fx.Node", right: "fx.Node") -> bool:
    import torch

    return _function(module, node) is torch.mul and set(node.all_input_nodes) == {left, right}


def _is_scaled(module: "fx.GraphModule", node: "fx.Node", wanted: float) -> bool:
    """Tell whether a node multiplies something by a certain number, or divides it by the reciprocal."""
    import torch

    function, inputs = _function(module, node), node.all_input_nodes
    if function is None or function in (torch.add, torch.sub) or len(inputs) != 2:
        return False
    multiplies = function is torch.mul
    for constant in inputs if multiplies else inputs[1:]:
        if constant.op == "get_attr":
            value: torch.Tensor = attrgetter(str(constant.target))(module)
            factor = float(value) if value.numel() == 1 else 0.0
            if factor and abs((factor if multiplies else 1.0 / factor) / wanted - 1.0) < 1e-3:
                return True
    return False


def literal_shapes(module: "fx.GraphModule", inputs: "Sequence[torch.Tensor]", *, scales: bool = True) -> None:
    """Put numbers in the place of shapes, axes and positions that onnx2torch's modules read from tensors.

    A compiler cannot look into tensors. The numbers are those that hold for inputs of these shapes. `scales` says
    whether also of what whole tensors are scaled and shifted by.
    """
    import torch
    from torch.fx.passes.shape_prop import ShapeProp

    with torch.no_grad():
        ShapeProp(module).propagate(*inputs)
    for node in list(module.graph.nodes):
        call = _literal_call(module, node) or (_scaling(module, node) if scales else None)
        if call is None:
            continue
        function, args = call
        with module.graph.inserting_before(node):
            made = module.graph.call_function(function, (node.args[0], *args))
        made.meta.update(node.meta)
        node.replace_all_uses_with(made)
    _tidy(module)


def _literal_call(module: "fx.GraphModule", node: "fx.Node") -> "tuple[Callable[..., Any], tuple[Any, ...]] | None":
    """Return which function of which numbers does the same as a module, None where it reads no tensor for them."""
    import torch

    kind = _part_name(module, node)
    if kind in ("OnnxReshape", "OnnxSqueezeDynamicAxes", "OnnxUnsqueezeDynamicAxes"):
        return torch.reshape, (_shape(node),)
    if kind == "OnnxExpand":
        return torch.Tensor.expand, (_shape(node),)
    if kind in ("OnnxResize", "OnnxResizeV10"):
        return _interpolation(module, node)
    numbers = [_numbers(module, one) for one in node.args[1:]]
    if not numbers or numbers[0] is None:
        return None
    part: Any = _part(module, node)
    if kind == "OnnxSplit13":
        return torch.split, (numbers[0], part.axis)
    if kind == "OnnxGather" and _shape(node.args[1]) == ():
        return torch.select, (part._axis, numbers[0][0])
    if kind == "OnnxPadDynamic" and part.mode == "constant" and len(numbers) < 3 and None not in numbers:
        before, after = numbers[0][: len(numbers[0]) // 2], numbers[0][len(numbers[0]) // 2 :]
        pairs = zip(reversed(before), reversed(after), strict=True)
        filling = float(_constant(module, node.args[2]).item()) if len(numbers) > 1 else 0.0
        return torch.nn.functional.pad, ([size for pair in pairs for size in pair], "constant", filling)
    if kind == "OnnxSlice" and None not in numbers:
        slices = _slices(len(_shape(node)), *(one for one in numbers if one is not None))
        return (operator.getitem, (slices,)) if slices is not None else None
    return None


def _interpolation(module: "fx.GraphModule", node: "fx.Node") -> "tuple[Callable[..., Any], tuple[Any, ...]] | None":
    """Return the call that resizes a map to the size that it gets here; None where scales give no whole number."""
    import torch
    from onnx2torch.node_converters.resize import _onnx_mode_to_torch_mode

    part: Any = _part(module, node)
    resize = getattr(part, "_resize", part)
    source, made = _shape(node.args[0])[2:], _shape(node)[2:]
    by_size = node.kwargs.get("sizes") is not None
    if not by_size and any(max(pair) % min(pair) for pair in zip(source, made, strict=True)):
        return None
    mode = _onnx_mode_to_torch_mode(resize.onnx_mode, len(made))
    return torch.nn.functional.interpolate, (made, None, mode, resize.align_corners)


def _scaling(module: "fx.GraphModule", node: "fx.Node") -> "tuple[Callable[..., Any], tuple[Any, ...]] | None":
    """Return the call that combines a tensor of floats with a number, where a part has it as a constant tensor.

    With a tensor for it inductor refuses attention (2.14: `scale` is no float there).
    """
    import torch

    if _part_name(module, node) != "OnnxBinaryMathOperation":
        return None
    first, second = node.args
    if getattr(second, "op", "") != "get_attr" or getattr(first, "op", "") == "get_attr":
        return None
    value: torch.Tensor = attrgetter(str(second.target))(module)  # type: ignore[union-attr]
    floats = value.is_floating_point() and first.meta["tensor_meta"].dtype.is_floating_point  # type: ignore[union-attr]
    if value.numel() != 1 or value.dim() > len(_shape(first)) or not floats:
        return None
    function: Any = _function(module, node)
    # onnx2torch's own division asks a number for its dtype.
    return function if function in (torch.add, torch.sub, torch.mul) else torch.div, (float(value),)


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _numbers(module: "fx.GraphModule", node: object) -> list[int] | None:
    """Return what a constant of a graph holds, in whole numbers; None for anything else."""
    if getattr(node, "op", "") != "get_attr":
        return None
    value = _constant(module, node)
    return [int(one) for one in value.flatten().tolist()] if bool(value.isfinite().all()) else None


def _constant(module: "fx.GraphModule", node: object) -> "torch.Tensor":
    value: torch.Tensor = attrgetter(str(node.target))(module)  # type: ignore[attr-defined]
    return value


def _slices(
    rank: int, starts: list[int], ends: list[int], axes: list[int] | None = None, steps: list[int] | None = None
) -> tuple[slice, ...] | None:
    """Return what Slice cuts out of each dim, None where it goes backwards."""
    found = [slice(None)] * rank
    for position, (start, end) in enumerate(zip(starts, ends, strict=True)):
        step = steps[position] if steps else 1
        if step < 0:
            return None
        found[axes[position] if axes else position] = slice(start, end, step)
    return tuple(found)
