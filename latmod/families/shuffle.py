"""Networks that split, shuffle and concatenate channels, with depthwise convolutions in between."""

import torch
from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Head, activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


def shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` groups."""
    batch, channels, height, width = x.shape
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Convolve one half of the channels (all of them under a stride), join both, shuffle."""

    def __init__(self, channels: int, filters: int, *, stride: int, kernel: int, act: str) -> None:
        """Map `channels` to `filters`, both even; the same number where the stride is 1."""
        super().__init__()
        half = filters // 2
        self.halves = stride == 1
        entering = half if self.halves else channels
        self.main = nn.Sequential(
            ConvUnit(entering, half, 1, act=act),
            ConvUnit(half, half, kernel, stride=stride, groups=half, act="none"),
            ConvUnit(half, half, 1, act=act),
        )
        self.side = nn.Sequential()
        if not self.halves:
            self.side = nn.Sequential(
                ConvUnit(channels, channels, kernel, stride=stride, groups=channels, act="none"),
                ConvUnit(channels, half, 1, act=act),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Run the unit."""
        if self.halves:
            kept, worked = x.chunk(2, dim=1)
            return shuffle(torch.cat((kept, self.main(worked)), dim=1), 2)
        return shuffle(torch.cat((self.side(x), self.main(x)), dim=1), 2)


class GroupedShuffleUnit(nn.Module):
    """A bottleneck whose 1x1 convolutions are grouped, shuffled between them, added to its input."""

    def __init__(self, channels: int, *, groups: int, kernel: int, act: str) -> None:
        """Keep the number of channels, a multiple of 4 * groups."""
        super().__init__()
        inner = channels // 4
        self.groups = groups
        self.reduce = ConvUnit(channels, inner, 1, groups=groups, act=act)
        self.depthwise = ConvUnit(inner, inner, kernel, groups=inner, act="none")
        self.expand = ConvUnit(inner, channels, 1, groups=groups, act="none")
        self.act = activation("relu")

    def forward(self, x: Tensor) -> Tensor:
        """Run the unit."""
        y = self.expand(self.depthwise(shuffle(self.reduce(x), self.groups)))
        output: Tensor = self.act(x + y)
        return output


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("shuffle", spec.variant)
    act = draw.pick(("relu", "hardswish"), (0.8, 0.2))
    grouped = draw.chance(0.25)
    groups = draw.pick((2, 4, 8))
    growth = draw.between(1.7, 2.2)
    channels = draw.pick((16, 24, 32))
    parts: list[nn.Module] = [ConvUnit(3, channels, 3, stride=2, act=act), nn.MaxPool2d(3, 2, 1)]
    multiple = 4 * groups if grouped else 2
    for stage, blocks in enumerate(draw.split(spec.depth, 3)):
        filters = max(multiple, int(spec.width * growth**stage) // multiple * multiple)
        kernel = draw.pick((3, 5), (0.8, 0.2))
        parts.append(ShuffleUnit(channels, filters, stride=2, kernel=kernel, act=act))
        for _ in range(blocks - 1):
            if grouped:
                parts.append(GroupedShuffleUnit(filters, groups=groups, kernel=kernel, act=act))
            else:
                parts.append(ShuffleUnit(filters, filters, stride=1, kernel=kernel, act=act))
        channels = filters
    last = draw.channels(channels * draw.between(1.5, 3.0))
    parts += [ConvUnit(channels, last, 1, act=act), Head(last, spec.classes, mean=True)]
    return nn.Sequential(*parts)
