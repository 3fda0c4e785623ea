"""What a worker is asked and what it answers: one JSON line each."""

import msgspec

from latmod.dataset import KernelTime, SpecFields
from latmod.machine import Disturbance
from latmod.runtimes import Model, Settings
from latmod.timing import Burst, BurstPlan, Reference


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Name a model, how it is to run, and what it is fed."""

    model: Model
    settings: Settings
    images: str = ""
    """A folder of photographs, empty for those that ship with latmod."""
    input_count: int = 4
    input_seed: int = 0


class BurstRequest(ModelRequest, frozen=True, kw_only=True, tag="burst"):
    """Ask for one burst of one model."""

    plan: BurstPlan


class KernelRequest(ModelRequest, frozen=True, kw_only=True, tag="kernels"):
    """Ask what each kernel of a model takes."""

    seconds: float
    patience_seconds: float = 0.0
    quiet_ns: int = 0


class ExportRequest(msgspec.Struct, frozen=True, kw_only=True, tag="export"):
    """Ask to build a spec and write its weight-free graph."""

    family: str
    spec: SpecFields
    path: str


class ReferenceRequest(msgspec.Struct, frozen=True, kw_only=True, tag="reference"):
    """Ask to run the reference load for so many seconds, under the same conditions as around a burst."""

    seconds: float


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """Say that the worker has started."""

    cores: tuple[int, ...]


class BurstReply(msgspec.Struct, frozen=True, kw_only=True, tag="burst-reply"):
    """Return the samples, and what was going on around them."""

    burst: Burst
    load_ns: int
    settings: dict[str, str | int | bool]
    output: tuple[float, ...]
    finite: bool
    inputs: str
    """What the inputs were: `images` or `random`."""


class KernelReply(msgspec.Struct, frozen=True, kw_only=True, tag="kernel-reply"):
    """Return what each kernel took, and the reference load before and after."""

    kernels: tuple[KernelTime, ...]
    before: Reference
    after: Reference


class ExportReply(msgspec.Struct, frozen=True, kw_only=True, tag="export-reply"):
    """Say that the graph is written."""

    export_ns: int


class ReferenceReply(msgspec.Struct, frozen=True, kw_only=True, tag="reference-reply"):
    """Return every pass of the reference load, and what went on meanwhile."""

    passes: tuple[Reference, ...]
    disturbance: Disturbance


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """Say in one line what could not be done; the worker lives on."""

    reason: str


Request = BurstRequest | KernelRequest | ExportRequest | ReferenceRequest
Reply = Ready | BurstReply | KernelReply | ExportReply | ReferenceReply | Failure
