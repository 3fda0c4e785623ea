"""Networks whose blocks mix the places of a map in ways that came after attention: cheaper, or of channels, or gated.

What their graphs have in common is that channels are taken apart unevenly, that products are over channels or tokens of
every head, and that maxima, norms and sums go over other dims than the last.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit, Head, in_parts
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.hybrid import to_image, to_rows


class Separable(nn.Module):
    """Weigh the places of every patch's pixel by one score each (Mehta and Rastegari 2022, arXiv:2206.02680)."""

    def __init__(self, channels: int, patch: int) -> None:
        """Keep the number of channels; sides are multiples of `patch`."""
        super().__init__()
        self.channels, self.patch = channels, patch
        self.norm = nn.GroupNorm(1, channels)
        self.qkv, self.out = nn.Conv2d(channels, 1 + 2 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x channels x height x width."""
        batch, channels, height, width = x.shape
        size, rows, columns = self.patch, height // self.patch, width // self.patch
        y = x.reshape(batch, channels, rows, size, columns, size).permute(0, 1, 3, 5, 2, 4)
        y = y.reshape(batch, channels, size * size, rows * columns)
        query, key, value = torch.split(self.qkv(self.norm(y)), [1, self.channels, self.channels], dim=1)
        context = (key * query.softmax(dim=-1)).sum(dim=-1, keepdim=True)
        y = y + self.out(functional.relu(value) * context.expand_as(value))
        y = y.reshape(batch, channels, size, size, rows, columns).permute(0, 1, 4, 2, 5, 3)
        output: Tensor = y.reshape(batch, channels, height, width)
        return output


class GatedConvolution(nn.Module):
    """Gate channels of which a part was convolved, channels last (Yu and Wang 2024, arXiv:2405.07992)."""

    def __init__(self, channels: int, kernel: int, ratio: float) -> None:
        """Keep the number of channels."""
        super().__init__()
        hidden = int(ratio * channels)
        self.sizes = [hidden, hidden - channels, channels]
        self.norm, self.first = nn.LayerNorm(channels), nn.Linear(channels, 2 * hidden)
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.second = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x channels x height x width."""
        gate, kept, convolved = torch.split(self.first(self.norm(x.permute(0, 2, 3, 1))), self.sizes, dim=-1)
        convolved = self.conv(convolved.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = self.second(functional.gelu(gate) * torch.cat((kept, convolved), dim=-1))
        output: Tensor = x + y.permute(0, 3, 1, 2)
        return output


class OfHeads(nn.Module):
    """Attention over tokens, in one of the forms that are cheaper, or of channels.

    `channels`: those of a head attend to each other (El-Nouby et al. 2021, arXiv:2106.09681); `linear`: keys meet
    values first, rectified (Cai et al. 2022, arXiv:2205.14756); `cosine`: of normed queries and keys (Liu et al. 2021,
    arXiv:2111.09883); `largest`: queries are the largest of every four tokens (Ryali et al. 2023, arXiv:2306.00989).
    """

    def __init__(self, channels: int, heads: int, form: str) -> None:
        """Keep the number of channels, but of tokens a fourth where queries are the `largest`."""
        super().__init__()
        self.heads, self.form, self.width = heads, form, channels // heads
        self.norm = nn.LayerNorm(channels)
        self.qkv, self.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        self.scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x channels x height x width."""
        batch, channels, height, width = x.shape
        tokens = height * width
        rows = to_rows(x)
        qkv = self.qkv(self.norm(rows)).reshape(batch, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.form == "channels":
            query, key, value = (one.transpose(-2, -1) for one in (query, key, value))
            query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
            y = ((query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1) @ value).permute(0, 3, 1, 2)
            return x + to_image(self.proj(y.reshape(batch, tokens, channels)), (height, width))
        if self.form == "linear":
            query, key = functional.relu(query), functional.relu(key)
            y = query @ (key.transpose(-2, -1) @ functional.pad(value, (0, 1), value=1.0))
            y = y[..., :-1] / (y[..., -1:] + 1e-5)
        elif self.form == "cosine":
            query, key = functional.normalize(query, dim=-1), functional.normalize(key, dim=-1)
            y = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1) @ value
        else:
            query = query.reshape(batch, self.heads, 4, tokens // 4, self.width).amax(dim=2)
            y = (query * self.width**-0.5 @ key.transpose(-2, -1)).softmax(dim=-1) @ value
            rows = rows.reshape(batch, 4, tokens // 4, channels).amax(dim=1)
            height, width = height // 2, width // 2
        y = y.transpose(1, 2).reshape(batch, y.shape[2], channels)
        return to_image(rows + self.proj(y), (height, width))


class Modulated(nn.Module):
    """Multiply a map by what it looks like from ever farther away (Yang et al. 2022, arXiv:2203.11926)."""

    def __init__(self, channels: int, levels: int, kernel: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.sizes = [channels, channels, levels + 1]
        self.norm = nn.GroupNorm(1, channels)
        self.first = nn.Conv2d(channels, sum(self.sizes), 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, kernel + 2 * level, padding=kernel // 2 + level, groups=channels, bias=False)
            for level in range(levels)
        )
        self.look, self.out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x channels x height x width."""
        query, context, gates = torch.split(self.first(self.norm(x)), self.sizes, dim=1)
        seen = []
        for level, conv in enumerate(self.convs):
            context = functional.gelu(conv(context))
            seen.append(context * gates[:, level : level + 1])
        whole = functional.gelu(context.mean((2, 3), keepdim=True))
        seen.append(whole * gates[:, len(self.convs) :])
        output: Tensor = x + self.out(query * self.look(functools.reduce(torch.add, seen)))
        return output


class Parted(nn.Module):
    """Widen and narrow parts of the channels by themselves, and mix their places by kernels of several sizes."""

    def __init__(self, channels: int, parts: int, ratio: int, act: str) -> None:
        """Keep the number of channels, a multiple of `parts` (Tan and Le 2019, arXiv:1907.09595)."""
        super().__init__()
        self.own = own = channels // parts
        self.wide = wide = ratio * channels // parts
        self.widen = nn.ModuleList(nn.Conv2d(own, wide, 1, bias=False) for _ in range(parts))
        self.convs = nn.ModuleList(
            nn.Conv2d(wide, wide, 3 + 2 * part, padding=1 + part, groups=wide, bias=False) for part in range(parts)
        )
        self.narrow = nn.ModuleList(nn.Conv2d(wide, own, 1, bias=False) for _ in range(parts))
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in (wide * parts, wide * parts, channels))
        self.act = nn.ReLU() if act == "relu" else nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x channels x height x width."""
        y = self.act(self.norms[0](in_parts(x, self.own, self.widen)))
        y = self.act(self.norms[1](in_parts(y, self.wide, self.convs)))
        output: Tensor = x + self.norms[2](in_parts(y, self.wide, self.narrow))
        return output


class Wide(nn.Module):
    """Two 1x1 convolutions with an activation between, beside a shortcut."""

    def __init__(self, channels: int, ratio: int, act: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.norm, self.first = nn.BatchNorm2d(channels), nn.Conv2d(channels, ratio * channels, 1)
        self.act: nn.Module = nn.GELU() if act == "gelu" else nn.SiLU()
        self.second = nn.Conv2d(ratio * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x channels x height x width."""
        output: Tensor = x + self.second(self.act(self.first(self.norm(x))))
        return output


def _mixing(draw: Choices, channels: int, side: int) -> tuple[nn.Module, int]:
    """Return a block that keeps the channels of a map, and the map's side behind it."""
    tokens = side * side
    width = draw.pick([size for size in (8, 10, 16, 20, 24, 32, 48, 64) if channels % size == 0] or [channels])
    form = draw.pick(("channels", "linear", "cosine", "largest"))
    if form == "largest" and (side % 2 or side < 8):
        form = "channels"
    # All pairs of tokens grow with their square.
    form = "linear" if tokens > 1024 and form in ("cosine", "largest") else form
    patch = draw.pick([size for size in (2, 4) if side % size == 0] or [1])
    kernel, levels, ratio = draw.pick((3, 5, 7)), draw.pick((2, 3)), draw.pick((2, 3, 4, 6))
    parts = draw.pick([count for count in (2, 3, 4) if channels % count == 0])
    made: dict[str, Callable[[], nn.Module]] = {
        "separable": lambda: Separable(channels, patch),
        "gated": lambda: GatedConvolution(channels, kernel, draw.pick((1.5, 8 / 3))),
        "heads": lambda: OfHeads(channels, channels // width, form),
        "modulated": lambda: Modulated(channels, levels, kernel),
        "parted": lambda: Parted(channels, parts, ratio, draw.pick(("relu", "silu"))),
    }
    kind = draw.pick(tuple(made), (1.2, 1.2, 2.4, 1.0, 1.0))
    return made[kind](), side // 2 if kind == "heads" and form == "largest" else side


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("mixer", spec.variant)
    # Channels are even, as parts of them are asked for; now and then of ten, as in restorers of images.
    unit = draw.pick((8, 10, 12, 16, 32), (0.35, 0.15, 0.15, 0.2, 0.15))
    growth, patch = draw.between(1.3, 2.0), draw.pick((4, 8), (0.7, 0.3))
    channels = max(2 * unit, round(spec.width / unit) * unit)
    side = spec.side // patch
    stem: nn.Module = ConvUnit(3, channels, patch, stride=patch, padding=0)
    if draw.chance(0.5):
        stem = nn.Sequential(
            ConvUnit(3, channels // 2, 3, stride=2, act="silu"), ConvUnit(channels // 2, channels, 3, stride=patch // 2)
        )
    parts: list[nn.Module] = [stem]
    for stage, blocks in enumerate(draw.split(spec.depth, 3)):
        if stage and side >= 8 and side % 2 == 0:
            filters = max(channels, round(spec.width * growth**stage / unit) * unit)
            parts.append(ConvUnit(channels, filters, 2, stride=2, padding=0, act="none"))
            channels, side = filters, side // 2
        for _ in range(blocks):
            block, side = _mixing(draw, channels, side)
            parts.append(block)
            if draw.chance(0.6):
                parts.append(Wide(channels, draw.pick((2, 3, 4)), draw.pick(("gelu", "silu"))))
    return nn.Sequential(*parts, Head(channels, spec.classes, mean=draw.chance(0.5)))
