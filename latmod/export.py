"""Write a torch module as a weight-free `.onnx`, without ever holding its weights."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from latmod.families import Family
from latmod.graph import strip_weights, tidy_export
from latmod.log import replace_file

if TYPE_CHECKING:
    from torch import Tensor, nn

OPSET = 17
"""Supported by every runtime that latmod knows; the operators of generated models have not changed since."""


def export_spec(family: Family, spec: msgspec.Struct, path: Path) -> None:
    """Write the weight-free graph of a spec to `path`, whole or not at all. Raises SpecError for another family's."""
    graph = family.graph(spec)
    if graph is not None:
        replace_file(path, graph)
        return
    import torch

    with torch.device("meta" if family.on_meta else "cpu"):
        module = family.build(spec)
    shape, trace_shape = family.input_shape(spec), family.trace_shape(spec)
    export_model(module, shape, path, trace_shape=trace_shape, input_type=family.input_type)


def export_model(
    module: "nn.Module",
    input_shape: tuple[int, ...],
    path: Path,
    *,
    trace_shape: tuple[int, ...] | None = None,
    input_type: str = "float32",
) -> None:
    """Write the weight-free graph of a module with one input and one output; the module's parameters are used up.

    Batch norms are not folded; initialisers are named as in the state dict, nodes and values after their modules. The
    module may be on the meta device. `trace_shape` is a cheaper input shape that gives the same graph;
    `input_type` is torch's name of a type.
    """
    import torch

    module.eval()
    leaves = frozenset(name for name, part in module.named_modules() if not any(part.children()))
    properties = {"exporter": "torch.onnx", "exporter_version": str(torch.__version__), "opset": str(OPSET)}
    partial = path.with_name(f"{path.name}.partial")
    try:
        _trace(module, trace_shape or input_shape, input_type, partial)
        partial.write_bytes(tidy_export(partial.read_bytes(), input_shape, leaves, properties))
        partial.write_bytes(strip_weights(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _trace(module: "nn.Module", shape: tuple[int, ...], dtype: str, path: Path) -> None:
    """Write what torch's tracing exporter makes of the module, its weights as further inputs.

    As parameters, weights would be compared with one another and copied into each node's shape inference: 12 of 15
    seconds for a network of 2 billion. As inputs they are only passed through, so they need no memory: each is one
    zero, expanded.
    """
    import torch

    wrapped, weights = _with_weights_as_inputs(module)
    # The traced operators are so small that a second thread only spins: it took six times the CPU on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # torch's fused attention has no ONNX operator.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                wrapped,
                (torch.zeros(shape, dtype=getattr(torch, dtype)), *weights.values()),
                str(path),
                dynamo=False,
                opset_version=OPSET,
                training=torch.onnx.TrainingMode.PRESERVE,
                do_constant_folding=False,
                export_params=False,
                keep_initializers_as_inputs=True,
                input_names=["input", *weights],
                output_names=["output"],
            )
    finally:
        torch.set_num_threads(threads)
        torch.backends.mha.set_fastpath_enabled(fused)


def _with_weights_as_inputs(module: "nn.Module") -> tuple["nn.Module", dict[str, "Tensor"]]:
    """Return a module that takes its weights after its input, and those weights by their names in the state dict."""
    import torch

    slots: list[tuple[dict[str, torch.Tensor | None], str]] = []
    weights: dict[str, torch.Tensor] = {}
    for prefix, part in module.named_modules():
        tables: tuple[dict[str, torch.Tensor | None], ...] = (part._parameters, part._buffers)
        for table in tables:
            for key, value in table.items():
                if value is not None and value.is_floating_point():
                    slots.append((table, key))
                    name = f"{prefix}.{key}" if prefix else key
                    weights[name] = torch.zeros((), dtype=value.dtype).expand(value.shape)
                    table[key] = None
                elif value is not None and value.is_meta:
                    table[key] = None

    class WeightsAsInputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
            for (table, key), value in zip(slots, values, strict=True):
                table[key] = value
            output: torch.Tensor = self.module(x)
            for table, key in slots:
                table[key] = None
            return output

    return WeightsAsInputs().eval(), weights
