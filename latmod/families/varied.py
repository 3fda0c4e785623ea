"""Convolutional networks of blocks that few others have: norms, gates, activations, ways to put maps together.

What they have in common is that their operators are rare: maps that are resized, sums over branches, norms over groups,
slices of a part of the channels, padding by a Pad.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit, Head, in_parts
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "mish": nn.Mish,
    "elu": nn.ELU,
    "tanh gelu": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
}


class Pooling(nn.Module):
    """Mix by what a pool adds, after a norm over groups of channels, weighed (Yu et al. 2022, arXiv:2111.11418)."""

    def __init__(self, channels: int, groups: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.norm, self.pool = nn.GroupNorm(groups, channels), nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.scale = nn.Parameter(torch.full((channels, 1, 1), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix."""
        y = self.norm(x)
        output: Tensor = x + self.scale * (self.pool(y) - y)
        return output


class Selective(nn.Module):
    """Weigh branches against each other by a softmax over what their sum has on average (SKNet, ResNeSt)."""

    def __init__(self, channels: int, act: str, *, stacked: bool) -> None:
        """Keep the number of channels; `stacked` runs two convolutions, else one of two groups is parted."""
        super().__init__()
        self.stacked = stacked
        if stacked:
            self.first = ConvUnit(channels, channels, 3)
            self.second = ConvUnit(channels, channels, 3, dilation=2)
        else:
            self.both = ConvUnit(channels, 2 * channels, 3, groups=2)
        narrow = max(8, channels // 4)
        self.reduce, self.act = ConvUnit(channels, narrow, 1, act="none"), _ACTIVATIONS[act]()
        self.expand = nn.Conv2d(narrow, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run both branches."""
        batch, channels, height, width = x.shape
        if self.stacked:
            branches = torch.stack([self.first(x), self.second(x)], dim=1)
        else:
            branches = self.both(x).reshape(batch, 2, channels, height, width)
        weights = self.expand(self.act(self.reduce(branches.sum(1).mean((2, 3), keepdim=True))))
        weights = weights.view(batch, 2, channels, 1, 1).softmax(1)
        output: Tensor = (branches * weights).sum(1)
        return output


class Resized(nn.Module):
    """Look at a smaller map, and bring what comes of it back to the size of the input."""

    def __init__(self, channels: int, mode: str, *, pooled: bool) -> None:
        """Keep the number of channels; `mode` is torch's; the map is pooled to a third, or convolved to half."""
        super().__init__()
        self.mode = mode
        self.down = nn.AvgPool2d(3, 3, ceil_mode=True) if pooled else ConvUnit(channels, channels, 3, stride=2)
        self.out = ConvUnit(channels, channels, 1, act="none")

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch."""
        y = self.out(self.down(x))
        corners = {} if self.mode == "nearest" else {"align_corners": False}
        return functional.relu(x + functional.interpolate(y, size=x.shape[2:], mode=self.mode, **corners))


class Mixed(nn.Module):
    """Convolve parts of the channels by kernels of different sizes (Tan and Le 2019, arXiv:1907.09595)."""

    def __init__(self, channels: int, parts: int, act: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        share = channels // parts
        self.sizes = [channels - share * (parts - 1), *[share] * (parts - 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(size, size, 3 + 2 * place, padding=1 + place, groups=size, bias=False)
            for place, size in enumerate(self.sizes)
        )
        self.norm, self.act = nn.BatchNorm2d(channels), _ACTIVATIONS[act]()
        self.out = ConvUnit(channels, channels, 1, act="none")

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        output: Tensor = x + self.out(self.act(self.norm(in_parts(x, self.sizes, self.convs))))
        return output


class Ghost(nn.Module):
    """Make half of the channels of the other half, and cut what is too many (Han et al. 2020, arXiv:1911.11907)."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        half = -(-channels // 2)
        self.channels = channels
        self.primary, self.cheap = ConvUnit(channels, half, 1), ConvUnit(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.primary(x)
        return torch.cat([y, self.cheap(y)], dim=1)[:, : self.channels] + x


class ChannelGate(nn.Module):
    """Weigh channels by a convolution over their means in a row (ECA, arXiv:1910.03151)."""

    def __init__(self, channels: int, kernel: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.body, self.conv = ConvUnit(channels, channels, 3), nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.body(x)
        weights = self.conv(y.mean((2, 3)).view(y.shape[0], 1, -1)).sigmoid().view(y.shape[0], -1, 1, 1)
        output: Tensor = y * weights.expand_as(y)
        return output


class PlaceGate(nn.Module):
    """Weigh places by a convolution over the mean and the largest of the channels (CBAM, arXiv:1807.06521)."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.body, self.conv = ConvUnit(channels, channels, 3), ConvUnit(2, 1, 7, act="none")

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.body(x)
        seen = torch.cat([y.mean(dim=1, keepdim=True), y.amax(dim=1, keepdim=True)], dim=1)
        output: Tensor = y * self.conv(seen).sigmoid()
        return output


class Branched(nn.Module):
    """Sum a depthwise convolution, one of a single pixel, and a norm, as MobileOne is trained (arXiv:2206.04040)."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.wide = ConvUnit(channels, channels, 3, groups=channels, act="none")
        self.narrow = ConvUnit(channels, channels, 1, groups=channels, act="none")
        self.norm, self.out = nn.BatchNorm2d(channels), ConvUnit(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        output: Tensor = self.out(functional.relu(self.wide(x) + self.narrow(x) + self.norm(x)))
        return output


class Dilated(nn.Module):
    """Two convolutions, the second dilated, with an activation of a rare kind."""

    def __init__(self, channels: int, dilation: int, act: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.first, self.act = ConvUnit(channels, channels, 1, act="none"), _ACTIVATIONS[act]()
        self.second, self.last = ConvUnit(channels, channels, 3, dilation=dilation, act="none"), _ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        output: Tensor = x + self.last(self.second(self.act(self.first(x))))
        return output


class Down(nn.Module):
    """Halve the side: padded at the end alone by a Pad, with noughts that are named or not, or by channels of 2 x 2."""

    def __init__(self, channels: int, filters: int, way: str) -> None:
        """Map `channels` to `filters`."""
        super().__init__()
        self.way = way
        wide = 4 * channels if way == "folded" else channels
        self.conv = ConvUnit(wide, filters, 1 if way == "folded" else 3, stride=1 if way == "folded" else 2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        if self.way == "folded":
            x = functional.pixel_unshuffle(x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2)
        elif self.way == "named":
            x = functional.pad(x, (0, 1, 0, 1), value=0.0)
        else:
            x = functional.pad(x, (0, 1, 0, 1))
        output: Tensor = self.conv(x)
        return output


def _block(draw: Choices, channels: int) -> nn.Module:
    act = draw.pick(tuple(_ACTIVATIONS))
    kind = draw.pick(
        ("pooling", "selective", "resized", "mixed", "ghost", "channels", "places", "branched", "dilated"),
        (1.0, 1.2, 2.4, 1.2, 1.0, 1.0, 0.8, 1.0, 1.2),
    )
    groups = draw.pick([number for number in (1, 4, 8) if channels % number == 0])
    mode = draw.pick(("nearest", "bilinear", "bicubic"), (0.4, 0.4, 0.2))
    made: dict[str, Callable[[], nn.Module]] = {
        "pooling": lambda: Pooling(channels, groups),
        "selective": lambda: Selective(channels, act, stacked=draw.chance(0.5)),
        "resized": lambda: Resized(channels, mode, pooled=draw.chance(0.5)),
        "mixed": lambda: Mixed(channels, draw.pick((2, 3, 4)), act),
        "ghost": lambda: Ghost(channels),
        "channels": lambda: ChannelGate(channels, draw.pick((3, 5))),
        "places": lambda: PlaceGate(channels),
        "branched": lambda: Branched(channels),
        "dilated": lambda: Dilated(channels, draw.pick((2, 4)), act),
    }
    return made[kind]()


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("varied", spec.variant)
    channels = draw.channels(spec.width)
    growth = draw.between(1.4, 2.1)
    way = draw.pick(("named", "unnamed", "folded"), (0.6, 0.25, 0.15))
    parts: list[nn.Module] = [Down(3, channels, "named" if way == "folded" else way)]
    for stage, blocks in enumerate(draw.split(spec.depth, 3)):
        filters = draw.channels(spec.width * growth**stage)
        parts.append(Down(channels, filters, way))
        channels = filters
        parts += [_block(draw, channels) for _ in range(blocks)]
    return nn.Sequential(*parts, Head(channels, spec.classes, mean=draw.chance(0.5)))
