"""The additive model: a network's latency is the sum over its kernels of physics times the exponential of a residual.

Physics gives each kind of kernel non-negative rates of physical quantities, fitted on relative error. The residual,
small networks, corrects it by what rates cannot say: remainders by block sizes, caches, shapes that an engine likes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from latmod.columns import Writer
from latmod.kernels import Kernel
from latmod.kernels.columns import COLUMNS, OWN, PHYSICAL, Columns, column_matrix, physical_part
from latmod.smooth import Smooth

if TYPE_CHECKING:
    from onnx import ModelProto

Floats = NDArray[np.float64]

GROUPS = ("dense convolution", "other convolution", "product", "other")
"""Kernels that share one scale."""

OTHER = "other kinds"
"""Stands for every kind that was seen too rarely to have rates of its own, or never, nor has any of its class."""

_MOVEMENTS = frozenset(
    {
        "ChannelShuffle", "Concat", "CopyingReshape", "DepthToSpace", "Expand", "Flatten", "Gather", "Pad", "Reorder",
        "ReorderInput", "ReorderOutput", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze", "Upsample",
    }
)  # fmt: skip
_REDUCTIONS = ("Pool", "Reduce", "Softmax", "LRN", "LayerNorm", "InstanceNorm", "GroupNorm", "Lp", "Arg", "TopK", "Cum")

APART = "rows taken apart"
"""A class of its own: an element takes ncnn 100 times as long as in any other movement.

As one of these it priced what else goes by element: on a machine where no map was resized, SegFormer at 10 s.
"""

FLOOR_NS = 300.0
"""No kernel takes less: the dispatch of one operator."""
MAX_RESIDUAL = 2.0
"""Bound of the residual's logarithm; physics alone is rarely off by more than a factor of 7."""


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the rates of every kind, ns per unit of each quantity in `PHYSICAL`."""

    kinds: tuple[str, ...]
    rates: tuple[tuple[float, ...], ...]

    def index(self, kinds: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each kind; for one without, that of the kind it is a form of, of its class, or of `OTHER`.

        `Conv 3x3/strided` is a form of `Conv 3x3`.
        """
        rows = {kind: row for row, kind in enumerate(self.kinds)}
        found = {
            kind: next(rows[name] for name in (kind, kind.partition("/")[0], others_of(kind), OTHER) if name in rows)
            for kind in set(kinds)
        }
        return np.array([found[kind] for kind in kinds], dtype=np.int64)

    def ns(self, kinds: Sequence[str], columns: Columns) -> Floats:
        """Return what physics says of kernels."""
        rates = np.array(self.rates)[self.index(kinds)]
        return np.asarray(np.maximum((rates * physical_part(columns)).sum(axis=1), FLOOR_NS))


class Residual(Protocol):
    """Tell the logarithm of what kernels take over what physics says."""

    def predict(self, x: Columns) -> tuple[Floats, Floats]:
        """Return it, [N], from the columns in `SEEN`, [N, D], and by how much networks differ about it, [N]."""


class Seeing(msgspec.Struct, frozen=True, kw_only=True):
    """Let networks see some of the columns alone."""

    networks: Smooth
    positions: tuple[int, ...]

    def predict(self, x: Columns) -> tuple[Floats, Floats]:
        """Return the residual, [N], from the columns in `SEEN`, [N, D], and by how much networks differ, [N]."""
        return self.networks.predict(x[:, self.positions])


class Additive(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a fitted additive model; `residual` is None where there are rates alone.

    A kernel takes `scales[group] * physics * exp(residual) + call_ns`, at least a tenth of what stands before the sum;
    a network takes the sum over its kernels plus `run_ns`.
    """

    rates: Rates
    residual: Residual | None
    scales: tuple[float, ...]
    call_ns: float
    run_ns: float

    def kernel_ns(self, kernels: Sequence[Kernel], columns: Columns | None = None) -> Floats:
        """Return what each kernel takes, in ns, as part of its network; `columns` are theirs, made where not given."""
        return self.doubted_ns(kernels, columns)[0]

    def doubted_ns(self, kernels: Sequence[Kernel], columns: Columns | None = None) -> tuple[Floats, Floats]:
        """Return this, and by how much networks differ about each, the standard deviation of logarithms."""
        raw, doubts, groups = self.raw_ns(kernels, columns)
        scaled = raw * np.array(self.scales)[groups]
        return np.asarray(np.maximum(scaled + self.call_ns, 0.1 * scaled)), doubts

    def raw_ns(
        self, kernels: Sequence[Kernel], columns: Columns | None = None
    ) -> tuple[Floats, Floats, NDArray[np.int64]]:
        """Return what each kernel takes by itself, in ns, by how much networks differ about it, and its group."""
        columns = column_matrix(kernels) if columns is None else columns
        kinds = [kernel.kind for kernel in kernels]
        groups = np.array([group_of(kind) for kind in kinds], dtype=np.int64)
        physics = self.rates.ns(kinds, columns)
        if self.residual is None or not kinds:
            return physics, np.zeros(len(kinds)), groups
        residual, doubts = self.residual.predict(residual_columns(columns, self.rates.index(kinds), physics))
        return physics * np.exp(np.clip(residual, -MAX_RESIDUAL, MAX_RESIDUAL)), doubts, groups

    def latency_ns(self, kernels: Sequence[Kernel]) -> float:
        """Return what a network takes."""
        return float(self.kernel_ns(kernels).sum()) + self.run_ns


def uncalibrated(rates: Rates, residual: Residual | None = None) -> Additive:
    """Return the model of these prices before whole latencies have a say."""
    return Additive(rates=rates, residual=residual, scales=(1.0,) * len(GROUPS), call_ns=0.0, run_ns=0.0)


PRIOR = uncalibrated(
    Rates(
        kinds=(OTHER,),
        rates=(tuple({"one": 2000.0, "macs": 0.02, "bytes_in": 0.1, "bytes_out": 0.1}.get(n, 0.0) for n in PHYSICAL),),
    )
)
"""Rough prices of any engine on any server core: 50 GMACs and 10 GB a second, 2 us a call."""


def residual_to_onnx(model: Additive) -> tuple["ModelProto", tuple[str, ...]]:
    """Return the residual as an ONNX model, and the names of its columns.

    Its input is `features`, its outputs `residual` and by how much networks differ, `doubt`.
    """
    assert isinstance(model.residual, Seeing), "only what was fitted here can be written"
    positions = model.residual.positions
    out = Writer(len(positions))
    residual, doubt = model.residual.networks.write(out, out.cast("features", "float64"))
    return out.finish(residual=residual, doubt=doubt), tuple(SEEN[position] for position in positions)


def group_of(kind: str) -> int:
    """Return the position in `GROUPS` of a kind."""
    if any(form in kind for form in ("depthwise", "grouped", "Conv in place", "Conv unfolded")):
        return 1
    if "Conv" in kind and "Pool" not in kind:
        return 0
    return 2 if any(form in kind for form in ("MatMul", "Gemm", "LSTM", "GRU")) else 3


def class_of(kind: str) -> str:
    """Return what a kind is like: a kernel of a kind that was never seen costs what others of its class do."""
    group = GROUPS[group_of(kind)]
    if group != "other":
        return "products" if group == "product" else "convolutions"
    op = kind.partition(" ")[0].partition("/")[0].rpartition("::")[2]
    if op == "RowsToImage":
        return APART
    if op in _MOVEMENTS:
        return "movements"
    return "reductions" if any(part in op for part in _REDUCTIONS) else "element-wise"


def others_of(kind: str) -> str:
    """Return the name under which rates for kinds of this class that were never seen are kept."""
    return f"other {class_of(kind)}"


def residual_columns(columns: Columns, kind_rows: NDArray[np.int64], physics: Floats) -> Columns:
    """Return what residuals see: a kernel's columns, the logarithm of its physics, and the row of its kind."""
    more = np.stack([np.log2(physics), kind_rows.astype(np.float64)], axis=1)
    return np.concatenate([columns, more.astype(np.float32)], axis=1)


SEEN = (*COLUMNS, "log_physics", "kind")


def seen_by(runtime: str) -> tuple[int, ...]:
    """Return the places in `SEEN` of the columns that a runtime's residual sees."""
    return tuple(place for place, name in enumerate(SEEN) if OWN.get(name, runtime) == runtime)
