"""Densely connected networks: every layer reads the outputs of all before it in its block."""

import torch
from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Head, activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class DenseLayer(nn.Module):
    """Norm, activation, 1x1, norm, activation, 3x3; the input is passed on beside the result."""

    def __init__(self, channels: int, growth: int, *, inner: int) -> None:
        """Add `growth` channels to `channels`."""
        super().__init__()
        parts: list[nn.Module] = [nn.BatchNorm2d(channels), activation("relu")]
        if inner:
            parts += [nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), activation("relu")]
        parts.append(nn.Conv2d(inner or channels, growth, 3, padding=1, bias=False))
        self.body = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        return torch.cat([x, self.body(x)], 1)


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("dense", spec.variant)
    growth = draw.channels(max(8.0, spec.width / 2))
    inner = 0 if draw.chance(0.15) else growth * draw.pick((2, 4, 4))
    channels = 2 * growth
    parts: list[nn.Module] = [ConvUnit(3, channels, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    stages = draw.pick((3, 4))
    for stage, layers in enumerate(draw.split(spec.depth, stages)):
        for _ in range(layers):
            parts.append(DenseLayer(channels, growth, inner=inner))
            channels += growth
        if stage < stages - 1:
            squeezed = draw.channels(channels * draw.pick((0.5, 0.5, 0.75)))
            parts += [nn.BatchNorm2d(channels), activation("relu"), nn.Conv2d(channels, squeezed, 1, bias=False)]
            parts.append(nn.AvgPool2d(2, 2))
            channels = squeezed
    parts += [nn.BatchNorm2d(channels), activation("relu"), Head(channels, spec.classes)]
    return nn.Sequential(*parts)
