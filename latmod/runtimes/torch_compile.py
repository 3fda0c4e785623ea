"""PyTorch through its compiler on the CPU: one inductor graph, the weights frozen into it."""

import gc
import os
import shutil
import sys
from collections.abc import Sequence

from latmod.errors import RuntimeMissingError, UnsupportedModelError
from latmod.runtimes import Inputs, Model, Settings, installed_version
from latmod.runtimes.conversion import literal_shapes
from latmod.runtimes.files import one_line
from latmod.runtimes.torch import ModuleSession, load_module


class TorchCompile:
    """Open models in PyTorch, compiled by inductor with freezing: weights folded, and laid out as oneDNN wants them."""

    name = "torch-compile"
    extra = "torch"
    rules = "onnxruntime"
    source = "as torch, then compiled; needs a C++ compiler"
    tolerance = 1e-3
    # Its profiler tells of fused loops under names that say nothing of the graph.
    profiles = False
    simulated_clock = None

    def version(self) -> str:
        """Return the installed version of torch; raise RuntimeMissingError without a compiler too."""
        version = installed_version("torch", self.extra)
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise RuntimeMissingError(f"torch-compile needs a C++ compiler: {compiler} is not installed; set CXX")
        return version

    def open(self, model: Model, inputs: Sequence[Inputs], settings: Settings) -> "TorchCompileSession":
        """Build or convert the module and compile it; raise UnsupportedModelError with the compiler's reason."""
        import torch
        import torch._dynamo
        import torch._inductor.config

        self.version()
        module, own = load_module(model, settings)
        if isinstance(module, torch.fx.GraphModule):
            literal_shapes(module, [torch.from_numpy(value) for value in inputs[0].values()])
        torch._dynamo.reset()
        module.compile(dynamic=False, fullgraph=True)
        session = TorchCompileSession(
            module, inputs, torch.no_grad, own | {"mode": "inductor, freezing, no_grad", "dynamic": False}
        )
        try:
            # One thread, this one: inductor's own workers would stay behind.
            with torch._inductor.config.patch(freezing=True, compile_threads=1):
                session.infer()
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UnsupportedModelError(f"torch-compile cannot compile {model.path}: {one_line(error)}") from error
        return session


class TorchCompileSession(ModuleSession):
    """Hold a compiled module."""

    def close(self) -> None:
        """Drop the module, and the code with its frozen weights, which inductor keeps for the whole process."""
        import torch._dynamo
        from torch._inductor.codecache import PyCodeCache

        super().close()
        torch._dynamo.reset()
        for made in PyCodeCache.modules:
            sys.modules.pop(made.__name__, None)
            made.__dict__.clear()
        PyCodeCache.cache_clear()
        gc.collect()
