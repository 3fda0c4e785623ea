"""Export one small residual network in every way that torch offers; once per test run, because that takes seconds."""

import atexit
import functools
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def export_module(module: "nn.Module", shape: tuple[int, ...], path: Path) -> None:
    """Export a torch module without its weights, by the exporter that most files in the world come from."""
    import torch

    from latmod.graph import strip_weights

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (torch.randn(shape),), path, dynamo=False, opset_version=17)
    path.write_bytes(strip_weights(path))


@functools.cache
def export_ways() -> Path:
    """Return a folder with one file per way: a basic network of width 64, one block per stage, 64 x 64 pixels."""
    import torch
    from torchvision.models.resnet import BasicBlock, ResNet

    folder = Path(tempfile.mkdtemp(prefix="latmod-exports-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    torch.manual_seed(0)
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10).eval()
    image = (torch.randn(1, 3, 64, 64),)
    keep_norms = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    inside = {"external_data": False, "verbose": False}
    ways = {
        "script": {"dynamo": False},
        "script-norms": {"dynamo": False, **keep_norms},
        "script-dynamic": {"dynamo": False, "input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}},
        "dynamo": {"dynamo": True, **inside},
        "dynamo-norms": {"dynamo": True, "optimize": False, "external_data": True, "verbose": False},
        "dynamo-dynamic": {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},), **inside},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, options in ways.items():
            if name == "dynamo-norms":
                # From here on as after training: no two batch norms are alike, and no bias is zero.
                for norm in model.modules():
                    if isinstance(norm, torch.nn.BatchNorm2d):
                        torch.nn.init.uniform_(norm.bias, -0.1, 0.1)
            torch.onnx.export(model, image, folder / f"{name}.onnx", **options)
        torch.onnx.export(model, image, folder / "script-trained.onnx", dynamo=False)
    return folder
