"""Recurrent layers as one ONNX operator each, as they stand in files whose constants were folded."""

from typing import Any

import torch
from torch import Tensor, nn

_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
"""Where torch's gates (input, forget, cell, output; reset, update, new) lie in ONNX's weights."""


class _Layer(torch.autograd.Function):
    """One layer over steps x batch x channels, in one direction or both.

    torch's own exporter would leave the turning of its weights into ONNX's in the graph, which engines had to undo.
    """

    @staticmethod
    def symbolic(graph: Any, x: Any, weight: Any, state: Any, bias: Any, op: str) -> Any:
        """Write the operator."""
        (directions, _, hidden), (steps, batch, _) = state.type().sizes(), x.type().sizes()
        said: dict[str, Any] = {"direction_s": "bidirectional" if directions == 2 else "forward"}
        if op == "GRU":
            said["linear_before_reset_i"] = 1
        made = graph.op(op, x, weight, state, bias, hidden_size_i=hidden, **said)
        return made.setType(x.type().with_sizes([steps, directions, batch, hidden]))

    @staticmethod
    def forward(_: Any, x: Tensor, weight: Tensor, state: Tensor, bias: Tensor, op: str) -> Tensor:
        """Return steps x directions x batch x hidden."""
        # While a graph is traced, sizes are tensors.
        directions, rows, hidden = map(int, state.shape)
        order = list(_ORDER[op])
        flat = []
        for one in range(directions):
            for part in (weight[one], state[one], *torch.split(bias[one], rows)):
                flat.append(part.reshape(len(order), hidden, -1)[order].reshape(part.shape))
        first = torch.zeros(directions, x.shape[1], hidden, device=x.device)
        more = (flat, True, 1, 0.0, False, directions == 2, False)
        made = torch.lstm(x, (first, first), *more)[0] if op == "LSTM" else torch.gru(x, first, *more)[0]
        return made.view(*x.shape[:2], directions, hidden).transpose(1, 2)


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
        y = x.permute(2, 0, 1)
        for weight, state, bias in zip(self.weights, self.states, self.biases, strict=True):
            made: Tensor = _Layer.apply(y, weight, state, bias, self.op)
            y = made.transpose(1, 2).reshape(y.shape[0], y.shape[1], -1)
        return y.permute(1, 2, 0)
