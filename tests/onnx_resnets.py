"""Write residual networks as ONNX, without torch: thousands of shapes in the time that one export takes."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper


class ResNetWriter:
    """Write a network node by node, in the form that one of the exporters gives it."""

    def __init__(self, *, norms: Literal["folded", "kept", "no bias"] = "folded", dynamo: bool = False, tag: str = "v"):
        self.norms, self.dynamo, self.tag = norms, dynamo, tag
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []

    def weight(self, *shape: int) -> str:
        """Add an initialiser without data: its dims are all that counts."""
        name = f"{self.tag}_w{len(self.initializers)}"
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="weights.bin")
        self.initializers.append(tensor)
        return name

    def node(self, op: str, *inputs: str, **attributes) -> str:
        output = f"{self.tag}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{op}_{output}", **attributes))
        return output

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1, dilation: int = 1) -> str:
        inputs = [x, self.weight(cout, cin // group, kernel, kernel)]
        if self.norms == "folded":
            inputs.append(self.weight(cout))
        pads = [dilation * (kernel // 2)] * 4
        y = self.node(
            "Conv", *inputs, strides=[stride] * 2, pads=pads, group=group, dilations=[dilation] * 2,
            kernel_shape=[kernel] * 2,
        )  # fmt: skip
        if self.norms == "kept":
            y = self.node("BatchNormalization", y, *(self.weight(cout) for _ in range(4)))
        return y

    def save(self, path: Path, *, output: str, side: int, batch: int, classes: int) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, classes])],
            self.initializers,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        return path


def write_resnet(
    path: Path,
    *,
    block: str = "basic",
    blocks: tuple[int, ...] = (1, 1, 1, 1),
    width: int = 8,
    widen: float = 1.0,
    side: int = 64,
    batch: int = 1,
    classes: int = 10,
    group: int = 1,
    dilation: int = 1,
    **form,
) -> Path:
    """Write a residual network as torchvision builds it; `form` goes to the writer."""
    w = ResNetWriter(**form)
    x = w.node("Relu", w.conv("x", 3, width, 7, stride=2))
    x = w.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = width
    for stage, count in enumerate(blocks):
        planes = width << stage
        inner, outer = int(planes * widen), planes * (4 if block == "bottleneck" else 1)
        for number in range(count):
            stride = 2 if stage and not number else 1
            if block == "bottleneck":
                y = w.node("Relu", w.conv(x, channels, inner, 1))
                y = w.node("Relu", w.conv(y, inner, inner, 3, stride, group, dilation))
                y = w.conv(y, inner, outer, 1)
            else:
                y = w.node("Relu", w.conv(x, channels, outer, 3, stride))
                y = w.conv(y, outer, outer, 3)
            if stride == 2 or channels != outer:
                x = w.conv(x, channels, outer, 1, stride)
            channels = outer
            x = w.node("Relu", w.node("Add", y, x))
    if w.dynamo:
        axes = w.node("Constant", value_ints=np.array([-1, -2]))
        target = w.node("Constant", value_ints=np.array([batch, channels]))
        x = w.node("Reshape", w.node("ReduceMean", x, axes, keepdims=1), target)
    else:
        x = w.node("Flatten", w.node("GlobalAveragePool", x))
    y = w.node("Gemm", x, w.weight(classes, channels), w.weight(classes), transB=1)
    return w.save(path, output=y, side=side, batch=batch, classes=classes)
