"""Stacks of re-parameterised blocks: parallel branches as in training, or merged into one convolution as deployed."""

from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Head, SqueezeExcite, activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class ParallelBlock(nn.Module):
    """Add a 3x3, a 1x1 and, where shapes allow, a norm of the input; then activate."""

    def __init__(self, channels: int, filters: int, *, stride: int, groups: int, act: str, squeezed: int) -> None:
        """Map `channels` to `filters`."""
        super().__init__()
        self.large = ConvUnit(channels, filters, 3, stride=stride, groups=groups, act="none")
        self.small = ConvUnit(channels, filters, 1, stride=stride, groups=groups, act="none")
        self.identity = nn.BatchNorm2d(channels) if stride == 1 and channels == filters else None
        self.excite = SqueezeExcite(filters, squeezed) if squeezed else nn.Identity()
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.large(x) + self.small(x)
        if self.identity is not None:
            y = y + self.identity(x)
        output: Tensor = self.act(self.excite(y))
        return output


class MergedBlock(nn.Module):
    """The same block after its branches were merged: one 3x3 convolution with a bias."""

    def __init__(self, channels: int, filters: int, *, stride: int, groups: int, act: str, squeezed: int) -> None:
        """Map `channels` to `filters`."""
        super().__init__()
        self.conv = nn.Conv2d(channels, filters, 3, stride=stride, padding=1, groups=groups)
        self.excite = SqueezeExcite(filters, squeezed) if squeezed else nn.Identity()
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        output: Tensor = self.act(self.excite(self.conv(x)))
        return output


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("reparam", spec.variant)
    block = MergedBlock if draw.chance(0.6) else ParallelBlock
    act = draw.pick(("relu", "silu"), (0.8, 0.2))
    groups = draw.pick((1, 1, 1, 2, 4))
    excite = draw.chance(0.15)
    growth = draw.between(1.5, 2.1)
    channels, parts = 3, list[nn.Module]()
    for stage, blocks in enumerate([1, *draw.split(spec.depth, 4)]):
        filters = draw.channels(spec.width * growth ** max(0, stage - 1))
        filters = max(8 * groups, filters // (8 * groups) * 8 * groups)
        for position in range(blocks):
            shared = groups if stage and position % 2 else 1
            parts.append(
                block(
                    channels,
                    filters,
                    stride=2 if position == 0 else 1,
                    groups=shared,
                    act=act,
                    squeezed=max(8, filters // 16) if excite and stage else 0,
                )
            )
            channels = filters
    parts.append(Head(channels, spec.classes))
    return nn.Sequential(*parts)
