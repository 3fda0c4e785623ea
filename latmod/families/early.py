"""Networks as they were before batch norm, or as its first converters wrote them.

Local response norms, grouped and biased convolutions, concatenated branches without norms, batch norms whose scale is
an operator of its own, large fully connected heads, a softmax at the end.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit, Head, activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.inception import Branches
from latmod.families.plain import Connected


class _ResponseNorm(torch.autograd.Function):
    """Export as the one operator that files of the time hold; torch would write out its average pool."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        """Norm over `size` neighbouring channels."""
        return functional.local_response_norm(x, size)

    @staticmethod
    def symbolic(g: Any, x: Any, size: int) -> Any:
        """Write `LRN`, with torch's own defaults."""
        return g.op("LRN", x, size_i=size, alpha_f=1e-4, beta_f=0.75, bias_f=1.0).setType(x.type())


class LocalNorm(nn.Module):
    """Norm each channel by its neighbours (Krizhevsky et al. 2012)."""

    def __init__(self, size: int = 5) -> None:
        """Take `size` channels, itself included."""
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, normed."""
        normed: Tensor = _ResponseNorm.apply(x, self.size)
        return normed


class Scale(nn.Module):
    """Multiply and shift each channel, as Caffe does after a norm."""

    def __init__(self, channels: int) -> None:
        """Hold one factor and one offset for each channel."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, scaled."""
        return x * self.weight + self.bias


def _unit(channels: int, filters: int, kernel: int, *, norm: str, stride: int = 1, groups: int = 1) -> nn.Module:
    """Return a convolution with its activation, between them nothing, or a batch norm and a scale."""
    if norm != "scaled":
        return ConvUnit(channels, filters, kernel, stride=stride, groups=groups, norm=False)
    unit = ConvUnit(channels, filters, kernel, stride=stride, groups=groups, act="none")
    return nn.Sequential(unit, Scale(filters), activation("relu"))


def _branches(draw: Choices, channels: int, filters: int, norm: str) -> tuple[nn.Module, int]:
    """Return four branches as one module, and their channels."""
    outs = [draw.channels(max(8.0, filters * share * draw.between(0.7, 1.4))) for share in (0.3, 0.4, 0.15, 0.15)]
    small, large = (draw.channels(max(8.0, out * draw.between(0.3, 0.9))) for out in (outs[1], outs[2]))
    made = Branches(
        _unit(channels, outs[0], 1, norm=norm),
        nn.Sequential(_unit(channels, small, 1, norm=norm), _unit(small, outs[1], 3, norm=norm)),
        nn.Sequential(_unit(channels, large, 1, norm=norm), _unit(large, outs[2], draw.pick((3, 5)), norm=norm)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1), _unit(channels, outs[3], 1, norm=norm)),
    )
    return made, sum(outs)


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("early", spec.variant)
    norm = draw.pick(("local", "scaled"), (0.75, 0.25))
    kernel, stride = draw.pick(((11, 4), (7, 2), (5, 2)))
    channels = draw.channels(spec.width)
    side = (spec.side - 1) // stride + 1
    parts: list[nn.Module] = [_unit(3, channels, kernel, norm=norm, stride=stride)]
    branching, growth = draw.chance(0.5), draw.between(1.4, 2.2)
    normed_first = draw.chance(0.5)
    for stage, blocks in enumerate(draw.split(spec.depth, 3)):
        if stage < 2:
            local: list[nn.Module] = [LocalNorm(draw.pick((3, 5, 5)))] if norm == "local" and draw.chance(0.85) else []
            rounded = side >= 8 and draw.chance(0.5)
            shrink: list[nn.Module] = [nn.MaxPool2d(3, 2, ceil_mode=rounded)] if side >= 8 else []
            parts += local + shrink if normed_first else shrink + local
            side = (side - 3 + rounded) // 2 + 1 if shrink else side
        filters = draw.channels(spec.width * growth ** (stage + 1))
        for _ in range(blocks):
            if branching:
                part, channels = _branches(draw, channels, 2 * filters, norm)
                parts.append(part)
                continue
            groups = 2 if channels % 2 == filters % 2 == 0 and draw.chance(0.4) else 1
            parts.append(_unit(channels, filters, draw.pick((3, 5, 1), (0.7, 0.2, 0.1)), norm=norm, groups=groups))
            channels = filters
    if side >= 8:
        parts.append(nn.MaxPool2d(3, 2))
        side = (side - 3) // 2 + 1
    if branching or draw.chance(0.2):
        parts.append(Head(channels, spec.classes))
    else:
        hidden = tuple(draw.channels(draw.between(512, 4096)) for _ in range(2))
        # Exporters know adaptive pools to a divisor of the side only.
        pooled = max(divisor for divisor in range(1, 8) if side % divisor == 0)
        parts.append(Connected(channels, spec.classes, side=pooled, hidden=hidden))
    if draw.chance(0.7):
        parts.append(nn.Softmax(1))
    return nn.Sequential(*parts)
