"""What ncnn makes of a graph, as far as it differs from onnxruntime."""

from latmod.kernels.rewriting import Rewriter


def copy_reshapes(work: Rewriter) -> None:
    """Mark where rows of a matrix become an image: ncnn keeps eight rows together, and takes them apart one by one.

    Measured on ConvNeXt-T, ncnn 1.0.20261020: 100 ns an element, 128 ms of 132 ms that its first product takes.
    """
    for step in work.live():
        if step.op == "Reshape":
            rows, image = work.shape(step.inputs[0]), work.shape(step.out)
            if len(rows) == 2 and rows[0] > 1 and len(image) >= 4 and image[-1] == rows[-1]:
                step.op = "RowsToImage"
