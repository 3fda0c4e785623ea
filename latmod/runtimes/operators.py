"""Give onnx2torch the operators that it lacks: recurrent layers, maps read at given places, GELU.

They become the modules that PyTorch has for them, since these are what such files were exported from.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional

from latmod.families.recurrent import as_torch_has_them

if TYPE_CHECKING:
    from collections.abc import Callable

_VERSIONS = {"LSTM": (7, 14, 22), "GRU": (7, 14, 22), "GridSample": (16, 20), "Gelu": (17, 20)}
"""Opsets in which the ONNX standard changed an operator (onnx/docs/Changelog.md); 17 is what all graphs get."""
_STATES = {"LSTM": (5, 6), "GRU": (5,)}
"""Positions of the inputs that hold what a layer remembers at first."""
_MODES = {"linear": "bilinear", "cubic": "bicubic"}


def extend_onnx2torch() -> None:
    """Add the operators to onnx2torch's own registry, those that it has by now left as they are."""
    from onnx2torch.node_converters.registry import add_converter, get_converter

    made: dict[str, Callable[[Any, Any], Any]] = {
        "LSTM": _recurrent, "GRU": _recurrent, "GridSample": _grid_sample, "Gelu": _gelu,
    }  # fmt: skip
    for op, versions in _VERSIONS.items():
        for version in versions:
            try:
                get_converter(op, version)
            except NotImplementedError:
                add_converter(op, version)(made[op])


class RecurrentLayer(nn.Module):
    """One layer of LSTM or GRU with ONNX's results: steps x directions x batch x hidden, and the last states."""

    def __init__(self, layer: nn.LSTM | nn.GRU, results: int) -> None:
        """Take torch's own layer; `results` is how many of ONNX's results the graph names."""
        super().__init__()
        self.layer, self.results = layer, results

    def forward(self, x: Tensor, first: Tensor | None = None, cell: Tensor | None = None) -> Any:
        """Run over steps x batch x channels, from states of directions x batch x hidden, or zeros."""
        states: Any = first if cell is None else (first, cell)
        made, last = self.layer(x, states)
        directions = 2 if self.layer.bidirectional else 1
        steps, batch, _ = made.shape
        all_steps = made.view(steps, batch, directions, self.layer.hidden_size).transpose(1, 2)
        ends = last if isinstance(last, tuple) else (last,)
        return all_steps if self.results == 1 else (all_steps, *ends)[: self.results]


class GridSample(nn.Module):
    """Read a map at the places of a grid."""

    def __init__(self, mode: str, padding: str, *, corners: bool) -> None:
        """Take torch's names of modes."""
        super().__init__()
        self.mode, self.padding, self.corners = mode, padding, corners

    def forward(self, x: Tensor, grid: Tensor) -> Tensor:
        """Return batch x channels x the sizes of the grid."""
        return functional.grid_sample(x, grid, self.mode, self.padding, self.corners)


def _grid_sample(node: Any, graph: Any) -> Any:
    from onnx2torch.utils.common import OperationConverterResult, onnx_mapping_from_node

    said = node.attributes
    mode = said.get("mode", "bilinear")
    corners = bool(said.get("align_corners", 0))
    module = GridSample(_MODES.get(mode, mode), said.get("padding_mode", "zeros"), corners=corners)
    return OperationConverterResult(torch_module=module, onnx_mapping=onnx_mapping_from_node(node))


def _gelu(node: Any, graph: Any) -> Any:
    from onnx2torch.utils.common import OperationConverterResult, onnx_mapping_from_node

    module = nn.GELU(node.attributes.get("approximate", "none"))
    return OperationConverterResult(torch_module=module, onnx_mapping=onnx_mapping_from_node(node))


def _recurrent(node: Any, graph: Any) -> Any:
    from onnx2torch.utils.common import OnnxMapping, OperationConverterResult

    op, names = node.operation_type, [*node.input_values, *[""] * 8]
    _refuse(node, names)
    weights = [graph.initializers[name].to_torch() if name in graph.initializers else None for name in names[1:4]]
    weight, state, bias = weights
    if weight is None or state is None or (names[3] and bias is None):
        raise NotImplementedError(f"{op} whose weights are computed")
    (directions, rows, inputs), hidden = weight.shape, state.shape[2]
    make = nn.LSTM if op == "LSTM" else nn.GRU
    layer = make(inputs, hidden, bias=bias is not None, bidirectional=directions == 2)
    for direction in range(directions):
        parts = [weight[direction], state[direction], *(bias[direction].split(rows) if bias is not None else ())]
        sorts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        for sort, part in zip(sorts, parts, strict=False):
            own = getattr(layer, f"{sort}_l0{'_reverse' if direction else ''}")
            own.data.copy_(as_torch_has_them(part, op))
    read = (names[0], *(names[place] for place in _STATES[op] if names[place]))
    module = RecurrentLayer(layer, len(node.output_values))
    written = tuple(name for name in node.output_values if name)
    return OperationConverterResult(torch_module=module, onnx_mapping=OnnxMapping(read, written))


def _refuse(node: Any, names: list[str]) -> None:
    """Raise NotImplementedError for forms that torch's layers do not have."""
    op, said = node.operation_type, node.attributes
    unlike = [name for name in ("activations", "clip", "input_forget") if said.get(name)]
    unlike += [f"layout {said['layout']}"] if said.get("layout", 0) else []
    unlike += ["direction reverse"] if said.get("direction", "forward") == "reverse" else []
    unlike += ["linear_before_reset 0"] if op == "GRU" and not said.get("linear_before_reset", 0) else []
    unlike += ["sequence_lens"] if names[4] else []
    unlike += ["peepholes"] if op == "LSTM" and names[7] else []
    if op == "LSTM" and bool(names[5]) != bool(names[6]):
        unlike.append("one of two states")
    if unlike:
        raise NotImplementedError(f"{op} with {', '.join(unlike)}")
