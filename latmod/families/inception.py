"""Networks of parallel branches that are concatenated: 1x1, 3x3, 5x5, factorised and pooling branches."""

import torch
from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Head
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class Branches(nn.Module):
    """Run branches beside one another and concatenate their channels."""

    def __init__(self, *branches: nn.Module) -> None:
        """Keep the branches."""
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Run all branches."""
        return torch.cat([branch(x) for branch in self.branches], 1)


def _mixed(draw: Choices, channels: int, filters: int) -> tuple[nn.Module, int]:
    """Return a module of two to four branches, and its number of channels."""
    made: list[nn.Module] = []
    total = 0
    for kind in ("pointwise", "square", "large", "pool"):
        if kind != "square" and not draw.chance(0.85):
            continue
        out = draw.channels(filters * draw.between(0.4, 1.2))
        reduced = draw.channels(max(8.0, out * draw.between(0.4, 1.0)))
        if kind == "pointwise":
            made.append(ConvUnit(channels, out, 1))
        elif kind == "square":
            made.append(nn.Sequential(ConvUnit(channels, reduced, 1), ConvUnit(reduced, out, 3)))
        elif kind == "large":
            form = draw.pick(("5x5", "two 3x3", "factorised"), (0.3, 0.35, 0.35))
            if form == "5x5":
                body: list[nn.Module] = [ConvUnit(reduced, out, 5)]
            elif form == "two 3x3":
                body = [ConvUnit(reduced, out, 3), ConvUnit(out, out, 3)]
            else:
                length = draw.pick((3, 5, 7))
                body = [ConvUnit(reduced, out, (1, length)), ConvUnit(out, out, (length, 1))]
            made.append(nn.Sequential(ConvUnit(channels, reduced, 1), *body))
        else:
            pool: nn.Module = nn.AvgPool2d(3, 1, 1) if draw.chance(0.5) else nn.MaxPool2d(3, 1, 1)
            made.append(nn.Sequential(pool, ConvUnit(channels, out, 1)))
        total += out
    return Branches(*made), total


def _shrinking(draw: Choices, channels: int, filters: int) -> tuple[nn.Module, int]:
    """Return a module that halves the side by strided branches beside a pool, and its number of channels."""
    first, inner = draw.channels(filters), draw.channels(max(8.0, filters * 0.5))
    branches = [
        ConvUnit(channels, first, 3, stride=2, padding=0),
        nn.Sequential(
            ConvUnit(channels, inner, 1), ConvUnit(inner, inner, 3), ConvUnit(inner, first, 3, stride=2, padding=0)
        ),
        nn.MaxPool2d(3, 2),
    ]
    return Branches(*branches), 2 * first + channels


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("inception", spec.variant)
    channels = draw.channels(max(16.0, spec.width / 2))
    if draw.chance(0.5):
        second = draw.channels(channels * draw.pick((1, 2)))
        third = draw.channels(channels * draw.pick((2, 3)))
        stem = (3, 1, second) if draw.chance(0.5) else (7, 3, second)
        padding = 0 if stem[0] == 3 else None
        parts: list[nn.Module] = [
            ConvUnit(3, channels, stem[0], stride=2, padding=padding),
            ConvUnit(channels, second, 3),
            nn.MaxPool2d(3, 2, ceil_mode=draw.chance(0.5)),
            ConvUnit(second, third, 3),
        ]
        channels = third
    else:
        parts = [ConvUnit(3, channels, 7, stride=2), nn.MaxPool2d(3, 2, 1)]
    stages = 3
    growth = draw.between(1.3, 2.0)
    for stage, blocks in enumerate(draw.split(spec.depth, stages)):
        filters = spec.width * growth**stage / 2
        if stage:
            if draw.chance(0.5):
                parts.append(nn.MaxPool2d(3, 2, ceil_mode=True))
            else:
                part, channels = _shrinking(draw, channels, int(filters))
                parts.append(part)
        for _ in range(blocks):
            part, channels = _mixed(draw, channels, int(filters))
            parts.append(part)
    parts.append(Head(channels, spec.classes))
    return nn.Sequential(*parts)
