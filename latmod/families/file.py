"""Networks that come as `.onnx` files; those of one's own to measure, test on or fit to beside the generated ones."""

from abc import ABC, abstractmethod
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


class FileFamily(ABC):
    """Networks that come as files, with or without weights."""

    name: str
    native = False
    on_meta = True
    input_type = "float32"

    @abstractmethod
    def source(self, spec: msgspec.Struct) -> tuple[Path, dict[str, tuple[int, ...]]]:
        """Return the file and the shapes that its inputs are set to. Raises SpecError for another family's spec."""

    def build(self, spec: msgspec.Struct) -> "nn.Module":
        """Raise SpecError: there is no module."""
        raise SpecError(f"family {self.name}: these networks are files, not modules")

    def estimate(self, spec: msgspec.Struct) -> Estimate:
        """Count from the graph. Raises GraphError for a file that cannot be read, or whose shapes hang on more."""
        from latmod.graph import read_graph

        return _estimate(read_graph(*self.source(spec)))

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the shape of the file's first input."""
        from latmod.graph import read_graph

        return read_graph(*self.source(spec)).inputs[0].shape

    def trace_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the same."""
        return self.input_shape(spec)

    def graph(self, spec: msgspec.Struct) -> bytes | None:
        """Return the file without its weights, its free dims set. Raises GraphError."""
        from latmod.graph import strip_weights

        return strip_weights(*self.source(spec))


class File(FileFamily):
    """Networks of one's own; a relative path counts from the current folder."""

    name = "file"
    spec_type: type[msgspec.Struct] = FileSpec
    published = False

    def model_id(self, spec: msgspec.Struct) -> str:
        """Name a model after its file."""
        return self.source(spec)[0].stem

    def source(self, spec: msgspec.Struct) -> tuple[Path, dict[str, tuple[int, ...]]]:
        """Return the file that is named, and the shapes that its free dims lead to."""
        from latmod.graph import parse_shapes

        if not isinstance(spec, FileSpec):
            raise SpecError(f"family {self.name}: {type(spec).__name__} is the spec of another family")
        return Path(spec.path), parse_shapes(spec.shapes)


def _estimate(graph: "Graph") -> Estimate:
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
