"""Networks over video and scans: convolutions and pools in three dimensions, whole and factorised."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latmod.families.blocks import activation
from latmod.families.choices import Choices
from latmod.families.generated import GeneratedSpec

Sizes = tuple[int, int, int]


class VolumeUnit(nn.Sequential):
    """A convolution in three dimensions, a norm and an activation; padding keeps the sizes."""

    def __init__(
        self, channels: int, filters: int, kernel: Sizes, act: str, *, norm: str = "batch", stride: Sizes = (1, 1, 1),
        groups: int = 1,
    ) -> None:  # fmt: skip
        """Map `channels` to `filters`; `norm` is `batch`, `instance` or `none`."""
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        parts: list[nn.Module] = [
            nn.Conv3d(channels, filters, kernel, stride, padding, groups=groups, bias=norm != "batch")
        ]
        if norm != "none":
            parts.append(nn.BatchNorm3d(filters) if norm == "batch" else nn.InstanceNorm3d(filters, affine=True))
        if act != "none":
            parts.append(activation(act))
        super().__init__(*parts)


class Excite(nn.Module):
    """Weigh channels by what a small network makes of their means (Feichtenhofer 2020, arXiv:2004.04730)."""

    def __init__(self, channels: int) -> None:
        """Squeeze to a quarter of the channels in between."""
        super().__init__()
        squeezed = max(8, channels // 4)
        self.pool, self.reduce = nn.AdaptiveAvgPool3d(1), nn.Conv3d(channels, squeezed, 1)
        self.expand = nn.Conv3d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, its channels weighed."""
        return x * torch.sigmoid(self.expand(functional.relu(self.reduce(self.pool(x)))))


class Residual(nn.Module):
    """Units in a row with a shortcut, which is projected where the shape changes, and an activation."""

    def __init__(self, body: list[nn.Module], shortcut: nn.Module, act: str) -> None:
        """Take the units."""
        super().__init__()
        self.body, self.shortcut, self.act = nn.Sequential(*body), shortcut, activation(act)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        output: Tensor = self.act(self.body(x) + self.shortcut(x))
        return output


class Encoder(nn.Module):
    """Shrink a volume level by level and enlarge it again, each level brought in (Çiçek 2016, arXiv:1606.06650)."""

    def __init__(self, downs: list[nn.Module], ups: list[nn.Module], blocks: list[nn.Module], head: nn.Module) -> None:
        """Take what makes each level, what enlarges, what follows the union with a level, and the end."""
        super().__init__()
        self.downs, self.ups, self.blocks, self.head = *(nn.ModuleList(part) for part in (downs, ups, blocks)), head

    def forward(self, x: Tensor) -> Tensor:
        """Return a volume of classes."""
        levels = []
        for down in self.downs:
            x = down(x)
            levels.append(x)
        for up, block, level in zip(self.ups, self.blocks, reversed(levels[:-1]), strict=True):
            x = block(torch.cat((up(x), level), 1))
        output: Tensor = self.head(x)
        return output


def _pair(channels: int, filters: int, form: str, act: str, stride: Sizes) -> list[nn.Module]:
    """Return a convolution of three pixels each way, or the two that it is parted into (arXiv:1711.11248)."""
    if form == "whole":
        return [VolumeUnit(channels, filters, (3, 3, 3), act, stride=stride)]
    if form == "flat":
        return [VolumeUnit(channels, filters, (1, 3, 3), act, stride=(1, *stride[1:]))]
    between = max(8, 27 * channels * filters // (9 * channels + 3 * filters) // 8 * 8) if form == "parted" else filters
    flat = VolumeUnit(channels, between, (1, 3, 3), act, stride=(1, *stride[1:]))
    return [flat, VolumeUnit(between, filters, (3, 1, 1), act, stride=(stride[0], 1, 1))]


def _block(channels: int, filters: int, form: str, act: str, stride: Sizes, *, excite: bool) -> nn.Module:
    if form == "bottleneck":
        narrow = max(8, filters // 4)
        body: list[nn.Module] = [
            VolumeUnit(channels, narrow, (3, 1, 1), act),
            VolumeUnit(narrow, narrow, (1, 3, 3), act, stride=(1, *stride[1:])),
            VolumeUnit(narrow, filters, (1, 1, 1), "none"),
        ]
        stride = (1, *stride[1:])
    elif form == "depthwise":
        wide = 2 * filters
        deep = VolumeUnit(wide, wide, (3, 3, 3), act, stride=stride, groups=wide)
        excited = [Excite(wide)] if excite else []
        body = [
            VolumeUnit(channels, wide, (1, 1, 1), act),
            deep,
            *excited,
            VolumeUnit(wide, filters, (1, 1, 1), "none"),
        ]
    else:
        *first, last = _pair(filters, filters, form, "none", (1, 1, 1))
        inner = [one for part in first for one in (part, activation(act))]
        body = [*_pair(channels, filters, form, act, stride), *inner, last]
        stride = stride if form != "flat" else (1, *stride[1:])
    same = channels == filters and set(stride) == {1}
    project = nn.Identity() if same else VolumeUnit(channels, filters, (1, 1, 1), "none", stride=stride)
    return Residual(body, project, act)


def _mask(draw: Choices, spec: GeneratedSpec, act: str) -> nn.Module:
    norm, levels = draw.pick(("batch", "instance")), 2 + (spec.depth > 5)
    widths = [draw.channels(spec.width * 2**level) for level in range(levels)]
    sizes = draw.pick(((2, 2, 2), (1, 2, 2)), (0.6, 0.4))
    downs: list[nn.Module] = []
    for entering, filters in zip([3, *widths], widths, strict=False):
        units = [VolumeUnit(a, filters, (3, 3, 3), act, norm=norm) for a in (entering, filters)]
        downs.append(nn.Sequential(*([nn.MaxPool3d(sizes)] if downs else []), *units))
    ups: list[nn.Module] = []
    blocks: list[nn.Module] = []
    transposed = draw.chance(0.6)
    for deep, filters in zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True):
        resized = nn.Sequential(
            VolumeUnit(deep, filters, (1, 1, 1), "none", norm="none"),
            nn.Upsample(scale_factor=tuple(map(float, sizes)), mode=draw.pick(("nearest", "trilinear"))),
        )
        ups.append(nn.ConvTranspose3d(deep, filters, sizes, sizes) if transposed else resized)
        blocks.append(VolumeUnit(2 * filters, filters, (3, 3, 3), act, norm=norm))
    return Encoder(downs, ups, blocks, nn.Conv3d(widths[0], draw.pick((2, 4, 14)), 1))


def network(spec: GeneratedSpec) -> nn.Module:
    """Build the network of a spec."""
    draw = Choices("volume", spec.variant)
    act = draw.pick(("relu", "leaky", "silu"), (0.75, 0.15, 0.1))
    form = draw.pick(
        ("whole", "parted", "mixed", "factored", "bottleneck", "depthwise", "plain", "mask"),
        (0.2, 0.15, 0.1, 0.1, 0.15, 0.12, 0.08, 0.1),
    )
    if form == "mask":
        return _mask(draw, spec, act)
    channels = draw.channels(spec.width)
    kernel = draw.pick(((3, 7, 7), (1, 7, 7), (3, 3, 3), (5, 7, 7)))
    parts: list[nn.Module] = [VolumeUnit(3, channels, kernel, act, stride=(1, 2, 2))]
    parts += [nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1))] if draw.chance(0.4) else []
    excite = draw.chance(0.5)
    for stage, blocks in enumerate(draw.split(spec.depth, 3)):
        filters = draw.channels(spec.width * 2**stage * (4 if form == "bottleneck" else 1))
        shrinking = (2 if stage > 1 else 1, 2, 2) if stage else (1, 1, 1)
        for place in range(blocks):
            stride = shrinking if place == 0 else (1, 1, 1)
            own = {"mixed": "whole" if stage == 0 else "flat"}.get(form, form)
            if form == "plain":
                parts += [nn.MaxPool3d(stride, stride)] if set(stride) != {1} else []
                parts.append(VolumeUnit(channels, filters, (3, 3, 3), act))
            else:
                parts.append(_block(channels, filters, own, act, stride, excite=excite))
            channels = filters
    pool = nn.AdaptiveAvgPool3d(1)
    return nn.Sequential(*parts, pool, nn.Flatten(1), nn.Linear(channels, spec.classes))
