"""Say what a family of models is: a spec type, a builder, and an estimate of what a model will cost."""

from typing import TYPE_CHECKING, Protocol

import msgspec

from latmod.specs import SpecFamily

if TYPE_CHECKING:
    from torch import nn


FLOAT_BYTES = 4
# What onnxruntime 1.32 needs at its peak, while it folds batch norms and packs weights, over what the model holds: 3.6
# measured where weights prevail, 3.5 where activations do; torch 2.14 needs 1.1 and 2.5.
MEMORY_FACTOR = 4


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a model will cost, known before it is built."""

    macs: int
    params: int
    peak_memory_bytes: int


class Family(SpecFamily, Protocol):
    """Describe and build one kind of model. Every method raises SpecError for the spec of another family.

    The model's one input holds values of `input_type`: `float32`, or `int64` where it takes token ids.

    Runtime torch times the module itself where a family is `native`, else what becomes of the exported graph. The
    models of a `published` family are there to test on, and nothing is fitted to them. A module is built `on_meta`,
    torch's device without memory, unless it computes constants of its own while it is built.
    """

    native: bool
    published: bool
    on_meta: bool
    input_type: str

    def build(self, spec: msgspec.Struct) -> "nn.Module":
        """Build the module on torch's current default device (`meta` costs no memory), with torch's default weights."""

    def estimate(self, spec: msgspec.Struct) -> Estimate:
        """Compute MACs, parameters and memory, without computing anything that the model would."""

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the shape of the model's one input."""

    def trace_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the cheapest input shape that leads to the same graph, to trace the model with."""

    def graph(self, spec: msgspec.Struct) -> bytes | None:
        """Return the weight-free graph of a model that comes as a file, None where it is built and exported."""
