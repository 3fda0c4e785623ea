"""Networks over sound and other series: convolutions along time, recurrent layers, and what makes frames a wave again.

The input is a spectrum, batch x bands x frames, or the wave that it is read as. The number of classes is drawn.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import Added, ConvUnit, activation
from latmod.families.choices import Choices
from latmod.families.generated import BANDS, GeneratedSpec
from latmod.families.recurrent import Recurrent


class TimeUnit(nn.Sequential):
    """A convolution along time, a norm and an activation; padding keeps the frames."""

    def __init__(
        self, channels: int, filters: int, kernel: int, act: str, *, norm: str = "batch", stride: int = 1,
        groups: int = 1, dilation: int = 1,
    ) -> None:  # fmt: skip
        """Map `channels` to `filters`; `norm` is `batch`, `group` (over all channels) or `none`."""
        padding = dilation * (kernel - 1) // 2
        parts: list[nn.Module] = [nn.Conv1d(channels, filters, kernel, stride, padding, dilation, groups)]
        if norm != "none":
            parts.append(nn.BatchNorm1d(filters) if norm == "batch" else nn.GroupNorm(1, filters))
        if act != "none":
            parts.append(activation(act))
        super().__init__(*parts)


class Gated(nn.Module):
    """A dilated convolution, half of it the gate of the other, and a shortcut (van den Oord 2016, arXiv:1609.03499)."""

    def __init__(self, channels: int, kernel: int, dilation: int, *, tanh: bool) -> None:
        """Keep the number of channels; without `tanh` the half is taken as it is (Dauphin 2016, arXiv:1612.08083)."""
        super().__init__()
        self.tanh = tanh
        self.conv = TimeUnit(channels, 2 * channels, kernel, "none", norm="none", dilation=dilation)
        self.last = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        value, gate = self.conv(x).chunk(2, 1)
        output: Tensor = x + self.last((torch.tanh(value) if self.tanh else value) * torch.sigmoid(gate))
        return output


class Normed(nn.Module):
    """A layer norm over the channels of batch x channels x frames."""

    def __init__(self, channels: int) -> None:
        """Keep the shape."""
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Turn the channels to the end and back."""
        output: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return output


class Wave(nn.Module):
    """Read the spectrum as one wave, and convolve that, ever fewer samples a second."""

    def __init__(self, filters: int, kernels: list[int], act: str, norm: str) -> None:
        """Make `filters` channels; all convolutions step by half their kernels."""
        super().__init__()
        sizes = [1, *[filters] * len(kernels)]
        self.convs = nn.Sequential(
            *(
                TimeUnit(entering, filters, kernel, act, stride=kernel // 2, norm=norm)
                for entering, kernel in zip(sizes, kernels, strict=False)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return batch x filters x fewer frames."""
        output: Tensor = self.convs(x.transpose(1, 2).reshape(x.shape[0], 1, -1))
        return output


class Picture(nn.Module):
    """See the spectrum as an image, of which each column becomes a frame (Shi et al. 2015, arXiv:1507.05717)."""

    def __init__(self, filters: int, act: str, *, pooled: bool) -> None:
        """Make `filters` maps, a quarter as high."""
        super().__init__()
        stride = 1 if pooled else 2
        parts: list[nn.Module] = []
        for entering in (1, filters):
            parts.append(ConvUnit(entering, filters, 3, stride=stride, act=act))
            parts += [nn.MaxPool2d(2)] if pooled else []
        self.convs = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Return batch x (filters x quarter of the bands) x quarter of the frames."""
        maps: Tensor = self.convs(x.unsqueeze(1))
        return maps.flatten(1, 2)


class Frames(nn.Module):
    """Classify the whole by the mean of its frames, or each frame."""

    def __init__(self, channels: int, classes: int, *, each: bool) -> None:
        """Map `channels` to `classes`."""
        super().__init__()
        self.each, self.head = each, nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return batch x classes, or batch x frames x classes."""
        logits: Tensor = self.head(x.transpose(1, 2) if self.each else x.mean(2))
        return functional.log_softmax(logits, dim=-1) if self.each else logits


def _stem(draw: Choices, channels: int, act: str) -> tuple[nn.Module, int, str]:
    """Return what reads the input, the channels that it makes, and its form."""
    form = draw.pick(("spectrum", "wave", "picture"), (0.5, 0.25, 0.25))
    if form == "wave":
        kernels = draw.pick(([10, 8, 4, 4], [10, 4, 4, 4, 4], [16], [32]))
        filters = min(channels, 64 if kernels[0] == 10 else 256)
        return Wave(filters, kernels, act, draw.pick(("batch", "group", "none"))), filters, form
    if form == "picture":
        filters = draw.channels(min(channels, 48))
        return Picture(filters, act, pooled=draw.chance(0.5)), filters * (BANDS // 4), form
    return TimeUnit(BANDS, channels, draw.pick((3, 5, 11)), act, stride=draw.pick((1, 2))), channels, form


def _blocks(draw: Choices, form: str, channels: int, depth: int, act: str) -> list[nn.Module]:
    kernel, norm, groups = draw.pick((3, 5, 7)), draw.pick(("batch", "group"), (0.75, 0.25)), draw.pick((2, 4, 8))
    wide, tanh = draw.pick((9, 15, 31, 63)), draw.chance(0.7)
    made: list[nn.Module] = []
    for place in range(depth):
        if form == "dilated":
            made.append(Gated(channels, draw.pick((2, 3)) | 1, 2 ** (place % 5), tanh=tanh))
        elif form == "separable":
            deep = TimeUnit(channels, channels, wide, "none", norm="none", groups=channels)
            made.append(Added(deep, TimeUnit(channels, channels, 1, act, norm=norm)))
        elif form == "grouped":
            up, down = (TimeUnit(channels, channels, 1, one, norm="none", groups=groups) for one in (act, "none"))
            made += [Added(up, down), Normed(channels)]
        else:
            units = (TimeUnit(channels, channels, kernel, act, norm=norm) for _ in range(2))
            made.append(Added(*units))
    return made


def _longer(draw: Choices, channels: int, act: str) -> nn.Module:
    """Return what makes a wave of frames, by transposed convolutions (Kong et al. 2020, arXiv:2010.05646)."""
    parts: list[nn.Module] = []
    for factor in draw.pick(([4, 4, 2], [8, 2], [5, 4], [16])):
        filters = max(8, channels // 2)
        parts += [
            activation(act, in_place=False),
            nn.ConvTranspose1d(channels, filters, 2 * factor, factor, factor // 2),
        ]
        parts.append(Added(TimeUnit(filters, filters, 3, act, norm="none", dilation=draw.pick((1, 3)))))
        channels = filters
    return nn.Sequential(*parts, nn.Conv1d(channels, 1, 7, padding=3), nn.Tanh())


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("sequence", spec.variant)
    act, channels = draw.pick(("relu", "silu", "gelu", "leaky"), (0.5, 0.2, 0.15, 0.15)), -(-spec.width // 8) * 8
    form = draw.pick(("dilated", "separable", "grouped", "plain", "recurrent"), (0.2, 0.2, 0.15, 0.15, 0.3))
    stem, made, seen = _stem(draw, channels, act)
    parts = [stem]
    if form != "recurrent" and made != channels:
        parts.append(TimeUnit(made, channels, 1, act))
        made = channels
    if form == "recurrent" or draw.chance(0.35):
        layers, op, both = draw.pick((1, 2, 3)), draw.pick(("LSTM", "GRU"), (0.6, 0.4)), draw.chance(0.55)
        parts += _blocks(draw, form, made, spec.depth // 2, act) if form != "recurrent" else []
        parts.append(Recurrent(made, channels, layers, op, both=both))
        made = channels * (1 + both)
    else:
        parts += _blocks(draw, form, made, spec.depth, act)
    if seen != "wave" and form != "recurrent" and draw.chance(0.35):
        return nn.Sequential(*parts, _longer(draw, made, act))
    each = draw.chance(0.6)
    return nn.Sequential(*parts, Frames(made, draw.pick((10, 30, 64, 500)), each=each))
