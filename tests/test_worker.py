import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latmod.errors import WorkerError
from latmod.runtimes import Model, Settings
from latmod.timing import BurstPlan
from latmod.worker import Worker, cores_for
from latmod.worker.messages import BurstReply, BurstRequest, ExportRequest, Failure


def request_for(path: Path) -> BurstRequest:
    return BurstRequest(
        model=Model(path=str(path)), settings=Settings(threads=1), plan=BurstPlan(seconds=0.01), input_count=2
    )


@pytest.fixture
def graph(exported_graphs: Path) -> Path:
    return sorted(exported_graphs.glob("*.onnx"))[0]


def test_one_process_answers_many_requests(graph: Path) -> None:
    with Worker("fake", threads=1) as worker:
        replies = [worker.ask(request_for(graph)) for _ in range(3)]
    assert all(isinstance(reply, BurstReply) for reply in replies)
    assert len({reply.burst.samples_ns for reply in replies if isinstance(reply, BurstReply)}) == 1
    assert all(reply.inputs == "images" for reply in replies if isinstance(reply, BurstReply))


def test_a_model_that_cannot_be_read_is_a_failure_and_the_worker_lives_on(graph: Path, tmp_path: Path) -> None:
    with Worker("fake", threads=1) as worker:
        reply = worker.ask(request_for(tmp_path / "none.onnx"))
        assert isinstance(reply, Failure)
        assert "none.onnx" in reply.reason
        assert isinstance(worker.ask(request_for(graph)), BurstReply)


def test_a_worker_is_started_again_after_it_died(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Worker("fake", threads=1) as worker:
        monkeypatch.setenv("LATMOD_FAKE", "die:.onnx")
        with pytest.raises(WorkerError, match="SIGSEGV"):
            worker.ask(request_for(graph))
        monkeypatch.delenv("LATMOD_FAKE")
        assert isinstance(worker.ask(request_for(graph)), BurstReply)


def test_the_parent_waits_without_using_the_processor(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATMOD_FAKE", "slow:.onnx")
    with Worker("fake", threads=1) as worker:
        worker.ask(request_for(graph))
        before, wall = time.process_time(), time.monotonic()
        worker.ask(request_for(graph))
        assert time.process_time() - before < 0.2 * (time.monotonic() - wall)


def test_an_unknown_runtime_ends_the_worker_with_an_error() -> None:
    with Worker("nonsense", threads=1) as worker, pytest.raises(WorkerError, match="exit code"):
        worker.ask(ExportRequest(family="resnet", spec={}, path="x"))


def test_cores_are_the_last_ones() -> None:
    assert cores_for(1) == (max(os.sched_getaffinity(0)),)


@pytest.mark.parametrize(
    ("ending", "code"), [("pass", 7), ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV), ("os._exit(3)", 3)]
)
def test_a_process_ends_as_its_child_does_or_goes_on(ending: str, code: int) -> None:
    program = (
        "import os, signal\nfrom latmod.worker.__main__ import _in_child\n"
        f"def work():\n    {ending}\n_in_child(work)\nos._exit(7)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == code


def test_models_in_torch_have_a_process_each_and_in_others_share_one(graph: Path) -> None:
    pytest.importorskip("torch")
    for runtime, told in (("torch", "one for each model"), ("onnxruntime", "one for all models")):
        with Worker(runtime, threads=1) as worker:
            replies = [worker.ask(request_for(graph)) for _ in range(2)]
        for reply in replies:
            assert isinstance(reply, BurstReply)
            assert reply.settings["process"] == told


def test_an_output_that_is_not_finite_is_told_in_numbers() -> None:
    """Of infinities and NaN alike JSON makes null, which is no answer."""
    np = pytest.importorskip("numpy")
    from latmod.worker.__main__ import _digest

    told = _digest([np.array([np.inf, -np.inf, np.inf, np.nan, 2.0])])
    assert all(math.isfinite(figure) for figure in told)
    assert told[0] > 1e38
    assert told[-1] == 2.0
