"""Keep one process per runtime: ask it for bursts, bound its time and memory, start it again after it died."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import msgspec

from latmod.errors import WorkerError
from latmod.machine import usable_cores
from latmod.worker.messages import ReferenceReply, ReferenceRequest, Reply, Request

_START_SECONDS = 120.0
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS",
)  # fmt: skip


class Worker:
    """Run one runtime (or, with none, exports) in a process of its own, started on first use."""

    def __init__(
        self,
        runtime: str = "",
        *,
        threads: int = 1,
        memory_bytes: int = 0,
        timeout_seconds: float = 600.0,
        bound: bool = True,
    ) -> None:
        """Bound the process's private memory (0: no bound), the seconds of one request, and the cores it runs on."""
        self._runtime = runtime
        self._threads = threads
        self._memory_bytes = memory_bytes
        self._timeout_seconds = timeout_seconds
        self._bound = bound
        self._process: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        """Return the worker."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.kill()

    def ask(self, request: Request) -> Reply:
        """Return the answer to one request; raise WorkerError where the process dies, hangs or outgrows its memory.

        The caller waits without using the processor. After an error the next request starts a new process.
        """
        process = self._process if self._process is not None and self._process.poll() is None else self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(request) + b"\n")
            process.stdin.flush()
            return self._receive(process, self._timeout_seconds)
        except BrokenPipeError:
            raise self._death(process) from None

    def kill(self) -> None:
        """End the process at once."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                _close_quietly(stream)

    def _start(self) -> subprocess.Popen[bytes]:
        self.kill()
        self._unread = b""
        command = [
            sys.executable, "-m", "latmod.worker", self._runtime,
            str(self._threads), str(self._memory_bytes), "bound" if self._bound else "free",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(os.environ, self._threads),
            start_new_session=True,
        )
        self._receive(self._process, _START_SECONDS)
        return self._process

    def _receive(self, process: subprocess.Popen[bytes], timeout_seconds: float) -> Reply:
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        while b"\n" not in self._unread:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([process.stdout], [], [], remaining)[0]:
                self.kill()
                raise WorkerError(f"the worker gave no answer in {timeout_seconds:.0f} s and was ended")
            chunk = os.read(process.stdout.fileno(), 1 << 20)
            if not chunk:
                raise self._death(process)
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        reply: Reply = msgspec.json.decode(line, type=Reply)
        return reply

    def _death(self, process: subprocess.Popen[bytes]) -> WorkerError:
        code = process.wait()
        self.kill()
        if code >= 0:
            return WorkerError(f"the worker ended with exit code {code}")
        name = signal.Signals(-code).name
        hint = "; the system was probably out of memory" if code == -signal.SIGKILL else ""
        return WorkerError(f"the worker was ended by {name}{hint}")


def reference_passes(seconds: float) -> ReferenceReply:
    """Run the reference load for so many seconds in a worker; raise WorkerError where that fails."""
    with Worker() as worker:
        reply = worker.ask(ReferenceRequest(seconds=seconds))
    if not isinstance(reply, ReferenceReply):
        raise WorkerError(f"the reference load failed: {reply}")
    return reply


def cores_for(threads: int) -> tuple[int, ...]:
    """Return the cores that a worker of so many threads is bound to: the last ones, as the first serve interrupts."""
    return usable_cores()[-threads:]


def _environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    return {
        **environment,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "KMP_BLOCKTIME": "0",
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def _close_quietly(stream: object) -> None:
    close = getattr(stream, "close", None)
    if close is not None:
        try:
            close()
        except BrokenPipeError:
            return
