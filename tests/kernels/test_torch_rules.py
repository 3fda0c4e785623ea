"""Torch's choice between its own convolution and oneDNN, against the operators that its profiler names."""

import pytest

from latmod.graph import read_graph
from latmod.kernels import kernels

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
