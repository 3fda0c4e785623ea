"""Turn kernels into columns of numbers that regressors see: float32, the same in fitting and predicting."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latmod.kernels.kernel import FIELDS, Kernel

_L2_BYTES, _LARGE_L2_BYTES, _L3_BYTES = 512 * 1024, 1024 * 1024, 32 * 1024 * 1024
"""Cache sizes at which weights and activations begin to be read from farther away; typical of x86 servers."""

PHYSICAL = (
    "one", "macs", "padded_macs", "steps", "bytes_in", "bytes_out", "bytes_weights", "numel_out", "unfolded_bytes",
    "weights_over_l2", "weights_over_l3", "activations_over_l2", "activations_over_l3", "calls", "pieces",
)  # fmt: skip
"""Quantities that take time in proportion; physics gives each kind non-negative rates of these.

- unfolded_bytes: of the matrix that a convolution makes of its input (im2col).
- *_over_*: bytes beyond a cache; weights pass through it again for each of several products, as at every step of a
  recurrent layer.
- calls: how many products or groups are run one after another; pieces: how many contiguous pieces are copied.
"""

DERIVED = (
    "log_macs", "log_bytes", "log_weights", "intensity", "macs_per_out", "weights_per_l2", "activations_per_l2",
    "in_rest16", "out_rest16", "in_rest8", "out_rest8", "group_in", "group_out", "column_rest16", "row_rest",
    "pixels_out", "kernel_area", "aspect", "out_blocks", "filter_waste", "in_passes", "side_rest", "pixel_rest",
    "row_rest12", "padding_share", "pixel_rest4", "pixel_rest16", "filter_waste8", "side_waste3",
    "filter_waste16", "pixel_waste6", "panels_at_once", "restreamed", "shared_sets",
    "row_waste24", "row_waste48", "wide_tiles",
)  # fmt: skip
"""What the residual sees beside a kernel's numbers: sizes in logarithms, ratios, and remainders by block sizes.

The sizes are those of onnxruntime's kernels (MLAS, snchwc.cpp and sgemm.cpp): four blocks of 16 filters at once, 128
input channels in one pass of a 1x1 convolution, 6 pixels in a row at once, 12 rows of a product; without AVX-512 four
blocks of 8 filters and 3 pixels (SconvKernelAvxCommon.h): filter_waste8 and side_waste3. pixel_rest4 and pixel_rest16
are of torch's planes: where they are no multiple of a vector, all but the first begin off a boundary (batch norm over
31 x 31 takes twice as long per element as over 32 x 32, kernels-zen5).

filter_waste16 to shared_sets are of tract's tiles, 16 filters by 6 pixels (linalg, mmm/mod.rs). It walks so many panels
of either at once as a third of the L2 holds, from 1,986 inner steps on one; restreamed: where L2 does not hold the
weights, the share of them read again for each such block (3x3 on Zen 4 without AVX-512: 26 multiply-adds a nanosecond
for 39). shared_sets: the largest power of two, up to a way of the L1, that divides the distance of a tile's rows: at a
whole way they push each other out (3x3 of stride 2 on 192 x 192 runs at 0.6 of the rate of that on 208 x 208).
wide_tiles: with AVX-512 it takes tiles of 32 by 6 where fewer of these are needed than of 16 by 12 (LinearCostModel);
of plain products the longer side is cut into 32 or 16. On Zen 4 they run at 47 multiply-adds a nanosecond, others at 37
(products with weights, kernels-engines-zen4).
MNN's products take 24 rows at once, 48 with AVX-512: row_waste24 and row_waste48.
"""

OWN = {
    "filter_waste8": "onnxruntime", "side_waste3": "onnxruntime", "row_waste24": "mnn", "row_waste48": "mnn",
    "filter_waste16": "tract", "pixel_waste6": "tract", "panels_at_once": "tract", "restreamed": "tract",
    "shared_sets": "tract", "wide_tiles": "tract",
}  # fmt: skip
"""Columns that describe the blocks of one runtime alone, which others would only find chance in.

Seen by all, on Zen 4 without AVX-512, families left out: onnxruntime 5.5 -> 5.2 %, torch 5.9 -> 6.0, OpenVINO 9.5 ->
9.8, MNN 8.3 -> 9.0, tract 9.9 -> 10.0.
"""

CONTEXT = (
    "network_weights", "network_activations", "network_kernels", "bytes_before", "bytes_lately", "alike",
    "bytes_since_alike",
)  # fmt: skip
"""Logarithms of what the whole network has of weights, activations and kernels; of the bytes that the kernel before
this one, and the four before it, moved; of how many kernels write as many bytes as it does, and of the bytes moved
since the last of them.

Whether a kernel finds its weights, its input and the memory that it writes to in a cache hangs on what else ran since:
malloc gives it again what the last output of the same size lay in (torch's batch norm over some hundred channels of
28 x 28, kernels-zen5: 0.055 ns per byte in a network with 36 such, 0.17 in one with two).
"""

_LATELY = 4
_FLOAT_BYTES = 4.0

_TILE_FILTERS, _TILE_PIXELS, _MOST_PANELS = 16, 6, 16
_NARROW_TILE, _WIDE_TILE = (16, 12), (32, 6)
# On Zen 4 kernels that save 0.58 % of the tiles so are fast, those that save 0.27 % are not.
_FEWER = 0.996
_L1_WAY_BYTES = 4096
_MNN_ROWS = 24

COLUMNS = (*FIELDS, *PHYSICAL, *DERIVED, *CONTEXT)

Floats = NDArray[np.float64]
Columns = NDArray[np.float32]


def column_matrix(kernels: Sequence[Kernel]) -> Columns:
    """Return the columns named in `COLUMNS` of all kernels of one network, float32 [kernels, columns]."""
    numbers = np.array([kernel.numbers for kernel in kernels], dtype=np.float64).reshape(-1, len(FIELDS))
    x = {field: numbers[:, position] for position, field in enumerate(FIELDS)}
    physical = _physical(x)
    derived = _derived(x)
    whole = (x["bytes_weights"].sum(), (x["bytes_in"] + x["bytes_out"]).sum(), float(len(kernels)))
    moved = np.concatenate([np.zeros(_LATELY), x["bytes_weights"] + x["bytes_in"] + x["bytes_out"]])
    earlier = [moved[_LATELY - back : len(moved) - back] for back in range(1, _LATELY + 1)]
    sizes = (
        *(np.full(len(kernels), one) for one in whole),
        earlier[0],
        np.sum(earlier, axis=0),
        *_alike(x["bytes_out"], moved[_LATELY:]),
    )
    context = np.log2(np.stack(sizes, axis=1) + 1.0)
    parts = [
        numbers,
        *(physical[name][:, None] for name in PHYSICAL),
        *(derived[name][:, None] for name in DERIVED),
        context,
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _alike(written: Floats, moved: Floats) -> tuple[Floats, Floats]:
    """Return how many kernels write as many bytes, and the bytes moved since the last of them, run after run."""
    after, total = np.cumsum(moved), float(moved.sum())
    count, since = np.zeros(len(written)), np.zeros(len(written))
    for size in np.unique(written):
        places = np.flatnonzero(written == size)
        count[places] = len(places)
        between = after[places] - moved[places] - after[np.roll(places, 1)]
        since[places] = np.where(np.arange(len(places)) == 0, between + total, between)
    return count, since


def physical_part(columns: Columns) -> Floats:
    """Return the physical quantities among the columns, float64 [kernels, len(PHYSICAL)]."""
    first = len(FIELDS)
    return columns[:, first : first + len(PHYSICAL)].astype(np.float64)


def _physical(x: dict[str, Floats]) -> dict[str, Floats]:
    activations = x["bytes_in"] + x["bytes_out"]
    inner = np.maximum(x["inner"], 1.0)
    unfolded = (x["kernel_h"] * x["kernel_w"] > 1) | (x["stride"] > 1)
    repeated = (x["kernel_h"] == 0.0) & (x["products"] > 1.0)
    passes = np.where(repeated, x["products"], 1.0)
    matrix_bytes = np.where(repeated, _FLOAT_BYTES * x["columns"] * inner, np.inf)
    weights_at_once = np.minimum(x["bytes_weights"], matrix_bytes)
    return {
        "one": np.ones_like(x["macs"]),
        **{name: x[name] for name in PHYSICAL[1:8]},
        "unfolded_bytes": _FLOAT_BYTES * x["rows"] * x["inner"] * np.maximum(x["products"], 1.0) * unfolded,
        "weights_over_l2": passes * np.maximum(0.0, weights_at_once - _LARGE_L2_BYTES),
        "weights_over_l3": passes * np.maximum(0.0, weights_at_once - _L3_BYTES),
        "activations_over_l2": np.maximum(0.0, activations - _LARGE_L2_BYTES),
        "activations_over_l3": np.maximum(0.0, activations - _L3_BYTES),
        "calls": np.maximum(x["products"], x["group"]),
        "pieces": np.where(x["products"] > 0, 0.0, x["numel_out"] / inner) * (x["inner"] > 0),
    }


def _derived(x: dict[str, Floats]) -> dict[str, Floats]:
    activations = x["bytes_in"] + x["bytes_out"]
    moved = activations + x["bytes_weights"]
    groups = np.maximum(x["group"], 1.0)
    blocks, blocks8 = np.ceil(x["channels_out"] / 16.0), np.ceil(x["channels_out"] / 8.0)
    panel_bytes = _FLOAT_BYTES * (_TILE_FILTERS + _TILE_PIXELS) * np.maximum(x["inner"], 1.0)
    panels = np.clip(_LARGE_L2_BYTES // 3 // panel_bytes, 1.0, _MOST_PANELS)
    row_bytes = 4 * np.where(x["kernel_h"] > 0, x["rows"], x["columns"]).astype(np.int64)
    return {
        "log_macs": np.log2(x["macs"] + 1.0),
        "log_bytes": np.log2(activations + 1.0),
        "log_weights": np.log2(x["bytes_weights"] + 1.0),
        "intensity": x["macs"] / np.maximum(moved, 1.0),
        "macs_per_out": x["macs"] / np.maximum(x["numel_out"], 1.0),
        "weights_per_l2": np.log2(x["bytes_weights"] / _L2_BYTES + 1e-3),
        "activations_per_l2": np.log2(activations / _L2_BYTES + 1e-3),
        "in_rest16": x["channels_in"] % 16,
        "out_rest16": x["channels_out"] % 16,
        "in_rest8": x["channels_in"] % 8,
        "out_rest8": x["channels_out"] % 8,
        "group_in": x["channels_in"] / groups,
        "group_out": x["channels_out"] / groups,
        "column_rest16": x["columns"] % 16,
        "row_rest": x["rows"] % 6,
        "pixels_out": x["side_out"] ** 2,
        "kernel_area": x["kernel_h"] * x["kernel_w"],
        "aspect": np.log2((x["rows"] + 1.0) / (x["columns"] + 1.0)),
        "out_blocks": blocks,
        "filter_waste": _padded(blocks, 4),
        "filter_waste8": _padded(blocks8, 4),
        "filter_waste16": _padded(x["columns"], _TILE_FILTERS),
        "pixel_waste6": _padded(x["rows"], _TILE_PIXELS),
        "panels_at_once": panels,
        "restreamed": (x["bytes_weights"] > 0.93 * _LARGE_L2_BYTES) * (panels > 1.0) / panels,
        "shared_sets": np.log2(np.maximum(np.gcd(row_bytes, _L1_WAY_BYTES), 1.0)),
        "row_waste24": _padded(x["rows"], _MNN_ROWS),
        "row_waste48": _padded(x["rows"], 2 * _MNN_ROWS),
        "wide_tiles": _takes_wide_tiles(x),
        "side_waste3": _padded(x["side_out"], 3),
        "in_passes": np.ceil(x["channels_in"] / 128.0),
        "side_rest": np.round(x["side_out"]) % 6,
        "pixel_rest": np.round(x["side_out"] ** 2) % 6,
        "row_rest12": x["rows"] % 12,
        "pixel_rest4": np.round(x["side_out"] ** 2) % 4,
        "pixel_rest16": np.round(x["side_out"] ** 2) % 16,
        "padding_share": (x["kernel_h"] - 1.0)
        * np.maximum(x["dilation"], 1.0)
        / np.maximum(x["side_out"], 1.0)
        * (x["kernel_h"] > 0),
    }


def _takes_wide_tiles(x: dict[str, Floats]) -> Floats:
    rows, columns = x["rows"], x["columns"]
    turned = (rows > columns) & (x["kernel_h"] * x["kernel_w"] <= 1.0)
    cut, other = np.where(turned, rows, columns), np.where(turned, columns, rows)
    narrow, wide = (np.ceil(cut / tile[0]) * np.ceil(other / tile[1]) for tile in (_NARROW_TILE, _WIDE_TILE))
    return np.asarray(wide < _FEWER * narrow, dtype=np.float64)


def _padded(count: Floats, block: int) -> Floats:
    """Return by what factor whole blocks are more than there is."""
    return np.asarray(np.ceil(count / block) * block / np.maximum(count, 1.0))
