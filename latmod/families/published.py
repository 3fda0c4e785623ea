"""Published networks, to test on: nothing is ever fitted to them."""

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from latmod.errors import SpecError
from latmod.families.family import Estimate
from latmod.families.file import FileFamily

if TYPE_CHECKING:
    from torch import nn


class PublishedSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name one published network, and the side of its input."""

    network: Annotated[str, Meta(pattern="^[A-Za-z0-9_]+$")]
    side: Annotated[int, Meta(ge=32, le=1024)] = 224
    batch: Annotated[int, Meta(ge=1)] = 1


class Torchvision:
    """The classification networks of torchvision, as it builds them, without trained weights."""

    name = "torchvision"
    spec_type = PublishedSpec
    native = False
    published = True
    on_meta = False
    input_type = "float32"

    def model_id(self, spec: msgspec.Struct) -> str:
        """Name a model after the network, its side and batch only where unusual."""
        return _model_id(_own(self.name, spec))

    def build(self, spec: msgspec.Struct) -> "nn.Module":
        """Build the module; raise SpecError for a network that torchvision does not have."""
        from torchvision.models import get_model

        own = _own(self.name, spec)
        options: dict[str, Any] = {}
        if own.network in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": False}
        try:
            module: nn.Module = get_model(own.network, weights=None, **options)
        except ValueError as error:
            raise SpecError(f"family {self.name}: {own.network}: {error}") from None
        return module

    def estimate(self, spec: msgspec.Struct) -> Estimate:
        """Count by running the module on torch's meta device, where some of these cannot be built."""
        import torch

        from latmod.families.tracing import trace_estimate

        def build(spec: msgspec.Struct) -> "nn.Module":
            with torch.device("cpu"):
                return self.build(spec).to("meta")

        return trace_estimate(build, spec, self.input_shape(spec))

    def input_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return batch x 3 x side x side."""
        own = _own(self.name, spec)
        return own.batch, 3, own.side, own.side

    def trace_shape(self, spec: msgspec.Struct) -> tuple[int, ...]:
        """Return the input's own shape."""
        return self.input_shape(spec)

    def graph(self, spec: msgspec.Struct) -> bytes | None:
        """Return None: the graph is exported."""
        return None


class Light(FileFamily):
    """The networks in the onnx package's folder `backend/test/data/light`: graphs of old exporters, without weights."""

    name = "light"
    spec_type = PublishedSpec
    published = True

    def model_id(self, spec: msgspec.Struct) -> str:
        """Name a model after the file."""
        return _model_id(_own(self.name, spec))

    def source(self, spec: msgspec.Struct) -> tuple[Path, dict[str, tuple[int, ...]]]:
        """Return the file; raise SpecError where the onnx package has none of that name."""
        own = _own(self.name, spec)
        path = Path(str(resources.files("onnx"))) / "backend" / "test" / "data" / "light" / f"light_{own.network}.onnx"
        if not path.is_file():
            raise SpecError(f"family {self.name}: no network {own.network}; there is no file {path}")
        return path, {}


def lineage(model: str) -> str:
    """Return the family that a published network belongs to by its name: `mobilenet` of `mobilenet_v3_large`.

    The files of the onnx package are one family: other exporters wrote them.
    """
    found = re.match("wide_resnet|[a-z]+", model)
    return found.group() if found else model


def _own(name: str, spec: msgspec.Struct) -> PublishedSpec:
    if not isinstance(spec, PublishedSpec):
        raise SpecError(f"family {name}: {type(spec).__name__} is the spec of another family")
    return spec


def _model_id(spec: PublishedSpec) -> str:
    parts = [spec.network]
    if spec.side != 224:
        parts.append(f"s{spec.side}")
    if spec.batch != 1:
        parts.append(f"batch{spec.batch}")
    return "-".join(parts)
