"""Networks that read maps at places which they compute: warps by a flow, attention to a few points, turned images."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec


def _middles(count: int) -> Tensor:
    """Return the middles of so many pixels, between -1 and 1."""
    return (torch.arange(count) * 2 + 1).to(torch.float32) / count - 1.0


def _places(x: Tensor) -> Tensor:
    """Return where the pixels of a map lie, 1 x height x width x 2."""
    height, width = x.shape[2:]
    across, down = _middles(width)[None, :].expand(height, width), _middles(height)[:, None].expand(height, width)
    return torch.stack((across, down), dim=-1)[None]


class Warp(nn.Module):
    """Read a map where a flow, made of it, says, and put both together (Sun et al. 2017, arXiv:1709.02371)."""

    def __init__(self, channels: int, act: str, *, padding: str, corners: bool) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.padding, self.corners = padding, corners
        self.flow = nn.Sequential(ConvUnit(channels, channels, 3, act=act), nn.Conv2d(channels, 2, 3, padding=1))
        self.last = ConvUnit(2 * channels, channels, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        grid = _places(x) + self.flow(x).permute(0, 2, 3, 1) * 0.05
        warped = functional.grid_sample(x, grid, "bilinear", self.padding, self.corners)
        output: Tensor = self.last(torch.cat((x, warped), 1))
        return output


class Turn(nn.Module):
    """Read a map along lines that a small network turns, shifts and scales (Jaderberg 2015, arXiv:1506.02025)."""

    def __init__(self, channels: int, *, padding: str, corners: bool) -> None:
        """Keep the shape."""
        super().__init__()
        self.padding, self.corners = padding, corners
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        batch, _, height, width = x.shape
        theta = torch.tanh(self.head(torch.flatten(self.pool(x), 1))).view(batch, 2, 3)
        flat = _places(x).view(1, height * width, 2) + torch.zeros(batch, 1, 1)
        grid = flat @ theta[:, :, :2].transpose(1, 2) + theta[:, :, 2][:, None, :]
        return functional.grid_sample(x, grid.view(batch, height, width, 2), "bilinear", self.padding, self.corners)


class PointAttention(nn.Module):
    """Let each place attend to a few points near it, in maps of several sizes (Zhu et al. 2020, arXiv:2010.04159)."""

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        """Keep the number of channels."""
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.value, self.proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.offsets = nn.Linear(channels, heads * levels * points * 2)
        self.weights = nn.Linear(channels, heads * levels * points)
        self.norm = nn.LayerNorm(channels)

    def forward(self, rows: Tensor, places: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """Attend from rows, batch x tokens x channels, at places, 1 x tokens x 2, to maps of `sizes`, all in a row."""
        batch, tokens, channels = rows.shape
        heads, levels, points = self.heads, self.levels, self.points
        shape = (batch, tokens, heads, levels, points, 2)
        spots = self.offsets(rows).view(shape) * 0.1 + places[:, :, None, None, None, :]
        weights = self.weights(rows).view(batch, tokens, heads, levels * points).softmax(-1)
        values = self.value(rows).split([height * width for height, width in sizes], dim=1)
        read = []
        for level, (height, width) in enumerate(sizes):
            image = values[level].transpose(1, 2).reshape(batch * heads, channels // heads, height, width)
            grid = spots[:, :, :, level].transpose(1, 2).flatten(0, 1)
            read.append(functional.grid_sample(image, grid, "bilinear", "zeros", align_corners=False))
        shares = weights.transpose(1, 2).reshape(batch * heads, 1, tokens, levels * points)
        made = (torch.cat(read, dim=-1) * shares).sum(-1).view(batch, channels, tokens)
        output: Tensor = self.norm(rows + self.proj(made.transpose(1, 2)))
        return output


class Points(nn.Module):
    """Attend to points of maps of several sizes, layer after layer, and classify by the mean."""

    def __init__(self, stages: list[nn.Module], sides: list[nn.Module], layers: list[nn.Module], head: nn.Module):
        """Take a backbone, what brings its last maps to one number of channels, the layers, and the end."""
        super().__init__()
        self.stages, self.sides, self.layers = (nn.ModuleList(part) for part in (stages, sides, layers))
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        same = [side(one) for side, one in zip(self.sides, maps[-len(self.sides) :], strict=True)]
        sizes = [(one.shape[2], one.shape[3]) for one in same]
        rows = torch.cat([one.flatten(2).transpose(1, 2) for one in same], dim=1)
        places = torch.cat([_places(one).view(1, -1, 2) for one in same], dim=1)
        for attention, mlp in zip(self.layers[::2], self.layers[1::2], strict=True):
            rows = attention(rows, places, sizes)
            rows = rows + mlp(rows)
        logits: Tensor = self.head(rows.mean(1))
        return logits


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("sampler", spec.variant)
    form = draw.pick(("warp", "points", "turn"), (0.45, 0.4, 0.15))
    act, growth = draw.pick(("relu", "silu", "leaky")), draw.between(1.3, 1.9)
    halvings = 4 if form == "points" and spec.side >= 128 else draw.pick((1, 2, 3))
    widths = [3, *(draw.channels(spec.width * growth**level) for level in range(halvings))]
    stages: list[nn.Module] = [
        ConvUnit(entering, filters, 3, stride=2, act=act) for entering, filters in pairwise(widths)
    ]
    if form == "points":
        heads = draw.pick((4, 8))
        channels = heads * draw.pick((8, 16, 32))
        levels = min(draw.pick((1, 2, 3)), halvings)
        sides: list[nn.Module] = [ConvUnit(width, channels, 1, act="none") for width in widths[-levels:]]
        layers: list[nn.Module] = []
        points = draw.pick((4, 8))
        for _ in range(max(1, spec.depth // 2)):
            hidden = channels * draw.pick((2, 4))
            layers.append(PointAttention(channels, heads, levels, points))
            layers.append(nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)))
        return Points(stages, sides, layers, nn.Linear(channels, spec.classes))
    padding, corners, channels = draw.pick(("zeros", "border")), draw.chance(0.4), widths[-1]
    for place in range(spec.depth):
        if form == "warp":
            stages.append(Warp(channels, act, padding=padding, corners=corners))
        else:
            stages += [Turn(channels, padding=padding, corners=corners)] if place % 2 == 0 else []
            stages.append(ConvUnit(channels, channels, 3, act=act))
    return nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, spec.classes))
