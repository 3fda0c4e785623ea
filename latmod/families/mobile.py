"""Mobile networks: inverted residuals, plain or fused, with or without squeeze-excite, in four activations."""

from torch import Tensor, nn

from latmod.families.blocks import ConvUnit, Head, SqueezeExcite
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class InvertedResidual(nn.Module):
    """Expand, convolve each channel (or, fused, all of them at once), project; a shortcut where shapes allow."""

    def __init__(
        self,
        channels: int,
        filters: int,
        *,
        expanded: int,
        kernel: int,
        stride: int,
        act: str,
        squeezed: int = 0,
        gate: str = "sigmoid",
        fused: bool = False,
    ) -> None:
        """Map `channels` to `filters` through `expanded`."""
        super().__init__()
        parts: list[nn.Module] = []
        if fused:
            parts.append(ConvUnit(channels, expanded, kernel, stride=stride, act=act))
        else:
            if expanded != channels:
                parts.append(ConvUnit(channels, expanded, 1, act=act))
            parts.append(ConvUnit(expanded, expanded, kernel, stride=stride, groups=expanded, act=act))
        if squeezed:
            parts.append(SqueezeExcite(expanded, squeezed, act="relu" if gate == "hardsigmoid" else act, gate=gate))
        parts.append(ConvUnit(expanded, filters, 1, act="none"))
        self.body = nn.Sequential(*parts)
        self.shortcut = stride == 1 and channels == filters

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y: Tensor = self.body(x)
        return x + y if self.shortcut else y


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("mobile", spec.variant)
    style = draw.pick(("relu6", "relu", "hardswish", "silu"), (0.25, 0.15, 0.25, 0.35))
    gate = "hardsigmoid" if style == "hardswish" else "sigmoid"
    excited = {"relu6": 0.1, "relu": 0.1, "hardswish": 0.6, "silu": 0.8}[style]
    stages = draw.pick((5, 6, 7), (0.4, 0.3, 0.3)) if spec.side >= 96 else 4
    growth = draw.between(1.3, 1.8)
    channels = draw.channels(max(8.0, spec.width * draw.between(0.8, 2.0)))
    act = style
    parts: list[nn.Module] = [ConvUnit(3, channels, 3, stride=2, act=act)]
    halved = 1
    fused_stages = draw.pick((0, 2, 3)) if style == "silu" else 0
    for stage, blocks in enumerate(draw.split(spec.depth, stages)):
        filters = draw.channels(spec.width * growth**stage)
        if style == "hardswish":
            act = "relu" if stage < stages // 2 else "hardswish"
        stride = 1 if stage == 0 or halved >= 5 or (stage > 3 and draw.chance(0.5)) else 2
        halved += stride == 2
        kernel = draw.pick((3, 5, 7), (0.58, 0.36, 0.06))
        ratio = 1.0 if stage == 0 and draw.chance(0.5) else draw.pick((1.5, 2, 3, 4, 6), (0.1, 0.15, 0.2, 0.25, 0.3))
        with_excite = draw.chance(excited)
        fused = stage < fused_stages
        for position in range(blocks):
            expanded = channels if ratio == 1.0 else draw.channels(channels * ratio)
            squeezed = draw.channels(max(8.0, (expanded if gate == "hardsigmoid" else channels) / 4))
            parts.append(
                InvertedResidual(
                    channels,
                    filters,
                    expanded=expanded,
                    kernel=3 if fused else kernel,
                    stride=stride if position == 0 else 1,
                    act=act,
                    squeezed=squeezed if with_excite and not fused else 0,
                    gate=gate,
                    fused=fused,
                )
            )
            channels = filters
    last = draw.channels(channels * draw.pick((3, 4, 6)))
    parts.append(ConvUnit(channels, last, 1, act=style))
    hidden = draw.channels(last * draw.between(0.8, 2.0)) if style == "hardswish" else 0
    parts.append(Head(last, spec.classes, hidden=hidden, act=style, mean=draw.chance(0.3)))
    return nn.Sequential(*parts)
