"""Plain stacks of convolutions, with or without batch norm, ending in large fully connected layers or in none."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Head, activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class Fire(nn.Module):
    """Squeeze by a 1x1, expand by a 1x1 and a 3x3 beside each other."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        """Map `channels` to `2 * expanded`."""
        super().__init__()
        self.squeeze = ConvUnit(channels, squeezed, 1, norm=False)
        self.small = ConvUnit(squeezed, expanded, 1, norm=False)
        self.large = ConvUnit(squeezed, expanded, 3, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        x = self.squeeze(x)
        return torch.cat([self.small(x), self.large(x)], 1)


class Connected(nn.Module):
    """Flatten a map and run fully connected layers."""

    def __init__(self, channels: int, classes: int, *, side: int, hidden: tuple[int, ...]) -> None:
        """Map channels x side x side through `hidden` to `classes`; the pool keeps the side, as in the classics."""
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((side, side))
        sizes = (channels * side * side, *hidden)
        parts: list[nn.Module] = []
        for size, following in pairwise(sizes):
            parts += [nn.Linear(size, following), activation("relu"), nn.Dropout()]
        self.layers = nn.Sequential(*parts, nn.Linear(sizes[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.layers(torch.flatten(self.pool(x), 1))
        return logits


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("plain", spec.variant)
    norm = draw.chance(0.5)
    kernel, stride = draw.pick(((3, 1), (3, 2), (5, 2), (7, 2), (11, 4)), (0.4, 0.2, 0.1, 0.15, 0.15))
    if stride == 1 and spec.side * spec.width > 224 * 64:
        stride = 2
    channels = draw.channels(spec.width)
    fire = not norm and draw.chance(0.4)
    parts: list[nn.Module] = [ConvUnit(3, channels, kernel, stride=stride, norm=norm)]
    side = (spec.side - 1) // stride + 1
    if stride > 1:
        parts.append(nn.MaxPool2d(3, 2, 1))
        side = (side - 1) // 2 + 1
    stages = 5 if stride == 1 else 3
    growth = draw.between(1.4, 2.0)
    for stage, blocks in enumerate(draw.split(spec.depth, stages)):
        filters = draw.channels(spec.width * growth ** (stage if stride == 1 else stage + 1))
        for _ in range(blocks):
            if fire:
                expanded = draw.channels(filters / 2)
                parts.append(Fire(channels, draw.channels(max(8.0, filters / 8)), expanded))
                channels = 2 * expanded
            else:
                wide = draw.pick((1, 3, 5), (0.1, 0.8, 0.1))
                act = draw.pick(("relu", "leaky"), (0.9, 0.1))
                parts.append(ConvUnit(channels, filters, wide, norm=norm, act=act))
                channels = filters
        if side >= 8:
            overlapping = draw.chance(0.3)
            parts.append(nn.MaxPool2d(3, 2, 1) if overlapping else nn.MaxPool2d(2, 2))
            side = (side - 1) // 2 + 1 if overlapping else side // 2
    if fire or draw.chance(0.3):
        parts.append(Head(channels, spec.classes))
    else:
        hidden = tuple(draw.channels(draw.between(256, 4096)) for _ in range(draw.pick((1, 2))))
        parts.append(Connected(channels, spec.classes, side=side, hidden=hidden))
    return nn.Sequential(*parts)
