"""Transformers whose attention stays within windows, shifted in every other layer, with patches merged in between."""

import torch
from torch import Tensor, nn

from latmod.families.blocks import activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class WindowAttention(nn.Module):
    """Attention within windows of side x side tokens of batch x height x width x channels."""

    def __init__(self, channels: int, heads: int, *, window: int, shift: int, version: int) -> None:
        """Keep the number of channels; version 2 compares by the cosine and norms afterwards (arXiv:2111.09883)."""
        super().__init__()
        self.heads, self.window, self.shift, self.version = heads, window, shift, version
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        # Exporters compute this from a table at load time, or engines fold it: one tensor per layer either way.
        self.bias = nn.Parameter(torch.zeros(1, heads, window * window, window * window))
        self.scale = nn.Parameter(torch.ones(heads, 1, 1)) if version == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Run attention in every window."""
        batch, height, width, channels = x.shape
        side, size = self.window, channels // self.heads
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        rows, columns = height // side, width // side
        x = x.view(batch, rows, side, columns, side, channels).permute(0, 1, 3, 2, 4, 5)
        x = x.reshape(batch * rows * columns, side * side, channels)
        qkv = self.qkv(x).reshape(x.shape[0], side * side, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if self.scale is not None:
            query = torch.nn.functional.normalize(query, dim=-1)
            key = torch.nn.functional.normalize(key, dim=-1)
            scores = query @ key.transpose(-2, -1) * self.scale
        else:
            scores = (query * size**-0.5) @ key.transpose(-2, -1)
        scores = scores + self.bias
        y = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(x.shape[0], side * side, channels)
        y = self.proj(y).view(batch, rows, columns, side, side, channels).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(batch, height, width, channels)
        if self.shift:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        output: Tensor = y
        return output


class WindowLayer(nn.Module):
    """Window attention and two linear layers, each with a norm and a shortcut."""

    def __init__(self, channels: int, attention: WindowAttention, *, ratio: float, act: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        hidden = int(channels * ratio)
        self.attention, self.after = attention, attention.version == 2
        self.first, self.second = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), activation(act), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        if self.after:
            x = x + self.first(self.attention(x))
            after: Tensor = x + self.second(self.mlp(x))
            return after
        x = x + self.attention(self.first(x))
        output: Tensor = x + self.mlp(self.second(x))
        return output


class Merge(nn.Module):
    """Join each 2 x 2 patches, of batch x height x width x channels, into one of twice the channels."""

    def __init__(self, channels: int, *, after: bool) -> None:
        """Norm before the reduction, or after it."""
        super().__init__()
        self.after = after
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels if after else 4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the merge."""
        corners = [x[..., row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        x = torch.cat(corners, -1)
        output: Tensor = self.norm(self.reduction(x)) if self.after else self.reduction(self.norm(x))
        return output


class WindowTransformer(nn.Module):
    """Patches, stages of window layers, the mean over all of the last map, a linear layer."""

    def __init__(self, stem: nn.Module, layers: nn.Sequential, *, first: int, last: int, classes: int) -> None:
        """Take `stem`, which maps images to batch x channels x height x width."""
        super().__init__()
        self.stem, self.enter, self.layers = stem, nn.LayerNorm(first), layers
        self.norm, self.head = nn.LayerNorm(last), nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.norm(self.layers(self.enter(self.stem(x).permute(0, 2, 3, 1))))
        x = torch.flatten(nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1), 1)
        logits: Tensor = self.head(x)
        return logits


class Cut(nn.Module):
    """Cut an image to its first rows and columns."""

    def __init__(self, side: int) -> None:
        """Keep side x side pixels."""
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Cut."""
        return x[:, :, : self.side, : self.side]


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec; the image is cut to whole windows where its side has no whole number of them."""
    draw = Choices("windowed", spec.variant)
    version = draw.pick((1, 2), (0.75, 0.25))
    size = draw.pick((16, 24, 32), (0.2, 0.15, 0.65))
    act = draw.pick(("gelu", "relu"), (0.9, 0.1))
    ratio = draw.pick((2.0, 3.0, 4.0), (0.15, 0.15, 0.7))
    stages = 4 if spec.side >= 128 else 3
    patch = 4 if spec.side >= 96 else 2
    last = spec.side // (patch * 2 ** (stages - 1))
    window = draw.pick([number for number in range(4, 13) if last % number == 0] or [last])
    heads = max(1, round(spec.width / size))
    channels = first = heads * size
    tokens = last * 2 ** (stages - 1)
    stem: nn.Module = nn.Conv2d(3, channels, patch, stride=patch)
    if tokens * patch != spec.side:
        stem = nn.Sequential(Cut(tokens * patch), stem)
    parts: list[nn.Module] = []
    for stage, blocks in enumerate(draw.split(spec.depth, stages)):
        if stage:
            parts.append(Merge(channels, after=version == 2))
            channels, heads = 2 * channels, 2 * heads
            tokens //= 2
        for position in range(blocks):
            shift = window // 2 if position % 2 and tokens > window else 0
            attention = WindowAttention(channels, heads, window=window, shift=shift, version=version)
            parts.append(WindowLayer(channels, attention, ratio=ratio, act=act))
    return WindowTransformer(stem, nn.Sequential(*parts), first=first, last=channels, classes=spec.classes)
