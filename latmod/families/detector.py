"""Dense predictions: detectors, segmenters, enlargers of images. Maps are large, kept, enlarged and put together.

Each network is a backbone that keeps its maps, a neck that brings them together, and an end that makes one tensor of
them; those that enlarge images stay at one size until the end. The number of classes is drawn as all else is.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from latmod.errors import SpecError
from latmod.families.blocks import Added, ConvUnit
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec
from latmod.families.maps import BINS, Boxes, Downwards, Grid, Mask, Mean, Pyramid, Union, Upwards


class Focus(nn.Module):
    """Halve the side by four slices, put together, and a convolution (YOLOv5)."""

    def __init__(self, filters: int, act: str) -> None:
        """Map an image to `filters` channels."""
        super().__init__()
        self.conv = ConvUnit(12, filters, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        corners = [x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        output: Tensor = self.conv(torch.cat(corners, 1))
        return output


class Chain(nn.Module):
    """Put together a map, or the halves of its channels, and what blocks make of it: SPPF of YOLOv5, C2f of YOLOv8."""

    def __init__(self, blocks: list[nn.Module], last: nn.Module, *, part: int = 0) -> None:
        """Take blocks, each of which gets what the one before made, the first one the last `part` channels."""
        super().__init__()
        self.blocks, self.last, self.part = nn.ModuleList(blocks), last, part

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks."""
        parts = list(torch.split(x, self.part, dim=1)) if self.part else [x]
        for block in self.blocks:
            parts.append(block(parts[-1]))
        output: Tensor = self.last(torch.cat(parts, 1))
        return output


def _bottleneck(channels: int, kernel: int, act: str, *, shortcut: bool) -> nn.Module:
    units = ConvUnit(channels, channels, kernel, act=act), ConvUnit(channels, channels, act=act)
    return Added(*units) if shortcut else nn.Sequential(*units)


def _stage(kind: str, channels: int, filters: int, count: int, act: str, *, shortcut: bool = False) -> nn.Module:
    """Return `count` blocks of a kind in a row; depthwise ones are wider with `shortcut`, having none."""
    half = filters // 2
    if kind == "chained":
        chain = [_bottleneck(half, 3, act, shortcut=shortcut) for _ in range(count)]
        last = ConvUnit((2 + count) * half, filters, 1, act=act)
        return nn.Sequential(ConvUnit(channels, 2 * half, 1, act=act), Chain(chain, last, part=half))
    if kind == "partial":
        deep, flat = (ConvUnit(channels, half, 1, act=act) for _ in range(2))
        body = [_bottleneck(half, 1, act, shortcut=shortcut) for _ in range(count)]
        return Union([nn.Sequential(deep, *body), flat], ConvUnit(2 * half, filters, 1, act=act))
    units: list[nn.Module] = []
    for entering in (channels, *[filters] * (count - 1)):
        if kind == "depthwise":
            units.append(ConvUnit(entering, entering, 5 if shortcut else 3, groups=entering, act=act))
            units.append(ConvUnit(entering, filters, 1, act=act))
        elif kind == "double":
            units += [ConvUnit(entering, filters, act=act), ConvUnit(filters, filters, act=act)]
        else:
            units += [ConvUnit(entering, filters, 1, act=act)] if entering != filters else []
            units.append(_bottleneck(filters, 3, act, shortcut=True))
    return nn.Sequential(*units)


def _context(form: str, channels: int, act: str) -> nn.Module:
    """Return what looks at a map from farther away (arXiv:1406.4729, arXiv:1706.05587)."""
    half, quarter = channels // 2, channels // 4
    if form == "atrous":
        dilated = [ConvUnit(channels, quarter, 3, dilation=dilation, act=act) for dilation in (6, 12, 18)]
        branches = [ConvUnit(channels, quarter, 1, act=act), *dilated, Mean(channels, quarter, act)]
        return Union(branches, ConvUnit(5 * quarter, channels, 1, act=act))
    sizes, last = (5, 5, 5) if form == "chained" else (5, 9, 13), ConvUnit(4 * half, channels, 1, act=act)
    pools: list[nn.Module] = [nn.MaxPool2d(size, 1, size // 2) for size in sizes]
    both = Chain(pools, last) if form == "chained" else Union([nn.Identity(), *pools], last)
    return nn.Sequential(ConvUnit(channels, half, 1, act=act), both)


def _enlarge(form: str, channels: int, filters: int, act: str) -> nn.Module:
    """Return what doubles the side."""
    if form == "shuffled":
        return nn.Sequential(ConvUnit(channels, 4 * filters, 1, act=act), nn.PixelShuffle(2))
    if form.startswith("transposed"):
        kernel = int(form[-1])
        return nn.ConvTranspose2d(channels, filters, kernel, 2, int(kernel > 2), int(kernel == 3))
    corners = None if form == "nearest" else form == "corners"
    resized = nn.Upsample(scale_factor=2, mode="nearest" if form == "nearest" else "bilinear", align_corners=corners)
    return resized if channels == filters else nn.Sequential(ConvUnit(channels, filters, 1, act=act), resized)


def _tower(kind: str, channels: int, filters: int, count: int, outputs: int, act: str) -> nn.Module:
    """Return convolutions in a row, the last one to `outputs` channels."""
    if kind == "depthwise":
        body: nn.Module = _stage(kind, channels, filters, count, act)
    else:
        body = nn.Sequential(*(ConvUnit(size, filters, act=act) for size in (channels, *[filters] * (count - 1))))
    return nn.Sequential(body, nn.Conv2d(filters, outputs, 1))


def _enlarger(draw: Choices, spec: GeneratedSpec) -> nn.Module:
    """Return a network that shrinks its input first, so that the side means what it means elsewhere."""
    width, act = draw.channels(spec.width), draw.pick(("relu", "leaky", "silu"))
    factor, scale = draw.pick((2, 4), (0.6, 0.4)), draw.pick((0.1, 1.0))
    shrink = nn.AvgPool2d(4) if draw.chance(0.5) else nn.Upsample(scale_factor=0.25, mode="bilinear")
    blocks = [
        Added(ConvUnit(width, width, act=act, norm=False), nn.Conv2d(width, width, 3, 1, 1), scale=scale)
        for _ in range(min(spec.depth, 10))
    ]
    body = Added(*blocks, nn.Conv2d(width, width, 3, 1, 1))
    if draw.chance(0.5):
        tail: list[nn.Module] = [nn.Conv2d(width, 3 * factor**2, 3, 1, 1), nn.PixelShuffle(factor)]
    else:
        steps = [[nn.Conv2d(width, 4 * width, 3, 1, 1), nn.PixelShuffle(2)] for _ in range(factor // 2)]
        tail = [*(part for step in steps for part in step), nn.Conv2d(width, 3, 3, 1, 1)]
    return nn.Sequential(shrink, nn.Conv2d(3, width, 3, 1, 1), body, *tail)


def _backbone(
    draw: Choices, spec: GeneratedSpec, kind: str, act: str, *, whole: bool
) -> tuple[list[nn.Module], list[int]]:
    """Return the stages, each of which halves the side unless the first is `whole`, and their channels."""
    halvings = max(count for count in range(6) if spec.side % 2**count == 0)
    growth, pooled = draw.between(1.4, 2.0), whole or draw.chance(0.15)
    widths = [draw.channels(min(spec.width * growth**level, 384)) for level in range(halvings + whole)]
    kernel = draw.pick((3, 6, 0), (0.6, 0.25, 0.15))
    if whole:
        stem: nn.Module = _stage("double", 3, widths[0], 1, act)
    elif kernel:
        stem = ConvUnit(3, widths[0], kernel, stride=2, padding=kernel // 3, act=act)
    else:
        stem = Focus(widths[0], act)
    stages: list[nn.Module] = [stem]
    shortcut = draw.chance(0.8)
    for level, count in enumerate(draw.split(spec.depth, len(widths) - 1)):
        entering, filters = widths[level : level + 2]
        if pooled:
            down: nn.Module = nn.MaxPool2d(2)
        elif kind == "depthwise":
            down = ConvUnit(entering, entering, stride=2, groups=entering, act=act)
        else:
            down = ConvUnit(entering, entering := filters, stride=2, act=act)
        stages.append(nn.Sequential(down, _stage(kind, entering, filters, count, act, shortcut=shortcut)))
    context = draw.pick(("chained", "parallel", "atrous", "none"), (0.35, 0.15, 0.2, 0.3))
    if context != "none":
        stages[-1] = nn.Sequential(stages[-1], _context(context, widths[-1], act))
    return stages, widths


def _upwards(draw: Choices, kind: str, widths: list[int], act: str) -> tuple[Upwards, list[int]]:
    """Return a neck, and the channels of its maps."""
    form = draw.pick(
        ("nearest", "bilinear", "corners", "transposed 2", "transposed 3", "transposed 4", "shuffled"),
        (0.4, 0.12, 0.12, 0.12, 0.06, 0.1, 0.08),
    )
    add, alike, direct = draw.chance(0.3), draw.chance(0.25), draw.chance(0.5)
    made = [widths[1] if alike else width for width in widths[:-1]] + widths[-1:]
    ups: list[nn.Module] = []
    sides: list[nn.Module] = []
    blocks: list[nn.Module] = []
    for level in reversed(range(len(made) - 1)):
        entering, filters, given = made[level + 1], made[level], widths[level]
        wanted = entering if direct and not add and form in ("nearest", "bilinear", "corners") else filters
        ups.append(_enlarge(form, entering, wanted, act))
        sides.append(ConvUnit(given, filters, 1, act=act) if alike or add else nn.Identity())
        union = filters if add else wanted + (filters if alike else given)
        blocks.append(_stage(kind, union, filters, draw.pick((1, 2), (0.7, 0.3)), act))
    return Upwards(ups, sides, blocks, add=add), made


def _downwards(kind: str, widths: list[int], act: str) -> Downwards:
    """Return the second half of a neck, which keeps the channels of the maps."""
    downs: list[nn.Module] = [ConvUnit(width, width, stride=2, act=act) for width in widths[:-1]]
    return Downwards(downs, [_stage(kind, larger + own, own, 1, act) for larger, own in pairwise(widths)])


def _end(draw: Choices, widths: list[int], sides: list[int], act: str) -> nn.Module:
    """Return what detects objects on maps of some channels and sides."""
    classes = draw.pick((1, 20, 80), (0.2, 0.2, 0.6))
    if draw.chance(0.35):
        return Grid(widths, sides, classes, 3)
    way, kind = draw.pick(("bins", "sides", "exponents"), (0.6, 0.2, 0.2)), draw.pick(("dense", "depthwise"))
    bins, count = BINS * 4 if way == "bins" else 4, draw.pick((1, 2))
    narrow, wide = max(16, widths[0] // 4, bins), max(widths[0], min(classes, 100))
    towers = [
        (_tower("dense", width, narrow, count, bins, act), _tower(kind, width, wide, count, classes, act))
        for width in widths
    ]
    return Boxes(towers, classes, sum(side**2 for side in sides), way)


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    if spec.side % 4:
        raise SpecError(f"detector: side = {spec.side} must be a multiple of 4, to be halved and doubled again")
    draw = Choices("detector", spec.variant)
    task = draw.pick(("boxes", "mask", "enlarger"), (0.55, 0.32, 0.13))
    if task == "enlarger":
        return _enlarger(draw, spec)
    act = draw.pick(("silu", "leaky", "relu", "hardswish"), (0.45, 0.2, 0.25, 0.1))
    kind = draw.pick(("chained", "partial", "residual", "double", "depthwise"), (0.3, 0.2, 0.18, 0.14, 0.18))
    whole = task == "mask" and draw.chance(0.3)
    stages, widths = _backbone(draw, spec, kind, act, whole=whole)
    # Boxes come of two or three maps; a mask of a map as large as the input, or up to eight times smaller.
    first = 0
    if task == "boxes":
        first = max(0, len(widths) - draw.pick((2, 3), (0.25, 0.75)))
    elif not whole:
        first = min(draw.pick((0, 1, 2)), len(widths) - 2)
    neck, made = _upwards(draw, kind, widths[first:], act)
    if task == "mask":
        gather, corners = draw.chance(0.3), draw.chance(0.4)
        last = draw.pick((nn.Identity(), nn.Softmax(1), nn.Sigmoid()), (0.5, 0.25, 0.25))
        entering = sum(made) if gather else made[0]
        factor = 2 ** (first + (not whole))
        end: nn.Module = Mask(entering, draw.pick((2, 4, 11, 19, 21)), factor, last, corners=corners, gather=gather)
        return nn.Sequential(Pyramid(stages, first), neck, end)
    parts = [Pyramid(stages, first), neck]
    if draw.chance(0.7):
        parts.append(_downwards(kind, made, act))
    sides = [spec.side // 2 ** (level + 1) for level in range(first, len(widths))]
    return nn.Sequential(*parts, _end(draw, made, sides, act))
