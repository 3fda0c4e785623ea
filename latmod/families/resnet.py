"""Residual networks (He et al. 2015, arXiv:1512.03385) with any number of blocks and any width."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from latmod.errors import SpecError
from latmod.families.family import FLOAT_BYTES, MEMORY_FACTOR, Estimate

if TYPE_CHECKING:
    from torch import nn

Positive = Annotated[int, Meta(ge=1)]
# Four times the largest number of blocks per stage of the five standard networks (3, 8, 36, 3).
Blocks = tuple[
    Annotated[int, Meta(ge=1, le=12)],
    Annotated[int, Meta(ge=1, le=32)],
    Annotated[int, Meta(ge=1, le=144)],
    Annotated[int, Meta(ge=1, le=12)],
]


class ResNetSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one residual network.

    `width` is the number of filters at the start of the first stage, doubled by each later stage; `widen` multiplies
    the 3x3 convolutions of bottleneck blocks (2 in the wide networks, Zagoruyko 2016, arXiv:1605.07146); `side` is
    the input's height and width in pixels.
    """

    block: Literal["basic", "bottleneck"]
    blocks: Blocks
    width: Annotated[int, Meta(ge=1, le=192)] = 64
    widen: Annotated[float, Meta(ge=1, le=8)] = 1
    side: Annotated[int, Meta(ge=32)] = 224
    batch: Positive = 1
    classes: Positive = 1000

    def __post_init__(self) -> None:
        """Raise ValueError, which msgspec reports, for a field that the block does not have."""
        if self.block == "basic" and self.widen != 1:
            raise ValueError(f"widen = {self.widen:g} needs bottleneck blocks")


class Convolution(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one convolution with its batch norm; `held` counts the values of the shortcut that wait meanwhile."""

    channels_in: int
    channels_out: int
    kernel: int
    side_in: int
    side_out: int
    held: int = 0

    @property
    def weights(self) -> int:
        """Count the weights."""
        return self.channels_in * self.channels_out * self.kernel**2

    @property
    def macs(self) -> int:
        """Count multiply-accumulates for one image."""
        return self.weights * self.side_out**2

    @property
    def live_values(self) -> int:
        """Count the activations that are in memory at once for one image."""
        return self.channels_in * self.side_in**2 + self.channels_out * self.side_out**2 + self.held


class ResNet:
    """The family of residual networks; the five standard and the two wide ones equal torchvision's."""

    name = "resnet"
    spec_type = ResNetSpec
    native = True
    published = False
    on_meta = True
    input_type = "float32"

    def model_id(self, spec: msgspec.Struct) -> str:
        """Name a model after its spec, such as `resnet-basic-2.2.2.2-w64`; fields at their defaults are left out."""
        own = _own(spec)
        parts = [self.name, own.block, ".".join(map(str, own.blocks)), f"w{own.width}"]
        defaults = ResNetSpec(block=own.block, blocks=own.blocks)
        for field in ("widen", "side", "batch", "classes"):
            if getattr(own, field) != getattr(defaults, field):
                parts.append(f"{field}{getattr(own, field):g}" if field == "widen" else f"{field}{getattr(own, field)}")
        return "-".join(parts)

    def build(self, spec: msgspec.Struct) -> "nn.Module":
        """Build the module on torch's current default device, with torch's default weights."""
        from latmod.families.resnet_module import ResidualNetwork

        own = _own(spec)
        return ResidualNetwork(
            block=own.block, blocks=own.blocks, width=own.width, widen=own.widen, classes=own.classes
        )

    def estimate(self, spec: msgspec.Struct) -> Estimate:
        """Compute MACs, parameters and an upper bound of memory in closed form.

        What must be held is the weights and the activations on both sides of the largest operator.
        """
        own = _own(spec)
        features = _channels_out(own, stage=3)
        head = features * own.classes
        macs, params, live = head, head + own.classes, 0
        for convolution in _convolutions(own):
            macs += convolution.macs
            params += convolution.weights + 2 * convolution.channels_out
            live = max(live, convolution.live_values)
        return Estimate(
            macs=macs * own.batch,
            params=params,
            peak_memory_bytes=MEMORY_FACTOR * FLOAT_BYTES * (params + live * own.batch),
        )

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return batch x 3 x side x side."""
        own = _own(spec)
        return own.batch, 3, own.side, own.side

    def trace_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return one image of the smallest side: pooling is global, so the graph depends on neither."""
        _own(spec)
        return 1, 3, 32, 32

    def graph(self, spec: msgspec.Struct) -> bytes | None:
        """Return None: models are built."""
        return None


def _own(spec: msgspec.Struct) -> ResNetSpec:
    if not isinstance(spec, ResNetSpec):
        raise SpecError(f"family resnet: {type(spec).__name__} is the spec of another family")
    return spec


def _channels_out(spec: ResNetSpec, *, stage: int) -> int:
    planes = spec.width << stage
    return planes if spec.block == "basic" else 4 * planes


def _half(side: int) -> int:
    # All strided operators here, 7x7, 3x3 and 1x1 with their paddings, give the same output side.
    return (side - 1) // 2 + 1


def _convolutions(spec: ResNetSpec) -> Iterator[Convolution]:
    side = _half(spec.side)
    yield Convolution(channels_in=3, channels_out=spec.width, kernel=7, side_in=spec.side, side_out=side)
    side, channels = _half(side), spec.width
    for stage, blocks in enumerate(spec.blocks):
        for position in range(blocks):
            side_out = _half(side) if stage and not position else side
            yield from _block(spec, stage, channels, side, side_out)
            side, channels = side_out, _channels_out(spec, stage=stage)


def _block(spec: ResNetSpec, stage: int, channels: int, side: int, side_out: int) -> Iterator[Convolution]:
    planes, channels_out = spec.width << stage, _channels_out(spec, stage=stage)
    inner = int(planes * spec.widen)
    path: tuple[tuple[int, int, int, int, int], ...]
    if spec.block == "basic":
        path = ((channels, planes, 3, side, side_out), (planes, planes, 3, side_out, side_out))
    else:
        path = (
            (channels, inner, 1, side, side),
            (inner, inner, 3, side, side_out),
            (inner, channels_out, 1, side_out, side_out),
        )
    for position, (channels_in, filters, kernel, side_in, side_of_out) in enumerate(path):
        yield Convolution(
            channels_in=channels_in,
            channels_out=filters,
            kernel=kernel,
            side_in=side_in,
            side_out=side_of_out,
            held=channels * side**2 if position else 0,
        )
    if side_out != side or channels_out != channels:
        held = channels_out * side_out**2
        yield Convolution(
            channels_in=channels, channels_out=channels_out, kernel=1, side_in=side, side_out=side_out, held=held
        )
