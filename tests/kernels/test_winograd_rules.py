"""Convolutions in tiles, as MNN does them."""

from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latmod.dataset import DatasetFolder
from latmod.graph import read_graph
from latmod.kernels import adjusted, kernels
from latmod.kernels.kernel import FIELDS, Kernel
from latmod.kernels.mnn import may_be_tiled, tiled

DATASETS = Path(__file__).parents[2] / "datasets"
GRAPH = read_graph(DATASETS / "zoo" / "graphs" / "alexnet.onnx")


def convolution(side: int, size: int = 3, channels: int = 64, filters: int = 64, **numbers: float) -> Kernel:
    plain = {
        "macs": float(side**2 * size**2 * channels * filters), "batch": 1.0, "channels_in": float(channels),
        "channels_out": float(filters), "kernel_h": float(size), "kernel_w": float(size), "stride": 1.0,
        "dilation": 1.0, "group": 1.0, "rows": float(side**2), "steps": 0.0,
    }  # fmt: skip
    return Kernel(
        op="Conv",
        kind="Conv 3x3",
        numbers=tuple({**dict.fromkeys(FIELDS, 0.0), **plain, **numbers}[field] for field in FIELDS),
        nodes=("conv",),
        label="conv",
        inputs=((1, channels, side, side), (filters, channels, size, size)),
        outputs=((1, filters, side, side),),
        values=("y",),
    )


@given(side=st.integers(1, 300), unit=st.sampled_from((2, 4, 6)))
def test_tiles_cover_the_image(side: int, unit: int) -> None:
    found = tiled(convolution(side), unit)
    tiles = found.number("rows")
    assert tiles * unit**2 >= side**2
    assert (tiles**0.5 - 1) * unit < side
    assert found.number("products") == (unit + 2) ** 2
    assert found.number("padded_macs") >= found.number("products") * tiles * 64 * 64
    assert found.number("macs") == convolution(side).number("macs")


def test_large_even_images_save_most() -> None:
    """F(6,3) needs 64 products for 36 x 9 multiplications: Lavin and Gray's factor of 5.06."""
    found = adjusted(GRAPH, "mnn", (convolution(96),))[0]
    assert found.kind == "Conv winograd"
    assert found.number("macs") / found.number("padded_macs") == pytest.approx(36 * 9 / 64)


@pytest.mark.parametrize("numbers", [{"stride": 2.0}, {"dilation": 2.0}, {"group": 64.0}, {"kernel_w": 1.0}])
def test_others_stay_as_they_are(numbers: dict[str, float]) -> None:
    found = (convolution(56, **numbers),)
    assert not may_be_tiled(found[0])
    assert adjusted(GRAPH, "mnn", found) is found


def test_few_channels_are_not_worth_the_transforms() -> None:
    found = (convolution(56, channels=1, filters=1),)
    assert adjusted(GRAPH, "mnn", found) is found


def test_tiles_explain_what_mnn_told() -> None:
    """A convolution of stride 2 does every multiplication; those in tiles do more than twice as many a nanosecond."""
    folder = DatasetFolder(DATASETS / "kernels-engines-zen4-avx2")
    rates: dict[str, list[float]] = {"Conv winograd": [], "com.microsoft.nchwc::Conv 3x3/strided": []}
    for burst in folder.read_kernels():
        if burst.runtime != "mnn" or not burst.model.startswith(("plain", "resnet")):
            continue
        own = kernels(read_graph(folder.graph_path(burst.model)), "mnn", isa=folder.read_card().machine.isa)
        told = {node: time.ns for time in burst.kernels for node in time.nodes}
        for one in own:
            ns = sum(told.get(node, 0) for node in one.nodes)
            if one.kind in rates and one.number("macs") > 1e8 and ns:
                rates[one.kind].append(one.number("macs") / ns)
    assert min(map(len, rates.values())) > 5
    assert median(rates["Conv winograd"]) > 2 * median(rates["com.microsoft.nchwc::Conv 3x3/strided"])
