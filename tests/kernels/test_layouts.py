"""How torch's tensors lie in memory, and what it does for it, against torch itself and oneDNN's own log."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from onnx import TensorProto, helper, save

from latmod.graph import read_graph
from latmod.kernels import kernels
from latmod.kernels import torch as rules
from latmod.kernels.layouts import Layouts, _regrouped, channels_last
from latmod.kernels.rewriting import Rewriter

torch = pytest.importorskip("torch")
pytest.importorskip("onnx2torch")

GRAPHS = Path(__file__).parents[2] / "datasets" / "zoo" / "graphs"


def followed(path: Path) -> tuple[Rewriter, Layouts]:
    """Return what torch makes of a file, and how its values lie then."""
    work = rules.run_eagerly(read_graph(path), threads=1, block=8)
    layouts = Layouts(work)
    for step in work.live():
        layouts.follow(step)
    return work, layouts


def real_order(value: "torch.Tensor") -> tuple[int, ...]:
    strides = [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1]
    return tuple(sorted(range(len(strides)), key=lambda place: (-strides[place], place)))


@pytest.mark.parametrize("model", ["swin_t", "swin_v2_t-s256", "convnext_tiny", "shufflenet_v2_x0_5", "vit_b_32"])
def test_every_value_lies_as_expected(model: str) -> None:
    from latmod.runtimes.conversion import convert_graph

    path = GRAPHS / f"{model}.onnx"
    work, layouts = followed(path)
    found: dict[str, tuple[int, ...]] = {}
    copied: dict[str, bool] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = convert_graph(path, 0).eval()

    def note(part: "torch.nn.Module", inputs: tuple, output: object) -> None:
        name = part.onnx_mapping.outputs[0]
        if isinstance(output, torch.Tensor):
            found[name] = real_order(output)
            copied[name] = output.data_ptr() != inputs[0].data_ptr()

    for part in module.children():
        if hasattr(part, "onnx_mapping"):
            part.register_forward_hook(note)
    with torch.inference_mode():
        module(*[torch.zeros(tensor.shape) for tensor in work.graph.inputs])
    compared = [name for name in found if name in work.producers]
    assert len(compared) > 50
    for name in compared:
        op = work.producers[name].op
        assert found[name] == layouts.order(name), (name, op)
        if op in ("Reshape", "Flatten", "CopyingReshape"):
            assert copied[name] == (op == "CopyingReshape"), name


@pytest.mark.parametrize(
    ("order", "olds", "news", "expected"),
    [
        ((0, 1, 2), [2, 3, 4], [6, 4], (0, 1)),
        ((1, 2, 0), [2, 3, 4], [2, 12], (1, 0)),
        ((1, 2, 0), [2, 3, 4], [6, 4], None),
        ((1, 0), [6, 4], [2, 3, 4], (2, 0, 1)),
        ((1, 0), [6, 4], [24], None),
        ((), [], [], ()),
    ],
)
def test_reshaped_memory(
    order: tuple[int, ...], olds: list[int], news: list[int], expected: tuple[int, ...] | None
) -> None:
    assert _regrouped(order, olds, news) == expected
    inverse = [order.index(dim) for dim in range(len(order))]
    value = torch.zeros([olds[dim] for dim in order]).permute(inverse)
    assert real_order(value) == order
    assert (value.reshape(news).data_ptr() == value.data_ptr()) == (expected is not None)


def test_what_is_no_image_has_no_channels_last() -> None:
    assert channels_last((1, 8, 7, 7)) == (1, 2, 0)
    assert channels_last((2, 8, 7, 7)) == (0, 2, 3, 1)
    assert channels_last((1, 49, 8)) is channels_last((1, 1, 7, 7)) is channels_last((1, 8, 1, 1)) is None


def test_an_image_of_one_channel_is_plain(tmp_path: Path) -> None:
    """Both orders are the same there, and torch takes it for channels first."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [8, 1, 3, 3], [0.0] * 72)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 1, 28, 28]), ("y", None))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weights])), tmp_path / "one.onnx")
    _, layouts = followed(tmp_path / "one.onnx")
    with torch.inference_mode():
        real = torch.nn.Conv2d(1, 8, 3, padding=1)(torch.zeros(1, 1, 28, 28))
    assert layouts.is_plain("y") == real.is_contiguous()


def test_one_channel_in_one_group_is_not_depthwise(tmp_path: Path) -> None:
    weights = helper.make_tensor("w", TensorProto.FLOAT, [8, 1, 11, 11], [0.0] * 968)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 1, 28, 28]), ("y", None))]
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[5, 5, 5, 5])
    save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], [weights])), tmp_path / "one.onnx")
    assert [one.kind for one in kernels(read_graph(tmp_path / "one.onnx"), "torch", isa=("avx2",))] == ["Conv other"]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
kernel, last = map(int, sys.argv[1:])
value = torch.rand(1, 16, 20, 20)
value = value.to(memory_format=torch.channels_last) if last else value
with torch.inference_mode():
    torch.nn.Conv2d(16, 16, kernel, padding=kernel // 2, groups=16)(value)
"""


@pytest.mark.parametrize(
    ("isa", "kernel", "last"), [("AVX2", 9, 0), ("AVX2", 11, 0), ("AVX2", 11, 1), ("ALL", 13, 0), ("ALL", 15, 0)]
)
def test_depthwise_convolutions_run_as_onednn_says(isa: str, kernel: int, last: int, tmp_path: Path) -> None:
    flags = torch.backends.cpu.get_cpu_capability()
    if isa == "ALL" and flags != "AVX512":
        pytest.skip("no AVX-512 here")
    size = [16, 20, 20]
    nodes = [helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2])] if last else []
    nodes.append(
        helper.make_node(
            "Conv", ["y" if last else "x", "w"], ["z"], kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, group=16
        )
    )
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *size[1:], size[0]] if last else [1, *size])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, *size])
    weights = helper.make_tensor("w", TensorProto.FLOAT, [16, 1, kernel, kernel], [0.0] * (16 * kernel * kernel))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [z], [weights]), opset_imports=[helper.make_opsetid("", 17)]
    )
    save(model, tmp_path / "conv.onnx")
    found = kernels(read_graph(tmp_path / "conv.onnx"), "torch", isa=("avx512f",) if isa == "ALL" else ("avx2",))
    expected = {
        "Conv depthwise": "jit_dw",
        "Conv depthwise/channels last": "brdgmm_dw",
        "Conv unfolded": "gemm",
    }[found[-1].kind]
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(kernel), str(last)],
        env={**os.environ, "ONEDNN_VERBOSE": "1", "ONEDNN_MAX_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = [line for line in ran.stdout.splitlines() if ",exec,cpu,convolution," in line]
    assert expected in line
