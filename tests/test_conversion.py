"""What becomes of exporters' ways of writing when a graph is turned into a torch module."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save

torch = pytest.importorskip("torch")
pytest.importorskip("onnx2torch")
from agreement import assert_the_runtimes_agree  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from latmod.export import export_model  # noqa: E402
from latmod.graph import read_graph, read_inputs, strip_weights  # noqa: E402
from latmod.inputs import random_inputs  # noqa: E402
from latmod.kernels import kernels  # noqa: E402
from latmod.runtimes.conversion import convert_graph, literal_shapes  # noqa: E402


class Written(nn.Module):
    """Take a module and give its output a table that no input influences."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.table = nn.Parameter(torch.ones(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        position = torch.arange(16).view(4, 4) % 9
        y: Tensor = self.inner(x) + self.table[position.view(-1)].view(4, 4, 4).sum(0)
        return y.view(y.shape[0], -1)


def parts(module: nn.Module) -> list[str]:
    graph = module.graph
    return [type(module.get_submodule(node.target)).__name__ for node in graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize(("inner", "name"), [(nn.GELU(), "GELU"), (nn.SiLU(), "SiLU")])
def test_activations_are_one_call_and_tables_are_computed_once(inner: nn.Module, name: str, tmp_path: Path) -> None:
    path = tmp_path / "written.onnx"
    export_model(Written(inner), (2, 4, 4), path)
    found = parts(convert_graph(path, weight_seed=0))
    assert found[0] == name
    assert set(found) <= {name, "OnnxBinaryMathOperation", "OnnxReshape", "Flatten"}
    kinds = [kernel.op for kernel in kernels(read_graph(path), "torch")]
    assert len(kinds) == len(found)
    assert kinds[0].upper() == name.upper()


class Stepwise(nn.Module):
    """Something like a GELU, in steps: it is one where x is divided by the root of 2."""

    def __init__(self, halved: str, divisor: float) -> None:
        super().__init__()
        self.halved, self.divisor = halved, divisor

    def forward(self, x: Tensor) -> Tensor:
        total = torch.erf(x / self.divisor) + 1.0
        if self.halved == "input":
            return x * 0.5 * total
        return x * (total * 0.5) if self.halved == "sum" else x * total * 0.5


@pytest.mark.parametrize("halved", ["input", "sum", "product"])
@pytest.mark.parametrize("divisor", [2.0**0.5, 0.5**0.5])
def test_a_gelu_in_steps_is_one_call_and_what_is_none_is_not(halved: str, divisor: float, tmp_path: Path) -> None:
    path = tmp_path / "written.onnx"
    export_model(Written(Stepwise(halved, divisor)), (2, 4, 4), path)
    assert (parts(convert_graph(path, weight_seed=0))[0] == "GELU") == (divisor > 1.0)
    assert_the_runtimes_agree(path)


def run_both(nodes: list[object], constants: dict[str, np.ndarray], path: Path, *, opset: int = 18) -> None:
    """Hold torch against onnxruntime for nodes from x, 1 x 6 whole numbers, to y."""
    graph = helper.make_graph(
        nodes,
        "forms",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    path.write_bytes(strip_weights(path))
    assert_the_runtimes_agree(path)


def test_whole_numbers_stay_whole_where_they_are_clipped(tmp_path: Path) -> None:
    """As the indices of DeBERTa's attention are, before they are gathered by."""
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["clipped"], "clip"),
        helper.make_node("Clip", ["clipped", "", "high"], ["above"], "above"),
        helper.make_node("Gather", ["table", "above"], ["y"], "gather"),
    ]
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    run_both(nodes, {"low": np.array(1), "high": np.array(2), "table": table}, tmp_path / "clip.onnx")


@pytest.mark.parametrize("bounds", [["low"], ["low", "high"], ["", "high"], []])
def test_whole_numbers_are_clipped_at_as_many_bounds_as_there_are(bounds: list[str], tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Clip", ["x", *bounds], ["clipped"], "clip"),
        helper.make_node("Gather", ["table", "clipped"], ["y"], "gather"),
    ]
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    run_both(nodes, {"low": np.array(1), "high": np.array(0), "table": table}, tmp_path / "clip.onnx")


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_flattening_from_any_axis_converts(axis: int, tmp_path: Path) -> None:
    """From behind the last one, as BERT's masks are in transformers 5."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"], "flatten", axis=axis),
        helper.make_node("Cast", ["flat"], ["y"], "cast", to=TensorProto.FLOAT),
    ]
    run_both(nodes, {}, tmp_path / "flatten.onnx")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_the_standards_gelu_converts(approximate: str, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Gelu", ["floats"], ["y"], "gelu", approximate=approximate),
    ]
    run_both(nodes, {}, tmp_path / "gelu.onnx", opset=20)


@pytest.mark.parametrize("inner", [nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.LayerNorm(4), nn.Sigmoid()])
def test_the_module_computes_what_onnxruntime_computes(inner: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "written.onnx"
    export_model(Written(inner), (2, 4, 4), path)
    assert_the_runtimes_agree(path)


@pytest.mark.parametrize("network", ["squeezenet", "shufflenet", "inception_v2"])
def test_graphs_of_old_exporters_convert(network: str, tmp_path: Path) -> None:
    """Their weights are ConstantOfShape nodes, their dropouts have a mask, their additions are sums."""
    from latmod.export import export_spec
    from latmod.families import FAMILIES
    from latmod.families.published import PublishedSpec

    path = tmp_path / "light.onnx"
    export_spec(FAMILIES["light"], PublishedSpec(network=network), path)
    found = parts(convert_graph(path, weight_seed=0))
    assert "ConstantOfShape" not in " ".join(found)
    assert "OnnxSum" not in found
    priced = kernels(read_graph(path), "torch")
    assert len(found) == len(priced)
    assert found.count("OnnxBinaryMathOperation") == sum(kernel.kind in ("Add", "Mul") for kernel in priced)


class Shared(nn.Module):
    """Activate what is read again, a view, and what nothing else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.conv(x)
        twice = torch.relu(kept) + kept
        left, right = kept.split([2, 2], dim=1)
        return torch.cat([twice, torch.relu(left), right, torch.relu(self.conv(kept)), torch.relu(x)], dim=1)


def test_activations_overwrite_only_what_nothing_else_reads(tmp_path: Path) -> None:
    path = tmp_path / "shared.onnx"
    export_model(Shared(), (1, 4, 4, 4), path)
    module = convert_graph(path, weight_seed=0)
    acts = [part for part in module.modules() if isinstance(part, nn.ReLU)]
    assert [act.inplace for act in acts].count(True) == 1
    assert len(acts) == 4
    x = torch.rand(1, 4, 4, 4) - 0.5
    found = module(x.clone())
    for act in acts:
        act.inplace = False
    torch.testing.assert_close(module(x), found, rtol=0, atol=0)


class Shapely(nn.Module):
    """Reshape, cut, widen, split, pad and pick: what exporters write with shapes and positions as tensors."""

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.pad(x, [0, 1, 2, 0], value=0.5)[:, :, 1:5, :4] + x[:, 2].unsqueeze(1)
        left, right = x[:, 1:].reshape(2, 3, 8, 2).split([3, 5], dim=2)
        wide = left.sum(dim=1, keepdim=True).unsqueeze(0).expand(1, 2, 3, 3, 2)
        return torch.cat([wide.flatten(0, 1).flatten(1), right[:, :, ::2].flatten(1)], dim=1)


class Enlarging(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        twice, other = functional.interpolate(x, scale_factor=2.0), functional.interpolate(x, (7, 5), mode="bilinear")
        rows = [twice.mean(dim=(2, 3)) / 3.0, other.mean(dim=(2, 3)) * 0.5, x.mean(dim=(2, 3)) - 1.0]
        return torch.cat([*rows, x.reshape(1, 48) * 2.0], dim=1)


@pytest.mark.parametrize(
    ("written", "shape", "spelled"),
    [
        (
            Shapely(),
            (2, 4, 4, 4),
            {"OnnxReshape", "OnnxSlice", "OnnxExpand", "OnnxSplit13", "OnnxPadDynamic", "OnnxGather"},
        ),
        # Without, inductor refuses to resize, and attention whose scale is a tensor.
        (Enlarging(), (1, 3, 4, 4), {"OnnxResize", "OnnxBinaryMathOperation"}),
    ],
)
def test_what_stands_in_tensors_becomes_numbers_that_a_compiler_can_read(
    written: nn.Module, shape: tuple[int, ...], spelled: set[str], tmp_path: Path
) -> None:
    path = tmp_path / "written.onnx"
    export_model(written, shape, path)
    module = convert_graph(path, weight_seed=0)
    assert spelled <= set(parts(module))
    x = torch.from_numpy(random_inputs(read_inputs(path), 1, seed=0)[0]["input"])
    before = module(x)
    literal_shapes(module, [x])
    assert not spelled & set(parts(module))
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "stride", "start", "end"), [(3, 2, 0, 1), (4, 2, 1, 2), (7, 1, 0, 1)])
def test_average_pools_padded_at_their_end_convert(
    kernel: int, stride: int, start: int, end: int, tmp_path: Path
) -> None:
    """As in Caffe's networks, which round the number of windows up; the onnx package's inception_v1 has the last."""
    from onnx import TensorProto, helper, save

    pool = helper.make_node(
        "AveragePool", ["x"], ["y"], "pool",
        kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[start, start, end, end],
    )  # fmt: skip
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, None, None]) for name in "xy"]
    values[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 6, 6])
    graph = helper.make_graph([pool], "pooled", values[:1], values[1:])
    path = tmp_path / "pooled.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), path)
    assert_the_runtimes_agree(path)


def padded_graph(op: str, size: int, path: Path, **attributes: object) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    node = helper.make_node(
        op, ["x", "w"] if op == "Conv" else ["x"], ["y"], "padded", kernel_shape=[3, 3], **attributes
    )  # fmt: skip
    weight = numpy_helper.from_array(np.random.default_rng(0).random((2, 2, 3, 3), np.float32), "w")
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, size, size + 1])]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "padded", values, [result], [weight] if op == "Conv" else [])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8), path)
    return path


@pytest.mark.parametrize("rule", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["Conv", "MaxPool"])
@pytest.mark.parametrize(("size", "stride"), [(15, 2), (16, 2), (16, 1), (7, 3)])
def test_padding_by_a_rule_is_what_onnxruntime_makes_of_it(
    rule: str, op: str, size: int, stride: int, tmp_path: Path
) -> None:
    path = padded_graph(op, size, tmp_path / "padded.onnx", strides=[stride] * 2, auto_pad=rule)
    assert_the_runtimes_agree(path)


def test_padding_by_a_rule_counts_dilation(tmp_path: Path) -> None:
    """onnxruntime refuses the two together, so the same padding in numbers is what to compare with."""
    ruled = padded_graph("Conv", 16, tmp_path / "ruled.onnx", dilations=[2, 2], auto_pad="SAME_UPPER")
    plain = padded_graph("Conv", 16, tmp_path / "plain.onnx", dilations=[2, 2], pads=[2, 2, 2, 2])
    image = torch.rand(1, 2, 16, 17)
    with torch.no_grad():
        torch.testing.assert_close(convert_graph(ruled, 0)(image), convert_graph(plain, 0)(image))


def test_what_later_opsets_write_otherwise_converts(tmp_path: Path) -> None:
    """Opset 18 moves axes into inputs, splits into unequal parts and pads some dims; torch exports it by default."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "last"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Split", ["centred"], ["a", "b", "c"], axis=1, num_outputs=3),
        helper.make_node("Concat", ["c", "a", "b"], ["turned"], axis=1),
        helper.make_node("Pad", ["turned", "pads", "", "rows"], ["padded"]),
        helper.make_node("Resize", ["padded", "", "scales"], ["large"], mode="nearest", nearest_mode="floor",
                         coordinate_transformation_mode="asymmetric", antialias=0),
        helper.make_node("ReduceMax", ["large", "rows"], ["most"], keepdims=0),
        helper.make_node("Reshape", ["most", "shape"], ["square"], allowzero=1),
        helper.make_node("Trilu", ["ones"], ["below"], upper=0),
        helper.make_node("GreaterOrEqual", ["below", "one"], ["seen"]),
        helper.make_node("LessOrEqual", ["square", "one"], ["low"]),
        helper.make_node("And", ["seen", "low"], ["both"]),
        helper.make_node("Where", ["both", "square", "hidden"], ["y"]),
    ]  # fmt: skip
    constants = {
        "last": np.array([-1]), "pads": np.array([1, 2]), "rows": np.array([-2]), "shape": np.array([1, 8, 6]),
        "scales": np.array([1, 1, 2, 2], np.float32), "ones": np.ones((8, 6), np.float32),
        "one": np.array(1, np.float32), "hidden": np.array(-1e4, np.float32),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "later",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 5, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    path = tmp_path / "later.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    path.write_bytes(strip_weights(path))
    assert_the_runtimes_agree(path)


@pytest.mark.parametrize("opset", [18, 20])
def test_what_torch_exports_by_default_converts(opset: int, tmp_path: Path) -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = nn.functional.interpolate(self.conv(x).relu(), scale_factor=2.0, mode="bilinear")
            y = self.norm(nn.functional.pad(y, (1, 0, 0, 2)).mean((2, 3)))
            return self.out(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5))

    path = tmp_path / "default.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Pooled().eval(), (torch.zeros(1, 3, 8, 8),), dynamo=True, opset_version=opset, verbose=False
        )
    program.save(path)
    path.write_bytes(strip_weights(path))
    assert_the_runtimes_agree(path)


def test_masks_of_old_opsets_are_computed_by_the_rules_of_their_opset(tmp_path: Path) -> None:
    """Before opset 13 axes are an attribute of Unsqueeze; a node may be named as what is no name in Python."""
    nodes = [
        helper.make_node("Unsqueeze", ["scale"], ["column"], axes=[1, 2]),
        helper.make_node("Mul", ["x", "column"], ["y"], name="not"),
    ]
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 4, 4])],
        [numpy_helper.from_array(np.array([1, 2, 3], np.float32), "scale")],
    )
    path = tmp_path / "old.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=6), path)
    path.write_bytes(strip_weights(path))
    assert_the_runtimes_agree(path)
