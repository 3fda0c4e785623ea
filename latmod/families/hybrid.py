"""Hybrids: convolutions first, then rows of tokens that are still images: convolved, shrunk, mixed along either side.

Attention in the forms of the networks that came after the first transformers: queries, keys and values parted by one
operator, compared by their cosines, over channels instead of places, over a shrunken image, or from one token alone.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec

Size = tuple[int, int]


def to_image(rows: Tensor, size: Size) -> Tensor:
    """Turn batch x tokens x channels into batch x channels x height x width."""
    return rows.transpose(1, 2).reshape(rows.shape[0], -1, *size)


def to_rows(image: Tensor) -> Tensor:
    """Turn batch x channels x height x width into batch x tokens x channels."""
    return image.flatten(2).transpose(1, 2)


class RowAttention(nn.Module):
    """Attention whose queries, keys and values one product makes and one operator parts.

    `form` is `plain`, `normed` (compared by cosines, as Swin v2) or `across` (over channels, as XCiT).
    """

    def __init__(self, channels: int, heads: int, form: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.heads, self.form = heads, form
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Run attention over batch x tokens x channels."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        order = (2, 0, 3, 4, 1) if self.form == "across" else (2, 0, 3, 1, 4)
        query, key, value = qkv.permute(order).unbind(0)
        if self.form == "plain":
            scores = (query * (channels // self.heads) ** -0.5) @ key.transpose(-2, -1)
        else:
            query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
            scores = query @ key.transpose(-2, -1) * self.scale
        y = scores.softmax(dim=-1) @ value
        y = y.permute(0, 3, 1, 2) if self.form == "across" else y.transpose(1, 2)
        output: Tensor = self.proj(y.reshape(batch, tokens, channels))
        return output


class ShrunkAttention(nn.Module):
    """Attention to a shrunken image (Wang et al. 2021, arXiv:2102.12122)."""

    def __init__(self, channels: int, heads: int, size: Size, ratio: int) -> None:
        """Keep the number of channels; keys and values come from an image `ratio` times smaller."""
        super().__init__()
        self.heads, self.size = heads, size
        self.query, self.pair = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.shrink = nn.Conv2d(channels, channels, ratio, stride=ratio)
        self.norm, self.proj = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run attention over batch x tokens x channels."""
        batch, tokens, channels = x.shape
        width = channels // self.heads
        query = self.query(x).reshape(batch, tokens, self.heads, width).permute(0, 2, 1, 3)
        small = self.norm(to_rows(self.shrink(to_image(x, self.size))))
        key, value = self.pair(small).reshape(batch, -1, 2, self.heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((query @ key.transpose(-2, -1)) * width**-0.5).softmax(dim=-1) @ value
        output: Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, channels))
        return output


class TokenMix(nn.Module):
    """Two linear layers along the tokens (Tolstikhin et al. 2021, arXiv:2105.01601)."""

    def __init__(self, tokens: int, hidden: int) -> None:
        """Keep the number of tokens."""
        super().__init__()
        self.first, self.act, self.second = nn.Linear(tokens, hidden), nn.GELU(), nn.Linear(hidden, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """Mix."""
        output: Tensor = self.second(self.act(self.first(x.transpose(1, 2)))).transpose(1, 2)
        return output


class RowMlp(nn.Module):
    """Two linear layers; between them nothing, a depthwise convolution, a norm of responses, or a gate.

    `way` is `plain`, `convolved` (PVT v2), `responses` (ConvNeXt v2) or `gated` (gMLP, along the tokens).
    """

    def __init__(self, channels: int, hidden: int, size: Size, way: str, *, tanh: bool) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.size, self.way = size, way
        self.first, self.act = nn.Linear(channels, hidden), nn.GELU("tanh" if tanh else "none")
        kept = hidden // 2 if way == "gated" else hidden
        if way == "convolved":
            self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        elif way == "responses":
            self.weight, self.bias = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.zeros(hidden))
        elif way == "gated":
            self.norm, self.along = nn.LayerNorm(kept), nn.Linear(math.prod(size), math.prod(size))
        self.second = nn.Linear(kept, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers over batch x tokens x channels."""
        y = self.first(x)
        if self.way == "convolved":
            y = to_rows(self.conv(to_image(y, self.size)))
        y = self.act(y)
        if self.way == "responses":
            strength = y.norm(p=2, dim=1, keepdim=True)
            y = y + (y * (strength / (strength.mean(dim=-1, keepdim=True) + 1e-6)) * self.weight + self.bias)
        elif self.way == "gated":
            kept, gate = y.chunk(2, dim=-1)
            y = kept * self.along(self.norm(gate).transpose(1, 2)).transpose(1, 2)
        output: Tensor = self.second(y)
        return output


class NormedLinear(nn.Module):
    """A linear layer without a bias, and a batch norm over all tokens (Graham et al. 2021, arXiv:2104.01136)."""

    def __init__(self, channels: int, filters: int) -> None:
        """Map `channels` to `filters`."""
        super().__init__()
        self.linear, self.norm = nn.Linear(channels, filters, bias=False), nn.BatchNorm1d(filters)

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer over batch x tokens x channels."""
        y = self.linear(x)
        output: Tensor = self.norm(y.flatten(0, 1)).reshape_as(y)
        return output


class RowBlock(nn.Module):
    """A mixer along the tokens and one along the channels, with shortcuts; norms before, or in the linear layers."""

    def __init__(self, channels: int, mixer: nn.Module, mlp: nn.Module, *, normed: bool) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.mixer, self.mlp = mixer, mlp
        self.first = nn.LayerNorm(channels) if normed else nn.Identity()
        self.second = nn.LayerNorm(channels) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        x = x + self.mixer(self.first(x))
        output: Tensor = x + self.mlp(self.second(x))
        return output


class ClassAttention(nn.Module):
    """Attention of one token to all (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, channels: int, heads: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.heads, self.token = heads, nn.Parameter(torch.zeros(1, 1, channels))
        self.norm, self.query = nn.LayerNorm(channels), nn.Linear(channels, channels)
        self.key, self.value, self.proj = (nn.Linear(channels, channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return batch x channels."""
        rows = self.norm(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1))
        batch, tokens, channels = rows.shape
        shape = (batch, tokens, self.heads, channels // self.heads)
        query = self.query(rows[:, 0]).unsqueeze(1).reshape(batch, 1, *shape[2:]).permute(0, 2, 1, 3)
        key, value = (layer(rows).reshape(shape).permute(0, 2, 1, 3) for layer in (self.key, self.value))
        y = ((query * shape[3] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1) @ value
        output: Tensor = self.proj(y.transpose(1, 2).reshape(batch, channels))
        return output


class Hybrid(nn.Module):
    """A stem of convolutions, stages of row blocks with a convolution between, a token or the mean, a linear layer."""

    def __init__(self, stem: nn.Module, stages: list[nn.Sequential], downs: list[nn.Module], tail: nn.Module, last: int,
                 classes: int) -> None:  # fmt: skip
        """Take a convolution before each stage but the first."""
        super().__init__()
        self.stem, self.stages, self.downs = stem, nn.ModuleList(stages), nn.ModuleList(downs)
        self.tail, self.head = tail, nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stem(x)
        for place, stage in enumerate(self.stages):
            if place:
                x = self.downs[place - 1](x)
            size = x.shape[2:]
            x = stage(to_rows(x))
            if place < len(self.stages) - 1:
                x = to_image(x, (size[0], size[1]))
        pooled = self.tail(x) if isinstance(self.tail, ClassAttention) else self.tail(x).mean(dim=1)
        logits: Tensor = self.head(pooled)
        return logits


def _mixer(draw: Choices, channels: int, heads: int, size: Size) -> nn.Module:
    form = draw.pick(("plain", "normed", "across", "shrunk", "mixed"), (0.3, 0.15, 0.2, 0.2, 0.15))
    if form == "shrunk" and min(size) >= 8:
        return ShrunkAttention(channels, heads, size, draw.pick((2, 4)))
    if form == "mixed":
        return TokenMix(math.prod(size), max(8, int(math.prod(size) * draw.between(0.5, 2.0))))
    return RowAttention(channels, heads, form if form != "shrunk" else "plain")


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("hybrid", spec.variant)
    width = draw.pick((16, 32, 64), (0.25, 0.45, 0.3))
    heads = max(1, round(spec.width / width))
    channels = heads * width
    halvings = 3 if spec.side <= 256 else 4
    sizes = [3, *(max(8, channels >> (halvings - 1 - step)) for step in range(halvings))]
    act = draw.pick(("relu", "silu", "hardswish"), (0.6, 0.2, 0.2))
    stem: nn.Module = nn.Sequential(*(ConvUnit(a, b, 3, stride=2, act=act) for a, b in pairwise(sizes)))
    side = math.ceil(spec.side / 2**halvings)
    normed = draw.chance(0.75)
    stages: list[nn.Sequential] = []
    downs: list[nn.Module] = []
    for stage, blocks in enumerate(draw.split(spec.depth, 2)):
        if stage:
            downs.append(ConvUnit(channels, 2 * channels, 3, stride=2, act="none"))
            channels, heads, side = 2 * channels, 2 * heads, math.ceil(side / 2)
        size = (side, side)
        # As in a published network, all blocks of a stage are alike.
        state = draw.pick(("plain", "convolved", "responses", "gated"), (0.35, 0.3, 0.15, 0.2))
        hidden, tanh = int(channels * draw.pick((2.0, 4.0))), draw.chance(0.25)
        mixer = [_mixer(draw, channels, heads, size) for _ in range(blocks)]
        made: list[nn.Module] = []
        for one in mixer:
            if normed:
                mlp: nn.Module = RowMlp(channels, hidden, size, state, tanh=tanh)
            else:
                mlp = nn.Sequential(NormedLinear(channels, hidden), nn.Hardswish(), NormedLinear(hidden, channels))
            made.append(RowBlock(channels, one, mlp, normed=normed))
        stages.append(nn.Sequential(*made))
    tail: nn.Module = ClassAttention(channels, heads) if draw.chance(0.4) else nn.LayerNorm(channels)
    return Hybrid(stem, stages, downs, tail, channels, spec.classes)
