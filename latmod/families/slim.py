"""Slim networks: many cheap parts and much weight for few multiply-adds, to classify images or each of their pixels.

Mobile networks grow wide where maps are small, and end in two large products: 20 MB of weights for 0.15 G
multiply-adds, which other families have for ten times as many. What each of their hundreds of kernels finds in a cache
hangs on that.
"""

import torch
from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Head, SqueezeExcite, activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.maps import Mask

_ACTS = ("relu", "relu6", "hardswish", "silu")
_CLASSES = (2, 4, 8, 11, 19, 21, 32, 66, 150)
_OUTPUT_STRIDE = 8


class Halved(nn.Module):
    """Make a part of the filters by products, the others of these by a depthwise convolution, and put both together.

    Side by side (Han et al. 2020, arXiv:1911.11907), or, of as many, their sum (Chen et al. 2022, arXiv:2211.06088).
    """

    def __init__(self, channels: int, filters: int, kernel: int, act: str, *, add: bool) -> None:
        """Map `channels` to `filters`."""
        super().__init__()
        first = filters if add else -(-filters // 2)
        self.filters, self.add = filters, add
        self.primary = ConvUnit(channels, first, 1, act=act)
        self.cheap = ConvUnit(first, first, kernel, groups=first, act="none" if add else act)
        self.act = activation(act if add else "none")

    def forward(self, x: Tensor) -> Tensor:
        """Run the module."""
        y: Tensor = self.primary(x)
        made: Tensor = self.cheap(y)
        if self.add:
            output: Tensor = self.act(y + made)
            return output
        return torch.cat([y, made], dim=1)[:, : self.filters]


class Split(nn.Module):
    """Run parts of the channels through modules of their own (Tan and Le 2019, arXiv:1907.09595)."""

    def __init__(self, parts: list[nn.Module], sizes: list[int]) -> None:
        """Take a module for each part."""
        super().__init__()
        self.parts, self.sizes = nn.ModuleList(parts), sizes

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules."""
        pieces = torch.split(x, self.sizes, dim=1)
        return torch.cat([part(piece) for part, piece in zip(self.parts, pieces, strict=True)], dim=1)


class Block(nn.Module):
    """Expand, mix places, weigh channels, project; a shortcut, which is convolved too where shapes differ, or none."""

    def __init__(self, body: list[nn.Module], shortcut: nn.Module | None) -> None:
        """Take the modules in a row."""
        super().__init__()
        self.body, self.shortcut = nn.Sequential(*body), shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y: Tensor = self.body(x)
        return y if self.shortcut is None else y + self.shortcut(x)


class _Style:
    """Draw what all blocks of a network have in common."""

    def __init__(self, draw: Choices) -> None:
        self.draw = draw
        self.act = draw.pick(_ACTS)
        self.way = draw.pick(("halved", "summed", "mixed", "plain", "separable"), (2, 1, 1.5, 1.5, 1))
        self.gate = draw.pick(("hardsigmoid", "sigmoid"))
        self.excited = draw.chance(0.6)
        self.ratios = draw.pick(((2, 3), (3, 4, 6), (6,)))
        self.side_shortcut = draw.chance(0.4)

    def block(self, channels: int, filters: int, *, stride: int, kernel: int, first: bool) -> nn.Module:
        """Return a block; those of the first stage, over the largest maps, do not expand."""
        draw, act = self.draw, self.act
        if self.way == "separable":
            return nn.Sequential(*self._places(channels, stride, kernel), ConvUnit(channels, filters, 1, act=act))
        expanded = channels if first else draw.channels(channels * draw.pick(self.ratios))
        body = [self._expansion(channels, expanded, act)]
        if stride > 1 or self.way not in ("halved", "summed"):
            body += self._places(expanded, stride, kernel)
        if self.excited and draw.chance(0.7):
            body.append(SqueezeExcite(expanded, draw.channels(expanded / 4), gate=self.gate))
        body.append(self._expansion(expanded, filters, "none"))
        return Block(body, self._shortcut(channels, filters, stride, kernel))

    def _expansion(self, channels: int, filters: int, act: str) -> nn.Module:
        if self.way in ("halved", "summed"):
            return Halved(channels, filters, 3, act, add=self.way == "summed")
        if self.way == "mixed" and channels % 2 == filters % 2 == 0 and self.draw.chance(0.4):
            halves = [ConvUnit(channels // 2, filters // 2, 1, act=act) for _ in range(2)]
            return Split(list(halves), [channels // 2] * 2)
        return ConvUnit(channels, filters, 1, act=act)

    def _places(self, channels: int, stride: int, kernel: int) -> list[nn.Module]:
        if self.way != "mixed" or channels < 8:
            return [ConvUnit(channels, channels, kernel, stride=stride, groups=channels, act=self.act)]
        count = self.draw.pick((2, 3, 4))
        share = channels // count
        sizes = [channels - share * (count - 1), *[share] * (count - 1)]
        convs = [
            nn.Conv2d(size, size, 3 + 2 * place, stride=stride, padding=1 + place, groups=size, bias=False)
            for place, size in enumerate(sizes)
        ]
        return [Split(list(convs), sizes), nn.BatchNorm2d(channels), activation(self.act)]

    def _shortcut(self, channels: int, filters: int, stride: int, kernel: int) -> nn.Module | None:
        if stride == 1 and channels == filters:
            return nn.Identity()
        if not self.side_shortcut:
            return None
        moved = ConvUnit(channels, channels, kernel, stride=stride, groups=channels, act="none")
        return nn.Sequential(moved, ConvUnit(channels, filters, 1, act="none"))


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("slim", spec.variant)
    style = _Style(draw)
    dense = draw.chance(0.3)
    channels, growth = draw.channels(spec.width), draw.between(1.6, 2.1)
    parts: list[nn.Module] = [ConvUnit(3, channels, 3, stride=2, act=style.act)]
    reached = 2
    for stage, blocks in enumerate(draw.split(spec.depth, 5)):
        filters = draw.channels(spec.width * growth**stage)
        stride = 2 if stage and reached < (_OUTPUT_STRIDE if dense else 32) else 1
        reached *= stride
        kernel = draw.pick((3, 5), (0.6, 0.4))
        for position in range(blocks):
            own = stride if position == 0 else 1
            parts.append(style.block(channels, filters, stride=own, kernel=kernel, first=stage == 0))
            channels = filters
    last = draw.channels(channels * draw.pick((3, 6)))
    if dense:
        kept, factor = min(last, 256), draw.pick((4, _OUTPUT_STRIDE))
        parts += [ConvUnit(channels, kept, 1, act=style.act), _Alone()]
        head = Mask(kept, draw.pick(_CLASSES), factor, nn.Identity(), corners=draw.chance(0.3), gather=False)
        return nn.Sequential(*parts, head)
    hidden = draw.channels(last * draw.between(1.0, 2.5)) if draw.chance(0.8) else 0
    if hidden and draw.chance(0.5):
        parts += [ConvUnit(channels, last, 1, act=style.act), nn.AdaptiveAvgPool2d(1), nn.Conv2d(last, hidden, 1)]
        parts += [activation(style.act), nn.Flatten(), nn.Linear(hidden, spec.classes)]
        return nn.Sequential(*parts)
    parts.append(ConvUnit(channels, last, 1, act=style.act))
    return nn.Sequential(*parts, Head(last, spec.classes, hidden=hidden, act=style.act, mean=draw.chance(0.5)))


class _Alone(nn.Module):
    """Take a map for the only one."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return it in a list."""
        return [x]
