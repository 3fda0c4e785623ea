"""Keep a fitted predictor in one `.onnx` file: the map from features to latency, and its card as JSON in the metadata.

Nothing in the file is run as code. The SHA-256 over the whole file shows damage and careless edits; it is a checksum
and no signature: who changes the file on purpose can change the checksum as well.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from latmod.domain import Domain
from latmod.drift import Correction
from latmod.errors import PredictorError
from latmod.intervals import Widths
from latmod.timing import Reference

if TYPE_CHECKING:
    from onnx import ModelProto

GRAPH_SCHEMA, KERNEL_SCHEMA = 3, 4
# Schema 1: the first. 2: predictors of two levels, told apart by `level`. 3: every card tells the instruction set, and
# those of sums over kernels the prices of opening a model. 4, of these alone: one residual for all kernels.
_SCHEMAS = {"graph": GRAPH_SCHEMA, "kernel": KERNEL_SCHEMA}

MAX_BYTES = 50_000_000
"""A predictor has some 100 KB; this keeps a wrong file from being read into memory."""

CARD_KEY, SHA256_KEY = "latmod.card", "latmod.sha256"
_EMPTY_SHA256 = b"0" * 64


class Card(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a predictor: what for, made of what, how good.

    `machine` is a phrase for people, `isa` the machine's instruction set; `nominal` is the state of the machine that
    the latencies are stated for, `drift_weights` say how strongly they follow its parts (latmod.drift), and `fault_ns`
    what a page fault takes, of which they are free (latmod.faults). `quantiles` are those of |log(measured /
    predicted)| for models inside, near and far from the domain, or as in `latmod.intervals`; `scores` are means over
    models that the regressor had not seen.
    """

    schema: int
    latmod: str
    dataset: str
    space: str
    statistic: str
    runtime: str
    runtime_version: str
    settings: dict[str, str | int | bool]
    threads: int
    batches: tuple[int, ...]
    machine_id: str
    machine: str
    isa: tuple[str, ...]
    nominal: Reference | None
    drift_weights: tuple[float, ...]
    models: int
    scores: dict[str, float | None]
    noise_floor: float | None
    coverage: float
    quantiles: tuple[float, ...]
    fault_ns: float = 0.0

    @property
    def correction(self) -> Correction | None:
        """Return what states a latency in this runtime for the nominal state; None where no such state is known."""
        if self.nominal is None:
            return None
        return Correction(
            runtime=self.runtime, nominal=self.nominal, weights=self.drift_weights, fault_ns=self.fault_ns
        )


class GraphCard(Card, frozen=True, kw_only=True, tag_field="level", tag="graph"):
    """Describe a predictor of the graph level: one map from the features of a graph to its latency.

    `features` are the columns of the input, float32, in this order.
    """

    features: tuple[str, ...]
    domain: Domain
    regressor: str
    feature_set: str
    target: str
    params: dict[str, str | int | float | bool | None]
    regressor_seed: int
    chosen_by: str


class KernelCard(Card, frozen=True, kw_only=True, tag_field="level", tag="kernel"):
    """Describe a predictor of the kernel level: a sum over kernels.

    `rules` and the instruction set decide what the kernels are; `kinds` and `rates` are the physics (ns per unit of
    the quantities named in `physical`), `scales`, `call_ns` and `run_ns` the calibration to whole networks; `ranges`
    are what was seen of each kind; `pair_quantile` is that of the error of a pair of networks, per share of time that
    they do not have in common (latmod.differing); `load_prices` say what opening a model takes (latmod.load_time);
    `borrowed` are kinds that were measured on another machine alone (latmod.borrowing); `adapted_from` is the machine
    that all of this holds for where it is another, and `factors` say how many times longer kernels take on the
    predictor's own (latmod.factors); `width_slope` and `width_range_ns` say how the quantiles change with latency,
    `width_doubt_slope` and `width_doubt_range` how with doubt, `scatter` what comes to them (latmod.intervals). The
    file's graph holds the residual over the columns named in `seen`, and how far it is in doubt.
    """

    rules: str
    families: tuple[str, ...]
    kernels: int
    physical: tuple[str, ...]
    kinds: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]
    scales: tuple[float, ...]
    call_ns: float
    run_ns: float
    seen: tuple[str, ...]
    ranges: dict[str, tuple[tuple[float, float], ...]]
    pair_quantile: float
    load_prices: tuple[float, float, float]
    borrowed: tuple[str, ...] = ()
    adapted_from: str = ""
    factors: dict[str, float] = {}
    width_slope: float = 0.0
    width_range_ns: tuple[float, float] = (1.0, 1.0)
    width_doubt_slope: float = 0.0
    width_doubt_range: tuple[float, float] = (1.0, 1.0)
    scatter: float = 0.0

    @property
    def widths(self) -> Widths:
        """Return how wide intervals are."""
        return Widths(
            quantiles=self.quantiles,
            slope=self.width_slope,
            range_ns=self.width_range_ns,
            doubt_slope=self.width_doubt_slope,
            doubt_range=self.width_doubt_range,
            scatter=self.scatter,
        )


AnyCard = GraphCard | KernelCard


class _Schema(msgspec.Struct):
    schema: int
    level: str = ""


def pack(model: "ModelProto", card: AnyCard) -> bytes:
    """Return the file: the graph, the card, and the checksum over all of it with the checksum's own digits as zeros."""
    from onnx import helper

    helper.set_model_props(model, {CARD_KEY: msgspec.json.encode(card).decode(), SHA256_KEY: _EMPTY_SHA256.decode()})
    content: bytes = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest().encode()
    before, after = content.rsplit(_EMPTY_SHA256, 1)
    return before + digest + after


def repack(content: bytes, card: AnyCard) -> bytes:
    """Return a predictor file with another card."""
    from onnx import ModelProto

    return pack(ModelProto.FromString(content), card)


def unpack(content: bytes, name: str) -> AnyCard:
    """Check a file's content and return its card; `name` is for messages.

    Raises `PredictorError` when it is no ONNX file, not one of ours, of another schema, or changed since it was
    written.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from onnx import ModelProto

    try:
        # Damaged text comes out as bytes.
        texts = [prop for prop in ModelProto.FromString(content).metadata_props if isinstance(prop.value, str)]
        props = {prop.key: prop.value for prop in texts}
    except DecodeError:
        raise PredictorError(f"{name}: not an ONNX file; make a predictor with `latmod fit`") from None
    if CARD_KEY not in props or SHA256_KEY not in props:
        raise PredictorError(f"{name}: an ONNX file, but no latmod predictor; make one with `latmod fit`")
    try:
        found = msgspec.json.decode(props[CARD_KEY], type=_Schema)
    except msgspec.MsgspecError as error:
        raise PredictorError(f"{name}: unreadable card ({error}); make it again with `latmod fit`") from None
    if found.schema != (known := _SCHEMAS.get(found.level, max(_SCHEMAS.values()))):
        raise PredictorError(
            f"{name}: schema {found.schema}, this latmod reads {known}; make it again with `latmod fit`"
        )
    digest = props[SHA256_KEY].encode()
    before, _, after = content.rpartition(digest or _EMPTY_SHA256)
    if hashlib.sha256(before + _EMPTY_SHA256 + after).hexdigest().encode() != digest:
        raise PredictorError(f"{name}: changed since it was written (checksum differs); get it again or refit")
    try:
        card: AnyCard = msgspec.json.decode(props[CARD_KEY], type=AnyCard)
        return card
    except msgspec.MsgspecError as error:
        raise PredictorError(f"{name}: unreadable card ({error}); make it again with `latmod fit`") from None


def read_artifact(path: Path) -> tuple[bytes, AnyCard]:
    """Return the content and the card of a predictor file; raise `PredictorError` where it is none."""
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise PredictorError(f"{path}: not a file")
        if size > MAX_BYTES:
            raise PredictorError(f"{path}: {size / 1e6:.0f} MB, a predictor has at most {MAX_BYTES / 1e6:.0f} MB")
        content = path.read_bytes()
    except OSError as error:
        raise PredictorError(f"{path}: {error.strerror or error}") from None
    return content, unpack(content, str(path))
