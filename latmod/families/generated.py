"""Families whose members are drawn at random: five numbers and a seed that decides the rest."""

import importlib
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from latmod.errors import SpecError
from latmod.families.choices import Choices
from latmod.families.family import Estimate

if TYPE_CHECKING:
    from torch import nn

Positive = Annotated[int, Meta(ge=1)]

BANDS = 80
"""Bands of a spectrum, as speech recognisers have them (Radford et al. 2022, arXiv:2212.04356)."""


class GeneratedSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Describe one random network.

    `width` is the number of channels that the first stage has, or about so; `depth` is the number of blocks; `side`
    the input's height and width in pixels, or the number of its tokens or frames. `variant` seeds all other choices:
    kernel sizes, groups, expansions, activations, the depth of each stage, the forms that exporters write.
    """

    variant: Annotated[int, Meta(ge=0)]
    width: Annotated[int, Meta(ge=4, le=1024)]
    depth: Annotated[int, Meta(ge=1, le=64)]
    side: Annotated[int, Meta(ge=16, le=1024)] = 224
    batch: Positive = 1
    classes: Positive = 1000


class GeneratedFamily:
    """A family of random networks, built by `network(spec)` of the module that bears its name."""

    spec_type = GeneratedSpec
    native = False
    published = False
    on_meta = True
    input_type = "float32"

    def __init__(self, name: str) -> None:
        """Name the family and so its module."""
        self.name = name

    def model_id(self, spec: msgspec.Struct) -> str:
        """Name a model after its spec, such as `mobile-17-w24-d9-s192`; batch and classes only where unusual."""
        own = self._own(spec)
        parts = [self.name, str(own.variant), f"w{own.width}", f"d{own.depth}", f"s{own.side}"]
        if own.batch != 1:
            parts.append(f"batch{own.batch}")
        if own.classes != 1000:
            parts.append(f"classes{own.classes}")
        return "-".join(parts)

    def build(self, spec: msgspec.Struct) -> "nn.Module":
        """Build the module on torch's current default device, with torch's default weights."""
        module: nn.Module = importlib.import_module(f"latmod.families.{self.name}").network(self._own(spec))
        return module

    def estimate(self, spec: msgspec.Struct) -> Estimate:
        """Count MACs, parameters and memory by running the module on torch's meta device, which computes nothing."""
        from latmod.families.tracing import trace_estimate

        return trace_estimate(self.build, self._own(spec), self.input_shape(spec), self.input_type)

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return batch x 3 x side x side."""
        own = self._own(spec)
        return own.batch, 3, own.side, own.side

    def trace_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the input's own shape: tokens, windows and pools depend on it."""
        return self.input_shape(spec)

    def graph(self, spec: msgspec.Struct) -> bytes | None:
        """Return None: models are built."""
        return None

    def _own(self, spec: msgspec.Struct) -> GeneratedSpec:
        if not isinstance(spec, GeneratedSpec):
            raise SpecError(f"family {self.name}: {type(spec).__name__} is the spec of another family")
        return spec


class TokenFamily(GeneratedFamily):
    """A family of random networks over token ids."""

    input_type = "int64"

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return batch x side."""
        own = self._own(spec)
        return own.batch, own.side


class SeriesFamily(GeneratedFamily):
    """A family of random networks over spectra."""

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return batch x bands x side."""
        own = self._own(spec)
        return own.batch, BANDS, own.side


class VolumeFamily(GeneratedFamily):
    """A family of random networks over some frames of video."""

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return batch x 3 x frames x side x side; the variant says how many frames."""
        own = self._own(spec)
        frames = Choices(f"{self.name} frames", own.variant).pick((4, 8, 16))
        return own.batch, 3, frames, own.side, own.side
