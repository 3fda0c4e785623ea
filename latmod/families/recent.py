"""Networks of what others lack: forms that the newer exporter writes, and blocks of networks since about 2020.

GELUs halved in each of three places, products without a bias, softmaxes over tokens, means and norms over an image,
tokens taken apart and turned, tokens that are convolved as images, maps made larger, kernels of one row.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit, Head
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.hybrid import to_image, to_rows
from latmod.families.maps import enlarged

_PLACES = ("input", "sum", "product")


class Gelu(nn.Module):
    """Compute a GELU in steps, so that the graph says where the half is multiplied in; torch's newer exporter: `sum`.

    A graph has no other trace of it: in PyTorch it is one operator, and is measured as such.
    """

    def __init__(self, halved: str) -> None:
        """Multiply the `input`, the `sum` or the `product` by 0.5."""
        super().__init__()
        self.halved = halved

    def forward(self, x: Tensor) -> Tensor:
        """Return as much."""
        total = torch.erf(x / 2.0**0.5) + 1.0
        if self.halved == "input":
            return 0.5 * x * total
        return x * (0.5 * total) if self.halved == "sum" else x * total * 0.5


class Wide(nn.Module):
    """Two products with a GELU between, over the channels of each token or over all tokens of each channel."""

    def __init__(self, size: int, hidden: int, halved: str, *, bias: bool, turned: bool) -> None:
        """Keep the size; `turned` mixes tokens (Tolstikhin et al. 2021, arXiv:2105.01601)."""
        super().__init__()
        self.first, self.second = nn.Linear(size, hidden, bias=bias), nn.Linear(hidden, size, bias=bias)
        self.act, self.turned = Gelu(halved), turned

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x tokens x channels."""
        y = x.transpose(1, 2) if self.turned else x
        y = self.second(self.act(self.first(y)))
        output: Tensor = x + (y.transpose(1, 2) if self.turned else y)
        return output


class Convolved(nn.Module):
    """Two products, and between them a depthwise convolution over the tokens as an image (arXiv:2106.13797)."""

    def __init__(self, channels: int, hidden: int, halved: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.first, self.second = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.conv, self.act = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), Gelu(halved)

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x tokens x channels of a square image."""
        side = int(x.shape[1] ** 0.5)
        y = self.act(to_rows(self.conv(to_image(self.first(x), (side, side)))))
        output: Tensor = x + self.second(y)
        return output


class Attention(nn.Module):
    """Attention over all tokens, in one of the forms that came late.

    `over tokens`: the keys' softmax is over tokens, and they meet the values first (Xu et al. 2021, arXiv:2104.06399);
    `talking`: heads are mixed before and after the softmax (Touvron et al. 2021, arXiv:2103.17239); `turned`: queries
    and keys are turned by their position, every second channel taken by itself (Su et al. 2021, arXiv:2104.09864).
    """

    def __init__(self, channels: int, heads: int, tokens: int, form: str, *, bias: bool) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.heads, self.form, self.width = heads, form, channels // heads
        self.qkv, self.proj = nn.Linear(channels, 3 * channels, bias=bias), nn.Linear(channels, channels, bias=bias)
        if form == "talking":
            self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)
        if form == "turned":
            self.angles = nn.Parameter(torch.zeros(2, tokens, self.width), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Run over batch x tokens x channels."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        if self.form == "over tokens":
            y = self.width**-0.5 * query @ (key.softmax(dim=2).transpose(-2, -1) @ value)
        else:
            if self.form == "turned":
                query, key = self._turned(query), self._turned(key)
            scores = query * self.width**-0.5 @ key.transpose(-2, -1)
            if self.form == "talking":
                scores = self.before(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            scores = scores.softmax(dim=-1)
            if self.form == "talking":
                scores = self.after(scores.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            y = scores @ value
        output: Tensor = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, channels))
        return output

    def _turned(self, x: Tensor) -> Tensor:
        half = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape(x.shape)
        return x * self.angles[0] + half * self.angles[1]


class OverRows(nn.Module):
    """Run modules over the places of an image as tokens, after a norm."""

    def __init__(self, channels: int, *parts: nn.Module) -> None:
        """Take modules that keep batch x tokens x channels."""
        super().__init__()
        self.norm, self.body = nn.LayerNorm(channels), nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules."""
        return x + to_image(self.body(self.norm(to_rows(x))), (x.shape[2], x.shape[3]))


class Gated(nn.Module):
    """A wide depthwise block whose channels are weighed by what their means say, summed by a mean, not by a pool."""

    def __init__(self, channels: int, kernel: int, act: str, gate: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        wide, narrow = 3 * channels, max(4, channels // 4)
        self.widen = ConvUnit(channels, wide, 1, act=act)
        self.conv = ConvUnit(wide, wide, kernel, groups=wide, act=act)
        self.reduce, self.expand = nn.Conv2d(wide, narrow, 1), nn.Conv2d(narrow, wide, 1)
        self.gate: nn.Module = nn.Hardsigmoid() if gate == "hard" else nn.Sigmoid()
        self.out = ConvUnit(wide, channels, 1, act="none")

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.conv(self.widen(x))
        weights = self.gate(self.expand(functional.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        output: Tensor = x + self.out(y * weights)
        return output


class Responding(nn.Module):
    """Weigh channels by their norm over the image, as a share of its mean (Woo et al. 2023, arXiv:2301.00808)."""

    def __init__(self, channels: int, kernel: int, halved: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.widen, self.out = nn.Conv2d(channels, 4 * channels, 1), nn.Conv2d(4 * channels, channels, 1)
        self.act = Gelu(halved)
        self.scale = nn.Parameter(torch.zeros(1, 4 * channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, 4 * channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.act(self.widen(self.conv(x)))
        norm = y.norm(p=2, dim=(2, 3), keepdim=True)
        share = norm / (norm.mean(dim=1, keepdim=True) + 1e-6)
        output: Tensor = x + self.out(y + self.shift + self.scale * (y * share))
        return output


class Larger(nn.Module):
    """Make a map larger by a transposed convolution or by interpolating, and bring it back."""

    def __init__(self, channels: int, way: str) -> None:
        """Keep the number of channels; `way` is the side of a transposed kernel, or torch's name of a mode."""
        super().__init__()
        self.way = way
        half = max(8, channels // 2)
        self.narrow = ConvUnit(channels, half, 1)
        if way.isdigit():
            kernel = int(way)
            self.up = nn.ConvTranspose2d(half, half, kernel, 2, padding=(kernel - 1) // 2, output_padding=kernel % 2)
        self.back = ConvUnit(half, channels, 3, stride=2, act="none")

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch."""
        y = self.narrow(x)
        if self.way.isdigit():
            y = self.up(y)
        else:
            y = functional.interpolate(y, scale_factor=2, mode=self.way, align_corners=False)
        output: Tensor = functional.relu(x + self.back(y))
        return output


class Spread(nn.Module):
    """Convolve at several distances, and put what comes of it side by side (Chen et al. 2017, arXiv:1706.05587)."""

    def __init__(self, channels: int, distances: tuple[int, ...]) -> None:
        """Keep the number of channels."""
        super().__init__()
        share = max(8, channels // 4)
        self.branches = nn.ModuleList([ConvUnit(channels, share, 3, dilation=distance) for distance in distances])
        self.out = ConvUnit(share * len(distances), channels, 1, act="none")

    def forward(self, x: Tensor) -> Tensor:
        """Run the branches."""
        output: Tensor = functional.relu(x + self.out(torch.cat([branch(x) for branch in self.branches], dim=1)))
        return output


class Pyramid(nn.Module):
    """Pool again and again without a stride, and put all maps side by side, as YOLO does."""

    def __init__(self, channels: int, kernel: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        half = max(4, channels // 2)
        self.narrow, self.out = ConvUnit(channels, half, 1, act="silu"), ConvUnit(4 * half, channels, 1, act="silu")
        self.pool = nn.MaxPool2d(kernel, 1, kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        maps = [self.narrow(x)]
        for _ in range(3):
            maps.append(self.pool(maps[-1]))
        output: Tensor = x + self.out(torch.cat(maps, dim=1))
        return output


class Stripes(nn.Module):
    """Convolve parts of the channels by a square, a row and a column, and leave the rest (arXiv:2303.16900)."""

    def __init__(self, channels: int, length: int, halved: str) -> None:
        """Keep the number of channels."""
        super().__init__()
        part = max(2, channels // 8)
        self.sizes = [channels - 3 * part, part, part, part]
        kernels = ((3, 3), (1, length), (length, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(part, part, kernel, padding=(kernel[0] // 2, kernel[1] // 2), groups=part) for kernel in kernels
        )
        self.norm, self.act = nn.BatchNorm2d(channels), Gelu(halved)
        self.widen, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(3 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        kept, *parts = torch.split(x, self.sizes, dim=1)
        y = torch.cat([kept, *(conv(part) for conv, part in zip(self.convs, parts, strict=True))], dim=1)
        output: Tensor = x + self.out(self.act(self.widen(self.norm(y))))
        return output


class Starred(nn.Module):
    """Multiply two products of the same map with each other (Ma et al. 2024, arXiv:2403.19967)."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.before = ConvUnit(channels, channels, 7, groups=channels, act="none")
        self.left, self.right = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, 3 * channels, 1)
        self.out = ConvUnit(3 * channels, channels, 1, act="none")
        self.after = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = self.before(x)
        output: Tensor = x + self.after(self.out(functional.relu6(self.left(y)) * self.right(y)))
        return output


class Coarse(nn.Module):
    """Take the largest of each window, and interpolate (Ryali et al. 2023, arXiv:2306.00989, pools tokens so)."""

    def __init__(self, channels: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.out = ConvUnit(channels, channels, 1, act="silu")

    def forward(self, x: Tensor) -> Tensor:
        """Run the block; the sides are even."""
        batch, channels, height, width = x.shape
        y = self.out(x.reshape(batch, channels, height // 2, 2, width // 2, 2).amax((3, 5)))
        return x + enlarged(y, x)


def _over_rows(draw: Choices, channels: int, side: int) -> nn.Module:
    tokens = side * side
    width = draw.pick([size for size in (16, 24, 32, 48, 64) if channels % size == 0] or [channels])
    form = draw.pick(("over tokens", "talking", "turned", "plain"))
    # All pairs of tokens, and products over tokens, grow with their square.
    form = "over tokens" if tokens > 1024 and form != "over tokens" else form
    bias, halved = draw.chance(0.5), draw.pick(_PLACES, (0.25, 0.55, 0.2))
    hidden = channels * draw.pick((2, 3, 4))
    made: dict[str, Callable[[], nn.Module]] = {
        "wide": lambda: Wide(channels, hidden, halved, bias=bias, turned=False),
        "turned": lambda: Wide(tokens, max(16, tokens // draw.pick((1, 2, 4))), halved, bias=bias, turned=True),
        "convolved": lambda: Convolved(channels, hidden, halved),
        "attention": lambda: Attention(channels, channels // width, tokens, form, bias=bias),
    }
    kinds = [draw.pick(("wide", "convolved", "attention", "turned")) for _ in range(draw.pick((1, 2)))]
    return OverRows(channels, *(made["wide" if kind == "turned" and tokens > 1024 else kind]() for kind in kinds))


def _block(draw: Choices, channels: int, side: int) -> nn.Module:
    halved = draw.pick(_PLACES, (0.25, 0.55, 0.2))
    kernel = draw.pick((3, 5, 7))
    distances = tuple(draw.pick((4, 6, 12, 18, 24, 36)) for _ in range(draw.pick((1, 3))))
    made: dict[str, Callable[[], nn.Module]] = {
        "rows": lambda: _over_rows(draw, channels, side),
        "gated": lambda: Gated(
            channels, kernel, draw.pick(("relu", "silu", "hardswish")), draw.pick(("hard", "sigmoid"))
        ),
        "responding": lambda: Responding(channels, kernel, halved),
        "larger": lambda: Larger(channels, draw.pick(("2", "3", "4", "bilinear", "bicubic"), (1, 1, 1, 2, 0.7))),
        "spread": lambda: Spread(channels, distances),
        "pyramid": lambda: Pyramid(channels, draw.pick((3, 5))),
        "stripes": lambda: Stripes(channels, draw.pick((7, 11)), halved),
        "starred": lambda: Starred(channels),
        "coarse": lambda: Coarse(channels),
    }
    kind = draw.pick(tuple(made), (3.0, 1.4, 0.9, 1.2, 0.7, 0.6, 0.9, 0.6, 0.6))
    return made["pyramid" if kind == "coarse" and side % 2 else kind]()


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("recent", spec.variant)
    channels, growth = draw.channels(spec.width), draw.between(1.4, 2.1)
    side = spec.side // 4
    parts: list[nn.Module] = [ConvUnit(3, channels, 4, stride=4, padding=0)]
    for stage, blocks in enumerate(draw.split(spec.depth, 3)):
        if stage:
            filters = draw.channels(spec.width * growth**stage)
            parts.append(ConvUnit(channels, filters, 2, stride=2, padding=0, act="none"))
            channels, side = filters, side // 2
        parts += [_block(draw, channels, side) for _ in range(blocks)]
    return nn.Sequential(*parts, Head(channels, spec.classes, mean=draw.chance(0.5)))
