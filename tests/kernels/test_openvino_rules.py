"""What OpenVINO does otherwise than onnxruntime, whose rules it shares."""

from pathlib import Path
from statistics import median

import msgspec
from onnx import TensorProto, helper, save
from told_kernels import DATASETS, told_kernels

from latmod.dataset import DatasetFolder
from latmod.graph import read_graph
from latmod.kernels import kernels
from latmod.labels import labelled_models
from latmod.table import corrections

GRAPHS = DATASETS / "kernels" / "graphs"


def told_ns_per_element(name: str, *families: str) -> dict[str, list[float]]:
    """Return by kind what a data set's kernels took in OpenVINO, in ns for each element that they read."""
    found: dict[str, list[float]] = {}
    for _, kernel, told_ns in told_kernels(name, "openvino", *families):
        if kernel.number("bytes_in"):
            found.setdefault(kernel.kind, []).append(told_ns / (kernel.number("bytes_in") / 4.0))
    return found


def test_a_scale_of_columns_goes_into_the_weights() -> None:
    graph = read_graph(GRAPHS / "largekernel-65714-w136-d4-s240.onnx")
    own, like = (kernels(graph, rules, isa=("avx2",)) for rules in ("openvino", "onnxruntime"))
    scales = [kernel.nodes[0] for kernel in like if kernel.op == "Mul"]
    assert scales
    assert not [kernel for kernel in own if kernel.op == "Mul"]
    holders = [kernel.kind for kernel in own if set(scales) & set(kernel.nodes)]
    assert holders == ["Gemm weights"] * len(scales)


def test_a_scale_by_activations_stays() -> None:
    graph = read_graph(DATASETS / "zoo" / "graphs" / "efficientnet_b0.onnx")
    own, like = (kernels(graph, rules, isa=("avx2",)) for rules in ("openvino", "onnxruntime"))
    assert "Mul" in {kernel.op for kernel in own}
    assert [msgspec.structs.replace(kernel, values=()) for kernel in own] == [
        msgspec.structs.replace(kernel, values=()) for kernel in like if kernel.nodes
    ]
    assert all(graph.producers.keys() >= {*kernel.values} for kernel in own)


def test_channels_are_shuffled_in_one_piece() -> None:
    """One in each of 16 blocks, and no reshape or transpose besides."""
    graph = read_graph(DATASETS / "zoo" / "graphs" / "shufflenet_v2_x1_0.onnx")
    own, like = (kernels(graph, rules, isa=("avx2",)) for rules in ("openvino", "onnxruntime"))
    shuffles = [kernel for kernel in own if kernel.kind == "ChannelShuffle"]
    assert len(shuffles) == 16
    assert all(len(kernel.nodes) == 3 and kernel.number("bytes_out") > 0 for kernel in shuffles)
    assert not {"Reshape", "Transpose"} & {kernel.op for kernel in own}
    assert {node for kernel in own for node in kernel.nodes} == {node for kernel in like for node in kernel.nodes}


def test_layer_norms_of_turned_images_are_a_kind_of_their_own() -> None:
    """Published transformers have these norms over rows as they are, ConvNeXt over images that were just turned."""
    for name, kind in (("convnext_tiny", "LayerNormalization/turned"), ("vit_b_32", "LayerNormalization")):
        found = kernels(read_graph(DATASETS / "zoo" / "graphs" / f"{name}.onnx"), "openvino", isa=("avx2",))
        assert {kernel.kind for kernel in found if "LayerNorm" in kernel.kind} == {kind}


def test_what_onnxruntime_puts_in_is_nowhere_else() -> None:
    graph = read_graph(DATASETS / "zoo" / "graphs" / "swin_t.onnx")
    assert any(not kernel.nodes for kernel in kernels(graph, "onnxruntime", isa=("avx2",)))
    for rules in ("mnn", "openvino", "tract"):
        assert all(kernel.nodes for kernel in kernels(graph, rules, isa=("avx2",)))


def test_norms_that_no_vectors_fit_take_more_steps() -> None:
    """What the engine told: three times as long per element and more."""
    folder = DatasetFolder(DATASETS / "kernels-engines-zen4-avx2")
    bursts = [one for one in folder.read_kernels() if one.runtime == "openvino" and one.model.startswith("early")]
    per_element: dict[bool, list[float]] = {False: [], True: []}
    for burst in bursts:
        graph = read_graph(folder.graph_path(burst.model))
        like = kernels(graph, "onnxruntime", isa=("avx2",))
        own = {one.label: one for one in kernels(graph, "openvino", isa=("avx2",))}
        told = {node: time.ns for time in burst.kernels for node in time.nodes}
        for one in like:
            if one.op == "LRN" and one.label in told:
                slow = own[one.label].number("steps") > one.number("steps")
                per_element[slow].append(told[one.label] / one.number("numel_out"))
    assert min(map(len, per_element.values())) > 5
    assert min(per_element[True]) > 3 * max(per_element[False])


def test_element_wise_work_in_a_row_is_one_piece() -> None:
    """The onnx package's DenseNet has norms that no convolution takes in, each with a scale, a shift, and a Relu."""
    graph = read_graph(DATASETS / "zoo" / "graphs" / "light_densenet121.onnx")
    own, like = (kernels(graph, rules, isa=("avx512f",)) for rules in ("openvino", "onnxruntime"))
    chains = [kernel for kernel in own if kernel.kind == "BatchNormalization"]
    ops = {node.name: node.op for node in graph.nodes}
    assert {tuple(ops[node] for node in kernel.nodes) for kernel in chains} == {
        ("BatchNormalization", "Mul", "Add", "Relu")
    }
    for kernel in chains:
        # Read once, written once; a scale and a shift per channel besides.
        assert kernel.number("bytes_in") == kernel.number("bytes_out") == 4.0 * kernel.number("numel_out")
        assert kernel.values == graph.nodes[[node.name for node in graph.nodes].index(kernel.nodes[-1])].outputs
    assert all(kernel.number("steps") == 5.0 * kernel.number("numel_out") for kernel in chains)
    assert {node for kernel in own for node in kernel.nodes} == {node for kernel in like for node in kernel.nodes}


def test_what_something_else_reads_ends_a_chain(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("Add", ["square", "x"], ["sum"], name="sum"),
        helper.make_node("Relu", ["sum"], ["kept"], name="relu"),
        helper.make_node("Sub", ["kept", "square"], ["y"], name="difference"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 4, 4]) for name in ("x", "y")]
    save(helper.make_model(helper.make_graph(nodes, "chains", ends[:1], ends[1:])), tmp_path / "chains.onnx")
    found = {kernel.nodes for kernel in kernels(read_graph(tmp_path / "chains.onnx"), "openvino", isa=("avx2",))}
    assert found == {("square",), ("sum", "relu"), ("difference",)}


def test_a_scale_of_one_number_is_no_scale_of_columns(tmp_path: Path) -> None:
    """As dynamic quantisation scales its scales: what has no columns goes into no weights."""
    nodes = [helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Mul", ["m", "s"], ["y"])]
    value = [helper.make_tensor_value_info(name, 1, shape) for name, shape in (("x", [4, 4]), ("y", []))]
    graph = helper.make_graph(nodes, "scales", value[:1], value[1:], [helper.make_tensor("s", 1, [], [0.1])])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "scales.onnx")
    found = kernels(read_graph(tmp_path / "scales.onnx"), "openvino")
    assert [one.op for one in found] == ["ReduceMax", "Mul"]


def test_a_map_that_is_returned_comes_out_of_its_blocks() -> None:
    folder = DATASETS / "kernels-engines-zen5" / "graphs"
    graph = read_graph(folder / "detector-72340-w17-d5-s416.onnx")
    moved = [kernel for kernel in kernels(graph, "openvino", isa=("avx512f",)) if not kernel.nodes]
    assert [(kernel.op, kernel.values, kernel.number("channels_out")) for kernel in moved] == [
        ("Reorder", ("output",), 21.0)
    ]
    assert moved[0].number("bytes_out") == 4.0 * 21 * 416 * 416
    rows = read_graph(GRAPHS / "resnet-basic-6.2.12.6-w25-side128.onnx")
    assert all(kernel.nodes for kernel in kernels(rows, "openvino", isa=("avx512f",)))


def test_channels_that_are_whole_pages_apart_take_long_to_bring_out() -> None:
    """As OpenVINO told: what has no name and comes last."""
    element_ns: dict[str, list[float]] = {"Reorder": [], "Reorder/at one place": []}
    folder = DatasetFolder(DATASETS / "kernels-more-zen5")
    for one in folder.read_kernels():
        if one.runtime == "openvino" and one.status == "ok" and not any(one.kernels[-1].nodes):
            for kernel in kernels(read_graph(folder.graph_path(one.model)), "openvino", isa=("avx512f",)):
                if kernel.op == "Reorder":
                    element_ns[kernel.kind].append(one.kernels[-1].ns / kernel.number("numel_out"))
    assert min(map(len, element_ns.values())) >= 3
    assert max(element_ns["Reorder"]) < 1.5 < 2.5 < min(element_ns["Reorder/at one place"])


def test_norms_of_turned_images_take_longer_where_channels_are_whole_pages_apart() -> None:
    """As OpenVINO told, but where the image is small: 2 to 6 ns an element for 0.6, and 0.5 of rows."""
    element_ns: dict[str, list[float]] = {}
    for _, kernel, told_ns in told_kernels("kernels-engines-zen5", "openvino", "largekernel", "hybrid"):
        if "LayerNormalization/" in kernel.kind and kernel.number("numel_out") > 2e4:
            kind = kernel.kind.removeprefix("LayerNormalization/")
            element_ns.setdefault(kind, []).append(told_ns / kernel.number("numel_out"))
    middle = {kind: median(own) for kind, own in element_ns.items()}
    assert middle["rows turned"] < middle["turned"] < 0.5 * middle["turned/at one place"]
    assert min(map(len, element_ns.values())) >= 15


def test_few_images_of_64_128_or_256_channels_are_turned_slowly() -> None:
    """Where windows are cut from them, OpenVINO told of 6 to 8 ns an element, or of less than 2.5."""
    channels = set()
    for model, kernel, told_ns in told_kernels("kernels-engines-zen5", "openvino", "windowed"):
        if kernel.kind.startswith("LayerNormalization/turned"):
            slow = told_ns / kernel.number("numel_out") > 4.0
            assert slow == kernel.kind.endswith("/at one place"), (model, kernel)
            channels |= {kernel.outputs[0][-1]} if slow else set()
    assert {64, 128} < channels


def test_a_split_gives_planes_where_nothing_wants_channels_last() -> None:
    """Of what a convolution makes score, key and value of: 2 ns an element, 8 of whole pages of pixels, as told."""
    told = [
        (kernel.kind, told_ns / (kernel.number("bytes_in") / 4.0))
        for _, kernel, told_ns in told_kernels("mixer-zen5", "openvino")
        if kernel.op == "Split" and len(kernel.inputs[0]) == 4
    ]
    per_element = {kind: [ns for one, ns in told if one == kind] for kind in {kind for kind, _ in told}}
    assert per_element.keys() == {"Split", "Split/planes", "Split/planes/at one place"}
    assert max(per_element["Split"]) < 1.0 < min(per_element["Split/planes"])
    assert max(per_element["Split/planes"]) < 4.0 < min(per_element["Split/planes/at one place"])


def test_parts_that_are_convolved_alike_are_one_convolution() -> None:
    """As told by the name of the norm behind them; those of kernels of several sizes stay apart."""
    folder = DatasetFolder(DATASETS / "mixer-zen5")
    own = labelled_models(folder, ["openvino"], corrections(folder))["openvino"]
    rates = []
    for model in own:
        graph = read_graph(folder.graph_path(model.model))
        like = {node: kernel for kernel in kernels(graph, "onnxruntime", isa=("avx512f",)) for node in kernel.nodes}
        written = {node.name: node.op for node in graph.nodes}
        for kernel, ns in zip(model.kernels, model.kernel_ns, strict=True):
            if kernel.kind != "Conv grouped/parts":
                continue
            rates.append(kernel.number("macs") / ns)
            count = int(kernel.number("group"))
            ops = [written[node] for node in kernel.nodes]
            assert ops[: count + 3] == ["Conv"] * count + ["Split", "Concat", "BatchNormalization"]
            assert count > 1
            assert kernel.number("macs") == sum(like[node].number("macs") for node in kernel.nodes[:count])
            assert kernel.outputs == like[kernel.nodes[count + 1]].outputs
    assert len(rates) == 150
    assert 60.0 < median(rates) < 134.0, "a core of Zen 5 does 32 multiply-adds in each of 4.2 cycles a nanosecond"


def test_what_lies_otherwise_is_turned_for_the_kernel_that_reads_it() -> None:
    """Gated parts of rows, of which one was convolved: slowly where vectors fit and all lies at one place."""
    told = told_ns_per_element("mixer-zen5", "mixer")
    quick, slow = (told[f"Gemm weights/turned{end}"] for end in ("", "/at one place"))
    assert median(slow) > 2.0 * median(quick)
    assert len(quick) > 4 * len(slow) > 40
    parts = told["com.microsoft.nchwc::Conv depthwise/turned part"]
    assert median(parts) > 1.5 * median(told["com.microsoft.nchwc::Conv depthwise"])


def test_a_reduction_over_dims_that_lie_apart_goes_by_element() -> None:
    told = told_ns_per_element("kernels-more-zen5", "recent")
    assert min(told["ReduceMax/apart"]) > 7.0
    near = told_ns_per_element("kernels-engines-zen5", "varied")
    assert median(near["ReduceMax/across"]) < 0.5
