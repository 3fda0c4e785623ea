"""Say what a family of models is: a spec type, a builder, and an estimate that needs no torch."""

from typing import TYPE_CHECKING, Protocol

import msgspec

from latmod.specs import SpecFamily

if TYPE_CHECKING:
    from torch import nn


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a model will cost, known before it is built."""

    macs: int
    params: int
    peak_memory_bytes: int


class Family(SpecFamily, Protocol):
    """Describe and build one kind of model. Every method raises SpecError for the spec of another family."""

    def build(self, spec: msgspec.Struct) -> "nn.Module":
        """Build the module on torch's current default device (`meta` costs no memory), with torch's default weights."""

    def estimate(self, spec: msgspec.Struct) -> Estimate:
        """Compute MACs, parameters and memory from the spec alone, without torch."""

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the shape of the model's one input."""

    def trace_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the cheapest input shape that leads to the same graph, to trace the model with."""
