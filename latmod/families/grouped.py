"""Residual networks with grouped convolutions, with or without squeeze-excite, over groups of 4 to 64 channels."""

from torch import nn

from latmod.families.blocks import ConvUnit, Head, Residual, SqueezeExcite, projection
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class GroupedBottleneck(Residual):
    """A 1x1, a grouped 3x3 and a 1x1 convolution and a shortcut."""

    def __init__(
        self, channels: int, filters: int, *, inner: int, groups: int, stride: int, act: str, squeezed: int
    ) -> None:
        """Map `channels` to `filters` through `inner`."""
        parts: list[nn.Module] = [
            ConvUnit(channels, inner, 1, act=act),
            ConvUnit(inner, inner, 3, stride=stride, groups=groups, act=act),
        ]
        if squeezed:
            parts.append(SqueezeExcite(inner, squeezed))
        parts.append(ConvUnit(inner, filters, 1, act="none"))
        super().__init__(nn.Sequential(*parts), projection(channels, filters, stride), act)


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("grouped", spec.variant)
    act = draw.pick(("relu", "silu"), (0.85, 0.15))
    group_width = draw.pick((4, 8, 16, 24, 32, 48, 64), (0.12, 0.25, 0.22, 0.12, 0.12, 0.09, 0.08))
    bottleneck = draw.pick((1.0, 2.0, 0.5), (0.5, 0.3, 0.2))
    excite = draw.chance(0.4)
    growth = draw.between(1.6, 2.4)
    stem = draw.pick((32, 48, 64))
    if draw.chance(0.5):
        parts: list[nn.Module] = [ConvUnit(3, stem, 3, stride=2, act=act)]
    else:
        parts = [ConvUnit(3, stem, 7, stride=2, act=act), nn.MaxPool2d(3, 2, 1)]
    channels = stem
    for stage, blocks in enumerate(draw.split(spec.depth, 4)):
        # Inner channels are whole groups, in a number that the channels of the stage allow.
        inner = max(1, round(spec.width * growth**stage / group_width)) * group_width
        filters = max(8, int(inner * bottleneck) // 8 * 8)
        for position in range(blocks):
            stride = 2 if position == 0 and (stage > 0 or len(parts) == 1) else 1
            parts.append(
                GroupedBottleneck(
                    channels,
                    filters,
                    inner=inner,
                    groups=inner // group_width,
                    stride=stride,
                    act=act,
                    squeezed=max(8, channels // 4) if excite else 0,
                )
            )
            channels = filters
    parts.append(Head(channels, spec.classes))
    return nn.Sequential(*parts)
