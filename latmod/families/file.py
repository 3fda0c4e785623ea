"""Networks that come as `.onnx` files of one's own: what to measure, test on or fit to beside the generated ones."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from latmod.errors import SpecError
from latmod.families.family import FLOAT_BYTES, MEMORY_FACTOR, Estimate

if TYPE_CHECKING:
    from torch import nn

    from latmod.graph import Graph


class FileSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Name an `.onnx` file, and what its free dims are, each as NAME=1x3x224x224."""

    path: str
    shapes: tuple[str, ...] = ()


class File:
    """Networks read from files, with or without weights; a relative path counts from the current folder."""

    name = "file"
    spec_type: type[msgspec.Struct] = FileSpec
    native = False
    published = False
    on_meta = True
    input_type = "float32"

    def model_id(self, spec: msgspec.Struct) -> str:
        """Name a model after its file."""
        return Path(self._own(spec).path).stem

    def build(self, spec: msgspec.Struct) -> "nn.Module":
        """Raise SpecError: there is no module."""
        raise SpecError(f"family {self.name}: these networks are files, not modules")

    def estimate(self, spec: msgspec.Struct) -> Estimate:
        """Count from the graph. Raises GraphError for a file that cannot be read, or whose shapes hang on more."""
        from latmod.graph import parse_shapes, read_graph

        own = self._own(spec)
        return estimate_graph(read_graph(Path(own.path), parse_shapes(own.shapes)))

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the shape of the file's first input."""
        from latmod.graph import parse_shapes, read_graph

        own = self._own(spec)
        return read_graph(Path(own.path), parse_shapes(own.shapes)).inputs[0].shape

    def trace_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the same."""
        return self.input_shape(spec)

    def graph(self, spec: msgspec.Struct) -> bytes | None:
        """Return the file without its weights, its free dims set. Raises GraphError."""
        from latmod.graph import parse_shapes, strip_weights

        own = self._own(spec)
        return strip_weights(Path(own.path), parse_shapes(own.shapes))

    def _own(self, spec: msgspec.Struct) -> FileSpec:
        if not isinstance(spec, FileSpec):
            raise SpecError(f"family {self.name}: {type(spec).__name__} is the spec of another family")
        return spec


def estimate_graph(graph: "Graph") -> Estimate:
    """Count what a graph costs: MACs, parameters and the memory that an engine needs for both."""
    from latmod.cost import cost, parameters

    costs = [cost(node, graph) for node in graph.nodes]
    params = parameters(graph)
    largest = max((one.bytes_activations for one in costs), default=0)
    return Estimate(
        macs=sum(one.macs for one in costs),
        params=params,
        peak_memory_bytes=MEMORY_FACTOR * (FLOAT_BYTES * params + 2 * largest),
    )
