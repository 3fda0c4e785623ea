import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from latmod.dataset import Card, DatasetFolder, Protocol, Seeds, disturbed_pairs
from latmod.errors import DatasetError
from latmod.plan import plan_sweep
from latmod.schedule import SweepResult, disturbed, pending
from latmod.sweeping import Progress, run_sweep

ROUNDS = 3


@pytest.fixture
def folder(tmp_path: Path, exported_graphs: Path) -> DatasetFolder:
    """Return a data set folder whose graphs are there already."""
    found = DatasetFolder(tmp_path / "data")
    shutil.copytree(exported_graphs, found.graph_path("x").parent)
    return found


@pytest.fixture
def card(tiny_space: Path) -> Card:
    protocol = Protocol(
        threads=1,
        rounds=ROUNDS,
        burst_seconds=0.01,
        min_samples=2,
        max_samples=5,
        max_latency_seconds=0,
        input_count=2,
        images="",
        seeds=Seeds(),
    )
    return plan_sweep([tiny_space], ["fake"], protocol, name="tiny")


def sweep_quietly(folder: DatasetFolder, card: Card, **bounds: float) -> tuple[SweepResult, list[Progress]]:
    told: list[Progress] = []
    return run_sweep(folder, card, told.append, **bounds), told  # type: ignore[arg-type]


def without_times(folder: DatasetFolder) -> list[tuple[object, ...]]:
    return [(m.model, m.runtime, m.round, m.status, m.samples_ns, m.output) for m in folder.read_measurements()]


def test_every_model_is_measured_once_in_every_round(folder: DatasetFolder, card: Card) -> None:
    result, told = sweep_quietly(folder, card)
    assert (result.measured, result.failed, result.skipped) == (4, (), ())
    keys = [(m.model, m.round) for m in folder.read_measurements()]
    assert len(keys) == len(set(keys)) == 4 * ROUNDS
    assert (told[-1].done, told[-1].total) == (12, 12)
    settings = folder.read_card().settings["fake"]
    assert settings["threads"] == 1
    assert settings["cores"] == str(max(os.sched_getaffinity(0)))
    assert "OMP_NUM_THREADS=1" in str(settings["thread_variables"])


def test_rounds_come_one_after_the_other_each_in_an_order_of_its_own(card: Card) -> None:
    todo = list(pending(card, []))
    assert [one.round for one in todo] == sorted(one.round for one in todo)
    orders = {tuple(one.model.model for one in todo if one.round == number) for number in range(ROUNDS)}
    assert len(orders) > 1


def test_per_kernel_times_are_asked_of_those_that_tell_them(card: Card) -> None:
    both = msgspec.structs.replace(
        card,
        runtimes={"fake": "1", "mute": "1"},
        protocol=msgspec.structs.replace(card.protocol, kernel_rounds=1),
    )
    asked = [one for one in pending(both, [], [], ("fake",)) if one.kernels]
    assert {(one.runtime, one.round) for one in asked} == {("fake", 0)}
    assert len(asked) == len(card.planned)


def test_a_finished_sweep_measures_nothing_when_run_again(folder: DatasetFolder, card: Card) -> None:
    sweep_quietly(folder, card)
    before = without_times(folder)
    _, told = sweep_quietly(folder, card)
    assert told == []
    assert without_times(folder) == before


@pytest.mark.parametrize(
    ("change", "what"), [({"rounds": 2}, "rounds: 3 there, 2 now"), ({"threads": 2}, "threads: 1 there, 2 now")]
)
def test_another_protocol_is_refused(folder: DatasetFolder, card: Card, change: dict[str, int], what: str) -> None:
    sweep_quietly(folder, card)
    other = msgspec.structs.replace(card, protocol=msgspec.structs.replace(card.protocol, **change))
    with pytest.raises(DatasetError, match=what):
        sweep_quietly(folder, other)


def test_more_rounds_go_on_where_fewer_ended(folder: DatasetFolder, card: Card) -> None:
    sweep_quietly(folder, card)
    before = without_times(folder)
    longer = msgspec.structs.replace(card, protocol=msgspec.structs.replace(card.protocol, rounds=ROUNDS + 1))
    result, _ = sweep_quietly(folder, longer)
    assert result.measured == 4
    after = without_times(folder)
    assert after[: len(before)] == before
    assert {row[2] for row in after[len(before) :]} == {ROUNDS}
    assert folder.read_card().protocol.rounds == ROUNDS + 1


def test_what_never_found_quiet_cores_is_measured_again(folder: DatasetFolder, card: Card) -> None:
    sweep_quietly(folder, card)
    calm, once_calm, never_calm, failed = (model.model for model in card.planned)
    seen = {calm: [100, 101, 102], once_calm: [160, 104, 150], never_calm: [150, 160, 170], failed: [150, 160, 170]}
    done = [
        msgspec.structs.replace(m, probes_ns=(seen[m.model][m.round],) * len(m.samples_ns))
        for m in folder.read_measurements()
        if m.model != failed
    ]
    assert disturbed_pairs(done) == {(never_calm, "fake"): ROUNDS}
    assert [(one.model.model, one.round) for one in disturbed(card, done, 0)] == [(never_calm, ROUNDS)]
    samples = len(done[-1].samples_ns)
    again = [*done, msgspec.structs.replace(done[-1], model=never_calm, round=ROUNDS, probes_ns=(150,) * samples)]
    assert list(disturbed(card, again, 0)) == []
    assert [one.round for one in disturbed(card, again, 1)] == [ROUNDS + 1]
    calmed = [*again, msgspec.structs.replace(done[-1], model=never_calm, round=ROUNDS + 1, probes_ns=(103,) * samples)]
    assert list(disturbed(card, calmed, 2)) == []


def test_more_models_go_on_where_fewer_ended(folder: DatasetFolder, card: Card) -> None:
    fewer = msgspec.structs.replace(card, models=card.models[:2])
    sweep_quietly(folder, fewer)
    before = without_times(folder)
    result, _ = sweep_quietly(folder, card)
    assert result.measured == 4
    after = without_times(folder)
    assert after[: len(before)] == before
    assert {row[0] for row in after[len(before) :]} == {model.model for model in card.models[2:]}
    assert folder.read_card().models == card.models
    with pytest.raises(DatasetError, match="models"):
        sweep_quietly(folder, fewer)


def test_another_runtime_joins_and_a_part_goes_on_alone(folder: DatasetFolder, card: Card) -> None:
    version = pytest.importorskip("onnxruntime").__version__
    sweep_quietly(folder, card)
    before = without_times(folder)
    other = msgspec.structs.replace(card, runtimes={"onnxruntime": version}, tolerances={"onnxruntime": 1e-3})
    result, told = sweep_quietly(folder, other)
    assert (result.measured, told[-1].done, told[-1].total) == (8, 4 * ROUNDS, 4 * ROUNDS)
    after = without_times(folder)
    assert after[: len(before)] == before
    assert {row[1] for row in after[len(before) :]} == {"onnxruntime"}
    assert folder.read_card().runtimes == card.runtimes | other.runtimes
    longer = msgspec.structs.replace(card, protocol=msgspec.structs.replace(card.protocol, rounds=ROUNDS + 1))
    sweep_quietly(folder, longer)
    assert {row[1] for row in without_times(folder)[len(after) :]} == {"fake"}
    with pytest.raises(DatasetError, match=rf"\(onnxruntime: {version} there, 0.1 now\)"):
        sweep_quietly(folder, msgspec.structs.replace(longer, runtimes={"onnxruntime": "0.1"}))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("die", "SIGSEGV"),
        ("unsupported", "no operator Conv"),
        ("hang", "no answer in 3 s"),
        ("memory", "out of memory"),
    ],
)
def test_what_goes_wrong_in_a_worker_is_recorded_and_the_sweep_goes_on(
    folder: DatasetFolder, card: Card, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    victim = card.planned[0].model
    monkeypatch.setenv("LATMOD_FAKE", f"{fault}:{victim}.onnx")
    timeout_seconds = 3.0 if fault == "hang" else 60.0
    result, told = sweep_quietly(folder, card, timeout_seconds=timeout_seconds, memory_bytes=2 << 30)
    assert result.measured == 3
    assert len(result.failed) == 1
    assert reason in result.failed[0]
    assert victim in result.failed[0]
    assert str(folder.path) not in result.failed[0]
    assert any(reason in one.line for one in told)
    monkeypatch.delenv("LATMOD_FAKE")
    assert sum(m.status == "failed" for m in folder.read_measurements()) == 2


def test_a_model_that_is_too_slow_is_recorded_with_its_latency(folder: DatasetFolder, card: Card) -> None:
    slow = msgspec.structs.replace(card, protocol=msgspec.structs.replace(card.protocol, max_latency_seconds=1e-4))
    result, _ = sweep_quietly(folder, slow)
    assert result.measured == 0
    assert len(result.skipped) == 4
    assert "more than 0.0001 s" in result.skipped[0]


def test_a_sweep_killed_at_random_moments_ends_as_if_it_had_not_been(
    tmp_path: Path, folder: DatasetFolder, card: Card, tiny_space: Path, exported_graphs: Path
) -> None:
    """SIGKILL strikes while bursts (slowed down to 0.2 s) run; nothing is lost, and nothing is measured twice."""
    whole = DatasetFolder(tmp_path / "whole")
    shutil.copytree(exported_graphs, whole.graph_path("x").parent)
    sweep_quietly(whole, card)

    command = [
        sys.executable, "-m", "latmod", "sweep", str(tiny_space), "--runtime", "fake", "--rounds", str(ROUNDS),
        "--burst-seconds", "0.01", "--max-samples", "5", "--out", str(folder.path),
    ]  # fmt: skip
    environment = {**os.environ, "LATMOD_FAKE": "slow:.onnx"}
    rng = random.Random(7)
    kept: list[tuple[object, ...]] = []
    for _ in range(40):
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            process.wait(timeout=1.0 + 2.0 * rng.random())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        now = without_times(folder)
        assert now[: len(kept)] == kept
        kept = now
        if process.returncode == 0:
            break
    assert process.returncode == 0
    assert [row[:5] for row in kept] == [row[:5] for row in without_times(whole)]


@pytest.mark.parametrize("phase", ["export", "burst"])
def test_ctrl_c_ends_at_once_and_says_how_to_resume(
    tmp_path: Path, folder: DatasetFolder, tiny_space: Path, phase: str
) -> None:
    out = folder.path if phase == "burst" else tmp_path / "empty"
    environment = {**os.environ, "LATMOD_FAKE": "hang:.onnx"}
    command = [sys.executable, "-m", "latmod", "sweep", str(tiny_space), "--runtime", "fake", "--out", str(out)]
    # What a shell starts in the background ignores this signal, and so do its children, these tests among them.
    heard = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)
    deadline = time.monotonic() + 30
    while not DatasetFolder(out).exists and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=10)
    assert time.monotonic() - start < 2.0
    assert process.returncode == 130
    assert "resume" in told
