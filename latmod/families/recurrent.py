"""Recurrent layers as one ONNX operator each, as they stand in files whose constants were folded."""

from typing import Any

import torch
from torch import Tensor, nn

_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
"""Where torch's gates (input, forget, cell, output; reset, update, new) lie in ONNX's weights."""


def as_torch_has_them(part: Tensor, op: str) -> Tensor:
    """Return weights or biases of a recurrent layer, gate by gate as in ONNX, with the gates in torch's order."""
    order = list(_ORDER[op])
    return part.reshape(len(order), part.shape[0] // len(order), -1)[order].reshape(part.shape)


class _Layer(torch.autograd.Function):
    """One layer over steps x batch x channels, in one direction or both.

    torch's own exporter would leave the turning of its weights into ONNX's in the graph, which engines had to undo.
    """

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, state: Any, bias: Any, first: Any, op: str) -> Any:
        """Write the operator, with states to begin with, as exporters do: ncnn's converter knows no other form."""
        (directions, _, hidden), (steps, batch, _) = state.type().sizes(), x.type().sizes()
        said: dict[str, Any] = {"direction_s": "bidirectional" if directions == 2 else "forward"}
        if op == "GRU":
            said["linear_before_reset_i"] = 1
        lengths = graph.op("prim::Constant")
        lengths.setType(torch._C.OptionalType.ofTensor())
        states = (first, first) if op == "LSTM" else (first,)
        made = graph.op(op, x, weight, state, bias, lengths, *states, hidden_size_i=hidden, **said)
        if directions == 1:
            rows = graph.op("Squeeze", made, graph.op("Constant", value_t=torch.tensor([1])))
        else:
            turned = graph.op("Transpose", made, perm_i=[0, 2, 1, 3])
            rows = graph.op("Reshape", turned, graph.op("Constant", value_t=torch.tensor([0, 0, -1])))
        return rows.setType(x.type().with_sizes([steps, batch, directions * hidden]))

    @staticmethod
    def forward(_: Any, x: Tensor, weight: Tensor, state: Tensor, bias: Tensor, first: Tensor, op: str) -> Tensor:
        """Return steps x batch x (directions x hidden)."""
        # While a graph is traced, sizes are tensors.
        directions, rows, _ = map(int, state.shape)
        parts = [[weight[one], state[one], *torch.split(bias[one], rows)] for one in range(directions)]
        flat = [as_torch_has_them(part, op) for own in parts for part in own]
        more = (flat, True, 1, 0.0, False, directions == 2, False)
        made: Tensor = (torch.lstm(x, (first, first), *more) if op == "LSTM" else torch.gru(x, first, *more))[0]
        return made


class Recurrent(nn.Module):
    """Layers in a row over batch x channels x frames, each in one direction or both."""

    def __init__(self, channels: int, hidden: int, layers: int, op: str, *, both: bool) -> None:
        """Map `channels` to `hidden`, or twice as many with `both`; `op` is `LSTM` or `GRU`."""
        super().__init__()
        self.op, directions, rows = op, 1 + both, len(_ORDER[op]) * hidden
        sizes = [channels, *[directions * hidden] * (layers - 1)]
        self.weights = nn.ParameterList(torch.empty(directions, rows, size) for size in sizes)
        self.states = nn.ParameterList(torch.empty(directions, rows, hidden) for _ in sizes)
        self.biases = nn.ParameterList(torch.empty(directions, 2 * rows) for _ in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers."""
        y: Tensor = x.permute(2, 0, 1)
        for weight, state, bias in zip(self.weights, self.states, self.biases, strict=True):
            first = torch.zeros(state.shape[0], x.shape[0], state.shape[2], device=x.device)
            y = _Layer.apply(y, weight, state, bias, first, self.op)
        return y.permute(1, 2, 0)
