"""Networks of large depthwise convolutions, layer norms over channels and pointwise layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class ChannelNorm(nn.LayerNorm):
    """Normalise over the channels of batch x channels x height x width."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the norm, channels last."""
        x = functional.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class LastBlock(nn.Module):
    """Depthwise convolution, then norm and two linear layers with channels last, scaled, plus a shortcut."""

    def __init__(self, channels: int, *, kernel: int, ratio: float, act: str, scaled: bool) -> None:
        """Keep the number of channels."""
        super().__init__()
        hidden = int(channels * ratio)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, hidden)
        self.act = activation(act)
        self.project = nn.Linear(hidden, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(self.act(self.expand(y)))
        if self.scale is not None:
            y = self.scale * y
        output: Tensor = x + y.permute(0, 3, 1, 2)
        return output


class FirstBlock(nn.Module):
    """Depthwise convolution, batch norm and two 1x1 convolutions, channels first, plus shortcuts."""

    def __init__(self, channels: int, *, kernel: int, ratio: float, act: str, scaled: bool) -> None:
        """Keep the number of channels; `scaled` adds a shortcut around the depthwise convolution as well."""
        super().__init__()
        hidden = int(channels * ratio)
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.act = activation(act)
        self.project = nn.Conv2d(hidden, channels, 1)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.norm(self.depthwise(x))
        if self.scaled:
            x = x + y
            y = x
        output: Tensor = x + self.project(self.act(self.expand(y)))
        return output


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("largekernel", spec.variant)
    last = draw.chance(0.7)
    kernel = draw.pick((5, 7, 9, 11, 13), (0.2, 0.45, 0.2, 0.1, 0.05))
    act = draw.pick(("gelu", "relu", "silu"), (0.75, 0.15, 0.1))
    ratio = draw.pick((2.0, 3.0, 4.0), (0.2, 0.2, 0.6))
    scaled = draw.chance(0.6)
    patch = draw.pick((4, 2), (0.8, 0.2))
    growth = draw.between(1.6, 2.1)
    norm: type[nn.Module] = ChannelNorm if last else nn.BatchNorm2d
    channels = draw.channels(spec.width)
    parts: list[nn.Module] = [nn.Conv2d(3, channels, patch, stride=patch), norm(channels)]
    block = LastBlock if last else FirstBlock
    for stage, blocks in enumerate(draw.split(spec.depth, 4)):
        if stage:
            filters = draw.channels(spec.width * growth**stage)
            parts += [norm(channels), nn.Conv2d(channels, filters, 2, stride=2)]
            channels = filters
        parts += [block(channels, kernel=kernel, ratio=ratio, act=act, scaled=scaled) for _ in range(blocks)]
    parts += [nn.AdaptiveAvgPool2d(1), ChannelNorm(channels), nn.Flatten(1), nn.Linear(channels, spec.classes)]
    return nn.Sequential(*parts)
