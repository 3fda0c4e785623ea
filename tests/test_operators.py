"""What onnx2torch lacks, against what onnxruntime computes."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

torch = pytest.importorskip("torch")
pytest.importorskip("onnx2torch")
pytest.importorskip("onnxruntime")
from agreement import assert_the_runtimes_agree, outputs  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from latmod.errors import UnsupportedModelError  # noqa: E402
from latmod.export import export_model, export_spec  # noqa: E402
from latmod.families import FAMILIES  # noqa: E402
from latmod.families.generated import GeneratedSpec  # noqa: E402
from latmod.families.recurrent import Recurrent  # noqa: E402
from latmod.graph import read_inputs, strip_weights  # noqa: E402
from latmod.inputs import random_inputs  # noqa: E402
from latmod.runtimes import Model, Settings, find_runtime  # noqa: E402


class Heard(nn.Module):
    """Give all steps of a recurrent layer and, scaled by it, what it remembers at the end."""

    def __init__(self, layer: nn.Module, *, states: bool) -> None:
        super().__init__()
        self.layer, self.states = layer, states

    def forward(self, x: Tensor) -> Tensor:
        if not self.states:
            y: Tensor = self.layer(x)[0]
            return y
        first = torch.full((4, x.shape[1], 3), 0.25) + x.mean()
        lstm = isinstance(self.layer, nn.LSTM)
        y, last = self.layer(x, (first, 2.0 * first) if lstm else first)
        return y * (last[1] if lstm else last).sum()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_layers_compute_what_onnxruntime_computes(
    kind: type[nn.Module], states: bool, bias: bool, tmp_path: Path
) -> None:
    path = tmp_path / "layers.onnx"
    module = Heard(kind(5, 3, 2, bidirectional=True, bias=bias), states=states).eval()
    torch.onnx.export(module, (torch.rand(7, 2, 5),), str(path), dynamo=False, opset_version=17)
    path.write_bytes(strip_weights(path))
    assert_the_runtimes_agree(path, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize(
    ("runtime", "package"), [(name, name) for name in ("openvino", "ncnn", "tract")] + [("mnn", "MNN")]
)
def test_every_engine_runs_recurrent_layers(runtime: str, package: str, op: str, tmp_path: Path) -> None:
    """Except in MNN, whose own operator is 3 to 10 % off, which the check of parity tells, they compute the same."""
    pytest.importorskip(package)
    path = tmp_path / "layers.onnx"
    export_model(Recurrent(6, 8, 2, op, both=False), (1, 6, 20), path)
    (expected,), (found,) = (outputs(name, path) for name in ("onnxruntime", runtime))
    assert found.shape == expected.shape == (1, 8, 20)
    off = float(np.abs(found - expected).max() / np.abs(expected).max())
    assert off < (0.3 if runtime == "mnn" else 1e-4)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_samples_of_maps_are_what_onnxruntime_reads(mode: str, padding: str, tmp_path: Path) -> None:
    class Sampled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            grid = torch.tanh(x[:, :2]).permute(0, 2, 3, 1) * 1.2
            return torch.nn.functional.grid_sample(x, grid, mode, padding, align_corners=mode == "bilinear")

    path = tmp_path / "sampled.onnx"
    torch.onnx.export(Sampled(), (torch.rand(2, 3, 6, 5),), str(path), dynamo=False, opset_version=17)
    assert_the_runtimes_agree(path, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("said", "inputs", "why"),
    [
        ({"direction": "reverse"}, {}, "direction reverse"),
        ({"layout": 1}, {}, "layout 1"),
        ({"clip": 3.0}, {}, "clip"),
        ({}, {5: "h"}, "one of two states"),
        ({}, {4: "lengths"}, "sequence_lens"),
    ],
)
def test_what_torch_has_no_layer_for_is_named(
    said: dict[str, object], inputs: dict[int, str], why: str, tmp_path: Path
) -> None:
    path = tmp_path / "odd.onnx"
    names = ["x", "w", "r", "b", "", "", ""]
    for place, name in inputs.items():
        names[place] = name
    weights = {"w": (1, 12, 4), "r": (1, 12, 3), "b": (1, 24), "h": (1, 2, 3)}
    tensors = [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()]
    tensors.append(numpy_helper.from_array(np.full(2, 5, np.int32), "lengths"))
    node = helper.make_node("LSTM", names, ["y"], hidden_size=3, **said)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, 2, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "odd", [x], [y], tensors)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    with pytest.raises(UnsupportedModelError, match=f"LSTM with {why}"):
        find_runtime("torch").open(Model(path=str(path)), random_inputs(read_inputs(path), 1, seed=0), Settings())


@pytest.mark.parametrize("family", ["sequence", "volume", "sampler"])
@pytest.mark.parametrize("variant", range(6))
def test_networks_of_rare_operators_agree(family: str, variant: int, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_spec(FAMILIES[family], GeneratedSpec(variant=variant, width=16, depth=3, side=64), path)
    assert_the_runtimes_agree(path, rtol=1e-4, atol=1e-5)
