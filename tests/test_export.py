from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from latmod.errors import SpecError
from latmod.export import export_model, export_spec
from latmod.families import FAMILIES
from latmod.families.resnet import ResNetSpec
from latmod.graph import read_graph

torch = pytest.importorskip("torch")
ort = pytest.importorskip("onnxruntime")

RESNET = FAMILIES["resnet"]
SPECS = (
    ResNetSpec(block="basic", blocks=(1, 2, 1, 1), width=8, side=40, batch=3, classes=7),
    ResNetSpec(block="bottleneck", blocks=(2, 1, 1, 2), width=5, side=64, widen=2),
    ResNetSpec(block="bottleneck", blocks=(1, 1, 1, 1), width=1, side=224),
)


def export(tmp_path: Path, spec: ResNetSpec) -> Path:
    path = tmp_path / "model.onnx"
    export_spec(RESNET, spec, path)
    return path


def filled(path: Path, state: dict[str, "torch.Tensor"]) -> bytes:
    model = onnx.load_model(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


@pytest.mark.parametrize("spec", SPECS, ids=RESNET.model_id)
def test_exported_graph_with_the_modules_weights_computes_the_same(tmp_path: Path, spec: ResNetSpec) -> None:
    torch.manual_seed(1)
    module = RESNET.build(spec).eval()
    for name, value in module.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    content = filled(export(tmp_path, spec), module.state_dict())
    images = torch.randn(RESNET.input_shape(spec))
    with torch.no_grad():
        expected = module(images).numpy()
    (output,) = ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"input": images.numpy()})
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("spec", SPECS, ids=RESNET.model_id)
def test_initialisers_are_the_state_dict_without_data(tmp_path: Path, spec: ResNetSpec) -> None:
    graph = onnx.load_model(str(export(tmp_path, spec)), load_external_data=False).graph
    with torch.device("meta"):
        state = RESNET.build(spec).state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert {tensor.name: tuple(tensor.dims) for tensor in graph.initializer} == expected
    assert not any(tensor.raw_data or tensor.float_data for tensor in graph.initializer)


@pytest.mark.parametrize("spec", SPECS, ids=RESNET.model_id)
def test_nodes_keep_batch_norms_and_the_names_of_their_modules(tmp_path: Path, spec: ResNetSpec) -> None:
    nodes = onnx.load_model(str(export(tmp_path, spec)), load_external_data=False).graph.node
    with torch.device("meta"):
        modules = dict(RESNET.build(spec).named_modules())
    named = {node.name: node.op_type for node in nodes}
    assert len(named) == len(nodes)
    for name, module in modules.items():
        kind = {torch.nn.Conv2d: "Conv", torch.nn.BatchNorm2d: "BatchNormalization", torch.nn.Linear: "Gemm"}
        if type(module) in kind:
            assert named[name] == kind[type(module)]
    assert {"layer1.0.relu", "layer1.0.relu_2", "layer1.0.add", "layer2.0.downsample.0"} <= set(named)


def test_graph_is_static_and_says_who_wrote_it(tmp_path: Path) -> None:
    path = export(tmp_path, SPECS[0])
    graph = read_graph(path)
    assert [(tensor.name, tensor.shape) for tensor in graph.inputs] == [("input", (3, 3, 40, 40))]
    assert [(tensor.name, tensor.shape) for tensor in graph.outputs] == [("output", (3, 7))]
    model = onnx.load_model(str(path), load_external_data=False)
    props = {prop.key: prop.value for prop in model.metadata_props}
    assert props == {"exporter": "torch.onnx", "exporter_version": torch.__version__, "opset": "17"}
    assert not model.graph.value_info


def test_export_is_repeatable_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    first = export(tmp_path, SPECS[1]).read_bytes()
    assert export(tmp_path, SPECS[1]).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_failed_export_leaves_no_file(tmp_path: Path) -> None:
    class Sorted(torch.nn.Module):
        def forward(self, x: "torch.Tensor") -> "torch.Tensor":
            raise RuntimeError("cannot be traced")

    with pytest.raises(RuntimeError, match="cannot be traced"):
        export_model(Sorted(), (1, 3, 8, 8), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_spec_of_another_family_is_refused(tmp_path: Path) -> None:
    class OtherSpec(msgspec.Struct, frozen=True):
        depth: int

    with pytest.raises(SpecError, match="another family"):
        export_spec(RESNET, OtherSpec(depth=1), tmp_path / "model.onnx")


def test_widest_network_is_exported_without_its_weights(tmp_path: Path) -> None:
    import resource

    spec = ResNetSpec(block="bottleneck", blocks=(1, 1, 1, 12), width=192)
    weights_kib = 4 * RESNET.estimate(spec).params / 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = export(tmp_path, spec)
    assert path.stat().st_size < 60_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < weights_kib / 3
