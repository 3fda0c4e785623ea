"""Segmenters with dilated backbones: a map that stays large, a look from farther away, a mask enlarged at once.

After Chen et al. 2017 and 2018 (arXiv:1706.05587, arXiv:1802.02611), Zhao et al. 2017 (arXiv:1612.01105) and Howard et
al. 2019 (arXiv:1905.02244). The number of classes is drawn as all else is.
"""

import torch
from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Residual, SqueezeExcite, projection
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.maps import Mean, Union, enlarged

_DIVISORS = (2, 3, 4, 6, 7)


class Gated(nn.Module):
    """Weigh channels by their means, as LR-ASPP does."""

    def __init__(self, channels: int, filters: int, act: str) -> None:
        """Map `channels` to `filters`."""
        super().__init__()
        self.conv = ConvUnit(channels, filters, 1, act=act)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, filters, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, its channels weighed."""
        output: Tensor = self.conv(x) * self.gate(x)
        return output


class Segmenter(nn.Module):
    """A backbone in two parts, context, and a mask of the input's size; `side` is what the larger map gives to it."""

    def __init__(
        self, early: nn.Module, late: nn.Module, context: nn.Module, side: nn.Module | None, mask: nn.Module
    ) -> None:
        """Take the parts; the mask sees the context's map, or its union with what `side` makes of the early map."""
        super().__init__()
        self.early, self.late, self.context, self.side, self.mask = early, late, context, side, mask

    def forward(self, x: Tensor) -> Tensor:
        """Return batch x classes x side x side."""
        large = self.early(x)
        y = self.context(self.late(large))
        if self.side is not None:
            y = torch.cat((enlarged(y, large), self.side(large)), 1)
        return enlarged(self.mask(y), x)


def _block(kind: str, channels: int, filters: int, stride: int, dilation: int, act: str, *, excited: bool) -> nn.Module:
    if kind == "inverted":
        wide = 4 * channels
        shortcut = nn.Identity() if stride == 1 and channels == filters else None
        parts = [
            ConvUnit(channels, wide, 1, act=act),
            ConvUnit(wide, wide, 3, stride=stride, groups=wide, dilation=dilation, act=act),
            *([SqueezeExcite(wide, max(8, channels))] if excited else []),
            ConvUnit(wide, filters, 1, act="none"),
        ]
        return Residual(nn.Sequential(*parts), shortcut, "none")
    if kind == "basic":
        body = [
            ConvUnit(channels, filters, stride=stride, dilation=dilation, act=act),
            ConvUnit(filters, filters, dilation=dilation, act="none"),
        ]
    else:
        narrow = max(8, filters // 4)
        body = [
            ConvUnit(channels, narrow, 1, act=act),
            ConvUnit(narrow, narrow, stride=stride, dilation=dilation, act=act),
            ConvUnit(narrow, filters, 1, act="none"),
        ]
    return Residual(nn.Sequential(*body), projection(channels, filters, stride), act)


def _dilated(channels: int, filters: int, rate: int, act: str, *, separable: bool) -> nn.Module:
    if not separable:
        return ConvUnit(channels, filters, dilation=rate, act=act)
    return nn.Sequential(
        ConvUnit(channels, channels, groups=channels, dilation=rate, act="none"),
        ConvUnit(channels, filters, 1, act=act),
    )


def _context(draw: Choices, channels: int, filters: int, side: int, act: str) -> nn.Module:
    """Return what looks at a map from farther away, and makes `filters` of it."""
    form = draw.pick(("atrous", "pools", "gated", "plain"), (0.5, 0.2, 0.15, 0.15))
    if form == "atrous":
        rates = draw.pick(((6, 12, 18), (12, 24, 36), (3, 6, 9), (4, 8, 12)), (0.35, 0.35, 0.15, 0.15))
        separable = draw.chance(0.25)
        branches: list[nn.Module] = [ConvUnit(channels, filters, 1, act=act)]
        branches += [_dilated(channels, filters, rate, act, separable=separable) for rate in rates]
        branches.append(Mean(channels, filters, act))
        return Union(branches, ConvUnit(5 * filters, filters, 1, act=act))
    if form == "pools":
        kernels = [0, *(side // parts for parts in _DIVISORS if side % parts == 0)][:4]
        share = max(8, channels // 4)
        pools: list[nn.Module] = [Mean(channels, share, act, kernel) for kernel in kernels]
        return Union([nn.Identity(), *pools], ConvUnit(channels + len(pools) * share, filters, act=act))
    if form == "gated":
        return Gated(channels, filters, act)
    return ConvUnit(channels, filters, act=act)


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("segmenter", spec.variant)
    kind = draw.pick(("bottleneck", "basic", "inverted"), (0.4, 0.25, 0.35))
    act = draw.pick(("relu", "hardswish", "silu"), (0.7, 0.15, 0.15))
    excited, pooled = draw.chance(0.4), kind != "inverted" and draw.chance(0.6)
    growth = draw.between(1.5, 2.0)
    wanted = draw.pick((8, 16), (0.5, 0.5))
    channels = draw.channels(spec.width)
    stem: list[nn.Module] = [ConvUnit(3, channels, draw.pick((3, 7)), stride=2, act=act)]
    reached, dilation = 2, 1
    if pooled:
        stem.append(nn.MaxPool2d(3, 2, 1))
        reached = 4
    halves: tuple[list[nn.Module], list[nn.Module]] = (stem, [])
    large = channels
    for stage, blocks in enumerate(draw.split(spec.depth, 4)):
        filters = draw.channels(spec.width * (4 if kind == "bottleneck" else 1) * growth**stage)
        halving = stage > 0 or not pooled
        stride = 2 if halving and reached < wanted else 1
        reached *= stride
        if halving and stride == 1:
            dilation *= 2
        for step in (stride, *[1] * (blocks - 1)):
            halves[stage > 0].append(_block(kind, channels, filters, step, dilation, act, excited=excited))
            channels = filters
        if stage == 0:
            large = channels
    made = draw.pick((64, 96, 128, 256), (0.2, 0.2, 0.3, 0.3))
    context = _context(draw, channels, made, -(-spec.side // reached), act)
    classes = draw.pick((2, 8, 19, 21, 60, 150), (0.1, 0.1, 0.25, 0.35, 0.1, 0.1))
    beside: nn.Module | None = None
    if draw.chance(0.4):
        narrow = draw.pick((24, 48))
        beside, made = ConvUnit(large, narrow, 1, act=act), made + narrow
    last: list[nn.Module] = [nn.Conv2d(made, classes, 1)]
    if draw.chance(0.6):
        inner = draw.pick((64, 128))
        last = [_dilated(made, inner, 1, act, separable=draw.chance(0.4)), nn.Conv2d(inner, classes, 1)]
    if draw.chance(0.2):
        last.append(nn.Softmax(1))
    return Segmenter(nn.Sequential(*halves[0]), nn.Sequential(*halves[1]), context, beside, nn.Sequential(*last))
