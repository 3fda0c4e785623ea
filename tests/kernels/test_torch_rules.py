"""Torch's choice between its own convolution and oneDNN, against the operators that its profiler names."""

from statistics import median

import pytest
from told_kernels import DATASETS, told_kernels

from latmod.dataset import DatasetFolder
from latmod.graph import read_graph
from latmod.kernels import kernels
from latmod.kernels.rewriting import Step
from latmod.kernels.torch import runs_single_blocks

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

CASES = [
    # batch, channels, filters, side, kernel, stride, groups
    (1, 64, 64, 56, 1, 1, 1),
    (1, 64, 64, 56, 1, 2, 1),
    (1, 64, 64, 7, 3, 1, 1),
    (1, 64, 64, 56, 3, 1, 1),
    (1, 512, 512, 7, 3, 1, 1),
    (1, 16, 16, 8, 5, 1, 1),
    (1, 64, 64, 14, 3, 1, 64),
    (1, 64, 64, 7, 1, 1, 4),
    (2, 64, 64, 7, 3, 1, 1),
    (16, 64, 64, 14, 1, 1, 1),
]


@pytest.mark.parametrize("case", CASES)
def test_a_convolution_goes_where_torch_sends_it(case: tuple[int, ...], tmp_path) -> None:
    batch, channels, filters, side, kernel, stride, groups = case
    path = tmp_path / "conv.onnx"
    graph = helper.make_graph(
        [
            helper.make_node(
                "Conv",
                ["x", "w"],
                ["y"],
                name="conv",
                kernel_shape=[kernel, kernel],
                strides=[stride, stride],
                pads=[kernel // 2] * 4,
                group=groups,
            )
        ],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            helper.make_tensor(
                "w",
                TensorProto.FLOAT,
                [filters, channels // groups, kernel, kernel],
                [0.0] * (filters * channels // groups * kernel * kernel),
            )
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    expected = kernels(read_graph(path), "torch")[0].op
    module = torch.nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.profiler.profile() as profile:
            module(torch.zeros(batch, channels, side, side))
    finally:
        torch.set_num_threads(threads)
    names = {event.name for event in profile.events()}
    assert ("aten::mkldnn_convolution" in names) == (expected == "Conv"), names


@pytest.mark.parametrize(
    ("source", "filters", "kernel", "stride", "groups"),
    [
        ((1, 16, 8, 128, 128), 16, (3, 3, 3), 1, 1),
        ((1, 24, 8, 128, 128), 16, (3, 3, 3), 1, 1),
        ((1, 3, 8, 64, 64), 8, (3, 7, 7), 2, 1),
        ((1, 56, 16, 64, 64), 28, (3, 1, 1), 1, 1),
        ((1, 56, 16, 64, 64), 28, (1, 1, 1), 2, 1),
        ((1, 32, 4, 20, 20), 32, (3, 3, 3), 1, 32),
        ((1, 40, 256), 40, (9,), 1, 40),
        ((1, 40, 256), 40, (9,), 1, 1),
        ((1, 90, 256), 40, (9,), 1, 1),
        ((1, 90, 256), 40, (1,), 1, 1),
    ],
)
def test_a_convolution_over_volumes_or_time_goes_where_torch_sends_it(
    source: tuple[int, ...], filters: int, kernel: tuple[int, ...], stride: int, groups: int, tmp_path
) -> None:
    """What is over images is computed as such, so time is a row of pixels; of volumes not all elements count."""
    kind = torch.nn.Conv3d if len(source) == 5 else torch.nn.Conv1d
    padding = tuple(size // 2 for size in kernel)
    module = kind(source[1], filters, kernel, stride, padding, groups=groups, bias=False)
    path = tmp_path / "conv.onnx"
    torch.onnx.export(module, (torch.zeros(source),), str(path), dynamo=False, opset_version=17)
    expected = kernels(read_graph(path), "torch")[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(), torch.profiler.profile() as profile:
            module(torch.zeros(source))
    finally:
        torch.set_num_threads(threads)
    names = {event.name for event in profile.events()}
    assert ("aten::mkldnn_convolution" in names) == (expected.op == "Conv"), names
    assert expected.kind.endswith("/along time") == (groups > 1 and len(source) == 3)


def test_filters_that_no_blocks_divide_take_longer() -> None:
    """What torch told on a machine with AVX-512: by the rules these run one block of filters at a time."""
    folder = DatasetFolder(DATASETS / "kernels")
    isa = folder.read_card().machine.isa
    rates: dict[bool, list[float]] = {False: [], True: []}
    for burst in folder.read_kernels():
        if burst.runtime != "torch" or not burst.model.startswith("plain"):
            continue
        found = kernels(read_graph(folder.graph_path(burst.model)), "torch", isa=isa)
        told = {time.value: time.ns for time in burst.kernels}
        for one in found:
            if one.kind in ("Conv 3x3", "Conv single blocks") and one.number("macs") > 3e8 and one.values[0] in told:
                rates[one.kind != "Conv 3x3"].append(one.number("padded_macs") / told[one.values[0]])
    assert len(rates[True]) > 20
    assert median(rates[True]) < 0.85 * median(rates[False])


@pytest.mark.parametrize(
    ("filters", "side", "batch", "alone"),
    [(176, 64, 1, True), (176, 28, 1, False), (192, 64, 1, False), (80, 64, 1, False), (80, 160, 1, False),
     (496, 56, 1, True), (176, 28, 4, False), (176, 13, 4, True)],
)  # fmt: skip
def test_blocks_of_filters(filters: int, side: int, batch: int, alone: bool) -> None:
    """Eleven blocks have no divisor, twelve have; rows of 28 pixels are held in registers; five blocks are one go."""
    source, weight, out = (batch, 192, side, side), (filters, 192, 3, 3), (batch, filters, side, side)
    step = Step(op="Conv", inputs=["x", "w"], outputs=["y"], attributes={"strides": (1, 1)}, sources=["conv"])
    assert runs_single_blocks(source, weight, out, step) is alone


@pytest.mark.parametrize("rules", ["torch", "onnxruntime", "mnn", "ncnn", "openvino"])
def test_what_follows_an_unknown_operator_has_kernels_too(rules: str, tmp_path) -> None:
    """No value behind it has a shape, whatever comes there."""
    numbers = {"start": [0], "end": [2], "axis": [1], "shape": [1, -1]}
    fixed = [helper.make_tensor(name, TensorProto.INT64, [len(value)], value) for name, value in numbers.items()]
    fixed.append(helper.make_tensor("first", TensorProto.INT64, [], [0]))
    fixed.append(helper.make_tensor("w", TensorProto.FLOAT, [8, 1, 3, 3], [0.0] * 72))
    nodes = [
        helper.make_node("Mine", ["x"], ["u"], domain="my"),
        helper.make_node("Transpose", ["u"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "w"], ["b"], group=8),
        helper.make_node("Slice", ["b", "start", "end", "axis"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["d"]),
        helper.make_node("Transpose", ["d"], ["e"]),
        helper.make_node("MatMul", ["e", "d"], ["y"]),
        helper.make_node("Gather", ["a", "first"], ["g"], axis=1),
        helper.make_node("Split", ["a"], ["s", ""], axis=1, num_outputs=2),
        helper.make_node("MatMul", ["u", "m"], ["told"]),
        helper.make_node("LRN", ["u"], ["l"], size=5),
        helper.make_node("Mul", ["told", "c"], ["scaled"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "g", "s", "l", "scaled")]
    outputs.append(helper.make_tensor_value_info("told", TensorProto.FLOAT, [1, 8, 9, 4]))
    fixed.append(helper.make_tensor("m", TensorProto.FLOAT, [9, 4], [0.0] * 36))
    graph = helper.make_graph(
        nodes, "unknown", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 9, 9])], outputs, fixed
    )
    path = tmp_path / "unknown.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("my", 1)]), path)
    found = kernels(read_graph(path), rules, isa=("avx2",))
    assert {name for kernel in found for name in kernel.values} >= {*"uabcdygsl", "told", "scaled"}


def test_maps_at_one_place_of_the_cache_take_longer_to_enlarge() -> None:
    """As torch told: 3 ns an element where a channel has 1, 4 or 16 KB, 1.6 where it has less or more."""
    element_ns: dict[str, list[float]] = {}
    for _, kernel, told_ns in told_kernels("kernels-zen5", "torch", "recent", "varied", "detector"):
        if kernel.kind.startswith("Resize/linear") and kernel.outputs[0][1] > 40:
            element_ns.setdefault(kernel.kind, []).append(told_ns / kernel.number("numel_out"))
    crowded, others = (element_ns[f"Resize/linear{form}"] for form in ("/at one place", ""))
    assert len(crowded) >= 15
    assert median(crowded) > 1.5 * median(others)
    assert sorted(crowded)[len(crowded) // 10] > median(others)
