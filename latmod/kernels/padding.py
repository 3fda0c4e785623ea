"""Leave out of dilated convolutions what engines skip of them: products with nothing but padding."""

from collections.abc import Mapping
from math import prod
from typing import Protocol

from latmod.kernels.kernel import Kernel
from latmod.kernels.nchwc import DOMAIN

_EDGE = 1.75


class _Share(Protocol):
    def __call__(self, rows: "_Span", columns: "_Span", /) -> float:
        """Return what is left of a convolution's work."""


class _Span:
    """Count the taps that lie on the map, along one dim; padding is as the sizes have it, alike on both sides."""

    def __init__(self, size: int, written: int, taps: int, stride: int, dilation: int) -> None:
        before = max(0, (written - 1) * stride + (taps - 1) * dilation + 1 - size) // 2
        inside = [
            sum(0 <= place * stride + tap * dilation - before < size for tap in range(taps)) for place in range(written)
        ]
        self.reached = dilation < size
        self.share = sum(inside) / (written * taps)
        """Of all taps, those on the map."""
        self.whole = inside.count(taps) / written
        """Of all places, those with every tap on the map."""


def _both_ways(rows: _Span, columns: _Span) -> float:
    return rows.share * columns.share


def _both_ways_where_reached(rows: _Span, columns: _Span) -> float:
    return _both_ways(rows, columns) if rows.reached and columns.reached else 1.0


def _dearer_at_edges(rows: _Span, columns: _Span) -> float:
    return rows.share * (columns.whole + _EDGE * (columns.share - columns.whole))


_SKIPPED: Mapping[str, _Share] = {
    "onnxruntime": _dearer_at_edges,
    "openvino": _both_ways,
    "torch": _both_ways_where_reached,
    "torch-compile": _both_ways,
}
"""What is left of a dilated convolution over images; all of it in other runtimes.

Measured on Zen 5, 3 x 3, 256 to 256 channels of 28 x 28, dilations of 2, 6, 12 and 24, of which 0.90, 0.73, 0.51 and
0.18 is on the map, over a dilation of 1: OpenVINO 0.97, 0.82, 0.58, 0.24, torch-compile 0.96, 0.80, 0.58, 0.25, torch
0.96, 0.80, 0.60, 0.29, onnxruntime 0.99, 0.96, 0.83, 0.30; tract 1.0 to 1.1. MNN and ncnn have no Winograd for these:
3.1, and 2.7 to 2.9. Of 14 x 14, where a dilation of 24 reaches nothing, torch takes as long as for one of 1.

onnxruntime goes through places at a row's ends one by one, where some taps are on the map (snchwc.cpp): 1.6 to 1.95
times as long for each tap as elsewhere, in seven of these.
"""


def _unfolds(kernel: Kernel, rules: str) -> bool:
    """Tell whether a runtime copies the input for a product first, padding too: torch by itself, onnxruntime unblocked.

    The share of taps on the map makes no difference there (segmenter-zen5, kernels-more-zen5, multiply-adds of all taps
    in a nanosecond, dilated and not: torch 29 and 37, onnxruntime 93 and 74, where blocked 221 and 119).
    """
    if rules == "onnxruntime":
        return not kernel.op.startswith(DOMAIN)
    return rules == "torch" and kernel.op == "SlowConv"


def without_padding(kernel: Kernel, rules: str) -> Kernel:
    """Return a kernel with the multiply-adds that a runtime does of it; the very same where it is no dilated one.

    It may have those of another runtime already. Grouped convolutions were not measured, and stay whole.
    """
    if kernel.number("dilation") <= 1.0 or kernel.number("group") != 1.0 or not kernel.convolves_images:
        return kernel
    if len(kernel.inputs) < 2 or len(kernel.inputs[0]) != len(kernel.outputs[0]) or not kernel.number("macs"):
        return kernel
    whole = float(prod(kernel.outputs[0]) * prod(kernel.inputs[1][1:]))
    macs = whole * _left(kernel, rules)
    if macs == kernel.number("macs"):
        return kernel
    return kernel.with_numbers(macs=macs, padded_macs=kernel.number("padded_macs") * macs / kernel.number("macs"))


def _left(kernel: Kernel, rules: str) -> float:
    if rules not in _SKIPPED or _unfolds(kernel, rules):
        return 1.0
    stride, dilation = int(kernel.number("stride")), int(kernel.number("dilation"))
    rows, columns = (
        _Span(size, written, int(kernel.number(taps)), stride, dilation)
        for size, written, taps in zip(
            kernel.inputs[0][2:], kernel.outputs[0][2:], ("kernel_h", "kernel_w"), strict=True
        )
    )
    return _SKIPPED[rules](rows, columns)
