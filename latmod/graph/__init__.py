"""Read `.onnx` files: the only part of latmod that touches protobuf."""

from latmod.graph.canonical import canonical, canonical_op, is_copy, takes_all
from latmod.graph.explicit import explicit_model
from latmod.graph.exported import tidy_export
from latmod.graph.reading import check_shapes, is_known, read_graph
from latmod.graph.records import BITS, FLOATS, Attribute, Attributed, Graph, Node, Scalar, Tensor
from latmod.graph.shapes import parse_shapes, read_inputs, shape_names
from latmod.graph.slots import WeightSlot, fill_weights, weight_slots
from latmod.graph.weightfree import WEIGHTS_FILE, strip_weights

__all__ = [
    "BITS",
    "FLOATS",
    "WEIGHTS_FILE",
    "Attribute",
    "Attributed",
    "Graph",
    "Node",
    "Scalar",
    "Tensor",
    "WeightSlot",
    "canonical",
    "canonical_op",
    "check_shapes",
    "explicit_model",
    "fill_weights",
    "is_copy",
    "is_known",
    "parse_shapes",
    "read_graph",
    "read_inputs",
    "shape_names",
    "strip_weights",
    "takes_all",
    "tidy_export",
    "weight_slots",
]
