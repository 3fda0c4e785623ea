"""Turn named features into columns, the same way in numpy and inside an ONNX graph.

A fitted map from features to latency must give the same number in Python and in the artifact. So every step between the
float32 feature matrix and a regressor is a `View`, which applies itself to an array and writes itself as ONNX nodes.
All arithmetic is in float64; only the inputs, and what trees compare with their thresholds, are float32.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Features = NDArray[np.float32]
Floats = NDArray[np.float64]
FeatureSet = Literal["study", "graph"]

STUDY = ("block_bottleneck", "blocks1", "blocks2", "blocks3", "blocks4", "width", "widen", "side")
"""What the study varied (and `widen` and `side`, constant in its two data sets): its own features."""

_SHAPE = (*STUDY, "batch", "classes")
_TOTALS = ("macs", "params", "activation_bytes", "weight_bytes", "max_activation_bytes", "max_weight_bytes", "nodes")
_PARTS = {f"{total}_": total for total in ("macs", "activation_bytes", "weight_bytes")} | {"count_": "nodes"}
"""Prefix of a part's name, and the total that it is a share of; what has no such total is taken per MAC."""

_NOT_ADDITIVE = (*_SHAPE, "is_residual", "max_activation_bytes", "max_weight_bytes", "depth")

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""Old enough for every onnxruntime since 1.14, new enough for all operators used here."""


def feature_matrix(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Features:
    """Return features as float32 [N, F] in the order of `names`; one that a row lacks is 0.

    float32 keeps 24 bits, so counts of MACs are rounded by up to 6e-8 of themselves, in fitting and predicting alike.
    """
    return np.array([[row.get(name, 0.0) for name in names] for row in rows], dtype=np.float32).reshape(-1, len(names))


def is_additive(name: str) -> bool:
    """Tell whether a feature is a quantity that adds up over nodes (MACs, bytes, counts), not a shape or a share."""
    return name not in _NOT_ADDITIVE


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Name the columns a regressor sees, by position: features as they are, log(1 + feature), ratios of features."""

    raw: tuple[int, ...] = ()
    logs: tuple[int, ...] = ()
    over: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Return the number of columns."""
        return len(self.raw) + len(self.logs) + len(self.over)

    def apply(self, x: Features) -> Floats:
        """Return the columns, float64 [N, D], of features [N, F]."""
        wide = x.astype(np.float64)
        top, bottom = [pair[0] for pair in self.over], [pair[1] for pair in self.over]
        ratios = wide[:, top] / np.maximum(wide[:, bottom], 1.0)
        return np.concatenate([wide[:, list(self.raw)], np.log(wide[:, list(self.logs)] + 1.0), ratios], axis=1)

    def write(self, out: "Writer", x: str) -> str:
        """Add nodes that compute the columns from `x`, float64 [N, F]; return the name of the result."""
        parts = []
        if self.raw:
            parts.append(out.gather(x, self.raw))
        if self.logs:
            parts.append(out.add("Log", out.add("Add", out.gather(x, self.logs), out.constant(1.0))))
        if self.over:
            top, bottom = (out.gather(x, [pair[side] for pair in self.over]) for side in (0, 1))
            parts.append(out.add("Div", top, out.add("Max", bottom, out.constant(1.0))))
        return out.add("Concat", *parts, axis=1)


def study_view(names: Sequence[str]) -> View:
    """Return the study's own features."""
    return View(raw=_positions(names, STUDY))


def graph_view(names: Sequence[str]) -> View:
    """Return every feature as it is."""
    return View(raw=tuple(range(len(names))))


def log_view(names: Sequence[str]) -> View:
    """Return the logarithms of shape and totals, and what each part has of its total: smooth in size, and few."""
    return View(logs=_positions(names, (*_SHAPE, *_TOTALS)), over=_ratios(names))


def mix_view(names: Sequence[str]) -> View:
    """Return the logarithms of shape and totals, and the shares of MACs alone."""
    over = tuple(pair for pair in _ratios(names) if names[pair[0]].startswith("macs_"))
    return View(logs=_positions(names, (*_SHAPE, *_TOTALS)), over=over)


def shape_view(names: Sequence[str]) -> View:
    """Return the logarithms of the shape alone."""
    return View(logs=_positions(names, _SHAPE))


def scale_free_view(names: Sequence[str]) -> View:
    """Return shape and totals as they are (a tree needs no logarithm), and what each part has of its total."""
    return View(raw=_positions(names, (*_SHAPE, *_TOTALS)), over=_ratios(names))


def additive_view(names: Sequence[str]) -> View:
    """Return the quantities that add up over nodes."""
    return View(raw=tuple(i for i, name in enumerate(names) if is_additive(name)))


def totals_view(names: Sequence[str], wanted: Sequence[str], *, logs: bool = False) -> View:
    """Return a few named features, as they are or as logarithms."""
    found = _positions(names, wanted)
    return View(logs=found) if logs else View(raw=found)


def _positions(names: Sequence[str], wanted: Sequence[str]) -> tuple[int, ...]:
    return tuple(names.index(name) for name in wanted if name in names)


def _ratios(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    pairs = []
    for i, name in enumerate(names):
        if not is_additive(name) or name == "macs":
            continue
        total = next((t for prefix, t in _PARTS.items() if t in names and name.startswith(prefix)), "macs")
        if total in names:
            pairs.append((i, names.index(total)))
    return tuple(pairs)


class Writer:
    """Collect ONNX nodes of one map from `features` (float32 [N, F]) to columns (float64 [N, 1])."""

    def __init__(self, columns: int) -> None:
        """Start an empty graph for this many features."""
        self.columns = columns
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self._count = 0

    def _fresh(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def constant(self, values: "float | Floats | NDArray[np.float32 | np.float16] | NDArray[np.int64]") -> str:
        """Add an initialiser (floating point of any size, or int64 for positions)."""
        from onnx import numpy_helper

        name = self._fresh()
        self.initializers.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(
        self, op: str, *inputs: str, domain: str = "", **attributes: int | float | Sequence[int | float | str]
    ) -> str:
        """Add one node and return the name of its output."""
        from onnx import helper

        name = self._fresh()
        node = helper.make_node(op, list(inputs), [name], domain=domain)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return name

    def gather(self, x: str, positions: Sequence[int]) -> str:
        """Add a selection of columns of `x`."""
        return self.add("Gather", x, self.constant(np.array(positions, dtype=np.int64)), axis=1)

    def cast(self, x: str, dtype: Literal["float32", "float64"]) -> str:
        """Add a change of type."""
        from onnx import TensorProto

        return self.add("Cast", x, to=TensorProto.FLOAT if dtype == "float32" else TensorProto.DOUBLE)

    def trees(self, model: object, columns: int, x: str) -> str:
        """Add a fitted scikit-learn tree or ensemble over `x`, float64 [N, columns]; return a float64 [N, 1]."""
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        converted = convert_sklearn(
            model,
            initial_types=[("x", FloatTensorType([None, columns]))],
            target_opset={"": OPSET, "ai.onnx.ml": ML_OPSET},
        )
        inner = converted.graph
        renamed = {inner.input[0].name: self.cast(x, "float32"), "": ""}
        for value in [*(i.name for i in inner.initializer), *(name for node in inner.node for name in node.output)]:
            renamed[value] = self._fresh()
        for initializer in inner.initializer:
            initializer.name = renamed[initializer.name]
            self.initializers.append(initializer)
        for node in inner.node:
            node.input[:] = [renamed[name] for name in node.input]
            node.output[:] = [renamed[name] for name in node.output]
            node.name = ""
            self.nodes.append(node)
        return self.cast(renamed[inner.output[0].name], "float64")

    def finish(self, **outputs: str) -> "ModelProto":
        """Return the whole model; `outputs` maps names to values, float64 [N, 1]."""
        from onnx import TensorProto, helper

        last = [helper.make_node("Identity", [value], [name]) for name, value in outputs.items()]
        graph = helper.make_graph(
            [*self.nodes, *last],
            "latmod",
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", self.columns])],
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["rows", 1]) for name in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="latmod")
