"""What inductor does otherwise than onnxruntime, whose rules it shares where that has no blocks of channels."""

from pathlib import Path

import pytest
import torch

from latmod.graph import Graph, read_graph
from latmod.kernels import Kernel, kernels

GRAPHS = Path(__file__).parents[2] / "datasets" / "zoo" / "graphs"


def in_torch_compile(name: str) -> tuple[Graph, tuple[Kernel, ...]]:
    graph = read_graph(GRAPHS / f"{name}.onnx")
    return graph, kernels(graph, "torch-compile", isa=("avx512f",))


def test_channels_are_as_the_file_says() -> None:
    """58 and 116 of them: onnxruntime's blocks would make 64 and 128."""
    graph, found = in_torch_compile("shufflenet_v2_x1_0")
    for kernel in found:
        assert {*kernel.values} <= graph.producers.keys()
        assert kernel.outputs == tuple(graph.tensors[name].shape for name in kernel.values)


def test_convolutions_are_priced_by_their_form_and_take_in_the_activation_behind() -> None:
    """MobileNet v3: 52 of them, 11 depthwise, with hard swishes, ReLUs and hard sigmoids."""
    graph, found = in_torch_compile("mobilenet_v3_small")
    convolutions = [kernel for kernel in found if kernel.kind.startswith("Conv ")]
    assert len(convolutions) == sum(node.op == "Conv" for node in graph.nodes) == 52
    assert sum("depthwise" in kernel.kind for kernel in convolutions) == 11
    assert {kernel.kind for kernel in found} - {kernel.kind for kernel in convolutions} == {
        "GlobalAveragePool", "Mul", "Flatten", "Gemm weights row",
    }  # fmt: skip
    hard = {node.name for node in graph.nodes if node.op == "HardSwish"}
    assert len(hard) > len(hard & {node for kernel in convolutions for node in kernel.nodes}) > 15


def test_element_wise_work_is_one_loop_with_what_it_goes_on_with() -> None:
    """Swin: what is added to the scores is their scale and its own; a GELU is not behind a convolution."""
    graph, found = in_torch_compile("swin_v2_t-s256")
    in_onnxruntime = kernels(graph, "onnxruntime", isa=())
    assert len([kernel for kernel in found if kernel.kind == "Add"]) < len(
        [kernel for kernel in in_onnxruntime if kernel.kind == "Add"]
    )
    done = {node for kernel in in_onnxruntime for node in kernel.nodes}
    assert {node for kernel in found for node in kernel.nodes} <= done


@pytest.mark.parametrize(("dilation", "form"), [(1, "depthwise"), (6, "depthwise"), (7, "unfolded")])
def test_depthwise_convolutions_with_wide_padding_are_unfolded(dilation: int, form: str, tmp_path: Path) -> None:
    path = tmp_path / "dilated.onnx"
    net = torch.nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation, groups=8)
    torch.onnx.export(net, (torch.zeros(1, 8, 28, 28),), str(path), dynamo=False)
    (found,) = kernels(read_graph(path), "torch-compile", isa=("avx512f",))
    assert found.kind == f"Conv {form}"
