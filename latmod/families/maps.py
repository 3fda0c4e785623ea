"""Maps of several sizes: what keeps them, brings them together, and makes one tensor of them."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import ConvUnit

Maps = list[Tensor]
BINS = 16
"""What the distance to a side of a box is told by, where it is (Li et al. 2020, arXiv:2006.04388)."""


def enlarged(x: Tensor, like: Tensor) -> Tensor:
    """Return a map resized to the size of another."""
    return functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)


class Union(nn.Module):
    """Put together what branches make of a map: C3 of YOLOv5, pools of several sizes, dilated convolutions."""

    def __init__(self, branches: list[nn.Module], last: nn.Module) -> None:
        """Take the branches, and what follows."""
        super().__init__()
        self.branches, self.last = nn.ModuleList(branches), last

    def forward(self, x: Tensor) -> Tensor:
        """Run the branches."""
        output: Tensor = self.last(torch.cat([branch(x) for branch in self.branches], 1))
        return output


class Mean(nn.Module):
    """Convolve the mean of a map, and enlarge it to the map's size (Chen et al. 2017, arXiv:1706.05587)."""

    def __init__(self, channels: int, filters: int, act: str, kernel: int = 0) -> None:
        """Map `channels` to `filters`; means are of `kernel` x `kernel` places, or of all (arXiv:1612.01105)."""
        super().__init__()
        self.pool = nn.AvgPool2d(kernel) if kernel else nn.AdaptiveAvgPool2d(1)
        self.conv = ConvUnit(channels, filters, 1, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Run the branch."""
        return enlarged(self.conv(self.pool(x)), x)


class Pyramid(nn.Module):
    """A backbone that keeps the maps of its later stages."""

    def __init__(self, stages: list[nn.Module], first: int) -> None:
        """Keep what comes of the stages from the `first` on."""
        super().__init__()
        self.stages, self.first = nn.ModuleList(stages), first

    def forward(self, x: Tensor) -> Maps:
        """Return the maps, the largest first."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[self.first :]


class Upwards(nn.Module):
    """Enlarge the smallest map and bring each larger one in (arXiv:1505.04597, arXiv:1612.03144)."""

    def __init__(self, ups: list[nn.Module], sides: list[nn.Module], blocks: list[nn.Module], *, add: bool) -> None:
        """Take for each step an enlargement, what to do to the larger map, and what follows their sum or union."""
        super().__init__()
        self.ups, self.sides, self.blocks, self.add = *(nn.ModuleList(part) for part in (ups, sides, blocks)), add

    def forward(self, maps: Maps) -> Maps:
        """Return as many maps, the largest first."""
        made = [maps[-1]]
        for up, side, block, larger in zip(self.ups, self.sides, self.blocks, reversed(maps[:-1]), strict=True):
            x, y = up(made[0]), side(larger)
            made.insert(0, block(x + y if self.add else torch.cat((x, y), 1)))
        return made


class Downwards(nn.Module):
    """Shrink the largest map and bring each smaller one in (Liu et al. 2018, arXiv:1803.01534)."""

    def __init__(self, downs: list[nn.Module], blocks: list[nn.Module]) -> None:
        """Take for each step what shrinks a map, and what follows the union."""
        super().__init__()
        self.downs, self.blocks = nn.ModuleList(downs), nn.ModuleList(blocks)

    def forward(self, maps: Maps) -> Maps:
        """Return as many maps, the largest first."""
        made = [maps[0]]
        for down, block, smaller in zip(self.downs, self.blocks, maps[1:], strict=True):
            made.append(block(torch.cat((down(made[-1]), smaller), 1)))
        return made


class Mask(nn.Module):
    """Classify each place of the largest map, or of all maps put together, and enlarge what comes of it."""

    def __init__(
        self, channels: int, classes: int, factor: int, last: nn.Module, *, corners: bool, gather: bool
    ) -> None:
        """Map `channels` to `classes`, on a side `factor` times as long."""
        super().__init__()
        self.factor, self.corners, self.gather = factor, corners, gather
        self.conv, self.last = nn.Conv2d(channels, classes, 1), last

    def forward(self, maps: Maps) -> Tensor:
        """Return a map of classes."""
        x = maps[0]
        if self.gather:
            same = [enlarged(y, x) for y in maps[1:]]
            x = torch.cat([x, *same], 1)
        x = self.conv(x)
        if self.factor > 1:
            x = functional.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=self.corners)
        output: Tensor = self.last(x)
        return output


class Boxes(nn.Module):
    """Decode a box and the scores of each place of all maps, without anchors.

    `way` is `bins` (sides by what is expected of bins, Li et al. 2020, arXiv:2006.04388), `sides` (distances from the
    place), or `exponents` (Ge et al. 2021, arXiv:2107.08430).
    """

    def __init__(self, towers: list[tuple[nn.Module, nn.Module]], classes: int, places: int, way: str) -> None:
        """Take two towers for each map: for boxes and for scores; `places` are those of all maps."""
        super().__init__()
        self.boxes, self.scores = (nn.ModuleList(part) for part in zip(*towers, strict=True))
        self.widths, self.way = (BINS * 4 if way == "bins" else 4, classes), way
        self.expect = nn.Conv2d(BINS, 1, 1, bias=False) if way == "bins" else nn.Identity()
        self.centres, self.strides = nn.Parameter(torch.ones(1, 2, places)), nn.Parameter(torch.ones(1, places))

    def forward(self, maps: Maps) -> Tensor:
        """Return batch x (4 + classes) x places."""
        batch = maps[0].shape[0]
        rows = [
            torch.cat((box(x), score(x)), 1).view(batch, sum(self.widths), -1)
            for box, score, x in zip(self.boxes, self.scores, maps, strict=True)
        ]
        box, scores = torch.split(torch.cat(rows, 2), list(self.widths), dim=1)
        if self.way == "bins":
            box = self.expect(box.view(batch, 4, BINS, -1).transpose(2, 1).softmax(1)).view(batch, 4, -1)
        near, far = box.chunk(2, 1)
        if self.way == "exponents":
            box = torch.cat((near + self.centres, far.exp()), 1)
        else:
            start, end = self.centres - near, self.centres + far
            box = torch.cat(((start + end) / 2, end - start), 1)
        return torch.cat((box * self.strides, scores.sigmoid()), 1)


class Grid(nn.Module):
    """Decode three boxes of each place of each map, relative to anchors (YOLOv5)."""

    def __init__(self, channels: list[int], sides: list[int], classes: int, anchors: int) -> None:
        """Take maps of some channels and sides."""
        super().__init__()
        self.anchors = anchors
        self.convs = nn.ModuleList(nn.Conv2d(size, anchors * (5 + classes), 1) for size in channels)
        shapes = [(1, anchors, side, side, 2) for side in sides]
        self.places, self.sizes = (nn.ParameterList(torch.ones(one) for one in shapes) for _ in range(2))

    def forward(self, maps: Maps) -> Tensor:
        """Return batch x boxes x (5 + classes)."""
        rows = []
        for conv, place, size, x in zip(self.convs, self.places, self.sizes, maps, strict=True):
            batch, _, height, width = x.shape
            y = conv(x).view(batch, self.anchors, -1, height, width).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
            centre, extent = (y[..., 0:2] * 2 + place) * 8.0, (y[..., 2:4] * 2) ** 2 * size
            rows.append(torch.cat((centre, extent, y[..., 4:]), -1).view(batch, -1, y.shape[-1]))
        return torch.cat(rows, 1)
