"""What engines skip of dilated convolutions."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latmod.graph import read_graph
from latmod.kernels import kernels
from latmod.kernels.kernel import FIELDS, Kernel
from latmod.kernels.nchwc import DOMAIN
from latmod.kernels.padding import without_padding

CHANNELS = 4


def convolution(
    rows: int, columns: int, dilation: int, stride: int = 1, group: int = 1, op: str = f"{DOMAIN}Conv"
) -> Kernel:
    written = tuple((size - 1) // stride + 1 for size in (rows, columns))
    macs = float(9 * CHANNELS * CHANNELS * written[0] * written[1])
    numbers = {
        "macs": macs, "padded_macs": 2.0 * macs, "kernel_h": 3.0, "kernel_w": 3.0, "stride": float(stride),
        "dilation": float(dilation), "group": float(group),
    }  # fmt: skip
    return Kernel(
        op=op,
        kind="Conv 3x3",
        numbers=tuple({**dict.fromkeys(FIELDS, 0.0), **numbers}[field] for field in FIELDS),
        nodes=("conv",),
        label="conv",
        inputs=((1, CHANNELS, rows, columns), (CHANNELS, CHANNELS, 3, 3)),
        outputs=((1, CHANNELS, *written),),
        values=("y",),
    )


def counted(rows: int, columns: int, dilation: int) -> float:
    """Let torch count the taps on the map: ones, multiplied with ones."""
    ones = torch.ones(1, CHANNELS, rows, columns)
    taps = torch.ones(CHANNELS, CHANNELS, 3, 3)
    return float(torch.nn.functional.conv2d(ones, taps, padding=dilation, dilation=dilation).sum())


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), dilation=st.integers(2, 50))
def test_taps_on_the_map_are_left(rows: int, columns: int, dilation: int) -> None:
    found = without_padding(convolution(rows, columns, dilation), "openvino")
    assert found.number("macs") == pytest.approx(counted(rows, columns, dilation), rel=1e-6)
    assert found.number("padded_macs") == pytest.approx(2.0 * found.number("macs"))


@given(
    side=st.integers(1, 40),
    dilation=st.integers(2, 50),
    stride=st.integers(1, 3),
    first=st.sampled_from(("mnn", "onnxruntime", "torch")),
)
def test_it_does_not_matter_whose_work_was_left_before(side: int, dilation: int, stride: int, first: str) -> None:
    plain = convolution(side, side, dilation, stride)
    for rules in ("mnn", "onnxruntime", "openvino", "torch"):
        again = without_padding(without_padding(plain, first), rules)
        assert again.numbers == pytest.approx(without_padding(plain, rules).numbers)
    assert without_padding(plain, "mnn") is plain


@pytest.mark.parametrize(("dilation", "measured"), [(6, 0.967), (12, 0.84), (24, 0.30)])
def test_onnxruntime_is_slower_at_edges(dilation: int, measured: float) -> None:
    plain = convolution(28, 28, dilation)
    left = without_padding(plain, "onnxruntime").number("macs") / plain.number("macs")
    assert left == pytest.approx(measured, rel=0.1)


def test_torch_does_all_where_no_neighbour_is_reached() -> None:
    plain = convolution(14, 14, 14)
    assert without_padding(plain, "torch") is plain
    assert without_padding(plain, "torch-compile").number("macs") < 0.2 * plain.number("macs")


@pytest.mark.parametrize(("op", "rules"), [("Conv", "onnxruntime"), ("SlowConv", "torch")])
def test_what_copies_the_input_first_leaves_nothing_out(op: str, rules: str) -> None:
    plain = convolution(28, 28, 12, op=op)
    assert without_padding(plain, rules) is plain
    assert without_padding(plain, "openvino") is not plain


@pytest.mark.parametrize("plain", [convolution(28, 28, 1), convolution(28, 28, 12, group=4)])
def test_others_stay_as_they_are(plain: Kernel) -> None:
    assert without_padding(plain, "openvino") is plain


def test_every_runtime_leaves_out_its_own(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(32, 32, 3, padding=12, dilation=12), torch.nn.ReLU())
    path = tmp_path / "dilated.onnx"
    torch.onnx.export(net, (torch.zeros(1, 32, 28, 28),), str(path), dynamo=False)
    graph = read_graph(path)
    whole = 9 * 32 * 32 * 28 * 28

    def left(rules: str) -> float:
        found = max(kernels(graph, rules, isa=("avx512f",)), key=lambda kernel: kernel.number("macs"))
        return found.number("macs") / whole

    on_the_map = (28 + 2 * 16) ** 2 / (3 * 28) ** 2
    shares = {
        rules: left(rules) for rules in ("onnxruntime", "openvino", "mnn", "ncnn", "tract", "torch", "torch-compile")
    }
    assert shares.pop("onnxruntime") == pytest.approx(0.816, abs=0.001)
    assert shares == pytest.approx(
        dict.fromkeys(("openvino", "torch", "torch-compile"), on_the_map) | dict.fromkeys(("mnn", "ncnn", "tract"), 1.0)
    )
