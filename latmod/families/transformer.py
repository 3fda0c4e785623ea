"""Vision transformers: patches, and attention in the forms that networks write and exporters keep."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit, activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


class FusedAttention(nn.Module):
    """One linear layer makes queries, keys and values, batch first."""

    def __init__(self, channels: int, heads: int, *, builtin: bool) -> None:
        """Keep the number of channels; `builtin` leaves the product to torch's own function."""
        super().__init__()
        self.heads, self.builtin = heads, builtin
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run attention over batch x tokens x channels."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        if self.builtin:
            y = functional.scaled_dot_product_attention(query, key, value)
        else:
            scores = (query * (channels // self.heads) ** -0.5) @ key.transpose(-2, -1)
            y = scores.softmax(dim=-1) @ value
        output: Tensor = self.proj(y.transpose(1, 2).reshape(batch, tokens, channels))
        return output


class SplitAttention(nn.Module):
    """Three linear layers, the scores divided by a root, as in language models."""

    def __init__(self, channels: int, heads: int, *, builtin: bool) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.heads, self.builtin = heads, builtin
        self.query, self.key = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.value, self.proj = nn.Linear(channels, channels), nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run attention over batch x tokens x channels."""
        batch, tokens, channels = x.shape
        shape = (batch, tokens, self.heads, channels // self.heads)
        query = self.query(x).view(shape).permute(0, 2, 1, 3)
        key = self.key(x).view(shape).permute(0, 2, 1, 3)
        value = self.value(x).view(shape).permute(0, 2, 1, 3)
        if self.builtin:
            y = functional.scaled_dot_product_attention(query, key, value)
        else:
            scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(channels // self.heads)
            y = torch.matmul(functional.softmax(scores, dim=-1), value)
        output: Tensor = self.proj(y.permute(0, 2, 1, 3).reshape(batch, tokens, channels))
        return output


class PackedAttention(nn.Module):
    """Tokens first, heads folded into the batch, as torch's MultiheadAttention writes it out."""

    def __init__(self, channels: int, heads: int, *, builtin: bool) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.heads, self.builtin = heads, builtin
        self.weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.bias = nn.Parameter(torch.empty(3 * channels))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run attention over batch x tokens x channels."""
        x = x.transpose(1, 0)
        tokens, batch, channels = x.shape
        width = channels // self.heads
        packed = functional.linear(x, self.weight, self.bias)
        packed = torch.unflatten(packed, -1, (3, channels)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        query, key, value = packed[0], packed[1], packed[2]
        query = query.view(tokens, batch * self.heads, width).transpose(0, 1).view(batch, self.heads, tokens, width)
        key = key.view(tokens, batch * self.heads, width).transpose(0, 1).view(batch, self.heads, tokens, width)
        value = value.view(tokens, batch * self.heads, width).transpose(0, 1).view(batch, self.heads, tokens, width)
        y = functional.scaled_dot_product_attention(query, key, value)
        y = y.permute(2, 0, 1, 3).contiguous().view(batch * tokens, channels)
        output: Tensor = self.proj(y).view(tokens, batch, channels)
        return output.transpose(1, 0)


class Encoder(nn.Module):
    """Attention and two linear layers, each after its norm and with a shortcut."""

    def __init__(self, channels: int, attention: nn.Module, *, hidden: int, act: str, scaled: bool) -> None:
        """Keep the number of channels; `scaled` weighs what is added by a learnt vector."""
        super().__init__()
        self.first, self.second = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attention = attention
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden), activation(act), nn.Dropout(0.1), nn.Linear(hidden, channels)
        )
        self.scales = nn.ParameterList([torch.full((channels,), 0.1) for _ in range(2)]) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        """Run the layer."""
        if self.scales is not None:
            x = x + self.scales[0] * self.attention(self.first(x))
            scaled: Tensor = x + self.scales[1] * self.mlp(self.second(x))
            return scaled
        x = x + self.attention(self.first(x))
        output: Tensor = x + self.mlp(self.second(x))
        return output


class VisionTransformer(nn.Module):
    """Patches, positions, encoder layers, and a linear layer on the class token or on the mean."""

    def __init__(
        self, stem: nn.Module, layers: nn.Sequential, *, channels: int, tokens: int, classes: int, token: bool
    ):
        """Take `stem`, which maps images to batch x channels x height x width."""
        super().__init__()
        self.stem, self.layers = stem, layers
        self.token = nn.Parameter(torch.zeros(1, 1, channels)) if token else None
        self.position = nn.Parameter(torch.zeros(1, tokens + token, channels))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.stem(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm(self.layers(x + self.position))
        logits: Tensor = self.head(x[:, 0] if self.token is not None else x.mean(dim=1))
        return logits


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("transformer", spec.variant)
    patch = draw.pick((8, 14, 16, 32), (0.1, 0.15, 0.6, 0.15))
    if (spec.side // patch) ** 2 > 800:
        patch = 16 if (spec.side // 16) ** 2 <= 800 else 32
    width = draw.pick((32, 48, 64), (0.3, 0.1, 0.6))
    heads = max(1, round(spec.width / width))
    channels = heads * width
    kind = draw.pick((FusedAttention, SplitAttention, PackedAttention), (0.35, 0.25, 0.4))
    builtin = draw.chance(0.4)
    act = draw.pick(("gelu", "relu", "silu"), (0.85, 0.1, 0.05))
    hidden = int(channels * draw.pick((2.0, 3.0, 4.0), (0.15, 0.15, 0.7)))
    scaled = draw.chance(0.2)
    tokens = (spec.side // patch) ** 2
    if patch == 16 and draw.chance(0.2):
        widths = [max(8, channels // share) for share in (8, 4, 2)]
        sizes = [3, *widths, channels]
        units: list[nn.Module] = [ConvUnit(a, b, 3, stride=2) for a, b in pairwise(sizes)]
        stem: nn.Module = nn.Sequential(*units)
        tokens = math.ceil(spec.side / 16) ** 2
    else:
        stem = nn.Conv2d(3, channels, patch, stride=patch)
    layers = [
        Encoder(channels, kind(channels, heads, builtin=builtin), hidden=hidden, act=act, scaled=scaled)
        for _ in range(spec.depth)
    ]
    return VisionTransformer(
        stem,
        nn.Sequential(*layers),
        channels=channels,
        tokens=tokens,
        classes=spec.classes,
        token=draw.chance(0.7),
    )
