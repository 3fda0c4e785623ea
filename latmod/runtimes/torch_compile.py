"""PyTorch through its compiler on the CPU: one inductor graph, the weights frozen into it."""

import ast
import gc
import inspect
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from latmod.dataset import LOOP, KernelTime
from latmod.errors import LatmodError, RuntimeMissingError, UnsupportedModelError
from latmod.runtimes import Inputs, Model, Settings, fastest_third, installed_version, profiled_runs
from latmod.runtimes.conversion import literal_shapes
from latmod.runtimes.files import one_line
from latmod.runtimes.torch import ModuleSession, load_module

_OPERANDS: Mapping[str, tuple[int, int]] = {
    "torch.ops.mkldnn._convolution_pointwise.default": (0, 1),
    "torch.ops.mkldnn._convolution_pointwise.binary": (0, 2),
    "torch.ops.mkldnn._convolution_pointwise_.binary": (1, 2),
    "torch.ops.mkldnn._convolution_transpose_pointwise.default": (0, 1),
    "torch.ops.mkldnn._linear_pointwise.default": (0, 1),
    "torch.ops.mkldnn._linear_pointwise.binary": (0, 2),
    "torch.ops.mkl._mkl_linear.default": (0, 2),
    "extern_kernels.convolution": (0, 1),
    "extern_kernels.mm": (0, 1),
    "extern_kernels.bmm": (0, 1),
    "extern_kernels.addmm": (1, 2),
    "extern_kernels.baddbmm": (1, 2),
}
"""Calls of libraries in the code that inductor writes, and which of their arguments are multiplied."""
_LOOPS = "cpp_fused_"
"""Begins the names of inductor's loops; the operators that they do the work of follow, and a number."""


class TorchCompile:
    """Open models in PyTorch, compiled by inductor with freezing: weights folded, and laid out as oneDNN wants them."""

    name = "torch-compile"
    extra = "torch"
    rules = "torch-compile"
    source = "as torch, then compiled; needs a C++ compiler"
    tolerance = 1e-3
    profiles = True
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
        scales = True
        while True:
            module, own = load_module(model, settings.threads)
            converted = module if isinstance(module, torch.fx.GraphModule) else None
            if converted is not None:
                literal_shapes(converted, [torch.from_numpy(value) for value in inputs[0].values()], scales=scales)
            torch._dynamo.reset()
            module.compile(dynamic=False, fullgraph=True)
            session = TorchCompileSession(
                module, inputs, torch.no_grad, own | {"mode": "inductor, freezing, no_grad", "dynamic": False}
            )
            try:
                # One thread, this one: inductor's own workers would stay behind.
                with torch._inductor.config.patch(freezing=True, compile_threads=1):
                    session.infer()
                return session
            except torch._dynamo.exc.TorchDynamoException as error:
                session.close()
                if converted is None or not scales:
                    reason = f"torch-compile cannot compile {model.path}: {one_line(error)}"
                    raise UnsupportedModelError(reason) from error
                # Its patterns of attention match other orders of dims too (2.14), which a scale in a tensor prevents.
                scales = False
                # Or the weights would be held twice.
                del module, converted, session


class TorchCompileSession(ModuleSession):
    """Hold a compiled module, which can also tell what its products and its loops take."""

    def kernels(self, seconds: float) -> tuple[KernelTime, ...]:
        """Run for about so many seconds, at least four times, with a clock around every call.

        What inductor writes is a straight line of calls: of libraries, for convolutions and products of matrices, and
        of loops of its own, each for what it fused of several operators. What passes between them is told of nothing.
        (torch.profiler, which knows the same, makes a run of MobileNet v3 Small, 2.8 ms, longer by 0.3 to 0.7 ms; this
        by 0.1 to 0.4, outside of what is told.)
        """
        calls = _Calls()
        _with_clocks(_written(), calls)
        self.infer()
        runs: list[list[float]] = []
        for _ in profiled_runs(seconds):
            calls.clear()
            self.infer()
            runs.append(calls.ns)
        return tuple(
            KernelTime(op=op, inputs=inputs, outputs=outputs, value="", count=1, ns=round(ns))
            for (op, inputs, outputs), ns in zip(calls.made, fastest_third(runs), strict=True)
        )

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


_Shapes = tuple[tuple[int, ...], ...]


class _Calls:
    """Note what the calls of a run are, and take, in turn."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.ns: list[float] = []
        self.made: list[tuple[str, _Shapes, _Shapes]] = []

    def product(self, name: str, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter_ns()
        result = function(*args, **kwargs)
        self.ns.append(time.perf_counter_ns() - start)
        left, right = (tuple(args[place].shape) for place in _OPERANDS[name])
        self.made.append((name, (left, right), (tuple(result.shape),)))
        return result

    def loop(self, name: str, function: Callable[..., Any], *args: Any) -> None:
        start = time.perf_counter_ns()
        function(*args)
        self.ns.append(time.perf_counter_ns() - start)
        self.made.append((LOOP + name.removeprefix(_LOOPS).rstrip("_0123456789"), (), ()))


def _written() -> ModuleType:
    """Return the module that inductor wrote for the model that is open: the only one there is."""
    from torch._inductor.codecache import PyCodeCache

    modules = [module for module in PyCodeCache.modules if hasattr(module, "Runner")]
    if len(modules) != 1:
        raise LatmodError(f"torch-compile: inductor wrote {len(modules)} graphs where one was expected")
    return modules[0]


def _with_clocks(module: ModuleType, calls: _Calls) -> None:
    """Let a module that inductor wrote make its calls of libraries and of loops through `calls`."""
    tree = ast.parse(inspect.getsource(module))
    (runner,) = (part for part in tree.body if isinstance(part, ast.ClassDef) and part.name == "Runner")
    (call,) = (part for part in runner.body if isinstance(part, ast.FunctionDef) and part.name == "call")
    clocked = ast.fix_missing_locations(ast.Module(body=[_Clocking().visit(call)], type_ignores=[]))
    module.__dict__["latmod_calls"] = calls
    made: dict[str, Any] = {}
    exec(compile(clocked, module.__name__, "exec"), module.__dict__, made)
    module.Runner.call.__code__ = made["call"].__code__


class _Clocking(ast.NodeTransformer):
    """Put `latmod_calls.product(name, function, ...)`, or loop, in the place of each call."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name not in _OPERANDS and not name.startswith(_LOOPS):
            return node
        method = "product" if name in _OPERANDS else "loop"
        timed = ast.Attribute(ast.Name("latmod_calls", ast.Load()), method, ast.Load())
        return ast.Call(func=timed, args=[ast.Constant(name), node.func, *node.args], keywords=node.keywords)
