"""Run as `python -m latmod.worker RUNTIME THREADS MEMORY_BYTES bound|free`: answer requests until the input closes."""

import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from latmod.errors import LatmodError
from latmod.graph import read_inputs
from latmod.inputs import image_inputs, is_image, random_inputs
from latmod.machine import disturbance, read_counters, usable_cores
from latmod.quiet import Probe, wait_for_quiet
from latmod.runtimes import Inputs, PreloadingRuntime, ProfilingSession, Runtime, find_runtime
from latmod.timing import Reference, ReferenceLoad, run_burst
from latmod.worker import THREAD_VARIABLES, cores_for
from latmod.worker.messages import (
    BurstReply,
    BurstRequest,
    ExportReply,
    ExportRequest,
    Failure,
    KernelReply,
    KernelRequest,
    ModelRequest,
    Ready,
    ReferenceReply,
    ReferenceRequest,
    Reply,
    Request,
)

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_OUTPUT_HEAD = 8
_LARGEST = 3.4e38


def main(runtime_name: str, threads: int, memory_bytes: int, bound: bool) -> None:
    """Answer requests one by one, on the last cores if `bound`; whatever engines print goes nowhere."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    _die_with_parent()
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    server = _Server(find_runtime(runtime_name) if runtime_name else None)
    cores = cores_for(threads)
    if bound and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    server.preload()
    _send(replies, Ready(cores=cores))
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        if server.preloading and isinstance(request, BurstRequest | KernelRequest):
            _in_child(partial(_answer, replies, server, request))
        else:
            _answer(replies, server, request)


def _answer(replies: BinaryIO, server: "_Server", request: Request) -> None:
    _send(replies, server.answer(request))


def _in_child(work: Callable[[], None]) -> None:
    """Do some work in a forked process and wait for it; die as it dies."""
    child = os.fork()
    if not child:
        _die_with_parent()
        work()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        os.kill(os.getpid(), -code)
    elif code:
        os._exit(code)


class _Server:
    def __init__(self, runtime: Runtime | None) -> None:
        self.runtime = runtime
        self.preloading = runtime if isinstance(runtime, PreloadingRuntime) and hasattr(os, "fork") else None
        self._inputs: dict[tuple[object, ...], tuple[list[Inputs], str]] = {}
        self._reference: Callable[[], Reference] | None = None
        self._probe = Probe().measure

    def preload(self) -> None:
        """Do once what every forked process would do for itself."""
        if self.preloading:
            _keep_memory()
            self.preloading.preload()
            self._reference_load()

    def answer(self, request: Request) -> Reply:
        try:
            match request:
                case ExportRequest():
                    return self._export(request)
                case ReferenceRequest():
                    return self._run_reference(request)
                case BurstRequest():
                    return self._burst(request)
                case KernelRequest():
                    return self._kernels(request)
        except LatmodError as error:
            return Failure(reason=str(error))
        except MemoryError:
            return Failure(reason="out of memory: the model outgrew the worker's bound (raise --max-memory)")
        except Exception as error:
            if "llocate memory" in str(error) or "bad_alloc" in str(error):
                return Failure(reason="out of memory: the model outgrew the worker's bound (raise --max-memory)")
            message = " ".join(str(error).split())
            return Failure(reason=f"{type(error).__name__}: {message[:300]}")

    def _export(self, request: ExportRequest) -> ExportReply:
        from latmod.export import export_spec
        from latmod.families import FAMILIES

        start = time.perf_counter_ns()
        family = FAMILIES[request.family]
        export_spec(family, msgspec.convert(request.spec, family.spec_type), Path(request.path))
        return ExportReply(export_ns=time.perf_counter_ns() - start)

    def _burst(self, request: BurstRequest) -> BurstReply:
        if self.runtime is None:
            raise LatmodError("a worker without a runtime cannot time anything")
        inputs, kind = self._inputs_for(request)
        reference = self._reference_load()
        start = time.perf_counter_ns()
        session = self.runtime.open(request.model, inputs, request.settings)
        try:
            load_ns = time.perf_counter_ns() - start
            clock = self.runtime.simulated_clock or time.perf_counter_ns
            outputs: list[np.ndarray] = []
            burst = run_burst(
                session.infer,
                session.feed,
                request.plan,
                reference,
                lambda: outputs.extend(session.outputs()),
                clock,
                None if self.runtime.simulated_clock else self._probe,
            )
            return BurstReply(
                burst=burst,
                load_ns=load_ns,
                settings=session.settings | self._conditions(),
                output=_digest(outputs),
                finite=all(bool(np.isfinite(output).all()) for output in outputs),
                inputs=kind,
            )
        finally:
            session.close()

    def _kernels(self, request: KernelRequest) -> KernelReply:
        if self.runtime is None or not self.runtime.profiles:
            raise LatmodError("this runtime tells no per-kernel times")
        inputs, _ = self._inputs_for(request)
        reference = self._reference_load()
        session = self.runtime.open(request.model, inputs, request.settings)
        try:
            if not isinstance(session, ProfilingSession):
                raise LatmodError("this runtime tells no per-kernel times")
            session.infer()
            before = reference()
            wait_for_quiet(self._probe, request.patience_seconds, request.quiet_ns)
            return KernelReply(kernels=session.kernels(request.seconds), before=before, after=reference())
        finally:
            session.close()

    def _run_reference(self, request: ReferenceRequest) -> ReferenceReply:
        load = ReferenceLoad()
        load.measure()
        counters = read_counters()
        end = time.monotonic() + request.seconds
        passes = [load.measure()]
        while time.monotonic() < end:
            passes.append(load.measure())
        return ReferenceReply(passes=tuple(passes), disturbance=disturbance(counters, read_counters()))

    def _inputs_for(self, request: ModelRequest) -> tuple[list[Inputs], str]:
        """Return the inputs and what they are; made once for each shape in a process."""
        tensors = read_inputs(Path(request.model.path))
        key = (*((t.name, t.dtype, t.shape) for t in tensors), request.images, request.input_count, request.input_seed)
        if key not in self._inputs:
            if len(tensors) == 1 and is_image(tensors[0]):
                folder = Path(request.images) if request.images else None
                images = image_inputs(tensors[0].shape, request.input_count, request.input_seed, folder)
                self._inputs[key] = ([{tensors[0].name: image} for image in images], "images")
            else:
                self._inputs[key] = (random_inputs(tensors, request.input_count, request.input_seed), "random")
        return self._inputs[key]

    def _conditions(self) -> dict[str, str | int | bool]:
        """Return the cores of this process, the thread variables set before the engine was imported, whose process."""
        return {
            "cores": ",".join(map(str, usable_cores())),
            "process": "one for each model" if self.preloading else "one for all models",
            "thread_variables": ",".join(f"{name}={os.environ.get(name, '')}" for name in THREAD_VARIABLES),
        }

    def _reference_load(self) -> Callable[[], Reference]:
        if self._reference is None:
            if self.runtime is not None and self.runtime.simulated_clock is not None:
                steady = Reference(conv_ns=1, copy_ns=1, dispatch_ns=1)
                self._reference = lambda: steady
            else:
                self._reference = ReferenceLoad().measure
        return self._reference


def _digest(outputs: list[np.ndarray]) -> tuple[float, ...]:
    """Return the largest absolute value, the mean and the first values of the first output."""
    if not outputs:
        return ()
    # Means of what is infinite stay numbers, which JSON can tell.
    first = np.clip(np.nan_to_num(np.asarray(outputs[0], dtype=np.float64).ravel()), -_LARGEST, _LARGEST)
    figures = (np.abs(first).max(initial=0.0), first.mean() if first.size else 0.0, *first[:_OUTPUT_HEAD])
    return tuple(float(f"{figure:.6g}") for figure in figures)


def _send(replies: BinaryIO, reply: Reply) -> None:
    replies.write(msgspec.json.encode(reply) + b"\n")
    replies.flush()


def _keep_memory() -> None:
    """Let malloc give nothing back to the system, and map no block by itself (mallopt(3)).

    As in a process that has once held something large: in a fresh one 61 of 466 generated networks lost the end of the
    heap after each inference, and up to half of their latency went into mapping it again. So it did in 15 of 751, in
    torch, whose blocks of more than 32 MiB were mapped anew each time: 252 ms for 148, 182 for 140 (kernels-zen5).
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _die_with_parent() -> None:
    """Ask Linux to end this process with its parent, so that a killed sweep leaves nothing running (prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "bound")
