"""Totals that latmod reads from graphs against those that pytorch-image-models publishes for the same networks."""

import csv
from pathlib import Path

import pytest

from latmod.cost import cost
from latmod.graph import read_graph

TABLE = Path(__file__).parents[2] / "shared" / "external" / "timm-pt240-cpu-i9_10940x.csv"
ZOO = Path(__file__).parents[1] / "datasets" / "zoo" / "graphs"

SAME = {
    "resnet18": "resnet18", "resnet50": "resnet50", "resnet101": "resnet101", "wide_resnet50_2": "wide_resnet50_2",
    "resnext50_32x4d": "resnext50_32x4d", "densenet121": "densenet121", "densenet169": "densenet169", "vgg11": "vgg11",
    "vgg13_bn": "vgg13_bn", "vgg16": "vgg16", "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_small": "mobilenetv3_small_100", "mobilenet_v3_large": "mobilenetv3_large_100",
    "mnasnet1_0": "mnasnet_100", "efficientnet_b0": "efficientnet_b0", "efficientnet_b1-s240": "efficientnet_b1",
    "efficientnet_v2_s-s384": "tf_efficientnetv2_s", "regnet_x_3_2gf": "regnetx_032",
    "regnet_y_1_6gf": "regnety_016", "regnet_y_3_2gf": "regnety_032", "convnext_tiny": "convnext_tiny",
    "convnext_small": "convnext_small", "vit_b_32": "vit_base_patch32_224", "inception_v3-s299": "inception_v3",
}  # fmt: skip
"""The model of the zoo, and timm's name of the same network."""


def published() -> dict[tuple[str, int], dict[str, str]]:
    if not TABLE.exists():
        pytest.skip("the table of pytorch-image-models is not at hand")
    with TABLE.open() as file:
        return {(row["model"], int(row["infer_img_size"])): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("model", SAME)
def test_totals_agree_with_those_published(model: str) -> None:
    graph = read_graph(ZOO / f"{model}.onnx")
    row = published()[SAME[model], graph.inputs[0].shape[-1]]
    costs = [(node, cost(node, graph)) for node in graph.nodes]
    macs = sum(one.macs for _, one in costs)
    params = sum(graph.tensors[name].numel for name in parameters(graph))
    products = ("Conv", "Gemm", "MatMul")
    activations = sum(graph.tensors[node.outputs[0]].numel for node, _ in costs if node.op in products)
    # The table rounds to hundredths, and its counter adds what norms and pools do.
    assert macs / 1e9 == pytest.approx(float(row["infer_gmacs"]), rel=0.06, abs=0.006)
    assert params / 1e6 == pytest.approx(float(row["param_count"]), rel=0.01, abs=0.006)
    assert activations / 1e6 == pytest.approx(float(row["infer_macts"]), rel=0.02, abs=0.006)


def parameters(graph) -> list[str]:
    """Name what a module counts as its parameters: no running means, no shapes."""
    return [
        name
        for name, tensor in graph.initializers.items()
        if tensor.dtype == "float32" and "running_" not in name and tensor.numel > 1
    ]
